"""`dplr_scan` on a CUDA device, forward and backward: one thread for each channel of a sequence, plain loops.

`launch_forward` and `launch_backward` take device arrays (or NumPy's, in Numba's simulator). `reset` (B, T) and `parents` (T,)
are always there; a sequence is the tree in which each input follows the one before. The backward pass keeps the states after
every input and their gradients, (B, T, D, M) each.
"""

import torch
from numba import cuda
from torch import Tensor

THREADS = 128


def forward(u, a, p, w, b, c, state, y, after, reset, parents):
    """u (B, D, T), a .. c (D, M), state (B, D, M) -> y (B, D, T), after (B, T or 1, D, M), all tensors."""
    launch_forward(u, a, p, w, b, c, state, y, after, reset, parents, _stream(u))


def backward(u, a, p, w, b, c, state, gy, gafter, gu, gk, gstate, reset, parents, every):
    """From gy (B, D, T) and gafter, the gradients gu (B, D, T), gk (5, D, M) of a .. c, and gstate (B, D, M)."""
    rows, _, T = u.shape
    after, h = (a.new_zeros(rows, T, *a.shape) for _ in range(2))
    if every:
        h += gafter
    else:
        h[:, -1] += gafter[:, 0]
    launch_forward(u, a, p, w, b, c, state, torch.empty_like(u), after, reset, parents, _stream(u))
    each = a.new_zeros(rows, 5, *a.shape)
    gstate.zero_()
    launch_backward(u, a, p, w, b, c, state, after, gy, h, gu, each, gstate, reset, parents, _stream(u))
    gk.copy_(each.sum(0))


def launch_forward(u, a, p, w, b, c, state, y, after, reset, parents, stream=0):
    """Fills y and after; after (B, 1, D, M), of a sequence only, is overwritten by each input."""
    blocks = -(-u.shape[0] * u.shape[1] // THREADS)
    _forward[blocks, THREADS, stream](u, a, p, w, b, c, state, y, after, reset, parents)  # pyright: ignore[reportIndexIssue]


def launch_backward(u, a, p, w, b, c, state, after, gy, h, gu, each, gstate, reset, parents, stream=0):
    """Fills gu; adds to h (B, T, D, M), which begins as the gradient of the states, to each (B, 5, D, M) and to gstate."""
    blocks = -(-u.shape[0] * u.shape[1] // THREADS)
    _backward[blocks, THREADS, stream](u, a, p, w, b, c, state, after, gy, h, gu, each, gstate, reset, parents)  # pyright: ignore


def _stream(u: Tensor):
    return cuda.external_stream(torch.cuda.current_stream(u.device).cuda_stream)


@cuda.jit
def _forward(u, a, p, w, b, c, state, y, after, reset, parents):
    D = u.shape[1]
    thread = cuda.grid(1)  # pyright: ignore[reportCallIssue]
    i, d = thread // D, thread % D
    if i >= u.shape[0]:
        return
    last = after.shape[1] - 1  # 0 where only the last state is asked for
    for t in range(u.shape[2]):
        before = min(parents[t], last)
        s = a[d, 0].real * 0
        for n in range(a.shape[1]):
            x = after[i, before, d, n] if before >= 0 else state[i, d, n]
            s += 2 * (w[d, n] * x).real
        if reset[i, t]:
            s = a[d, 0].real * 0
        out = a[d, 0].real * 0
        for n in range(a.shape[1]):
            new = p[d, n] * s + b[d, n] * u[i, d, t]
            if not reset[i, t]:
                new += a[d, n] * (after[i, before, d, n] if before >= 0 else state[i, d, n])
            after[i, min(t, last), d, n] = new
            out += 2 * (c[d, n] * new).real
        y[i, d, t] = out


@cuda.jit
def _backward(u, a, p, w, b, c, state, after, gy, h, gu, each, gstate, reset, parents):
    D = u.shape[1]
    thread = cuda.grid(1)  # pyright: ignore[reportCallIssue]
    i, d = thread // D, thread % D
    if i >= u.shape[0]:
        return
    for t in range(u.shape[2] - 1, -1, -1):
        before = parents[t]
        s = ds = du = a[d, 0].real * 0
        for n in range(a.shape[1]):
            x = after[i, before, d, n] if before >= 0 else state[i, d, n]
            h[i, t, d, n] += 2 * gy[i, d, t] * c[d, n].conjugate()
            each[i, 4, d, n] += 2 * gy[i, d, t] * after[i, t, d, n].conjugate()
            s += 2 * (w[d, n] * x).real
            ds += (p[d, n].conjugate() * h[i, t, d, n]).real
            du += (b[d, n].conjugate() * h[i, t, d, n]).real
        gu[i, d, t] = du
        for n in range(a.shape[1]):
            g = h[i, t, d, n]
            each[i, 3, d, n] += u[i, d, t] * g
            if not reset[i, t]:
                x = after[i, before, d, n] if before >= 0 else state[i, d, n]
                each[i, 0, d, n] += g * x.conjugate()
                each[i, 1, d, n] += s * g
                each[i, 2, d, n] += 2 * ds * x.conjugate()
                g = a[d, n].conjugate() * g + 2 * ds * w[d, n].conjugate()
                if before >= 0:
                    h[i, before, d, n] += g
                else:
                    gstate[i, d, n] += g
