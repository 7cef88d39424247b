"""Trees of drafts: the continuations that a drafter holds likeliest, to be verified in one call of the target.

The value of a node is the sum of log q along its path (EAGLE-2, Li et al. 2024, arXiv 2406.16858); a child's is at most its
parent's, so that taking the best node again and again finds the best tree of its size.
"""

import heapq
from collections.abc import Callable
from itertools import count
from typing import NamedTuple

import numpy as np


class Tree(NamedTuple):
    """M drafted tokens, parents before their children."""

    tokens: np.ndarray  # (M,) int64
    parents: np.ndarray  # (M,) int64, the node that a node follows, -1 for the text
    log_q: np.ndarray  # (M,) float64, the drafter's log probability of the path from the text to the node

    @property
    def depth(self) -> int:
        """Length of the longest path."""
        return int(depths(self.parents).max(initial=0))


def depths(parents: np.ndarray) -> np.ndarray:
    """(M,) number of nodes on the path to each node, itself included; parents[i] < i."""
    out = np.ones(len(parents), np.int64)
    for node, parent in enumerate(parents.tolist()):
        if parent >= 0:
            out[node] += out[parent]
    return out


def best_first(distribution: Callable[[list[int]], np.ndarray], nodes: int, depth: int) -> Tree:
    """The `nodes` paths of the largest probability, none longer than `depth`; fewer where no others have any.

    :param distribution: from a path of drafted tokens to the probabilities (V,) of the one after it; called once for each node
        but those at the full depth and the last
    """
    if nodes < 1 or depth < 1:
        raise ValueError(f"a tree needs at least 1 node and depth 1, got nodes={nodes} and depth={depth}")
    tokens: list[int] = []
    parents: list[int] = []
    values: list[float] = []
    paths: list[list[int]] = []
    waiting: list[tuple[float, int, int, int]] = []  # (-value, when it was found, parent, token): the best comes out first
    order = count()

    def expand(node: int) -> None:
        value, path = (values[node], paths[node]) if node >= 0 else (0.0, [])
        p = distribution(path)
        for token in np.argsort(-p, kind="stable")[: nodes - len(tokens)].tolist():
            if p[token] > 0.0:
                heapq.heappush(waiting, (-(value + float(np.log(p[token]))), next(order), node, token))

    expand(-1)
    while waiting and len(tokens) < nodes:
        value, _, parent, token = heapq.heappop(waiting)
        tokens.append(token)
        parents.append(parent)
        values.append(-value)
        paths.append([*(paths[parent] if parent >= 0 else []), token])
        if len(paths[-1]) < depth and len(tokens) < nodes:
            expand(len(tokens) - 1)
    return Tree(np.array(tokens, np.int64), np.array(parents, np.int64), np.array(values))
