"""Tabular agents with two tables, each of which judges what the other thinks best: Double Q-learning, Double Expected Sarsa."""

from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from tdraft.kernels.jit import lean
from tdraft.kernels.rng import randint
from tdraft.value.tables import greedy
from tdraft.value.targets import double_expected_sarsa_error, double_q_error

from .settings import exploration, step_size
from .table_rules import TableLearner, begin, tick, write
from .tabular import TabularAgent


class DoubleLearner(NamedTuple):
    """Two tables and their mean, from which the agent acts: the same as from their sum."""

    table: TableLearner  # q is the mean
    pair: np.ndarray  # (2, S, A) action values
    halves: np.ndarray  # (2,) int64 updates of each table


@lean
def double_q_bootstrap(learner, k, s, a, reward, discount, obs, rng):
    best = greedy(learner.pair[k, obs], rng)
    return double_q_error(learner.pair[k, s], a, reward, discount, learner.pair[1 - k, obs], best)


@lean
def double_expected_sarsa_bootstrap(learner, k, s, a, reward, discount, obs, rng):
    epsilon = exploration(learner.table.schedule, learner.table.clock[0])
    mean, other = learner.table.q[obs], learner.pair[1 - k, obs]
    return double_expected_sarsa_error(learner.pair[k, s], a, reward, discount, mean, other, epsilon)


@lean
def double_begin(learner, obs, rng):
    """The first action of an episode."""
    return begin(learner.table, obs, rng)


@lru_cache
def double_rule(bootstrap):
    """A step of an agent with two tables: a fair coin says which learns,  q_k[s, a] += alpha * delta_k."""

    @lean
    def step(learner, reward, discount, obs, duration, rng):
        table, pair = learner.table, learner.pair
        s, a = table.last[0], table.last[1]
        k = randint(rng, 2)
        error = bootstrap(learner, k, s, a, reward, discount, obs, rng)
        pair[k, s, a] += step_size(table.schedule, table.clock[0]) * error
        learner.halves[k] += 1
        write(table, s, a, 0.5 * (pair[0, s, a] + pair[1, s, a]))
        tick(table, error)
        return begin(table, obs, rng)

    return step


class DoubleQ(TabularAgent):
    """Double Q-learning (van Hasselt 2010; Sutton & Barto sec. 6.7): no bias from taking the maximum of noisy estimates."""

    name = "double-q"
    begin_rule = staticmethod(double_begin)
    step_rule = staticmethod(double_rule(double_q_bootstrap))

    def make_learner(self) -> Any:
        table = self.table_learner()
        return DoubleLearner(table, np.stack([table.q, table.q]), np.zeros(2, np.int64))

    @property
    def table(self) -> TableLearner:
        return self.learner.table


class DoubleExpectedSarsa(DoubleQ):
    """Double Expected Sarsa (Sutton & Barto sec. 6.7): the policy's expectation by the table that doesn't learn."""

    name = "double-expected-sarsa"
    step_rule = staticmethod(double_rule(double_expected_sarsa_bootstrap))
