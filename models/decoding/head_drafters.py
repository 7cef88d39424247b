"""Drafters of heads: they read what the target made of its text (`Drafter.watch`) and share its embedding and output matrix.

n + 1 tokens t_0..t_n in the text, of which the target has read n   k depth of a proposal, t_{n+k}   K heads or modules
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..backbones import State
from ..heads.base import Heads
from ..heads.chain import ChainHeads, ChainModule
from ..heads.early_exit import EarlyExit
from ..heads.files import load_heads
from ..heads.parallel import ParallelHeads
from ..language_model import LanguageModel
from .drafters import Drafter, LMDrafter, LogitsDrafter


def load_head_drafter(path: str | Path, target: LanguageModel) -> Drafter:
    """The drafter of a file of heads.

    :raises CheckpointError: no heads, or those of another target
    """
    return make_head_drafter(load_heads(path, target), target)


def make_head_drafter(heads: Heads, target: LanguageModel) -> Drafter:
    """The drafter that heads of this target make."""
    if isinstance(heads, EarlyExit):
        drafter = LMDrafter(heads.model)
        drafter.fingerprint = heads.fingerprint
        return drafter
    if isinstance(heads, ParallelHeads):
        return ParallelDrafter(heads, target)
    assert isinstance(heads, ChainHeads)
    return ChainDrafter(heads, target)


class HeadDrafter(LogitsDrafter):
    """Keeps the hidden states that no head has read yet."""

    def __init__(self, heads: Heads, target: LanguageModel):
        super().__init__()
        self.target, self.taps = target, heads.taps
        self.fingerprint, self.vocab_size = heads.fingerprint, target.config.vocab_size
        self._watched: list[Tensor] = []  # (T, F) each

    def watch(self, hidden: Tensor) -> None:
        self._watched.append(hidden)

    def begin(self, tokens: np.ndarray, room: int = 1024) -> None:
        self._watched = self._watched[-1:]
        if [len(hidden) for hidden in self._watched] != [len(tokens) - 1]:
            raise ValueError(f"watch must bring the {len(tokens) - 1} hidden states of the prompt before begin does its tokens")
        super().begin(tokens, room)

    def _take(self) -> Tensor:
        """What was watched since the last call, (1, T, F)."""
        hidden, self._watched = torch.cat(self._watched), []
        return hidden[None]


class ParallelDrafter(HeadDrafter):
    """All K tokens from one reading of the heads, whatever is drafted. Of one more it knows nothing: every token is as likely."""

    def __init__(self, heads: ParallelHeads, target: LanguageModel):
        super().__init__(heads, target)
        self.heads, self._states, self._ready = heads, None, None

    def begin(self, tokens: np.ndarray, room: int = 1024) -> None:
        self._states = None
        super().begin(tokens, room)

    def extend(self, tokens: np.ndarray | list[int]) -> None:
        super().extend(tokens)
        self._ready = None

    def _logits(self) -> np.ndarray:
        if self._ready is None:
            with torch.inference_mode():
                outputs, self._states = self.heads.read(self._take(), self._states)
                self._ready = self.target.logits(torch.cat([y[0, -1:] for y in outputs])).double().numpy()
        return self._ready[self.drafted] if self.drafted < len(self._ready) else np.zeros(self.vocab_size)


class Step(NamedTuple):
    """What one proposal of a chain leaves to the next."""

    fresh: Tensor  # (1, R, D) the h^k_i that hang on drafts, up to i = n - 1; of the last module its last output
    state: State  # of the module after them
    logits: np.ndarray  # (V,)


class ChainDrafter(HeadDrafter):
    """Proposals of a chain of modules. Module k reads h^{k-1}_i with t_{i+k}: for good where that token is of the text, and anew
    after the next verification where it is a draft.
    """

    def __init__(self, heads: ChainHeads, target: LanguageModel):
        super().__init__(heads, target)
        self.heads = heads
        self._modules: list[ChainModule] = list(heads.chain)  # pyright: ignore[reportAttributeAccessIssue]
        self._steps: dict[tuple[int, ...], Step] = {}  # of this round, by what is drafted before them

    def begin(self, tokens: np.ndarray, room: int = 1024) -> None:
        count = len(self._modules)
        empty = self.target.embedding.detach().new_empty(1, 0, self.target.config.d_model)
        self._read = [0] * count  # how many i each module has read for good
        self._states = [module.block.initial_state(1) for module in self._modules]  # after them
        self._waiting = [empty] * count  # h^{k-1}_i behind them that hang on no draft
        super().begin(tokens, room)

    def extend(self, tokens: np.ndarray | list[int]) -> None:
        super().extend(tokens)
        self._steps = {}

    def _logits(self) -> np.ndarray:
        drafts = tuple(self.buffer[self.length : self.length + self.drafted].tolist())
        with torch.inference_mode():
            for depth in range(len(drafts) + 1):
                if drafts[:depth] not in self._steps:
                    before = self._steps[drafts[: depth - 1]] if depth else None
                    go_on = self._go_on if depth >= len(self._modules) else self._catch_up
                    self._steps[drafts[:depth]] = go_on(depth, before)
        return self._steps[drafts].logits

    def _catch_up(self, k: int, before: Step | None) -> Step:
        """Module k (from 0) reads all that it hasn't, up to the last h_{n-1} with the last draft."""
        if before is None:
            new = self.heads.features(self._take())
            hidden = self._waiting[0] = torch.cat((self._waiting[0], new), dim=1)
        else:
            hidden = torch.cat((self._waiting[k], before.fresh), dim=1)
        read, depth = self._read[k], k + 1
        tokens = torch.from_numpy(self.buffer[None, read + depth : self.length - 1 + depth])
        y, state = self._modules[k](hidden, self.target.embed(tokens), self._states[k])
        kept = max(self.length - depth - read, 0)  # of those read now, whose tokens are of the text
        self._read[k], self._states[k], self._waiting[k] = read + kept, state.at(kept), self._waiting[k][:, kept:]
        if depth < len(self._modules):
            self._waiting[depth] = torch.cat((self._waiting[depth], y[:, :kept]), dim=1)
        last = y[:, -1:] if depth == len(self._modules) else y[:, kept:]
        return self._step(last, state, y)

    def _go_on(self, k: int, before: Step | None) -> Step:
        """The last module reads its own last output with the last draft."""
        assert before is not None
        token = torch.from_numpy(self.buffer[None, self.length + k - 1 : self.length + k])
        y, state = self._modules[-1](before.fresh, self.target.embed(token), before.state)
        return self._step(y, state, y)

    def _step(self, fresh: Tensor, state: State, y: Tensor) -> Step:
        return Step(fresh, state, self.target.logits(y[0, -1]).double().numpy())
