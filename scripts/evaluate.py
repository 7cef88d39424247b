"""`tdraft evaluate CHECKPOINT ...`: play episodes with trained agents, ours or Stable-Baselines3's."""

import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import tyro

import tdraft.agents as agents
from tdraft.agents import checkpoint
from tdraft.agents.checkpoint import CheckpointError
from tdraft.agents.runs import progress
from tdraft.scripts.main import UsageError
from tdraft.scripts.results import write_rows
from tdraft.scripts.train import make_env


@dataclass(frozen=True)
class Evaluate:
    """Play episodes with trained agents and say what they earn."""

    checkpoints: tyro.conf.Positional[tuple[Path, ...]]
    """Checkpoints (npz, or zip of Stable-Baselines3), or folders of runs."""
    env: str | None = None
    """Id of the env; by default the one that the agent was trained on."""
    episodes: int = 100
    """Episodes of each agent."""
    seed: int = 0
    """Episode i is reset with seed + i."""
    stochastic: bool = False
    """Act as in training (epsilon-greedy, or drawn from the policy) in place of greedily."""
    max_steps: int = 10_000
    """Steps after which an episode is cut off."""
    json: Path | None = None
    """Write the numbers to this file."""


class Episodes(NamedTuple):
    """What was seen in each of n episodes."""

    rewards: np.ndarray  # (n,) sums
    lengths: np.ndarray  # (n,) steps
    tokens: np.ndarray  # (n,) of info["tokens"], in decoding envs
    times: np.ndarray  # (n,) of info["duration"], in plain decoding steps
    cut: int  # episodes that max_steps ended


def load_agent(path: Path) -> tuple[Any, Any, str]:
    """The class of the agent in a checkpoint, the checkpoint's path, and the id of the env that it was trained on.

    :param path: a checkpoint, or the folder of a run
    :raises UsageError, FileNotFoundError, CheckpointError:
    """
    if path.is_dir():
        here = [path / name for name in ("checkpoint.npz", "checkpoint.zip") if (path / name).is_file()]
        if not here:
            raise UsageError(f"no checkpoint in the folder {path}: give the folder of one run, like runs/ENV/AGENT/seed0")
        path = here[0]
    if not path.is_file():
        raise FileNotFoundError(f"no checkpoint {path}")
    if is_sb3(path):
        from tdraft.agents import sb3

        return sb3.Sb3Agent, path, sb3.read_data(path).get("tdraft", {}).get("env", "")
    meta, _ = checkpoint.read(path)
    name = agents.AGENTS.get(meta.get("class", ""))
    if name is None:
        raise CheckpointError(f'{path} holds a "{meta.get("class")}"; agents are {", ".join(agents.AGENTS)}')
    return getattr(agents, name), path, meta["env"]


def is_sb3(path: Path) -> bool:
    """Whether a file is a zip of Stable-Baselines3's; ours are zips too, of arrays."""
    try:
        with zipfile.ZipFile(path) as file:
            return {"data", "policy.pth"} <= set(file.namelist())
    except zipfile.BadZipFile:
        return False


def play(
    agent: Any, env: gym.Env, episodes: int, *, seed: int = 0, stochastic: bool = False, max_steps: int = 10_000
) -> Episodes:
    """Play episodes; the i-th is reset with seed + i, so that it is the same whatever was played before it.

    :param agent: anything with Stable-Baselines3's `predict`
    """
    found, cut = np.zeros((4, episodes)), 0
    bar = progress(episodes, enabled=True)
    bar.unit = "episode"
    for i in range(episodes):
        obs, _ = env.reset(seed=seed + i)
        done = False
        while not done:
            action = agent.predict(obs, deterministic=not stochastic)[0]
            obs, reward, terminated, truncated, info = env.step(action.item() if np.ndim(action) == 0 else action)
            found[:, i] += float(reward), 1, info.get("tokens", 0), info.get("duration", 0.0)
            done = terminated or truncated
            if found[1, i] >= max_steps and not done:
                done, cut = True, cut + 1
        bar.update(1)
    bar.close()
    return Episodes(*found, cut)  # pyright: ignore[reportCallIssue]


def mean_and_error(values: np.ndarray) -> tuple[float, float]:
    """Mean and its standard error; nan for the error of a single value."""
    return float(values.mean()), float(values.std(ddof=1) / np.sqrt(len(values))) if len(values) > 1 else float("nan")


def ratio_and_error(above: np.ndarray, below: np.ndarray) -> tuple[float, float]:
    """Ratio of sums, and its standard error over episodes by the delta method."""
    ratio = float(above.sum() / below.sum())
    _, error = mean_and_error(above - ratio * below)
    return ratio, float(error / below.mean())


def report(name: str, seen: Episodes) -> list[dict]:
    """The rows of one agent."""
    numbers = {
        "mean reward": (*mean_and_error(seen.rewards), "reward"),
        "mean length": (*mean_and_error(seen.lengths), "steps"),
    }
    if seen.tokens.any():
        numbers["tokens per time"] = (*ratio_and_error(seen.tokens, seen.times), "tokens per plain decoding step")
    return [
        {"name": name, "metric": metric, "value": value, "unit": unit, "runs": len(seen.rewards)}
        | ({} if np.isnan(error) else {"se": error})
        for metric, (value, error, unit) in numbers.items()
    ]


def run(options: Evaluate) -> None:
    """Evaluate every checkpoint."""
    if not options.checkpoints:
        raise UsageError("give a checkpoint: tdraft evaluate runs/ENV/AGENT/seed0/checkpoint.npz")
    if options.episodes < 1 or options.max_steps < 1 or options.seed < 0:
        raise UsageError(
            f"episodes and max_steps must be at least 1 and seed at least 0, got {options.episodes}, {options.max_steps} and "
            f"{options.seed}"
        )
    rows: list[dict] = []
    for given in options.checkpoints:
        kind, path, trained_on = load_agent(given)
        env_id = options.env or trained_on
        if not env_id:
            raise UsageError(f"{path} does not say which env it was trained on: give --env")
        env = make_env(env_id)
        agent = kind.load(path, env)
        name = f"{agent.name}/{env_id}/seed{agent.seed}"
        settings = {"seed": options.seed, "stochastic": options.stochastic, "max_steps": options.max_steps}
        seen = play(agent, env, options.episodes, **settings)
        env.close()
        found = report(name, seen)
        parts = [f"{r['metric']} {r['value']:.3f}" + (f" ± {r['se']:.3f}" if "se" in r else "") for r in found]
        cut = f"; {seen.cut} cut off after {options.max_steps} steps" if seen.cut else ""
        print(f"{name}: {', '.join(parts)} (standard errors over {options.episodes} episodes{cut})")
        rows += found
    if options.json is not None:
        write_rows(options.json, rows)
