"""`diagonal_ssm` on a CPU, forward and backward, on torch tensors without copies.

The lanes are the N states of a channel. A long sequence goes four inputs at a time where no reset lies between, so that A, C
and the state come from the cache once for four. Small functions of few arrays: LLVM vectorises a loop only where a few
comparisons of pointers tell it that its arrays don't overlap.
"""

from typing import Any

import numpy as np
import torch
from numba import njit
from torch import Tensor

compiled: Any = njit(nogil=True, cache=True)
fast = {"contract", "reassoc", "nsz"}  # sums may be taken lane by lane
vectorised: Any = njit(nogil=True, cache=True, fastmath=fast, error_model="numpy")
NO_RESET, NO_PARENTS = np.empty((0, 0), np.bool_), np.empty(0, np.int64)
COLUMN = 256  # inputs of a channel before the next channel has its turn: neighbours share cache lines of u and y
CHUNK = 64  # the backward keeps one state in so many
TILE = 64  # and takes so many states of a channel at a time


def forward(
    u: Tensor, A: Tensor, C: Tensor, state: Tensor, reset: Tensor | None, parents: Tensor | None, every: bool
) -> tuple[Tensor, Tensor]:
    """(y (B, T, H), after (B, H, N) or (B, T, H, N)); arguments as in `diagonal_ssm`, `parents` a tensor (T,)."""
    (B, T, H), N = u.shape, A.shape[1]
    y = torch.empty((B, T, H), dtype=u.dtype)
    arrays = [_array(x) for x in (u, A, C)]
    if every:
        after = torch.empty((B, T, H, N), dtype=A.dtype)
        order = _array(reset, NO_RESET), _array(parents, NO_PARENTS)
        _forward_every(*arrays, _array(state), *order, y.numpy(), after.numpy())
    else:
        after = torch.from_numpy(_array(state).copy())
        _forward(*arrays, _array(reset, NO_RESET), y.numpy(), after.numpy())
    return y, after


def backward(
    dy: Tensor,
    dafter: Tensor,
    u: Tensor,
    A: Tensor,
    C: Tensor,
    state: Tensor,
    after: Tensor,
    reset: Tensor | None,
    parents: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of u, A, C and state from those of the outputs."""
    du, dA, dC = torch.zeros(u.shape, dtype=u.dtype), torch.zeros(A.shape, dtype=A.dtype), torch.zeros(C.shape, dtype=C.dtype)
    out = du.numpy(), dA.numpy(), dC.numpy()
    if after.dim() == 4:
        dstate = torch.zeros(state.shape, dtype=state.dtype)
        arrays = [_array(x) for x in (dy, A, C, state, after)]
        order = _array(reset, NO_RESET), _array(parents, NO_PARENTS)
        _backward_every(*arrays, *order, _array(dafter).copy(), *out, dstate.numpy())
    else:
        dstate = torch.from_numpy(_array(dafter).copy())
        _backward(*[_array(x) for x in (dy, u, A, C, state)], _array(reset, NO_RESET), *out, dstate.numpy())
    return du, dA, dC, dstate


def _array(x: Tensor | None, default: np.ndarray = NO_PARENTS) -> np.ndarray:
    return default if x is None else x.detach().resolve_conj().resolve_neg().contiguous().numpy()


@vectorised
def _one(A, C, x, u):
    """x (N,) moves on by an input; half of y."""
    y = u * 0
    for n in range(x.shape[0]):
        x[n] = A[n] * x[n] + u
        y += C[n].real * x[n].real - C[n].imag * x[n].imag
    return y


@vectorised
def _four(A, C, x, u0, u1, u2, u3):
    """`_one` four times."""
    y0 = y1 = y2 = y3 = u0 * 0
    for n in range(x.shape[0]):
        a, c, z = A[n], C[n], x[n]
        z = a * z + u0
        y0 += c.real * z.real - c.imag * z.imag
        z = a * z + u1
        y1 += c.real * z.real - c.imag * z.imag
        z = a * z + u2
        y2 += c.real * z.real - c.imag * z.imag
        z = a * z + u3
        y3 += c.real * z.real - c.imag * z.imag
        x[n] = z
    return y0, y1, y2, y3


@vectorised
def _times(r, z):
    """r * z of a real r: Numba would make r complex first."""
    return complex(r * z.real, r * z.imag)


@vectorised
def _output_back(C, x, g, dC, dy):
    """Adds to g and dC what y_t = 2 Re sum C x_t asks; Re sum g, the gradient of u_t."""
    du = dy * 0
    for n in range(g.shape[0]):
        gn = g[n] + _times(dy, np.conj(C[n]))
        dC[n] += _times(dy, np.conj(x[n]))
        du += gn.real
        g[n] = gn
    return du


@vectorised
def _state_back(A, before, g, dA):
    """Adds to dA what x_t = A x_{t-1} asks; g becomes the gradient of x_{t-1}."""
    for n in range(g.shape[0]):
        dA[n] += g[n] * np.conj(before[n])
        g[n] *= np.conj(A[n])


@compiled
def _run(u, A, C, reset, x, y):
    """A channel's inputs u (T,), resets (T,) or none, outputs y (T,); x (N,) moves from the first state to the last."""
    t, T, plain = 0, len(u), not reset.size
    while t < T:
        if t + 4 <= T and (plain or not (reset[t] or reset[t + 1] or reset[t + 2] or reset[t + 3])):
            y0, y1, y2, y3 = _four(A, C, x, u[t], u[t + 1], u[t + 2], u[t + 3])
            y[t], y[t + 1], y[t + 2], y[t + 3] = 2 * y0, 2 * y1, 2 * y2, 2 * y3
            t += 4
        else:
            if not plain and reset[t]:
                x[:] = 0
            y[t] = 2 * _one(A, C, x, u[t])
            t += 1


@compiled
def _forward(u, A, C, reset, y, x):
    """x (B, H, N) begins as the first state and ends as the last."""
    B, T, H = u.shape
    for i in range(B):
        for t in range(0, T, COLUMN):
            resets = reset[i, t : t + COLUMN] if reset.size else reset[:0].ravel()
            for h in range(H):
                _run(u[i, t : t + COLUMN, h], A[h], C[h], resets, x[i, h], y[i, t : t + COLUMN, h])


@compiled
def _forward_every(u, A, C, state, reset, parents, y, after):
    B, T, H = u.shape
    for i in range(B):
        for t in range(T):
            parent = parents[t] if parents.size else t - 1
            if reset.size and reset[i, t]:
                after[i, t] = 0
            elif parent >= 0:
                after[i, t] = after[i, parent]
            else:
                after[i, t] = state[i]
            for h in range(H):
                y[i, t, h] = 2 * _one(A[h], C[h], after[i, t, h], u[i, t, h])


@compiled
def _backward_every(dy, A, C, state, after, reset, parents, g, du, dA, dC, dstate):
    """g (B, T, H, N) begins as the gradient of `after` and collects along the branches."""
    B, T, H = dy.shape
    for i in range(B):
        for t in range(T - 1, -1, -1):
            parent = parents[t] if parents.size else t - 1
            forgets = reset.size and reset[i, t]
            for h in range(H):
                du[i, t, h] = _output_back(C[h], after[i, t, h], g[i, t, h], dC[h], 2 * dy[i, t, h])
                if not forgets:
                    _state_back(A[h], after[i, parent, h] if parent >= 0 else state[i, h], g[i, t, h], dA[h])
            if not forgets and parent >= 0:
                g[i, parent] += g[i, t]
            elif not forgets:
                dstate[i] += g[i, t]


@compiled
def _backward(dy, u, A, C, state, reset, du, dA, dC, g):
    """g (B, H, N) begins as the gradient of the last state and ends as that of the first; du begins as 0."""
    (B, T, H), N = u.shape, A.shape[1]
    marks = np.empty((-(-T // CHUNK), TILE), A.dtype)  # the states before each chunk of a channel
    states, work = np.empty((CHUNK + 1) * TILE, A.dtype), np.empty(5 * TILE, A.dtype)
    ignored = np.empty(CHUNK, u.dtype)
    for i in range(B):
        for h in range(H):
            for n in range(0, N, TILE):
                a, c, width = A[h, n : n + TILE], C[h, n : n + TILE], min(TILE, N - n)
                x = states[:width]
                x[:] = state[i, h, n : n + TILE]
                for t in range(0, T, CHUNK):
                    marks[t // CHUNK, :width] = x
                    _run(u[i, t : t + CHUNK, h], a, c, _resets(reset, i, t), x, ignored)
                work[:width], work[TILE : TILE + width] = a, c
                for place, row in ((2, g[i, h]), (3, dA[h]), (4, dC[h])):
                    work[place * TILE : place * TILE + width] = row[n : n + TILE]
                for t in range((len(marks) - 1) * CHUNK, -1, -CHUNK):
                    x[:] = marks[t // CHUNK, :width]
                    resets = _resets(reset, i, t)
                    _replay(u[i, t : t + CHUNK, h], a, resets, states)
                    _chunk_back(dy[i, t : t + CHUNK, h], width, resets, states, work, du[i, t : t + CHUNK, h])
                for place, row in ((2, g[i, h]), (3, dA[h]), (4, dC[h])):
                    row[n : n + TILE] = work[place * TILE : place * TILE + width]


@compiled
def _resets(reset, i, t):
    return reset[i, t : t + CHUNK] if reset.size else reset[:0].ravel()


@compiled
def _replay(u, a, reset, states):
    """The states after each input of a chunk, behind the one before it."""
    t, T, plain = 0, len(u), not reset.size
    while t < T:
        x = states[t * TILE :]
        if t + 4 <= T and (plain or not (reset[t] or reset[t + 1] or reset[t + 2] or reset[t + 3])):
            _replay_four(a, x, u[t], u[t + 1], u[t + 2], u[t + 3])
            t += 4
        else:
            if plain or not reset[t]:
                _replay_one(a, x, u[t])
            else:
                x[TILE : TILE + len(a)] = u[t]
            t += 1


@compiled
def _chunk_back(dy, width, reset, states, work, du):
    """From the last input of a chunk to the first. `work` has a, c, g, dA and dC, a tile each."""
    t, plain = len(dy), not reset.size
    while t > 0:
        if t >= 4 and (plain or not (reset[t - 1] or reset[t - 2] or reset[t - 3] or reset[t - 4])):
            t -= 4
            x = states[t * TILE :]
            d0, d1, d2, d3 = _four_back(work, width, x, 2 * dy[t], 2 * dy[t + 1], 2 * dy[t + 2], 2 * dy[t + 3])
            du[t] += d0
            du[t + 1] += d1
            du[t + 2] += d2
            du[t + 3] += d3
        else:
            t -= 1
            du[t] += _one_back(work, width, states[t * TILE :], 2 * dy[t], dy[t] * 0 + (plain or not reset[t]))


# A chunk's states and `work` are flat, in rows of TILE: at constant distances LLVM sees that rows don't overlap.


@vectorised
def _replay_one(a, x, u):
    for n in range(a.shape[0]):
        x[TILE + n] = a[n] * x[n] + u


@vectorised
def _replay_four(a, x, u0, u1, u2, u3):
    for n in range(a.shape[0]):
        z = a[n] * x[n] + u0
        x[TILE + n] = z
        z = a[n] * z + u1
        x[2 * TILE + n] = z
        z = a[n] * z + u2
        x[3 * TILE + n] = z
        x[4 * TILE + n] = a[n] * z + u3


@vectorised
def _one_back(work, width, x, dy, keeps):
    """Re sum g, the gradient of u_t; g, dA and dC move on. `keeps` is 0 at a reset, else 1."""
    du = dy * 0
    for n in range(width):
        g = work[2 * TILE + n] + _times(dy, np.conj(work[TILE + n]))
        du += g.real
        work[4 * TILE + n] += _times(dy, np.conj(x[TILE + n]))
        g = _times(keeps, g)
        work[3 * TILE + n] += g * np.conj(x[n])
        work[2 * TILE + n] = g * np.conj(work[n])
    return du


@vectorised
def _four_back(work, width, x, dy0, dy1, dy2, dy3):
    """`_one_back` four times, from the last input to the first, without resets."""
    du0 = du1 = du2 = du3 = dy0 * 0
    for n in range(width):
        a, c, g, dA, dC = work[n], work[TILE + n], work[2 * TILE + n], work[3 * TILE + n], work[4 * TILE + n]
        a, c = np.conj(a), np.conj(c)
        x0, x1, x2, x3 = np.conj(x[n]), np.conj(x[TILE + n]), np.conj(x[2 * TILE + n]), np.conj(x[3 * TILE + n])
        g += _times(dy3, c)
        du3 += g.real
        dC += _times(dy3, np.conj(x[4 * TILE + n]))
        dA += g * x3
        g = a * g + _times(dy2, c)
        du2 += g.real
        dC += _times(dy2, x3)
        dA += g * x2
        g = a * g + _times(dy1, c)
        du1 += g.real
        dC += _times(dy1, x2)
        dA += g * x1
        g = a * g + _times(dy0, c)
        du0 += g.real
        dC += _times(dy0, x1)
        dA += g * x0
        work[2 * TILE + n], work[3 * TILE + n], work[4 * TILE + n] = a * g, dA, dC
    return du0, du1, du2, du3
