"""What every agent is: `begin` and `step` inside, Stable-Baselines3's verbs outside (`learn`, `predict`, `save`, `load`)."""

import logging
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Self

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from tdraft.envs.compiled import CompiledEnv, env_rng, leaves, mutable_leaves
from tdraft.kernels.rng import seed_state, uniform

from . import checkpoint
from .checkpoint import CheckpointError
from .checks import EnvError as EnvError
from .checks import SpaceError, check_reward, compiled_form
from .checks import check_observation as check_observation
from .loop import RECENT, interpreted_loop, new_standing, no_collection, training_loop
from .settings import SettingsError, make_settings

log = logging.getLogger(__name__)
CHUNK_SECONDS = 0.2  # between two looks at Ctrl-C


class DivergedError(ValueError):
    """Action values that are no longer finite."""


class Decision(NamedTuple):
    """A trained policy for compiled loops: `decide(params, memory, obs) -> action`, greedy and without random numbers."""

    decide: Callable
    params: tuple[np.ndarray, ...]
    memory: np.ndarray


class Agent(ABC):
    """A learning rule with its state.

    :param env: a Gymnasium env with the spaces that the rule works on; see `set_env` of one that changes
    :param seed: of all its randomness; None draws one, which `agent.seed` then holds
    :param hyperparameters: fields of the class's `Settings`
    :raises SpaceError: the env's spaces do not fit
    :raises EnvError: its transition table `P` is none
    :raises SettingsError: an unknown hyper-parameter, or a value out of range
    """

    name: ClassVar[str]
    Settings: ClassVar[type]
    begin_rule: ClassVar[Callable]  # njit: (learner, obs, rng) -> action
    step_rule: ClassVar[Callable]  # njit: (learner, reward, discount, obs, duration, rng) -> action
    learner: Any

    def __init__(self, env: gym.Env, *, seed: int | None = None, **hyperparameters):
        settings = make_settings(self.Settings, self.name, hyperparameters)
        if not isinstance(env, gym.Env | gym.vector.VectorEnv):
            raise SpaceError(f"{self.name} trains on a gym.Env, got {env!r}: make one with gym.make")
        if isinstance(env, gym.vector.VectorEnv):
            raise SpaceError(f"{self.name} trains on a single gym.Env, got a vector env: use gym.make in place of gym.make_vec")
        self._set_up(settings, seed, env.observation_space, env.action_space)
        self.set_env(env)

    def _set_up(self, settings, seed: int | None, observation_space: spaces.Space, action_space: spaces.Space) -> None:
        if seed is not None and (not isinstance(seed, int | np.integer) or isinstance(seed, bool) or seed < 0):
            raise SettingsError(f"seed must be an integer >= 0 or None, got {seed!r}")
        self.check_spaces(observation_space, action_space)
        self.settings = settings
        self.observation_space, self.action_space = observation_space, action_space
        self.seed = int(np.random.SeedSequence().generate_state(1)[0] if seed is None else seed)
        env_seed, acting, serving = np.random.SeedSequence(self.seed).spawn(3)
        self.env_seed = int(env_seed.generate_state(1)[0])
        self.env_rng, self.rng, self.predict_rng = env_rng(self.env_seed), seed_state(acting), seed_state(serving)
        self.num_timesteps = 0
        self.standing = new_standing()
        self.td_error = float("nan")  # mean absolute TD error between the last two log points
        self.reward_rate = float("nan")  # reward per step, between the same
        self.learner = self.make_learner()
        self.env: gym.Env | None = None
        self.env_id = ""
        self.compiled: CompiledEnv | None = None
        self.path = "no env"
        self._obs: Any = None
        self._env_generator: dict | None = None

    def set_env(self, env: gym.Env) -> None:
        """Train on this env from now on; a new episode begins.

        Compiled training goes by the parameters that the env has now: after a change of them, for example of `env.unwrapped.P`,
        call this again.
        """
        if (env.observation_space, env.action_space) != (self.observation_space, self.action_space):
            raise SpaceError(
                f"the agent was made for {self.observation_space} and {self.action_space}, the env has "
                f"{env.observation_space} and {env.action_space}"
            )
        self.env, self.env_id = env, env.spec.id if env.spec else type(env.unwrapped).__name__
        made = compiled_form(env, self.env_id)
        self.compiled = made if isinstance(made, CompiledEnv) else None
        self.path = "compiled" if isinstance(made, CompiledEnv) else f"interpreted: {made}"
        self.standing.counts[0] = 0
        self._obs = self.blank_observation()
        self._env_seeded = False

    # What a kind of agent says of itself.

    @classmethod
    def check_spaces(cls, observation_space: spaces.Space, action_space: spaces.Space) -> None:
        """Raise SpaceError where the agent cannot work on these spaces."""
        if not isinstance(action_space, spaces.Discrete):
            raise SpaceError(
                f"{cls.name} needs a Discrete action space, got {action_space}: wrap the env so that an action is one integer"
            )

    @abstractmethod
    def make_learner(self) -> Any:
        """The learner's state at the start: a NamedTuple of arrays and numbers."""

    @abstractmethod
    def encode(self, obs: Any) -> Any:
        """One observation as the rules take it; SpaceError where it is not one."""

    @abstractmethod
    def batch(self, obs: Any) -> tuple[np.ndarray, bool]:
        """Observations (n_envs, ...) or a single one as an array of n, and whether it was a single one."""

    @abstractmethod
    def greedy_actions(self, batch: np.ndarray) -> np.ndarray:
        """(n,) greedy actions, counted from 0, the lowest where there are ties."""

    @abstractmethod
    def policy(self) -> Decision:
        """The greedy policy for compiled loops, as it stands now."""

    @property
    @abstractmethod
    def table(self) -> Any:
        """The NamedTuple that holds `clock`, `error` and `schedule`."""

    def blank_observation(self) -> Any:
        return 0

    @property
    def n_actions(self) -> int:
        assert isinstance(self.action_space, spaces.Discrete)
        return int(self.action_space.n)

    @property
    def gamma(self) -> float:
        """The discount factor of the loop: 1 for agents that have none."""
        return float(getattr(self.settings, "gamma", 1.0))

    @property
    def epsilon(self) -> float:
        """Exploration probability at this moment."""
        schedule = self.table.schedule
        return schedule.epsilon + schedule.epsilon_change * min(1.0, self.table.clock[0] * schedule.rate)

    # Inside: RL-Glue's two methods.

    def begin(self, obs: Any) -> int:
        """The first action of an episode."""
        return self.begin_rule(self.learner, self.encode(obs), self.rng) + self._first_action

    def step(self, reward: Any, discount: float, obs: Any, duration: float = 1.0) -> int:
        """Learn from what the last action brought, then act.

        :param reward: a finite number
        :param discount: gamma, or 0 where the episode terminated
        :param duration: sojourn time, for semi-Markov agents
        """
        action = self.step_rule(self.learner, check_reward(reward), float(discount), self.encode(obs), float(duration), self.rng)
        return action + self._first_action

    @property
    def _first_action(self) -> int:
        return int(self.action_space.start)  # pyright: ignore[reportAttributeAccessIssue]

    # Outside: Stable-Baselines3's verbs.

    def learn(
        self,
        total_timesteps: int,
        *,
        callback: Callable[["Agent"], bool | None] | None = None,
        log_dir: str | Path | None = None,
        progress_bar: bool = False,
        log_every: int | None = None,
    ) -> Self:
        """Train for `total_timesteps` more steps. How they are cut into chunks, logged and interrupted doesn't change the result.

        :param callback: called with the agent at every log point; False ends the training there
        :param log_dir: folder for config.json, progress.csv and TensorBoard events
        :param progress_bar: show one where the output is a terminal and it takes more than two seconds
        :param log_every: steps between log points, by default a hundredth of the whole
        :raises DivergedError: the action values are no longer finite
        :raises EnvError: the env gives a reward that is no finite number
        """
        if self.env is None:
            raise SettingsError("this agent has no env: pass env= to load(), or call set_env")
        if not isinstance(total_timesteps, int | np.integer) or total_timesteps < 0:
            raise SettingsError(f"total_timesteps must be an integer >= 0, got {total_timesteps!r}")
        from .runs import RunLogger, progress

        log.info("%s on %s, seed %d: %s", self.name, self.env_id, self.seed, self.path)
        end = self.num_timesteps + int(total_timesteps)
        log_every = max(1, int(total_timesteps) // 100) if log_every is None else log_every
        logger = RunLogger(log_dir, self.config(), self.num_timesteps) if log_dir is not None else None
        bar = progress(int(total_timesteps), enabled=progress_bar)
        chunk, error, unreported, earned = 1000, 0.0, 0, self._earned()
        marks, began, started_at = log_every * (self.num_timesteps // log_every + 1), time.perf_counter(), self.num_timesteps
        try:
            while self.num_timesteps < end:
                steps = min(chunk, end - self.num_timesteps, marks - self.num_timesteps)
                now = time.perf_counter()
                self._train(steps)
                chunk = _next_chunk(chunk, steps, time.perf_counter() - now)
                self.num_timesteps += steps
                bar.update(steps)
                error, unreported = error + float(self.table.error[0]), unreported + steps
                self.table.error[0] = 0.0
                if self.num_timesteps < min(marks, end):
                    continue
                self.td_error, self.reward_rate = error / unreported, (self._earned() - earned) / unreported
                error, unreported, earned, marks = 0.0, 0, self._earned(), marks + log_every
                if not np.isfinite(self.td_error):
                    raise DivergedError(
                        f"action values are not finite after {self.num_timesteps} steps: lower alpha, now {self.settings.alpha}"
                    )
                if logger:
                    fps = (self.num_timesteps - started_at) / (time.perf_counter() - began)
                    logger.write(self.num_timesteps, {**self.statistics(), "time/fps": round(fps)})
                if callback is not None and callback(self) is False:
                    break
        finally:
            bar.close()
            if logger:
                logger.close()
        return self

    def _train(self, steps: int) -> None:
        """Some steps on the path that the env allows."""
        assert self.env is not None
        if self.compiled is None:
            seed = None if self._env_seeded else self.env_seed
            self._env_seeded = True
            if seed is not None and self._env_generator is not None:  # a resumed run: go on with its generator
                self.env.reset(seed=seed)
                self.env.unwrapped.np_random.bit_generator.state = self._env_generator
                seed = None
            interpreted_loop(self.env, self, self.gamma, steps, self.standing, seed)
            return
        params, reset, step, limit, _ = self.compiled
        loop = training_loop(reset, step, self.begin_rule, self.step_rule, isinstance(self._obs, np.ndarray))
        with no_collection():
            self._obs = loop(params, self.learner, self.gamma, steps, limit, self.env_rng, self.rng, self._obs, self.standing)

    def _earned(self) -> float:
        """Reward of all steps so far."""
        inside, score = self.standing.counts[0], self.standing.score[0]
        return float(self.standing.earned[0] + (score if inside else 0.0))

    def statistics(self) -> dict[str, float]:
        """The numbers of a log line, by TensorBoard tag; those of episodes only once one has ended."""
        episodes = int(self.standing.counts[3])
        numbers = {
            "rollout/reward_rate": self.reward_rate,
            "rollout/exploration_rate": self.epsilon,
            "train/td_error": self.td_error,
        }
        if episodes:
            reward, length = self.standing.recent[: min(episodes, RECENT)].mean(axis=0)
            numbers |= {"rollout/ep_rew_mean": float(reward), "rollout/ep_len_mean": float(length)}
        return numbers

    def config(self) -> dict[str, Any]:
        """What was trained, for config.json."""
        return {"agent": self.name, "env": self.env_id, "seed": self.seed, "path": self.path, **self.settings_dict()}

    def settings_dict(self) -> dict[str, Any]:
        return asdict(self.settings)

    def predict(
        self, obs: Any, state: Any = None, episode_start: Any = None, deterministic: bool = True
    ) -> tuple[np.ndarray, Any]:
        """Stable-Baselines3's signature.

        :param obs: observations (n_envs, ...), or a single one
        :param state: passed through, these agents have no memory
        :param deterministic: greedy, the lowest action where there are ties; otherwise exploring as in training
        :return: actions (n_envs,) or a 0-d array, and `state`
        :raises SpaceError: observations that are not of the space
        """
        batch, single = self.batch(obs)
        actions = self.greedy_actions(batch).astype(np.int64)
        if not deterministic:
            actions = self.exploring_actions(batch, actions)
        actions = actions + self._first_action
        return (actions[0] if single else actions), state

    def exploring_actions(self, batch: np.ndarray, greedy: np.ndarray) -> np.ndarray:
        """(n,) actions of the behaviour in training, here epsilon-greedy: some of `greedy` (n,) replaced."""
        draws = np.array([uniform(self.predict_rng) for _ in range(2 * len(greedy))]).reshape(2, -1)
        return np.where(draws[0] < self.epsilon, (draws[1] * self.n_actions).astype(np.int64), greedy)

    def save(self, path: str | Path) -> None:
        """Write everything that training depends on, atomically: values, counters, every generator, a compiled env's state."""
        meta = {
            "class": self.name,
            "settings": self.settings_dict(),
            "seed": self.seed,
            "num_timesteps": self.num_timesteps,
            "env": self.env_id,
            "spaces": [space_to_json(self.observation_space), space_to_json(self.action_space)],
            "path": "compiled" if self.compiled else "interpreted",
            "obs": None,
            "env_generator": self._generator_state(),
        }
        groups = {"learner": dict(leaves(self.learner)), "standing": dict(leaves(self.standing))}
        groups["rng"] = {"env": self.env_rng, "agent": self.rng, "predict": self.predict_rng}
        if self.compiled is not None:
            groups["env"] = mutable_leaves(self.compiled)
            meta["obs"] = self._where_obs()
        arrays = {f"{group}.{name}": array for group, members in groups.items() for name, array in members.items()}
        checkpoint.write(path, meta, arrays)

    @classmethod
    def load(cls, path: str | Path, env: gym.Env | None = None) -> Self:
        """An agent as it was saved; training goes on bit for bit (with a foreign env, from a new episode).

        :param env: to train on; without one the agent can only predict
        :raises FileNotFoundError, CheckpointError, SpaceError:
        """
        meta, arrays = checkpoint.read(path)
        _import_kind(meta["class"])
        kind = next((k for k in _kinds(cls) if getattr(k, "name", None) == meta["class"]), None)
        if kind is None:
            expected = f"a {cls.name}" if hasattr(cls, "name") else "one of this kind"
            raise CheckpointError(f"{path} holds a {meta['class']}, not {expected}: load it with its own class or Agent.load")
        agent = kind.__new__(kind)  # pyright: ignore[reportCallIssue]
        observation_space, action_space = (space_from_json(s) for s in meta["spaces"])
        agent._set_up(agent.settings_from(meta, arrays), meta["seed"], observation_space, action_space)
        agent.num_timesteps, agent.env_id, agent._env_generator = meta["num_timesteps"], meta["env"], meta["env_generator"]
        checkpoint.restore(dict(leaves(agent.learner)), arrays, "learner", path)
        checkpoint.restore({"env": agent.env_rng, "agent": agent.rng, "predict": agent.predict_rng}, arrays, "rng", path)
        if env is not None:
            agent.set_env(env)
        arrays.setdefault("standing.earned", np.zeros(1))  # only differences of it count, and older files have none
        checkpoint.restore(dict(leaves(agent.standing)), arrays, "standing", path)
        agent._resume_env(meta, arrays, path)
        return agent

    def settings_from(self, meta: dict[str, Any], arrays: dict[str, np.ndarray]) -> Any:
        return make_settings(self.Settings, self.name, meta["settings"])

    def _resume_env(self, meta: dict[str, Any], arrays: dict[str, np.ndarray], path: str | Path) -> None:
        """Put a compiled env back where it stood; with any other a new episode begins."""
        if self.compiled is None or meta["path"] != "compiled" or self.env_id != meta["env"]:
            self.standing.counts[0] = 0
            return
        checkpoint.restore(mutable_leaves(self.compiled), arrays, "env", path)
        where = meta["obs"]
        self._obs = dict(leaves(self.compiled.params))[where] if isinstance(where, str) else where
        if where is None:
            self._obs = self.blank_observation()

    def _where_obs(self) -> Any:
        """The observation as JSON: the integer, or the name of the env's buffer that holds it."""
        assert self.compiled is not None
        if not isinstance(self._obs, np.ndarray):
            return int(self._obs)
        return next(
            (n for n, a in leaves(self.compiled.params) if a.ctypes.data == self._obs.ctypes.data and a.shape == self._obs.shape),
            None,
        )

    def _generator_state(self) -> dict | None:
        """State of a foreign env's NumPy generator, so that its noise goes on after `load`."""
        if self.env is None or self.compiled is not None or not self._env_seeded:
            return self._env_generator
        state = self.env.unwrapped.np_random.bit_generator.state
        return dict(state) if state.get("bit_generator") == "PCG64" else None


def _import_kind(name: str) -> None:
    """Import the class that a checkpoint names, for `_kinds` to find."""
    from tdraft import agents

    if name in agents.AGENTS:
        getattr(agents, agents.AGENTS[name])
    elif name.endswith("-prediction"):
        getattr(agents, "prediction")  # noqa: B009  imports it


def _kinds(cls: type) -> list[type]:
    """A class and all classes below it."""
    return [cls, *(k for below in cls.__subclasses__() for k in _kinds(below))]


def _next_chunk(chunk: int, steps: int, seconds: float) -> int:
    """Steps that take about CHUNK_SECONDS; grows fourfold at most, since the first chunk includes compiling."""
    return int(min(4 * chunk, max(100, steps * CHUNK_SECONDS / max(seconds, 1e-9)))) if steps == chunk else chunk


def space_to_json(space: spaces.Space) -> dict[str, Any]:
    if isinstance(space, spaces.Discrete):
        return {"n": int(space.n), "start": int(space.start)}
    if isinstance(space, spaces.Dict):
        return {"spaces": {name: space_to_json(part) for name, part in space.spaces.items()}}
    if isinstance(space, spaces.MultiDiscrete):
        return {"nvec": space.nvec.tolist()}
    assert isinstance(space, spaces.Box)
    return {"low": space.low.tolist(), "high": space.high.tolist(), "dtype": str(space.dtype)}


def space_from_json(data: dict[str, Any]) -> spaces.Space:
    if "n" in data:
        return spaces.Discrete(data["n"], start=data["start"])
    if "spaces" in data:
        return spaces.Dict({name: space_from_json(part) for name, part in data["spaces"].items()})
    if "nvec" in data:
        return spaces.MultiDiscrete(data["nvec"])
    dtype = np.dtype(data["dtype"]).type
    return spaces.Box(np.array(data["low"], dtype), np.array(data["high"], dtype), dtype=dtype)
