"""A pre-norm Transformer decoder whose key-value cache is a value.

    x <- x + Attention(norm(x)),   x <- x + SwiGLU(norm(x))

RoPE (Su et al. 2021, arXiv 2104.09864), RMSNorm (Zhang & Sennrich 2019, arXiv 1910.07467), SwiGLU (Shazeer 2020, arXiv
2002.05202), no biases. The norms inside carry no gain of their own: the matrix that follows has that freedom.

B batch   T new inputs   S inputs in the cache   D model width   H heads   C width of a head   F hidden width
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .base import Backbone, ContextOverflow, State, check_inputs, check_parents


@dataclass(frozen=True, eq=False)
class KVState(State):
    """Keys and values of every layer; `at`, `path` and `select` are slices of them."""

    kv: tuple[Tensor, ...]  # a layer each (B, S, 2, H, C); rotated keys, values
    new: int = 0  # how many of the S the last call brought
    start: Tensor | None = None  # (B, new + 1) first cache entry in sight, before and after each new input; None = all are
    parents: np.ndarray | None = None  # (new,) when the new inputs are a tree

    @property
    def batch_size(self) -> int:
        return self.kv[0].shape[0]

    @property
    def length(self) -> int:
        size = self.kv[0].shape[1]
        return size if self.start is None else size - int(self.start[:, -1].min())

    def at(self, t: int) -> "KVState":
        if not 0 <= t <= self.new:
            raise ValueError(f"t must be in 0..{self.new}, the inputs of the call that made this state, got {t}")
        if t and self.parents is not None:
            nodes = [t - 1]
            while (parent := self.parents[nodes[-1]]) >= 0:
                nodes.append(int(parent))
            return self.path(nodes[::-1])
        if t == self.new:
            return self
        size = self.kv[0].shape[1] - self.new + t
        start = None if self.start is None else self.start[:, : t + 1]
        return KVState(tuple(kv[:, :size] for kv in self.kv), t, start)

    def path(self, nodes: Sequence[int] | np.ndarray | Tensor) -> "KVState":
        nodes = np.asarray(nodes, dtype=np.int64).reshape(-1)
        parents = np.arange(-1, self.new - 1) if self.parents is None else self.parents
        if nodes.size and (nodes.min() < 0 or nodes.max() >= self.new):
            raise ValueError(f"nodes must be in 0..{self.new - 1}, got {nodes.tolist()}")
        if not np.array_equal(parents[nodes], np.concatenate(([-1], nodes))[: nodes.size]):
            raise ValueError(f"nodes {nodes.tolist()} are not a path from the root, their parents are {parents[nodes].tolist()}")
        if np.array_equal(nodes, np.arange(nodes.size)):  # the first inputs in their order: no copy
            return replace(self, parents=None).at(nodes.size)
        old = self.kv[0].shape[1] - self.new
        index = torch.from_numpy(np.concatenate((np.arange(old), old + nodes))).to(self.kv[0].device)
        start = None if self.start is None else self.start[:, : nodes.size + 1]  # a tree has no resets: all alike
        return KVState(tuple(kv.index_select(1, index) for kv in self.kv), nodes.size, start)

    def select(self, index: Sequence[int] | np.ndarray | Tensor) -> "KVState":
        index = torch.as_tensor(index, dtype=torch.int64, device=self.kv[0].device)
        kv = tuple(kv.index_select(0, index) for kv in self.kv)
        return replace(self, kv=kv, start=None if self.start is None else self.start.index_select(0, index))


class Block(nn.Module):
    """Attention and SwiGLU on the residual stream, which is (B * T, D) here: fewer views at T = 1."""

    def __init__(self, d_model: int, n_heads: int, d_hidden: int):
        super().__init__()
        self.n_heads = n_heads
        self.qkv = nn.Parameter(torch.empty(3 * d_model, d_model))
        self.out = nn.Parameter(torch.empty(d_model, d_model))
        self.gate_up = nn.Parameter(torch.empty(2 * d_hidden, d_model))
        self.down = nn.Parameter(torch.empty(d_model, d_hidden))

    def forward(self, x: Tensor, past: Tensor | None, rope: Tensor, mask: Tensor | None, shape: tuple[int, int]):
        """x (B * T, D), past (B, S, 2, H, C), rope (T or B, T, 3, 1, C / 2), mask (T or B, 1, T, S + T) -> x, kv."""
        B, T = shape
        D, H = x.shape[1], self.n_heads
        qkv = F.linear(rms_norm(x), self.qkv).to(x.dtype).view(B, T, 3, H, D // H // 2, 2)
        qkv = torch.view_as_real(torch.view_as_complex(qkv) * rope).view(B, T, 3, H, D // H)  # values are turned by 1
        q, kv = qkv[:, :, 0], qkv[:, :, 1:]
        if past is not None:
            kv = torch.cat((past, kv), dim=1)  # (B, S + T, 2, H, C)
        k, v = kv.unbind(2)
        y = F.scaled_dot_product_attention(
            q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), attn_mask=mask, is_causal=mask is None and T > 1
        )  # (B, H, T, C)
        x = x + F.linear(y.transpose(1, 2).reshape(B * T, D), self.out)
        gate, up = F.linear(rms_norm(x), self.gate_up).chunk(2, dim=1)
        return x + F.linear(F.silu(gate) * up, self.down), kv


class Transformer(Backbone):
    """A stack of blocks and a last norm.

    :param d_model: width D
    :param n_layers: blocks
    :param n_heads: heads H; D / H must be even (RoPE turns pairs)
    :param max_length: longest context, in inputs since the last reset
    :param d_hidden: width of the SwiGLU, by default 8/3 D rounded up to a multiple of 32
    :param generator: of the initial weights; by default torch's global one
    """

    def __init__(
        self,
        d_model: int,
        n_layers: int,
        n_heads: int,
        max_length: int,
        d_hidden: int | None = None,
        generator: torch.Generator | None = None,
    ):
        super().__init__()
        if min(d_model, n_layers, n_heads, max_length) < 1 or d_model % (2 * n_heads):
            raise ValueError(
                f"d_model / n_heads must be a positive even number, n_layers and max_length positive, "
                f"got d_model={d_model}, n_heads={n_heads}, n_layers={n_layers}, max_length={max_length}"
            )
        self.d_model, self.n_heads, self.max_length = d_model, n_heads, max_length
        d_hidden = -(-8 * d_model // 3 // 32) * 32 if d_hidden is None else d_hidden
        self.blocks = nn.ModuleList(Block(d_model, n_heads, d_hidden) for _ in range(n_layers))
        self.gain = nn.Parameter(torch.ones(d_model))
        self._rope: Tensor | None = None
        self._initialise(generator)

    def _initialise(self, generator: torch.Generator | None) -> None:
        """N(0, 1 / D), and less by sqrt(2 layers) where a branch joins the residual stream (as GPT-2)."""
        for name, weight in self.blocks.named_parameters():
            joins = name.endswith(("out", "down"))
            nn.init.normal_(weight, std=self.d_model**-0.5 / (2 * len(self.blocks)) ** (0.5 * joins), generator=generator)

    def initial_state(self, batch_size: int) -> KVState:
        empty = self.gain.new_empty(batch_size, 0, 2, self.n_heads, self.d_model // self.n_heads)
        return KVState((empty.detach(),) * len(self.blocks))

    def forward(
        self, x: Tensor, state: KVState | None = None, *, reset: Tensor | None = None, parents: Any = None
    ) -> tuple[Tensor, KVState]:
        check_inputs(x, self.d_model, state, reset)
        B, T, D = x.shape
        tree = None if parents is None else self._check_tree(parents, T, state, reset)
        past, before = (None, None) if state is None else _drop_forgotten(state)
        S = 0 if past is None else past[0].shape[1]
        mask, start = None, None
        if reset is None and before is None:
            depth = T if tree is None else int(tree[1].max()) + 1
            self._check_length(S, depth)
            rope = self._rotation()[S : S + T] if tree is None else self._rotation()[S + torch.from_numpy(tree[1])]
            if T > 1 and (S or tree):
                mask = _additive(_visible(S, T, tree).to(x.device), x.dtype)
        else:
            before = torch.zeros(B, 1, dtype=torch.int64, device=x.device) if before is None else before[:, -1:]
            start = _starts(before, reset, S, T)  # (B, T + 1)
            ahead = torch.arange(T) if tree is None else torch.from_numpy(tree[1])
            position = S + ahead.to(x.device) - start[:, 1:]  # (B, T)
            self._check_length(int(position.max()), 1)
            rope = self._rotation()[position]
            in_sight = torch.arange(S + T, device=x.device) >= start[:, 1:, None]  # (B, T, S + T)
            mask = _additive((in_sight & _visible(S, T, tree).to(x.device)).unsqueeze(1), x.dtype)
        new, x = [], x.reshape(B * T, D)
        for i, block in enumerate(self.blocks):
            x, kv = block(x, past[i] if past is not None and S else None, rope, mask, (B, T))
            new.append(kv)
        y = (rms_norm(x) * self.gain).view(B, T, D)
        return y, KVState(tuple(new), T, start, None if tree is None else tree[0])

    def _check_tree(self, parents: Any, T: int, state: KVState | None, reset: Tensor | None):
        """(parents, depths), or None where the tree is one chain, the ordinary case."""
        array = check_parents(parents, T)
        if reset is not None:
            raise ValueError("reset and parents cannot be given in one call: a tree of drafts lies within one sequence")
        if np.array_equal(array, np.arange(-1, T - 1)):
            return None
        depth = np.zeros(T, dtype=np.int64)
        for i, parent in enumerate(array.tolist()):
            if parent >= 0:
                depth[i] = depth[parent] + 1
        return array, depth

    def _check_length(self, old: int, new: int) -> None:
        if old + new > self.max_length:
            raise ContextOverflow(
                f"{old} inputs in the state and {new} new ones exceed the context of {self.max_length}; "
                "use a larger max_length or start from a shorter state"
            )

    def _rotation(self) -> Tensor:
        """(max_length, 3, 1, C / 2) complex: exp(i * position * theta) for queries and keys, 1 for values."""
        dtype = torch.promote_types(self.gain.dtype, torch.complex64)
        if self._rope is None or self._rope.dtype != dtype or self._rope.device != self.gain.device:
            half = self.d_model // self.n_heads // 2
            with torch.inference_mode(False):  # else the table could never serve in training
                angle = torch.outer(
                    torch.arange(self.max_length, dtype=torch.float64),
                    10000.0 ** (-torch.arange(half, dtype=torch.float64) / half),
                )
                turn = torch.polar(torch.ones_like(angle), angle)[:, None, None]
                table = torch.cat((turn, turn, torch.ones_like(turn)), dim=1)
                self._rope = table.to(device=self.gain.device, dtype=dtype)
        return self._rope


def rms_norm(x: Tensor) -> Tensor:
    """x / (rms(x) + eps) along the last axis; four small operations, a third of the time of F.rms_norm at T = 1."""
    scale = torch.linalg.vector_norm(x, dim=-1, keepdim=True) * x.shape[-1] ** -0.5
    return x / (scale + 1e-6)


def ancestors(parents: np.ndarray) -> np.ndarray:
    """(T, T) bool: entry (i, j) says that j is i or an ancestor of i."""
    mask = np.zeros((len(parents), len(parents)), dtype=bool)
    for i, parent in enumerate(parents.tolist()):
        if parent >= 0:
            mask[i] = mask[parent]
        mask[i, i] = True
    return mask


def _visible(S: int, T: int, tree: tuple[np.ndarray, np.ndarray] | None) -> Tensor:
    """(T, S + T) bool: all of the cache, and of the new inputs the ancestors (without a tree: the earlier ones)."""
    mask = torch.ones(T, S + T, dtype=torch.bool)
    if tree is None:
        return mask.tril_(S)
    mask[:, S:] = torch.from_numpy(ancestors(tree[0]))
    return mask


def _additive(visible: Tensor, dtype: torch.dtype) -> Tensor:
    """0 where visible, -inf where not: made once, where a bool mask would be turned into this in every layer."""
    return torch.zeros(visible.shape, dtype=dtype, device=visible.device).masked_fill_(~visible, float("-inf"))


def _starts(before: Tensor, reset: Tensor | None, S: int, T: int) -> Tensor:
    """(B, T + 1) first cache entry in sight before and after each input; a reset at t moves it to S + t for good."""
    if reset is None:
        return before.expand(-1, T + 1)
    here = torch.where(reset, S + torch.arange(T, device=reset.device), 0)
    return torch.cat((before, here), dim=1).cummax(dim=1).values


def _drop_forgotten(state: KVState) -> tuple[tuple[Tensor, ...], Tensor | None]:
    """The cache without the entries that no row can see any more, and `start` moved with it."""
    if state.parents is not None:
        raise ValueError("state is that of a whole tree; pick a branch with state.path(nodes) or state.at(t) first")
    if state.start is None:
        return state.kv, None
    last = state.start[:, -1]
    drop = int(last.min())
    return tuple(kv[:, drop:] for kv in state.kv), None if bool((last == drop).all()) else state.start - drop
