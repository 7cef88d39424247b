"""`tdraft reproduce NAME ...`: textbook experiments, with standard errors, as JSON, CSV and a figure each."""

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import tyro
from tqdm import tqdm

from tdraft.scripts.main import UsageError, unknown
from tdraft.scripts.reproduce import baird, car, control, known, mazes, thousand, walks, zhao
from tdraft.scripts.reproduce.rows import Outcome, save
from tdraft.scripts.results import write_rows


class Experiment(NamedTuple):
    """A function from seeds to rows and a figure, and how many runs it makes by default."""

    function: Callable[[Sequence[int]], Outcome]
    runs: int


EXPERIMENTS = {
    "ex6.2": Experiment(walks.example_6_2, 2000),
    "fig6.2": Experiment(walks.figure_6_2, 1000),
    "ex6.5": Experiment(control.example_6_5, 1000),
    "ex6.6": Experiment(control.example_6_6, 1000),
    "fig6.3": Experiment(control.figure_6_3, 1000),
    "fig6.5": Experiment(control.figure_6_5, 10_000),
    "fig7.2": Experiment(walks.figure_7_2, 2000),
    "fig8.2": Experiment(mazes.figure_8_2, 1000),
    "fig8.4": Experiment(mazes.figure_8_4, 100),
    "fig8.5": Experiment(mazes.figure_8_5, 100),
    "fig9.1": Experiment(thousand.figure_9_1, 100),
    "fig9.2": Experiment(thousand.figure_9_2, 300),
    "fig9.5": Experiment(thousand.figure_9_5, 100),
    "fig9.10": Experiment(thousand.figure_9_10, 100),
    "fig10.2": Experiment(car.figure_10_2, 200),
    "fig10.3": Experiment(car.figure_10_3, 200),
    "fig10.4": Experiment(car.figure_10_4, 100),
    "ex10.2": Experiment(mazes.example_10_2, 100),
    "fig11.2": Experiment(baird.figure_11_2, 2000),
    "fig11.5": Experiment(baird.figure_11_5, 2000),
    "fig11.6": Experiment(baird.figure_11_6, 1),
    "fig12.3": Experiment(walks.figure_12_3, 200),
    "fig12.6": Experiment(walks.figure_12_6, 2000),
    "fig12.6x": Experiment(walks.replacing, 2000),
    "fig12.8": Experiment(walks.figure_12_8, 2000),
    "fig12.10": Experiment(car.figure_12_10, 100),
    "fig12.11": Experiment(car.figure_12_11, 100),
    "zhao7": Experiment(zhao.chapter_7, 500),
    "zhao8": Experiment(zhao.chapter_8, 100),
    "gym": Experiment(known.optimal_values, 1),
}


@dataclass(frozen=True)
class Reproduce:
    """Run textbook experiments (Sutton & Barto, 2nd edition; S. Zhao). Run k uses seed k."""

    names: tyro.conf.Positional[
        Annotated[tuple[str, ...], tyro.conf.arg(help=f"Experiments, or all: {', '.join(EXPERIMENTS)}.")]
    ] = ()
    runs: int | None = None
    """Runs of each experiment, by default as docs/experiments.md says."""
    out: Path = Path("runs/reproduce")
    """Folder of the results: OUT/NAME/NAME.json, .csv and .png."""
    json: Path | None = None
    """Write all rows to this file too."""


def chosen(names: Sequence[str]) -> list[str]:
    """The experiments meant by the names given, each once.

    :raises UsageError: none given, or one that there is not
    """
    known_names = [*EXPERIMENTS, "all"]
    if not names:
        raise UsageError(f"which experiment? One or more of {', '.join(known_names)}")
    for name in names:
        if name not in known_names:
            raise unknown("experiment", name, known_names, "tdraft reproduce --help")
    return list(EXPERIMENTS) if "all" in names else list(dict.fromkeys(names))


def run(options: Reproduce) -> None:
    """Run the experiments one after the other; the rows so far are on disk after each."""
    names = chosen(options.names)
    if options.runs is not None and options.runs < 1:
        raise UsageError(f"runs must be at least 1, got {options.runs}")
    logging.getLogger("tdraft.agents").setLevel(logging.WARNING)
    rows: list[dict[str, Any]] = []
    for name in tqdm(names, disable=None, leave=False):
        function, by_default = EXPERIMENTS[name]
        start = time.perf_counter()
        outcome = function(range(by_default if options.runs is None else options.runs))
        save(options.out / name, name, outcome)
        rows += outcome.rows
        if options.json is not None:
            write_rows(options.json, rows)
        seconds = time.perf_counter() - start
        tqdm.write(f"{name:8} {len(outcome.rows):3} rows  {seconds:6.1f} s  {options.out / name}")
