"""The training loop, made for an env and an agent from four functions: the env's reset and step, the agent's begin and step."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
from numba import njit

from tdraft.kernels.jit import lean

RECENT = 100  # episodes that the running means cover, as in Stable-Baselines3


class Standing(NamedTuple):
    """Where training stands between two calls of a loop. Arrays, so that the loop can change them and `save` can store them."""

    counts: np.ndarray  # (4,) int64: 1 inside an episode, steps in it so far, action to be taken, episodes finished
    score: np.ndarray  # (1,) reward of the episode so far
    earned: np.ndarray  # (1,) reward of all finished episodes
    recent: np.ndarray  # (RECENT, 2) reward and length of the last episodes, a ring


def new_standing() -> Standing:
    return Standing(np.zeros(4, np.int64), np.zeros(1), np.zeros(1), np.zeros((RECENT, 2)))


@contextmanager
def no_collection() -> Iterator[None]:
    """Python's garbage collector waits: at a loop's first call, which compiles it, it would take a tenth of the time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@lru_cache(maxsize=256)
def training_loop(env_reset, env_step, begin, step, vector: bool):
    """The loop for one env and one agent, compiled at its first call; `interpreted_loop` gives the same bit for bit.

    So does this loop where NUMBA_DISABLE_JIT=1 leaves it and all that it calls plain Python.

    :param vector: the observation is an array, which env_step returns
    :return: `loop(env, learner, gamma, steps, limit, env_rng, rng, obs, standing) -> obs`
    """
    compiler = njit(nogil=True) if vector else lean

    @compiler
    def loop(env, learner, gamma, steps, limit, env_rng, rng, obs, standing):
        counts = standing.counts
        inside, elapsed, action, episodes = counts[0], counts[1], counts[2], counts[3]
        score = standing.score[0]
        for _ in range(steps):
            if inside == 0:
                obs = env_reset(env, env_rng)
                action = begin(learner, obs, rng)
                inside, elapsed, score = 1, 0, 0.0
            obs, reward, terminated, duration = env_step(env, obs, action, env_rng)
            elapsed += 1
            score += reward
            action = step(learner, reward, 0.0 if terminated else gamma, obs, duration, rng)
            if terminated or elapsed == limit:
                standing.recent[episodes % RECENT, 0] = score
                standing.recent[episodes % RECENT, 1] = elapsed
                standing.earned[0] += score
                episodes += 1
                inside = 0
        counts[0], counts[1], counts[2], counts[3] = inside, elapsed, action, episodes
        standing.score[0] = score
        return obs

    return loop


def interpreted_loop(env: gym.Env, agent: Any, gamma: float, steps: int, standing: Standing, seed: int | None) -> None:
    """The same loop through Gymnasium's interface, for envs that cannot be compiled.

    :param agent: anything with `begin(obs)` and `step(reward, discount, obs, duration)`
    :param seed: for the first reset, None where the env has been seeded
    """
    inside, elapsed, action, episodes = (int(c) for c in standing.counts)
    score = float(standing.score[0])
    for _ in range(steps):
        if not inside:
            obs, _ = env.reset(seed=seed) if seed is not None else env.reset()
            action, seed = agent.begin(obs), None
            inside, elapsed, score = 1, 0, 0.0
        obs, reward, terminated, truncated, info = env.step(action)
        elapsed += 1
        action = agent.step(reward, 0.0 if terminated else gamma, obs, info.get("duration", 1.0))
        score += float(reward)
        if terminated or truncated:
            standing.recent[episodes % RECENT] = score, elapsed
            standing.earned[0] += score
            episodes += 1
            inside = 0
    standing.counts[:] = inside, elapsed, action, episodes
    standing.score[0] = score
