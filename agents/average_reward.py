"""Tabular average-reward Q-learning for semi-Markov decision processes: as much reward per unit of time as possible."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from tdraft.kernels.jit import lean
from tdraft.value.targets import average_reward_error

from .settings import StepSettings, check, step_size
from .table_rules import TableLearner, act, remember, update
from .tabular import TabularAgent


class AverageRewardLearner(NamedTuple):
    """A table and the rate that its values are relative to."""

    table: TableLearner
    rate: np.ndarray  # (4,) rho, 1 where a transition awaits the next episode's first state, and its reward and duration
    eta: float  # step size of rho as a multiple of alpha


@lean
def improve(learner, reward, duration, obs):
    """delta = r - rho * duration + max_b q[s', b] - q[s, a];  q[s, a] += alpha * delta;  rho += eta * alpha * delta."""
    table, rate = learner.table, learner.rate
    s, a = table.last[0], table.last[1]
    error = average_reward_error(table.q[s], a, reward, duration, rate[0], table.q[obs])
    rate[0] += learner.eta * step_size(table.schedule, table.clock[0]) * error
    update(table, s, a, error)


@lean
def average_reward_begin(learner, obs, rng):
    """The first action of an episode; the transition that ended the one before leads here.

    An end of the episode is a renewal, not an end of time: bootstrapping from 0 there would make every rho a fixed point.
    """
    if learner.rate[1] != 0.0:
        learner.rate[1] = 0.0
        improve(learner, learner.rate[2], learner.rate[3], obs)
    return remember(learner.table, obs, act(learner.table, obs, rng))


@lean
def average_reward_step(learner, reward, discount, obs, duration, rng):
    """Learn from the transition, or, where the episode terminated (discount 0), keep it for the next `begin`.

    (Wan, Naik & Sutton 2021, eq. 5-6; durations as in Das et al. 1999.)
    """
    if discount == 0.0:
        learner.rate[1], learner.rate[2], learner.rate[3] = 1.0, reward, duration
        return learner.table.last[1]  # what is remembered stays: begin learns from it
    improve(learner, reward, duration, obs)
    return remember(learner.table, obs, act(learner.table, obs, rng))


@dataclass(frozen=True)
class AverageRewardSettings(StepSettings):
    """Hyper-parameters of average-reward Q-learning."""

    eta: float = 0.1
    """Step size of the rate rho as a multiple of alpha."""
    rho_init: float = 0.0
    """First estimate of the reward per unit of time."""
    q_init: float = 0.0
    """Initial action values."""

    def __post_init__(self):
        super().__post_init__()
        check("eta", self.eta, 0, 1e6)
        check("rho_init", self.rho_init, -1e300, 1e300)
        check("q_init", self.q_init, -1e300, 1e300)


class SemiMarkovQ(TabularAgent):
    """Differential Q-learning with sojourn times: maximises the reward per unit of time, across episodes."""

    name = "average-reward"
    Settings = AverageRewardSettings
    begin_rule = staticmethod(average_reward_begin)
    step_rule = staticmethod(average_reward_step)

    def make_learner(self) -> Any:
        return AverageRewardLearner(
            self.table_learner(), np.array([self.settings.rho_init, 0.0, 0.0, 0.0], np.float64), float(self.settings.eta)
        )

    @property
    def table(self) -> TableLearner:
        return self.learner.table

    @property
    def rho(self) -> float:
        """Estimated reward per unit of time."""
        return float(self.learner.rate[0])
