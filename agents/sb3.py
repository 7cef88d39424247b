"""Stable-Baselines3's PPO and DQN with our agents' verbs, run folders and log points. Importing this module imports torch.

Loading a checkpoint of Stable-Baselines3 can run code that is hidden in it: load only files that you trust.
"""

import json
import logging
import pickle
import time
import zipfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar, Self

import gymnasium as gym
import numpy as np
import stable_baselines3
import torch
from gymnasium import spaces
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.vec_env import VecEnv

from tdraft.models.files import atomic_write
from tdraft.models.threads import one_thread

from .base import SpaceError
from .checkpoint import CheckpointError
from .sb3_decoding import play_sb3, sb3_policy
from .sb3_envs import discount, env_name, is_decoding, lanes
from .sb3_settings import DQNSettings, PPOSettings, Sb3Settings
from .settings import SettingsError, make_settings

log = logging.getLogger(__name__)


class ScaledObservation(BaseFeaturesExtractor):
    """Observations with every bounded entry mapped to [-1, 1], as the network's first layer: what is trained is what is served.

    :param observation_space: a Box; entries without finite bounds stay as they are
    """

    centre: torch.Tensor
    radius: torch.Tensor

    def __init__(self, observation_space: spaces.Box):
        super().__init__(observation_space, int(np.prod(observation_space.shape)))
        low, high = (bound.astype(np.float64).ravel() for bound in (observation_space.low, observation_space.high))
        bounded = np.isfinite(low) & np.isfinite(high) & (high > low) & (high - low < 1e9)
        low, high = np.where(bounded, low, -1.0), np.where(bounded, high, 1.0)
        self.register_buffer("centre", torch.tensor((low + high) / 2, dtype=torch.float32))
        self.register_buffer("radius", torch.tensor((high - low) / 2, dtype=torch.float32))

    def forward(self, observations: torch.Tensor) -> torch.Tensor:
        """(B, ...) -> (B, D)."""
        return (observations.flatten(1).float() - self.centre) / self.radius


class LogPoints(BaseCallback):
    """Calls `at_mark()` every `every` env steps; False ends the training there. `earned` sums the rewards."""

    def __init__(self, every: int, at_mark: Callable[[], bool], bar: Any):
        super().__init__()
        self.every, self.at_mark, self.bar, self.earned = every, at_mark, bar, 0.0

    def _on_training_start(self) -> None:
        self.mark = self.every * (self.model.num_timesteps // self.every + 1)

    def _on_step(self) -> bool:
        self.bar.update(self.training_env.num_envs)
        self.earned += float(self.locals["rewards"].sum())
        if self.num_timesteps < self.mark:
            return True
        self.mark = self.every * (self.num_timesteps // self.every + 1)
        return self.at_mark()


class Sb3Agent:
    """An algorithm of Stable-Baselines3's behind the verbs of `Agent`; `model` is the algorithm itself.

    :param env: a Gymnasium env, or a VecEnv of Stable-Baselines3's
    :param seed: of all its randomness; Stable-Baselines3 seeds Python's, NumPy's and torch's global generators with it
    :param hyperparameters: fields of the class's `Settings`
    :raises SpaceError: the env's spaces do not fit
    :raises SettingsError: an unknown hyper-parameter, a value out of range, or gamma other than 1 in a decoding env
    """

    name: ClassVar[str]
    Settings: ClassVar[type]
    algorithm: ClassVar[type[BaseAlgorithm]]
    actions: ClassVar[tuple[type[spaces.Space], ...]]  # action spaces that it takes
    mark: ClassVar[str]  # a key of the checkpoint's data that only this algorithm has
    reward_rate = float("nan")  # reward per step between the last two log points

    def __init__(self, env: gym.Env | VecEnv, *, seed: int | None = None, **hyperparameters):
        settings: Sb3Settings = make_settings(self.Settings, self.name, hyperparameters)
        if not isinstance(env.action_space, self.actions):
            kinds = " or ".join(kind.__name__ for kind in self.actions)
            raise SpaceError(f"{self.name} needs a {kinds} action space, got {env.action_space}")
        seed = int(np.random.SeedSequence().generate_state(1)[0]) if seed is None else seed
        if isinstance(seed, bool) or not isinstance(seed, int | np.integer) or not 0 <= seed < 2**32:
            raise SettingsError(f"seed must be an integer from 0 to 2**32 - 1 or None, got {seed!r}")
        scale = is_decoding(env) if settings.scale is None else settings.scale
        scale = scale and isinstance(env.observation_space, spaces.Box)
        body = {"net_arch": list(settings.net)} | ({"features_extractor_class": ScaledObservation} if scale else {})
        policy = "MultiInputPolicy" if isinstance(env.observation_space, spaces.Dict) else "MlpPolicy"
        options = settings.options() | {"gamma": discount(settings.gamma, env)}
        try:
            self.model = self.algorithm(policy, lanes(env, settings.n_envs), seed=int(seed), policy_kwargs=body, **options)  # pyright: ignore
        except (AssertionError, NotImplementedError) as error:
            raise SpaceError(f"{self.name} cannot train on this env: {str(error).splitlines()[0]}") from error
        self.settings, self.seed, self.env_id = settings, int(seed), env_name(env)
        # Saved with the model, as JSON:
        self.model.tdraft = {"settings": asdict(settings), "seed": self.seed, "env": self.env_id}  # pyright: ignore

    @property
    def num_timesteps(self) -> int:
        return self.model.num_timesteps

    @property
    def path(self) -> str:
        return f"Stable-Baselines3 {stable_baselines3.__version__}"

    @property
    def observation_space(self) -> spaces.Space:
        return self.model.observation_space

    @property
    def action_space(self) -> spaces.Space:
        return self.model.action_space

    def learn(
        self,
        total_timesteps: int,
        *,
        callback: Callable[[Self], bool | None] | None = None,
        log_dir: str | Path | None = None,
        progress_bar: bool = False,
        log_every: int | None = None,
    ) -> Self:
        """Train for `total_timesteps` more steps, rounded up to whole rollouts of n_steps * n_envs (PPO). Parameters as in
        `Agent.learn`; an episode that ends at a log point itself is counted in the next one's means."""
        if self.model.env is None:
            raise SettingsError("this agent has no env: pass env= to load()")
        from .runs import RunLogger, progress

        log.info("%s on %s, seed %d: %s", self.name, self.env_id, self.seed, self.path)
        started_at, began, written = self.num_timesteps, time.perf_counter(), self.num_timesteps
        log_every = max(1, int(total_timesteps) // 100) if log_every is None else log_every
        logger = RunLogger(log_dir, self.config(), self.num_timesteps) if log_dir is not None else None
        bar = progress(int(total_timesteps), enabled=progress_bar)

        def at_mark() -> bool:
            nonlocal written
            self.reward_rate, points.earned = points.earned / (self.num_timesteps - written), 0.0
            written = self.num_timesteps
            if logger:
                fps = (self.num_timesteps - started_at) / (time.perf_counter() - began)
                logger.write(self.num_timesteps, {**self.statistics(), "time/fps": round(fps)})
            return callback is None or callback(self) is not False

        self.model.set_logger(Logger(folder=None, output_formats=[]))
        points: Any = LogPoints(log_every, at_mark, bar)
        try:
            if total_timesteps > 0:
                with one_thread():
                    self.model.learn(int(total_timesteps), points, log_interval=None, reset_num_timesteps=False)  # pyright: ignore
                if written < self.num_timesteps:
                    at_mark()
        finally:
            bar.close()
            if logger:
                logger.close()
        return self

    def statistics(self) -> dict[str, float]:
        """The numbers of a log line, by Stable-Baselines3's tags."""
        numbers = {"rollout/reward_rate": self.reward_rate}
        episodes = self.model.ep_info_buffer
        if episodes:
            numbers["rollout/ep_rew_mean"] = float(np.mean([e["r"] for e in episodes]))
            numbers["rollout/ep_len_mean"] = float(np.mean([e["l"] for e in episodes]))
        recorded = getattr(self.model, "_logger", None)
        for tag, value in (recorded.name_to_value if recorded else {}).items():
            if tag.startswith(("train/", "rollout/")) and isinstance(value, int | float | np.number):
                numbers[tag] = float(value)
        return numbers

    def config(self) -> dict[str, Any]:
        """What was trained, for config.json."""
        settings = asdict(self.settings) | {"gamma": self.model.gamma}  # pyright: ignore[reportAttributeAccessIssue]
        return {"agent": self.name, "env": self.env_id, "seed": self.seed, "path": self.path, **settings}

    def predict(self, obs: Any, state: Any = None, episode_start: Any = None, deterministic: bool = True) -> tuple[Any, Any]:
        """Stable-Baselines3's own, greedy by default."""
        with one_thread():
            return self.model.predict(obs, state, episode_start, deterministic)

    def save(self, path: str | Path) -> None:
        """Write Stable-Baselines3's zip atomically, and DQN's replay buffer beside it (`<name>.replay.pkl`)."""
        if getattr(self.model, "replay_buffer", None) is not None:
            with atomic_write(replay_path(path)) as temporary, open(temporary, "wb") as file:
                self.model.save_replay_buffer(file)  # pyright: ignore[reportAttributeAccessIssue]
        with atomic_write(path) as temporary, open(temporary, "wb") as file:
            self.model.save(file)  # pyright: ignore[reportArgumentType]

    @classmethod
    def load(cls, path: str | Path, env: gym.Env | VecEnv | None = None) -> "Sb3Agent":
        """An agent as it was saved, by this class or by Stable-Baselines3. Training goes on from a new episode with fresh random
        numbers (and DQN's replay buffer where it is beside the file), so that it is *not* bit-identical to one without a break.

        :param env: to train on; without one the agent can only predict
        :raises FileNotFoundError, CheckpointError, SpaceError:
        """
        data = read_data(path)
        kinds = [k for k in (cls.__subclasses__() or [cls]) if k.mark in data]
        if not kinds:
            raise CheckpointError(f"{path} is no {getattr(cls, 'name', 'PPO or DQN')} of Stable-Baselines3")
        kind, about = kinds[0], data.get("tdraft", {})
        agent = kind.__new__(kind)
        given = about.get("settings", {})
        agent.settings = make_settings(kind.Settings, kind.name, given | ({"net": tuple(given["net"])} if given else {}))
        where = None if env is None else lanes(env, agent.settings.n_envs)
        try:
            agent.model = kind.algorithm.load(path, env=where, device=agent.settings.device)
        except ValueError as error:
            if env is not None and "spaces do not match" in str(error):
                have = f"{env.observation_space} and {env.action_space}"
                raise SpaceError(f"{path} was trained on other spaces than the env's, which are {have}") from error
            raise CheckpointError(f"{path} is damaged ({error})") from error
        except (KeyError, AssertionError, RuntimeError, EOFError, pickle.UnpicklingError, zipfile.BadZipFile) as error:
            raise CheckpointError(f"{path} is damaged, or of another version of Stable-Baselines3 ({error})") from error
        agent.seed, agent.env_id = about.get("seed", 0), about.get("env", "")
        if env is not None:
            agent.env_id = env_name(env)
            agent.model.set_random_seed((agent.seed + agent.num_timesteps) % 2**32)
            if replay_path(path).is_file():
                agent.model.load_replay_buffer(replay_path(path))  # pyright: ignore[reportAttributeAccessIssue]
        return agent


class PPO(Sb3Agent):
    """Proximal policy optimisation (Schulman et al. 2017, arXiv 1707.06347) of Stable-Baselines3."""

    name, Settings, algorithm, mark = "ppo", PPOSettings, stable_baselines3.PPO, "clip_range"
    actions = (spaces.Discrete, spaces.Box, spaces.MultiDiscrete, spaces.MultiBinary)


class DQN(Sb3Agent):
    """Deep Q-network (Mnih et al. 2015) of Stable-Baselines3."""

    name, Settings, algorithm, mark = "dqn", DQNSettings, stable_baselines3.DQN, "exploration_fraction"
    actions = (spaces.Discrete,)


AGENTS: dict[str, type[Sb3Agent]] = {"ppo": PPO, "dqn": DQN}


def replay_path(path: str | Path) -> Path:
    return Path(path).with_suffix(".replay.pkl")


def read_data(path: str | Path) -> dict[str, Any]:
    """The JSON description in a zip of Stable-Baselines3's; runs none of its code.

    :raises FileNotFoundError, CheckpointError: no such file; not a checkpoint of Stable-Baselines3
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"no checkpoint {path}")
    try:
        with zipfile.ZipFile(path) as file:
            return json.loads(file.read("data"))
    except (zipfile.BadZipFile, KeyError, ValueError, EOFError) as error:
        raise CheckpointError(f"{path} is not a checkpoint of Stable-Baselines3, or it is damaged ({error})") from error


__all__ = ["AGENTS", "DQN", "PPO", "Sb3Agent", "play_sb3", "sb3_policy"]
