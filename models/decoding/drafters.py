"""Drafters: what proposes tokens, behind one small interface (`Drafter`).

Greedy proposals are one-hot drafts, so that replayed traces are exact and DROP is lossless. `distribution()` gives the full
distribution instead, for decoding with sampled drafts.
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from tdraft.kernels.jit import Box
from tdraft.kernels.ngram import draft as ngram_draft

from ..language_model import LanguageModel
from ..ngram import NGram


class Proposal(NamedTuple):
    token: int
    confidence: float  # the drafter's probability of it
    entropy: float  # of the drafter's distribution, nats
    order: float  # length of the n-gram context it came from, 0 for other drafters
    log_count: float  # log(1 + count of that context), 0 for other drafters


class Drafter:
    """Keeps the text and its drafts; a kind of drafter says what comes next.

    `buffer` (int64) holds the text, `length` tokens, and behind it the `drafted` tokens. It is one array from `begin` to the next
    as long as the text stays within the room asked for.
    """

    fingerprint: str

    def __init__(self):
        self.buffer = np.zeros(1, np.int64)
        self.length = self.drafted = 0

    def begin(self, tokens: np.ndarray, room: int = 1024) -> None:
        """A text starts.

        :param tokens: (P,) the prompt
        :param room: how many more tokens, drafts included, the text may come to hold
        """
        if len(self.buffer) < len(tokens) + room:
            self.buffer = np.zeros(len(tokens) + room, np.int64)
        self.length = 0
        self.extend(tokens)

    def extend(self, tokens: np.ndarray | list[int]) -> None:
        """The text grew by these tokens; drafts are forgotten."""
        end = self.length + len(tokens)
        if end > len(self.buffer):
            self.buffer = np.concatenate([self.buffer, np.zeros(end, np.int64)])
        self.buffer[self.length : end] = tokens
        self.length, self.drafted = end, 0

    def draw(self, token: int) -> None:
        """Continue the draft with this token."""
        place = self.length + self.drafted
        if place == len(self.buffer):
            self.buffer = np.concatenate([self.buffer, np.zeros(place, np.int64)])
        self.buffer[place] = token
        self.drafted += 1

    def propose(self) -> Proposal:
        """Continue text and drafts greedily by one token."""
        raise NotImplementedError

    def distribution(self) -> np.ndarray:
        """(V,) the model's probabilities after text and drafts."""
        raise NotImplementedError


class NGramDrafter(Drafter):
    """Proposes the likeliest token after the longest known context."""

    def __init__(self, model: NGram):
        super().__init__()
        self.model = model
        self.tables = model.draft_tables()
        self.boxed_tables = Box(self.tables)
        self.fingerprint = model.fingerprint
        self.token_seconds = 0.0  # what a drafted token costs inside a compiled round; `measure_cost` fills it in

    def propose(self) -> Proposal:
        token, confidence, entropy, order, count = ngram_draft(self.tables, self.buffer, self.length + self.drafted)
        self.draw(int(token))
        return Proposal(int(token), confidence, entropy, order, np.log1p(count))

    def distribution(self) -> np.ndarray:
        return self.model.distribution(self.buffer[: self.length + self.drafted])


class LMDrafter(Drafter):
    """Proposes the likeliest token of a small language model, which keeps its own state of the text.

    Its catch-up (the tokens that the target emitted and it has not read) is fed together with the next draft step.
    """

    def __init__(self, model: LanguageModel):
        super().__init__()
        self.model = model
        self.fingerprint = model.fingerprint
        self.state = self.draft_state = None
        self.read = 0  # tokens of the text that `state` has seen

    def begin(self, tokens: np.ndarray, room: int = 1024) -> None:
        self.state, self.read = self.model.initial_state(1), 0
        super().begin(tokens, room)

    def extend(self, tokens: np.ndarray | list[int]) -> None:
        super().extend(tokens)
        self.draft_state = None

    def _logits(self) -> np.ndarray:
        end = self.length + self.drafted
        with torch.inference_mode():
            if self.draft_state is None:
                unread = self.buffer[self.read : self.length]
                logits, self.state = self.model(torch.from_numpy(unread[None]), self.state)
                self.read, self.draft_state = self.length, self.state
            else:
                logits, self.draft_state = self.model(torch.from_numpy(self.buffer[None, end - 1 : end]), self.draft_state)
            return logits[0, -1].double().numpy()

    def propose(self) -> Proposal:
        token, confidence, entropy = greedy_features(self._logits())
        self.draw(int(token))
        return Proposal(int(token), float(confidence), float(entropy), 0.0, 0.0)

    def distribution(self) -> np.ndarray:
        logits = self._logits()
        p = np.exp(logits - logits.max())
        return p / p.sum()


class DrafterError(ValueError):
    """A file that holds no drafter."""


def load_drafter(path: str | Path) -> NGramDrafter | LMDrafter:
    """The drafter of a file: an n-gram model (.npz) or a small language model (.safetensors).

    :raises DrafterError: another kind of file
    """
    kind = Path(path).suffix
    if kind == ".npz":
        return NGramDrafter(NGram.load(path))
    if kind == ".safetensors":
        return LMDrafter(LanguageModel.load(path))
    raise DrafterError(f"{path} is no drafter: give an n-gram model (.npz) or a language model (.safetensors)")


def greedy_features(logits: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The likeliest token of each row of logits (..., V), its probability, and the entropy in nats, (...) each."""
    shifted = logits - logits.max(-1, keepdims=True)
    weights = np.exp(shifted)
    total = weights.sum(-1)
    return logits.argmax(-1), 1.0 / total, np.log(total) - (weights * shifted).sum(-1) / total


def distribution_entropy(logits: np.ndarray) -> np.ndarray:
    """Entropy in nats of softmax(logits): (..., V) -> (...)."""
    return greedy_features(logits)[2]
