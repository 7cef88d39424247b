"""Least-squares policy iteration: a policy from a batch of transitions, whoever gathered them.

    A = sum_i c_i phi(s_i, a_i) (phi(s_i, a_i) - discount_i phi(s'_i, pi(s'_i)))^T,   b = sum_i c_i phi(s_i, a_i) r_i
    q(s, a) = phi(s, a) . w,   w = A^-1 b;   then pi becomes greedy in q, until it changes no more

(Lagoudakis & Parr 2003, LSTDQ and LSPI.) phi(s, a) are the features x(s) in the block of action a. Every iteration uses every
transition, and there is no step size.

    samples = collect(env, 5000, seed=0)
    found = lspi(samples, gamma=0.9)
    found.policy(obs)
"""

from collections.abc import Callable
from typing import NamedTuple

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from numpy.typing import ArrayLike

from .base import SpaceError
from .settings import SettingsError, check

Features = Callable[[np.ndarray], np.ndarray]  # observations (N, ...) -> X (N, F)


class Samples(NamedTuple):
    """N transitions, in any order."""

    obs: np.ndarray  # (N, ...)
    action: np.ndarray  # (N,) int64, counted from 0
    reward: np.ndarray  # (N,)
    ended: np.ndarray  # (N,) bool: terminated, so that nothing follows
    next_obs: np.ndarray  # (N, ...)
    count: np.ndarray  # (N,) how often each is counted
    n_actions: int


class LeastSquaresPolicy(NamedTuple):
    """What `lspi` found."""

    w: np.ndarray  # (A, F) weights of each action's values
    features: Features
    iterations: int
    stable: bool  # whether the last iteration left the policy as it was at all next observations

    def values(self, obs: ArrayLike) -> np.ndarray:
        """(N, A) action values of observations (N, ...)."""
        return self.features(np.asarray(obs)) @ self.w.T

    def policy(self, obs: ArrayLike) -> np.ndarray:
        """(N,) greedy actions, counted from 0, the lowest where there are ties."""
        return self.values(obs).argmax(axis=1)


def table(n_states: int) -> Features:
    """One-hot features of the states 0..n_states - 1."""
    return lambda obs: np.eye(n_states)[np.asarray(obs, np.int64)]


def collect(env: gym.Env, steps: int, *, seed: int = 0, policy: Callable[[np.ndarray], ArrayLike] | None = None) -> Samples:
    """Transitions of uniformly random actions, or of a policy's.

    :param policy: observations (1, ...) -> actions (1,), counted from 0
    :raises SpaceError: actions that are not Discrete
    """
    if not isinstance(env.action_space, spaces.Discrete):
        raise SpaceError(f"collect needs a Discrete action space, got {env.action_space}")
    if steps < 1:
        raise SettingsError(f"steps must be at least 1, got {steps}")
    rng, first = np.random.default_rng(seed), int(env.action_space.start)
    rows, (obs, _) = [], env.reset(seed=seed)
    for _ in range(steps):
        action = int(rng.integers(env.action_space.n)) if policy is None else int(np.asarray(policy(np.asarray(obs)[None]))[0])
        after, reward, terminated, truncated, _ = env.step(action + first)
        rows.append((obs, action, float(reward), terminated, after))
        obs = env.reset()[0] if terminated or truncated else after
    columns = [np.array(column) for column in zip(*rows)]
    return Samples(*columns, count=np.ones(steps), n_actions=int(env.action_space.n))


def lspi(
    samples: Samples, *, gamma: float, features: Features | None = None, ridge: float = 1e-9, max_iterations: int = 100
) -> LeastSquaresPolicy:
    """The policy that least-squares policy iteration ends with, from one that always takes the first action.

    :param gamma: discount factor, in [0, 1]
    :param features: x(s), for example `lambda obs: active_features(obs, tiles).matrix()`; by default `table` of the states seen
    :param ridge: added to A's diagonal, so that actions never seen have the value 0
    :param max_iterations: where the policy goes on changing, the last one is returned; `stable` says so
    :raises SettingsError: gamma or ridge out of range, rewards that are not finite, observations that are no numbers of states
    """
    check("gamma", gamma, 0, 1)
    check("ridge", ridge, 0, 1e12)
    check("max_iterations", max_iterations, 1, 1_000_000)
    if not np.isfinite(samples.reward).all():
        raise SettingsError(f"rewards must be finite, sample {int(np.argmin(np.isfinite(samples.reward)))} has another")
    if features is None:
        if samples.obs.ndim != 1 or samples.obs.dtype.kind not in "iu":
            raise SettingsError(f"observations of shape {samples.obs.shape[1:]} need features=: there is no table of them")
        features = table(int(max(samples.obs.max(), samples.next_obs.max())) + 1)
    x, following = features(samples.obs), features(samples.next_obs)
    n, width = x.shape
    phi, rows = np.zeros((n, samples.n_actions, width)), np.arange(n)
    phi[rows, samples.action] = x
    phi = phi.reshape(n, -1)
    weighted = phi * samples.count[:, None]
    b, discount = weighted.T @ samples.reward, gamma * ~samples.ended
    actions, w, stable, iteration = np.zeros(n, np.int64), np.zeros((samples.n_actions, width)), False, 0
    while not stable and iteration < max_iterations:
        after = np.zeros((n, samples.n_actions, width))
        after[rows, actions] = following * discount[:, None]
        a = weighted.T @ (phi - after.reshape(n, -1)) + ridge * np.eye(phi.shape[1])
        w = np.linalg.solve(a, b).reshape(samples.n_actions, width)
        q = following @ w.T
        best = q.max(axis=1)
        as_good = q[rows, actions] >= best - 1e-9 * (1.0 + np.abs(best))  # rounding must not move it among equals
        stable, actions, iteration = bool(as_good.all()), np.where(as_good, actions, q.argmax(axis=1)), iteration + 1
    return LeastSquaresPolicy(w, features, iteration, stable)
