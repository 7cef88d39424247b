"""Interpolated modified Kneser-Ney over small vocabularies (Kneser & Ney 1995; Chen & Goodman 1998), to measure and to draft.

    p(w | c) = (a(c w) - D[min(a, 3)]) / a(c) + gamma(c) p(w | c without its oldest token)

a is the raw count for the longest n-grams and for those at the beginning of a text, else the number of distinct left neighbours;
gamma(c) is what the discounts took away, so that every distribution sums to one; the empty context interpolates with the uniform
distribution. Discounts are estimated per order from the counts of counts, as in kenlm (Heafield et al. 2013).
"""

import hashlib
from functools import cached_property
from pathlib import Path

import numpy as np

from tdraft.kernels import ngram as kernels
from tdraft.kernels.ngram import NGramTables

from .files import DAMAGED, atomic_write
from .ngrams.counts import NGramCounts, NGramError, checked, count_labels, count_ngrams, narrow, problem
from .ngrams.smoothing import FALLBACK_DISCOUNTS, adjusted_counts, discounts_by_level

__all__ = ["FALLBACK_DISCOUNTS", "NGram", "NGramCounts", "NGramError"]
SCHEMA = 1


class NGram:
    """An n-gram model. Make one with `fit`, `distill` or `load`.

    :param order: length of the longest n-grams; contexts have up to order - 1 tokens
    :param vocab_size: tokens are in 0..vocab_size - 1
    """

    def __init__(self, order: int, vocab_size: int, counts: NGramCounts):
        self.order, self.vocab_size, self.counts = order, vocab_size, counts
        levels = kernels.context_levels(counts.parents)
        adjusted, suffix = adjusted_counts(counts, levels, order, vocab_size)
        self.discounts = discounts_by_level(adjusted, counts.entry_start, levels, order)
        own, self._backoff = kernels.discounted(
            levels, counts.entry_start, adjusted, counts.raw, self.discounts, np.zeros(order, np.int64)
        )
        self._probability = kernels.interpolate(counts.entry_start, own, self._backoff, suffix, vocab_size)
        self._top = kernels.draft_tops(
            counts.parents, counts.entry_start, counts.entry_tokens, counts.raw, suffix, self._probability, self._backoff,
            vocab_size,
        )  # fmt: skip

    @classmethod
    def fit(cls, tokens: np.ndarray, order: int = 6, vocab_size: int = 256, *, starts: np.ndarray | None = None) -> "NGram":
        """Count and smooth a text.

        :param tokens: (N,) integers in 0..vocab_size - 1
        :param order: at least 1; with bytes, 5 to 8 is useful
        :param starts: positions where a text begins, behind which no context reaches; None is one text
        :raises NGramError: tokens that are empty, not integers or out of range; a bad order
        """
        return cls(order, vocab_size, count_ngrams(tokens, order, vocab_size, starts=starts))

    def distill(self, tokens: np.ndarray, target_argmax: np.ndarray) -> "NGram":
        """The same contexts labelled with a target's choice in place of the text's next token: a drafter that says what the
        target says.

        :param tokens: (N,) training text
        :param target_argmax: (N,) the target's likeliest token after tokens[: i + 1]
        :return: a model of this order and vocabulary
        """
        tokens = checked(tokens, self.vocab_size)
        labels = checked(target_argmax, self.vocab_size, "target_argmax")
        if len(labels) != len(tokens) or not len(tokens):
            raise NGramError(
                f"target_argmax must have one label for each of the {len(tokens)} tokens (at least one), got {len(labels)}"
            )
        labels = np.concatenate([[-1], labels])  # the label at i stands after tokens[:i]
        depth = np.arange(len(labels), dtype=np.int32)
        return NGram(self.order, self.vocab_size, count_labels(tokens, labels, depth, self.order, self.vocab_size))

    def probabilities(self, tokens: np.ndarray) -> np.ndarray:
        """(N,) probability of each of tokens (N,) after those before it; the first ones have short contexts."""
        tokens = checked(tokens, self.vocab_size)
        counts = self.counts
        return kernels.text_probabilities(
            self._slots, counts.parents, counts.entry_start, counts.entry_tokens, self._probability, self._backoff, tokens,
            self.order - 1, self.vocab_size,
        )  # fmt: skip

    def bits_per_token(self, tokens: np.ndarray) -> float:
        """Mean of -log2 p over tokens (N,): bits per byte where tokens are bytes."""
        if not len(tokens):
            raise NGramError("bits_per_token needs at least one token, got none")
        return float(-np.log2(self.probabilities(tokens)).mean())

    def distribution(self, context: np.ndarray) -> np.ndarray:
        """(V,) float64 probabilities of the next token.

        :param context: (T,) tokens, of which the last order - 1 are read; may begin with `vocab_size`, the beginning of a text
        """
        context = np.asarray(context)[-(self.order - 1) :] if self.order > 1 else np.empty(0, np.int64)
        context = checked(context, self.vocab_size + 1, "context")
        counts = self.counts
        return kernels.dense_distribution(
            self._slots, counts.entry_start, counts.entry_tokens, self._probability, self._backoff, context,
            self.order - 1, self.vocab_size,
        )  # fmt: skip

    def draft_tables(self, min_count: int = 1) -> NGramTables:
        """What `kernels.ngram.draft` reads.

        :param min_count: contexts seen less often are left out, and their back-off drafts instead; 1 keeps all
        """
        if min_count <= 1:
            return NGramTables(self._slots, self._top, self.order - 1)
        keep = self._top[:, 3] >= min_count  # a parent is seen at least as often as its children
        keep[0] = True
        new = np.cumsum(keep, dtype=np.int32) - np.int32(1)
        slots = kernels.build_slots(new[self.counts.parents[keep]], self.counts.tokens[keep])
        return NGramTables(slots, self._top[keep], self.order - 1)

    @cached_property
    def _slots(self) -> np.ndarray:
        return kernels.build_slots(self.counts.parents, self.counts.tokens)

    @cached_property
    def fingerprint(self) -> str:
        """16 hex digits of the sha256 of order, vocabulary and counts."""
        digest = hashlib.sha256(f"{SCHEMA} {self.order} {self.vocab_size}".encode())
        for array in self.counts:
            digest.update(array.tobytes())
        return digest.hexdigest()[:16]

    def __repr__(self) -> str:
        sizes = f"contexts={len(self.counts.parents)}, n-grams={len(self.counts.raw)}"
        return f"NGram(order={self.order}, vocab_size={self.vocab_size}, {sizes})"

    def save(self, path: str | Path) -> None:
        """Write the counts as a compressed .npz, all or nothing."""
        counts = self.counts
        arrays = {
            "parents": counts.parents,
            "tokens": narrow(counts.tokens),
            "entry_sizes": narrow(np.diff(counts.entry_start)),
            "entry_tokens": narrow(counts.entry_tokens),
            "raw": narrow(counts.raw),
        }
        with atomic_write(path) as temporary, open(temporary, "wb") as file:
            np.savez_compressed(file, allow_pickle=False, tdraft_ngram=np.array([SCHEMA, self.order, self.vocab_size]), **arrays)

    @classmethod
    def load(cls, path: str | Path) -> "NGram":
        """:raises NGramError: no such file, a truncated or foreign one, or one of another version"""
        try:
            with np.load(path, allow_pickle=False) as file:
                arrays = {name: file[name] for name in ("tdraft_ngram", *_SAVED)}
        except FileNotFoundError:
            raise NGramError(f"{path} does not exist; train an n-gram model first") from None
        except DAMAGED as error:
            raise NGramError(f"{path} is not a whole n-gram model ({type(error).__name__}); train it again") from None
        header = arrays.pop("tdraft_ngram").ravel().tolist()
        if len(header) != 3 or header[0] != SCHEMA:
            raise NGramError(f"{path} has schema {header[:1]}, this version reads {SCHEMA}; train it again")
        _, order, vocab_size = header
        wrong = problem(order, vocab_size, **arrays)
        if wrong:
            raise NGramError(f"{path} is damaged: {wrong}; train it again")
        starts = np.concatenate([[0], np.cumsum(arrays["entry_sizes"], dtype=np.int64)])
        counts = NGramCounts(
            arrays["parents"].astype(np.int32), arrays["tokens"].astype(np.int32), starts,
            arrays["entry_tokens"].astype(np.int32), arrays["raw"].astype(np.int64),
        )  # fmt: skip
        return cls(order, vocab_size, counts)


_SAVED = ("parents", "tokens", "entry_sizes", "entry_tokens", "raw")
