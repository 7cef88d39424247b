"""The contract of every sequence backbone: one call trains, decodes and verifies a draft.

    y, state = backbone(x, state)        x (B, T, D) -> y (B, T, D)

T long trains (the parallel form), T = 1 decodes, T = k verifies k drafted tokens from a state. A state is a value: no call
changes it, so rolling back is keeping the old one.
"""

import math
from abc import ABC, abstractmethod
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor, nn

from tdraft.kernels.dispatch import check_order, check_reset


class ContextOverflow(ValueError):
    """The inputs reach past the longest context that the backbone can hold."""


class State(ABC):
    """What a backbone remembers of its inputs, as an immutable value."""

    @property
    @abstractmethod
    def batch_size(self) -> int:
        """Sequences in the batch, B."""

    @property
    @abstractmethod
    def length(self) -> int:
        """Inputs that the next one can look back upon (of the longest sequence in the batch)."""

    @abstractmethod
    def at(self, t: int) -> Self:
        """The state after the t-th of the T inputs of the call that made this one; at(0) is before them, at(T) after all.

        After a call with `parents` it is the state whose last input is node t - 1, with that node's ancestors only.

        :raises ValueError: t outside 0..T
        """

    @abstractmethod
    def path(self, nodes: Any) -> Self:
        """The state after the inputs `nodes` of the call that made this one: a path from the root (for a sequence: 0, 1, ...).

        :raises ValueError: the nodes are not a path
        """

    @abstractmethod
    def select(self, index: Any) -> Self:
        """The batch rows `index` (M,), which may repeat: to widen a batch, reorder it or drop rows."""


class Backbone(nn.Module, ABC):
    """A map of sequences (B, T, D) -> (B, T, D) with a memory."""

    d_model: int

    @abstractmethod
    def initial_state(self, batch_size: int) -> State:
        """The state before any input."""

    @abstractmethod
    def forward(self, x: Tensor, state: Any = None, *, reset: Tensor | None = None, parents: Any = None) -> tuple[Tensor, State]:
        """Outputs for T inputs and the state after them.

        :param x: (B, T, D) inputs
        :param state: what came before; None is `initial_state(B)`
        :param reset: (B, T) bool, forget everything *before* that input: the start of an episode inside a batch
        :param parents: (T,) int, the inputs are the nodes of a tree and input i follows input parents[i] < i, or the last
            input of `state` where parents[i] is -1; every node sees its ancestors only
        :return: (B, T, D) and the new state; `state` itself is as before
        :raises ValueError: a shape, a reset or a parent is impossible
        :raises ContextOverflow: more inputs than the backbone can look back upon
        """


def check_inputs(x: Tensor, d_model: int, state: State | None, reset: Tensor | None) -> None:
    """Raise ValueError unless x is (B, T >= 1, d_model) and finite, `state` has B rows and reset is (B, T) bool.

    Only on a CPU and outside torch.compile are the values looked at: elsewhere that would wait for the device.
    """
    if x.dim() != 3 or x.shape[2] != d_model or x.shape[1] == 0:
        raise ValueError(f"x must be (B, T, {d_model}) with T >= 1, got {tuple(x.shape)}")
    if x.device.type == "cpu" and not torch.compiler.is_compiling() and not math.isfinite(x.detach().sum(dtype=torch.float32)):
        bad = int(x.numel() - x.isfinite().sum())
        if bad:
            raise ValueError(f"x must be finite, {bad} of its {x.numel()} entries are NaN or infinite")
    if state is not None and state.batch_size != x.shape[0]:
        raise ValueError(
            f"state has batch size {state.batch_size} but x has {x.shape[0]}; pick or repeat rows with state.select(index)"
        )
    check_reset(reset, x.shape[:2])


def check_parents(parents: Any, T: int) -> np.ndarray:
    """`parents` as an int64 array (T,), or ValueError unless -1 <= parents[i] < i for every i."""
    array = np.asarray(parents)
    if array.shape != (T,) or not np.issubdtype(array.dtype, np.integer):
        raise ValueError(f"parents must be {T} integers, one for each input, got {array.dtype} {array.shape}")
    check_order(array)
    return array.astype(np.int64)
