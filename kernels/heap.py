"""A binary heap of items 0..N-1 by priority, largest first, in arrays that the caller owns: nothing is allocated.

`place` says where an item lies, so that the priority of one that is already in can be raised. Indices are unsigned where they
are used: Numba then leaves out the check for negative ones, which is an eighth of the time.
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
    j = np.uint64(item)
    i = heap.place[j]
    if i < 0:
        i = heap.size[0]
        heap.size[0] = i + 1
    elif heap.priority[j] >= priority:
        return
    heap.priority[j] = priority
    while i > 0:
        parent = (i - 1) >> 1
        above = heap.items[np.uint64(parent)]
        if heap.priority[np.uint64(above)] >= priority:
            break
        heap.items[np.uint64(i)], heap.place[np.uint64(above)] = above, i
        i = parent
    heap.items[np.uint64(i)], heap.place[j] = item, i


@lean
def pop(heap):
    """Take out the item of the largest priority; the heap must not be empty."""
    top, size = heap.items[0], heap.size[0] - 1
    heap.size[0], heap.place[np.uint64(top)] = size, -1
    if size > 0:
        last, i = heap.items[np.uint64(size)], 0
        priority = heap.priority[np.uint64(last)]
        while 2 * i + 1 < size:
            child = 2 * i + 1
            below = heap.items[np.uint64(child)]
            if child + 1 < size:
                other = heap.items[np.uint64(child + 1)]
                if heap.priority[np.uint64(other)] > heap.priority[np.uint64(below)]:
                    child += 1
                    below = other
            if heap.priority[np.uint64(below)] <= priority:
                break
            heap.items[np.uint64(i)], heap.place[np.uint64(below)] = below, i
            i = child
        heap.items[np.uint64(i)], heap.place[np.uint64(last)] = last, i
    return top
