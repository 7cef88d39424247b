"""One-step rules of the linear agents: q(s, a) = sum of w[f, a] over the active binary features f of s.

Features are a NamedTuple of arrays with a compiled `rule(features, obs, t)`, the index of the t-th active one: a `TileCoding`,
`PeriodicTiles` or `HashedFeatures`. `traces.py` has the same rules with eligibility traces.
"""

from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from tdraft.kernels.jit import lean
from tdraft.value.hashing import HashedFeatures
from tdraft.value.periodic import PeriodicTiles
from tdraft.value.tables import accumulate, epsilon_greedy
from tdraft.value.targets import expected_sarsa_error, q_learning_error, sarsa_error
from tdraft.value.tiles import TileCoding, linear_value, linear_values

from .settings import Schedule, exploration, step_size

Features = TileCoding | PeriodicTiles | HashedFeatures


class LinearLearner(NamedTuple):
    """State of a linear agent: F features of which T are active, A actions."""

    w: np.ndarray  # (F, A) weights; with traces, as they were when a pair was last active (`traces.settled` has them all now)
    features: Features
    active: np.ndarray  # (2, T) int64 features of the previous and of the new observation
    q: np.ndarray  # (2, A) action values: of the previous one that of its action alone
    last: np.ndarray  # (2,) int64 previous action; 1 where a transition awaits the next episode's first state
    rate: np.ndarray  # (3,) rho, and reward and duration of the transition that waits
    clock: np.ndarray  # (1,) int64 steps learned from
    error: np.ndarray  # (1,) sum of absolute TD errors since it was last reported
    total: np.ndarray  # (F, A) integral of w for its average, (0, 0) where none is kept
    since: np.ndarray  # (F, A) step up to which `total` is complete
    schedule: Schedule
    eta: float  # step size of rho as a multiple of alpha; 0 for discounted values
    average_reward: bool
    traces: Any  # a `Traces`, () for one-step rules


@lean
def choose(learner, rng):
    """Epsilon-greedy action at the new observation."""
    return epsilon_greedy(learner.q[1], exploration(learner.schedule, learner.clock[0]), rng)


@lean
def remember(learner, action):
    """The new observation becomes the previous one."""
    for t in range(learner.active.shape[1]):
        learner.active[0, t] = learner.active[1, t]
    learner.last[0] = action
    return action


@lean
def tick(learner, alpha, error):
    """rho += eta * alpha * error, and time goes on."""
    learner.rate[0] += learner.eta * alpha * error
    learner.clock[0] += 1
    learner.error[0] += abs(error)


@lean
def update(learner, error):
    """w[f, a] += alpha / T * error for each of the T active features."""
    now, a = learner.clock[0], learner.last[0]
    alpha = step_size(learner.schedule, now)
    change = alpha / learner.active.shape[1] * error
    for t in range(learner.active.shape[1]):
        f = learner.active[0, t]
        if now >= learner.schedule.average_start:
            accumulate(learner.total, learner.since, learner.w, f, a, now, learner.schedule.average_start)
        learner.w[f, a] += change
    tick(learner, alpha, error)


@lean
def sarsa_bootstrap(q_tm1, a_tm1, r_t, discount_t, q_t, a_t, epsilon):
    return sarsa_error(q_tm1, a_tm1, r_t, discount_t, q_t, a_t)


@lean
def expected_sarsa_bootstrap(q_tm1, a_tm1, r_t, discount_t, q_t, a_t, epsilon):
    return expected_sarsa_error(q_tm1, a_tm1, r_t, discount_t, q_t, epsilon)


@lean
def q_learning_bootstrap(q_tm1, a_tm1, r_t, discount_t, q_t, a_t, epsilon):
    return q_learning_error(q_tm1, a_tm1, r_t, discount_t, q_t)


@lru_cache
def one_step_rule(rule, td_error):
    """begin and step of a linear agent with this TD error:  w += alpha / T * delta * x(s, a).

    Average-reward values have delta = td_error(r - rho * duration) and rho += eta * alpha * delta; the end of an episode is a
    renewal there, so its transition waits for the next episode's first state (as in `average_reward.py`).

    :param rule: of the features
    :param td_error: one of the bootstraps above
    """

    @lean
    def observe(learner, obs):
        for t in range(learner.active.shape[1]):
            learner.active[1, t] = rule(learner.features, obs, t)
        linear_values(learner.w, learner.active[1], learner.q[1])

    @lean
    def learn(learner, reward, discount, duration, action):
        a = learner.last[0]
        learner.q[0, a] = linear_value(learner.w, learner.active[0], a)
        epsilon = exploration(learner.schedule, learner.clock[0])
        relative = reward - learner.rate[0] * duration
        update(learner, td_error(learner.q[0], a, relative, discount, learner.q[1], action, epsilon))

    @lean
    def begin(learner, obs, rng):
        observe(learner, obs)
        action = choose(learner, rng)
        if learner.last[1] != 0:
            learner.last[1] = 0
            learn(learner, learner.rate[1], 1.0, learner.rate[2], action)
        return remember(learner, action)

    @lean
    def step(learner, reward, discount, obs, duration, rng):
        observe(learner, obs)
        action = choose(learner, rng)
        if learner.average_reward and discount == 0.0:
            learner.last[1], learner.rate[1], learner.rate[2] = 1, reward, duration
            return action  # what is remembered stays: begin learns from it
        learn(learner, reward, discount, duration, action)
        return remember(learner, action)

    return begin, step
