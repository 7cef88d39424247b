"""Word2Vec's training loops: skip-gram and CBOW with negative sampling (Mikolov et al. 2013, arXiv 1301.3781 and 1310.4546).

    l(h, o) = -log s(h . out_o) - sum_k log s(-h . out_k),   k ~ count^0.75,   s(x) = 1 / (1 + e^-x)

one step of gradient descent a prediction. The loops are word2vec.c's: a window's half width is drawn from 1..window, frequent
words are left out before windows are laid, the rate falls linearly, a negative that is the word itself doesn't count. Two things
differ: s is exact, and where CBOW's h is a mean of n vectors, each of them has 1/n of h's gradient (Irsoy et al. 2021,
arXiv 2012.15332), as the loss has it.

V words   D size of a vector   N tokens   S sentences
"""

from typing import Any

import numpy as np
from numba import njit

from .elementary import scratch, sigmoid, sums
from .rng import randint, uniform

_loop: Any = njit(nogil=True, cache=True, error_model="numpy", fastmath={"contract", "reassoc", "nsz"})
_ZERO, _ONE = np.float32(0.0), np.float32(1.0)


@njit(nogil=True, cache=True)
def alias_table(weights):
    """Walker's table, from which a draw costs one number: entry i stands for itself with probability keep[i], else for other[i].

    The law is exact to float64's rounding (Vose 1991).

    :param weights: (V,) float64, not negative, not all 0
    :return: keep (V,) float64, other (V,) int32
    """
    size = len(weights)
    keep, other = weights * (size / weights.sum()), np.arange(size).astype(np.int32)
    small, large = np.empty(size, np.int32), np.empty(size, np.int32)
    n_small, n_large = 0, 0
    for i in range(size):
        if keep[i] < 1.0:
            small[n_small] = i
            n_small += 1
        else:
            large[n_large] = i
            n_large += 1
    while n_small > 0 and n_large > 0:
        n_small -= 1
        i, j = small[n_small], large[n_large - 1]
        other[i] = j
        keep[j] -= 1.0 - keep[i]
        if keep[j] < 1.0:
            n_large -= 1
            small[n_small] = j
            n_small += 1
    for k in range(n_small):
        keep[small[k]] = 1.0
    for k in range(n_large):
        keep[large[k]] = 1.0
    return keep, other


@njit(inline="always")
def draw_negative(keep, other, rng):
    """An index by the law of `alias_table`."""
    place = uniform(rng) * len(keep)
    i = int(place)
    return i if place - i < keep[i] else other[i]


@_loop
def subsample(ids, ends, keep, rng, kept, kept_ends):
    """Copy each token with the probability `keep` of its word.

    :param ids: (N,) int32 tokens
    :param ends: (S,) int64 where each sentence ends
    :param keep: (V,) float64 probabilities; 1 and more keeps always
    :param kept: (N,) int32, filled from the left
    :param kept_ends: (S,) int64, filled
    """
    count, i = 0, 0
    for s in range(len(ends)):
        while i < ends[s]:
            word = ids[i]
            if keep[word] >= 1.0 or uniform(rng) < keep[word]:
                kept[count] = word
                count += 1
            i += 1
        kept_ends[s] = count


@sums
def _draw_targets(word, targets, keep, other, rng):
    """The word itself, then negatives; -1 where a negative is the word."""
    targets[0] = word
    for k in range(1, len(targets)):
        drawn = draw_negative(keep, other, rng)
        targets[k] = drawn if drawn != word else -1


@sums
def descend(h, output, targets, rate, slopes, change):
    """One step of the output vectors down l(h, targets[0]); `change` becomes the step of h.

    :param h: (D,) what predicts
    :param output: (V, D) changed in place
    :param targets: (1 + K,) int32, the word and K negatives; -1 is none
    :param slopes: (1 + K,) scratch
    """
    size = len(h)
    for k in range(len(targets)):
        t = max(targets[k], 0)
        total = _ZERO
        for j in range(size):
            total += h[j] * output[t, j]
        slopes[k] = total
    for k in range(len(targets)):
        label = _ONE if k == 0 else _ZERO
        slopes[k] = rate * (label - sigmoid(slopes[k])) if targets[k] >= 0 else _ZERO
    for j in range(size):
        change[j] = _ZERO
    for k in range(len(targets)):
        t, slope = max(targets[k], 0), slopes[k]
        for j in range(size):
            old = output[t, j]
            change[j] += slope * old
            output[t, j] = old + slope * h[j]


@_loop
def skip_gram(ids, ends, input, output, keep, other, window, negative, first_rate, last_rate, rng):
    """Each word of a window predicts the word in its middle: one pass over `ids`.

    :param ids: (N,) int32 tokens, subsampled
    :param ends: (S,) int64 where each sentence ends; windows stay inside
    :param input: (V, D) float32 the word vectors, changed in place
    :param output: (V, D) float32 the vectors of what is predicted, changed in place
    :param keep: with `other`, the law of the negatives, from `alias_table`
    :param window: largest half width
    :param negative: number of negatives K
    :param first_rate: learning rate at the first token
    :param last_rate: at the last
    """
    change = scratch(1, input.shape[1], input)[0]
    slopes, targets = np.empty(negative + 1, np.float32), np.empty(negative + 1, np.int32)
    begin, slope = 0, (last_rate - first_rate) / max(len(ids), 1)
    for end in ends:
        for i in range(begin, end):
            rate, half = np.float32(first_rate + slope * i), 1 + randint(rng, window)
            for c in range(max(i - half, begin), min(i + half + 1, end)):
                if c != i:
                    _draw_targets(ids[i], targets, keep, other, rng)
                    h = input[ids[c]]
                    descend(h, output, targets, rate, slopes, change)
                    for j in range(len(h)):
                        h[j] += change[j]
        begin = end


@_loop
def cbow(ids, ends, input, output, keep, other, window, negative, first_rate, last_rate, rng):
    """The mean of a window's words predicts the word in its middle: one pass over `ids`; parameters as in `skip_gram`."""
    size = input.shape[1]
    h, change = scratch(1, size, input)[0], scratch(1, size, input)[0]
    slopes, targets = np.empty(negative + 1, np.float32), np.empty(negative + 1, np.int32)
    begin, slope = 0, (last_rate - first_rate) / max(len(ids), 1)
    for end in ends:
        for i in range(begin, end):
            rate, half = np.float32(first_rate + slope * i), 1 + randint(rng, window)
            left, right = max(i - half, begin), min(i + half + 1, end)
            if right - left > 1:
                share = _ONE / np.float32(right - left - 1)
                for j in range(size):
                    h[j] = _ZERO
                for c in range(left, right):
                    if c != i:
                        for j in range(size):
                            h[j] += share * input[ids[c], j]
                _draw_targets(ids[i], targets, keep, other, rng)
                descend(h, output, targets, rate, slopes, change)
                for c in range(left, right):
                    if c != i:
                        for j in range(size):
                            input[ids[c], j] += share * change[j]
        begin = end
