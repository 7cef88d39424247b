"""Loops of the n-gram model: estimating, querying and drafting over a trie of reversed contexts (counted in `ngram_counts`).

Node 0 is the empty context. The child of a node by token t is the same context with t *before* it, so that a node's parent is its
context without the oldest token: the back-off. Nodes are numbered level by level (level = length of the context). The n-grams
(entries) of node c are `entry_start[c] : entry_start[c + 1]`, sorted by token.

C contexts   E entries   S slots of the hash table, a power of two
"""

from typing import NamedTuple

import numpy as np
from numba import njit

_EMPTY = np.int64(-1)
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


class NGramTables(NamedTuple):
    """What drafting reads: two look-ups in memory beyond the walk.

    :param slots: (S, 2) int64 open-addressing table: key parent << 32 | token, child (-1 where empty)
    :param top: (C, 4) float64: likeliest token, its probability, entropy in nats, count of the context
    :param max_context: number of tokens that are looked at, order - 1
    """

    slots: np.ndarray
    top: np.ndarray
    max_context: int


@njit(cache=True)
def _key(parent, token):
    return (np.int64(parent) << 32) | np.int64(token)


@njit(cache=True)
def _slot(slots, key):
    """The slot that holds `key`, or the free one where it belongs."""
    mask = len(slots) - 1
    h = np.uint64(key) * _GOLDEN
    slot = np.int64(h ^ (h >> np.uint64(32))) & mask
    while slots[slot, 1] != -1 and slots[slot, 0] != key:
        slot = (slot + 1) & mask
    return slot


@njit(cache=True)
def _find(slots, parent, token):
    """The child of `parent` by `token`, or -1."""
    return slots[_slot(slots, _key(parent, token)), 1]


@njit(cache=True)
def insert(slots, parent, token, child):
    """The child of `parent` by `token`, which becomes `child` where there is none. The table must have a free slot."""
    key = _key(parent, token)
    slot = _slot(slots, key)
    if slots[slot, 1] != -1:
        return slots[slot, 1]
    slots[slot, 0] = key
    slots[slot, 1] = child
    return np.int64(child)


@njit(cache=True)
def draft(tables, context, length):
    """The likeliest token after context[:length], from the longest suffix that the tables hold.

    :param tables: NGramTables
    :param context: int array, tokens; only the last `max_context` before `length` are read
    :param length: how many of them count
    :return: token, its smoothed probability, entropy of the smoothed distribution (nats), matched context length, its count
    """
    node = np.int64(0)
    matched = 0
    while matched < tables.max_context and matched < length:
        child = _find(tables.slots, node, context[length - 1 - matched])
        if child < 0:
            break
        node = child
        matched += 1
    top = tables.top[node]
    return np.int64(top[0]), top[1], top[2], matched, top[3]


@njit(cache=True)
def build_slots(parents, tokens):
    """The hash table of a whole trie, at most half full.

    :param parents: (C,) parent of each node, parents[0] is ignored
    :param tokens: (C,) token by which the parent leads here
    """
    size = 16
    while size < 2 * len(parents):
        size *= 2
    slots = np.full((size, 2), _EMPTY)
    for node in range(1, len(parents)):
        insert(slots, parents[node], tokens[node], node)
    return slots


@njit(cache=True)
def _position(entry_tokens, low, high, token):
    """Index of `token` in the sorted entry_tokens[low:high], or -1."""
    end = high
    while low < high:
        middle = (low + high) // 2
        if entry_tokens[middle] < token:
            low = middle + 1
        else:
            high = middle
    return low if low < end and entry_tokens[low] == token else -1


@njit(cache=True)
def adjusted_counts(parents, node_tokens, entry_start, entry_tokens, raw, longest, start_token):
    """Kneser-Ney's counts: raw for the longest n-grams and those at a text's beginning, else the number of distinct left
    neighbours.

    :param raw: (E,) how often each n-gram stands in the text
    :param longest: first node of the longest contexts
    :return: adjusted (E,) int64; suffix (E,) int64, the same n-gram without its oldest token (-1 for unigrams)
    """
    adjusted = np.zeros(len(raw), np.int64)
    suffix = np.full(len(raw), -1, np.int64)
    for node in range(len(parents) - 1, -1, -1):  # children come after their parents, so every count below is complete
        is_raw = node >= longest or (node > 0 and node_tokens[node] == start_token)
        for entry in range(entry_start[node], entry_start[node + 1]):
            if is_raw:
                adjusted[entry] = raw[entry]
            if node > 0:
                parent = parents[node]
                suffix[entry] = _position(entry_tokens, entry_start[parent], entry_start[parent + 1], entry_tokens[entry])
                adjusted[suffix[entry]] += 1
    return adjusted, suffix


@njit(cache=True)
def discounted(levels, entry_start, adjusted, raw, discounts, thresholds):
    """Modified Kneser-Ney's share of each n-gram, and what is left of its context: own = (a - D(a)) / a(c), gamma(c) = what the
    discounts and the n-grams left out took away.

    :param discounts: (order, 4) D by level and min(a, 3)
    :param thresholds: (order,) n-grams of this level that stand at most so often in the text are left out
    :return: own (E,); gamma (C,)
    """
    own, gamma = np.empty(len(adjusted)), np.empty(len(levels))
    for node in range(len(levels)):
        level = levels[node]
        total, kept_back = 0, 0.0
        for entry in range(entry_start[node], entry_start[node + 1]):
            total += adjusted[entry]
            if raw[entry] > thresholds[level]:
                kept_back += discounts[level, min(adjusted[entry], 3)]
            else:
                kept_back += adjusted[entry]
        gamma[node] = kept_back / total
        for entry in range(entry_start[node], entry_start[node + 1]):
            own[entry] = (adjusted[entry] - discounts[level, min(adjusted[entry], 3)]) / total
    return own, gamma


@njit(cache=True)
def interpolate(entry_start, own, gamma, suffix, vocab_size):
    """p(w | c) = own(c w) + gamma(c) p(w | c without its oldest token); the empty context interpolates with the uniform
    distribution.

    :return: probability (E,) of each n-gram
    """
    probability = np.empty(len(own))
    for node in range(len(gamma)):
        for entry in range(entry_start[node], entry_start[node + 1]):
            below = probability[suffix[entry]] if node > 0 else 1.0 / vocab_size
            probability[entry] = own[entry] + gamma[node] * below
    return probability


@njit(cache=True)
def draft_tops(parents, entry_start, entry_tokens, raw, suffix, probability, backoff, vocab_size):
    """What drafting asks of each context: likeliest token, its probability, entropy, count; (C, 4) as in NGramTables.

    A context's entropy takes time in proportion to its own n-grams: the unseen words' part is the parent's, scaled.
    """
    n_nodes = len(parents)
    plogp = np.empty(n_nodes)  # sum over the vocabulary of p log p
    top = np.empty((n_nodes, 4))
    uniform = 1.0 / vocab_size
    for node in range(n_nodes):
        begin, end = entry_start[node], entry_start[node + 1]
        gamma = backoff[node]
        parent_plogp = plogp[parents[node]] if node > 0 else np.log(uniform)
        parent_top = top[parents[node], 0] if node > 0 else 0.0
        parent_best = top[parents[node], 1] if node > 0 else uniform
        unseen_mass, unseen_plogp, seen_plogp, count = 1.0, parent_plogp, 0.0, 0
        # outside its own n-grams, the likeliest word can only be the parent's: if that one is among them, it beats all unseen
        best_token, best = parent_top, gamma * parent_best
        for entry in range(begin, end):
            count += raw[entry]
            q = probability[suffix[entry]] if node > 0 else uniform
            p = probability[entry]
            unseen_mass -= q
            unseen_plogp -= q * np.log(q)
            seen_plogp += p * np.log(p)
            if p > best or (p == best and entry_tokens[entry] < best_token):
                best_token, best = float(entry_tokens[entry]), p
        if end - begin == vocab_size or unseen_mass < 0.0:
            unseen_mass, unseen_plogp = 0.0, 0.0
        if gamma > 0.0:
            plogp[node] = seen_plogp + gamma * (unseen_plogp + np.log(gamma) * unseen_mass)
        else:
            plogp[node] = seen_plogp
        top[node, 0], top[node, 1], top[node, 2], top[node, 3] = best_token, best, max(0.0, -plogp[node]), float(count)
    return top


@njit(cache=True)
def text_probabilities(slots, parents, entry_start, entry_tokens, probability, backoff, tokens, max_context, vocab_size):
    """(N,) the model's probability of each of tokens (N,) after those before it."""
    result = np.empty(len(tokens))
    for i in range(len(tokens)):
        node, matched = np.int64(0), 0
        while matched < max_context and matched < i:
            child = _find(slots, node, tokens[i - 1 - matched])
            if child < 0:
                break
            node = child
            matched += 1
        weight = 1.0
        while True:
            entry = _position(entry_tokens, entry_start[node], entry_start[node + 1], tokens[i])
            if entry >= 0:
                result[i] = weight * probability[entry]
                break
            weight *= backoff[node]
            if node == 0:
                result[i] = weight / vocab_size
                break
            node = parents[node]
    return result


@njit(cache=True)
def dense_distribution(slots, entry_start, entry_tokens, probability, backoff, context, max_context, vocab_size):
    """(V,) the distribution after context (T,): from the empty context down to the longest known one."""
    result = np.full(vocab_size, 1.0 / vocab_size)
    node = np.int64(0)
    matched = 0
    while True:
        for w in range(vocab_size):
            result[w] *= backoff[node]
        for entry in range(entry_start[node], entry_start[node + 1]):
            result[entry_tokens[entry]] = probability[entry]
        if matched == max_context or matched == len(context):
            return result
        node = _find(slots, node, context[len(context) - 1 - matched])
        if node < 0:
            return result
        matched += 1


@njit(cache=True)
def context_levels(parents):
    """(C,) int64 length of each context; a parent must stand before its children."""
    levels = np.zeros(len(parents), np.int64)
    for node in range(1, len(parents)):
        levels[node] = levels[parents[node]] + 1
    return levels
