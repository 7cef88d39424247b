"""`linear_scan` on a CPU, forward and backward, on torch tensors without copies.

One row of D channels is one call of a small function of few arrays, which LLVM vectorises; the row before it is still in the
nearest cache, so that each entry crosses the memory bus once. LLVM knows how to deal the parts of complex numbers out to lanes.
"""

from typing import Any

import numpy as np
import torch
from numba import njit
from torch import Tensor

compiled: Any = njit(nogil=True, cache=True)
vectorised: Any = njit(nogil=True, cache=True, fastmath={"contract"}, error_model="numpy")
NO_RESET, NO_PARENTS = np.empty((0, 0), np.bool_), np.empty(0, np.int64)


def forward(a: Tensor, b: Tensor, state: Tensor, reset: Tensor | None, parents: Tensor | None) -> Tensor:
    """(B, T, D) states; arguments as in `linear_scan`, `parents` a tensor (T,)."""
    h = torch.empty(b.shape, dtype=b.dtype)
    a = a if a.dim() == 3 else a[None, None]
    _forward(_array(a), _array(b), _array(state), _array(reset, NO_RESET), _array(parents, NO_PARENTS), h.numpy())
    return h


def backward(
    grad: Tensor, a: Tensor, h: Tensor, state: Tensor, reset: Tensor | None, parents: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of a, b and state from the one of the states, grad (B, T, D)."""
    da = torch.from_numpy(np.zeros(a.shape if a.dim() == 3 else (1, 1, len(a)), _array(a).dtype))
    db = torch.empty(h.shape, dtype=h.dtype) if parents is None else grad.clone(memory_format=torch.contiguous_format)
    dstate = torch.zeros(state.shape, dtype=state.dtype)
    source = grad if parents is None else db
    arrays = [_array(x) for x in (source, a if a.dim() == 3 else a[None, None], h, state)]
    _backward(*arrays, _array(reset, NO_RESET), _array(parents, NO_PARENTS), da.numpy(), db.numpy(), dstate.numpy())
    return da.view(a.shape), db, dstate


def _array(x: Tensor | None, default: np.ndarray = NO_PARENTS) -> np.ndarray:
    return default if x is None else x.detach().resolve_conj().resolve_neg().contiguous().numpy()


@vectorised
def _step(a, before, b, out):
    for d in range(out.shape[0]):
        out[d] = a[d] * before[d] + b[d]


@vectorised
def _step_back(a, g, source, out):
    for d in range(out.shape[0]):
        out[d] = source[d] + np.conj(a[d]) * g[d]


@vectorised
def _add_product(g, before, out):
    for d in range(out.shape[0]):
        out[d] += g[d] * np.conj(before[d])


@compiled
def _forward(a, b, state, reset, parents, h):
    i_step, t_step = int(a.shape[0] > 1), int(a.shape[1] > 1)  # 0 where a is the same for all
    for i in range(b.shape[0]):
        for t in range(b.shape[1]):
            parent = parents[t] if parents.size else t - 1
            if reset.size and reset[i, t]:
                h[i, t] = b[i, t]
            elif parent >= 0:
                _step(a[i * i_step, t * t_step], h[i, parent], b[i, t], h[i, t])
            else:
                _step(a[i * i_step, t * t_step], state[i], b[i, t], h[i, t])


@compiled
def _backward(source, a, h, state, reset, parents, da, db, dstate):
    """`source` is the gradient of h, and in a tree `db`, which then begins as that gradient and collects along the branches."""
    i_step, t_step = int(a.shape[0] > 1), int(a.shape[1] > 1)
    T = h.shape[1]
    for i in range(h.shape[0]):
        if not parents.size:
            db[i, T - 1] = source[i, T - 1]
        for t in range(T - 1, -1, -1):
            parent = parents[t] if parents.size else t - 1
            if reset.size and reset[i, t]:
                if not parents.size and t:
                    db[i, t - 1] = source[i, t - 1]
                continue
            a_t, da_t, g = a[i * i_step, t * t_step], da[i * i_step, t * t_step], db[i, t]
            if parent >= 0:
                _add_product(g, h[i, parent], da_t)
                _step_back(a_t, g, source[i, parent], db[i, parent])
            else:
                _add_product(g, state[i], da_t)
                _step_back(a_t, g, dstate[i], dstate[i])
