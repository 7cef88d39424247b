"""Learning curves over seeds: mean or inter-quartile mean, with stratified-bootstrap bands.

Agarwal et al. 2021, "Deep reinforcement learning at the edge of the statistical precipice", arXiv 2108.13264.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np


class CurveError(ValueError):
    """Runs that share no step, or a statistic that there is not."""


class Curve(NamedTuple):
    """One line of a figure."""

    steps: np.ndarray  # (T,) env steps
    centre: np.ndarray  # (T,) statistic over the runs
    low: np.ndarray  # (T,) lower end of the 95% band
    high: np.ndarray  # (T,)
    runs: int


def mean(scores: np.ndarray) -> np.ndarray:
    """(N, T) scores of N runs -> (T,)."""
    return scores.mean(axis=0)


def interquartile_mean(scores: np.ndarray) -> np.ndarray:
    """(N, T) -> (T,): the mean without the lowest and the highest floor(N / 4) runs; below four runs the mean of all."""
    cut = len(scores) // 4
    return np.sort(scores, axis=0)[cut : len(scores) - cut].mean(axis=0)


STATISTICS: dict[str, Callable[[np.ndarray], np.ndarray]] = {"mean": mean, "iqm": interquartile_mean}


def bootstrap_band(
    strata: Sequence[np.ndarray],
    statistic: Callable[[np.ndarray], np.ndarray],
    *,
    resamples: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> tuple[np.ndarray, np.ndarray]:
    """Percentile interval of a statistic over all runs; runs are redrawn within their stratum (a task), whole curves at a time.

    :param strata: (N_k, T) scores of each task
    :param statistic: (N, T) -> (T,)
    :return: (T,) lower and upper ends
    """
    rng = np.random.default_rng(seed)
    draws = [
        statistic(np.concatenate([scores[rng.integers(len(scores), size=len(scores))] for scores in strata]))
        for _ in range(resamples)
    ]
    low, high = np.percentile(draws, [50 * (1 - level), 50 * (1 + level)], axis=0)
    return low, high


def common_steps(runs: Sequence[dict[int, float]]) -> tuple[np.ndarray, np.ndarray]:
    """The steps at which every run has a value, (T,), and the values there, (N, T).

    :raises CurveError: there is no such step
    """
    steps = sorted(set.intersection(*(set(run) for run in runs)))
    if not steps:
        raise CurveError("the runs have no step in common: train them with the same timesteps")
    return np.array(steps), np.array([[run[step] for step in steps] for run in runs])


def learning_curve(runs: Sequence[dict[int, float]], statistic: str = "mean", *, resamples: int = 2000) -> Curve:
    """The curve of one agent on one env.

    :param runs: step -> value of each seed
    :param statistic: "mean" or "iqm"
    :raises CurveError: an unknown statistic, or no common step
    """
    if statistic not in STATISTICS:
        raise CurveError(f'statistic must be one of {", ".join(STATISTICS)}, got "{statistic}"')
    steps, scores = common_steps(runs)
    low, high = bootstrap_band([scores], STATISTICS[statistic], resamples=resamples)
    return Curve(steps, STATISTICS[statistic](scores), low, high, len(scores))
