"""Q-learning from the experience of a fixed policy: the values of the greedy one, while another acts that never looks at them."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from tdraft.envs.compiled import draw
from tdraft.kernels.jit import lean
from tdraft.kernels.rng import randint, uniform
from tdraft.value.targets import q_learning_error

from .prediction.policies import probabilities
from .settings import exploration
from .table_rules import TableLearner, remember, update
from .tabular import TableSettings, TabularAgent


class FollowingLearner(NamedTuple):
    """A table and the policy that acts."""

    table: TableLearner
    behaviour: np.ndarray  # (S, A) cumulated probabilities


@lean
def follow(learner, obs, rng):
    """An action of the behaviour, or with probability epsilon any."""
    table = learner.table
    if uniform(rng) < exploration(table.schedule, table.clock[0]):
        action = randint(rng, table.q.shape[1])
    else:
        action = draw(learner.behaviour[obs], rng)
    return action


@lean
def following_begin(learner, obs, rng):
    return remember(learner.table, obs, follow(learner, obs, rng))


@lean
def following_step(learner, reward, discount, obs, duration, rng):
    """q[s, a] += alpha * (r + discount * max_b q[s', b] - q[s, a])   (Watkins 1989; Sutton & Barto eq. 6.8)."""
    table = learner.table
    s, a = table.last[0], table.last[1]
    update(table, s, a, q_learning_error(table.q[s], a, reward, discount, table.q[obs]))
    return following_begin(learner, obs, rng)


@dataclass(frozen=True)
class FollowingSettings(TableSettings):
    """Hyper-parameters of Q-learning from a fixed policy."""

    epsilon: float = 0.0
    """Probability of a uniformly random action in place of the behaviour's, in [0, 1]."""


class OffPolicyQ(TabularAgent):
    """Q-learning from a fixed policy (Watkins 1989; S. Zhao sec. 7.4, algorithm 7.3, off-policy version).

    It converges to the optimal values where the behaviour, or epsilon, takes every action everywhere.

    :param behaviour: the policy that acts: (S, A) probabilities, (A,) where they are the same everywhere, or what
        `agent.policy()` returns; uniform by default
    :raises SettingsError: probabilities that do not sum to 1
    """

    name = "off-policy-q-learning"
    Settings = FollowingSettings
    begin_rule = staticmethod(following_begin)
    step_rule = staticmethod(following_step)
    _given: Any = None  # a checkpoint brings its own

    def __init__(self, env, *, behaviour: Any = None, seed: int | None = None, **hyperparameters):
        self._given = behaviour
        super().__init__(env, seed=seed, **hyperparameters)

    def make_learner(self) -> FollowingLearner:
        table = self.table_learner()
        n_states, n_actions = table.q.shape
        behaviour = probabilities("behaviour", self._given, (n_states, n_actions))
        return FollowingLearner(table, np.cumsum(behaviour, axis=1))

    @property
    def table(self) -> TableLearner:
        return self.learner.table

    def exploring_actions(self, batch: np.ndarray, greedy: np.ndarray) -> np.ndarray:
        """(n,) actions of the policy that acts."""
        return np.array([follow(self.learner, s, self.predict_rng) for s in batch], np.int64)
