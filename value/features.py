"""Feature maps for linear value functions: one-hot, state aggregation, polynomial, Fourier, radial basis, tiles.

The maps are pure: points (N, D) in, feature matrix X (N, F) out. `StateFeatures` holds the features of finitely many states, only
those that aren't zero, so that a table (one-hot features) costs a compiled rule one addition a state and a dense matrix F.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from tdraft.kernels.jit import lean

from .hashing import HashedFeatures
from .periodic import PeriodicTiles
from .tiles import TileCoding


class StateFeatures(NamedTuple):
    """Features of S states, of which at most T aren't zero; shorter rows are padded with index 0 and value 0."""

    index: np.ndarray  # (S, T) int64 in 0..F-1
    value: np.ndarray  # (S, T) float64
    n_features: int  # F

    def matrix(self) -> np.ndarray:
        """X (S, F)."""
        dense = np.zeros((len(self.index), self.n_features))
        np.add.at(dense, (np.arange(len(self.index))[:, None], self.index), self.value)
        return dense


def state_features(matrix: ArrayLike) -> StateFeatures:
    """The features of S states from X (S, F).

    :raises ValueError: not a matrix, empty, or with entries that are not finite
    """
    x = np.asarray(matrix, np.float64)
    if x.ndim != 2 or not x.size or not np.isfinite(x).all():
        raise ValueError(f"features must be a finite (S, F) matrix, got shape {x.shape}")
    width = max(1, int((x != 0).sum(axis=1).max()))
    order = np.argsort(x == 0, axis=1, kind="stable")[:, :width]  # the non-zero ones first, in their order
    value = np.take_along_axis(x, order, axis=1)
    return StateFeatures(np.where(value != 0, order, 0).astype(np.int64), value, x.shape[1])


def one_hot(n_states: int) -> StateFeatures:
    """X = I: a table of S values (Sutton & Barto sec. 9.3)."""
    return aggregation(n_states, n_states)


def aggregation(n_states: int, n_groups: int) -> StateFeatures:
    """Groups of neighbouring states that share one value, of equal size where n_groups divides n_states (S&B sec. 9.3).

    :raises ValueError: n_groups outside 1..n_states
    """
    if not 1 <= n_groups <= n_states:
        raise ValueError(f"n_groups must be in 1..{n_states}, got {n_groups}")
    groups = np.arange(n_states, dtype=np.int64) * n_groups // n_states
    return StateFeatures(groups[:, None], np.ones((n_states, 1)), n_groups)


def active_features(points: ArrayLike, features: TileCoding | PeriodicTiles | HashedFeatures) -> StateFeatures:
    """Tile coding of N points: T ones a row, at the tiles that hold the point (S&B sec. 9.5.4).

    :param points: (N, D), or (N,) for D = 1
    """
    x, rule, count = _points(points), features.rule, features.n_active
    index = np.array([[rule(features, point, t) for t in range(count)] for point in x], np.int64)
    return StateFeatures(index, np.ones(index.shape), features.n_features)


def polynomial(points: ArrayLike, order: int) -> np.ndarray:
    """x_i(s) = prod_d s_d ** c_{i,d}, for all c in {0..order}^D   (S&B eq. 9.17).

    :param points: (N, D), or (N,) for D = 1; scaled to about [0, 1]
    :return: (N, (order + 1) ** D), the last dimension's exponent runs fastest
    """
    x = _points(points)
    return (x[:, None, :] ** _exponents(x.shape[1], order)).prod(axis=2)


def fourier(points: ArrayLike, order: int) -> np.ndarray:
    """x_i(s) = cos(pi * s . c_i), for all c in {0..order}^D   (Konidaris et al. 2011; S&B eq. 9.18).

    :param points: (N, D), or (N,) for D = 1; in [0, 1]
    :return: (N, (order + 1) ** D), the last dimension's frequency runs fastest
    """
    x = _points(points)
    return np.cos(np.pi * x @ _exponents(x.shape[1], order).T)


def radial_basis(points: ArrayLike, centres: ArrayLike, width: float) -> np.ndarray:
    """x_i(s) = exp(-|s - c_i|^2 / (2 width^2))   (S&B sec. 9.5.5).

    :param points: (N, D), or (N,) for D = 1
    :param centres: (F, D), or (F,) for D = 1
    :return: (N, F)
    :raises ValueError: width <= 0, or centres of another dimension
    """
    x, c = _points(points), _points(centres)
    if not width > 0 or x.shape[1] != c.shape[1]:
        raise ValueError(f"expected width > 0 and centres of dimension {x.shape[1]}, got {width} and dimension {c.shape[1]}")
    return np.exp(-((x[:, None, :] - c) ** 2).sum(axis=2) / (2.0 * width**2))


def _points(points: ArrayLike) -> np.ndarray:
    x = np.asarray(points, np.float64)
    x = x[:, None] if x.ndim == 1 else x
    if x.ndim != 2 or not np.isfinite(x).all():
        raise ValueError(f"expected finite points (N, D) or (N,), got shape {x.shape}")
    return np.ascontiguousarray(x)


def _exponents(n_dims: int, order: int) -> np.ndarray:
    """((order + 1) ** D, D): all vectors of integers 0..order."""
    if order < 0 or (order + 1) ** n_dims > 1 << 20:
        raise ValueError(f"order must be at least 0 and give at most 2**20 features, got {order} in {n_dims} dimensions")
    return np.indices((order + 1,) * n_dims).reshape(n_dims, -1).T


@lean
def state_value(w, features, state):
    """v(s) = w . x(s), for `StateFeatures` and w (F,)."""
    total = 0.0
    for t in range(features.index.shape[1]):
        total += w[features.index[state, t]] * features.value[state, t]
    return total


@lean
def add_features(w, features, state, change):
    """w += change * x(s), in place."""
    for t in range(features.index.shape[1]):
        w[features.index[state, t]] += change * features.value[state, t]


class FourierBasis(NamedTuple):
    """Fourier features of vector observations, for compiled rules; `fourier_basis` makes one."""

    low: np.ndarray  # (D,)
    width: np.ndarray  # (D,) high - low
    frequencies: np.ndarray  # (F, D)

    @property
    def rule(self):
        """Compiled `rule(features, obs, t)`, the index of the t-th active feature: t, as all are."""
        return every_index

    @property
    def value_rule(self):
        """Compiled `rule(features, obs, t)`, the value of the t-th active feature."""
        return fourier_value

    @property
    def n_active(self) -> int:
        return len(self.frequencies)

    @property
    def n_features(self) -> int:
        return len(self.frequencies)

    @property
    def n_inputs(self) -> int:
        return len(self.low)


@lean
def every_index(features, obs, t):
    return t


@lean
def fourier_value(features, obs, t):
    """cos(pi * c_t . (obs - low) / (high - low)), observations outside the bounds clipped to them."""
    total = 0.0
    for d in range(len(features.low)):
        total += features.frequencies[t, d] * min(max((obs[d] - features.low[d]) / features.width[d], 0.0), 1.0)
    return np.cos(np.pi * total)


def fourier_basis(low: ArrayLike, high: ArrayLike, order: int) -> FourierBasis:
    """`fourier` over a box.

    :param low, high: (D,) finite bounds; an observation outside is clipped to them
    :raises ValueError: bounds that are not finite or not in order
    """
    low, high = np.atleast_1d(np.asarray(low, np.float64)), np.atleast_1d(np.asarray(high, np.float64))
    if low.shape != high.shape or low.ndim != 1 or not (np.isfinite([low, high]).all() and (low < high).all()):
        raise ValueError(f"expected finite bounds with low < high, got {low.tolist()} and {high.tolist()}")
    return FourierBasis(low, high - low, _exponents(len(low), order).astype(np.float64))
