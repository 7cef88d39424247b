"""Every combination of hyper-parameters with every seed, on all cores.

found = sweep(QLearning, env, {"alpha": [0.1, 0.5], "epsilon": [0.01, 0.1]}, range(100), episodes=500)
found.history                   # (4, 100, 500)
found.settings[found.best()]    # {"alpha": ..., "epsilon": ...}
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import product
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
from numpy.typing import ArrayLike

from tdraft.envs.compiled import CompiledEnv, Reason, compile_env

from .base import Agent
from .experiments import WORKERS, episode_reward, measure, measured_at
from .settings import SettingsError


class Sweep(NamedTuple):
    """What a sweep found, a cell for each combination of settings."""

    settings: list[dict[str, Any]]  # of each cell
    seeds: list[int]
    at: np.ndarray  # (measurements,) after how many episodes, or steps
    history: np.ndarray  # (cells, seeds, measurements[, K]) the metric

    def scores(self, last: int | None = None) -> np.ndarray:
        """(cells, seeds[, K]) mean of the metric over all measurements, or over the `last` ones."""
        if last is not None and not 1 <= last <= len(self.at):
            raise SettingsError(f"last must be in 1..{len(self.at)}, the number of measurements, got {last}")
        with np.errstate(over="ignore", invalid="ignore"):  # of a cell that diverged
            return self.history[:, :, -last if last else 0 :].mean(axis=2)

    def best(self, *, lowest: bool = False, last: int | None = None) -> int:
        """Number of the cell with the highest mean score, or the lowest; the first of equals, and none that diverged.

        :raises SettingsError: every cell diverged, or the metric has several numbers
        """
        scores = self.scores(last)
        if scores.ndim > 2:
            raise SettingsError(f"best needs a metric of one number, this one has {scores.shape[2]}: choose from scores()")
        with np.errstate(over="ignore", invalid="ignore"):
            means = scores.mean(axis=1) * (-1 if lowest else 1)
        if not np.isfinite(means).any():
            raise SettingsError("no cell has a finite score: lower alpha")
        return int(np.argmax(np.where(np.isfinite(means), means, -np.inf)))

    def cells(self, **settings: Any) -> list[int]:
        """Numbers of the cells with these settings."""
        return [i for i, cell in enumerate(self.settings) if settings.items() <= cell.items()]


def sweep(
    kind: Callable[..., Agent],
    env: gym.Env,
    grid: Mapping[str, Sequence[Any]],
    seeds: Sequence[int],
    episodes: int | None = None,
    metric: Any = episode_reward,
    data: ArrayLike = (),
    *,
    timesteps: int | None = None,
    at: ArrayLike = (),
    width: int = 1,
    workers: int = WORKERS,
    progress_bar: bool = False,
    **fixed: Any,
) -> Sweep:
    """Train an agent for every combination of hyper-parameters and every seed, on all cores.

    The result of a cell and a seed is what `kind(env, seed=seed, **settings, **fixed)` learns alone, bit for bit. A
    hyper-parameter that changes only numbers compiles nothing anew.

    :param kind: class of an agent or of a predictor
    :param env: one that compiles; it stays as it is
    :param grid: name of a hyper-parameter -> its values, the full product of which is swept; {} is a single cell
    :param fixed: other arguments of `kind`, the same in all cells: hyper-parameters, or a predictor's policy and features

    The others are `learning_curve`'s and `measure`'s.

    :raises SettingsError: an unknown hyper-parameter or a value out of range, with the cell; an empty list; an env that does not
        compile, with the reason
    """
    for name, values in grid.items():
        if isinstance(values, str) or not isinstance(values, Sequence | np.ndarray) or not len(values):
            raise SettingsError(f"the grid's {name} must be a list of at least one value, got {values!r}")
        if name in fixed:
            raise SettingsError(f"{name} is in the grid and beside it: leave one out")
    lists = [values.tolist() if isinstance(values, np.ndarray) else values for values in grid.values()]
    settings = [dict(zip(grid, values)) for values in product(*lists)]
    made = compile_env(env)
    if isinstance(made, Reason):
        raise SettingsError(f"sweep needs an env that compiles, this one does not: {made}")
    once = _Compiled(env, made)

    def make(cell: dict[str, Any]) -> Agent:
        try:
            return kind(once, seed=0, **cell, **fixed)
        except SettingsError as error:
            raise SettingsError(f"cell {cell}: {error}" if cell else str(error)) from error

    makes = [partial(make, cell) for cell in settings]
    history = measure(
        makes, seeds, episodes, metric, data, timesteps=timesteps, at=at, width=width, workers=workers, progress_bar=progress_bar
    )
    return Sweep(settings, [int(seed) for seed in seeds], measured_at(episodes, timesteps, at), history)


class _Compiled(gym.Wrapper):
    """An env whose compiled form is at hand, so that an agent a cell doesn't make its tables anew."""

    def __init__(self, env: gym.Env, made: CompiledEnv):
        super().__init__(env)
        self._made = made

    def compiled(self) -> CompiledEnv:
        return self._made
