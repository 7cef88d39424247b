"""What agents ask of an env, with errors that say what it gave: its spaces, its transition table, observations and rewards."""

import math
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from tdraft.envs.compiled import CompiledEnv, Reason, Table, compile_env


class SpaceError(ValueError):
    """An observation or action space that an agent cannot work with, or an observation outside its space."""


class EnvError(ValueError):
    """An env that does what none may: a transition table that is no such thing, a reward that is no finite number."""


def check_observation(space: spaces.Discrete, obs: Any) -> int:
    """The observation as an int; SpaceError if it is none or outside the space."""
    if not isinstance(obs, int | np.integer) and not (isinstance(obs, np.ndarray) and obs.ndim == 0 and obs.dtype.kind in "iu"):
        raise SpaceError(f"expected an observation of {space}, got {obs!r}")
    if not space.start <= int(obs) < space.start + space.n:
        raise SpaceError(f"expected an observation of {space}, got {int(obs)}")
    return int(obs)


def check_vectors(space: spaces.Space, vectors: np.ndarray) -> np.ndarray:
    """The same vectors; SpaceError if one holds NaN. Features take an observation outside the bounds as the nearest inside."""
    if np.isnan(vectors).any():
        raise SpaceError(f"expected an observation of {space}, got one with NaN: {vectors}")
    return vectors


def compiled_form(env: gym.Env, name: str) -> CompiledEnv | Reason:
    """`compile_env`, and an EnvError that names the env where its table `P` is not one of its spaces."""
    try:
        made = compile_env(env)
    except ValueError as error:
        raise EnvError(f"{name}: {error}") from error
    except LookupError as error:
        raise EnvError(f"{name}: P lacks an action or a state, {error}") from error
    if isinstance(made, CompiledEnv) and isinstance(made.params, Table):
        shape = made.params.cumulative.shape[:2]
        expected = env.observation_space.n, env.action_space.n  # pyright: ignore[reportAttributeAccessIssue]
        if shape != expected:
            raise EnvError(f"{name}: P must be of {expected[0]} states and {expected[1]} actions, got {shape[0]} and {shape[1]}")
    return made


def check_reward(reward: Any) -> float:
    """The reward as a float; EnvError if it is not a finite number."""
    try:
        number = float(reward)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise EnvError(f"expected a reward that is a finite number, the env gave {reward!r}")
    return number
