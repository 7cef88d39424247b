"""What the attention backbones share: masks, positions and a cache of keys and values around a stack of blocks.

B batch   T new inputs   S inputs in the cache   D model width   K heads of keys and values   G queries a head   C width of a head
"""

from abc import abstractmethod
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .base import Backbone, ContextOverflow, check_inputs, check_parents
from .kv_cache import Claim, KVState, grow

Extend = Callable[[Tensor], Tensor]  # new keys and values (B, T, 2, K, C) to all that are in sight (B, S + T, 2, K, C)
Tree = tuple[np.ndarray, np.ndarray]  # parents and depths (T,)


class AttentionBackbone(Backbone):
    """A stack of blocks whose attention sees the earlier inputs, and a last norm.

    :param d_model: width D
    :param blocks: each maps (x (B * T, D), extend, places, mask, (B, T)) to (x, keys and values in sight)
    :param n_kv_heads: K
    :param groups: G
    :param d_head: C
    :param max_length: longest context, in inputs since the last reset
    :param window: inputs that an input sees, itself included; then `max_length` doesn't bound the context
    """

    def __init__(
        self,
        d_model: int,
        blocks: Sequence[nn.Module],
        n_kv_heads: int,
        groups: int,
        d_head: int,
        max_length: int,
        window: int | None = None,
    ):
        super().__init__()
        self.d_model, self.max_length, self.window = d_model, max_length, window
        self.n_kv_heads, self.groups, self.d_head = n_kv_heads, groups, d_head
        self.blocks = nn.ModuleList(blocks)
        self.gain = nn.Parameter(torch.ones(d_model))  # of the last norm

    @abstractmethod
    def begin(self, x: Tensor, position: slice | Tensor) -> tuple[Tensor, Any]:
        """(what the first block gets (B, T, D), what all blocks get of the places of the inputs).

        :param position: inputs since the last reset: a slice of T, or (T,), or (B, T)
        """

    @abstractmethod
    def finish(self, x: Tensor) -> Tensor:
        """The last norm, of (B * T, D)."""

    @property
    def family(self) -> str:
        """Name, sizes and dtype: what a state must match."""
        sizes = f"{len(self.blocks)} layers, {self.n_kv_heads} heads of {self.d_head}, {self.gain.dtype}"
        return f"{type(self).__name__}({sizes})"

    def initial_state(self, batch_size: int) -> KVState:
        empty = self.gain.new_empty(batch_size, 0, 2, self.n_kv_heads, self.d_head)
        return KVState(self.family, (empty.detach(),) * len(self.blocks))

    def forward(
        self, x: Tensor, state: KVState | None = None, *, reset: Tensor | None = None, parents: Any = None
    ) -> tuple[Tensor, KVState]:
        family = self._check_state(state)
        check_inputs(x, self.d_model, state, reset)
        B, T, D = x.shape
        tree = None if parents is None else _check_tree(parents, T, reset)
        past, start = ((), 0) if state is None else state.in_sight(self.window)
        S = past[0].shape[1] if past else 0
        if reset is None and isinstance(start, int):
            position, mask = self._alike(S, T, start, tree)
        else:
            start = _starts(start, reset, (B, T), S, x.device)
            position, mask = self._apart(S, T, start, tree)
        if mask is not None:
            mask = _additive(mask.to(x.device), x.dtype)
            mask = mask if self.groups == 1 else mask.repeat(*(1,) * (mask.dim() - 2), self.groups, 1)
        claim, extends = _make_extends(past, None if state is None else state.claim, T, len(self.blocks))
        x, places = self.begin(x, position)
        x, kept = x.reshape(B * T, D), []
        for block, extend in zip(self.blocks, extends):
            x, kv = block(x, extend, places, mask, (B, T))
            kept.append(kv)
        made = KVState(family, tuple(kept), T, start, None if tree is None else tree[0], claim)
        return self.finish(x).view(B, T, D), made

    def _check_state(self, state: Any) -> str:
        """Raise ValueError unless `state` is None or of this family; the family."""
        family = self.family
        if state is not None and getattr(state, "family", None) != family:
            found = getattr(state, "family", f"a {type(state).__name__}")
            raise ValueError(f"state must be of {family}, got {found}; begin with initial_state")
        return family

    def _alike(self, S: int, T: int, start: int, tree: Tree | None) -> tuple[slice | Tensor, Tensor | None]:
        """(positions, what each input sees (T, S + T) or None: itself and all before it) where all rows are alike."""
        depth = T if tree is None else int(tree[1].max()) + 1
        self._check_length(S - start, depth)
        if tree is not None:
            return S - start + torch.from_numpy(tree[1]), _visible(S, T, tree, self.window)
        position = slice(S - start, S - start + T)
        hides = S or self.groups > 1 or (self.window is not None and T > self.window)
        return position, _visible(S, T, None, self.window) if T > 1 and hides else None

    def _apart(self, S: int, T: int, start: Tensor, tree: Tree | None) -> tuple[Tensor, Tensor]:
        """(positions (B, T), what each input sees (B, 1, T, S + T)) where the rows' sequences began at different inputs."""
        ahead = torch.arange(T) if tree is None else torch.from_numpy(tree[1])
        position = S + ahead.to(start.device) - start[:, 1:]
        self._check_length(int(position.max()), 1)
        since = torch.arange(S + T, device=start.device) >= start[:, 1:, None]
        return position, (since & _visible(S, T, tree, self.window).to(start.device)).unsqueeze(1)

    def _check_length(self, old: int, new: int) -> None:
        if self.window is None and old + new > self.max_length:
            raise ContextOverflow(
                f"{old} inputs in the state and {new} new ones exceed the context of {self.max_length}; "
                "use a larger max_length or start from a shorter state"
            )


def attend(q: Tensor, kv: Tensor, mask: Tensor | None) -> Tensor:
    """Softmax attention where each head of keys and values serves G queries.

    :param q: (B, T, G, K, C)
    :param kv: (B, S + T, 2, K, C)
    :param mask: (G * T, S + T) or (B, 1, G * T, S + T), added; None where each input sees all before it
    :return: (B * T, G * K * C)
    """
    B, T, G, K, C = q.shape
    k, v = kv.unbind(2)
    q = q[:, :, 0].transpose(1, 2) if G == 1 else q.permute(0, 3, 2, 1, 4).reshape(B, K, G * T, C)
    y = F.scaled_dot_product_attention(
        q, k.transpose(1, 2), v.transpose(1, 2), attn_mask=mask, is_causal=mask is None and T > 1
    )  # (B, K, G * T, C)
    y = y.transpose(1, 2) if G == 1 else y.view(B, K, G, T, C).permute(0, 3, 2, 1, 4)
    return y.reshape(B * T, G * K * C)


def _make_extends(past: Sequence[Tensor], claim: Claim | None, T: int, layers: int) -> tuple[Claim | None, Sequence[Extend]]:
    """How each layer's cache goes on: in place where nothing is recorded for gradients, else by copies."""
    if not past or not past[0].shape[1]:
        return None, [lambda new: new] * layers
    if torch.is_grad_enabled() or torch.compiler.is_compiling():
        return None, [lambda new, old=old: torch.cat((old, new), dim=1) for old in past]
    claim, rooms = grow(past, claim, T)
    return claim, [partial(_write, room) for room in rooms]


def _write(room: Tensor, new: Tensor) -> Tensor:
    room[:, -new.shape[1] :].copy_(new)
    return room


def _check_tree(parents: Any, T: int, reset: Tensor | None) -> Tree | None:
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


def ancestors(parents: np.ndarray) -> np.ndarray:
    """(T, T) bool: entry (i, j) says that j is i or an ancestor of i."""
    mask = np.zeros((len(parents), len(parents)), dtype=bool)
    for i, parent in enumerate(parents.tolist()):
        if parent >= 0:
            mask[i] = mask[parent]
        mask[i, i] = True
    return mask


def _visible(S: int, T: int, tree: Tree | None, window: int | None) -> Tensor:
    """(T, S + T) bool: the cache, and of the new inputs the ancestors (without a tree: the earlier ones), within the window."""
    mask = torch.ones(T, S + T, dtype=torch.bool)
    if tree is None:
        mask.tril_(S)
    else:
        mask[:, S:] = torch.from_numpy(ancestors(tree[0]))
    if window is not None and S + T > window:
        ahead = torch.arange(T) if tree is None else torch.from_numpy(tree[1])
        place = torch.cat((torch.arange(S), S + ahead))
        mask &= place[S:, None] - place < window
    return mask


def _additive(visible: Tensor, dtype: torch.dtype) -> Tensor:
    """0 where visible, -inf where not: made once, where a bool mask would be turned into this in every layer."""
    return torch.zeros(visible.shape, dtype=dtype, device=visible.device).masked_fill_(~visible, float("-inf"))


def _starts(before: int | Tensor, reset: Tensor | None, shape: tuple[int, int], S: int, device: torch.device) -> Tensor:
    """(B, T + 1) where the sequence began, before and after each input; a reset at t moves it to S + t for good."""
    B, T = shape
    before = torch.full((B, 1), before, device=device) if isinstance(before, int) else before[:, None]
    if reset is None:
        return before.expand(-1, T + 1)
    here = torch.where(reset, S + torch.arange(T, device=device), before)
    return torch.cat((before, here), dim=1).cummax(dim=1).values
