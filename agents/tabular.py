"""Tabular one-step control: Q-learning, Sarsa and Expected Sarsa. A rule is a `begin` and a `step` over a tuple of arrays."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from gymnasium import spaces
from numba import njit

from tdraft.kernels.jit import lean
from tdraft.value.tables import accumulate, average, epsilon_greedy, first_greedy
from tdraft.value.targets import expected_sarsa_error, q_learning_error, sarsa_error

from .base import Agent, Decision, SpaceError, check_observation
from .settings import Schedule, StepSettings, check, exploration, step_size


class TableLearner(NamedTuple):
    """State of a tabular agent with S states and A actions."""

    q: np.ndarray  # (S, A) action values
    last: np.ndarray  # (2,) int64 previous state and action
    clock: np.ndarray  # (1,) int64 steps learned from
    error: np.ndarray  # (1,) sum of absolute TD errors since it was last reported
    total: np.ndarray  # (S, A) integral of q for its average, (0, 0) where none is kept
    since: np.ndarray  # (S, A) step up to which `total` is complete
    schedule: Schedule


@lean
def act(learner, obs, rng):
    """Epsilon-greedy action at obs."""
    return epsilon_greedy(learner.q[obs], exploration(learner.schedule, learner.clock[0]), rng)


@lean
def remember(learner, obs, action):
    learner.last[0], learner.last[1] = obs, action
    return action


@lean
def update(learner, s, a, error):
    """q[s, a] += alpha * error, and time goes on."""
    now = learner.clock[0]
    if now >= learner.schedule.average_start:
        accumulate(learner.total, learner.since, learner.q, s, a, now, learner.schedule.average_start)
    learner.q[s, a] += step_size(learner.schedule, now) * error
    learner.clock[0] = now + 1
    learner.error[0] += abs(error)


@lean
def begin(learner, obs, rng):
    """The first action of an episode."""
    return remember(learner, obs, act(learner, obs, rng))


@lean
def q_learning_step(learner, reward, discount, obs, duration, rng):
    """q[s, a] += alpha * (r + discount * max_b q[s', b] - q[s, a])   (Watkins 1989; Sutton & Barto eq. 6.8)."""
    s, a = learner.last[0], learner.last[1]
    update(learner, s, a, q_learning_error(learner.q[s], a, reward, discount, learner.q[obs]))
    return begin(learner, obs, rng)


@lean
def sarsa_step(learner, reward, discount, obs, duration, rng):
    """q[s, a] += alpha * (r + discount * q[s', a'] - q[s, a])   (Rummery & Niranjan 1994; Sutton & Barto eq. 6.7)."""
    s, a = learner.last[0], learner.last[1]
    action = act(learner, obs, rng)
    update(learner, s, a, sarsa_error(learner.q[s], a, reward, discount, learner.q[obs], action))
    return remember(learner, obs, action)


@lean
def expected_sarsa_step(learner, reward, discount, obs, duration, rng):
    """q[s, a] += alpha * (r + discount * sum_b pi(b) q[s', b] - q[s, a])   (Sutton & Barto eq. 6.9)."""
    s, a = learner.last[0], learner.last[1]
    epsilon = exploration(learner.schedule, learner.clock[0])
    update(learner, s, a, expected_sarsa_error(learner.q[s], a, reward, discount, learner.q[obs], epsilon))
    return begin(learner, obs, rng)


@njit
def table_decide(params, memory, obs):
    """Greedy action of a table: params = (q,) with q (S, A), obs the state; memory is not used."""
    return first_greedy(params[0][int(obs)])


@dataclass(frozen=True)
class TableSettings(StepSettings):
    """Hyper-parameters of a tabular agent."""

    gamma: float = 1.0
    """Discount factor, in [0, 1]."""
    q_init: float = 0.0
    """Initial action values."""

    def __post_init__(self):
        super().__post_init__()
        check("gamma", self.gamma, 0, 1)
        check("q_init", self.q_init, -1e300, 1e300)


class TabularAgent(Agent):
    """An agent with a table of action values, for Discrete observations and actions."""

    Settings = TableSettings
    begin_rule = staticmethod(begin)
    learner: Any

    @classmethod
    def check_spaces(cls, observation_space: spaces.Space, action_space: spaces.Space) -> None:
        if not isinstance(observation_space, spaces.Discrete):
            raise SpaceError(
                f"{cls.name} needs a Discrete observation space, got {observation_space}: use an agent with features "
                "(linear-sarsa), or wrap the env so that an observation is one integer"
            )
        super().check_spaces(observation_space, action_space)

    def table_learner(self) -> TableLearner:
        assert isinstance(self.observation_space, spaces.Discrete)
        shape = (int(self.observation_space.n), self.n_actions)
        q = np.full(shape, float(self.settings.q_init))
        averaged = shape if self.settings.average else (0, 0)
        return TableLearner(
            q,
            np.zeros(2, np.int64),
            np.zeros(1, np.int64),
            np.zeros(1),
            np.zeros(averaged),
            np.zeros(averaged),
            self.settings.schedule(),
        )

    def make_learner(self) -> Any:
        return self.table_learner()

    @property
    def table(self) -> TableLearner:
        """The arrays that the tabular rules share."""
        return self.learner

    @property
    def q(self) -> np.ndarray:
        """(S, A) action values as they stand, not averaged."""
        return self.table.q

    def values(self) -> np.ndarray:
        """(S, A) action values that `predict` serves: averaged over the last steps where `average` says so."""
        t = self.table
        return average(t.q, t.total, t.since, float(t.clock[0]), t.schedule.average_start)

    def policy(self) -> Decision:
        return Decision(table_decide, (self.values(),), np.zeros(1))

    def encode(self, obs: Any) -> int:
        space = self.observation_space
        assert isinstance(space, spaces.Discrete)
        return check_observation(space, obs) - int(space.start)

    def batch(self, obs: Any) -> tuple[np.ndarray, bool]:
        space = self.observation_space
        assert isinstance(space, spaces.Discrete)
        states = np.asarray(obs)
        if states.dtype.kind not in "iu":
            raise SpaceError(f"expected integer observations of {space}, got {states.dtype}")
        states = states.astype(np.int64) - int(space.start)
        if states.size and (states.min() < 0 or states.max() >= space.n):
            raise SpaceError(f"expected observations of {space}, got {np.asarray(obs).min()}..{np.asarray(obs).max()}")
        return states.reshape(-1), states.ndim == 0

    def greedy_actions(self, batch: np.ndarray) -> np.ndarray:
        return (self.values() if self.settings.average else self.q)[batch].argmax(axis=1)


class QLearning(TabularAgent):
    """Tabular Q-learning (Watkins 1989; Sutton & Barto sec. 6.5)."""

    name = "q-learning"
    step_rule = staticmethod(q_learning_step)


class Sarsa(TabularAgent):
    """Tabular Sarsa (Rummery & Niranjan 1994; Sutton & Barto sec. 6.4)."""

    name = "sarsa"
    step_rule = staticmethod(sarsa_step)


class ExpectedSarsa(TabularAgent):
    """Tabular Expected Sarsa (van Seijen et al. 2009; Sutton & Barto sec. 6.6)."""

    name = "expected-sarsa"
    step_rule = staticmethod(expected_sarsa_step)
