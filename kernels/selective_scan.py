"""The selective scan of Mamba, S6 (Gu & Dao 2023, arXiv 2312.00752, algorithm 2), along a sequence or a tree.

    h_t = exp(dt_t A) h_{t-1} + dt_t B_t u_t        y_t = C_t h_t + D u_t        (each channel by itself; B_t, C_t are shared)

dt comes in as it is used: its bias and softplus are the caller's, one cheap pass of torch beside N of the scan. A state is (N, W)
and not (W, N), because the kernels run over channels.

B, C, D the paper's matrices, and B the batch   T inputs   W channels   N states a channel
"""

from functools import cache
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from .dispatch import check_reset, checked_parents, choose_backend, wants_gradient


def selective_scan(
    u: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    state: Tensor | None = None,
    *,
    reset: Tensor | None = None,
    parents: Any = None,
    every: bool = False,
    backend: str | None = None,
) -> tuple[Tensor, Tensor]:
    """Outputs and the state after them; differentiable by all six inputs and the initial state.

    Half precisions are read and written as such, computed in float32, and their states are float32.

    :param u: (B, T, W) inputs, T >= 1
    :param dt: (B, T, W) steps, after bias and softplus; dt, B and C have u's dtype
    :param A: (W, N) negative; where its memory lies as (N, W) no copy is made
    :param B: (B, T, N)
    :param C: (B, T, N)
    :param D: (W,)
    :param state: (B, N, W) before the first input, None: zeros
    :param reset: (B, T) bool, the state before that input, the initial one included, counts as 0
    :param parents: (T,) int, input i continues from the state after input parents[i] < i, or from `state` at -1
    :param every: keep the state after every input, as `parents` does
    :param backend: "reference", "numba" or "cuda"; None: cuda for CUDA tensors, else numba, and the reference for other dtypes
    :return: y (B, T, W), and the state after the last input (B, N, W) or after every one (B, T, N, W)
    :raises ValueError: a shape, a dtype, a parent or the backend is impossible
    """
    check(u, dt, A, B, C, D, state, reset)
    stored, T = u.dtype, u.shape[1]
    real = torch.float32 if stored in (torch.bfloat16, torch.float16) else stored
    tree = checked_parents(parents, T)
    name = choose_backend("selective_scan", u, backend)
    u, dt, A, B, C, D = (x if x.dtype == real else x.to(real) for x in (u, dt, A, B, C, D))
    state = u.new_zeros(u.shape[0], A.shape[1], u.shape[2]) if state is None else state
    if name == "reference":
        y, states = selective_scan_reference(u, dt, A, B, C, D, state, reset=reset, parents=tree)
        return y.to(stored), states if every or tree is not None else states[:, -1]
    if every and tree is None:
        tree = torch.arange(-1, T - 1)
    inputs = (u, dt, A, B, C, D, state)
    if wants_gradient(*inputs):
        y, after, _ = _scan(*inputs, reset, tree, name)
    else:
        y, after, _ = _kernels(name).forward(*inputs, reset, tree, False)
    return y if y.dtype == stored else y.to(stored), after


def selective_scan_reference(
    u: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    state: Tensor,
    *,
    reset: Tensor | None = None,
    parents: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The specification: `selective_scan` as a loop in torch, with the states after every input."""
    outputs, states = [], []
    for t, (u_t, dt_t, B_t, C_t) in enumerate(zip(u.unbind(1), dt.unbind(1), B.unbind(1), C.unbind(1))):
        parent = t - 1 if parents is None else int(parents[t])
        before = states[parent] if parent >= 0 else state
        if reset is not None:
            before = before.masked_fill(reset[:, t, None, None], 0.0)
        h = torch.exp(dt_t.unsqueeze(1) * A.mT) * before + (dt_t * u_t).unsqueeze(1) * B_t.unsqueeze(2)  # (B, N, W)
        outputs.append((C_t.unsqueeze(1) @ h).squeeze(1) + D * u_t)
        states.append(h)
    return torch.stack(outputs, dim=1), torch.stack(states, dim=1)


def check(u: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, state: Tensor | None, reset: Tensor | None) -> None:
    """Raise ValueError, naming the argument, unless shapes and dtypes fit together."""
    if u.dim() != 3 or u.shape[1] == 0 or not u.is_floating_point():
        raise ValueError(f"u must be (B, T, W) of floats with T >= 1, got {u.dtype} {tuple(u.shape)}")
    if A.dim() != 2 or A.shape[0] != u.shape[2]:
        raise ValueError(f"A must be ({u.shape[2]}, N) as u asks, got {tuple(A.shape)}")
    (batch, T, W), N = u.shape, A.shape[1]
    for name, x, shape in (("dt", dt, (batch, T, W)), ("B", B, (batch, T, N)), ("C", C, (batch, T, N))):
        if x.shape != shape or x.dtype != u.dtype:
            raise ValueError(f"{name} must be {u.dtype} {shape}, got {x.dtype} {tuple(x.shape)}")
    if D.shape != (W,):
        raise ValueError(f"D must be {(W,)}, got {tuple(D.shape)}")
    real = torch.float64 if u.dtype == torch.float64 else torch.float32
    if state is not None and (state.shape != (batch, N, W) or state.dtype != real):
        raise ValueError(f"state must be {real} {(batch, N, W)}, got {state.dtype} {tuple(state.shape)}")
    check_reset(reset, (batch, T))


@cache
def _kernels(backend: str) -> Any:
    return import_module(f".selective_scan_{backend}", __package__)


CHUNK = 16  # inputs between two states that the forward pass keeps; the backward pass works out those between anew


@torch.library.custom_op("tdraft::selective_scan", mutates_args=())
def _scan(
    u: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, state: Tensor,
    reset: Tensor | None, parents: Tensor | None, backend: str,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """y, the state after the last input, and marks (B, T / CHUNK, N, W), the states before each chunk; where `parents` are given,
    the states after every input, and no marks.
    """
    return _kernels(backend).forward(u, dt, A, B, C, D, state, reset, parents, True)


@_scan.register_fake
def _(u, dt, A, B, C, D, state, reset, parents, backend):
    (batch, T, W), N = u.shape, A.shape[1]
    if parents is None:
        return u.new_empty(u.shape), u.new_empty(batch, N, W), u.new_empty(batch, (T + CHUNK - 1) // CHUNK, N, W)
    return u.new_empty(u.shape), u.new_empty(batch, T, N, W), u.new_empty(batch, 0, N, W)


@torch.library.custom_op("tdraft::selective_scan_backward", mutates_args=())
def _scan_backward(
    gy: Tensor, gafter: Tensor, u: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, state: Tensor,
    reset: Tensor | None, parents: Tensor | None, after: Tensor, marks: Tensor, backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    return _kernels(backend).backward(gy, gafter, u, dt, A, B, C, D, state, reset, parents, after, marks)


@_scan_backward.register_fake
def _(gy, gafter, u, dt, A, B, C, D, state, reset, parents, after, marks, backend):
    return tuple(x.new_empty(x.shape) for x in (u, dt, A, B, C, D, state))


def _keep(ctx, inputs, output):
    *tensors, ctx.backend = inputs
    _, after, marks = output
    ctx.set_materialize_grads(False)  # zeros for the marks would be as large as y
    ctx.save_for_backward(*tensors, after, marks)


def _gradients(ctx, gy, gafter, gmarks):
    u, after = ctx.saved_tensors[0], ctx.saved_tensors[-2]
    gy = torch.zeros_like(u) if gy is None else gy
    gafter = torch.zeros_like(after) if gafter is None else gafter
    return *_scan_backward(gy, gafter, *ctx.saved_tensors, ctx.backend), None, None, None


_scan.register_autograd(_gradients, setup_context=_keep)
