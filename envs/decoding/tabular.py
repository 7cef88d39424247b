"""Draft-v0 for tabular agents: the observation as one integer."""

from functools import lru_cache
from typing import NamedTuple

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from tdraft.envs.compiled import CompiledEnv
from tdraft.kernels.jit import lean
from tdraft.models.decoding import observation as ob

from .draft import DraftEnv
from .dynamics import DraftParams, Dynamics

ACCEPTANCE_EDGES = (0.1, 0.25, 0.4, 0.55, 0.7, 0.85, 0.95)
SURVIVAL_EDGES = (0.02, 0.05, 0.1, 0.2, 0.3, 0.45, 0.6, 0.75, 0.9)
BELIEF_EDGES = (0.2, 0.4, 0.6, 0.8)


class Grid(NamedTuple):
    """Bin edges of the discretiser; a value falls into the bin numbered by how many edges lie at or below it."""

    acceptance: np.ndarray
    survival: np.ndarray
    belief: np.ndarray
    max_drafted: int

    @property
    def n_states(self) -> int:
        return (self.max_drafted + 1) * (len(self.acceptance) + 1) * (len(self.survival) + 1) * (len(self.belief) + 1)


@lean
def discretise(grid, obs):
    """The state number of an observation: (tokens drafted, acceptance of the newest, survival, belief), in mixed radix."""
    state = int(obs[ob.DRAFTED])
    state = state * (len(grid.acceptance) + 1) + ob.acceptance_bin(grid.acceptance, obs[ob.ACCEPTANCE])
    state = state * (len(grid.survival) + 1) + ob.acceptance_bin(grid.survival, obs[ob.SURVIVAL])
    return state * (len(grid.belief) + 1) + ob.acceptance_bin(grid.belief, obs[ob.BELIEF])


def tabular_draft(
    acceptance_edges=ACCEPTANCE_EDGES, survival_edges=SURVIVAL_EDGES, belief_edges=BELIEF_EDGES, **kwargs
) -> gym.Env:
    """`tdraft/TabularDraft-v0`: `TabularDraft` around a Draft-v0 with these keywords."""
    edges = {"acceptance_edges": acceptance_edges, "survival_edges": survival_edges, "belief_edges": belief_edges}
    return TabularDraft(DraftEnv(**kwargs), **edges)


class TabularParams(NamedTuple):
    grid: Grid
    env: DraftParams


@lru_cache
def _tabular_dynamics(dynamics: Dynamics):
    begin, act = dynamics.begin, dynamics.act

    @lean
    def reset(params, rng):
        begin(params.env, rng)
        return discretise(params.grid, params.env.obs)

    @lean
    def step(params, obs, action, rng):
        reward, terminated, duration = act(params.env, action, rng)
        return discretise(params.grid, params.env.obs), reward, terminated, duration

    return reset, step


class TabularDraft(gym.ObservationWrapper):
    """Draft-v0 with a Discrete observation, for tabular agents; compiled like the env it wraps.

    :param env: Draft-v0 with vector observations
    :param acceptance_edges, survival_edges, belief_edges: increasing bin edges in (0, 1)
    """

    def __init__(
        self,
        env: gym.Env,
        *,
        acceptance_edges=ACCEPTANCE_EDGES,
        survival_edges=SURVIVAL_EDGES,
        belief_edges=BELIEF_EDGES,
    ):
        super().__init__(env)
        draft = env.unwrapped
        if not isinstance(draft, DraftEnv) or draft.observe != "vector":
            raise TypeError(f'TabularDraft wraps tdraft/Draft-v0 with observe="vector", got {env}')
        edges = [np.array(e, np.float64) for e in (acceptance_edges, survival_edges, belief_edges)]
        for e in edges:
            if np.any(np.diff(e) <= 0) or np.any(e <= 0) or np.any(e >= 1):
                raise ValueError(f"bin edges must increase within (0, 1), got {e.tolist()}")
        self.draft = draft
        acceptance, survival, belief = edges
        self.grid = Grid(acceptance, survival, belief, draft.params.max_drafted)
        self.observation_space = spaces.Discrete(self.grid.n_states)

    def observation(self, observation):
        return np.int64(discretise(self.grid, observation))

    def compiled(self) -> CompiledEnv | None:
        """The discretised process for the compiled training loop."""
        inner = self.draft.compiled()
        if inner is None:
            return None
        reset, step = _tabular_dynamics(self.draft.source.dynamics)
        return inner._replace(params=TabularParams(self.grid, inner.params), reset=reset, step=step)
