"""From counts to probabilities: maximum likelihood, add-k, Witten-Bell, stupid backoff, modified Kneser-Ney.

All but two interpolate: an n-gram keeps a share of its own, and the context's remainder gamma goes by the shorter context,

    p(w | c) = own(c w) + gamma(c) p(w | c without its oldest token),    gamma(c) = 1 - sum over w of own(c w)

with c(.) the counts, c = c(context), T the number of distinct words after the context, a(.) Kneser-Ney's adjusted counts:

    mle             own = c(c w) / c                                 (gamma = 0 where nothing was left out)
    witten-bell     own = c(c w) / (c + T)                           Witten & Bell 1991, as in Chen & Goodman 1998 sec. 2.4
    kneser-ney      own = (a(c w) - D[min(a, 3)]) / a(c)             Kneser & Ney 1995; Chen & Goodman 1998 sec. 3
    stupid          S = c(c w) / c, else 0.4 S(w | shorter)          Brants et al. 2007; scores that do not sum to one
    add-k           p = (c(c w) + k) / (c + k V)                     Lidstone 1920; after an unseen context 1 / V

`prune` leaves out n-grams of a length that stand at most so often in the text, like `lmplz --prune` (Heafield et al. 2013):
totals and discounts are those of the whole text, and what is left out goes to gamma.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal, NamedTuple, get_args

import numpy as np

from tdraft.kernels import ngram as kernels

from .counts import NGramCounts, NGramError

Smoothing = Literal["kneser-ney", "witten-bell", "add-k", "stupid", "mle"]
FALLBACK_DISCOUNTS = (0.0, 0.5, 1.0, 1.5)  # kenlm's, where the counts of counts give none
STUPID_WEIGHT = 0.4


class Smoothed(NamedTuple):
    """An estimate over the trie of contexts; C contexts, E n-grams, as in NGramCounts, without those that were left out.

    :param suffix: (E,) int64 the same n-gram without its oldest token, -1 for unigrams
    :param probability: (E,) of each n-gram
    :param backoff: (C,) weight of the shorter context for words that do not stand after this one
    """

    parents: np.ndarray
    tokens: np.ndarray
    entry_start: np.ndarray
    entry_tokens: np.ndarray
    suffix: np.ndarray
    probability: np.ndarray
    backoff: np.ndarray


def smooth(
    counts: NGramCounts,
    order: int,
    vocab_size: int,
    smoothing: Smoothing = "kneser-ney",
    *,
    k: float = 1.0,
    prune: Sequence[int] = (),
) -> Smoothed:
    """Estimate the probabilities of counted n-grams.

    :param k: of add-k, positive
    :param prune: thresholds by length, the last one for all longer ones; (0, 0, 1) leaves out what is longer than two and stands
        once. The first is 0, and none is smaller than the one before.
    :raises NGramError: an unknown smoothing, bad k or thresholds, counts that don't fit together
    """
    if smoothing not in get_args(Smoothing):
        raise NGramError(f'no smoothing "{smoothing}"; choose from {", ".join(get_args(Smoothing))}')
    thresholds = prune_thresholds(prune, order)
    levels = kernels.context_levels(counts.parents)
    adjusted, suffix = adjusted_counts(counts, levels, order, vocab_size)
    owner = np.repeat(np.arange(len(levels)), np.diff(counts.entry_start))
    keep = counts.raw > thresholds[levels[owner]]
    begins = counts.entry_start[:-1]
    if smoothing == "kneser-ney":
        discounts = discounts_by_level(adjusted, counts.entry_start, levels, order)
        own, gamma = kernels.discounted(levels, counts.entry_start, adjusted, counts.raw, discounts, thresholds)
    else:
        total = np.add.reduceat(counts.raw, begins).astype(float)
        left_out = np.add.reduceat(np.where(keep, 0, counts.raw), begins)
        kept = np.add.reduceat(keep.astype(np.int64), begins)
        if smoothing == "witten-bell":
            own, gamma = counts.raw / (total + kept)[owner], (kept + left_out) / (total + kept)
        elif smoothing == "add-k":
            if not 0 < k < np.inf:
                raise NGramError(f"k of add-k must be positive and finite, got {k}")
            if keep.all():
                own, gamma = (counts.raw + k) / (total + k * vocab_size)[owner], k * vocab_size / (total + k * vocab_size)
            else:
                raise NGramError("add-k takes no prune: an n-gram left out would have the probability of one never seen")
        else:
            own, gamma = counts.raw / total[owner], left_out / total
            if smoothing == "stupid":
                gamma = np.full(len(total), STUPID_WEIGHT)
    parents, tokens, start, entry_tokens, suffix, own, gamma = _kept(counts, keep, owner, suffix, own, gamma)
    if smoothing not in ("stupid", "add-k"):
        own = kernels.interpolate(start, own, gamma, suffix, vocab_size)
    return Smoothed(parents, tokens, start, entry_tokens, suffix, own, gamma)


def prune_thresholds(prune: Sequence[int], order: int) -> np.ndarray:
    """(order,) int64 threshold of each length.

    :raises NGramError: unigrams left out, thresholds that fall or are too many
    """
    given = [0] if len(prune) == 0 else list(prune)
    if given[0] != 0:
        raise NGramError(f"prune must begin with 0 (all words stay; give min_count to limit the vocabulary), got {given[0]}")
    if len(given) > order or any(b < a for a, b in pairwise(given)):
        raise NGramError(f"prune must be at most {order} thresholds that do not fall, got {tuple(given)}")
    return np.array(given + given[-1:] * (order - len(given)), np.int64)


def adjusted_counts(counts: NGramCounts, levels: np.ndarray, order: int, vocab_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Kneser-Ney's adjusted counts (E,), and each n-gram's suffix (E,).

    :raises NGramError: an n-gram whose suffix is missing
    """
    longest = int(np.searchsorted(levels, order - 1))
    adjusted, suffix = kernels.adjusted_counts(
        counts.parents, counts.tokens, counts.entry_start, counts.entry_tokens, counts.raw, longest, vocab_size
    )
    if adjusted.min() < 1 or (suffix[counts.entry_start[1] :] < 0).any():
        raise NGramError("the n-gram table is inconsistent: an n-gram's suffix is missing; fit it again")
    return adjusted, suffix


def discounts_by_level(adjusted: np.ndarray, entry_start: np.ndarray, levels: np.ndarray, order: int) -> np.ndarray:
    """(order, 4) modified Kneser-Ney's discounts by level and min(count, 3)."""
    borders = entry_start[np.searchsorted(levels, np.arange(order + 1))]
    return np.array([_discounts(adjusted[a:b]) for a, b in pairwise(borders)])


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


def _kept(counts: NGramCounts, keep, owner, suffix, own, gamma):
    """The arrays without the n-grams that are left out, and without contexts that have none any more.

    The suffix of an n-gram that stays has stayed: it stands at least as often, and its threshold is no higher.
    """
    if keep.all():
        return (*counts[:4], suffix, own, gamma)
    sizes = np.add.reduceat(keep.astype(np.int64), counts.entry_start[:-1])
    stays = sizes > 0
    new_node, new_entry = np.cumsum(stays) - 1, np.cumsum(keep) - 1
    start = np.concatenate([[0], np.cumsum(sizes[stays])])
    moved = np.where(suffix[keep] >= 0, new_entry[suffix[keep]], -1)
    parents = new_node[counts.parents[stays]].astype(np.int32)
    return parents, counts.tokens[stays], start, counts.entry_tokens[keep], moved, own[keep], gamma[stays]
