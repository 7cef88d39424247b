"""Tabular Monte Carlo control: on-policy first-visit and every-visit, off-policy by weighted importance sampling.

The episode lies in a buffer of `capacity` steps and is learned when it is over. A truncated one has the return up to its last
reward. An episode longer than the buffer is learned as several truncated ones, so memory is bounded whatever the env does: choose
a capacity that episodes stay under, since returns that are cut off are those of shorter episodes.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from tdraft.kernels.jit import lean
from tdraft.value.tables import first_greedy
from tdraft.value.targets import discounted_return, greedy_probability

from .settings import SettingsError, check, exploration, step_size
from .table_rules import TableLearner, act, remember, tick, write
from .tabular import TableSettings, TabularAgent


class EpisodeLearner(NamedTuple):
    """A table and the episode so far, up to C steps of it."""

    table: TableLearner
    pairs: np.ndarray  # (C, 2) int64 states and actions
    reward: np.ndarray  # (C,) what they brought; while learning, the return from there on
    discount: np.ndarray  # (C,)
    first: np.ndarray  # (C,) bool, whether the pair is visited for the first time
    chance: np.ndarray  # (C,) probability with which the action was taken
    count: np.ndarray  # (2,) int64 steps in the buffer; number of the episode
    seen: np.ndarray  # (S, A) int64 last episode that visited the pair
    weight: np.ndarray  # (S, A) returns learned from; off-policy the sum of their weights
    last_chance: np.ndarray  # (1,) probability of the action remembered


@lru_cache
def on_policy(first_visit: bool, sample_average: bool):
    """q[s, a] += alpha * (G - q[s, a]) for visits in their order, alpha = 1 / visits for sample averages.

    (Sutton & Barto sec. 5.4; constant alpha as eq. 6.1.)
    """

    @lean
    def learn(learner):
        table, g, count = learner.table, 0.0, learner.count[0]
        for t in range(count - 1, -1, -1):
            g = discounted_return(learner.reward[t], learner.discount[t], g)
            learner.reward[t] = g
        for t in range(count):
            if first_visit and not learner.first[t]:
                tick(table, 0.0)
                continue
            s, a = learner.pairs[t, 0], learner.pairs[t, 1]
            error = learner.reward[t] - table.q[s, a]
            learner.weight[s, a] += 1.0
            alpha = 1.0 / learner.weight[s, a] if sample_average else step_size(table.schedule, table.clock[0])
            write(table, s, a, table.q[s, a] + alpha * error)
            tick(table, error)

    return learn


@lean
def off_policy(learner):
    """Backwards through the episode, as long as its actions are greedy   (Sutton & Barto sec. 5.7):

    G = r + gamma * G;  C[s, a] += W;  q[s, a] += W / C[s, a] * (G - q[s, a]);  W /= b(a | s).
    """
    table, g, w, count = learner.table, 0.0, 1.0, learner.count[0]
    for t in range(count - 1, -1, -1):
        s, a = learner.pairs[t, 0], learner.pairs[t, 1]
        g = discounted_return(learner.reward[t], learner.discount[t], g)
        if w > 0.0:
            error = g - table.q[s, a]
            learner.weight[s, a] += w
            write(table, s, a, table.q[s, a] + w / learner.weight[s, a] * error)
            tick(table, error)
            w = w / learner.chance[t] if first_greedy(table.q[s]) == a else 0.0
        else:
            tick(table, 0.0)


@lru_cache
def episode_rule(learn, chances: bool):
    """begin and step of an agent that learns from whole episodes with `learn(learner)`."""

    @lean
    def close(learner):
        learn(learner)
        learner.count[0] = 0
        learner.count[1] += 1

    @lean
    def choose(learner, obs, rng):
        table = learner.table
        action = act(table, obs, rng)
        if chances:
            epsilon = exploration(table.schedule, table.clock[0])
            learner.last_chance[0] = greedy_probability(table.q[obs], action, epsilon)
        return remember(table, obs, action)

    @lean
    def begin(learner, obs, rng):
        if learner.count[0] > 0:  # the episode before was truncated
            close(learner)
        return choose(learner, obs, rng)

    @lean
    def step(learner, reward, discount, obs, duration, rng):
        s, a, t = learner.table.last[0], learner.table.last[1], learner.count[0]
        learner.pairs[t, 0], learner.pairs[t, 1] = s, a
        learner.reward[t], learner.discount[t], learner.chance[t] = reward, discount, learner.last_chance[0]
        learner.first[t] = learner.seen[s, a] != learner.count[1]
        learner.seen[s, a] = learner.count[1]
        learner.count[0] = t + 1
        action = choose(learner, obs, rng)
        if discount == 0.0 or t + 1 == len(learner.reward):
            close(learner)
        return action

    return begin, step


@dataclass(frozen=True)
class EpisodeSettings(TableSettings):
    """Hyper-parameters of off-policy Monte Carlo, whose step size is W / C and not alpha."""

    capacity: int = 100_000
    """Longest episode that is learned as a whole, in steps."""

    def __post_init__(self):
        super().__post_init__()
        check("capacity", self.capacity, 1, 1e9)
        if not isinstance(self.capacity, int):
            raise SettingsError(f"capacity must be an integer, got {self.capacity!r}")


@dataclass(frozen=True)
class MonteCarloSettings(EpisodeSettings):
    """Hyper-parameters of on-policy Monte Carlo."""

    first_visit: bool = True
    """Learn from the first visit of a pair in an episode; otherwise from every one."""
    sample_average: bool = False
    """Step size 1 / visits in place of alpha."""


class MonteCarlo(TabularAgent):
    """On-policy first-visit or every-visit Monte Carlo control (Sutton & Barto sec. 5.4)."""

    name = "monte-carlo"
    Settings = MonteCarloSettings

    def rules(self) -> Any:
        return episode_rule(on_policy(self.settings.first_visit, self.settings.sample_average), False)

    def make_learner(self) -> Any:
        self.begin_rule, self.step_rule = self.rules()  # pyright: ignore[reportAttributeAccessIssue]
        table, capacity = self.table_learner(), self.settings.capacity
        return EpisodeLearner(
            table=table,
            pairs=np.zeros((capacity, 2), np.int64),
            reward=np.zeros(capacity),
            discount=np.zeros(capacity),
            first=np.zeros(capacity, bool),
            chance=np.ones(capacity),
            count=np.array([0, 1]),
            seen=np.zeros(table.q.shape, np.int64),
            weight=np.zeros(table.q.shape),
            last_chance=np.ones(1),
        )

    @property
    def table(self) -> TableLearner:
        return self.learner.table


class OffPolicyMonteCarlo(MonteCarlo):
    """Off-policy Monte Carlo control by weighted importance sampling (Sutton & Barto sec. 5.7).

    The target is the greedy policy, the lowest action of those that tie; epsilon must be above 0 for the behaviour to cover it.
    """

    name = "off-policy-monte-carlo"
    Settings = EpisodeSettings

    def rules(self) -> Any:
        check("epsilon", self.settings.epsilon, 0, 1, open_low=True)
        return episode_rule(off_policy, True)
