"""Drafters that look back: the text itself says what comes next, no training needed (besides a corpus, if there is one).

Prompt lookup (Saxena 2023) copies what followed the last few tokens when they stood in the text before. The suffix automaton
(Hu et al. 2024) finds the longest such context, however long, in constant time, counts what followed it, and can look into a
corpus as well.
"""

import hashlib
from pathlib import Path

import numpy as np

from tdraft.kernels import suffix

from .drafters import Drafter, DrafterError, Proposal

LONGEST = 64  # what a proposal's order says at most: an observation's bound


class PromptLookupDrafter(Drafter):
    """Proposes what followed the most recent place that ends like the text. It always proposes one token, so its distribution is
    one-hot; the confidence is the share c / (n + 1) of n such places that the same token followed.

    :param longest: number of tokens compared at most
    :param vocab_size: tokens are in 0..vocab_size - 1
    """

    def __init__(self, longest: int = 10, vocab_size: int = 256):
        super().__init__()
        if longest < 1 or vocab_size < 1:
            raise DrafterError(f"longest and vocab_size must be at least 1, got {longest} and {vocab_size}")
        self.longest, self.vocab_size = longest, vocab_size
        self.fingerprint = _fingerprint("prompt-lookup", longest, vocab_size)

    def _look(self) -> tuple[int, float, int, int]:
        token, n, places, same = suffix.lookup(self.buffer, self.length + self.drafted, self.longest)
        return max(int(token), 0), same / (places + 1), int(n), int(places)

    def propose(self) -> Proposal:
        token, confidence, n, places = self._look()
        self.draw(token)
        return Proposal(token, confidence, 0.0, float(n), float(np.log1p(places)))

    def distribution(self) -> np.ndarray:
        p = np.zeros(self.vocab_size)
        p[self._look()[0]] = 1.0
        return p


class SuffixDrafter(Drafter):
    """Proposes the token that most often followed the longest context known from the text or a corpus; the longer match decides,
    the text's own where they are equal.

    After a context at whose n places T of V tokens followed, p(w) = (c(w) + T / V) / (n + T)   (Witten & Bell 1991).

    :param corpus: (N,) tokens to look into beside the text, 120 bytes of memory each
    :param vocab_size: V; tokens are in 0..V - 1
    """

    def __init__(self, corpus: np.ndarray | None = None, vocab_size: int = 256):
        super().__init__()
        corpus = np.zeros(0, np.int64) if corpus is None else np.asarray(corpus)
        if corpus.ndim != 1 or (
            corpus.size and (corpus.dtype.kind not in "iu" or not 0 <= corpus.min() <= corpus.max() < vocab_size)
        ):
            raise DrafterError(f"corpus must be integers (N,) in 0..{vocab_size - 1}, got {corpus.dtype} of shape {corpus.shape}")
        self.vocab_size = vocab_size
        self.fingerprint = _fingerprint("suffix", vocab_size, corpus.astype(np.int64).tobytes())
        self._corpus = suffix.empty(len(corpus))
        suffix.extend(self._corpus, corpus.astype(np.int64))
        self._own = suffix.empty(0)
        self._weights = np.zeros((2, vocab_size))
        self._text_matches = ((0, 0), (0, 0))  # state and length in the text and in the corpus, after the text
        self._matches = self._text_matches  # after text and drafts

    def begin(self, tokens: np.ndarray, room: int = 1024) -> None:
        capacity = len(tokens) + min(room, 4096)  # it grows where that is not enough
        if len(self._own.states) < 2 * capacity + 2:
            self._own = suffix.empty(capacity)
        suffix.clear(self._own)
        self._text_matches = ((0, 0), (0, 0))
        super().begin(tokens, room)

    def extend(self, tokens: np.ndarray | list[int]) -> None:
        super().extend(tokens)
        new = self.buffer[self.length - len(tokens) : self.length]
        if len(self._own.states) < 2 * self.length + 2:
            self._own = suffix.empty(2 * self.length)
            suffix.extend(self._own, self.buffer[: self.length])
        else:
            suffix.extend(self._own, new)
        corpus = self._text_matches[1]
        for token in new:
            corpus = suffix.advance(self._corpus, *corpus, token)
        # the whole text is a state that nothing followed; its link is the longest end that stood in the text before
        before = max(0, int(self._own.states[self._own.size[suffix.LAST], suffix.LINK]))
        self._text_matches = ((before, int(self._own.states[before, suffix.LENGTH])), corpus)
        self._matches = self._text_matches

    def forget(self) -> None:
        super().forget()
        self._matches = self._text_matches

    def draw(self, token: int) -> None:
        super().draw(token)
        own, corpus = self._matches
        self._matches = (suffix.advance(self._own, *own, token), suffix.advance(self._corpus, *corpus, token))

    def _look(self) -> tuple[int, np.ndarray, int, int]:
        """The token proposed, the distribution (V,), length of the context, number of its places."""
        own = suffix.followers(self._own, *self._matches[0], self._weights[0])
        corpus = suffix.followers(self._corpus, *self._matches[1], self._weights[1])
        chosen = int(corpus[4] > own[4] or not own[2])
        token, _, places, distinct, length = map(int, (own, corpus)[chosen])
        if not places:
            return 0, np.full(self.vocab_size, 1 / self.vocab_size), 0, 0
        return token, (self._weights[chosen] + distinct / self.vocab_size) / (places + distinct), length, places

    def propose(self) -> Proposal:
        token, p, length, places = self._look()
        self.draw(token)
        return Proposal(
            token, float(p[token]), float(-(p * np.log(p)).sum()), float(min(length, LONGEST)), float(np.log1p(places))
        )

    def distribution(self) -> np.ndarray:
        return self._look()[1]


def _fingerprint(*parts: object) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part if isinstance(part, bytes) else f"{part} ".encode())
    return digest.hexdigest()[:16]


def make_lookup(name: str, corpus: str, vocab_size: int) -> PromptLookupDrafter | SuffixDrafter:
    """The drafter called "prompt-lookup" or "suffix".

    :param corpus: a file whose bytes "suffix" looks into; "" for none
    """
    if name == "suffix":
        return SuffixDrafter(np.frombuffer(Path(corpus).read_bytes(), np.uint8) if corpus else None, vocab_size)
    if corpus:
        raise DrafterError(f"prompt-lookup looks into the text alone, got {corpus}; suffix:{corpus} looks into a file too")
    return PromptLookupDrafter(vocab_size=vocab_size)
