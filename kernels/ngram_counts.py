"""Counting n-grams: every position's context, lengthened to the left token by token, and the labels behind each.

The trie of contexts is described in `kernels.ngram`. A context that stands at one place only has one extension, which is new:
it needs no look-up, and of long contexts those are the most.
"""

import numpy as np
from numba import njit

from .ngram import insert


@njit(cache=True)
def _grown(slots):
    """The hash table four times as large."""
    larger = np.full((4 * len(slots), 2), np.int64(-1))
    for i in range(len(slots)):
        if slots[i, 1] != -1:
            insert(larger, slots[i, 0] >> 32, slots[i, 0] & 0xFFFFFFFF, slots[i, 1])
    return larger


@njit(cache=True)
def _longer(array, size):
    larger = np.empty(size, array.dtype)
    larger[: len(array)] = array
    return larger


@njit(cache=True)
def _extend(nodes, visits, tokens, labels, depth, level, first, start_token, slots, parents, node_tokens, counts, keys, at):
    """`extend_contexts` until the text ends or the room for new nodes; changes at[:] = position, nodes, hashed nodes, keys.

    A loop of its own: where the arrays may be replaced in the loop, counting the references to them takes half of the time.
    """
    i, count, hashed, left = at[0], at[1], at[2], at[3]
    base = first - len(visits)
    while i < len(nodes) and count < len(parents) and 2 * hashed < len(slots):
        node = np.int64(nodes[i])
        if node >= 0 and depth[i] < level:
            nodes[i] = -1
        elif node >= 0:
            token = np.int64(tokens[i - level - 1]) if depth[i] > level else np.int64(start_token)
            child = first + count
            if visits[node - base] > 1:
                child = insert(slots, node, token, child)
                hashed += child == first + count
            if child == first + count:
                parents[count], node_tokens[count], counts[count] = node, token, 0
                count += 1
            counts[child - first] += 1
            nodes[i] = child
            keys[left] = child << 32 | np.int64(labels[i])
            left += 1
        i += 1
    at[0], at[1], at[2], at[3] = i, count, hashed, left


@njit(cache=True)
def extend_contexts(nodes, visits, tokens, labels, depth, level, first, start_token):
    """Lengthen each position's context by one token to the left.

    :param nodes: (N,) int32 node of the context of length `level` before each position, -1 where the text begins later; changed
        in place to the nodes of length level + 1
    :param visits: (M,) int32 number of positions at each node of this length, the first of which is first - M
    :param tokens: (N,) the text
    :param labels: (N,) what is counted behind each context
    :param depth: (N,) int32 number of tokens between the beginning of the text and the position
    :param first: id of the first new node
    :param start_token: stands before the first token of a text
    :return: parents, tokens, visits of the new nodes, in order of appearance; (K,) int64 node << 32 | label of the positions that
        are left
    """
    room = 2048
    slots = np.full((2 * room, 2), np.int64(-1))
    parents, node_tokens, counts = np.empty(room, np.int32), np.empty(room, np.int32), np.empty(room, np.int32)
    keys, at = np.empty(len(nodes), np.int64), np.zeros(4, np.int64)
    while at[0] < len(nodes):
        _extend(nodes, visits, tokens, labels, depth, level, first, start_token, slots, parents, node_tokens, counts, keys, at)
        if at[1] == room:
            room *= 2
            parents, node_tokens, counts = _longer(parents, room), _longer(node_tokens, room), _longer(counts, room)
        if 2 * at[2] >= len(slots):
            slots = _grown(slots)
    count = at[1]
    return parents[:count].copy(), node_tokens[:count].copy(), counts[:count].copy(), keys[: at[3]]


@njit(cache=True)
def runs(keys):
    """Distinct values of sorted `keys` (N,), and how often each stands there."""
    values, counts = np.empty(len(keys), np.int64), np.empty(len(keys), np.int64)
    last, begin = -1, 0
    for i in range(len(keys)):
        if i == 0 or keys[i] != keys[i - 1]:
            if last >= 0:
                counts[last] = i - begin
            last += 1
            values[last] = keys[i]
            begin = i
    if last >= 0:
        counts[last] = len(keys) - begin
    return values[: last + 1].copy(), counts[: last + 1].copy()
