"""Drafters: what proposes tokens, behind one small interface.

    begin(tokens)            a text starts: tokens (P,) int64, the prompt
    propose() -> Proposal    the greedy continuation of text + drafts by one token
    extend(tokens)           the text grew by the emitted tokens (T,); drafts are forgotten

Greedy proposals are one-hot drafts, so that replayed traces are exact and DROP is lossless. `distribution()` gives the full
distribution instead, for decoding with sampled drafts.
"""

from typing import NamedTuple, Protocol

import numpy as np
import torch

from tdraft.kernels.ngram import draft as ngram_draft

from ..language_model import LanguageModel
from ..ngram import NGram


class Proposal(NamedTuple):
    token: int
    confidence: float  # the drafter's probability of it
    entropy: float  # of the drafter's distribution, nats
    order: float  # length of the n-gram context it came from, 0 for other drafters
    log_count: float  # log(1 + count of that context), 0 for other drafters


class Drafter(Protocol):
    fingerprint: str

    def begin(self, tokens: np.ndarray) -> None: ...
    def propose(self) -> Proposal: ...
    def draw(self, token: int) -> None: ...
    def distribution(self) -> np.ndarray: ...
    def extend(self, tokens: np.ndarray) -> None: ...


class NGramDrafter:
    """Proposes the likeliest token after the longest known context."""

    def __init__(self, model: NGram, max_length: int = 1 << 16):
        self.model = model
        self.tables = model.draft_tables()
        self.fingerprint = model.fingerprint
        self.buffer = np.zeros(max_length, np.int64)
        self.length = self.drafted = 0
        self.token_seconds = 0.0  # what a drafted token costs inside a compiled round; `measure_cost` fills it in

    def begin(self, tokens: np.ndarray) -> None:
        self.length = self.drafted = 0
        self.extend(tokens)

    def extend(self, tokens: np.ndarray) -> None:
        end = self.length + len(tokens)
        if end + 64 > len(self.buffer):
            self.buffer = np.concatenate([self.buffer, np.zeros(max(end, len(self.buffer)), np.int64)])
        self.buffer[self.length : end] = tokens
        self.length, self.drafted = end, 0

    def propose(self) -> Proposal:
        token, confidence, entropy, order, count = ngram_draft(self.tables, self.buffer, self.length + self.drafted)
        self.draw(int(token))
        return Proposal(int(token), confidence, entropy, order, np.log1p(count))

    def draw(self, token: int) -> None:
        """Continue the draft with this token."""
        self.buffer[self.length + self.drafted] = token
        self.drafted += 1

    def distribution(self) -> np.ndarray:
        """(V,) the model's probabilities after text and drafts."""
        return self.model.distribution(self.buffer[: self.length + self.drafted])


class LMDrafter:
    """Proposes the likeliest token of a small language model, which keeps its own state of the text.

    Its catch-up (the tokens that the target emitted and it has not read) is fed together with the next draft step.
    """

    def __init__(self, model: LanguageModel):
        self.model = model
        self.fingerprint = model.fingerprint
        self.state = self.draft_state = None
        self.pending: list[int] = []
        self.unread: list[int] = []

    def begin(self, tokens: np.ndarray) -> None:
        self.state = self.model.initial_state(1)
        self.draft_state = None
        self.unread = [int(t) for t in tokens]

    def extend(self, tokens: np.ndarray) -> None:
        self.unread.extend(int(t) for t in tokens)
        self.draft_state = None

    def _logits(self) -> np.ndarray:
        with torch.inference_mode():
            if self.draft_state is None:
                logits, self.state = self.model(torch.tensor([self.unread]), self.state)
                self.unread, self.draft_state = [], self.state
            else:
                logits, self.draft_state = self.model(torch.tensor([self.pending]), self.draft_state)
            return logits[0, -1].double().numpy()

    def propose(self) -> Proposal:
        token, confidence, entropy = greedy_features(self._logits())
        self.draw(token)
        return Proposal(token, confidence, entropy, 0.0, 0.0)

    def draw(self, token: int) -> None:
        self.pending = [token]

    def distribution(self) -> np.ndarray:
        """(V,) the model's probabilities after text and drafts."""
        logits = self._logits()
        p = np.exp(logits - logits.max())
        return p / p.sum()


def greedy_features(logits: np.ndarray) -> tuple[int, float, float]:
    """(token, probability, entropy in nats) of the likeliest token of (V,) logits."""
    token = int(logits.argmax())
    shifted = logits - logits[token]
    weights = np.exp(shifted)
    total = weights.sum()
    return token, float(1.0 / total), float(np.log(total) - (weights * shifted).sum() / total)


def distribution_entropy(logits: np.ndarray) -> np.ndarray:
    """Entropy in nats of softmax(logits): (..., V) -> (...)."""
    shifted = logits - logits.max(-1, keepdims=True)
    weights = np.exp(shifted)
    total = weights.sum(-1)
    return np.log(total) - (weights * shifted).sum(-1) / total
