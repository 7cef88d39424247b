"""Mountain car with tile coding: Sutton & Barto, figures 10.2, 10.3, 10.4, 12.10 and 12.11."""

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache, partial
from typing import Any

import numpy as np
from gymnasium.wrappers import TimeLimit

from tdraft.agents.base import Agent
from tdraft.agents.clearing_traces import LinearClearingSarsa
from tdraft.agents.experiments import episode_length
from tdraft.agents.linear import LinearSarsa
from tdraft.agents.linear_n_step import LinearNStepSarsa
from tdraft.envs.control.classic import MountainCar
from tdraft.scripts.reproduce.control import spans
from tdraft.scripts.reproduce.many import curves, sweep
from tdraft.scripts.reproduce.rows import Outcome, Panel, alpha_panel, curve_row, estimate, row
from tdraft.scripts.reproduce.walks import multiples
from tdraft.value.tiles import TileCoding, tile_coding

TILINGS = 8
CAP = 20_000  # steps: once in 100 000 episodes a greedy car dithers in the valley for ever, all values there falling alike
FIRST_AND_LATER = "steps: [ep 1, mean 1-10, mean 11-50, mean 51-100, mean 401-500]"


@lru_cache
def tiles() -> TileCoding:
    """The book's tiling of (8 x / 1.7, 8 v / .14) by `tiles3`: tiling t is shifted by t / 8 and 3 t / 8 of a tile."""

    def cuts(width: float, shift: float, low: float, high: float) -> np.ndarray:
        edges = width * (np.arange(-16, 17) - shift)
        return edges[(edges > low) & (edges <= high)]

    return tile_coding(
        [{0: cuts(1.7 / 8, t / TILINGS, -1.2, 0.6), 1: cuts(0.14 / 8, 3 * t / TILINGS, -0.07, 0.07)} for t in range(TILINGS)]
    )


def driver(kind: Callable[..., Any], alpha: float, cap: int, **settings: Any) -> Agent:
    """A greedy agent on the car.

    :param alpha: step size times 8, as the agents take it
    :param cap: steps after which an episode is cut off
    """
    return kind(TimeLimit(MountainCar(), cap), features=tiles(), epsilon=0.0, alpha=float(alpha), **settings)


def drive(name: str, kind: Callable[..., Any], alpha: float, seeds: Sequence[int], **settings: Any) -> tuple[dict, np.ndarray]:
    """The row and the lengths (runs, 500) of 500 episodes."""
    lengths = curves(partial(driver, kind, alpha, CAP, **settings), seeds, 500, episode_length)
    parts = spans(lengths, (1, 1), (1, 10), (11, 50), (51, 100), (401, 500))
    return row(name, FIRST_AND_LATER, "steps", parts), lengths


def against_episodes(title: str, lengths: Mapping[str, np.ndarray]) -> Panel:
    lines = {label: (range(1, 501), *estimate(h)) for label, h in lengths.items()}
    return Panel(title, "episodes", "steps per episode", lines, (100.0, 1000.0), log_y=True)


def figure_10_2(seeds: Sequence[int]) -> Outcome:
    """Semi-gradient Sarsa with three step sizes."""
    rows, lengths = [], {}
    for alpha in (0.1, 0.2, 0.5):
        made, lengths[f"alpha = {alpha}/8"] = drive(f"fig10.2/alpha={alpha}/8", LinearSarsa, alpha, seeds)
        rows.append(made)
    return Outcome(rows, [against_episodes("Figure 10.2: semi-gradient Sarsa", lengths)])


def figure_10_3(seeds: Sequence[int]) -> Outcome:
    """One-step against 8-step semi-gradient Sarsa."""
    rows, lengths = [], {}
    for n, alpha in ((1, 0.5), (8, 0.3)):
        made, lengths[f"n = {n}, alpha = {alpha}/8"] = drive(f"fig10.3/n={n}", LinearNStepSarsa, alpha, seeds, n=n)
        rows.append(made)
    return Outcome(rows, [against_episodes("Figure 10.3: n-step Sarsa", lengths)])


def by_alpha(
    name: str, make: Callable[[str, float], Agent], settings: Mapping[str, Sequence[float]], episodes: int, seeds: Sequence[int]
) -> list[dict[str, Any]]:
    """A row for each setting: steps per episode over the first episodes."""
    metric = f"steps per episode averaged over first {episodes} episodes"
    return [
        curve_row(f"{name}/{key}", metric, "steps", alphas, sweep(partial(make, key), alphas, seeds, episodes, episode_length))
        for key, alphas in settings.items()
    ]


def figure_10_4(seeds: Sequence[int]) -> Outcome:
    """n-step semi-gradient Sarsa by step size."""
    settings = {n: multiples(0.1, count) for n, count in (("1", 18), ("2", 18), ("4", 17), ("8", 12), ("16", 8))}
    make = lambda n, alpha: driver(LinearNStepSarsa, alpha, CAP, n=int(n))  # noqa: E731
    rows = by_alpha("fig10.4", make, settings, 50, seeds)
    return Outcome(rows, [alpha_panel("Figure 10.4: n-step Sarsa", rows, "n = ", (220.0, 300.0))])


def figure_12_10(seeds: Sequence[int]) -> Outcome:
    """Sarsa(lambda) with replacing traces by step size."""
    settings = {key: multiples(0.2, 9) for key in ("0", "0.68", "0.84", "0.92", "0.96", "0.99")}
    make = lambda key, alpha: driver(LinearSarsa, alpha, 5000, lambda_=float(key), trace="replacing")  # noqa: E731
    rows = by_alpha("fig12.10/replacing", make, settings, 50, seeds)
    return Outcome(rows, [alpha_panel("Figure 12.10: Sarsa(lambda), replacing traces", rows, "lambda = ", (160.0, 300.0))])


TRACED: dict[str, tuple[Callable[..., Any], str]] = {
    "accumulating": (LinearSarsa, "accumulating"),
    "replacing": (LinearSarsa, "replacing"),
    "replacing+clear": (LinearClearingSarsa, "replacing"),
    "true online": (LinearSarsa, "dutch"),
}


def figure_12_11(seeds: Sequence[int]) -> Outcome:
    """Sarsa(lambda) with four kinds of traces, lambda = 0.9, over 20 episodes."""
    settings = {key: multiples(0.1, 6) if key == "accumulating" else multiples(0.2, 10) for key in TRACED}

    def make(key: str, alpha: float) -> Agent:
        kind, trace = TRACED[key]
        return driver(kind, alpha, 5000, lambda_=0.9, trace=trace)

    rows = by_alpha("fig12.11", make, settings, 20, seeds)
    return Outcome(rows, [alpha_panel("Figure 12.11: Sarsa(lambda), kinds of traces", rows, "", (150.0, 550.0))])
