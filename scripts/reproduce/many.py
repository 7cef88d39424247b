"""Runs of an experiment over all cores: compiled loops let go of the interpreter, so threads do."""

import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np
from numpy.typing import ArrayLike

from tdraft.agents.base import Agent
from tdraft.agents.experiments import episode_loop, learning_curve

Item = TypeVar("Item")
Result = TypeVar("Result")
WORKERS = min(os.cpu_count() or 1, 8)


def each(function: Callable[[Item], Result], items: Iterable[Item]) -> list[Result]:
    """`function` of every item, in order."""
    with ThreadPoolExecutor(WORKERS) as pool:
        return list(pool.map(function, items))


def prepare(agent: Agent, metric: Any) -> None:
    """Make the loop before threads ask for it, so that all get the same and it is compiled once."""
    assert agent.compiled is not None
    episode_loop(agent.compiled.reset, agent.compiled.step, agent.begin_rule, agent.step_rule, metric)


def curves(
    make: Callable[[], Agent],
    seeds: Sequence[int],
    episodes: int,
    metric: Any,
    data: ArrayLike = (),
    *,
    at: ArrayLike = (),
    width: int = 1,
) -> np.ndarray:
    """`learning_curve` with the seeds shared out among the cores.

    :param make: a fresh agent at each call
    :return: (seeds, measurements), or (seeds, measurements, K) where width > 1
    """
    prepare(make(), metric)
    shares = [[int(s) for s in share] for share in np.array_split(np.asarray(seeds), WORKERS) if len(share)]

    def work(share: list[int]) -> np.ndarray:
        return learning_curve(make(), share, episodes, metric, data, at=at, width=width)

    return np.concatenate(each(work, shares))


def sweep(
    make: Callable[[float], Agent],
    alphas: Sequence[float],
    seeds: Sequence[int],
    episodes: int,
    metric: Any,
    data: ArrayLike = (),
) -> list[np.ndarray]:
    """(runs,) means of a metric over the episodes, at each step size.

    :param make: a fresh agent with this step size
    """
    prepare(make(alphas[0]), metric)

    def work(alpha: float) -> np.ndarray:
        with np.errstate(over="ignore", invalid="ignore"):
            return learning_curve(make(alpha), seeds, episodes, metric, data).mean(axis=1)

    return each(work, alphas)
