"""A suffix array: the places of a text in the order of what stands there, in which all places of any string lie together.

Sorting doubles the length that is compared, of places not yet told apart only (Manber & Myers 1993; Larsson & Sadakane 2007). The
search is binary in places and in lengths, since a string stands wherever a longer one that begins with it does.

N tokens   V vocabulary
"""

import numpy as np
from numba import njit


def suffix_array(tokens: np.ndarray) -> np.ndarray:
    """(N,) int64 places of tokens (N,) >= 0 in the order of the text from there on; the end comes before any token."""
    n = len(tokens)
    bits = int(tokens.max(initial=0) + 1).bit_length()
    known = 62 // bits  # tokens compared so far
    padded = np.concatenate([tokens + 1, np.zeros(known, np.int64)])
    keys = np.zeros(n, np.int64)
    for j in range(known):
        keys = keys << bits | padded[j : n + j]
    order = np.argsort(keys)
    keys, rank, open_places = keys[order], np.empty(n + 1, np.int64), np.arange(n)
    rank[n] = -1
    while len(open_places):
        first = np.ones(len(keys), bool)  # of its group
        first[1:] = keys[1:] != keys[:-1]
        rank[order[open_places]] = np.maximum.accumulate(np.where(first, open_places, 0))
        alone = first & np.append(first[1:], True)
        open_places = open_places[~alone]
        starts = order[open_places]
        keys = rank[starts] << 32 | (rank[np.minimum(starts + known, n)] + 1)
        sort = np.argsort(keys)
        order[open_places], keys = starts[sort], keys[sort]
        known *= 2
    return order


@njit(cache=True)
def _bound(text, places, low, high, offset, token, upper):
    """First index in low..high whose token at `offset` is not below (`upper`: is above) `token`; the end of the text is below."""
    while low < high:
        middle = (low + high) // 2
        at = places[middle] + offset
        here = text[at] if at < len(text) else -1
        if here < token or (upper and here == token):
            low = middle + 1
        else:
            high = middle
    return low


@njit(cache=True)
def find(text, places, context, begin, end):
    """low, high: places[low:high] are those where context[begin:end] stands in the text."""
    low, high = 0, len(places)
    for i in range(begin, end):
        low = _bound(text, places, low, high, i - begin, context[i], False)
        high = _bound(text, places, low, high, i - begin, context[i], True)
        if low == high:
            break
    return low, high


@njit(cache=True)
def longest(text, places, context, end, most):
    """The longest n <= most for which context[end - n : end] stands in the text with a token behind it."""
    low, high = 0, most
    while low < high:
        n = (low + high + 1) // 2
        a, b = find(text, places, context, end - n, end)
        if b - a > 1 or (b > a and places[a] + n < len(text)):
            low = n
        else:
            high = n - 1
    return low


@njit(cache=True)
def _distinct(text, places, low, high, offset):
    """Number of different tokens at `offset` behind places[low:high], all of which have one."""
    count = 0
    while low < high:
        count += 1
        low = _bound(text, places, low, high, offset, text[places[low] + offset], True)
    return count


@njit(cache=True)
def chain(text, places, context, end, most):
    """The ends of a context that stand at different numbers of places, from the longest to the empty one.

    :return: (K, 4) int64: length, low, high (places with a token behind them), number of different tokens there
    """
    rows = np.empty((most + 1, 4), np.int64)
    count, n = 0, longest(text, places, context, end, most)
    while True:
        low, high = find(text, places, context, end - n, end)
        size = high - low
        if low < high and places[low] + n == len(text):
            low += 1  # nothing follows the end of the text
        rows[count, 0], rows[count, 1], rows[count, 2] = n, low, high
        rows[count, 3] = _distinct(text, places, low, high, n)
        count += 1
        if n == 0:
            return rows[:count]
        least, most_left = 0, n - 1  # the longest shorter end that stands at more places
        while least < most_left:
            middle = (least + most_left + 1) // 2
            a, b = find(text, places, context, end - middle, end)
            if b - a > size:
                least = middle
            else:
                most_left = middle - 1
        n = least


@njit(cache=True)
def witten_bell(text, places, rows, token, vocab_size):
    """p(token) along a `chain`: p = (c(token) + T p_shorter) / (n + T), from the uniform distribution up."""
    p = 1.0 / vocab_size
    for k in range(len(rows) - 1, -1, -1):
        n, low, high, distinct = rows[k]
        a = _bound(text, places, low, high, n, token, False)
        b = _bound(text, places, a, high, n, token, True)
        p = (b - a + distinct * p) / (high - low + distinct)
    return p


@njit(cache=True)
def text_probabilities(text, places, tokens, vocab_size):
    """(N,) p of each of tokens (N,) after all those before it, and (N,) int64 length of the longest context found."""
    p, length = np.empty(len(tokens)), np.zeros(len(tokens), np.int64)
    for i in range(len(tokens)):
        most = min(i, length[i - 1] + 1) if i else 0
        rows = chain(text, places, tokens, i, most)
        length[i] = rows[0, 0]
        p[i] = witten_bell(text, places, rows, tokens[i], vocab_size)
    return p, length
