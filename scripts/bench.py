"""`tdraft bench`: speeds on this machine, each beside a peer in the same run."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import gymnasium as gym
import numpy as np

import tdraft.envs  # noqa: F401
from tdraft.agents import QLearning
from tdraft.envs.decoding.draft import DEFAULT_COST, DraftEnv, Replay
from tdraft.envs.decoding.tabular import TabularDraft
from tdraft.models.decoding.calibration import default_difficulty, fit_calibration
from tdraft.models.decoding.trace import Trace
from tdraft.scripts.results import write_rows


@dataclass(frozen=True)
class Bench:
    """Measure speeds on this machine; each figure is the median of several runs, with the slowest and the fastest."""

    repeats: int = 7
    """runs of each measurement, after one that compiles and warms up"""
    json: Path | None = None
    """also write the rows to this file"""


@dataclass(frozen=True)
class Measurement:
    name: str
    steps: int
    work: Callable[[int], object]  # takes that many env steps
    writes: Callable[[], int] | None = None  # table writes so far, where these are what is counted

    @property
    def unit(self) -> str:
        return "steps/s" if self.writes is None else "writes/s"


def interleaved(measurements: Sequence[Measurement], repeats: int) -> list[np.ndarray]:
    """Measure in turn, ABAB..., so that what slows the machine down for a while slows all of them.

    :return: for each measurement its speeds (repeats,) in its unit; those of one round have the same index
    """
    for m in measurements:
        m.work(max(m.steps // 10, 2048))
    speeds = np.zeros((len(measurements), repeats))
    for r in range(repeats):
        for i, m in enumerate(measurements):
            before = 0 if m.writes is None else m.writes()
            start = time.perf_counter()
            m.work(m.steps)
            elapsed = time.perf_counter() - start
            speeds[i, r] = (m.steps if m.writes is None else m.writes() - before) / elapsed
    return list(speeds)


def speed_row(m: Measurement, speeds: np.ndarray) -> dict:
    """The median of several runs and the standard error of their mean, printed with the slowest and the fastest."""
    median = float(np.median(speeds))
    print(f"{m.name:60} {median / 1e6:8.3f}  {speeds.min() / 1e6:8.3f}  {speeds.max() / 1e6:8.3f}  {m.unit}", flush=True)
    error = float(speeds.std(ddof=1) / np.sqrt(len(speeds))) if len(speeds) > 1 else 0.0
    return {"name": m.name, "metric": "speed", "value": median, "unit": m.unit, "runs": len(speeds), "se": error}


def heading() -> None:
    print(f"{'millions a second':60}   median   slowest   fastest")


def drawn_trace(contexts: int = 256, n_tokens: int = 64, depth: int = DEFAULT_COST.max_drafted, seed: int = 0) -> Trace:
    """A trace of the shape of a recorded one whose outcomes are drawn from the default difficulty chain: no model is needed."""
    rng = np.random.default_rng(seed)
    chain = default_difficulty()
    shape = (contexts, n_tokens, depth)
    hard = rng.random((contexts, n_tokens)) < chain["initial"][1]
    emission = np.where(hard[..., None, None], chain["emission"][1], chain["emission"][0]).cumsum(-1)
    bins = (rng.random((*shape, 1)) > emission[..., :-1]).sum(-1)
    probability = np.asarray(chain["acceptance"])[bins]
    hits = rng.random(shape) < probability
    tokens = rng.integers(0, 256, (contexts, n_tokens)).astype(np.int32)
    proposals = rng.integers(0, 256, shape).astype(np.int32)
    accepted = hits.cumprod(-1).sum(-1)
    for k in range(depth):  # what is accepted is what is emitted, what is rejected is not
        later = np.minimum(np.arange(n_tokens) + k, n_tokens - 1)
        emitted = tokens[:, later]
        proposals[..., k] = np.where(k < accepted, emitted, (emitted + 1) % 256)
    return Trace(
        tokens=tokens,
        prompts=np.zeros((contexts, 2), np.int32),
        proposals=proposals,
        features=np.asarray(chain["features"], np.float32)[bins],
        target_prob=probability,
        accepted=np.minimum(accepted, n_tokens - 1 - np.arange(n_tokens)).astype(np.int32),
        target_entropy=rng.random((contexts, n_tokens)).astype(np.float32),
        hidden=np.zeros((contexts, n_tokens, 0), np.float32),
        margin=np.ones((contexts, n_tokens), np.float32),
        meta={"drafter": "drawn", "target": "drawn"},
    )


def random_steps(env: gym.Env) -> Callable[[int], None]:
    """Uniformly random actions through Gymnasium's interface."""
    n = int(env.action_space.n)  # pyright: ignore[reportAttributeAccessIssue]

    def work(steps: int) -> None:
        env.reset(seed=0)
        for action in np.random.default_rng(0).integers(n, size=steps).tolist():
            _, _, terminated, truncated, _ = env.step(action)
            if terminated or truncated:
                env.reset()

    return work


def random_vector_steps(env: gym.vector.VectorEnv) -> Callable[[int], None]:
    n = int(env.single_action_space.n)  # pyright: ignore[reportAttributeAccessIssue]

    def work(steps: int) -> None:
        env.reset(seed=0)
        actions = np.random.default_rng(0).integers(n, size=(steps // env.num_envs, env.num_envs))
        for row in actions:
            env.step(row)

    return work


def measurements() -> list[Measurement]:
    trace = drawn_trace()
    source = Replay(trace, fit_calibration(trace), DEFAULT_COST)
    tabular = QLearning(TabularDraft(DraftEnv(source)), seed=0, alpha=0.05)
    cliff = QLearning(gym.make("CliffWalking-v1"), seed=0, alpha=0.5)
    return [
        Measurement("Draft-v0, trace, Q-learning, compiled", 4_000_000, tabular.learn),
        Measurement("CliffWalking-v1, Q-learning, compiled", 8_000_000, cliff.learn),
        Measurement(
            "Draft-v0, trace, 1024 lanes", 1_024_000, random_vector_steps(gym.make_vec("tdraft/Draft-v0", 1024, source=source))
        ),
        Measurement(
            "CartPole-v1, 1024 lanes", 256_000, random_vector_steps(gym.make_vec("CartPole-v1", 1024, "vector_entry_point"))
        ),
        Measurement("Draft-v0, trace, gym.make", 100_000, random_steps(gym.make("tdraft/Draft-v0", source=source))),
        Measurement("CliffWalking-v1, gym.make", 100_000, random_steps(gym.make("CliffWalking-v1"))),
        Measurement("CartPole-v1, gym.make", 100_000, random_steps(gym.make("CartPole-v1"))),
    ]


def env(bench: Bench) -> None:
    """Steps per second of Draft-v0 and of Gymnasium's CliffWalking-v1 and CartPole-v1."""
    heading()
    rows = [speed_row(m, interleaved([m], bench.repeats)[0]) for m in measurements()]
    if bench.json is not None:
        write_rows(bench.json, rows)
