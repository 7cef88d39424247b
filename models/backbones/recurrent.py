"""What the recurrent families share: layers that remember a few tensors, and a state that can go back to any input of a call.

A layer maps x (B, T, D) to (B, T, D), residual included, and answers with one `Part` for each tensor that it remembers. The state
keeps the parts of all layers and a cursor: to drop rejected drafts is to move the cursor, nothing is copied.

B batch   T new inputs   D model width   W width of a window of inputs
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .base import Backbone, State, check_inputs, check_parents

KEPT = 64  # up to this many inputs of a call without gradients, the states after each are kept; else they are worked out anew

Memory = tuple[Tensor, ...]  # what a layer remembers, (B, ...) each


@dataclass(frozen=True)
class Flow:
    """How the inputs of one call follow each other: a chain, a chain with resets, or a tree."""

    length: int
    reset: Tensor | None = None  # (B, T) bool
    parents: np.ndarray | None = None  # (T,); None: input t follows t - 1

    def windows(self, x: Tensor, before: Tensor) -> Tensor:
        """(B, T, W, D): each input behind the W - 1 that came before it on its path, 0 where a reset lies between.

        :param x: (B, T, D) the inputs
        :param before: (B, W - 1, D) the last ones before this call
        """
        width = before.shape[1] + 1
        joined = torch.cat((before, x), dim=1)
        if self.parents is not None:
            return joined[:, torch.from_numpy(self._ancestors(width)).to(x.device)]
        windows = joined.unfold(1, width, 1).transpose(2, 3)
        if self.reset is None:
            return windows
        episode = self.reset.cumsum(1)  # (B, T)
        episode = torch.cat((episode.new_zeros(len(episode), width - 1), episode), dim=1).unfold(1, width, 1)  # (B, T, W)
        return windows * (episode == episode[:, :, -1:]).unsqueeze(-1)

    def _ancestors(self, width: int) -> np.ndarray:
        """(T, W) places in (before, x) of each node's path, its own last; before the root come the last of `before`."""
        assert self.parents is not None
        places = np.empty((self.length, width), np.int64)
        for i, parent in enumerate(self.parents.tolist()):
            places[i, :-1] = places[parent, 1:] if parent >= 0 else np.arange(width - 1)
            places[i, -1] = width - 1 + i
        return places


@dataclass(frozen=True, eq=False)
class Part:
    """One remembered tensor before a call and after each of its T inputs."""

    first: Tensor  # (B, ...) before the call
    last: Tensor | None = None  # (B, ...) after the last input; None: states[:, -1]
    states: Tensor | None = None  # (B, T, ...) after each input; always there for a tree
    run: Callable[[int], Tensor] | None = None  # where `states` is None: from t in 1..T to the tensor after t inputs

    def after(self, t: int, size: int) -> Tensor:
        """The tensor after the t-th of `size` inputs."""
        if t == 0:
            return self.first
        if self.states is not None:
            return self.states[:, t - 1]
        if t == size and self.last is not None:
            return self.last
        assert self.run is not None
        return self.run(t)

    def select(self, index: Tensor) -> "Part":
        first, last, states = (None if x is None else x.index_select(0, index) for x in (self.first, self.last, self.states))
        run = self.run
        return Part(first, last, states, None if run is None else lambda t: run(t).index_select(0, index))  # pyright: ignore


@dataclass(frozen=True, eq=False)
class RecurrentState(State):
    """The parts of every layer, and the input of the last call after which this state stands."""

    family: str  # of the backbone that made it, with its sizes and dtype
    layers: tuple[tuple[Part, ...], ...]
    size: int = 0  # inputs of the last call, T
    cursor: int = 0  # inputs of a chain that count; of a tree one more than the last node
    route: tuple[int, ...] | None = None  # the nodes from the root to the cursor, where the last call was a tree
    parents: np.ndarray | None = None  # of a tree of which no branch is chosen yet
    seen: int | Tensor = 0  # inputs before the last call, (B,) if resets made them differ
    reset: Tensor | None = None  # (B, T) of the last call

    @property
    def batch_size(self) -> int:
        return self.layers[0][0].first.shape[0]

    @property
    def length(self) -> int:
        ages = self.ages()
        return ages if isinstance(ages, int) else int(ages.max())

    def ages(self) -> int | Tensor:
        """Inputs since the last reset, (B,) where rows may differ."""
        if self.reset is None or not self.cursor:
            return self.seen + (self.cursor if self.route is None else len(self.route))
        past = self.reset[:, : self.cursor]
        last = torch.where(past, torch.arange(self.cursor, device=past.device), -1).amax(1)  # place of the last reset
        return torch.where(last >= 0, self.cursor - last, self.seen + self.cursor)

    def memories(self) -> list[Memory]:
        """What each layer remembers here."""
        if self.parents is not None:
            raise ValueError("state is that of a whole tree; pick a branch with state.path(nodes) or state.at(t) first")
        return [tuple(part.after(self.cursor, self.size) for part in parts) for parts in self.layers]

    def at(self, t: int) -> "RecurrentState":
        new = self.cursor if self.route is None and self.parents is None else self.size if self.route is None else len(self.route)
        if not 0 <= t <= new:
            raise ValueError(f"t must be in 0..{new}, the inputs of the call that made this state, got {t}")
        if self.route is not None:
            return replace(self, route=self.route[:t], cursor=self.route[t - 1] + 1 if t else 0)
        if self.parents is None:
            return replace(self, cursor=t)
        nodes = [t - 1] if t else []
        while nodes and (parent := int(self.parents[nodes[-1]])) >= 0:
            nodes.append(parent)
        return replace(self, route=tuple(nodes[::-1]), cursor=t, parents=None)

    def path(self, nodes: Sequence[int] | np.ndarray | Tensor) -> "RecurrentState":
        nodes = np.asarray(nodes, dtype=np.int64).reshape(-1).tolist()
        if nodes and not 0 <= min(nodes) <= max(nodes) < self.size:
            raise ValueError(f"nodes must be in 0..{self.size - 1}, got {nodes}")
        state = self.at(nodes[-1] + 1 if nodes and self.route is None else len(nodes))
        route = list(range(state.cursor)) if state.route is None else list(state.route)
        if route != nodes:
            raise ValueError(f"nodes {nodes} are not a path from the root, the path to the last of them is {route}")
        return state

    def select(self, index: Sequence[int] | np.ndarray | Tensor) -> "RecurrentState":
        index = torch.as_tensor(index, dtype=torch.int64, device=self.layers[0][0].first.device)
        layers = tuple(tuple(part.select(index) for part in parts) for parts in self.layers)
        seen, reset = (x.index_select(0, index) if isinstance(x, Tensor) else x for x in (self.seen, self.reset))
        return replace(self, layers=layers, seen=seen, reset=reset)


class Layer(nn.Module, ABC):
    """A map (B, T, D) -> (B, T, D) that remembers a few tensors."""

    undecayed: tuple[str, ...] = ()  # parameters of two and more dimensions that are no weights: rates, steps, phases

    @abstractmethod
    def initial(self, batch_size: int) -> Memory:
        """The memory before any input, and after a reset."""

    @abstractmethod
    def forward(self, x: Tensor, memory: Memory, flow: Flow) -> tuple[Tensor, tuple[Part, ...]]:
        """Outputs, the residual included, and a part for each tensor of the memory."""


class RecurrentBackbone(Backbone):
    """A stack of layers and a last norm.

    :param d_model: width D
    :param layers: from the first to the last
    :param norm: applied to what the last layer gives
    """

    def __init__(self, d_model: int, layers: Sequence[Layer], norm: nn.Module):
        super().__init__()
        self.d_model = d_model
        self.layers = nn.ModuleList(layers)
        self.norm = norm

    @property
    def family(self) -> str:
        """Name, sizes and dtype: what a state must match."""
        weight = next(self.parameters())
        return f"{type(self).__name__}(d_model={self.d_model}, n_layers={len(self.layers)}, {weight.dtype})"

    def initial_state(self, batch_size: int) -> RecurrentState:
        layers = tuple(tuple(Part(x) for x in layer.initial(batch_size)) for layer in self._layers)
        return RecurrentState(self.family, layers)

    @property
    def _layers(self) -> list[Layer]:
        return list(self.layers)  # pyright: ignore[reportReturnType]

    def forward(
        self, x: Tensor, state: RecurrentState | None = None, *, reset: Tensor | None = None, parents: Any = None
    ) -> tuple[Tensor, RecurrentState]:
        if state is not None and getattr(state, "family", None) != self.family:
            found = getattr(state, "family", f"a {type(state).__name__}")
            raise ValueError(f"state must be of {self.family}, got {found}; begin with initial_state")
        check_inputs(x, self.d_model, state, reset)
        state = self.initial_state(x.shape[0]) if state is None else state
        flow = make_flow(x, reset, parents)
        x, layers = self.run_layers(x, state.memories(), flow)
        made = RecurrentState(state.family, layers, flow.length, flow.length, None, flow.parents, state.ages(), reset)
        return self.norm(x), made

    def run_layers(self, x: Tensor, memories: list[Memory], flow: Flow) -> tuple[Tensor, tuple[tuple[Part, ...], ...]]:
        """x through all layers, and their parts."""
        made = []
        for layer, memory in zip(self.layers, memories):
            x, parts = layer(x, memory, flow)
            made.append(parts)
        return x, tuple(made)


def make_flow(x: Tensor, reset: Tensor | None, parents: Any) -> Flow:
    """The flow of a call's inputs, checked; a tree that is a chain counts as one."""
    T = x.shape[1]
    if parents is None:
        return Flow(T, reset)
    array = check_parents(parents, T)
    if reset is not None:
        raise ValueError("reset and parents cannot be given in one call: a tree of drafts lies within one sequence")
    return Flow(T, None, None if np.array_equal(array, np.arange(-1, T - 1)) else array)


def keeps_states(flow: Flow) -> bool:
    """Whether a call keeps the state after each input: a tree does, and a short call from which no gradient is asked."""
    return flow.parents is not None or (flow.length <= KEPT and not torch.is_grad_enabled())


class RMSNorm(nn.Module):
    """g * x / sqrt(mean(x^2) + eps) along the last axis (Zhang & Sennrich 2019)."""

    def __init__(self, width: int, eps: float = 1e-5):
        super().__init__()
        self.gain, self.eps = nn.Parameter(torch.ones(width)), eps

    def forward(self, x: Tensor) -> Tensor:
        scale = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        return x * (scale.square() / x.shape[-1] + self.eps).rsqrt() * self.gain


def inverse_softplus(x: Tensor) -> Tensor:
    """log(exp(x) - 1) for x > 0, without a difference of near numbers."""
    return x + torch.log(-torch.expm1(-x))


def log_uniform(shape: tuple[int, ...], low: float, high: float, generator: torch.Generator | None = None) -> Tensor:
    """Numbers whose logarithm is uniform between log(low) and log(high)."""
    return torch.exp(torch.empty(shape).uniform_(math.log(low), math.log(high), generator=generator))
