"""A diagonal linear recurrence, real or complex, along a sequence or a tree.

    h_t = a_t * h_{t-1} + b_t        (elementwise; Blelloch 1990, "Prefix sums and their applications", section 1.4)

Its backward is the same recurrence from the end: g_t = dL/dh_t + conj(a_{t+1}) g_{t+1} is the gradient of b_t, and
g_t conj(h_{t-1}) that of a_t. In a tree a node's g collects what its children send.

B batch   T inputs   D channels
"""

from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from .dispatch import check_reset, checked_parents, choose_backend, wants_gradient

COMPILED = (torch.float32, torch.float64, torch.complex64, torch.complex128)  # what the compiled kernels compute in


def linear_scan(
    a: Tensor,
    b: Tensor,
    state: Tensor | None = None,
    *,
    reset: Tensor | None = None,
    parents: Any = None,
    backend: str | None = None,
) -> tuple[Tensor, Tensor]:
    """All states of h_t = a_t * h_{t-1} + b_t, and the last; differentiable by a, b and the initial state.

    bfloat16 inputs are computed in float32, and so are the states.

    :param a: (D,) the same at every input, or (B, T, D)
    :param b: (B, T, D), T >= 1, of a's dtype, real or complex
    :param state: (B, D) before the first input, None: zeros; float32 where b is bfloat16
    :param reset: (B, T) bool, the state before that input, the initial one included, counts as 0
    :param parents: (T,) int, input i continues from the state after input parents[i] < i, or from `state` at -1
    :param backend: "reference", "numba" or "cuda"; None: cuda for CUDA tensors, else numba, and the reference for other dtypes
    :return: (B, T, D) the states after every input, and (B, D) the one after the last (a view)
    :raises ValueError: a shape, a dtype, a parent or the backend is impossible
    """
    if b.dim() != 3 or b.shape[1] == 0:
        raise ValueError(f"b must be (B, T, D) with T >= 1, got {tuple(b.shape)}")
    if a.shape != b.shape and a.shape != b.shape[2:]:
        raise ValueError(f"a must be {tuple(b.shape[2:])} or {tuple(b.shape)} as b asks, got {tuple(a.shape)}")
    if a.dtype != b.dtype:
        raise ValueError(f"a must be {b.dtype} as b is, got {a.dtype}")
    if b.dtype == torch.bfloat16:
        a, b = a.float(), b.float()
    state = b.new_zeros(b.shape[0], b.shape[2]) if state is None else state
    if state.shape != (b.shape[0], b.shape[2]) or state.dtype != b.dtype:
        expected = f"{b.dtype} {(b.shape[0], b.shape[2])}"
        raise ValueError(f"state must be {expected}, got {state.dtype} {tuple(state.shape)}")
    check_reset(reset, b.shape[:2])
    tree = checked_parents(parents, b.shape[1])
    name = choose_backend("linear_scan", b, backend, COMPILED)
    if name == "reference":
        return linear_scan_reference(a, b, state, reset=reset, parents=tree)
    h = (_scan if wants_gradient(a, b, state) else _kernel)(a, b, state, reset, tree, name)
    return h, h[:, -1]


def linear_scan_reference(
    a: Tensor, b: Tensor, state: Tensor, *, reset: Tensor | None = None, parents: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The specification: `linear_scan` as a loop in torch."""
    T, states = b.shape[1], []
    for t, (a_t, b_t) in enumerate(zip(a.unbind(1) if a.dim() == 3 else [a] * T, b.unbind(1))):
        parent = t - 1 if parents is None else int(parents[t])
        before = states[parent] if parent >= 0 else state
        if reset is not None:
            before = before.masked_fill(reset[:, t, None], 0.0)
        states.append(a_t * before + b_t)
    return torch.stack(states, dim=1), states[-1]


def _kernel(a: Tensor, b: Tensor, state: Tensor, reset: Tensor | None, parents: Tensor | None, backend: str) -> Tensor:
    return import_module(f".linear_scan_{backend}", __package__).forward(a, b, state, reset, parents)


@torch.library.custom_op("tdraft::linear_scan", mutates_args=())
def _scan(a: Tensor, b: Tensor, state: Tensor, reset: Tensor | None, parents: Tensor | None, backend: str) -> Tensor:
    return _kernel(a, b, state, reset, parents, backend)


@_scan.register_fake
def _(a, b, state, reset, parents, backend):
    return b.new_empty(b.shape)


@torch.library.custom_op("tdraft::linear_scan_backward", mutates_args=())
def _scan_backward(
    grad: Tensor, a: Tensor, h: Tensor, state: Tensor, reset: Tensor | None, parents: Tensor | None, backend: str
) -> tuple[Tensor, Tensor, Tensor]:
    return import_module(f".linear_scan_{backend}", __package__).backward(grad, a, h, state, reset, parents)


@_scan_backward.register_fake
def _(grad, a, h, state, reset, parents, backend):
    return a.new_empty(a.shape), h.new_empty(h.shape), state.new_empty(state.shape)


def _keep(ctx, inputs, output):
    a, _, state, reset, parents, ctx.backend = inputs
    ctx.save_for_backward(a, output, state, reset, parents)


def _gradients(ctx, grad):
    a, h, state, reset, parents = ctx.saved_tensors
    return *_scan_backward(grad, a, h, state, reset, parents, ctx.backend), None, None, None


_scan.register_autograd(_gradients, setup_context=_keep)
