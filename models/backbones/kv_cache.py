"""What attention remembers, as a value: keys and values of the inputs in sight, which a call extends without copying them.

Caches grow in rooms. A room has space for more inputs than a state sees; a call writes the new ones behind those of its state,
unless a state that still lives sees that place already: then it begins a new room with a copy. So a text that goes on, and
drafts that are rejected and dropped, cost no copies, and of two states that branch from one neither sees the other.

L layers   B batch   S inputs in sight   T new inputs   K heads of keys and values   C width of a head
"""

from bisect import insort
from collections.abc import Sequence
from dataclasses import dataclass, replace
from operator import itemgetter
from threading import Lock
from weakref import ref

import numpy as np
import torch
from torch import Tensor

from .base import State


class Room:
    """Memory that states share; each claims the entries that it sees."""

    def __init__(self, data: Tensor):
        self.data = data  # (L, B, capacity, 2, K, C)
        self.array = data.numpy() if data.device.type == "cpu" and data.dtype == torch.float32 else None
        self._claims: list[tuple[int, ref[Claim]]] = []  # ends in rising order, some of claims that are dead
        self._many = 32
        self._lock = Lock()  # two threads may go on from one state

    def claim(self, end: int, new: int = 0) -> "Claim | None":
        """A hold of the first end + new entries, or None where there is no space or a living state sees more than `end`."""
        with self._lock:
            claims = self._claims
            while claims and claims[-1][1]() is None:
                claims.pop()
            if end + new > self.data.shape[2] or (new and claims and claims[-1][0] > end):
                return None
            if len(claims) > self._many:
                claims[:] = [held for held in claims if held[1]() is not None]
                self._many = 32 + 2 * len(claims)
            claim = Claim(self, end + new)
            insort(claims, (end + new, ref(claim)), key=itemgetter(0))
            return claim


class Claim:
    """A hold of the first `end` entries of a room, for as long as this object lives."""

    __slots__ = ("__weakref__", "end", "room")

    def __init__(self, room: Room, end: int):
        self.room, self.end = room, end

    def __reduce__(self):
        return type(None), ()  # a copied or pickled state has its tensors, and no room to grow in

    def views(self, size: int) -> tuple[Tensor, ...]:
        """The last `size` entries, a layer each (B, size, 2, K, C)."""
        return self.room.data.narrow(2, self.end - size, size).unbind(0)


@dataclass(frozen=True, eq=False)
class KVState(State):
    """Keys and values of every layer; `at`, `path` and `select` are slices of them."""

    family: str  # of the backbone that made it, with its sizes and dtype
    kv: tuple[Tensor, ...]  # a layer each (B, S, 2, K, C); keys with their positions, values
    new: int = 0  # how many of the S the last call brought
    start: int | Tensor = 0  # cache entry where the sequence began, < 0 where the first ones have left the cache;
    # (B, new + 1) before and after each new input where rows differ
    parents: np.ndarray | None = None  # (new,) when the new inputs are a tree
    claim: Claim | None = None  # where the kv stand, if they have room to grow

    @property
    def batch_size(self) -> int:
        return self.kv[0].shape[0]

    @property
    def length(self) -> int:
        """Inputs since the last reset (of the longest sequence); all are in sight unless the backbone has a window."""
        size = self.kv[0].shape[1]
        return size - (self.start if isinstance(self.start, int) else int(self.start[:, -1].min()))

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
        start = self.start if isinstance(self.start, int) else self.start[:, : t + 1]
        claim = None if self.claim is None else self.claim.room.claim(self.claim.end - self.new + t)
        kv = tuple(kv[:, :size] for kv in self.kv) if claim is None else claim.views(size)
        return KVState(self.family, kv, t, start, None, claim)

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
        start = self.start if isinstance(self.start, int) else self.start[:, : nodes.size + 1]  # a tree has no resets
        return KVState(self.family, tuple(kv.index_select(1, index) for kv in self.kv), nodes.size, start)

    def select(self, index: Sequence[int] | np.ndarray | Tensor) -> "KVState":
        index = torch.as_tensor(index, dtype=torch.int64, device=self.kv[0].device)
        kv = tuple(kv.index_select(0, index) for kv in self.kv)
        start = self.start if isinstance(self.start, int) else self.start.index_select(0, index)
        return KVState(self.family, kv, self.new, start, self.parents)

    def in_sight(self, window: int | None) -> tuple[tuple[Tensor, ...], int | Tensor]:
        """(the kv that a next input may see, where its sequence began: an int or (B,))."""
        if self.parents is not None:
            raise ValueError("state is that of a whole tree; pick a branch with state.path(nodes) or state.at(t) first")
        drop = 0 if window is None else max(self.kv[0].shape[1] - window + 1, 0)
        start = self.start
        if not isinstance(start, int):
            start = start[:, -1]
            drop = max(drop, int(start.min()))
            start = int(start[0]) if bool((start == start[0]).all()) else start
        return (tuple(kv[:, drop:] for kv in self.kv) if drop else self.kv), start - drop


def grow(past: Sequence[Tensor], claim: Claim | None, new: int) -> tuple[Claim, tuple[Tensor, ...]]:
    """Room for `new` inputs behind `past`: the claim, and a layer each (B, S + new, 2, K, C) that holds `past` already.

    :param past: a layer each (B, S, 2, K, C), the last entries of `claim` if that is given
    """
    size = past[0].shape[1]
    grown = None
    if claim is not None and (torch.is_inference_mode_enabled() or not claim.room.data.is_inference()):
        grown = claim.room.claim(claim.end, new)
    if grown is None:
        B, _, *rest = past[0].shape
        room = Room(past[0].new_empty(len(past), B, max(2 * (size + new), 64), *rest))
        for layer, kv in zip(room.data, past):
            layer[:, :size].copy_(kv)
        grown = room.claim(0, size + new)
        assert grown is not None
    return grown, grown.views(size + new)
