"""Draft-v0, many at once: one compiled loop over all lanes, bit-identical to as many single envs."""

from functools import lru_cache

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.utils.seeding import np_random
from gymnasium.vector import AutoresetMode
from gymnasium.vector.utils import batch_space

from tdraft.envs.compiled import env_rng
from tdraft.kernels.jit import lean
from tdraft.models.decoding import observation as ob

from .draft import DraftEnv
from .dynamics import CURSOR_SIZE, DraftParams, Dynamics


@lru_cache
def _make_vector_loops(dynamics: Dynamics):
    begin, act = dynamics.begin, dynamics.act

    @lean
    def lane(params, obs, cursors, outcomes, i):
        return DraftParams(
            params.source,
            params.calibration,
            params.verify,
            params.draft,
            params.max_drafted,
            params.n_tokens,
            params.rho,
            params.expected,
            obs[i],
            cursors[i],
            outcomes[i],
        )

    @lean
    def reset_all(params, obs, cursors, outcomes, rngs):
        for i in range(len(obs)):
            begin(lane(params, obs, cursors, outcomes, i), rngs[i])

    @lean
    def step_all(params, obs, cursors, outcomes, actions, rngs, rewards, terminated, durations):
        for i in range(len(obs)):
            one = lane(params, obs, cursors, outcomes, i)
            if terminated[i]:
                begin(one, rngs[i])
                rewards[i], terminated[i], durations[i] = 0.0, False, 0.0
                outcomes[i, 0] = outcomes[i, 1] = 0.0
            else:
                drafted = obs[i, ob.DRAFTED]
                rewards[i], terminated[i], durations[i] = act(one, actions[i], rngs[i])
                if obs[i, ob.DRAFTED] > drafted:
                    outcomes[i, 0] = outcomes[i, 1] = 0.0

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
        self._reset_all, self._step_all = _make_vector_loops(single.source.dynamics)
        self._obs = np.zeros((num_envs, ob.SIZE))
        self._cursors = np.zeros((num_envs, CURSOR_SIZE))
        self._outcomes = np.zeros((num_envs, 2))
        self._rewards, self._durations = np.zeros(num_envs), np.zeros(num_envs)
        self._terminated = np.zeros(num_envs, np.bool_)
        self._truncated = np.zeros(num_envs, np.bool_)
        self._rngs: np.ndarray | None = None

    def reset(self, *, seed: int | list[int | None] | None = None, options: dict | None = None):
        if seed is not None or self._rngs is None:
            seeds = [None if seed is None else seed + i for i in range(self.num_envs)] if not isinstance(seed, list) else seed
            states = []
            for one in seeds:
                generator, _ = np_random(one)
                states.append(env_rng(generator))
            self._rngs = np.array(states)
        self._cursors[:] = 0.0
        self._terminated[:] = False
        self._reset_all(self._single.params, self._obs, self._cursors, self._outcomes, self._rngs)
        return self._obs.copy(), {}

    def step(self, actions):
        if self._rngs is None:
            raise gym.error.ResetNeeded("call reset() before step()")
        actions = np.asarray(actions, np.int64)
        if actions.shape != (self.num_envs,) or actions.min() < 0 or actions.max() >= ob.N_ACTIONS:
            raise ValueError(f"actions must be ({self.num_envs},) integers in 0..2, got shape {actions.shape}: {actions!r}")
        self._step_all(
            self._single.params,
            self._obs,
            self._cursors,
            self._outcomes,
            actions,
            self._rngs,
            self._rewards,
            self._terminated,
            self._durations,
        )
        seconds = self._durations * self._single.source.cost.unit_seconds
        info = {"duration": self._durations.copy(), "seconds": seconds, "tokens": self._outcomes[:, 0].astype(np.int64)}
        return self._obs.copy(), self._rewards.copy(), self._terminated.copy(), self._truncated.copy(), info


__all__ = ["DraftVectorEnv"]
