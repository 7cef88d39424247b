"""RWKV-4's weighted average of values, WKV (Peng et al. 2023, arXiv 2305.13048, appendix D).

    y_t = (A_{t-1} + e^{u + k_t} v_t) / (B_{t-1} + e^{u + k_t})
    A_t = e^w A_{t-1} + e^{k_t} v_t        B_t = e^w B_{t-1} + e^{k_t}

for each channel alone, w <= 0. The state holds A = aa e^pp and B = bb e^pp with a running maximum pp of the exponents, so that
no exponential overflows:

    o = max(pp, u + k)      y = (e^{pp - o} aa + e^{u + k - o} v) / (e^{pp - o} bb + e^{u + k - o})
    p = max(pp + w, k)      aa <- e^{pp + w - p} aa + e^{k - p} v      bb <- e^{pp + w - p} bb + e^{k - p}      pp <- p

B batch   T inputs   D channels
"""

from typing import Any

import torch
from torch import Tensor

from .dispatch import CHUNK, arrays, check_flow, check_shape, choose_backend, compute_dtype, wants_gradient

LOWEST = -1e38  # pp of a state without any input: its exponentials are 0


def wkv4_initial(batch_size: int, like: Tensor) -> Tensor:
    """(B, 3, D) the state before any input, aa = bb = 0 and pp = -1e38, for channels `like` (D,)."""
    state = torch.zeros(batch_size, 3, like.shape[0], dtype=compute_dtype(like), device=like.device)
    state[:, 2] = LOWEST
    return state


def wkv4(
    w: Tensor,
    u: Tensor,
    k: Tensor,
    v: Tensor,
    state: Tensor | None = None,
    *,
    reset: Tensor | None = None,
    parents: Any = None,
    every: bool = False,
    backend: str | None = None,
) -> tuple[Tensor, Tensor]:
    """WKV of a sequence or a tree. Differentiable by all tensors; the gradients are those of aa, bb and pp themselves, and so
    those of the numbers A and B that they stand for.

    :param w: (D,) logarithm of the decay of one step, -exp(time_decay)
    :param u: (D,) the bonus of the input at hand, time_first
    :param k: (B, T, D) keys; float32, float64, or bfloat16, which is computed in float32
    :param v: (B, T, D) values
    :param state: (B, 3, D) aa, bb and pp before the first input, float32 (float64 for float64 keys); None is `wkv4_initial`
    :param reset: (B, T) bool, the state before that input is forgotten
    :param parents: (T,) int64, input i follows input parents[i] < i, or `state` at -1
    :param every: ask for the state after every input, as `parents` does
    :param backend: "reference", "numba", "cuda", or None for what fits the tensors
    :return: y (B, T, D), and the state after the last input (B, 3, D), or after every input (B, T, 3, D)
    :raises ValueError: a shape, a dtype, a parent or the backend is impossible
    """
    if k.dim() != 3 or k.shape[1] == 0:
        raise ValueError(f"k must be (B, T, D) with T >= 1, got {tuple(k.shape)}")
    (B, T, D), exact = k.shape, compute_dtype(k)
    check_shape("v", v, (B, T, D), (k.dtype,))
    check_shape("w", w, (D,), (k.dtype, exact))
    check_shape("u", u, (D,), (k.dtype, exact))
    if state is None:
        state = wkv4_initial(B, k[0, 0])
    check_shape("state", state, (B, 3, D), (exact,))
    tree = check_flow(B, T, reset, parents)
    every = every or tree is not None
    backend = choose_backend("wkv4", k, backend)
    stored = k.dtype
    if stored != exact:
        w, u, k, v = (x.to(exact) for x in (w, u, k, v))
    if backend == "reference":
        y, after = wkv4_reference(w, u, k, v, state, reset, parents, every)
    elif wants_gradient(w, u, k, v, state):
        y, after, _ = _wkv4(w, u, k, v, state, reset, tree, every)
    else:
        y, after, _ = _forward(w, u, k, v, state, reset, tree, every, False)
    return y.to(stored), after if every else after[:, 0]


def wkv4_reference(
    w: Tensor,
    u: Tensor,
    k: Tensor,
    v: Tensor,
    state: Tensor,
    reset: Tensor | None = None,
    parents: Any = None,
    every: bool = False,
) -> tuple[Tensor, Tensor]:
    """The loop that says what `wkv4` is; states (B, T or 1, 3, D)."""
    outputs, states = [], []
    nothing = wkv4_initial(1, w)
    for t, (k_t, v_t) in enumerate(zip(k.unbind(1), v.unbind(1))):
        parent = t - 1 if parents is None else int(parents[t])
        before = states[parent] if parent >= 0 else state
        if reset is not None:
            before = torch.where(reset[:, t, None, None], nothing, before)
        aa, bb, pp = before.unbind(1)
        o = torch.maximum(pp, u + k_t)
        e1, e2 = torch.exp(pp - o), torch.exp(u + k_t - o)
        outputs.append((e1 * aa + e2 * v_t) / (e1 * bb + e2))
        p = torch.maximum(pp + w, k_t)
        e1, e2 = torch.exp(pp + w - p), torch.exp(k_t - p)
        states.append(torch.stack((e1 * aa + e2 * v_t, e1 * bb + e2, p), dim=1))
    return torch.stack(outputs, dim=1), torch.stack(states if every else states[-1:], dim=1)


def _forward(w, u, k, v, state, reset, tree, every: bool, save: bool) -> tuple[Tensor, Tensor, Tensor]:
    """y, the states (B, T or 1, 3, D), and where a gradient will be asked those before every chunk of inputs."""
    B, T, D = k.shape
    chunk = T if every else CHUNK
    y, after = torch.empty_like(k, memory_format=torch.contiguous_format), k.new_empty(B, T if every else 1, 3, D)
    saved = k.new_empty(B, -(-T // chunk) if save else 0, 3, D)
    given = arrays(k, (w, u, k, v, state, y, after, saved), reset, tree)
    _kernels(k).forward(*given, chunk)  # pyright: ignore[reportCallIssue]
    return y, after, saved


def _kernels(k: Tensor):
    if k.is_cuda:
        from . import wkv4_cuda

        return wkv4_cuda
    from . import wkv4_numba

    return wkv4_numba


@torch.library.custom_op("tdraft::wkv4", mutates_args=())
def _wkv4(
    w: Tensor, u: Tensor, k: Tensor, v: Tensor, state: Tensor, reset: Tensor | None, tree: Tensor | None, every: bool
) -> tuple[Tensor, Tensor, Tensor]:
    return _forward(w, u, k, v, state, reset, tree, every, True)


@_wkv4.register_fake
def _(w, u, k, v, state, reset, tree, every):
    B, T, D = k.shape
    chunks = 1 if every else -(-T // CHUNK)
    return k.new_empty(B, T, D), k.new_empty(B, T if every else 1, 3, D), k.new_empty(B, chunks, 3, D)


@torch.library.custom_op("tdraft::wkv4_backward", mutates_args=())
def _wkv4_backward(
    w: Tensor,
    u: Tensor,
    k: Tensor,
    v: Tensor,
    saved: Tensor,
    reset: Tensor | None,
    tree: Tensor | None,
    every: bool,
    gy: Tensor,
    gafter: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    B, T, D = k.shape
    gwu, gk, gv, gstate = k.new_empty(B, 2, D), k.new_empty(B, T, D), k.new_empty(B, T, D), k.new_empty(B, 3, D)
    given = arrays(k, (w, u, k, v, saved, gy, gafter, gwu, gk, gv, gstate), reset, tree)
    _kernels(k).backward(*given, T if every else CHUNK)  # pyright: ignore[reportCallIssue]
    gw, gu = gwu.sum(0)
    return gw.clone(), gu.clone(), gk, gv, gstate


@_wkv4_backward.register_fake
def _(w, u, k, v, saved, reset, tree, every, gy, gafter):
    B, T, D = k.shape
    return k.new_empty(D), k.new_empty(D), k.new_empty(B, T, D), k.new_empty(B, T, D), k.new_empty(B, 3, D)


def _setup(ctx, inputs, output):
    w, u, k, v, _, reset, tree, ctx.every = inputs
    ctx.save_for_backward(w, u, k, v, output[2], reset, tree)


def _derive(ctx, gy, gafter, _):
    w, u, k, v, saved, reset, tree = ctx.saved_tensors
    return *_wkv4_backward(w, u, k, v, saved, reset, tree, ctx.every, gy, gafter), None, None, None


_wkv4.register_autograd(_derive, setup_context=_setup)
