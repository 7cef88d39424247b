"""`selective_scan` on a CUDA device: one thread for each channel of a sequence, plain loops over its inputs and states.

`launch_forward` and `launch_backward` take device arrays (or NumPy's, in Numba's simulator), which is all that a test without a
device can reach. Tested in the simulator only.

B batch   T inputs   W channels   N states a channel
"""

import math

import torch
from numba import cuda
from torch import Tensor

from .selective_scan import CHUNK

THREADS = 64


def forward(
    u: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, state: Tensor,
    reset: Tensor | None, parents: Tensor | None, marked: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """(y, after, marks) as the custom op of `selective_scan` gives them; no marks unless `marked`."""
    (batch, T, W), N = u.shape, A.shape[1]
    y = torch.empty_like(u, memory_format=torch.contiguous_format)
    after = u.new_empty(batch, 1 if parents is None else T, N, W)
    marks = u.new_empty(batch, -(-T // CHUNK) if marked and parents is None else 0, N, W)
    arrays = _arrays(u, u, dt, A.mT, B, C, D, state)
    launch_forward(*[*arrays, *_order(u, reset, parents), y, after, marks], stream=_stream(u))
    return y, after.squeeze(1) if parents is None else after, marks


def backward(
    gy: Tensor, gafter: Tensor, u: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, state: Tensor,
    reset: Tensor | None, parents: Tensor | None, after: Tensor, marks: Tensor,
) -> tuple[Tensor, ...]:  # fmt: skip
    """Gradients of u, dt, A, B, C, D and state from those of y and after."""
    batch, T = u.shape[:2]
    arrays = _arrays(u, u, dt, A.mT, B, C, D, state)
    if parents is None:  # the states that the forward pass did not keep
        gafter = torch.cat((gafter.new_zeros(batch, T - 1, *gafter.shape[1:]), gafter.unsqueeze(1)), dim=1)
        after, y = torch.empty_like(gafter), torch.empty_like(arrays[0])
        launch_forward(*[*arrays, *_order(u, reset, None), y, after, marks[:, :0].contiguous()], stream=_stream(u))
    made = [torch.zeros_like(x) for x in arrays]
    gafter = gafter.clone(memory_format=torch.contiguous_format)
    inputs = (*_arrays(u, gy), gafter, *arrays, *_order(u, reset, parents), *_arrays(u, after), *made)
    launch_backward(*inputs, stream=_stream(u))
    gu, gdt, gA, gB, gC, gD, gstate = made
    return gu, gdt, gA.mT.contiguous(), gB, gC, gD, gstate


def launch_forward(u, dt, A, B, C, D, state, reset, parents, y, after, marks, stream=0):
    """Fills y (B, T, W), after (B, T or 1, N, W) and marks (B, T / CHUNK or 0, N, W).

    A is (N, W). `parents` (T,) count where `after` has T states, else each input follows the one before.
    """
    blocks = -(-u.shape[0] * u.shape[2] // THREADS)
    _forward[blocks, THREADS, stream](u, dt, A, B, C, D, state, reset, parents, y, after, marks)  # pyright: ignore


def launch_backward(gy, gafter, u, dt, A, B, C, D, state, reset, parents, after, gu, gdt, gA, gB, gC, gD, gstate, stream=0):
    """Adds to the seven gradients, which begin as zeros; gafter (B, T, N, W) is overwritten."""
    blocks = -(-u.shape[0] * u.shape[2] // THREADS)
    arrays = (gy, gafter, u, dt, A, B, C, D, state, reset, parents, after, gu, gdt, gA, gB, gC, gD, gstate)
    _backward[blocks, THREADS, stream](*arrays)  # pyright: ignore[reportIndexIssue]


def _arrays(like: Tensor, *tensors: Tensor) -> list[Tensor]:
    return [x.detach().to(like.device).contiguous() for x in tensors]


def _order(u: Tensor, reset: Tensor | None, parents: Tensor | None) -> list[Tensor]:
    """The resets and the parents of any call, a plain sequence's too."""
    batch, T, _ = u.shape
    reset = torch.zeros(batch, T, dtype=torch.bool, device=u.device) if reset is None else reset
    return _arrays(u, reset, torch.arange(-1, T - 1) if parents is None else parents)


def _stream(u: Tensor):
    return cuda.external_stream(torch.cuda.current_stream(u.device).cuda_stream)


@cuda.jit
def _forward(u, dt, A, B, C, D, state, reset, parents, y, after, marks):
    i, d = cuda.grid(1) // u.shape[2], cuda.grid(1) % u.shape[2]  # pyright: ignore[reportCallIssue]
    if i >= u.shape[0]:
        return
    each = after.shape[1] == u.shape[1]
    for t in range(u.shape[1]):
        y[i, t, d] = D[d] * u[i, t, d]
        for n in range(A.shape[0]):
            if each:
                before = after[i, parents[t], n, d] if parents[t] >= 0 else state[i, n, d]
            else:
                before = after[i, 0, n, d] if t else state[i, n, d]
            if marks.shape[1] and t % CHUNK == 0:
                marks[i, t // CHUNK, n, d] = before
            h = dt[i, t, d] * u[i, t, d] * B[i, t, n]
            if not reset[i, t]:
                h += math.exp(dt[i, t, d] * A[n, d]) * before
            after[i, t if each else 0, n, d] = h
            y[i, t, d] += C[i, t, n] * h


@cuda.jit
def _backward(gy, gafter, u, dt, A, B, C, D, state, reset, parents, after, gu, gdt, gA, gB, gC, gD, gstate):
    i, d = cuda.grid(1) // u.shape[2], cuda.grid(1) % u.shape[2]  # pyright: ignore[reportCallIssue]
    if i >= u.shape[0]:
        return
    for t in range(u.shape[1] - 1, -1, -1):
        parent = parents[t]
        through_b = through_decay = gy[i, t, d] * 0
        for n in range(A.shape[0]):
            g = gafter[i, t, n, d] + C[i, t, n] * gy[i, t, d]
            cuda.atomic.add(gC, (i, t, n), gy[i, t, d] * after[i, t, n, d])
            cuda.atomic.add(gB, (i, t, n), g * dt[i, t, d] * u[i, t, d])
            through_b += g * B[i, t, n]
            if not reset[i, t]:
                before = after[i, parent, n, d] if parent >= 0 else state[i, n, d]
                g *= math.exp(dt[i, t, d] * A[n, d])
                through_decay += g * before * A[n, d]
                cuda.atomic.add(gA, (n, d), g * before * dt[i, t, d])
                if parent >= 0:
                    gafter[i, parent, n, d] += g
                else:
                    gstate[i, n, d] += g
        gu[i, t, d] = dt[i, t, d] * through_b + D[d] * gy[i, t, d]
        gdt[i, t, d] = u[i, t, d] * through_b + through_decay
        cuda.atomic.add(gD, d, gy[i, t, d] * u[i, t, d])
