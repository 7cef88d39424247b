"""The recurrence of a diagonal-plus-low-rank state-space model in O(M) a step (S4, Gu et al. 2022, arXiv 2111.00396, appendix C).

    x_t = a * x_{t-1} + p s_t + b u_t      s_t = 2 Re(sum_n w_n x_{t-1,n})      y_t = 2 Re(sum_n c_n x_{t,n})

for each channel alone. M complex numbers stand for the 2M of a real system, whose other half are their conjugates: 2 Re(sum) is
the sum over all 2M. The matrix applied to the state is diag(a) + p w^T, of all 2M; a bilinear step of diag(Lambda) - P P* is one.

The complex tensors say in what precision all is computed; the inputs may be stored in less.

B batch   T inputs   D channels   M complex state size of a channel
"""

from typing import Any

import torch
from torch import Tensor

from .dispatch import arrays, check_flow, check_shape, choose_backend, wants_gradient

COMPLEX = (torch.complex64, torch.complex128)
STORED = {torch.complex64: (torch.float32, torch.bfloat16), torch.complex128: (torch.float64, torch.float32, torch.bfloat16)}


def dplr_scan(
    u: Tensor,
    a: Tensor,
    p: Tensor,
    w: Tensor,
    b: Tensor,
    c: Tensor,
    state: Tensor | None = None,
    *,
    reset: Tensor | None = None,
    parents: Any = None,
    every: bool = False,
    backend: str | None = None,
) -> tuple[Tensor, Tensor]:
    """Outputs and states of a sequence or a tree. Differentiable by all tensors.

    :param u: (B, T, D) inputs, float32 or bfloat16, or float64 where the others are complex128
    :param a: (D, M) diagonal, complex64 or complex128, as all that follow
    :param p: (D, M) and w (D, M) the low rank
    :param b: (D, M) where inputs are written
    :param c: (D, M) where outputs are read
    :param state: (B, D, M) before the first input, None for zeros
    :param reset: (B, T) bool, the state before that input is forgotten
    :param parents: (T,) int64, input i follows input parents[i] < i, or `state` at -1
    :param every: ask for the state after every input, as `parents` does
    :param backend: "reference", "numba", "cuda", or None for what fits the tensors
    :return: y (B, T, D) in u's dtype, and the state after the last input (B, D, M), or after every input (B, T, D, M)
    :raises ValueError: a shape, a dtype, a parent or the backend is impossible
    """
    if u.dim() != 3 or u.shape[1] == 0:
        raise ValueError(f"u must be (B, T, D) with T >= 1, got {tuple(u.shape)}")
    if a.dim() != 2 or a.dtype not in COMPLEX:
        raise ValueError(f"a must be (D, M) complex64 or complex128, got {tuple(a.shape)} {a.dtype}")
    (B, T, D), M = u.shape, a.shape[1]
    for name, x in (("a", a), ("p", p), ("w", w), ("b", b), ("c", c)):
        check_shape(name, x, (D, M), (a.dtype,))
    state = a.new_zeros(B, D, M) if state is None else state
    check_shape("state", state, (B, D, M), (a.dtype,))
    tree = check_flow(B, T, reset, parents)
    every = every or tree is not None
    backend = choose_backend("dplr_scan", u, backend)
    stored = u.dtype
    if backend == "reference":
        y, after = dplr_scan_reference(u, a, p, w, b, c, state, reset, parents, every)
        return y.to(stored), after if every else after[:, 0]
    if stored not in STORED[a.dtype]:
        raise ValueError(f"u must be {' or '.join(map(str, STORED[a.dtype]))} for a of {a.dtype}, got {stored}")
    u = (u.float() if stored == torch.bfloat16 else u).mT  # kernels go along one channel
    if wants_gradient(u, a, p, w, b, c, state):
        y, after = _dplr_scan(u, a, p, w, b, c, state, reset, tree, every)
    else:
        y, after = _forward(u, a, p, w, b, c, state, reset, tree, every)
    return y.mT.to(stored), after if every else after[:, 0]


def dplr_scan_reference(
    u: Tensor,
    a: Tensor,
    p: Tensor,
    w: Tensor,
    b: Tensor,
    c: Tensor,
    state: Tensor,
    reset: Tensor | None = None,
    parents: Any = None,
    every: bool = False,
) -> tuple[Tensor, Tensor]:
    """The loop that says what `dplr_scan` is; y in a's precision, states (B, T or 1, D, M)."""
    outputs, states = [], []
    for t, u_t in enumerate(u.to(a.real.dtype).unbind(1)):
        parent = t - 1 if parents is None else int(parents[t])
        x = states[parent] if parent >= 0 else state
        if reset is not None:
            x = x.masked_fill(reset[:, t, None, None], 0.0)
        s = 2 * (w * x).real.sum(-1, keepdim=True)
        states.append(a * x + p * s + b * u_t.unsqueeze(-1))
        outputs.append(2 * (c * states[-1]).real.sum(-1))
    return torch.stack(outputs, dim=1), torch.stack(states if every else states[-1:], dim=1)


def _kernels(u: Tensor) -> Any:
    if u.is_cuda:
        from . import dplr_scan_cuda

        return dplr_scan_cuda
    from . import dplr_scan_numba

    return dplr_scan_numba


def _arrays(tensors: tuple[Tensor, ...], reset, tree) -> list[Any]:
    return arrays(tensors[0], tuple(x.resolve_conj() for x in tensors), reset, tree)


def _forward(u, a, p, w, b, c, state, reset, tree, every: bool) -> tuple[Tensor, Tensor]:
    """u (B, D, T) -> y (B, D, T) and the states (B, T or 1, D, M)."""
    B, D, T = u.shape
    y, after = u.new_empty(B, D, T), a.new_empty(B, T if every else 1, *a.shape)
    _kernels(u).forward(*_arrays((u, a, p, w, b, c, state, y, after), reset, tree))
    return y, after


@torch.library.custom_op("tdraft::dplr_scan", mutates_args=())
def _dplr_scan(
    u: Tensor,
    a: Tensor,
    p: Tensor,
    w: Tensor,
    b: Tensor,
    c: Tensor,
    state: Tensor,
    reset: Tensor | None,
    tree: Tensor | None,
    every: bool,
) -> tuple[Tensor, Tensor]:
    return _forward(u, a, p, w, b, c, state, reset, tree, every)


@_dplr_scan.register_fake
def _(u, a, p, w, b, c, state, reset, tree, every):
    B, D, T = u.shape
    return u.new_empty(B, D, T), a.new_empty(B, T if every else 1, *a.shape)


@torch.library.custom_op("tdraft::dplr_scan_backward", mutates_args=())
def _dplr_scan_backward(
    u: Tensor,
    a: Tensor,
    p: Tensor,
    w: Tensor,
    b: Tensor,
    c: Tensor,
    state: Tensor,
    reset: Tensor | None,
    tree: Tensor | None,
    every: bool,
    gy: Tensor,
    gafter: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of u (B, D, T), of (a, p, w, b, c) as (5, D, M), and of the state (B, D, M)."""
    gu, gk, gstate = u.new_empty(u.shape), a.new_empty(5, *a.shape), a.new_empty(state.shape)
    given = _arrays((u, a, p, w, b, c, state, gy, gafter, gu, gk, gstate), reset, tree)
    _kernels(u).backward(*given, every)
    return gu, gk, gstate


@_dplr_scan_backward.register_fake
def _(u, a, p, w, b, c, state, reset, tree, every, gy, gafter):
    return u.new_empty(u.shape), a.new_empty(5, *a.shape), a.new_empty(state.shape)


def _setup(ctx, inputs, output):
    *tensors, ctx.every = inputs
    ctx.save_for_backward(*tensors)


def _derive(ctx, gy, gafter):
    u, a, p, w, b, c, state, reset, tree = ctx.saved_tensors
    gu, gk, gstate = _dplr_scan_backward(u, a, p, w, b, c, state, reset, tree, ctx.every, gy, gafter)
    return gu, *gk.unbind(0), gstate, None, None, None


_dplr_scan.register_autograd(_derive, setup_context=_setup)
