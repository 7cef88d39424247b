"""Runs of an experiment over all cores: compiled loops let go of the interpreter, so threads do."""

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, TypeVar

import numpy as np
from numpy.typing import ArrayLike

from tdraft.agents.base import Agent
from tdraft.agents.experiments import WORKERS, measure

Item = TypeVar("Item")
Result = TypeVar("Result")


def each(function: Callable[[Item], Result], items: Iterable[Item]) -> list[Result]:
    """`function` of every item, in order."""
    with ThreadPoolExecutor(WORKERS) as pool:
        return list(pool.map(function, items))


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
    return measure([make], seeds, episodes, metric, data, at=at, width=width)[0]


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
    histories = measure([partial(make, alpha) for alpha in alphas], seeds, episodes, metric, data)
    with np.errstate(over="ignore", invalid="ignore"):
        return [history.mean(axis=1) for history in histories]
