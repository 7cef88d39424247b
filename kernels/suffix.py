"""A suffix automaton that grows with its text: for any context, the longest part of its end that stands in the text, and what
followed it there (Blumer et al. 1985; as a drafter: Hu et al. 2024, SAM decoding).

A state is a set of strings that end at the same places; `link` leads to the longest shorter suffix that ends at more places.
Edges from a state form a list, and a hash table finds one of them. At most 2 N states and 3 N edges for N tokens.

N tokens   P = 2 N states   E = 3 N edges   S slots, a power of two
"""

from typing import NamedTuple

import numpy as np
from numba import njit

STATES, EDGES, TOKENS, LAST = range(4)  # entries of `size`: what is in use, and the state of the whole text


class SuffixAutomaton(NamedTuple):
    """:param size: (4,) int64 states, edges and tokens in use, last state
    :param states: (P, 5) int32 length of the longest string, link, number of places, last place, first edge (-1: none)
    :param edges: (E, 4) int32 from, token, to, next edge of the same state
    :param slots: (S,) int32 edge by (state, token), -1 where empty
    """

    size: np.ndarray
    states: np.ndarray
    edges: np.ndarray
    slots: np.ndarray


LENGTH, LINK, COUNT, PLACE, HEAD = range(5)


def empty(capacity: int) -> SuffixAutomaton:
    """An automaton of no text with room for `capacity` tokens."""
    states, edges = np.zeros((2 * capacity + 2, 5), np.int32), np.zeros((3 * capacity + 3, 4), np.int32)
    slots = np.full(1 << int(6 * capacity + 6).bit_length(), -1, np.int32)
    automaton = SuffixAutomaton(np.zeros(4, np.int64), states, edges, slots)
    clear(automaton)
    return automaton


@njit(cache=True)
def clear(automaton):
    """Forget the text."""
    size, states, _, slots = automaton
    slots[:] = -1
    states[0] = 0
    states[0, LINK], states[0, PLACE], states[0, HEAD] = -1, -1, -1
    size[STATES], size[EDGES], size[TOKENS], size[LAST] = 1, 0, 0, 0


@njit(cache=True)
def _slot(edges, slots, state, token):
    """Where the edge of `state` by `token` is, or belongs."""
    mask = len(slots) - 1
    h = (np.uint64(state) << np.uint64(32) | np.uint64(token)) * np.uint64(0x9E3779B97F4A7C15)
    slot = np.int64(h >> np.uint64(32)) & mask
    while slots[slot] != -1 and (edges[slots[slot], 0] != state or edges[slots[slot], 1] != token):
        slot = (slot + 1) & mask
    return slot


@njit(cache=True)
def target(automaton, state, token):
    """The state after `token`, or -1."""
    _, _, edges, slots = automaton
    edge = slots[_slot(edges, slots, state, token)]
    return np.int64(edges[edge, 2]) if edge >= 0 else np.int64(-1)


@njit(cache=True)
def _connect(automaton, state, token, to):
    size, states, edges, slots = automaton
    edge = size[EDGES]
    size[EDGES] += 1
    slots[_slot(edges, slots, state, token)] = edge
    edges[edge, 0], edges[edge, 1], edges[edge, 2], edges[edge, 3] = state, token, to, states[state, HEAD]
    states[state, HEAD] = edge


@njit(cache=True)
def _divide(automaton, state, before, token):
    """Split from `state` its strings that are no longer than those of `before` and `token`, which end at more places."""
    size, states, edges, slots = automaton
    part = size[STATES]
    size[STATES] += 1
    states[part] = states[state]
    states[part, LENGTH], states[part, HEAD] = states[before, LENGTH] + 1, -1
    edge = states[state, HEAD]
    while edge >= 0:
        _connect(automaton, part, edges[edge, 1], edges[edge, 2])
        edge = edges[edge, 3]
    states[state, LINK] = part
    while before >= 0:
        edge = slots[_slot(edges, slots, before, token)]
        if edge < 0 or edges[edge, 2] != state:
            break
        edges[edge, 2] = part
        before = np.int64(states[before, LINK])
    return part


@njit(cache=True)
def extend(automaton, tokens):
    """The text goes on with `tokens` (T,). There must be room.

    Finding the places of all suffixes anew takes time in proportion to the chain of links: a few steps in ordinary text, up to
    the length of the text where it repeats one token.
    """
    size, states, _, _ = automaton
    for token in tokens:
        new, before = size[STATES], size[LAST]
        size[STATES] += 1
        states[new, LENGTH], states[new, LINK] = states[before, LENGTH] + 1, 0
        states[new, COUNT], states[new, HEAD] = 0, -1
        to = np.int64(-1)
        while before >= 0:
            to = target(automaton, before, token)
            if to >= 0:
                break
            _connect(automaton, before, token, new)
            before = np.int64(states[before, LINK])
        if before >= 0:
            if states[before, LENGTH] + 1 != states[to, LENGTH]:
                to = _divide(automaton, to, before, token)
            states[new, LINK] = to
        state = new
        while state >= 0:
            states[state, COUNT] += 1
            states[state, PLACE] = size[TOKENS]
            state = np.int64(states[state, LINK])
        size[TOKENS] += 1
        size[LAST] = new


@njit(cache=True)
def advance(automaton, state, length, token):
    """Follow a context through the text: the longest part of its end that stands there, one token later.

    :param state, length: state and length of the longest part before `token`
    :return: state, length after it
    """
    states = automaton.states
    while state >= 0:
        to = target(automaton, state, token)
        if to >= 0:
            return to, length + 1
        state = np.int64(states[state, LINK])
        length = np.int64(states[max(state, 0), LENGTH])
    return np.int64(0), np.int64(0)


@njit(cache=True)
def followers(automaton, state, length, weights):
    """How often each token followed the longest part of a context that anything followed.

    :param weights: (V,) float64, overwritten: the counts
    :return: the token that followed most often, of several the one that did so last (0 in an empty text); its count; number of
        places; distinct tokens; length of the part
    """
    _, states, edges, _ = automaton
    weights[:] = 0.0
    while state > 0 and states[state, HEAD] < 0:
        state = np.int64(states[state, LINK])
        length = np.int64(states[state, LENGTH])
    token, most, last, total, distinct = 0, 0, -1, 0, 0
    edge = np.int64(states[state, HEAD])
    while edge >= 0:
        to = edges[edge, 2]
        count, place = states[to, COUNT], states[to, PLACE]
        weights[edges[edge, 1]] = count
        total += count
        distinct += 1
        if count > most or (count == most and place > last):
            token, most, last = edges[edge, 1], count, place
        edge = np.int64(edges[edge, 3])
    return token, most, total, distinct, length


@njit(cache=True)
def lookup(text, end, longest):
    """Prompt lookup: the longest n <= `longest` whose last n tokens of text[:end] stood there before, and what followed.

    :return: the token that followed the most recent of these places (-1: the last token is new), n, number of the places, how
        many of them the same token followed
    """
    token, n, places, same = np.int64(-1), 0, 0, 0
    for i in range(end - 1, 0, -1):
        m = 0
        while m < longest and m < i and text[i - 1 - m] == text[end - 1 - m]:
            m += 1
        if m > n:
            token, n, places, same = np.int64(text[i]), m, 0, 0
        if m == n and n > 0:
            places += 1
            same += text[i] == token
    return token, n, places, same
