"""Draft-v0, many at once: one compiled loop over all lanes, bit-identical to as many single envs."""

from functools import cached_property, lru_cache
from typing import NamedTuple

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.utils.seeding import np_random
from gymnasium.vector import AutoresetMode
from gymnasium.vector.utils import batch_space
from numba import njit

from tdraft.envs.compiled import env_rng
from tdraft.kernels.jit import Box, lean
from tdraft.models.decoding import observation as ob

from .draft import DraftEnv
from .dynamics import CURSOR_SIZE, DraftParams, Dynamics


class Lanes(NamedTuple):
    """The state of L envs that share their parameters."""

    params: DraftParams
    obs: np.ndarray  # (L, SIZE)
    cursors: np.ndarray  # (L, CURSOR_SIZE)
    outcomes: np.ndarray  # (L, 2) tokens and accepted of the last step
    rngs: np.ndarray  # (L, 4) uint64
    rewards: np.ndarray  # (L,)
    durations: np.ndarray  # (L,)
    terminated: np.ndarray  # (L,) bool


def new_lanes(params: DraftParams, n: int) -> Lanes:
    return Lanes(
        params,
        np.zeros((n, ob.SIZE)),
        np.zeros((n, CURSOR_SIZE)),
        np.zeros((n, 2)),
        np.zeros((n, 4), np.uint64),
        np.zeros(n),
        np.zeros(n),
        np.zeros(n, np.bool_),
    )


@lru_cache
def _vector_loops(dynamics: Dynamics):
    """`reset_all(box)` and `step_all(box, actions)` on a `Box` of `Lanes`."""
    begin, act = dynamics.begin, dynamics.act

    @lean
    def lane(lanes, i):
        params = lanes.params
        return DraftParams(
            params.source,
            params.calibration,
            params.verify,
            params.draft,
            params.max_drafted,
            params.n_tokens,
            params.rho,
            params.expected,
            params.shaped,
            lanes.obs[i],
            lanes.cursors[i],
            lanes.outcomes[i],
        )

    @lean
    def reset_lanes(lanes):
        for i in range(len(lanes.obs)):
            begin(lane(lanes, i), lanes.rngs[i])

    @lean
    def step_lanes(lanes, actions):
        obs, outcomes, rngs = lanes.obs, lanes.outcomes, lanes.rngs
        rewards, durations, terminated = lanes.rewards, lanes.durations, lanes.terminated
        for i in range(len(obs)):
            one = lane(lanes, i)
            if terminated[i]:
                begin(one, rngs[i])
                rewards[i], terminated[i], durations[i] = 0.0, False, 0.0
                outcomes[i, 0] = outcomes[i, 1] = 0.0
            else:
                drafted = obs[i, ob.DRAFTED]
                rewards[i], terminated[i], durations[i] = act(one, actions[i], rngs[i])
                if obs[i, ob.DRAFTED] > drafted:
                    outcomes[i, 0] = outcomes[i, 1] = 0.0

    @njit
    def reset_all(box):
        reset_lanes(box.value)

    @njit
    def step_all(box, actions):
        step_lanes(box.value, actions)

    return reset_all, step_all


class DraftVectorEnv(gym.vector.VectorEnv):
    """`gym.make_vec("tdraft/Draft-v0", num_envs=1024)`: lanes in one compiled loop, NEXT_STEP autoreset, seeds seed + i.

    :param num_envs: lanes
    :param kwargs: those of `DraftEnv`; only `observe="vector"`
    """

    metadata = {"autoreset_mode": AutoresetMode.NEXT_STEP}  # noqa: RUF012

    def __init__(self, num_envs: int = 1, max_episode_steps: int | None = None, **kwargs):
        if num_envs < 1:
            raise ValueError(f"num_envs must be >= 1, got {num_envs}")
        if max_episode_steps is not None:
            raise ValueError("Draft-v0 ends by itself after n_tokens tokens: leave max_episode_steps out")
        single = DraftEnv(**kwargs)
        if single.observe != "vector":
            raise ValueError('the vectorised env observes "vector" only; use gym.make for observe="tokens"')
        self.num_envs = num_envs
        self.render_mode = None
        self.single_observation_space, self.single_action_space = single.observation_space, single.action_space
        self.observation_space = batch_space(single.observation_space, num_envs)
        self.action_space = spaces.MultiDiscrete(np.full(num_envs, ob.N_ACTIONS))
        self._single = single
        self._lanes = new_lanes(single.params, num_envs)
        self._truncated = np.zeros(num_envs, np.bool_)
        self._ready = False

    @cached_property
    def _box(self) -> Box:
        """Holds the arrays of `_lanes` from the first reset on: change them in place, never replace them."""
        return Box(self._lanes)

    def reset(self, *, seed: int | list[int | None] | None = None, options: dict | None = None):
        lanes = self._lanes
        if seed is not None or not self._ready:
            seeds = [None if seed is None else seed + i for i in range(self.num_envs)] if not isinstance(seed, list) else seed
            if len(seeds) != self.num_envs:
                raise ValueError(f"seed must be an integer, None or a list of {self.num_envs}, got {len(seeds)} seeds")
            for i, one in enumerate(seeds):
                generator, _ = np_random(one)
                lanes.rngs[i] = env_rng(generator)
        lanes.cursors[:] = 0.0
        lanes.terminated[:] = False
        reset_all, _ = _vector_loops(self._single.source.dynamics)
        reset_all(self._box)
        self._ready = True
        return lanes.obs.copy(), {}

    def step(self, actions):
        if not self._ready:
            raise gym.error.ResetNeeded("call reset() before step()")
        actions = np.asarray(actions, np.int64)
        if actions.shape != (self.num_envs,) or actions.min() < 0 or actions.max() >= ob.N_ACTIONS:
            raise ValueError(f"actions must be ({self.num_envs},) integers in 0..2, got shape {actions.shape}: {actions!r}")
        _, step_all = _vector_loops(self._single.source.dynamics)
        step_all(self._box, actions)
        lanes = self._lanes
        seconds = lanes.durations * self._single.source.cost.unit_seconds
        info = {"duration": lanes.durations.copy(), "seconds": seconds, "tokens": lanes.outcomes[:, 0].astype(np.int64)}
        return lanes.obs.copy(), lanes.rewards.copy(), lanes.terminated.copy(), self._truncated.copy(), info


__all__ = ["DraftVectorEnv"]
