"""A binary heap of items 0..N-1 by priority, largest first, in arrays that the caller owns: nothing is allocated.

`place` says where an item lies, so that the priority of one that is already in can be raised.
"""

from typing import NamedTuple

import numpy as np

from .jit import lean


class Heap(NamedTuple):
    """Room for every one of N items once."""

    items: np.ndarray  # (N,) int64, a binary tree: the children of i are 2i + 1 and 2i + 2
    place: np.ndarray  # (N,) int64 where each item lies, -1 where it doesn't
    priority: np.ndarray  # (N,) of each item
    size: np.ndarray  # (1,) int64


def new_heap(n: int) -> Heap:
    """An empty heap for n items."""
    return Heap(np.zeros(n, np.int64), np.full(n, -1), np.zeros(n), np.zeros(1, np.int64))


@lean
def raise_to(heap, item, priority):
    """Put the item in with this priority; one that is in keeps the larger of its two."""
    i = heap.place[item]
    if i < 0:
        i = heap.size[0]
        heap.size[0] = i + 1
    elif heap.priority[item] >= priority:
        return
    heap.priority[item] = priority
    while i > 0:
        parent = (i - 1) >> 1
        above = heap.items[parent]
        if heap.priority[above] >= priority:
            break
        heap.items[i], heap.place[above] = above, i
        i = parent
    heap.items[i], heap.place[item] = item, i


@lean
def pop(heap):
    """Take out the item of the largest priority; the heap must not be empty."""
    top, size = heap.items[0], heap.size[0] - 1
    heap.size[0], heap.place[top] = size, -1
    if size > 0:
        last, i = heap.items[size], 0
        priority = heap.priority[last]
        while 2 * i + 1 < size:
            child = 2 * i + 1
            if child + 1 < size and heap.priority[heap.items[child + 1]] > heap.priority[heap.items[child]]:
                child += 1
            below = heap.items[child]
            if heap.priority[below] <= priority:
                break
            heap.items[i], heap.place[below] = below, i
            i = child
        heap.items[i], heap.place[last] = last, i
    return top
