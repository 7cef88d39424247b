"""Prediction over vector observations: the features of the last few observations are rows of a small table, in a ring.

The rules see row numbers in place of states, so that one definition serves finite states and vectors. A rule that remembers n
states needs n + 3 rows.
"""

from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from tdraft.kernels.jit import lean
from tdraft.value.features import StateFeatures


class Source(NamedTuple):
    """Where the rows come from."""

    features: Any  # TileCoding, PeriodicTiles, HashedFeatures or FourierBasis
    row: np.ndarray  # (1,) int64 the newest
    params: Any  # of the policy where it is a `Decision`, else ()
    memory: np.ndarray  # its scratch


def value_rule(features: Any) -> Any:
    """Compiled `value(features, obs, t)` of the t-th active feature, None where it is always 1."""
    return getattr(features, "value_rule", None)


def blank_rows(features: Any, count: int) -> StateFeatures:
    shape = (count, features.n_active)
    return StateFeatures(np.zeros(shape, np.int64), np.ones(shape), features.n_features)


@lru_cache(maxsize=256)
def over_vectors(begin, step, index, value, decide):
    """begin and step for vector observations, from those for states.

    :param index: compiled `rule(features, obs, t)`
    :param value: the same for the feature's value, or None for ones
    :param decide: of a `Decision` that acts, or None for probabilities that are the same everywhere
    """

    @lean
    def place(learner, obs):
        """Write the observation's features into the oldest row; returns its number."""
        source, features = learner.source, learner.features
        row = (source.row[0] + 1) % len(features.index)
        source.row[0] = row
        for t in range(features.index.shape[1]):
            features.index[row, t] = index(source.features, obs, t)
            if value is not None:
                features.value[row, t] = value(source.features, obs, t)
        if decide is not None:
            action = decide(source.params, source.memory, obs)
            for a in range(learner.behaviour.shape[1]):
                learner.behaviour[row, a] = 1.0 if a >= action else 0.0
        return row

    @lean
    def begin_vector(learner, obs, rng):
        return begin(learner, place(learner, obs), rng)

    @lean
    def step_vector(learner, reward, discount, obs, duration, rng):
        return step(learner, reward, discount, place(learner, obs), duration, rng)

    return begin_vector, step_vector


def vector_values(w: np.ndarray, features: Any, observations: np.ndarray) -> np.ndarray:
    """(n,) values of observations (n, D)."""
    index, value = features.rule, value_rule(features)
    return np.array(
        [
            sum(w[index(features, x, t)] * (value(features, x, t) if value else 1.0) for t in range(features.n_active))
            for x in np.ascontiguousarray(observations, np.float64)
        ]
    )
