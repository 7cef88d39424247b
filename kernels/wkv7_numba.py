"""RWKV-7's delta rule on a CPU, forward and backward: row by row of the state, whose rows need nothing of each other.

The backward works the states of a chunk of inputs out anew from the one before it; it never divides by a decay. Inner loops
are small functions of few arrays, for which the compiler makes vector instructions; sums of products may be reordered for that.
"""

from typing import Any

import numpy as np
from numba import njit

REORDER = {"contract", "reassoc", "nsz"}
jit: Any = njit(nogil=True, error_model="numpy", fastmath=REORDER)
# without reference counts, as in jit.py: those of the rows' slices took two thirds of the time
lean: Any = njit(_nrt=False, forceinline=True, error_model="numpy", nogil=True, fastmath=REORDER)  # pyright: ignore[reportCallIssue]


@lean
def _dot(x, y):
    total = x.dtype.type(0)
    for j in range(x.size):
        total += x[j] * y[j]
    return total


@lean
def _add(total, x, scale):
    """total += scale x."""
    for j in range(x.size):
        total[j] += scale * x[j]


@lean
def _add_product(total, x, y):
    for j in range(x.size):
        total[j] += x[j] * y[j]


@lean
def _update(before, after, r, w, k, b, removed, v):
    """One row of the state, after = before w - removed b + v k, and after . r."""
    total = before.dtype.type(0)
    for j in range(w.size):
        after[j] = before[j] * w[j] - removed * b[j] + v * k[j]
        total += after[j] * r[j]
    return total


@lean
def _decay(g, w, kap, scale):
    """g <- g w + scale kap."""
    for j in range(w.size):
        g[j] = g[j] * w[j] + scale * kap[j]


@lean
def _step(before, after, r, w, k, v, kap, b, y):
    """The state (N, N) after one input, b = kap o a, and y (N,)."""
    for i in range(v.size):
        y[i] = _update(before[i], after[i], r, w, k, b, _dot(before[i], kap), v[i])


@lean
def _step_back(before, after, g, r, w, k, v, kap, b, gy, gr, gw, gk, gv, gkap, gb):
    """Add to the gradients of one input; g, that of the state after it, becomes that of the state before it."""
    for i in range(v.size):
        _add(g[i], r, gy[i])
        _add(gr, after[i], gy[i])
        gv[i] = _dot(g[i], k)
        _add(gk, g[i], v[i])
        _add(gb, g[i], -_dot(before[i], kap))
        removed = -_dot(g[i], b)
        _add_product(gw, g[i], before[i])
        _add(gkap, before[i], removed)
        _decay(g[i], w, kap, removed)


@jit
def forward(r, w, k, v, kap, a, state, y, after, saved, reset, parents, chunk):
    """Fill y (B, T, H, N), after (B, T or 1, H, N, N), and saved (B, chunks or 0, H, N, N), the states before every chunk."""
    B, T, H, N = r.shape
    every = after.shape[1] == T
    nothing, turns, b = np.zeros((N, N), r.dtype), np.empty((2, N, N), r.dtype), np.empty(N, r.dtype)
    for n in range(B):
        for h in range(H):
            before = state[n, h]
            for t in range(T):
                if parents.size:
                    before = after[n, parents[t], h] if parents[t] >= 0 else state[n, h]
                if saved.shape[1] and t % chunk == 0:
                    saved[n, t // chunk, h] = before
                if reset.size and reset[n, t]:
                    before = nothing
                new = after[n, t, h] if every else after[n, 0, h] if t == T - 1 else turns[t % 2]
                b[:] = kap[n, t, h] * a[n, t, h]
                _step(before, new, r[n, t, h], w[n, t, h], k[n, t, h], v[n, t, h], kap[n, t, h], b, y[n, t, h])
                before = new


@jit
def backward(r, w, k, v, kap, a, saved, gy, gafter, gr, gw, gk, gv, gkap, ga, gstate, reset, parents, chunk):
    """Fill gr, gw, gk, gv, gkap and ga (B, T, H, N), which come as zeros, and gstate (B, H, N, N) from gy and gafter.

    A tree is one chunk.
    """
    B, T, H, N = r.shape
    every = gafter.shape[1] == T
    size = min(chunk, T)
    states = np.empty((size + 1, N, N), r.dtype)  # [0] before the chunk, [i + 1] after its input i
    grads = np.empty((size + 1 if parents.size else 1, N, N), r.dtype)  # a sequence's is one that passes down
    nothing, y, b, gb = np.zeros((N, N), r.dtype), np.empty(N, r.dtype), np.empty(N, r.dtype), np.empty(N, r.dtype)
    for n in range(B):
        for h in range(H):
            grads[:] = 0.0
            for begin in range((T - 1) // chunk * chunk, -1, -chunk):
                m = min(chunk, T - begin)
                states[0] = saved[n, begin // chunk, h]
                for i in range(m):
                    t = begin + i
                    forget = reset.size and reset[n, t]
                    before = nothing if forget else states[parents[t] + 1 if parents.size else i]
                    b[:] = kap[n, t, h] * a[n, t, h]
                    _step(before, states[i + 1], r[n, t, h], w[n, t, h], k[n, t, h], v[n, t, h], kap[n, t, h], b, y)
                for i in range(m - 1, -1, -1):
                    t = begin + i
                    forget = reset.size and reset[n, t]
                    source = parents[t] + 1 if parents.size else i
                    g = grads[i + 1 if parents.size else 0]
                    if every:
                        g += gafter[n, t, h]
                    elif t == T - 1:
                        g += gafter[n, 0, h]
                    b[:] = kap[n, t, h] * a[n, t, h]
                    gb[:] = 0.0
                    _step_back(
                        nothing if forget else states[source], states[i + 1], g,
                        r[n, t, h], w[n, t, h], k[n, t, h], v[n, t, h], kap[n, t, h], b, gy[n, t, h],
                        gr[n, t, h], gw[n, t, h], gk[n, t, h], gv[n, t, h], gkap[n, t, h], gb,
                    )  # fmt: skip
                    ga[n, t, h] = gb * kap[n, t, h]
                    _add_product(gkap[n, t, h], gb, a[n, t, h])
                    if parents.size:
                        if not forget:
                            grads[source] += g
                    elif forget:
                        g[:] = 0.0
            gstate[n, h] = grads[0]
