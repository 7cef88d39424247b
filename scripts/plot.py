"""`tdraft plot RUNS`: learning curves with bootstrap bands, from the runs' progress.csv."""

import glob
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from tdraft.agents.curves import Curve, CurveError, learning_curve
from tdraft.agents.runs import COLUMNS, STEP, read_progress
from tdraft.models.files import atomic_write
from tdraft.scripts.main import UsageError

LABELS = {
    "rollout/ep_rew_mean": "reward of an episode (mean of the last 100)",
    "rollout/ep_len_mean": "length of an episode (mean of the last 100)",
    "rollout/reward_rate": "reward of a step (mean since the last point)",
    "rollout/exploration_rate": "exploration rate",
    "train/td_error": "mean absolute TD error",
    "time/fps": "env steps per second",
}


@dataclass(frozen=True)
class Plot:
    """Draw learning curves: a panel an env, a line an agent, over its seeds."""

    runs: tyro.conf.Positional[tuple[str, ...]] = ("runs",)
    """Folders that hold runs at any depth, or patterns like 'runs/CliffWalking-v1/*'."""
    metric: Annotated[str, tyro.conf.arg(aliases=["-m"])] = "rollout/ep_rew_mean"
    """A column of progress.csv."""
    statistic: Literal["mean", "iqm"] = "mean"
    """Over seeds: the mean, or the inter-quartile mean, which outliers don't move."""
    ylim: tuple[float, float] | None = None
    """Lowest and highest value to show; by default all are."""
    out: Path = Path("curves.png")
    """The figure: png, pdf or svg."""


def find_runs(patterns: tuple[str, ...]) -> dict[Path, list[Path]]:
    """Folders of agents, each with the progress.csv of its seeds.

    :raises UsageError: a folder or pattern without runs
    """
    found: set[Path] = set()
    for pattern in patterns:
        folders = [Path(p) for p in glob.glob(pattern)]
        files = [file for folder in folders for file in ([folder] if folder.is_file() else folder.rglob("progress.csv"))]
        if not folders:
            raise UsageError(f"no folder {pattern}: `tdraft train` makes runs, by default in runs/")
        if not any(file.name == "progress.csv" for file in files):
            raise UsageError(f"no runs in {pattern}: a run is a folder with a progress.csv, which `tdraft train` writes")
        found.update(file for file in files if file.name == "progress.csv")
    agents: dict[Path, list[Path]] = {}
    for file in sorted(found):
        agents.setdefault(file.parent.parent, []).append(file)
    return agents


def read_curve(files: list[Path], metric: str, statistic: str) -> tuple[Curve | None, set[str]]:
    """One agent's curve, None where its runs lack the metric, and the metrics that they have."""
    tables = [read_progress(file) for file in files]
    metrics = {column for rows in tables for row in rows for column in COLUMNS if column != STEP and row[column] != ""}
    runs = [{row[STEP]: row[metric] for row in rows if row.get(metric, "") != ""} for rows in tables]
    runs = [run for run in runs if run]
    if not runs:
        return None, metrics
    name = files[0].parent.parent
    if len(runs) < len(files):
        print(f"{name}: {len(files) - len(runs)} of {len(files)} runs have no {metric} and are left out", file=sys.stderr)
    ends = sorted({max(run) for run in runs})
    if len(ends) > 1:
        print(f"{name}: seeds end at steps {ends[0]:,} to {ends[-1]:,}; only the steps that all have are drawn", file=sys.stderr)
    try:
        return learning_curve(runs, statistic), metrics
    except CurveError as error:
        raise UsageError(f"{name}: {error}") from error


def draw(panels: dict[str, dict[str, Curve]], plot: Plot) -> None:
    """Write the figure: panels by env, curves by agent, an agent in the same colour everywhere."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import EngFormatter

    columns = min(len(panels), 2)
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(1.2 + 5.8 * columns, 4.2 * rows), layout="constrained")
    colours = {agent: f"C{i % 10}" for i, agent in enumerate(dict.fromkeys(a for curves in panels.values() for a in curves))}
    for i, (env, curves) in enumerate(panels.items()):
        axis = figure.add_subplot(rows, columns, i + 1)
        for agent, curve in curves.items():
            seeds = f"{curve.runs} seed{'s' if curve.runs > 1 else ''}"
            marker = "o" if len(curve.steps) == 1 else None
            axis.plot(curve.steps, curve.centre, color=colours[agent], lw=1.8, marker=marker, label=f"{agent} ({seeds})")
            if curve.runs > 1:
                axis.fill_between(curve.steps, curve.low, curve.high, color=colours[agent], alpha=0.2, lw=0)
        axis.set_title(env, fontsize=11)
        axis.set_xlabel("env steps")
        axis.set_ylabel(LABELS.get(plot.metric, plot.metric))
        axis.xaxis.set_major_formatter(EngFormatter(sep=""))
        axis.margins(x=0)
        axis.set_xlim(left=0)
        if plot.ylim:
            axis.set_ylim(*plot.ylim)
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
        axis.legend(frameon=False, fontsize=9)
    shown = {"mean": "mean", "iqm": "inter-quartile mean"}[plot.statistic]
    figure.supxlabel(f"{shown} over seeds, 95% bootstrap bands", x=0.995, ha="right", fontsize=7.5, color="#666666")
    with atomic_write(plot.out) as temporary:
        figure.savefig(temporary, dpi=130, format=plot.out.suffix[1:])


def run(plot: Plot) -> None:
    """Read the runs and draw them."""
    if plot.out.suffix not in (".png", ".pdf", ".svg"):
        raise UsageError(f"out must end in .png, .pdf or .svg, got {plot.out}")
    agents = find_runs(plot.runs)
    panels: dict[str, dict[str, Curve]] = {}
    metrics: set[str] = set()
    for folder, files in agents.items():
        curve, there = read_curve(files, plot.metric, plot.statistic)
        metrics |= there
        if curve is not None:
            curves = panels.setdefault(folder.parent.name, {})
            curves[str(folder) if folder.name in curves else folder.name] = curve
    if not panels:
        where = ", ".join(plot.runs)
        have = f"they have {', '.join(sorted(metrics))}" if metrics else "they have not logged anything yet"
        raise UsageError(f'no run in {where} has the metric "{plot.metric}": {have}')
    draw(panels, plot)
    lines = [f"{len(curves)} agent{'s' if len(curves) > 1 else ''} on {env}" for env, curves in panels.items()]
    print(f"{plot.out}: {', '.join(lines)}")
