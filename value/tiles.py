"""Tile coding over chosen dimensions, with bin edges that may be uneven (Sutton & Barto sec. 9.5.4).

A tiling cuts one to a few dimensions of the observation at given edges; an observation falls into exactly one of its tiles. A
value function is a sum of one weight a tiling. Tilings over different subsets of dimensions give an additive model, tilings over
the same dimensions with shifted edges the classic one.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from tdraft.kernels.jit import lean

MAX_FEATURES = 1 << 26


class TileCoding(NamedTuple):
    """T tilings as arrays, which Numba takes as they are. Make one with `tile_coding` or `uniform_tiles`."""

    dims: np.ndarray  # (T, D) int64: dimension of the observation, -1 where unused
    edges: np.ndarray  # (T, D, E) float64, increasing, padded with NaN
    strides: np.ndarray  # (T, D) int64: distance between the indices of neighbouring tiles
    offsets: np.ndarray  # (T + 1,) int64: first index of each tiling, and the number of all tiles

    @property
    def rule(self) -> Any:
        """Compiled `rule(features, obs, t)`, the index of the t-th active feature; every kind of features has one."""
        return tile_index

    @property
    def n_active(self) -> int:
        return len(self.dims)

    @property
    def n_inputs(self) -> int:
        """Length of the shortest observation that has all the dimensions."""
        return int(self.dims.max()) + 1

    @property
    def n_features(self) -> int:
        return int(self.offsets[-1])


def tile_coding(tilings: Sequence[Mapping[int, ArrayLike]]) -> TileCoding:
    """Tilings from a list of {dimension: increasing bin edges}; n edges make n + 1 bins, a value on an edge lies in the upper
    one.

    :param tilings: for example `[{0: (0.5,)}, {0: (0.2, 0.8), 3: (0.1, 0.5)}]`: 2 + 3 * 3 tiles
    :raises ValueError: no tilings, edges that do not increase or are not finite, or more than 2**26 tiles
    """
    if not tilings or not all(tilings):
        raise ValueError(f"tile coding needs at least one tiling, each over at least one dimension, got {tilings}")
    width = max(len(t) for t in tilings)
    depth = max(np.size(e) for t in tilings for e in t.values())
    dims = np.full((len(tilings), width), -1, np.int64)
    edges = np.full((len(tilings), width, max(depth, 1)), np.nan)
    strides = np.zeros((len(tilings), width), np.int64)
    offsets = np.zeros(len(tilings) + 1, np.int64)
    for t, tiling in enumerate(tilings):
        size = 1
        for k, (dim, cuts) in enumerate(tiling.items()):
            cuts = np.asarray(cuts, np.float64)
            if dim < 0:
                raise ValueError(f"dimensions count from 0, got {dim} in tiling {t}")
            if cuts.ndim != 1 or not np.isfinite(cuts).all() or np.any(np.diff(cuts) <= 0):
                raise ValueError(f"edges of dimension {dim} must be finite and increase, got {cuts.tolist()} in tiling {t}")
            dims[t, k], strides[t, k], edges[t, k, : len(cuts)] = dim, size, cuts
            size *= len(cuts) + 1
        offsets[t + 1] = offsets[t] + size
        if offsets[t + 1] > MAX_FEATURES:
            raise ValueError(
                f"{offsets[t + 1]:,} tiles are more than {MAX_FEATURES:,}: use fewer edges, or fewer dimensions a tiling"
            )
    return TileCoding(dims, edges, strides, offsets)


def uniform_tiles(low, high, *, bins: int = 8, tilings: int = 8) -> TileCoding:
    """The classic grid: `tilings` copies over all dimensions, shifted by 1, 3, 5, ... parts of a tile's width (S&B fig. 9.11).

    :param low, high: (D,) finite bounds of the observation; one outside counts as the nearest inside
    :param bins: tiles that span a dimension; shifted copies have one more
    :param tilings: copies, best a power of two and at least 4 * D
    """
    low, high = np.asarray(low, np.float64), np.asarray(high, np.float64)
    if (
        low.shape != high.shape
        or low.ndim != 1
        or not (np.isfinite(low).all() and np.isfinite(high).all() and (low < high).all())
    ):
        raise ValueError(f"tiles need finite bounds with low < high, got {low.tolist()} and {high.tolist()}")
    if bins < 1 or tilings < 1:
        raise ValueError(f"bins and tilings must be at least 1, got {bins} and {tilings}")
    width = (high - low) / bins
    shifts = (np.arange(tilings)[:, None] * (2 * np.arange(len(low)) + 1)) % tilings / tilings  # (T, D) in tile widths
    cuts = low + width * (np.arange(bins)[:, None, None] + 1 - shifts)  # (bins, T, D)
    return tile_coding([{d: cuts[:, t, d] for d in range(len(low))} for t in range(tilings)])


@lean
def bin_of(edges, x):
    """The number of edges at or below x; padding with NaN counts for nothing. Without branches, so that it vectorises."""
    place = 0
    for e in range(len(edges)):
        place += 1 if x >= edges[e] else 0
    return place


@lean
def tile_index(tiles, obs, t):
    """The tile of tiling t that holds the observation.

    :param tiles: a `TileCoding`
    :param obs: (n,) float64 observation; NaN falls into the lowest bin
    :return: its index among all tiles
    """
    index = tiles.offsets[t]
    for k in range(tiles.dims.shape[1]):
        dim = tiles.dims[t, k]
        if dim < 0:
            break
        index += bin_of(tiles.edges[t, k], obs[dim]) * tiles.strides[t, k]
    return index


@lean
def linear_value(weights, features, a):
    """Value of action a: the sum over the active features (T,) of weights[features[t], a], weights (F, A)."""
    total = 0.0
    for t in range(len(features)):
        total += weights[features[t], a]
    return total


@lean
def linear_values(weights, features, out):
    """Values of all actions, `linear_value` of each, into out (A,)."""
    for a in range(len(out)):
        out[a] = linear_value(weights, features, a)
