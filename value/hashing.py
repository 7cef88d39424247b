"""Hashed sparse features: binned dimensions, token identities and crosses of them, in one table of 2**bits weights.

Feature t of an observation is a template, one dimension or a cross of several, together with the values that it takes there: the
bin of a number, or the integer itself where the dimension holds a token. A mixing hash turns the two into an index of the table
(Weinberger et al. 2009, without the signs; Sutton & Barto sec. 9.5.4 on hashing), so that crosses of tokens need no table of
their own.

**Collisions.** With n distinct features met and m = 2**bits entries, a feature shares its weight with another with probability
1 - (1 - 1/m)**(n - 1), about n / m for n far below m, and is then learned together with it. Two active features of one
observation that collide count twice, in the values and in the updates alike. Nothing detects a collision: take bits such that m
is ten times n.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from tdraft.kernels.jit import lean

from .tiles import bin_of

MAX_BITS = 26
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


class HashedFeatures(NamedTuple):
    """T templates over n dimensions as arrays, which Numba takes as they are. Make one with `hashed_features`."""

    dims: np.ndarray  # (T, D) int64: dimensions of the observation that a template crosses, -1 where unused
    edges: np.ndarray  # (n, E) float64: bin edges of each dimension, increasing, padded with NaN
    tokens: np.ndarray  # (n,) bool: the dimension holds an integer, which is not binned
    size: np.ndarray  # (1,) int64: 2**bits

    @property
    def rule(self) -> Any:
        """Compiled `rule(features, obs, t)`, the index of the t-th active feature; every kind of features has one."""
        return hash_index

    @property
    def n_active(self) -> int:
        return len(self.dims)

    @property
    def n_features(self) -> int:
        return int(self.size[0])

    @property
    def n_inputs(self) -> int:
        """Length of the shortest observation that has all the dimensions."""
        return len(self.edges)


def hashed_features(
    edges: Mapping[int, ArrayLike],
    *,
    tokens: Sequence[int] = (),
    crosses: Sequence[Sequence[int]] = (),
    bits: int = 16,
) -> HashedFeatures:
    """A template for each dimension in `edges` and `tokens`, and one for each cross: T = their number together.

    The tokens of a dict observation `{"vector": (n,), "tokens": (k,)}` are its dimensions n to n + k - 1.

    :param edges: dimension -> increasing bin edges; e edges make e + 1 bins, a value on an edge lies in the upper one
    :param tokens: dimensions that hold integers below 2**53 in size, each a feature of its own
    :param crosses: for example `[(0, 5), (15, 16, 17)]`: combinations of two or more of those dimensions
    :param bits: log2 of the table's size, in 1..26
    :raises ValueError: bits out of range; edges that do not increase or are not finite; no, negative or doubly given dimensions;
        a cross of fewer than two different dimensions, or of one that is neither in edges nor in tokens
    """
    if not isinstance(bits, int | np.integer) or not 1 <= bits <= MAX_BITS:
        raise ValueError(f"bits must be an integer in 1..{MAX_BITS}, got {bits!r}")
    known = [*edges, *tokens]
    if not known or min(known) < 0 or len(set(known)) < len(known):
        raise ValueError(f"dimensions must be different and count from 0, at least one, got edges of {list(edges)}, {tokens=}")
    for cross in crosses:
        if len(set(cross)) < max(len(cross), 2) or not set(cross) <= set(known):
            raise ValueError(f"a cross takes two or more different dimensions out of {sorted(known)}, got {tuple(cross)}")
    cuts = {dim: np.asarray(values, np.float64) for dim, values in edges.items()}
    for dim, values in cuts.items():
        if values.ndim != 1 or not np.isfinite(values).all() or np.any(np.diff(values) <= 0):
            raise ValueError(f"edges of dimension {dim} must be finite and increase, got {values.tolist()}")
    templates = [*((dim,) for dim in known), *(tuple(cross) for cross in crosses)]
    made = HashedFeatures(
        dims=np.full((len(templates), max(map(len, templates))), -1, np.int64),
        edges=np.full((max(known) + 1, max([1, *(len(values) for values in cuts.values())])), np.nan),
        tokens=np.zeros(max(known) + 1, bool),
        size=np.array([1 << int(bits)], np.int64),
    )
    for t, template in enumerate(templates):
        made.dims[t, : len(template)] = template
    for dim, values in cuts.items():
        made.edges[dim, : len(values)] = values
    made.tokens[list(tokens)] = True
    return made


@lean
def mix(z):
    """SplitMix64's output function (Steele, Lea & Flood 2014): each input bit changes about half of the output's."""
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


@lean
def hash_index(hashed, obs, t):
    """The table's index of template t: z = mix((t + 1) g), then z = mix(z + (v + 1) g) for each value v; the lowest bits of z.

    :param hashed: a `HashedFeatures`; g is 2**64 over the golden ratio
    :param obs: (n,) float64 observation; a NaN that is binned falls into the lowest bin
    """
    z = mix(np.uint64(t + 1) * _GOLDEN)
    for k in range(hashed.dims.shape[1]):
        dim = hashed.dims[t, k]
        if dim < 0:
            break
        value = np.int64(obs[dim]) if hashed.tokens[dim] else np.int64(bin_of(hashed.edges[dim], obs[dim]))
        z = mix(z + np.uint64(value + 1) * _GOLDEN)
    return np.int64(z & np.uint64(hashed.size[0] - 1))
