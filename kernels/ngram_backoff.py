"""Loops of back-off models: a trie of whole n-grams with log10 probabilities and back-off weights, as ARPA files hold them.

Node 0 is empty. Nodes 1..V are the words, node V + 1 is the beginning of a text, token V. The child of a node by token t is the
same n-gram with t *before* it, so that a node's parent is its suffix; children come after their parents. A word is scored by
walking from its unigram to the left: as many look-ups as tokens match, and the weights of the contexts are those of the nodes
that the word before ended in (Heafield 2011 keeps the same state).

A node's place in the hash table comes from the tokens alone, not from its parent's number: the processor need not wait for one
look-up to begin the next. The key that is compared is exact: parent << 32 | token.

V vocabulary   M nodes   S slots, a power of two
"""

import numpy as np
from numba import njit

_SEED = np.uint64(0x243F6A8885A308D3)
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


@njit(cache=True)
def _mix(h, token):
    """Hash of an n-gram that is one token longer."""
    h = (h ^ np.uint64(token)) * _GOLDEN
    return h ^ (h >> np.uint64(32))


@njit(cache=True)
def _find(slots, h, parent, token):
    """The child of `parent` by `token`, whose n-gram has the hash h; -1 where there is none."""
    mask, key = len(slots) - 1, np.int64(parent) << 32 | np.int64(token)
    slot = np.int64(h) & mask
    while slots[slot, 1] != -1 and slots[slot, 0] != key:
        slot = (slot + 1) & mask
    return slots[slot, 1]


@njit(cache=True)
def build_slots(parents, tokens):
    """(S, 2) int64 open-addressing table: parent << 32 | token, child (-1 where empty); at most half full.

    :param parents: (M,) parent of each node, which stands before it
    :param tokens: (M,) token by which the parent leads here
    """
    size = 16
    while size < 2 * len(parents):
        size *= 2
    slots, hashes = np.full((size, 2), np.int64(-1)), np.full(len(parents), _SEED)
    for node in range(1, len(parents)):
        hashes[node] = _mix(hashes[parents[node]], tokens[node])
        slot = np.int64(hashes[node]) & (size - 1)
        while slots[slot, 1] != -1:
            slot = (slot + 1) & (size - 1)
        slots[slot, 0], slots[slot, 1] = np.int64(parents[node]) << 32 | np.int64(tokens[node]), node
    return slots


@njit(cache=True)
def score_tokens(slots, values, tokens, order, vocab_size, uniform):
    """log10 p of each token after those before it, back to the nearest beginning of a text.

    :param slots: (S, 2) int64 hash table of `build_slots`
    :param values: (M, 2) float32 log10 probability and log10 back-off weight of each node
    :param tokens: (N,) 0..V, of which V begins a text and is itself not scored (0.0)
    :param order: length of the longest n-grams
    :param uniform: words unseen after a context share its weight evenly (add-k); otherwise they back off
    :return: score (N,) float64, matched (N,) int32 length of the n-gram found, 0 at the beginning of a text
    """
    score, matched = np.zeros(len(tokens)), np.zeros(len(tokens), np.int32)
    before, now = np.zeros(order + 1, np.int64), np.zeros(order + 1, np.int64)
    known, seen = 0, 0  # length of the longest n-gram that ends before this token; tokens since the text began
    for i in range(len(tokens)):
        token = np.int64(tokens[i])
        if token == vocab_size:
            known, seen = min(1, order - 1), 1
            before[1] = token + 1
            continue
        node, length, h = token + 1, 1, _mix(_SEED, token)
        now[1] = node
        while length <= known:
            h = _mix(h, tokens[i - length])
            child = _find(slots, h, node, tokens[i - length])
            if child < 0:
                break
            node = child
            length += 1
            now[length] = node
        if not uniform:
            total = np.float64(values[node, 0])
            for m in range(length, known + 1):
                total += values[before[m], 1]
            score[i] = total
        elif length == min(seen, order - 1) + 1:
            score[i] = values[node, 0]
        else:
            score[i] = -np.log10(vocab_size)
            if known == min(seen, order - 1):
                score[i] += values[before[known], 1]
        matched[i] = length
        seen += 1
        known = min(length, order - 1)
        before, now = now, before
    return score, matched


@njit(cache=True)
def score_vocabulary(slots, values, context, order, vocab_size, uniform):
    """(V,) float64 log10 p of every word after context (T,), which may begin with V."""
    text = np.empty(len(context) + 1, np.int64)
    text[:-1] = context
    result = np.empty(vocab_size)
    for w in range(vocab_size):
        text[-1] = w
        result[w] = score_tokens(slots, values, text, order, vocab_size, uniform)[0][-1]
    return result


@njit(cache=True)
def context_nodes(slots, parents, tokens):
    """(C,) int64 node of the n-gram with the same tokens as each context of a trie of `kernels.ngram`, -1 where there is none."""
    nodes, hashes = np.zeros(len(parents), np.int64), np.full(len(parents), _SEED)
    for c in range(1, len(parents)):
        parent = nodes[parents[c]]
        hashes[c] = _mix(hashes[parents[c]], tokens[c])
        nodes[c] = _find(slots, hashes[c], parent, tokens[c]) if parent >= 0 else -1
    return nodes
