"""What Stable-Baselines3's algorithms need to know of an env: its discount factor, and copies of it side by side."""

from collections.abc import Callable
from typing import Any

import gymnasium as gym
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv

from tdraft.envs.decoding.accept import AcceptEnv
from tdraft.envs.decoding.draft import DraftEnv
from tdraft.envs.decoding.live import LiveDraftEnv

from .settings import SettingsError

DECODING = (DraftEnv, AcceptEnv, LiveDraftEnv)


def innermost(env: gym.Env | VecEnv) -> Any:
    return env.get_attr("unwrapped")[0] if isinstance(env, VecEnv) else env.unwrapped


def is_decoding(env: gym.Env | VecEnv) -> bool:
    """Whether the env's reward is tokens / rho - time."""
    return isinstance(innermost(env), DECODING)


def env_name(env: gym.Env | VecEnv) -> str:
    inner = innermost(env)
    return inner.spec.id if inner.spec else type(inner).__name__


def discount(gamma: float | None, env: gym.Env | VecEnv) -> float:
    """gamma as the env wants it: 1 in the decoding envs, else 0.99 unless given.

    :raises SettingsError: another gamma in a decoding env, where the optimal policy would depend on the reference rate
    """
    if not is_decoding(env):
        return 0.99 if gamma is None else gamma
    if gamma not in (None, 1):
        raise SettingsError(
            f"gamma must be 1 in {env_name(env)}, whose optimal policy it would change, got {gamma}: leave it out"
        )
    return 1.0


def lanes(env: gym.Env | VecEnv, count: int) -> gym.Env | VecEnv:
    """`count` copies of an env that `gym.make` made, side by side."""
    if count == 1 or isinstance(env, VecEnv):
        return env
    spec = env.spec
    if spec is None:
        raise SettingsError(f"n_envs={count} needs an env made by gym.make; for another, pass a VecEnv of Stable-Baselines3's")
    makers: list[Callable[[], gym.Env]] = [lambda: Monitor(env), *[lambda: Monitor(gym.make(spec))] * (count - 1)]
    return DummyVecEnv(makers)
