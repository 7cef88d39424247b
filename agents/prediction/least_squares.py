"""Least-squares prediction: LSTD(lambda), and batch TD and batch Monte Carlo as its two ends.

Presenting the same episodes again and again to TD(0) with a small step size converges to the solution of A w = b with

    A = sum_t x_t (x_t - gamma x_{t+1})',    b = sum_t x_t r_{t+1}

which for a table is the certainty-equivalence estimate: that is LSTD(0). Monte Carlo's converges to the averages of the returns,
for features their least-squares fit: that is LSTD(1) (Boyan 1999). Weights that the data do not determine stay as they were.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from tdraft.kernels.jit import lean
from tdraft.value.features import StateFeatures, add_features

from ..settings import check
from .base import Prediction, PredictionSettings, act, ratio, tick, value


class Statistics(NamedTuple):
    """All that least squares keeps of the past. Sums are relative to the initial weights, so that b = 0 means no change."""

    a: np.ndarray  # (F, F) sum of z (x - gamma x')', or the inverse of that with `ridge` added to its diagonal
    b: np.ndarray  # (F,) sum of z * error of the initial weights
    z: np.ndarray  # (F,) trace
    decay: np.ndarray  # (1,) gamma * lambda of the last transition
    initial: np.ndarray  # (F,) weights at first
    row: np.ndarray  # (F,) scratch
    column: np.ndarray  # (F,) scratch
    lambda_: float


@lean
def begin(learner, obs, rng):
    """The trace is zero at the start of an episode."""
    learner.memory.z[:] = 0.0
    learner.memory.decay[0] = 0.0
    return act(learner, obs, rng)


@lean
def gather(learner, reward, discount, obs):
    """z = rho (gamma lambda z + x);  b += z (r + gamma v0(s') - v0(s)), v0 the initial values."""
    s, features, state, rho = learner.memory, learner.features, learner.last[0], ratio(learner)
    tick(learner, reward + discount * value(learner, obs) - value(learner, state))
    error = reward
    for t in range(features.index.shape[1]):
        error += discount * s.initial[features.index[obs, t]] * features.value[obs, t]
        error -= s.initial[features.index[state, t]] * features.value[state, t]
    for i in range(len(s.z)):
        s.z[i] *= s.decay[0]
    add_features(s.z, features, state, 1.0)
    for i in range(len(s.z)):
        s.z[i] *= rho
        s.b[i] += s.z[i] * error
    s.decay[0] = discount * s.lambda_


@lean
def lstd_step(learner, reward, discount, obs, duration, rng):
    """A += z (x - gamma x')'   (Boyan 1999; Sutton & Barto sec. 9.8, with traces)."""
    state = learner.last[0]
    gather(learner, reward, discount, obs)
    s, features = learner.memory, learner.features
    for i in range(len(s.z)):
        if s.z[i] != 0.0:
            add_features(s.a[i], features, state, s.z[i])
            add_features(s.a[i], features, obs, -discount * s.z[i])
    return act(learner, obs, rng)


@lean
def recursive_lstd_step(learner, reward, discount, obs, duration, rng):
    """A^-1 -= (A^-1 z) ((x - gamma x')' A^-1) / (1 + (x - gamma x')' A^-1 z),  w = A^-1 b   (S&B eq. 9.22, Sherman-Morrison)."""
    state = learner.last[0]
    gather(learner, reward, discount, obs)
    s, features, n = learner.memory, learner.features, len(learner.w)
    s.row[:] = 0.0
    for t in range(features.index.shape[1]):
        i, j = features.index[state, t], features.index[obs, t]
        for k in range(n):
            s.row[k] += features.value[state, t] * s.a[i, k] - discount * features.value[obs, t] * s.a[j, k]
    below = 1.0
    for i in range(n):
        total = 0.0
        for k in range(n):
            total += s.a[i, k] * s.z[k]
        s.column[i] = total
        below += s.row[i] * s.z[i]
    for i in range(n):
        total, share = s.initial[i], s.column[i] / below
        for k in range(n):
            s.a[i, k] -= share * s.row[k]
            total += s.a[i, k] * s.b[k]
        learner.w[i] = total
    return act(learner, obs, rng)


@dataclass(frozen=True)
class LSTDSettings(PredictionSettings):
    lambda_: float = 0.0
    """Decay of the trace beside gamma, in [0, 1]: 0 is batch TD, 1 batch Monte Carlo."""

    def __post_init__(self):
        super().__post_init__()
        check("lambda_", self.lambda_, 0, 1)


class LSTD(Prediction):
    """LSTD(lambda) (Bradtke & Barto 1996; Boyan 1999): the batch solution on all data so far, worked out where `w` is read.

    `alpha` is not used.
    """

    name = "lstd-prediction"
    Settings = LSTDSettings
    begin_rule = staticmethod(begin)
    step_rule = staticmethod(lstd_step)

    def make_memory(self, features: StateFeatures) -> Statistics:
        f = features.n_features
        return Statistics(
            a=self.first_matrix(f),
            b=np.zeros(f),
            z=np.zeros(f),
            decay=np.zeros(1),
            initial=np.full(f, float(self.settings.v_init)),
            row=np.zeros(f),
            column=np.zeros(f),
            lambda_=float(self.settings.lambda_),
        )

    def first_matrix(self, f: int) -> np.ndarray:
        return np.zeros((f, f))

    @property
    def w(self) -> np.ndarray:
        """(F,) weights: the initial ones plus the least change that solves the system."""
        s = self.learner.memory
        return s.initial + np.linalg.lstsq(s.a, s.b, rcond=None)[0]


@dataclass(frozen=True)
class RecursiveLSTDSettings(LSTDSettings):
    ridge: float = 1e-3
    """Diagonal of A at first: how much the data must say before weights leave their initial values."""

    def __post_init__(self):
        super().__post_init__()
        check("ridge", self.ridge, 0, 1e300, open_low=True)


class RecursiveLSTD(LSTD):
    """LSTD(lambda) with an incremental inverse, O(F^2) a step (Sutton & Barto sec. 9.8): `w` is always the newest solution.

    Off-policy or with traces the denominator of Sherman-Morrison's formula can pass near 0; a larger ridge keeps it away.
    """

    name = "recursive-lstd-prediction"
    Settings = RecursiveLSTDSettings
    step_rule = staticmethod(recursive_lstd_step)

    def first_matrix(self, f: int) -> np.ndarray:
        return np.eye(f) / self.settings.ridge

    @property
    def w(self) -> np.ndarray:
        """(F,) weights."""
        return self.learner.w


def batch_td(
    x: ArrayLike,
    rewards: ArrayLike,
    discounts: ArrayLike,
    x_next: ArrayLike,
    w: ArrayLike,
    alpha: float,
    tolerance: float = 1e-12,
) -> np.ndarray:
    """Batch TD(0) as it is told: the increments of all transitions are summed, then applied, until none changes w any more
    (Sutton & Barto sec. 6.3). `LSTD` gives its limit at once.

    :param x, x_next: (T, F) features before and after each transition
    :param rewards, discounts: (T,), discount 0 where an episode terminated
    :param w: (F,) first weights
    :param alpha: step size, small enough to converge: of the order of 1 / T
    :return: (F,) weights at convergence
    :raises ValueError: it diverges, or has not converged after 10^6 sweeps
    """
    x, r, d, following, w = (np.asarray(a, np.float64) for a in (x, rewards, discounts, x_next, w))
    a, b = x.T @ (x - d[:, None] * following), x.T @ r
    for _ in range(1_000_000):
        with np.errstate(all="ignore"):
            change = alpha * (b - a @ w)
            w = w + change
        if np.abs(change).max() <= tolerance * alpha * max(1.0, np.abs(b).max()):
            return w
        if not np.isfinite(w).all():
            break
    raise ValueError(f"batch TD did not converge with alpha={alpha}: lower it, {len(x)} transitions are summed in each sweep")
