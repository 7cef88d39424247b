"""Drafters: what proposes tokens, behind one small interface (`Drafter`).

Greedy proposals are one-hot drafts, so that replayed traces are exact and DROP is lossless. `distribution()` gives the full
distribution instead, for decoding with sampled drafts and for trees.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from tdraft.kernels.jit import Box
from tdraft.kernels.ngram import draft as ngram_draft

from ..backbones.base import State
from ..checkpoints import metadata_of
from ..language_model import LanguageModel
from ..ngram import NGram
from ..pretrained import HEADS, PRETRAINED, load_pretrained, pretrained_heads
from .trees import Tree, best_first


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
    vocab_size: int
    max_length: int | None = None
    """Longest text, drafts included, that it can read; None: any that the target can."""
    taps: tuple[int, ...] | None = None
    """None: it needs nothing of the target. A tuple: it reads the target's hidden states, see `watch`, and beside the last ones
    the outputs of these layers (from 0)."""

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

    def watch(self, hidden: Tensor) -> None:
        """What the target made of the tokens that it has just read and kept; called before `begin` and `extend`, and only where
        `taps` is not None.

        The target reads one token less than the text holds: the last one is its own choice, made from the last row.

        :param hidden: (T, D * (1 + len(taps))), the target's last hidden states and behind them the outputs of the layers
            `taps`; T = P - 1 before `begin` with a prompt of P tokens, else as many as `extend` brings
        """
        raise NotImplementedError

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

    def forget(self) -> None:
        """Drop the drafts; the text stays."""
        self.drafted = 0

    def propose(self) -> Proposal:
        """Continue text and drafts greedily by one token."""
        raise NotImplementedError

    def distribution(self) -> np.ndarray:
        """(V,) the model's probabilities after text and drafts."""
        raise NotImplementedError

    def after(self, path: Sequence[int]) -> np.ndarray:
        """(V,) the model's probabilities after the text and these drafts, in place of any others."""
        self.forget()
        for token in path:
            self.draw(token)
        return self.distribution()

    def tree(self, nodes: int, depth: int) -> Tree:
        """The likeliest continuations of the text, at most `nodes` tokens and none longer than `depth`; no drafts are left."""
        tree = best_first(self.after, nodes, depth)
        self.forget()
        return tree


class NGramDrafter(Drafter):
    """Proposes the likeliest token after the longest known context."""

    def __init__(self, model: NGram):
        super().__init__()
        self.model = model
        self.tables = model.draft_tables()
        self.boxed_tables = Box(self.tables)
        self.fingerprint, self.vocab_size = model.fingerprint, model.vocab_size
        self.token_seconds = 0.0  # what a drafted token costs inside a compiled round; `measure_cost` fills it in

    def propose(self) -> Proposal:
        token, confidence, entropy, order, count = ngram_draft(self.tables, self.buffer, self.length + self.drafted)
        self.draw(int(token))
        return Proposal(int(token), confidence, entropy, order, np.log1p(count))

    def distribution(self) -> np.ndarray:
        return self.model.distribution(self.buffer[: self.length + self.drafted])


class LogitsDrafter(Drafter):
    """Proposes the likeliest token by a network's logits."""

    def _logits(self) -> np.ndarray:
        """(V,) float64 after text and drafts."""
        raise NotImplementedError

    def propose(self) -> Proposal:
        token, confidence, entropy = greedy_features(self._logits())
        self.draw(int(token))
        return Proposal(int(token), float(confidence), float(entropy), 0.0, 0.0)

    def distribution(self) -> np.ndarray:
        logits = self._logits()
        p = np.exp(logits - logits.max())
        return p / p.sum()


class Reading(NamedTuple):
    """How far a language model has read a text and its drafts."""

    length: int  # tokens
    state: State  # after them
    logits: np.ndarray  # (V,) of the next token; empty where none is read


class LMDrafter(LogitsDrafter):
    """Proposes the likeliest token of a small language model, which keeps its own state of the text.

    Its catch-up (the tokens that the target emitted and it has not read) is fed together with the next draft step.
    """

    def __init__(self, model: LanguageModel):
        super().__init__()
        self.model = model
        self.fingerprint, self.vocab_size = model.fingerprint, model.config.vocab_size
        self.max_length = model.config.max_length
        self._text = self._drafts = Reading(0, model.initial_state(1), np.empty(0))

    def begin(self, tokens: np.ndarray, room: int = 1024) -> None:
        self._text = Reading(0, self.model.initial_state(1), np.empty(0))
        super().begin(tokens, room)

    def extend(self, tokens: np.ndarray | list[int]) -> None:
        super().extend(tokens)
        self._drafts = self._text

    def forget(self) -> None:
        super().forget()
        self._drafts = self._text

    def _logits(self) -> np.ndarray:
        """(V,) after text and drafts; one call reads whatever of them is unread."""
        read, state, logits = self._drafts
        end = self.length + self.drafted
        if read == end:
            return logits
        with torch.inference_mode():
            rows, state = self.model(torch.from_numpy(self.buffer[None, read:end]), state)
        self._drafts = Reading(end, state, rows[0, -1].double().numpy())
        if read < self.length:
            new = self.length - read
            self._text = Reading(self.length, state.at(new), rows[0, new - 1].double().numpy()) if self.drafted else self._drafts
        return self._drafts.logits


class DrafterError(ValueError):
    """A file that holds no drafter, or not one for this target."""


def load_drafter(path: str | Path, target: LanguageModel | None = None) -> Drafter:
    """The drafter of a file, or of a name: "prompt-lookup" and "suffix" look back in the text, "suffix:FILE" also in the bytes of
    a file; "drafter", "medusa" and "mtp" come with tdraft, the heads for the targets that do.

    :param path: an n-gram model (.npz), a language model or heads of a target (.safetensors), or a name
    :param target: whose text is to be drafted; heads need theirs
    :raises DrafterError: another kind of file, or heads without their target
    """
    name, _, corpus = str(path).partition(":")
    if name in ("prompt-lookup", "suffix"):
        from .lookup_drafters import make_lookup

        return make_lookup(name, corpus, 256 if target is None else target.config.vocab_size)
    if name in PRETRAINED and not Path(path).exists():
        return LMDrafter(load_pretrained(name))
    if name in HEADS and target is not None and not Path(path).exists():
        with pretrained_heads(name, target) as file:
            return load_drafter(file, target)
    kind = Path(path).suffix
    if kind == ".npz":
        return NGramDrafter(NGram.load(path))
    if kind != ".safetensors":
        raise DrafterError(
            f"{path} is no drafter: give an n-gram model (.npz), a language model or heads (.safetensors), or a name: "
            f"{', '.join(('prompt-lookup', 'suffix', 'suffix:FILE', *PRETRAINED, *HEADS))}"
        )
    if metadata_of(path).get("class") in (
        LanguageModel.__name__,
        None,
    ):  # whose own error says what is wrong with a file without a class
        return LMDrafter(LanguageModel.load(path))
    from .head_drafters import load_head_drafter

    if target is None:
        raise DrafterError(f"{path} holds heads, which draft only with their target: give it too")
    return load_head_drafter(path, target)


def read_target(
    target: LanguageModel, tokens: Tensor, state: Any, taps: tuple[int, ...] | None, parents: Any = None
) -> tuple[Tensor, State, Tensor | None]:
    """The target's logits (B, T, V), its state, and the hidden states (B, T, D * (1 + len(taps))) for drafters that ask.

    :param tokens: (B, T)
    :param taps: `Drafter.taps`
    """
    if taps is None:
        logits, state = target(tokens, state, parents=parents)
        return logits, state, None
    if not taps:
        hidden, state = target.hidden(tokens, state, parents=parents)
        return target.logits(hidden), state, hidden
    from ..backbones.taps import tapped

    hidden, state, layers = tapped(target.backbone, target.embed(tokens), state, taps, parents=parents)
    return target.logits(hidden), state, torch.cat([hidden, *layers], dim=-1)


def greedy_features(logits: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The likeliest token of each row of logits (..., V), its probability, and the entropy in nats, (...) each."""
    shifted = logits - logits.max(-1, keepdims=True)
    weights = np.exp(shifted)
    total = weights.sum(-1)
    return logits.argmax(-1), 1.0 / total, np.log(total) - (weights * shifted).sum(-1) / total


def distribution_entropy(logits: np.ndarray) -> np.ndarray:
    """Entropy in nats of softmax(logits): (..., V) -> (...)."""
    return greedy_features(logits)[2]
