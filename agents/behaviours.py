"""Behaviours and decays of the one-step tabular agents beyond the default: softmax, UCB; exponential, by numbers of visits.

Every combination is a rule of its own, compiled at first use; the default one is in `table_rules` and knows nothing of these.
"""

import math
from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from tdraft.kernels.jit import lean
from tdraft.value.tables import epsilon_greedy, greedy, sample, softmax, upper_bounds
from tdraft.value.targets import expected_value, largest

from .settings import exploration, step_size
from .table_rules import TableLearner, remember, tick, write

BEHAVIOURS = ("epsilon-greedy", "softmax", "ucb")
DECAYS = ("linear", "exponential", "visits", "steps")


class VisitLearner(NamedTuple):
    """A table and what behaviours and decays beyond the default need."""

    table: TableLearner
    visits: np.ndarray  # (S, A) updates of each pair
    scratch: np.ndarray  # (A,)
    temperature: float
    c: float
    alpha_exponent: float  # ln(alpha_final / alpha)
    epsilon_exponent: float


class Rule(NamedTuple):
    """Compiled functions of one combination."""

    begin: Any  # (learner, obs, rng) -> action
    step: Any  # (learner, reward, discount, obs, duration, rng) -> action
    choose: Any  # (learner, obs, rng) -> action
    exploring: Any  # (learner, obs) -> probability that the behaviour does not take the likeliest action, 0 for UCB


def exponent(first: float, last: float | None, decay: str) -> float:
    """ln(last / first) for an exponential decay, else 0."""
    return math.log(last / first) if decay == "exponential" and last else 0.0


@lean
def state_visits(learner, s):
    total = 0.0
    for a in range(learner.visits.shape[1]):
        total += learner.visits[s, a]
    return total


@lean
def progress(learner):
    return min(1.0, learner.table.clock[0] * learner.table.schedule.rate)


@lru_cache
def step_sizes(decay: str) -> Callable:
    """alpha(learner, s, a): alpha * (alpha_final / alpha)^progress, alpha / n(s, a), alpha / n, or the linear one."""

    @lean
    def exponential(learner, s, a):
        return learner.table.schedule.alpha * math.exp(learner.alpha_exponent * progress(learner))

    @lean
    def visits(learner, s, a):
        return learner.table.schedule.alpha / learner.visits[s, a]

    @lean
    def steps(learner, s, a):
        return learner.table.schedule.alpha / (learner.table.clock[0] + 1)

    @lean
    def linear(learner, s, a):
        return step_size(learner.table.schedule, learner.table.clock[0])

    return {"exponential": exponential, "visits": visits, "steps": steps, "linear": linear}[decay]


@lru_cache
def explorations(decay: str) -> Callable:
    """epsilon(learner, s): epsilon * (epsilon_final / epsilon)^progress, epsilon / n(s), epsilon / n, or the linear one."""

    @lean
    def exponential(learner, s):
        return learner.table.schedule.epsilon * math.exp(learner.epsilon_exponent * progress(learner))

    @lean
    def visits(learner, s):
        return learner.table.schedule.epsilon / max(1.0, state_visits(learner, s))

    @lean
    def steps(learner, s):
        return learner.table.schedule.epsilon / (learner.table.clock[0] + 1)

    @lean
    def linear(learner, s):
        return exploration(learner.table.schedule, learner.table.clock[0])

    return {"exponential": exponential, "visits": visits, "steps": steps, "linear": linear}[decay]


@lru_cache
def behaviour_of(behaviour: str, epsilon_decay: str) -> tuple[Any, Any, Any]:
    """choose(learner, s, rng), the mean of q under the behaviour (learner, s), and exploring(learner, s)."""
    epsilon = explorations(epsilon_decay)

    @lean
    def choose_greedy(learner, s, rng):
        return epsilon_greedy(learner.table.q[s], epsilon(learner, s), rng)

    @lean
    def mean_greedy(learner, s):
        return expected_value(learner.table.q[s], epsilon(learner, s))

    @lean
    def exploring_greedy(learner, s):
        return epsilon(learner, s)

    @lean
    def choose_softmax(learner, s, rng):
        softmax(learner.table.q[s], learner.temperature, learner.scratch)
        return sample(learner.scratch, rng)

    @lean
    def mean_softmax(learner, s):
        softmax(learner.table.q[s], learner.temperature, learner.scratch)
        mean = 0.0
        for a in range(len(learner.scratch)):
            mean += learner.scratch[a] * learner.table.q[s, a]
        return mean

    @lean
    def exploring_softmax(learner, s):
        softmax(learner.table.q[s], learner.temperature, learner.scratch)
        return 1.0 - largest(learner.scratch)

    @lean
    def choose_ucb(learner, s, rng):
        upper_bounds(learner.table.q[s], learner.visits[s], learner.c, learner.scratch)
        return greedy(learner.scratch, rng)

    @lean
    def mean_ucb(learner, s):
        return math.nan  # not a distribution: Expected Sarsa refuses it

    @lean
    def exploring_ucb(learner, s):
        return 0.0

    return {
        "epsilon-greedy": (choose_greedy, mean_greedy, exploring_greedy),
        "softmax": (choose_softmax, mean_softmax, exploring_softmax),
        "ucb": (choose_ucb, mean_ucb, exploring_ucb),
    }[behaviour]


@lru_cache
def behaved_rule(kind: str, behaviour: str, alpha_decay: str, epsilon_decay: str) -> Rule:
    """q[s, a] += alpha * (r + discount * v(s') - q[s, a]), v = max q (Q-learning), q[s', a'] (Sarsa) or the behaviour's mean.

    :param kind: "q-learning", "sarsa" or "expected-sarsa"
    """
    choose, mean, exploring = behaviour_of(behaviour, epsilon_decay)
    alpha, act_first, off_policy = step_sizes(alpha_decay), kind == "sarsa", kind == "q-learning"

    @lean
    def learn(learner, reward, discount, value):
        table = learner.table
        s, a = table.last[0], table.last[1]
        learner.visits[s, a] += 1.0
        error = reward + discount * value - table.q[s, a]
        write(table, s, a, table.q[s, a] + alpha(learner, s, a) * error)
        tick(table, error)

    @lean
    def begin(learner, obs, rng):
        return remember(learner.table, obs, choose(learner, obs, rng))

    @lean
    def step(learner, reward, discount, obs, duration, rng):
        if act_first:
            action = choose(learner, obs, rng)
            learn(learner, reward, discount, learner.table.q[obs, action])
        else:
            learn(learner, reward, discount, largest(learner.table.q[obs]) if off_policy else mean(learner, obs))
            action = choose(learner, obs, rng)
        return remember(learner.table, obs, action)

    return Rule(begin, step, choose, exploring)
