"""N-gram counts: made from a text, checked, and what goes wrong with them.

Counting takes one pass over the text for each length: `kernels.ngram_counts`.
"""

from typing import NamedTuple

import numpy as np

from tdraft.kernels import ngram_counts as kernels
from tdraft.kernels.ngram import context_levels


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


def count_ngrams(tokens: np.ndarray, order: int, vocab_size: int, *, starts: np.ndarray | None = None) -> NGramCounts:
    """Count the n-grams of every length up to `order`.

    :param tokens: (N,) integers in 0..vocab_size - 1
    :param order: length of the longest n-grams, 1..32
    :param starts: positions where a text begins, behind which no context reaches; None is one text
    :raises NGramError: tokens that are empty, not integers or out of range; a bad order
    """
    tokens = checked(tokens, vocab_size)
    check_order(order)
    if not len(tokens):
        raise NGramError("an n-gram model needs at least one token, got none")
    begins = np.zeros(len(tokens), np.int64)
    if starts is not None:
        starts = checked(starts, len(tokens), "starts")
        begins[starts] = starts
    depth = (np.arange(len(tokens)) - np.maximum.accumulate(begins)).astype(np.int32)
    return count_labels(tokens, tokens, depth, order, vocab_size)


def count_labels(tokens, labels, depth, order: int, vocab_size: int) -> NGramCounts:
    """Count the labels by the context before each position, level by level.

    :param tokens: (N,) int64 the text
    :param labels: (N,) or (N + 1,) int64 what stands behind tokens[:i]; -1 is passed over
    :param depth: int32 like labels, number of tokens between the beginning of the text and the position
    """
    nodes = np.where(labels >= 0, np.int32(0), np.int32(-1))
    keys = labels[labels >= 0]
    visits = np.array([len(keys)], np.int32)
    parents: list[np.ndarray] = [np.zeros(1, np.int32)]
    node_tokens: list[np.ndarray] = [np.full(1, -1, np.int32)]
    sizes, entry_tokens, raw = [], [], []
    first = 0
    for level in range(order):
        keys.sort()
        values, counts = kernels.runs(keys)
        sizes.append(np.bincount((values >> 32) - first, minlength=len(visits)))
        entry_tokens.append((values & 0xFFFFFFFF).astype(np.int32))
        raw.append(counts)
        if level + 1 == order:
            break
        first += len(visits)
        more_parents, more_tokens, visits, keys = kernels.extend_contexts(
            nodes, visits, tokens, labels, depth, level, first, vocab_size
        )
        parents.append(more_parents)
        node_tokens.append(more_tokens)
        if not len(visits):  # the text is shorter than the order
            break
    entry_start = np.concatenate([[0], np.cumsum(np.concatenate(sizes))]).astype(np.int64)
    return NGramCounts(
        np.concatenate(parents), np.concatenate(node_tokens), entry_start, np.concatenate(entry_tokens), np.concatenate(raw)
    )


def checked(tokens, limit: int, name: str = "tokens") -> np.ndarray:
    """The tokens as (N,) int64 in 0..limit - 1."""
    tokens = np.asarray(tokens)
    if tokens.ndim != 1 or (tokens.size and tokens.dtype.kind not in "iu"):
        raise NGramError(f"{name} must be a one-dimensional array of integers, got {tokens.dtype} of shape {tokens.shape}")
    if tokens.size and not 0 <= tokens.min() <= tokens.max() < limit:
        wrong = tokens.min() if tokens.min() < 0 else tokens.max()
        raise NGramError(f"{name} must be in 0..{limit - 1}, got {wrong}; is the vocabulary another one?")
    return np.ascontiguousarray(tokens, np.int64)


def check_order(order: int) -> None:
    if not 1 <= order <= 32:
        raise NGramError(f"order must be in 1..32, got {order}")


def narrow(array: np.ndarray) -> np.ndarray:
    """The array in the smallest integer type that holds it."""
    low, high = int(array.min()), int(array.max())
    return array.astype(np.promote_types(np.min_scalar_type(low), np.min_scalar_type(high)))


def problem(order, vocab_size, parents, tokens, entry_sizes, entry_tokens, raw) -> str | None:
    """What is wrong with the arrays of a file, so that no compiled loop reads outside of them."""
    if any(a.ndim != 1 or a.dtype.kind not in "iu" or not len(a) for a in (parents, tokens, entry_sizes, entry_tokens, raw)):
        return "an array has the wrong type"
    if not (1 <= order <= 32 and 1 <= vocab_size < 2**31):
        return f"order {order}, vocabulary {vocab_size}"
    if not len(parents) == len(tokens) == len(entry_sizes) or not len(entry_tokens) == len(raw) == entry_sizes.sum():
        return "its arrays do not fit together"
    if parents[0] != 0 or (parents < 0).any() or (parents[1:] >= np.arange(1, len(parents))).any():
        return "a context stands before its parent"
    levels = context_levels(parents.astype(np.int32))
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
