"""`dplr_scan` on a CPU, forward and backward: one channel at a time, vectors along its state.

All that a step reads and writes lies in one array z, in blocks of rows of LANES numbers at constant offsets: the compiler then
knows without a check that they don't overlap. A state whose size is no multiple of LANES is filled up with zeros. The backward
pass works the states out anew, a chunk of inputs at a time, from the states before each chunk, which are scratch of one
channel: nothing but the inputs is kept between the passes.
"""

from typing import Any

import numpy as np
from numba import njit

LANES = 16  # with 8 the compiler unrolls the loops over them instead of making vectors, at half the speed
CHUNK = 32  # inputs of which the backward pass holds all states
I = LANES  # imaginary parts lie that far behind the real ones
A, P, W, B, C, X, H, G = (2 * LANES * i for i in range(8))  # parameters, state, its gradient; gradients of A .. C from G on
FORWARD, BACKWARD = H, G + X  # numbers in a block

jit: Any = njit(nogil=True, cache=True, error_model="numpy", fastmath={"contract", "reassoc", "nsz"})
inline: Any = njit(nogil=True, error_model="numpy", fastmath={"contract", "reassoc", "nsz"}, forceinline=True)


@jit
def _load(z, row, block, values):
    """Complex `values` (M,) into a row of every block."""
    for n in range(values.size):
        i = n // LANES * block + row + n % LANES
        z[i], z[i + I] = values[n].real, values[n].imag


@jit
def _store(z, row, block, values):
    for n in range(values.size):
        i = n // LANES * block + row + n % LANES
        values[n] = complex(z[i], z[i + I])


@jit
def _load_parameters(z, block, a, p, w, b, c):
    _load(z, A, block, a)
    _load(z, P, block, p)
    _load(z, W, block, w)
    _load(z, B, block, b)
    _load(z, C, block, c)


@inline
def _clear(z, row, block):
    for j in range(0, z.size, block):
        z[j + row : j + row + 2 * LANES] = 0.0


@inline
def _get(z, row, block, kept):
    """A row and its imaginary parts from where `_put` laid them."""
    for j in range(z.size // block):
        v, k = z[j * block + row :], kept[j * 2 * LANES :]
        for l in range(2 * LANES):
            v[l] = k[l]


@inline
def _put(z, row, block, kept):
    for j in range(z.size // block):
        v, k = z[j * block + row :], kept[j * 2 * LANES :]
        for l in range(2 * LANES):
            k[l] = v[l]


@inline
def _add(z, row, block, kept):
    for j in range(z.size // block):
        v, k = z[j * block + row :], kept[j * 2 * LANES :]
        for l in range(2 * LANES):
            k[l] += v[l]


@inline
def _low_rank(z, block):
    """s of the state."""
    s = z.dtype.type(0.0)
    for j in range(0, z.size, block):
        v = z[j : j + block]
        for l in range(LANES):
            s += v[l + W] * v[l + X] - v[l + W + I] * v[l + X + I]
    return s + s


@inline
def _advance(z, block, s, u):
    """The state takes in an input; y and the next s."""
    y, following = z.dtype.type(0.0), z.dtype.type(0.0)
    for j in range(0, z.size, block):
        v = z[j : j + block]
        for l in range(LANES):
            re, im = v[l + X], v[l + X + I]
            new_re = v[l + A] * re - v[l + A + I] * im + v[l + P] * s + v[l + B] * u
            new_im = v[l + A] * im + v[l + A + I] * re + v[l + P + I] * s + v[l + B + I] * u
            v[l + X], v[l + X + I] = new_re, new_im
            y += v[l + C] * new_re - v[l + C + I] * new_im
            following += v[l + W] * new_re - v[l + W + I] * new_im
    return y + y, following + following


@inline
def _enter(z, gy):
    """The gradient H of the state X after an input takes in that of its output, `gy` = 2 dy; (ds, du)."""
    gs, gu = z.dtype.type(0.0), z.dtype.type(0.0)
    for j in range(0, z.size, BACKWARD):
        v = z[j : j + BACKWARD]
        for l in range(LANES):
            re, im = v[l + H] + gy * v[l + C], v[l + H + I] - gy * v[l + C + I]
            v[l + H], v[l + H + I] = re, im
            v[l + G + C] += gy * v[l + X]
            v[l + G + C + I] -= gy * v[l + X + I]
            gs += v[l + P] * re + v[l + P + I] * im
            gu += v[l + B] * re + v[l + B + I] * im
    return gs, gu


@inline
def _retreat(z, s, gs, u):
    """From the gradient H of the state after an input to that of the state X before it; `gs` = 2 ds."""
    for j in range(0, z.size, BACKWARD):
        v = z[j : j + BACKWARD]
        for l in range(LANES):
            re, im, x_re, x_im = v[l + H], v[l + H + I], v[l + X], v[l + X + I]
            v[l + G + A] += re * x_re + im * x_im
            v[l + G + A + I] += im * x_re - re * x_im
            v[l + G + P] += s * re
            v[l + G + P + I] += s * im
            v[l + G + W] += gs * x_re
            v[l + G + W + I] -= gs * x_im
            v[l + G + B] += u * re
            v[l + G + B + I] += u * im
            v[l + H] = v[l + A] * re + v[l + A + I] * im + gs * v[l + W]
            v[l + H + I] = v[l + A] * im - v[l + A + I] * re - gs * v[l + W + I]


@jit
def forward(u, a, p, w, b, c, state, y, after, reset, parents):
    """u (B, D, T), a .. c (D, M), state (B, D, M) -> y (B, D, T), after (B, T or 1, D, M)."""
    rows, D, T = u.shape
    every, tree, resets = after.shape[1] == T, parents.size > 0, reset.size > 0
    z = np.zeros((a.shape[1] + LANES - 1) // LANES * FORWARD, a.real.dtype)
    for d in range(D):
        _load_parameters(z, FORWARD, a[d], p[d], w[d], b[d], c[d])
        for row in range(rows):
            _load(z, X, FORWARD, state[row, d])
            s = _low_rank(z, FORWARD)
            for t in range(T):
                if tree and parents[t] != t - 1:
                    _load(z, X, FORWARD, state[row, d] if parents[t] < 0 else after[row, parents[t], d])
                    s = _low_rank(z, FORWARD)
                if resets and reset[row, t]:
                    _clear(z, X, FORWARD)
                    s = z.dtype.type(0.0)
                out, s = _advance(z, FORWARD, s, z.dtype.type(u[row, d, t]))
                y[row, d, t] = out
                if every:
                    _store(z, X, FORWARD, after[row, t, d])
            if not every:
                _store(z, X, FORWARD, after[row, 0, d])


@jit
def _checkpoints(z, u, reset, chunk, saved):
    """saved[i]: the state before input i * chunk of one channel u (T,), from the state in z."""
    s = _low_rank(z, BACKWARD)
    for t in range(u.size):
        if t % chunk == 0:
            _put(z, X, BACKWARD, saved[t // chunk])
        if reset.size > 0 and reset[t]:
            _clear(z, X, BACKWARD)
            s = z.dtype.type(0.0)
        _, s = _advance(z, BACKWARD, s, z.dtype.type(u[t]))


@jit
def backward(u, a, p, w, b, c, state, gy, gafter, gu, gk, gstate, reset, parents, every):
    """From gy (B, D, T) and gafter, the gradients gu (B, D, T), gk (5, D, M) of a .. c, and gstate (B, D, M)."""
    rows, D, T = u.shape
    tree = parents.size > 0
    chunk = T if every else min(CHUNK, T)  # a tree is one chunk
    blocks = (a.shape[1] + LANES - 1) // LANES
    z = np.zeros(blocks * BACKWARD, a.real.dtype)
    size = blocks * 2 * LANES
    saved = np.empty(((T + chunk - 1) // chunk, size), z.dtype)
    x = np.zeros((chunk + 1, size), z.dtype)  # x[0] before a chunk, x[i + 1] after its input i
    h = np.zeros((chunk + 1, size), z.dtype)  # their gradients
    s, never = np.empty(chunk, z.dtype), np.empty(0, np.bool_)
    for d in range(D):
        z[:] = 0.0
        _load_parameters(z, BACKWARD, a[d], p[d], w[d], b[d], c[d])
        for row in range(rows):
            forgets = reset[row] if reset.size > 0 else never
            _load(z, X, BACKWARD, state[row, d])
            _checkpoints(z, u[row, d, : T if chunk < T else 1], forgets, chunk, saved)
            if not every:
                _load(z, H, BACKWARD, gafter[row, 0, d])
                _put(z, H, BACKWARD, h[0])
            for first in range((T - 1) // chunk * chunk, -1, -chunk):
                length = min(chunk, T - first)
                x[0] = saved[first // chunk]
                for i in range(length):
                    if forgets.size > 0 and forgets[first + i]:
                        _clear(z, X, BACKWARD)
                    else:
                        _get(z, X, BACKWARD, x[parents[i] + 1 if tree else i])
                    s[i] = _low_rank(z, BACKWARD)
                    _advance(z, BACKWARD, s[i], z.dtype.type(u[row, d, first + i]))
                    _put(z, X, BACKWARD, x[i + 1])
                h[length] = h[0]  # of the later chunk, whose first state is this one's last
                h[:length] = 0.0
                if every:
                    for i in range(length):
                        _load(z, H, BACKWARD, gafter[row, i, d])
                        _put(z, H, BACKWARD, h[i + 1])
                for i in range(length - 1, -1, -1):
                    t = first + i
                    _get(z, X, BACKWARD, x[i + 1])
                    _get(z, H, BACKWARD, h[i + 1])
                    out = z.dtype.type(gy[row, d, t])
                    gs, into = _enter(z, out + out)
                    gu[row, d, t] = into
                    before = parents[i] + 1 if tree else i
                    forgotten = forgets.size > 0 and forgets[t]
                    if forgotten:
                        _clear(z, X, BACKWARD)
                    else:
                        _get(z, X, BACKWARD, x[before])
                    _retreat(z, s[i], gs + gs, z.dtype.type(u[row, d, t]))
                    if not forgotten:
                        _add(z, H, BACKWARD, h[before])
            _get(z, H, BACKWARD, h[0])
            _store(z, H, BACKWARD, gstate[row, d])
        _store(z, G + A, BACKWARD, gk[0, d])
        _store(z, G + P, BACKWARD, gk[1, d])
        _store(z, G + W, BACKWARD, gk[2, d])
        _store(z, G + B, BACKWARD, gk[3, d])
        _store(z, G + C, BACKWARD, gk[4, d])
