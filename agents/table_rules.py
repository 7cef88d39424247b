"""One-step rules over a table of action values: Q-learning, Sarsa and Expected Sarsa, and the pieces that other rules share.

States and actions are never below 0. Where they index as unsigned integers, no compiled loop asks whether they count from the
end: a twentieth of the time of a step.
"""

from typing import NamedTuple

import numpy as np

from tdraft.kernels.jit import lean
from tdraft.value.tables import accumulate, epsilon_greedy
from tdraft.value.targets import expected_sarsa_error, q_learning_error, sarsa_error

from .settings import Schedule, exploration, step_size


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
    return epsilon_greedy(learner.q[np.uint64(obs)], exploration(learner.schedule, learner.clock[0]), rng)


@lean
def remember(learner, obs, action):
    learner.last[0], learner.last[1] = obs, action
    return action


@lean
def write(learner, s, a, value):
    """q[s, a] = value, its average over time kept; time stands still."""
    now = learner.clock[0]
    if now >= learner.schedule.average_start:
        accumulate(learner.total, learner.since, learner.q, s, a, now, learner.schedule.average_start)
    learner.q[s, a] = value


@lean
def tick(learner, error):
    """Time goes on by a step that was learned from."""
    learner.clock[0] += 1
    learner.error[0] += abs(error)


@lean
def update(learner, s, a, error):
    """q[s, a] += alpha * error, and time goes on."""
    write(learner, s, a, learner.q[s, a] + step_size(learner.schedule, learner.clock[0]) * error)
    tick(learner, error)


@lean
def begin(learner, obs, rng):
    """The first action of an episode."""
    return remember(learner, obs, act(learner, obs, rng))


@lean
def q_learning_step(learner, reward, discount, obs, duration, rng):
    """q[s, a] += alpha * (r + discount * max_b q[s', b] - q[s, a])   (Watkins 1989; Sutton & Barto eq. 6.8)."""
    s, a = np.uint64(learner.last[0]), np.uint64(learner.last[1])
    update(learner, s, a, q_learning_error(learner.q[s], a, reward, discount, learner.q[np.uint64(obs)]))
    return begin(learner, obs, rng)


@lean
def sarsa_step(learner, reward, discount, obs, duration, rng):
    """q[s, a] += alpha * (r + discount * q[s', a'] - q[s, a])   (Rummery & Niranjan 1994; Sutton & Barto eq. 6.7)."""
    s, a = np.uint64(learner.last[0]), np.uint64(learner.last[1])
    action = act(learner, obs, rng)
    update(learner, s, a, sarsa_error(learner.q[s], a, reward, discount, learner.q[np.uint64(obs)], action))
    return remember(learner, obs, action)


@lean
def expected_sarsa_step(learner, reward, discount, obs, duration, rng):
    """q[s, a] += alpha * (r + discount * sum_b pi(b) q[s', b] - q[s, a])   (Sutton & Barto eq. 6.9)."""
    s, a = np.uint64(learner.last[0]), np.uint64(learner.last[1])
    epsilon = exploration(learner.schedule, learner.clock[0])
    update(learner, s, a, expected_sarsa_error(learner.q[s], a, reward, discount, learner.q[np.uint64(obs)], epsilon))
    return begin(learner, obs, rng)
