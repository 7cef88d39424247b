"""Tabular average-reward control for continuing tasks: differential Sarsa, R-learning and RVI Q-learning.

Values are relative to rho, the reward per unit of time. The end of an episode is a renewal, not an end of time, as in
`average_reward.py`: the transition into it leads to the first state of the next episode.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from tdraft.kernels.jit import lean
from tdraft.value.targets import average_reward_error, differential_sarsa_error, largest, r_learning_rate_error

from .settings import SettingsError, StepSettings, check
from .table_rules import TableLearner, act, remember, update
from .tabular import TabularAgent


class DifferentialLearner(NamedTuple):
    """A table and the rate that its values are relative to."""

    table: TableLearner
    rate: np.ndarray  # (4,) rho, 1 where a transition awaits the next episode's first state, and its reward and duration
    reference: np.ndarray  # (1,) int64 state whose value is RVI's rho, -1 before the first
    beta: float  # step size of rho


@lean
def differential_sarsa(learner, s, a, reward, duration, obs, action):
    """delta = r - rho * duration + q[s', a'] - q[s, a];  rho += beta * delta;  q[s, a] += alpha * delta."""
    table, rate = learner.table, learner.rate
    error = differential_sarsa_error(table.q[s], a, reward, duration, rate[0], table.q[obs], action)
    rate[0] += learner.beta * error
    update(table, s, a, error)


@lean
def r_learning(learner, s, a, reward, duration, obs, action):
    """q[s, a] += alpha * (r - rho * duration + max q[s'] - q[s, a]), then, if a is now a best action of s,
    rho += beta * (r - rho * duration + max q[s'] - max q[s]).
    """
    table, rate = learner.table, learner.rate
    update(table, s, a, average_reward_error(table.q[s], a, reward, duration, rate[0], table.q[obs]))
    if table.q[s, a] == largest(table.q[s]):
        rate[0] += learner.beta * r_learning_rate_error(table.q[s], reward, duration, rate[0], table.q[obs])


@lean
def rvi_q(learner, s, a, reward, duration, obs, action):
    """rho = max q[reference];  q[s, a] += alpha * (r - rho * duration + max q[s'] - q[s, a])."""
    table, rate = learner.table, learner.rate
    if learner.reference[0] < 0:
        learner.reference[0] = s
    rate[0] = largest(table.q[learner.reference[0]])
    update(table, s, a, average_reward_error(table.q[s], a, reward, duration, rate[0], table.q[obs]))


@lru_cache
def differential_rule(improve, act_first: bool):
    """begin and step of an average-reward agent.

    :param improve: one of the functions above
    :param act_first: it needs the next action; otherwise the agent learns before it acts
    """

    @lean
    def learn_and_act(learner, reward, duration, obs, rng):
        table = learner.table
        s, a = table.last[0], table.last[1]
        if act_first:
            action = act(table, obs, rng)
            improve(learner, s, a, reward, duration, obs, action)
        else:
            improve(learner, s, a, reward, duration, obs, 0)
            action = act(table, obs, rng)
        return remember(table, obs, action)

    @lean
    def begin(learner, obs, rng):
        if learner.rate[1] != 0.0:
            learner.rate[1] = 0.0
            return learn_and_act(learner, learner.rate[2], learner.rate[3], obs, rng)
        return remember(learner.table, obs, act(learner.table, obs, rng))

    @lean
    def step(learner, reward, discount, obs, duration, rng):
        if discount == 0.0:
            learner.rate[1], learner.rate[2], learner.rate[3] = 1.0, reward, duration
            return learner.table.last[1]  # what is remembered stays: begin learns from it
        return learn_and_act(learner, reward, duration, obs, rng)

    return begin, step


@dataclass(frozen=True)
class DifferentialSettings(StepSettings):
    """Hyper-parameters of differential Sarsa and R-learning."""

    beta: float = 0.01
    """Step size of the rate rho, in [0, 1]."""
    rho_init: float = 0.0
    """First estimate of the reward per unit of time."""
    q_init: float = 0.0
    """Initial action values."""

    def __post_init__(self):
        super().__post_init__()
        check("beta", self.beta, 0, 1)
        check("rho_init", self.rho_init, -1e300, 1e300)
        check("q_init", self.q_init, -1e300, 1e300)


@dataclass(frozen=True)
class RelativeSettings(StepSettings):
    """Hyper-parameters of RVI Q-learning."""

    reference: int | None = None
    """Observation whose best value stands for the rate; it must recur. By default the first one of the first episode."""
    q_init: float = 0.0
    """Initial action values."""

    def __post_init__(self):
        super().__post_init__()
        check("q_init", self.q_init, -1e300, 1e300)
        if self.reference is not None and (not isinstance(self.reference, int) or isinstance(self.reference, bool)):
            raise SettingsError(f"reference must be an observation, an integer, got {self.reference!r}")


class DifferentialSarsa(TabularAgent):
    """Differential Sarsa (Sutton & Barto sec. 10.3, tabular): the average reward of the policy that acts."""

    name = "differential-sarsa"
    Settings = DifferentialSettings
    begin_rule, step_rule = map(staticmethod, differential_rule(differential_sarsa, True))

    def make_learner(self) -> Any:
        settings, reference = self.settings, getattr(self.settings, "reference", None)
        if reference is not None:
            reference = self.encode(reference)
        return DifferentialLearner(
            self.table_learner(),
            np.array([getattr(settings, "rho_init", 0.0), 0.0, 0.0, 0.0], np.float64),
            np.array([-1 if reference is None else reference]),
            float(getattr(settings, "beta", 0.0)),
        )

    @property
    def table(self) -> TableLearner:
        return self.learner.table

    @property
    def rho(self) -> float:
        """Estimated reward per unit of time."""
        return float(self.learner.rate[0])


class RLearning(DifferentialSarsa):
    """R-learning (Schwartz 1993; Sutton & Barto 1st ed. sec. 6.7): the greedy policy's average reward, off-policy."""

    name = "r-learning"
    begin_rule, step_rule = map(staticmethod, differential_rule(r_learning, False))


class RelativeQ(DifferentialSarsa):
    """RVI Q-learning (Abounadi, Bertsekas & Borkar 2001): the rate is a value of the table, f(q) = max_a q[reference, a]."""

    name = "rvi-q"
    Settings = RelativeSettings
    begin_rule, step_rule = map(staticmethod, differential_rule(rvi_q, False))
