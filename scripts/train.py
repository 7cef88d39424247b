"""`tdraft train AGENT --env ENV`: train an agent, one run a seed, with checkpoints to go on from."""

import logging
import signal
import sys
import time
from contextlib import nullcontext
from dataclasses import dataclass, make_dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import tyro

import tdraft.agents as agents
import tdraft.envs  # noqa: F401  registers our ids
from tdraft.agents.bands import write_bands
from tdraft.agents.runs import progress, run_folder
from tdraft.scripts.main import UsageError, unknown

log = logging.getLogger(__name__)
SB3 = ("ppo", "dqn")  # of Stable-Baselines3; only they import torch


@dataclass(frozen=True)
class TrainOptions:
    """What to train on, for how long, and where results go."""

    env: str
    """Id of a Gymnasium env, for example CliffWalking-v1."""
    timesteps: int = 100_000
    """Env steps of each run."""
    seeds: str = "0"
    """One seed, a list "0,3,5" or a range "0:5" (0 to 4)."""
    runs: Path = Path("runs")
    """Folder of all runs; one goes to RUNS/ENV/AGENT/seedK."""
    resume: bool = False
    """Go on from the last checkpoint of each run, where it has one."""
    overwrite: bool = False
    """Replace a run that is there."""
    checkpoint_seconds: float = 10.0
    """Time between checkpoints; 0 writes one at every log point."""


def parse_seeds(text: str) -> list[int]:
    """Seeds from "3", "0,3,5" or "0:5"."""
    try:
        seeds: list[int] = []
        for part in text.split(","):
            first, _, end = part.partition(":")
            seeds += range(int(first), int(end)) if end else [int(first)]
    except ValueError:
        seeds = []
    if not seeds or min(seeds) < 0:
        raise UsageError(f'seeds must be like "3", "0,3,5" or "0:5", got "{text}"')
    return seeds


def make_env(env_id: str) -> gym.Env:
    """`gym.make`, with a suggestion where the id is unknown."""
    name = env_id.split(":")[-1]
    if name not in gym.registry and ":" not in env_id:
        raise unknown("env", env_id, list(gym.registry), "gymnasium.pprint_registry()")
    try:
        return gym.make(env_id)
    except ModuleNotFoundError as error:
        raise UsageError(f'env "{env_id}" needs a module that is not installed: {error.name}') from error


class Stop:
    """Turns the first Ctrl-C into a flag, so that training ends between two chunks; the second ends it at once."""

    def __enter__(self) -> "Stop":
        self.asked = False
        self.former = signal.signal(signal.SIGINT, self._ask)
        return self

    def _ask(self, *_: Any) -> None:
        self.asked = True
        signal.signal(signal.SIGINT, self.former)

    def __exit__(self, *_: Any) -> None:
        signal.signal(signal.SIGINT, self.former)


def find_agent(name: str) -> Any:
    """The class of an agent, by the command line's name."""
    if name in SB3:
        from tdraft.agents import sb3

        return sb3.AGENTS[name]
    if name not in agents.AGENTS:
        raise unknown("agent", name, [*agents.AGENTS, *SB3], "tdraft train --help")
    return getattr(agents, agents.AGENTS[name])


def train_one(
    kind: Any, options: TrainOptions, settings: dict[str, Any], seed: int, stop: Stop, bar: Any = None
) -> tuple[bool, float]:
    """One run; whether it came to its end, and the mean reward of its last episodes.

    :param bar: of all runs together; None shows one of this run
    """
    env = make_env(options.env)
    folder = run_folder(options.runs, options.env, kind.name, seed)
    path = folder / ("checkpoint.zip" if kind.name in SB3 else "checkpoint.npz")
    if path.exists() and not (options.resume or options.overwrite):
        raise UsageError(f"{folder} holds a run: --resume goes on with it, --overwrite replaces it")
    if options.resume and path.exists():
        agent = kind.load(path, env)
        given = kind.Settings(**settings)
        if agent.settings != given:
            parts = [f"{k} {getattr(agent.settings, k)} -> {v}" for k, v in settings.items() if getattr(agent.settings, k) != v]
            raise UsageError(f"{folder} was trained with other settings ({', '.join(parts)}): give the same, or --overwrite")
        log.info("going on from step %d", agent.num_timesteps)
    else:
        agent = kind(env, seed=seed, **settings)
    for name in ("checkpoint", "progress", "config"):
        for left in folder.glob(f".{name}.*"):  # of a run that was killed while it wrote
            left.unlink()
    saved, shown = time.perf_counter(), 0

    def callback(agent: Any) -> bool:
        nonlocal saved, shown
        if bar is not None:
            bar.update(agent.num_timesteps - shown)
            shown = agent.num_timesteps
        if time.perf_counter() - saved >= options.checkpoint_seconds:
            agent.save(path)
            saved = time.perf_counter()
        return not stop.asked

    began, before = time.perf_counter(), agent.num_timesteps
    remaining = max(0, options.timesteps - before)
    try:
        log_every = max(1, options.timesteps // 100)
        agent.learn(remaining, callback=callback, log_dir=folder, progress_bar=bar is None, log_every=log_every)
        agent.save(path)
        if bar is not None:
            bar.update(agent.num_timesteps - shown)  # of a run that had nothing left to do
    except OSError as error:
        kept = "; the last checkpoint is kept, --resume goes on from it" if path.exists() else ""
        raise UsageError(f"cannot write to {folder}: {error.strerror or error}{kept}") from error
    finally:
        env.close()
    seconds = time.perf_counter() - began
    numbers = agent.statistics()
    reward, rate = (numbers.get(f"rollout/{name}", float("nan")) for name in ("ep_rew_mean", "reward_rate"))
    steps = f"{agent.num_timesteps - before:,} steps in {seconds:.1f} s ({agent.path})"
    result = f"mean reward of the last episodes {reward:.2f}"
    if np.isnan(reward):
        result = "no episode has ended yet" + ("" if np.isnan(rate) else f", reward per step lately {rate:.4g}")
    with bar.external_write_mode() if bar is not None else nullcontext():
        print(f"seed {seed}: {steps}, {result}, {folder}")
    return agent.num_timesteps >= options.timesteps, reward


def summary(rewards: list[float], folder: Path, bands: Path | None) -> str:
    """What several runs came to, and how to look at them."""
    mean, error = np.mean(rewards), np.std(rewards, ddof=1) / np.sqrt(len(rewards))
    shown = "" if np.isnan(mean) else f": mean reward {mean:.2f} ± {error:.2f} (standard error over seeds)"
    custom = " (bands: its tab Custom Scalars)" if bands else ""
    return f"{len(rewards)} seeds{shown}\nlook at them: tdraft plot {folder}; tensorboard --logdir {folder}{custom}"


def main(argv: list[str]) -> int:
    """Run `tdraft train`."""
    names = ", ".join([*agents.AGENTS, *SB3])
    if not argv or argv[0] in ("-h", "--help"):
        print(f"usage: tdraft train AGENT --env ENV [OPTIONS]\n\nagents: {names}\n\ntdraft train AGENT --help lists its options.")
        return 0 if argv else 2
    if argv[0].startswith("-"):
        raise UsageError(f"the agent comes first: tdraft train AGENT --env ENV; agents are {names}")
    kind = find_agent(argv[0])
    unchecked = type("Settings", (kind.Settings,), {"__post_init__": lambda self: None, "__doc__": kind.Settings.__doc__})
    both = make_dataclass("Options", [("run", TrainOptions), ("agent", unchecked)], frozen=True)
    both.__doc__ = kind.__doc__
    given: Any = tyro.cli(tyro.conf.OmitArgPrefixes[both], prog=f"tdraft train {argv[0]}", args=argv[1:])  # pyright: ignore
    options, settings = given.run, dict(vars(given.agent))
    if options.timesteps < 1:
        raise UsageError(f"timesteps must be at least 1, got {options.timesteps}")
    falling = any(value is not None for name, value in settings.items() if name.endswith("_final"))
    if settings.get("horizon", 0) is None and (falling or settings.get("average")):
        settings["horizon"] = options.timesteps
    seeds, rewards, chatty = parse_seeds(options.seeds), [], logging.getLogger("tdraft.agents")
    level = chatty.level
    bar = progress(len(seeds) * options.timesteps, enabled=True) if len(seeds) > 1 else None
    try:
        with Stop() as stop:
            for seed in seeds:
                finished, reward = train_one(kind, options, settings, seed, stop, bar)
                if not finished:
                    print("interrupted; the same command with --resume goes on", file=sys.stderr)
                    return 130
                rewards.append(reward)
                chatty.setLevel(logging.WARNING)  # what the first run said of the env holds for the others
    finally:
        chatty.setLevel(level)
        if bar is not None:
            bar.close()
    folder = run_folder(options.runs, options.env, kind.name, 0).parent
    bands = write_bands(folder)  # also after a single seed: others may be there
    if len(rewards) > 1:
        print(summary(rewards, folder, bands))
    return 0
