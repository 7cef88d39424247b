"""State-space duality, the scan of Mamba-2 and, with constant decays, of RetNet (Dao & Gu 2024, arXiv 2405.21060).

    S_t = exp(log_decay_t) S_{t-1} + x_t b_t^T,    y_t = S_t c_t        for each head

A short call and a tree with all its states run the recurrence itself (`ssd_numba`, `ssd_cuda`); a long call, and a tree of which
only the outputs are asked, its dual by matrix products (`ssd_chunk`).

B batch   T inputs   H heads   G groups of heads that share b and c   P head width   N state size
"""

from importlib import import_module
from typing import Any

import numpy as np
import torch
from torch import Tensor

from . import ssd_chunk
from .dispatch import check_order, choose_backend, wants_gradient

BACKENDS = (None, "reference", "numba", "cuda")
SHORT = 16  # up to so many inputs without gradients, one compiled loop is faster on a CPU than torch's products


def ssd(
    x: Tensor,
    log_decay: Tensor,
    b: Tensor,
    c: Tensor,
    state: Tensor | None = None,
    *,
    reset: Tensor | None = None,
    parents: np.ndarray | None = None,
    every: bool = False,
    backend: str | None = None,
) -> tuple[Tensor, Tensor]:
    """Outputs y (B, T, H, P) and the state after the last input (B, H, P, N), or after every one (B, T, H, P, N).

    All are differentiable once. In bfloat16 x, b and c are stored and y is given; the states are float32.

    :param x: (B, T, H, P) inputs
    :param log_decay: (B, T, H) logarithm of what an input leaves of the state before it; -inf leaves nothing
    :param b: (B, T, G, N) where inputs are written, G a divisor of H; heads h R .. (h + 1) R - 1 share group h, R = H / G
    :param c: (B, T, G, N) where outputs are read
    :param state: (B, H, P, N) before the first input, None for zeros
    :param reset: (B, T) bool, the state before that input is forgotten
    :param parents: (T,) int64, the inputs are nodes of a tree: node i follows node parents[i] < i, or `state` where that is -1.
        The states are then those after every node
    :param every: the states after every input, not only after the last
    :param backend: "reference", "numba" (CPU), "cuda", or None for the fast one that can
    :raises ValueError: shapes or dtypes that do not fit, an unknown backend or one for another device
    """
    x, log_decay, b, c, state, fast, dtype = _prepared(x, log_decay, b, c, state, reset, parents, backend)
    if not fast:
        y, after = ssd_reference(x, log_decay, b, c, state, reset=reset, parents=parents, every=every)
    elif every or parents is not None or x.shape[1] == 1:
        y, after = _recurrence(x, log_decay, b, c, state, reset, parents)
        after = after if every or parents is not None else after[:, 0]
    else:
        y, after = _chunked(x, log_decay, b, c, state, reset, None)
    return y.to(dtype), after


def ssd_outputs(
    x: Tensor,
    log_decay: Tensor,
    b: Tensor,
    c: Tensor,
    state: Tensor | None = None,
    *,
    reset: Tensor | None = None,
    parents: np.ndarray | None = None,
    backend: str | None = None,
) -> Tensor:
    """The outputs of `ssd` alone (B, T, H, P), what verifying drafts needs: no state is made, not even for a tree."""
    x, log_decay, b, c, state, fast, dtype = _prepared(x, log_decay, b, c, state, reset, parents, backend)
    if not fast:
        return ssd_reference(x, log_decay, b, c, state, reset=reset, parents=parents)[0].to(dtype)
    return _chunked(x, log_decay, b, c, state, reset, parents, last=False)[0].to(dtype)


def ssd_last(
    x: Tensor,
    log_decay: Tensor,
    b: Tensor,
    state: Tensor | None = None,
    *,
    reset: Tensor | None = None,
    backend: str | None = None,
) -> Tensor:
    """The last state of `ssd` alone (B, H, P, N): what accepting drafts needs."""
    x, log_decay, b, _, state, fast, _ = _prepared(x, log_decay, b, b, state, reset, None, backend)
    if not fast:
        return ssd_reference(x, log_decay, b, b, state, reset=reset)[1]
    if wants_gradient(x, log_decay, b, state):
        return _chunked(x, log_decay, b, b, state, reset, None)[1]
    decay, loops = _decay(log_decay, reset), _loops(x)
    if x.is_cuda or x.shape[1] > SHORT:
        return ssd_chunk.last_state(x, decay, b, state, loops.path_decays)
    return loops.short_last(x, decay, b, state)


def ssd_reference(
    x: Tensor,
    log_decay: Tensor,
    b: Tensor,
    c: Tensor,
    state: Tensor | None = None,
    *,
    reset: Tensor | None = None,
    parents: np.ndarray | None = None,
    every: bool = False,
) -> tuple[Tensor, Tensor]:
    """`ssd`, one input at a time in plain torch: the specification."""
    B, _, H, P = x.shape
    b, c = (v.repeat_interleave(H // v.shape[2], dim=2) for v in (b, c))  # (B, T, H, N)
    state = x.new_zeros(B, H, P, b.shape[3]) if state is None else state
    decay = _decay(log_decay, reset)
    y, states = [], []
    for t, (x_t, a_t, b_t, c_t) in enumerate(zip(x.unbind(1), decay.unbind(1), b.unbind(1), c.unbind(1))):
        parent = t - 1 if parents is None else int(parents[t])
        before = state if parent < 0 else states[parent]
        states.append(a_t[..., None, None] * before + x_t.unsqueeze(-1) * b_t.unsqueeze(-2))
        y.append((states[-1] @ c_t.unsqueeze(-1)).squeeze(-1))
    return torch.stack(y, dim=1), torch.stack(states, dim=1) if every or parents is not None else states[-1]


def _decay(log_decay: Tensor, reset: Tensor | None) -> Tensor:
    """(B, T, H), 0 at a reset."""
    decay = log_decay.exp()
    return decay if reset is None else decay.masked_fill(reset.unsqueeze(-1), 0.0)


def _loops(x: Tensor) -> Any:
    return import_module(".ssd_cuda" if x.is_cuda else ".ssd_numba", __package__)


# -- the recurrence --------------------------------------------------------------------------------------------------------------


def _recurrence(x, log_decay, b, c, state, reset, parents) -> tuple[Tensor, Tensor]:
    if wants_gradient(x, log_decay, b, c, state):
        return _recurrence_op(x, log_decay, b, c, state, reset, _as_tensor(parents))
    return _loops(x).recurrence(x, log_decay, b, c, state, reset, parents)


@torch.library.custom_op("tdraft::ssd_recurrence", mutates_args=())
def _recurrence_op(
    x: Tensor, log_decay: Tensor, b: Tensor, c: Tensor, state: Tensor, reset: Tensor | None, parents: Tensor | None
) -> tuple[Tensor, Tensor]:
    return _loops(x).recurrence(x, log_decay, b, c, state, reset, _as_array(parents))


@_recurrence_op.register_fake
def _(x, log_decay, b, c, state, reset, parents):
    return x.new_empty(x.shape), state.new_empty((state.shape[0], x.shape[1], *state.shape[1:]))


@torch.library.custom_op("tdraft::ssd_recurrence_backward", mutates_args=())
def _recurrence_backward_op(
    x: Tensor,
    log_decay: Tensor,
    b: Tensor,
    c: Tensor,
    state: Tensor,
    reset: Tensor | None,
    parents: Tensor | None,
    states: Tensor,
    grad_y: Tensor,
    grad_states: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    parents_ = _as_array(parents)
    return _loops(x).recurrence_backward(x, log_decay, b, c, state, reset, parents_, states, grad_y, grad_states)


@_recurrence_backward_op.register_fake
def _(x, log_decay, b, c, state, reset, parents, states, grad_y, grad_states):
    return tuple(tensor.new_empty(tensor.shape) for tensor in (x, log_decay, b, c, state))


def _keep_recurrence(ctx, inputs, output):
    ctx.save_for_backward(*inputs, output[1])


def _differentiate_recurrence(ctx, grad_y, grad_states):
    grads = _recurrence_backward_op(*ctx.saved_tensors, grad_y, grad_states)
    return *grads, None, None


_recurrence_op.register_autograd(_differentiate_recurrence, setup_context=_keep_recurrence)


# -- its dual --------------------------------------------------------------------------------------------------------------------


def _chunked(x, log_decay, b, c, state, reset, parents, last=True) -> tuple[Tensor, Tensor]:
    """(y, last state), the latter of a chain only."""
    if wants_gradient(x, log_decay, b, c, state):
        return _chunked_op(x, log_decay, b, c, state, reset, _as_tensor(parents))[:2]
    decay, loops = _decay(log_decay, reset), _loops(x)
    if x.is_cuda or x.shape[1] > SHORT:
        return ssd_chunk.forward(x, decay, b, c, state, parents, loops.path_decays)[:2]
    y = loops.short_outputs(x, decay, b, c, state, parents)
    return y, loops.short_last(x, decay, b, state) if last and parents is None else state


@torch.library.custom_op("tdraft::ssd_chunked", mutates_args=())
def _chunked_op(
    x: Tensor, log_decay: Tensor, b: Tensor, c: Tensor, state: Tensor, reset: Tensor | None, parents: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """The third are the states before each chunk, for the backward pass."""
    decay, paths = _decay(log_decay, reset), _loops(x).path_decays
    y, last, starts = ssd_chunk.forward(x, decay, b, c, state, _as_array(parents), paths, keep=True)
    return y, last, starts


@_chunked_op.register_fake
def _(x, log_decay, b, c, state, reset, parents):
    chunks = -(-x.shape[1] // ssd_chunk.CHUNK) if parents is None else 1
    last = state.new_empty(state.shape if parents is None else (0,))
    return x.new_empty(x.shape), last, state.new_empty((state.shape[0], chunks, *state.shape[1:]))


@torch.library.custom_op("tdraft::ssd_chunked_backward", mutates_args=())
def _chunked_backward_op(
    x: Tensor,
    log_decay: Tensor,
    b: Tensor,
    c: Tensor,
    reset: Tensor | None,
    parents: Tensor | None,
    starts: Tensor,
    grad_y: Tensor,
    grad_last: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    decay, paths = _decay(log_decay, reset), _loops(x).path_decays
    grads = ssd_chunk.backward(x, decay, b, c, starts, _as_array(parents), paths, grad_y, grad_last)
    return tuple(grad.contiguous() for grad in grads)  # pyright: ignore[reportReturnType]


@_chunked_backward_op.register_fake
def _(x, log_decay, b, c, reset, parents, starts, grad_y, grad_last):
    first = starts.new_empty((starts.shape[0], *starts.shape[2:]))
    return *(tensor.new_empty(tensor.shape) for tensor in (x, log_decay, b, c)), first


def _keep_chunked(ctx, inputs, output):
    x, log_decay, b, c, _, reset, parents = inputs
    ctx.save_for_backward(x, log_decay, b, c, reset, parents, output[2])
    ctx.chain = parents is None


def _differentiate_chunked(ctx, grad_y, grad_last, _):
    grads = _chunked_backward_op(*ctx.saved_tensors, grad_y, grad_last if ctx.chain else None)
    return *grads, None, None


_chunked_op.register_autograd(_differentiate_chunked, setup_context=_keep_chunked)


# -- checks ----------------------------------------------------------------------------------------------------------------------


def _as_tensor(parents: np.ndarray | None) -> Tensor | None:
    return None if parents is None else torch.from_numpy(parents)


def _as_array(parents: Tensor | None) -> np.ndarray | None:
    return None if parents is None else parents.cpu().numpy()


def _prepared(
    x: Tensor, log_decay: Tensor, b: Tensor, c: Tensor, state: Tensor | None, reset, parents, backend: str | None
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, bool, torch.dtype]:
    """The inputs checked and in the dtype of the computation, the first state, whether a fast backend runs, the dtype of y."""
    _check(x, log_decay, b, c, state, reset, parents)
    dtype, fast = x.dtype, choose_backend("ssd", x, backend) != "reference"
    if dtype == torch.bfloat16:
        x, log_decay, b, c = x.float(), log_decay.float(), b.float(), c.float()
    if state is None:
        state = x.new_zeros(x.shape[0], x.shape[2], x.shape[3], b.shape[3])
    return x, log_decay, b, c, state, fast, dtype


def _check(x, log_decay, b, c, state, reset, parents) -> None:
    if x.dim() != 4 or x.shape[1] == 0:
        raise ValueError(f"x must be (B, T, H, P) with T >= 1, got {tuple(x.shape)}")
    B, T, H, P = x.shape
    if b.dim() != 4 or b.shape[:2] != (B, T) or H % max(b.shape[2], 1) or not b.shape[2]:
        raise ValueError(f"b must be ({B}, {T}, G, N) with G a divisor of {H}, got {tuple(b.shape)}")
    wide = torch.float32 if x.dtype == torch.bfloat16 else x.dtype
    expected: dict[str, Any] = {
        "log_decay": (log_decay, (B, T, H), (x.dtype, wide)),
        "b": (b, b.shape, (x.dtype,)),
        "c": (c, b.shape, (x.dtype,)),
        "state": (state, (B, H, P, b.shape[3]), (wide,)),
        "reset": (reset, (B, T), (torch.bool,)),
    }
    for name, (tensor, shape, dtypes) in expected.items():
        if tensor is not None and (tensor.shape != shape or tensor.dtype not in dtypes):
            raise ValueError(f"{name} must be {dtypes[0]} {tuple(shape)}, got {tensor.dtype} {tuple(tensor.shape)}")
    if parents is not None:
        if reset is not None:
            raise ValueError("reset and parents cannot be given in one call: a tree lies within one sequence")
        if not isinstance(parents, np.ndarray) or parents.shape != (T,) or parents.dtype != np.int64:
            raise ValueError(f"parents must be an int64 array ({T},), got {parents!r}")
        check_order(parents)
