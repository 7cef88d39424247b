"""Peers of `tdraft bench tabular`: the loop of a user over Gymnasium, and a loop written by hand for Numba and one table."""

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import gymnasium as gym
import numpy as np

from tdraft.kernels.jit import lean
from tdraft.kernels.rng import randint, seed_state, uniform

ALPHA, EPSILON, GAMMA = 0.5, 0.1, 1.0


def python_loop(env: gym.Env, kind: str) -> Callable[[int], None]:
    """Tabular control in plain Python; each call takes that many more steps.

    :param kind: "q-learning", "sarsa" or "expected-sarsa"
    """
    n_states, n_actions = int(env.observation_space.n), int(env.action_space.n)  # pyright: ignore[reportAttributeAccessIssue]
    q, rng = np.zeros((n_states, n_actions)), np.random.default_rng(0)
    env.reset(seed=0)

    def act(obs: int) -> int:
        if rng.random() < EPSILON:
            return int(rng.integers(n_actions))
        row = q[obs]
        best = np.flatnonzero(row == row.max())
        return int(best[0] if len(best) == 1 else best[rng.integers(len(best))])

    def work(steps: int) -> None:
        obs, _ = env.reset()
        action = act(obs)
        for _ in range(steps):
            after, reward, terminated, truncated, _ = env.step(action)
            target = float(reward)
            if kind == "sarsa":
                next_action = act(after)
                if not terminated:
                    target += GAMMA * q[after, next_action]
                q[obs, action] += ALPHA * (target - q[obs, action])
            else:
                if not terminated:
                    row = q[after]
                    value = row.max() if kind == "q-learning" else (1 - EPSILON) * row.max() + EPSILON * row.mean()
                    target += GAMMA * value
                q[obs, action] += ALPHA * (target - q[obs, action])
                next_action = act(after)
            obs, action = after, next_action
            if terminated or truncated:
                obs, _ = env.reset()
                action = act(obs)

    return work


@lru_cache
def compiled_loop(kind: str, random_ties: bool):
    """Tabular control for a deterministic table of transitions; ties are broken uniformly at random or go to the first.

    Compiled as tdraft's own loops are, the fastest of five ways tried: for Sarsa on CliffWalking-v1 108 million steps a second,
    where `njit` had 21, with `inline="always"` 42.

    :return: `loop(following, reward, terminated, starts, limit, q, steps, rng) -> (episodes, total reward)`
    """
    q_learning, sarsa = kind == "q-learning", kind == "sarsa"

    @lean
    def greedy(q, s, rng):
        best, action, ties = q[s, 0], 0, 1
        for a in range(1, q.shape[1]):
            if q[s, a] > best:
                best, action, ties = q[s, a], a, 1
            elif q[s, a] == best:
                ties += 1
        if random_ties and ties > 1:
            skip = randint(rng, ties)
            for a in range(action, q.shape[1]):
                if q[s, a] == best:
                    if skip == 0:
                        action = a
                        break
                    skip -= 1
        return action

    @lean
    def act(q, s, rng):
        if uniform(rng) < EPSILON:
            action = randint(rng, q.shape[1])
        else:
            action = greedy(q, s, rng)
        return action

    @lean
    def value(q, s):
        best, total = q[s, 0], q[s, 0]
        for a in range(1, q.shape[1]):
            best = q[s, a] if q[s, a] > best else best
            total += q[s, a]
        return best if q_learning else (1.0 - EPSILON) * best + EPSILON * total / q.shape[1]

    @lean
    def loop(following, reward, terminated, starts, limit, q, steps, rng):
        episodes, total, elapsed = 0, 0.0, 0
        s = starts[randint(rng, len(starts))]
        a = act(q, s, rng)
        for _ in range(steps):
            s2, r, done = following[s, a], reward[s, a], terminated[s, a]
            total += r
            elapsed += 1
            discount = 0.0 if done else GAMMA
            if sarsa:
                b = act(q, s2, rng)
                q[s, a] += ALPHA * (r + discount * q[s2, b] - q[s, a])
            else:
                q[s, a] += ALPHA * (r + discount * value(q, s2) - q[s, a])
                b = act(q, s2, rng)
            s, a = s2, b
            if done or elapsed == limit:
                episodes += 1
                elapsed = 0
                s = starts[randint(rng, len(starts))]
                a = act(q, s, rng)
        return episodes, total

    return loop


def numba_loop(env: gym.Env, kind: str, random_ties: bool) -> Callable[[int], Any]:
    """`compiled_loop` on a toy-text env whose table is deterministic and whose starts are equally likely."""
    plain: Any = env.unwrapped
    n_states, n_actions = len(plain.P), len(plain.P[0])
    following = np.zeros((n_states, n_actions), np.int64)
    reward = np.zeros((n_states, n_actions))
    terminated = np.zeros((n_states, n_actions), bool)
    for s in range(n_states):
        for a in range(n_actions):
            ((probability, following[s, a], reward[s, a], terminated[s, a]),) = plain.P[s][a]
            assert probability == 1
    starts = np.flatnonzero(plain.initial_state_distrib)
    assert np.ptp(np.asarray(plain.initial_state_distrib)[starts]) == 0
    limit = env.spec.max_episode_steps or 0 if env.spec else 0
    q, rng, loop = np.zeros((n_states, n_actions)), seed_state(0), compiled_loop(kind, random_ties)
    return lambda steps: loop(following, reward, terminated, starts, limit, q, steps, rng)
