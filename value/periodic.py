"""Tile coding in which chosen dimensions wrap around, as angles do (Sutton & Barto sec. 9.5.4; `tileswrap` of Sutton's software).

`TileCoding` finds a tile by comparing with edges, which may be uneven; here all are of one width, and one is found by dividing.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from tdraft.kernels.jit import lean

from .tiles import MAX_FEATURES


class PeriodicTiles(NamedTuple):
    """T tilings over D dimensions as arrays, which Numba takes as they are. Make one with `periodic_tiles`."""

    dims: np.ndarray  # (T, D) int64: dimensions of the observation, in every tiling all of them
    low: np.ndarray  # (D,) float64
    per_unit: np.ndarray  # (D,) float64: tiles per unit of the dimension
    wraps: np.ndarray  # (D,) bool
    bins: np.ndarray  # (D,) int64: tiles of a tiling along the dimension
    shifts: np.ndarray  # (T, D) float64, in widths of a tile

    @property
    def rule(self) -> Any:
        """Compiled `rule(features, obs, t)`, the index of the t-th active feature; every kind of features has one."""
        return periodic_index

    @property
    def n_active(self) -> int:
        return len(self.dims)

    @property
    def n_inputs(self) -> int:
        """Length of the shortest observation that has all the dimensions."""
        return len(self.low)

    @property
    def n_features(self) -> int:
        return len(self.dims) * int(np.prod(self.bins))


def periodic_tiles(low, high, *, periodic: Sequence[int], bins: int = 8, tilings: int = 8) -> PeriodicTiles:
    """`uniform_tiles` of which some dimensions wrap around: there a tile that reaches beyond `high` goes on at `low`.

    :param low, high: (D,) finite bounds; in a periodic dimension high - low is the period, and any observation is as good as the
        one in the bounds; in the others one outside counts as the nearest inside
    :param periodic: the dimensions that wrap around
    :param bins: tiles that span a dimension; shifted copies have one more where it doesn't wrap
    :param tilings: copies, best a power of two and at least 4 * D
    :raises ValueError: bounds that are not finite or not in order, dimensions that there are not, or more than 2**26 tiles
    """
    low, high = np.asarray(low, np.float64), np.asarray(high, np.float64)
    if low.ndim != 1 or low.shape != high.shape or not (np.isfinite([low, high]).all() and (low < high).all()):
        raise ValueError(f"tiles need finite bounds with low < high, got {low.tolist()} and {high.tolist()}")
    if bins < 1 or tilings < 1:
        raise ValueError(f"bins and tilings must be at least 1, got {bins} and {tilings}")
    if not set(periodic) <= set(range(len(low))):
        raise ValueError(f"periodic must be dimensions in 0..{len(low) - 1}, got {tuple(periodic)}")
    wraps = np.isin(np.arange(len(low)), list(periodic))
    shifts = (np.arange(tilings)[:, None] * (2 * np.arange(len(low)) + 1)) % tilings / tilings
    dims = np.tile(np.arange(len(low)), (tilings, 1))
    made = PeriodicTiles(dims, low, bins / (high - low), wraps, np.where(wraps, bins, bins + 1), shifts)
    if made.n_features > MAX_FEATURES:
        raise ValueError(f"{made.n_features:,} tiles are more than {MAX_FEATURES:,}: use fewer bins or tilings")
    return made


@lean
def periodic_index(tiles, obs, t):
    """The tile of tiling t that holds the observation.

    :param tiles: a `PeriodicTiles`
    :param obs: (n,) float64 observation; NaN falls into the lowest bin
    :return: its index among all tiles
    """
    index = t
    for k in range(tiles.dims.shape[1], 0, -1):
        d = tiles.dims[t, k - 1]
        place = np.floor((obs[d] - tiles.low[d]) * tiles.per_unit[d] + tiles.shifts[t, d])
        if tiles.wraps[d]:
            place -= tiles.bins[d] * np.floor(place / tiles.bins[d])
        place = place if place >= 0.0 else 0.0
        index = index * tiles.bins[d] + int(min(place, tiles.bins[d] - 1.0))
    return index
