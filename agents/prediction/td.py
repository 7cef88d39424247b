"""Temporal-difference prediction without eligibility traces: TD(0) and n-step TD, on-policy and off-policy."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from tdraft.kernels.jit import lean
from tdraft.value.features import StateFeatures, add_features

from ..settings import check
from .base import Prediction, PredictionSettings, act, ratio, tick, value


@lean
def td_step(learner, reward, discount, obs, duration, rng):
    """w += alpha * rho * (r + discount * v(s') - v(s)) * x(s)   (Sutton & Barto eq. 6.2, 9.7, 11.2)."""
    state = learner.last[0]
    error = reward + discount * value(learner, obs) - value(learner, state)
    add_features(learner.w, learner.features, state, tick(learner, error) * ratio(learner) * error)
    return act(learner, obs, rng)


class TD(Prediction):
    """TD(0) (Sutton 1988; Sutton & Barto sec. 6.1), over features semi-gradient TD(0) (sec. 9.3; "TD-Linear" in Zhao ch. 8).

    With a behaviour other than the policy it is semi-gradient off-policy TD(0) (sec. 11.1), which may diverge.
    """

    name = "td-prediction"
    begin_rule = staticmethod(act)
    step_rule = staticmethod(td_step)


class Ring(NamedTuple):
    """The last n transitions that no update has used."""

    states: np.ndarray  # (n,) int64
    rewards: np.ndarray  # (n,)
    discounts: np.ndarray  # (n,)
    ratios: np.ndarray  # (n,)
    place: np.ndarray  # (2,) int64: the oldest, and how many
    control_variate: bool


@lean
def update_oldest(learner, last_value):
    """Update the oldest state of the ring towards its return, bootstrapped from `last_value`, and forget it."""
    ring, n = learner.memory, len(learner.memory.states)
    oldest, count = ring.place[0], ring.place[1]
    target, weight = last_value, 1.0
    for k in range(count - 1, -1, -1):
        i = (oldest + k) % n
        target = ring.rewards[i] + ring.discounts[i] * target
        if ring.control_variate:
            target = ring.ratios[i] * target + (1.0 - ring.ratios[i]) * value(learner, ring.states[i])
        else:
            weight *= ring.ratios[i]
    state = ring.states[oldest]
    error = target - value(learner, state)
    add_features(learner.w, learner.features, state, tick(learner, error) * weight * error)
    ring.place[0], ring.place[1] = (oldest + 1) % n, count - 1


@lean
def n_step_begin(learner, obs, rng):
    """After a time limit the transitions that wait bootstrap from the last state seen."""
    while learner.memory.place[1] > 0:
        update_oldest(learner, value(learner, learner.last[0]))
    return act(learner, obs, rng)


@lean
def n_step_td_step(learner, reward, discount, obs, duration, rng):
    """w += alpha * rho_{t:t+n-1} * (G_{t:t+n} - v(s_t)) * x(s_t)   (Sutton & Barto eq. 7.2, 7.9, 9.15).

    G = r_{t+1} + gamma r_{t+2} + ... + gamma^n v(s_{t+n}); with the control variate instead the per-decision one,
    G_{t:h} = rho_t (r_{t+1} + gamma G_{t+1:h}) + (1 - rho_t) v(s_t), and no ratio before the error (eq. 7.13).
    """
    ring, n = learner.memory, len(learner.memory.states)
    i = (ring.place[0] + ring.place[1]) % n
    ring.states[i], ring.rewards[i], ring.discounts[i], ring.ratios[i] = learner.last[0], reward, discount, ratio(learner)
    ring.place[1] += 1
    if ring.place[1] == n:
        update_oldest(learner, value(learner, obs))
    if discount == 0.0:
        while ring.place[1] > 0:
            update_oldest(learner, value(learner, obs))
    return act(learner, obs, rng)


@dataclass(frozen=True)
class NStepSettings(PredictionSettings):
    n: int = 4
    """Rewards in a return before it bootstraps."""
    control_variate: bool = False
    """Off-policy: per-decision importance sampling with a control variate in place of the product of ratios."""

    def __post_init__(self):
        super().__post_init__()
        check("n", self.n, 1, 1_000_000)


class NStepTD(Prediction):
    """n-step TD (Sutton & Barto sec. 7.1), off-policy by importance sampling (sec. 7.3, 7.4)."""

    name = "n-step-td-prediction"
    Settings = NStepSettings
    begin_rule = staticmethod(n_step_begin)
    step_rule = staticmethod(n_step_td_step)

    @property
    def rows(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        return int(self.settings.n) + 3

    def make_memory(self, features: StateFeatures) -> Ring:
        n = int(self.settings.n)
        return Ring(
            np.zeros(n, np.int64), np.zeros(n), np.zeros(n), np.zeros(n), np.zeros(2, np.int64), self.settings.control_variate
        )
