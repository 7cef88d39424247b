"""`linear_scan` on a CUDA device, forward and backward: one thread for each channel of a sequence, plain loops over its inputs.

`launch_forward` and `launch_backward` take device arrays (or NumPy's, in Numba's simulator), which is all that a test without a
device can reach; a sequence is given as the tree in which each input follows the one before.
"""

from typing import Any

import torch
from numba import cuda
from torch import Tensor

compiled: Any = cuda.jit
THREADS = 128


def forward(a: Tensor, b: Tensor, state: Tensor, reset: Tensor | None, parents: Tensor | None) -> Tensor:
    """(B, T, D) states; arguments as in `linear_scan`, `parents` a tensor (T,)."""
    h = torch.empty(b.shape, dtype=b.dtype, device=b.device)
    a, x, first = _arrays(b, a if a.dim() == 3 else a[None, None], b, state)
    launch_forward(a, x, first, *_order(b, reset, parents), h=h, stream=_stream(b))
    return h


def backward(
    grad: Tensor, a: Tensor, h: Tensor, state: Tensor, reset: Tensor | None, parents: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of a, b and state from the one of the states, grad (B, T, D)."""
    constant = a.dim() == 1
    da = torch.zeros((len(h), 1, len(a)) if constant else a.shape, dtype=a.dtype, device=a.device)
    db, dstate = grad.clone(memory_format=torch.contiguous_format), torch.zeros_like(state)
    a, states, first = _arrays(h, a[None, None] if constant else a, h, state)
    launch_backward(a, states, first, *_order(h, reset, parents), da=da, db=db, dstate=dstate, stream=_stream(h))
    return da.sum((0, 1)) if constant else da, db, dstate


def launch_forward(a, b, state, reset, parents, h, stream=0):
    """Fills h (B, T, D). a (1, 1, D) or (B, T, D), reset (B, T) and parents (T,) are always there."""
    blocks = -(-state.shape[0] * state.shape[1] // THREADS)
    _forward[blocks, THREADS, stream](a, b, state, reset, parents, h)


def launch_backward(a, h, state, reset, parents, da, db, dstate, stream=0):
    """Adds to da (B, 1, D) or (B, T, D) and dstate; db begins as the gradient of h and ends as that of b."""
    blocks = -(-state.shape[0] * state.shape[1] // THREADS)
    _backward[blocks, THREADS, stream](a, h, state, reset, parents, da, db, dstate)


def _arrays(like: Tensor, *tensors: Tensor) -> list[Tensor]:
    return [x.detach().to(like.device).resolve_conj().resolve_neg().contiguous() for x in tensors]


def _order(b: Tensor, reset: Tensor | None, parents: Tensor | None) -> tuple[Tensor, Tensor]:
    """The resets and the parents of any call, a plain sequence's too."""
    B, T = b.shape[:2]
    reset = torch.zeros(B, T, dtype=torch.bool, device=b.device) if reset is None else reset
    reset, parents = _arrays(b, reset, torch.arange(-1, T - 1, device=b.device) if parents is None else parents)
    return reset, parents


def _stream(b: Tensor):
    return cuda.external_stream(torch.cuda.current_stream(b.device).cuda_stream)


@compiled
def _forward(a, b, state, reset, parents, h):
    thread = cuda.grid(1)  # pyright: ignore[reportCallIssue]
    i, d = thread // b.shape[2], thread % b.shape[2]
    if i >= b.shape[0]:
        return
    for t in range(b.shape[1]):
        h[i, t, d] = b[i, t, d]
        if not reset[i, t]:
            before = h[i, parents[t], d] if parents[t] >= 0 else state[i, d]
            h[i, t, d] += a[i % a.shape[0], t % a.shape[1], d] * before


@compiled
def _backward(a, h, state, reset, parents, da, db, dstate):
    thread = cuda.grid(1)  # pyright: ignore[reportCallIssue]
    i, d = thread // h.shape[2], thread % h.shape[2]
    if i >= h.shape[0]:
        return
    for t in range(h.shape[1] - 1, -1, -1):
        if not reset[i, t]:
            g, parent = db[i, t, d], parents[t]
            before = h[i, parent, d] if parent >= 0 else state[i, d]
            da[i, t % da.shape[1], d] += g * before.conjugate()
            g *= a[i % a.shape[0], t % a.shape[1], d].conjugate()
            if parent >= 0:
                db[i, parent, d] += g
            else:
                dstate[i, d] += g
