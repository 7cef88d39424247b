"""Two base classes: `DynamicsEnv`, Gymnasium's view of a compiled reset and step, and `TableEnv`, of a transition table."""

from collections.abc import Callable, Sequence
from functools import cached_property, lru_cache
from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from numba import njit

from tdraft.envs.compiled import CompiledEnv, Reason, Table, env_rng, table_env, table_reset, table_step
from tdraft.kernels.jit import Box

_INTEGERS = (int, np.integer)


@lru_cache
def _boxed(reset: Callable, step: Callable):
    """The two functions for calls from Python, on a `Box` of (params, rng)."""

    @njit
    def begin(box):
        params, rng = box.value
        return reset(params, rng)

    @njit
    def act(box, obs, action):
        params, rng = box.value
        return step(params, obs, action, rng)

    return begin, act


class DynamicsEnv(gym.Env):
    """An env whose dynamics are two compiled functions. A subclass sets them and hands its parameters over.

    `reset_rule(params, rng) -> obs` and `step_rule(params, obs, action, rng) -> (obs, reward, terminated, duration)` are `@njit`
    functions (`kernels.jit.lean` where they make no arrays). Agents train on them inside compiled code; `env.step` calls the
    same two, so that both ways give the same numbers. Actions and Discrete observations count from 0.

    :param params: what the functions get: a (nested) NamedTuple of arrays and numbers
    :param observation_space: Discrete, or a Box whose observation is the float64 array that the functions return
    :param action_space: Discrete
    :param render_mode: None or one of `metadata["render_modes"]`
    """

    metadata: dict[str, Any] = {"render_modes": ["ansi"], "render_fps": 8}  # noqa: RUF012
    reset_rule: ClassVar[Callable]
    step_rule: ClassVar[Callable]
    mutable: ClassVar[tuple[str, ...] | None] = None  # names of the arrays that the functions change; None: it may be any

    def __init__(
        self, params: Any, observation_space: spaces.Space, action_space: spaces.Discrete, render_mode: str | None = None
    ):
        if render_mode not in (None, *self.metadata["render_modes"]):
            raise ValueError(f"render_mode must be None or one of {self.metadata['render_modes']}, got {render_mode!r}")
        if not isinstance(action_space, spaces.Discrete):
            raise ValueError(f"action_space must be Discrete, got {action_space}: an action is one integer")
        self.params, self.render_mode = params, render_mode
        self.observation_space, self.action_space = observation_space, action_space
        self._n_actions = int(action_space.n)
        self._rng = np.zeros(4, np.uint64)
        self._obs: Any = None  # None: no episode has begun
        self._over = True  # the episode has ended

    @cached_property
    def _box(self) -> Box:
        return Box((self.params, self._rng))

    def compiled(self) -> CompiledEnv | Reason:
        """The same functions for the compiled training loop, if nothing beside them is the dynamics."""
        for name in ("step", "reset"):
            if getattr(type(self), name) is not getattr(DynamicsEnv, name):
                return Reason(f"{type(self).__name__} has a {name} of its own beside its compiled one")
        return CompiledEnv(self.params, type(self).reset_rule, type(self).step_rule, mutable=self.mutable)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None):
        super().reset(seed=seed)
        if seed is not None or not self._rng.any():
            self.restart()
        self._obs, self._over = self.begin(options), False
        return self.observe(), {}

    def restart(self) -> None:
        """Called by the first reset and by a seeded one: seed the functions' generator from `np_random`. An env that remembers
        something from episode to episode forgets it here."""
        self._rng[:] = env_rng(self.np_random)

    def begin(self, options: dict[str, Any] | None) -> Any:
        """The first observation of an episode, as the step function takes it."""
        return _boxed(type(self).reset_rule, type(self).step_rule)[0](self._box)

    def step(self, action):
        if self._over:
            raise gym.error.ResetNeeded("no episode has begun, or it has ended: call reset() before step()")
        known = isinstance(action, _INTEGERS) or self.action_space.contains(action)
        if not known or not 0 <= action < self._n_actions:
            raise ValueError(f"expected an action of {self.action_space}, got {action!r}")
        _, act = _boxed(type(self).reset_rule, type(self).step_rule)
        self._obs, reward, terminated, duration = act(self._box, self._obs, int(action))
        self._over = bool(terminated)
        return self.observe(), float(reward), self._over, False, {} if duration == 1.0 else {"duration": duration}

    def observe(self):
        """The observation as the user gets it: a copy of the array, in the type of the space."""
        if isinstance(self.observation_space, spaces.Discrete):
            return int(self._obs)
        return self._obs.astype(self.observation_space.dtype)

    def render(self):
        """The observation as text."""
        return f"{self.observe()}\n" if self.render_mode == "ansi" else None


class TableEnv(DynamicsEnv):
    """An env that is its transition table, in Gymnasium's toy-text format or as arrays.

    :param transitions: `P[state][action]` = list of (probability, next state, reward, terminated), or a `compiled.Table`
    :param start: (S,) probabilities of the first state
    :param render_mode: None or "ansi"
    :raises ValueError: probabilities that don't sum to 1, a next state out of range, a reward that is not finite
    """

    reset_rule = staticmethod(table_reset)
    step_rule = staticmethod(table_step)
    mutable = ()

    def __init__(self, transitions: Any, start: Any, *, render_mode: str | None = None):
        self.initial_state_distrib = np.asarray(start, float)
        table = transitions if isinstance(transitions, Table) else table_env(transitions, self.initial_state_distrib).params
        n_states, n_actions, _ = table.cumulative.shape
        super().__init__(table, spaces.Discrete(n_states), spaces.Discrete(n_actions), render_mode)
        if not isinstance(transitions, Table):
            self.__dict__["P"] = transitions

    @cached_property
    def P(self) -> dict[int, dict[int, list[tuple[float, int, float, bool]]]]:
        """Gymnasium's toy-text table."""
        return table_to_dict(self.params)


def table_to_dict(table: Table) -> dict[int, dict[int, list[tuple[float, int, float, bool]]]]:
    """`P` in Gymnasium's toy-text format from its arrays; outcomes of probability 0 are left out."""
    probability = np.diff(table.cumulative, axis=2, prepend=0.0)
    columns = [a.tolist() for a in (probability, table.following, table.reward, table.terminated)]
    return {
        s: {a: [o for o in zip(*(column[s][a] for column in columns)) if o[0] > 0] for a in range(table.cumulative.shape[1])}
        for s in range(table.cumulative.shape[0])
    }


def merge(outcomes: Sequence[tuple[float, int, float, bool]]) -> list[tuple[float, int, float, bool]]:
    """The same outcomes with equal ones joined and those of probability 0 left out, in order of their first appearance."""
    joined: dict[tuple[int, float, bool], float] = {}
    for probability, following, reward, terminated in outcomes:
        if probability > 0:
            key = (int(following), float(reward), bool(terminated))
            joined[key] = joined.get(key, 0.0) + probability
    return [(probability, *key) for key, probability in joined.items()]


def one_hot(n: int, index: int) -> np.ndarray:
    """(n,) probabilities that put all on `index`."""
    start = np.zeros(n)
    start[index] = 1.0
    return start
