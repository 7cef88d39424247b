"""`diagonal_ssm` on a CUDA device, forward and backward: one thread for each channel of a sequence.

A thread takes its states in turn: each stays in a register along the sequence. `launch_*` take device arrays (or NumPy's, in
Numba's simulator), which is all that a test without a device can reach.
"""

from typing import Any

import torch
from numba import cuda
from torch import Tensor

compiled: Any = cuda.jit
THREADS = 128
CHUNK = 64  # the backward keeps one state in so many


def forward(
    u: Tensor, A: Tensor, C: Tensor, state: Tensor, reset: Tensor | None, parents: Tensor | None, every: bool
) -> tuple[Tensor, Tensor]:
    """(y (B, T, H), after (B, H, N) or (B, T, H, N)); arguments as in `diagonal_ssm`, `parents` a tensor (T,)."""
    (B, T, H), N = u.shape, A.shape[1]
    y, after = torch.zeros_like(u, memory_format=torch.contiguous_format), A.new_empty(B, T if every else 1, H, N)
    x, A, C, first = _arrays(u, u, A, C, state)
    launch_forward(x, A, C, first, *_order(u, reset, parents), y=y, after=after, stream=_stream(u))
    return y, after if every else after[:, 0]


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
    du, dstate = torch.zeros_like(u, memory_format=torch.contiguous_format), A.new_zeros(state.shape)
    dA, dC, g = A.new_zeros(state.shape), A.new_zeros(state.shape), dafter.resolve_conj().contiguous().clone()
    dy, x, A, C, first, after = _arrays(u, dy, u, A, C, state, after)
    forgets, order = _order(u, reset, parents)
    if after.dim() == 4:
        launch_backward_every(dy, A, C, first, after, forgets, order, g, du, dA, dC, dstate, _stream(u))
        return du, dA.sum(0), dC.sum(0), dstate
    B, T, H = u.shape
    marks, states = A.new_empty(B, H, -(-T // CHUNK)), A.new_empty(B, H, CHUNK)
    launch_backward(dy, x, A, C, first, forgets, marks, states, du, dA, dC, g, _stream(u))
    return du, dA.sum(0), dC.sum(0), g


def launch_forward(u, A, C, state, reset, parents, y, after, stream=0):
    """Adds to y (B, T, H) and fills after, (B, T, H, N) or the last one in (B, 1, H, N); reset (B, T) and parents (T,) always."""
    _forward[_blocks(u), THREADS, stream](u, A, C, state, reset, parents, y, after)


def launch_backward_every(dy, A, C, state, after, reset, parents, g, du, dA, dC, dstate, stream=0):
    """Adds to du, dA and dC (B, H, N), and dstate; g begins as the gradient of `after`."""
    kernel = _backward_every[_blocks(dy), THREADS, stream]
    kernel(dy, A, C, state, after, reset, parents, g, du, dA, dC, dstate)


def launch_backward(dy, u, A, C, state, reset, marks, states, du, dA, dC, g, stream=0):
    """Adds to du, dA and dC (B, H, N); g begins as the gradient of the last state and ends as that of the first.

    marks (B, H, chunks) and states (B, H, CHUNK) are room to work in.
    """
    kernel = _backward[_blocks(u), THREADS, stream]
    kernel(dy, u, A, C, state, reset, marks, states, du, dA, dC, g)


def _blocks(u) -> int:
    return -(-u.shape[0] * u.shape[2] // THREADS)


def _arrays(like: Tensor, *tensors: Tensor) -> list[Tensor]:
    return [x.detach().to(like.device).resolve_conj().resolve_neg().contiguous() for x in tensors]


def _order(u: Tensor, reset: Tensor | None, parents: Tensor | None) -> tuple[Tensor, Tensor]:
    """The resets and the parents of any call, a plain sequence's too."""
    B, T = u.shape[:2]
    reset = torch.zeros(B, T, dtype=torch.bool, device=u.device) if reset is None else reset
    reset, parents = _arrays(u, reset, torch.arange(-1, T - 1, device=u.device) if parents is None else parents)
    return reset, parents


def _stream(u: Tensor):
    return cuda.external_stream(torch.cuda.current_stream(u.device).cuda_stream)


@compiled
def _forward(u, A, C, state, reset, parents, y, after):
    thread = cuda.grid(1)  # pyright: ignore[reportCallIssue]
    i, h = thread // u.shape[2], thread % u.shape[2]
    if i >= u.shape[0]:
        return
    every = after.shape[1] == u.shape[1]
    for n in range(A.shape[1]):
        a, c, x = A[h, n], C[h, n], state[i, h, n]
        nothing = a - a  # of a's type
        for t in range(u.shape[1]):
            if parents[t] != t - 1:
                x = after[i, parents[t], h, n] if parents[t] >= 0 else state[i, h, n]
            x = a * (nothing if reset[i, t] else x) + u[i, t, h]
            y[i, t, h] += 2 * (c.real * x.real - c.imag * x.imag)
            after[i, t if every else 0, h, n] = x


@compiled
def _backward_every(dy, A, C, state, after, reset, parents, g, du, dA, dC, dstate):
    thread = cuda.grid(1)  # pyright: ignore[reportCallIssue]
    i, h = thread // dy.shape[2], thread % dy.shape[2]
    if i >= dy.shape[0]:
        return
    for n in range(A.shape[1]):
        a, c = A[h, n].conjugate(), C[h, n].conjugate()
        for t in range(dy.shape[1] - 1, -1, -1):
            g_t, parent = g[i, t, h, n] + 2 * dy[i, t, h] * c, parents[t]
            du[i, t, h] += g_t.real
            dC[i, h, n] += 2 * dy[i, t, h] * after[i, t, h, n].conjugate()
            if not reset[i, t]:
                before = after[i, parent, h, n] if parent >= 0 else state[i, h, n]
                dA[i, h, n] += g_t * before.conjugate()
                if parent >= 0:
                    g[i, parent, h, n] += a * g_t
                else:
                    dstate[i, h, n] += a * g_t


@compiled
def _backward(dy, u, A, C, state, reset, marks, states, du, dA, dC, g):
    thread = cuda.grid(1)  # pyright: ignore[reportCallIssue]
    i, h = thread // u.shape[2], thread % u.shape[2]
    if i >= u.shape[0]:
        return
    T, size = u.shape[1], states.shape[2]
    for n in range(A.shape[1]):
        a, c, x = A[h, n], C[h, n], state[i, h, n]
        nothing = a - a
        for t in range(T):
            if t % size == 0:
                marks[i, h, t // size] = x
            x = a * (nothing if reset[i, t] else x) + u[i, t, h]
        for chunk in range(marks.shape[2] - 1, -1, -1):
            x, start = marks[i, h, chunk], chunk * size
            for t in range(start, min(start + size, T)):
                states[i, h, t - start] = nothing if reset[i, t] else x
                x = a * states[i, h, t - start] + u[i, t, h]
            for t in range(min(start + size, T) - 1, start - 1, -1):
                before = states[i, h, t - start]
                x = a * before + u[i, t, h]
                g_t = g[i, h, n] + 2 * dy[i, t, h] * c.conjugate()
                du[i, t, h] += g_t.real
                dC[i, h, n] += 2 * dy[i, t, h] * x.conjugate()
                dA[i, h, n] += g_t * before.conjugate()
                g[i, h, n] = nothing if reset[i, t] else a.conjugate() * g_t
