"""Interpolated modified Kneser-Ney over small vocabularies (Kneser & Ney 1995; Chen & Goodman 1998), to measure and to draft.

    p(w | c) = (a(c w) - D[min(a, 3)]) / a(c) + gamma(c) p(w | c without its oldest token)

a is the raw count for the longest n-grams and for those at the beginning of a text, else the number of distinct left neighbours;
gamma(c) is what the discounts took away, so that every distribution sums to one; the empty context interpolates with the uniform
distribution. Discounts are estimated per order from the counts of counts, as in kenlm (Heafield et al. 2013).
"""

import hashlib
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np

from tdraft.kernels import ngram as kernels
from tdraft.kernels.ngram import NGramTables

from .files import DAMAGED, atomic_write

SCHEMA = 1
FALLBACK_DISCOUNTS = (0.0, 0.5, 1.0, 1.5)  # kenlm's, where the counts of counts give none


class NGramError(ValueError):
    """Tokens that cannot be counted, or a file that is no n-gram model."""


class NGramCounts(NamedTuple):
    """What is counted and saved; everything else follows from it. C contexts, E n-grams; the trie is described in
    `kernels.ngram`.

    :param parents: (C,) int32 the context without its oldest token; parents[0] = 0 is the empty one
    :param tokens: (C,) int32 its oldest token; `vocab_size` stands for the beginning of a text
    :param entry_start: (C + 1,) int64 where its n-grams begin
    :param entry_tokens: (E,) int32 last token of each n-gram, ascending within a context
    :param raw: (E,) int64 how often each n-gram stands in the text
    """

    parents: np.ndarray
    tokens: np.ndarray
    entry_start: np.ndarray
    entry_tokens: np.ndarray
    raw: np.ndarray


class NGram:
    """An n-gram model. Make one with `fit`, `distill` or `load`.

    :param order: length of the longest n-grams; contexts have up to order - 1 tokens
    :param vocab_size: tokens are in 0..vocab_size - 1
    """

    def __init__(self, order: int, vocab_size: int, counts: NGramCounts):
        self.order, self.vocab_size, self.counts = order, vocab_size, counts
        levels = kernels.context_levels(counts.parents)
        longest = int(np.searchsorted(levels, order - 1))
        self._adjusted, suffix = kernels.adjusted_counts(
            counts.parents, counts.tokens, counts.entry_start, counts.entry_tokens, counts.raw, longest, vocab_size
        )
        if self._adjusted.min() < 1 or (suffix[counts.entry_start[1] :] < 0).any():
            raise NGramError("the n-gram table is inconsistent: an n-gram's suffix is missing; fit it again")
        self.discounts = np.array([_discounts(a) for a in self._adjusted_by_level(levels)])
        self._probability, self._backoff, self._top = kernels.estimate(
            counts.parents, levels, counts.entry_start, counts.entry_tokens, self._adjusted, counts.raw, suffix,
            self.discounts, vocab_size,
        )  # fmt: skip

    @classmethod
    def fit(cls, tokens: np.ndarray, order: int = 6, vocab_size: int = 256, *, starts: np.ndarray | None = None) -> "NGram":
        """Count and smooth a text.

        :param tokens: (N,) integers in 0..vocab_size - 1
        :param order: at least 1; with bytes, 5 to 8 is useful
        :param starts: positions where a text begins, behind which no context reaches; None is one text
        :raises NGramError: tokens that are empty, not integers or out of range; a bad order
        """
        tokens = _checked(tokens, vocab_size)
        _check_order(order)
        if not len(tokens):
            raise NGramError("an n-gram model needs at least one token, got none")
        begins = np.zeros(len(tokens), np.int64)
        if starts is not None:
            starts = _checked(starts, len(tokens), "starts")
            begins[starts] = starts
        depth = np.arange(len(tokens)) - np.maximum.accumulate(begins)
        return cls(order, vocab_size, _count(tokens, tokens, depth, order, vocab_size))

    def distill(self, tokens: np.ndarray, target_argmax: np.ndarray) -> "NGram":
        """The same contexts labelled with a target's choice in place of the text's next token: a drafter that says what the
        target says.

        :param tokens: (N,) training text
        :param target_argmax: (N,) the target's likeliest token after tokens[: i + 1]
        :return: a model of this order and vocabulary
        """
        tokens = _checked(tokens, self.vocab_size)
        labels = _checked(target_argmax, self.vocab_size, "target_argmax")
        if len(labels) != len(tokens) or not len(tokens):
            raise NGramError(
                f"target_argmax must have one label for each of the {len(tokens)} tokens (at least one), got {len(labels)}"
            )
        labels = np.concatenate([[-1], labels])  # the label at i stands after tokens[:i]
        depth = np.arange(len(labels))
        return NGram(self.order, self.vocab_size, _count(tokens, labels, depth, self.order, self.vocab_size))

    def probabilities(self, tokens: np.ndarray) -> np.ndarray:
        """(N,) probability of each of tokens (N,) after those before it; the first ones have short contexts."""
        tokens = _checked(tokens, self.vocab_size)
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
        context = _checked(context, self.vocab_size + 1, "context")
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
            "tokens": _narrow(counts.tokens),
            "entry_sizes": _narrow(np.diff(counts.entry_start)),
            "entry_tokens": _narrow(counts.entry_tokens),
            "raw": _narrow(counts.raw),
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
        problem = _problem(order, vocab_size, **arrays)
        if problem:
            raise NGramError(f"{path} is damaged: {problem}; train it again")
        starts = np.concatenate([[0], np.cumsum(arrays["entry_sizes"], dtype=np.int64)])
        counts = NGramCounts(
            arrays["parents"].astype(np.int32), arrays["tokens"].astype(np.int32), starts,
            arrays["entry_tokens"].astype(np.int32), arrays["raw"].astype(np.int64),
        )  # fmt: skip
        return cls(order, vocab_size, counts)

    def _adjusted_by_level(self, levels: np.ndarray) -> list[np.ndarray]:
        borders = self.counts.entry_start[np.searchsorted(levels, np.arange(self.order + 1))]
        return [self._adjusted[a:b] for a, b in pairwise(borders)]


_SAVED = ("parents", "tokens", "entry_sizes", "entry_tokens", "raw")


def _count(tokens, labels, depth, order: int, vocab_size: int) -> NGramCounts:
    """Count the labels (N,) >= 0 by the context before each position, level by level.

    :param depth: (N,) number of tokens between the beginning of the text and the position
    """
    nodes = np.where(labels >= 0, np.int64(0), np.int64(-1))
    parents, node_tokens = [np.zeros(1, np.int32)], [np.full(1, -1, np.int32)]
    sizes, entry_tokens, raw = [], [], []
    first, width = 0, 1
    for level in range(order):
        active = nodes >= 0
        keys = (nodes[active] << 32) | labels[active]
        keys.sort()
        values, counts = kernels.runs(keys)
        sizes.append(np.bincount((values >> 32) - first, minlength=width))
        entry_tokens.append((values & 0xFFFFFFFF).astype(np.int32))
        raw.append(counts)
        if level + 1 == order:
            break
        first += width
        more_parents, more_tokens = kernels.extend_contexts(nodes, tokens, depth, level, first, vocab_size)
        parents.append(more_parents)
        node_tokens.append(more_tokens)
        width = len(more_parents)
        if not width:  # the text is shorter than the order
            break
    entry_start = np.concatenate([[0], np.cumsum(np.concatenate(sizes))]).astype(np.int64)
    return NGramCounts(
        np.concatenate(parents), np.concatenate(node_tokens), entry_start, np.concatenate(entry_tokens), np.concatenate(raw)
    )


def _discounts(adjusted: np.ndarray) -> tuple[float, float, float, float]:
    """D by min(count, 3): Chen & Goodman's estimates from the counts of counts, kenlm's fallback where they are out of range.

    Y = n1 / (n1 + 2 n2),    D_k = k - (k + 1) Y n_{k+1} / n_k   for k = 1, 2, 3+
    """
    n = np.array([np.count_nonzero(adjusted == k) for k in range(5)], dtype=float)
    if not n[1:].all():
        return FALLBACK_DISCOUNTS
    y = n[1] / (n[1] + 2 * n[2])
    d1, d2, d3 = (k - (k + 1) * y * n[k + 1] / n[k] for k in (1, 2, 3))
    if not (0 <= d1 <= 1 and 0 <= d2 <= 2 and 0 <= d3 <= 3):
        return FALLBACK_DISCOUNTS
    return 0.0, float(d1), float(d2), float(d3)


def _checked(tokens, limit: int, name: str = "tokens") -> np.ndarray:
    """The tokens as (N,) int64 in 0..limit - 1."""
    tokens = np.asarray(tokens)
    if tokens.ndim != 1 or (tokens.size and tokens.dtype.kind not in "iu"):
        raise NGramError(f"{name} must be a one-dimensional array of integers, got {tokens.dtype} of shape {tokens.shape}")
    if tokens.size and not 0 <= tokens.min() <= tokens.max() < limit:
        wrong = tokens.min() if tokens.min() < 0 else tokens.max()
        raise NGramError(f"{name} must be in 0..{limit - 1}, got {wrong}; is the vocabulary another one?")
    return np.ascontiguousarray(tokens, np.int64)


def _check_order(order: int) -> None:
    if not 1 <= order <= 32:
        raise NGramError(f"order must be in 1..32, got {order}")


def _narrow(array: np.ndarray) -> np.ndarray:
    """The array in the smallest integer type that holds it."""
    low, high = int(array.min()), int(array.max())
    return array.astype(np.promote_types(np.min_scalar_type(low), np.min_scalar_type(high)))


def _problem(order, vocab_size, parents, tokens, entry_sizes, entry_tokens, raw) -> str | None:
    """What is wrong with the arrays of a file, so that no compiled loop reads outside of them."""
    if any(a.ndim != 1 or a.dtype.kind not in "iu" or not len(a) for a in (parents, tokens, entry_sizes, entry_tokens, raw)):
        return "an array has the wrong type"
    if not (1 <= order <= 32 and 1 <= vocab_size < 2**31):
        return f"order {order}, vocabulary {vocab_size}"
    if not len(parents) == len(tokens) == len(entry_sizes) or not len(entry_tokens) == len(raw) == entry_sizes.sum():
        return "its arrays do not fit together"
    if parents[0] != 0 or (parents < 0).any() or (parents[1:] >= np.arange(1, len(parents))).any():
        return "a context stands before its parent"
    levels = kernels.context_levels(parents.astype(np.int32))
    if (np.diff(levels) < 0).any() or levels[-1] >= order:
        return "its contexts are out of order"
    if (tokens[1:] < 0).any() or tokens[1:].max(initial=0) > vocab_size:
        return "a context's token is out of range"
    if entry_sizes.min() < 1 or raw.min() < 1 or entry_tokens.min() < 0 or entry_tokens.max() >= vocab_size:
        return "an n-gram is out of range"
    owner = np.repeat(np.arange(len(parents)), entry_sizes)
    if (np.diff(owner << 32 | entry_tokens.astype(np.int64)) <= 0).any():
        return "its n-grams are not sorted"
    return None
