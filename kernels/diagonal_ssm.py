"""A diagonal state-space model with one input and one output for each channel, along a sequence or a tree.

    x_t,hn = A_hn x_{t-1,hn} + u_t,h        y_t,h = 2 Re sum_n C_hn x_t,hn

S4D in discrete time (Gu et al. 2022, arXiv 2206.11893, section 3), each n standing for itself and its conjugate, and B times
the step of the discretisation folded into C. The states of a long sequence are never kept: the backward works them out anew from
one in every few. With gradients as torch has them of complex tensors, dL/dRe + i dL/dIm, and g_t that of x_t:

    g_t = conj(A) g_{t+1} + 2 conj(C) dL/dy_t
    dL/du_t = Re sum_n g_t      dL/dA = sum_t g_t conj(x_{t-1})      dL/dC = sum_t 2 conj(x_t) dL/dy_t

B batch   T inputs   H channels   N states of a channel (complex)
"""

from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from .dispatch import check_reset, checked_parents, choose_backend, wants_gradient


def diagonal_ssm(
    u: Tensor,
    A: Tensor,
    C: Tensor,
    state: Tensor | None = None,
    *,
    reset: Tensor | None = None,
    parents: Any = None,
    every: bool = False,
    backend: str | None = None,
) -> tuple[Tensor, Tensor]:
    """Outputs y, and the state after the last input or after every one; differentiable by u, A, C and the initial state.

    bfloat16 inputs are computed in float32 and give bfloat16 outputs.

    :param u: (B, T, H) real inputs, T >= 1
    :param A: (H, N) complex128 where u is float64, else complex64
    :param C: (H, N) as A
    :param state: (B, H, N) before the first input, as A; None: zeros
    :param reset: (B, T) bool, the state before that input, the initial one included, counts as 0
    :param parents: (T,) int, input i continues from the state after input parents[i] < i, or from `state` at -1
    :param every: whether to give the states after every input; with `parents` they are given anyway
    :param backend: "reference", "numba" or "cuda"; None: cuda for CUDA tensors, else numba, and the reference for other dtypes
    :return: y (B, T, H) of u's dtype, and (B, H, N) the state after the last input or (B, T, H, N) those after every one
    :raises ValueError: a shape, a dtype, a parent or the backend is impossible
    """
    if u.dim() != 3 or u.shape[1] == 0 or not u.is_floating_point():
        raise ValueError(f"u must be real (B, T, H) with T >= 1, got {u.dtype} {tuple(u.shape)}")
    B, T, H = u.shape
    dtype = torch.complex128 if u.dtype == torch.float64 else torch.complex64
    if A.dim() != 2 or A.shape[0] != H or A.dtype != dtype:
        raise ValueError(f"A must be {dtype} ({H}, N) as u asks, got {A.dtype} {tuple(A.shape)}")
    if C.shape != A.shape or C.dtype != dtype:
        raise ValueError(f"C must be {dtype} {tuple(A.shape)} as A is, got {C.dtype} {tuple(C.shape)}")
    state = A.new_zeros(B, *A.shape) if state is None else state
    if state.shape != (B, *A.shape) or state.dtype != dtype:
        raise ValueError(f"state must be {dtype} {(B, *A.shape)}, got {state.dtype} {tuple(state.shape)}")
    check_reset(reset, (B, T))
    tree = checked_parents(parents, T)
    every = every or tree is not None
    name = choose_backend("diagonal_ssm", u, backend)
    if name == "reference":
        y, after = diagonal_ssm_reference(u, A, C, state, reset=reset, parents=tree, every=every)
        return y.to(u.dtype), after
    tracked = wants_gradient(u, A, C, state)
    wide = u.float() if u.dtype == torch.bfloat16 else u
    y, after = (_ssm if tracked else _kernel)(wide, A, C, state, reset, tree, every, name)
    return y.to(u.dtype), after


def diagonal_ssm_reference(
    u: Tensor,
    A: Tensor,
    C: Tensor,
    state: Tensor,
    *,
    reset: Tensor | None = None,
    parents: Tensor | None = None,
    every: bool = False,
) -> tuple[Tensor, Tensor]:
    """The specification: `diagonal_ssm` as a loop in torch."""
    outputs, states = [], []
    for t, u_t in enumerate(u.unbind(1)):
        parent = t - 1 if parents is None else int(parents[t])
        before = states[parent] if parent >= 0 else state
        if reset is not None:
            before = before.masked_fill(reset[:, t, None, None], 0.0)
        states.append(A * before + u_t.unsqueeze(-1))
        outputs.append(2 * (C * states[-1]).real.sum(-1))
    return torch.stack(outputs, dim=1), torch.stack(states, dim=1) if every else states[-1]


def _kernel(
    u: Tensor, A: Tensor, C: Tensor, state: Tensor, reset: Tensor | None, parents: Tensor | None, every: bool, backend: str
) -> tuple[Tensor, Tensor]:
    return import_module(f".diagonal_ssm_{backend}", __package__).forward(u, A, C, state, reset, parents, every)


@torch.library.custom_op("tdraft::diagonal_ssm", mutates_args=())
def _ssm(
    u: Tensor, A: Tensor, C: Tensor, state: Tensor, reset: Tensor | None, parents: Tensor | None, every: bool, backend: str
) -> tuple[Tensor, Tensor]:
    return _kernel(u, A, C, state, reset, parents, every, backend)


@_ssm.register_fake
def _(u, A, C, state, reset, parents, every, backend):
    B, T, H = u.shape
    return u.new_empty(B, T, H), A.new_empty((B, T, *A.shape) if every else (B, *A.shape))


@torch.library.custom_op("tdraft::diagonal_ssm_backward", mutates_args=())
def _ssm_backward(
    dy: Tensor,
    dafter: Tensor,
    u: Tensor,
    A: Tensor,
    C: Tensor,
    state: Tensor,
    after: Tensor,
    reset: Tensor | None,
    parents: Tensor | None,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """`after` (B, T, H, N) where every state was kept, else (B, H, N), and its gradient alike."""
    kernels = import_module(f".diagonal_ssm_{backend}", __package__)
    return kernels.backward(dy, dafter, u, A, C, state, after, reset, parents)


@_ssm_backward.register_fake
def _(dy, dafter, u, A, C, state, after, reset, parents, backend):
    return u.new_empty(u.shape), A.new_empty(A.shape), A.new_empty(A.shape), state.new_empty(state.shape)


def _keep(ctx, inputs, output):
    u, A, C, state, reset, parents, _, ctx.backend = inputs
    ctx.save_for_backward(u, A, C, state, output[1], reset, parents)


def _gradients(ctx, dy, dafter):
    return *_ssm_backward(dy, dafter, *ctx.saved_tensors, ctx.backend), None, None, None, None


_ssm.register_autograd(_gradients, setup_context=_keep)
