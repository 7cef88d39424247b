"""RWKV-7's memory, a matrix for each head under a generalised delta rule (Peng et al. 2025, arXiv 2503.14456, equation 17).

    S_t = S_{t-1} diag(w_t) - (S_{t-1} kap_t) (kap_t o a_t)^T + v_t k_t^T        y_t = S_t r_t

What S has stored under the key kap is taken out, by the share a, and v is stored under k. Decays w lie in (0, 1).

B batch   T inputs   H heads   N width of a head: S is (N values, N keys)
"""

from typing import Any

import torch
from torch import Tensor

from .dispatch import CHUNK, arrays, check_flow, check_shape, choose_backend, compute_dtype, wants_gradient


def wkv7(
    r: Tensor,
    w: Tensor,
    k: Tensor,
    v: Tensor,
    kap: Tensor,
    a: Tensor,
    state: Tensor | None = None,
    *,
    reset: Tensor | None = None,
    parents: Any = None,
    every: bool = False,
    backend: str | None = None,
) -> tuple[Tensor, Tensor]:
    """Outputs and states of the delta rule along a sequence or a tree, differentiable by all tensors.

    :param r: (B, T, H, N) receptance, what is read; float32, float64, or bfloat16, which is computed in float32
    :param w: (B, T, H, N) decays
    :param k: (B, T, H, N) keys to store under
    :param v: (B, T, H, N) values
    :param kap: (B, T, H, N) keys to remove, of length 1 for a stable memory
    :param a: (B, T, H, N) shares to remove, in (0, 1)
    :param state: (B, H, N, N) before the first input, float32 (float64 for float64 inputs); None: zeros
    :param reset: (B, T) bool, the state before that input is forgotten
    :param parents: (T,) int64, input i follows input parents[i] < i, or `state` at -1
    :param every: ask for the state after every input, as `parents` does
    :param backend: "reference", "numba", "cuda", or None for what fits the tensors
    :return: y (B, T, H, N), and the state after the last input (B, H, N, N), or after every input (B, T, H, N, N)
    :raises ValueError: a shape, a dtype, a parent or the backend is impossible
    """
    if r.dim() != 4 or r.shape[1] == 0:
        raise ValueError(f"r must be (B, T, H, N) with T >= 1, got {tuple(r.shape)}")
    (B, T, H, N), stored, exact = r.shape, r.dtype, compute_dtype(r)
    for name, x in (("w", w), ("k", k), ("v", v), ("kap", kap), ("a", a)):
        check_shape(name, x, (B, T, H, N), (stored,))
    if state is None:
        state = r.new_zeros(B, H, N, N, dtype=exact)
    check_shape("state", state, (B, H, N, N), (exact,))
    tree = check_flow(B, T, reset, parents)
    every = every or tree is not None
    backend = choose_backend("wkv7", r, backend)
    if stored != exact:
        r, w, k, v, kap, a = (x.to(exact) for x in (r, w, k, v, kap, a))
    if backend == "reference":
        y, after = wkv7_reference(r, w, k, v, kap, a, state, reset, parents, every)
    elif wants_gradient(r, w, k, v, kap, a, state):
        y, after, _ = _wkv7(r, w, k, v, kap, a, state, reset, tree, every)
    else:
        y, after, _ = _forward(r, w, k, v, kap, a, state, reset, tree, every, False)
    return y.to(stored), after if every else after[:, 0]


def wkv7_reference(
    r: Tensor,
    w: Tensor,
    k: Tensor,
    v: Tensor,
    kap: Tensor,
    a: Tensor,
    state: Tensor,
    reset: Tensor | None = None,
    parents: Any = None,
    every: bool = False,
) -> tuple[Tensor, Tensor]:
    """The loop that says what `wkv7` is; states (B, T or 1, H, N, N)."""
    outputs, states = [], []
    for t, (r_t, w_t, k_t, v_t, kap_t, a_t) in enumerate(zip(*(x.unbind(1) for x in (r, w, k, v, kap, a)))):
        parent = t - 1 if parents is None else int(parents[t])
        S = states[parent] if parent >= 0 else state
        if reset is not None:
            S = S.masked_fill(reset[:, t, None, None, None], 0.0)
        removed = (S @ kap_t.unsqueeze(-1)) * (kap_t * a_t).unsqueeze(-2)  # (B, H, N, N)
        S = S * w_t.unsqueeze(-2) - removed + v_t.unsqueeze(-1) * k_t.unsqueeze(-2)
        outputs.append((S @ r_t.unsqueeze(-1)).squeeze(-1))
        states.append(S)
    return torch.stack(outputs, dim=1), torch.stack(states if every else states[-1:], dim=1)


def _forward(r, w, k, v, kap, a, state, reset, tree, every: bool, save: bool) -> tuple[Tensor, Tensor, Tensor]:
    """y, the states (B, T or 1, H, N, N), and where a gradient will be asked those before every chunk of inputs."""
    B, T, H, N = r.shape
    chunk = T if every else CHUNK
    y, after = torch.empty_like(r, memory_format=torch.contiguous_format), r.new_empty(B, T if every else 1, H, N, N)
    saved = r.new_empty(B, -(-T // chunk) if save else 0, H, N, N)
    given = arrays(r, (r, w, k, v, kap, a, state, y, after, saved), reset, tree)
    _kernels(r).forward(*given, chunk)  # pyright: ignore[reportCallIssue]
    return y, after, saved


def _kernels(r: Tensor):
    if r.is_cuda:
        from . import wkv7_cuda

        return wkv7_cuda
    from . import wkv7_numba

    return wkv7_numba


@torch.library.custom_op("tdraft::wkv7", mutates_args=())
def _wkv7(
    r: Tensor,
    w: Tensor,
    k: Tensor,
    v: Tensor,
    kap: Tensor,
    a: Tensor,
    state: Tensor,
    reset: Tensor | None,
    tree: Tensor | None,
    every: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    return _forward(r, w, k, v, kap, a, state, reset, tree, every, True)


@_wkv7.register_fake
def _(r, w, k, v, kap, a, state, reset, tree, every):
    B, T, H, N = r.shape
    chunks = 1 if every else -(-T // CHUNK)
    return r.new_empty(B, T, H, N), r.new_empty(B, T if every else 1, H, N, N), r.new_empty(B, chunks, H, N, N)


@torch.library.custom_op("tdraft::wkv7_backward", mutates_args=())
def _wkv7_backward(
    r: Tensor,
    w: Tensor,
    k: Tensor,
    v: Tensor,
    kap: Tensor,
    a: Tensor,
    saved: Tensor,
    reset: Tensor | None,
    tree: Tensor | None,
    every: bool,
    gy: Tensor,
    gafter: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    B, T, H, N = r.shape
    grads = [r.new_zeros(B, T, H, N) for _ in range(6)]
    gstate = r.new_empty(B, H, N, N)
    given = arrays(r, (r, w, k, v, kap, a, saved, gy, gafter, *grads, gstate), reset, tree)
    _kernels(r).backward(*given, T if every else CHUNK)  # pyright: ignore[reportCallIssue]
    return *grads, gstate  # pyright: ignore[reportReturnType]


@_wkv7_backward.register_fake
def _(r, w, k, v, kap, a, saved, reset, tree, every, gy, gafter):
    B, _, H, N = r.shape
    return *(r.new_empty(r.shape) for _ in range(6)), r.new_empty(B, H, N, N)


def _setup(ctx, inputs, output):
    *tensors, _, reset, tree, ctx.every = inputs
    ctx.save_for_backward(*tensors, output[2], reset, tree)


def _derive(ctx, gy, gafter, _):
    return *_wkv7_backward(*ctx.saved_tensors, ctx.every, gy, gafter), None, None, None  # pyright: ignore[reportCallIssue]


_wkv7.register_autograd(_derive, setup_context=_setup)
