"""What an experiment gives: rows of numbers with standard errors over runs, and panels of its figure."""

import csv
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from tdraft.models.files import atomic_write
from tdraft.scripts.results import write_rows

Line = tuple[ArrayLike, ArrayLike, ArrayLike | None]  # x, y and y's standard error


class Panel(NamedTuple):
    """One pair of axes."""

    title: str
    x_label: str
    y_label: str
    lines: Mapping[str, Line]
    y_limits: tuple[float, float] | None = None
    log_x: bool = False
    log_y: bool = False


class Outcome(NamedTuple):
    """All that an experiment has found."""

    rows: list[dict[str, Any]]
    panels: list[Panel]


def estimate(samples: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean over the first axis, the runs, and its standard error: 0 where there is one run, or all differ by rounding only."""
    with np.errstate(over="ignore", invalid="ignore"):
        runs = len(samples)
        spread = samples.std(axis=0, ddof=1) if runs > 1 else np.zeros(samples.shape[1:])
        mean, se = samples.mean(axis=0), spread / math.sqrt(runs)
        return mean, np.where(se < 1e-12 * np.abs(mean), 0.0, se)[()]


def plain(value: Any) -> Any:
    """Numbers, lists and dicts of them, as JSON has them; what is not finite becomes None."""
    if isinstance(value, dict):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, np.ndarray | list | tuple):
        return [plain(v) for v in value]
    if isinstance(value, int | np.integer):
        return int(value)
    return float(value) if math.isfinite(value) else None


def row(name: str, metric: str, unit: str, samples: np.ndarray, **more: Any) -> dict[str, Any]:
    """A row from samples (runs,) or (runs, K)."""
    value, se = (plain(part) for part in estimate(samples))
    return {"name": name, "metric": metric, "value": value, "se": se, "unit": unit, "runs": len(samples), **plain(more)}


def exact_row(name: str, metric: str, unit: str, value: Any, **more: Any) -> dict[str, Any]:
    """A row of a quantity without noise: standard errors of zero in the shape of a list, one for a dict."""
    se = np.zeros(np.shape(value)).tolist()
    return {"name": name, "metric": metric, "value": plain(value), "se": se, "unit": unit, "runs": 1, **plain(more)}


def curve_row(name: str, metric: str, unit: str, alphas: Sequence[float], samples: Sequence[np.ndarray]) -> dict[str, Any]:
    """A row over step sizes, from samples (runs,) at each; `curve` holds [alpha, value, se]."""
    points = [[alpha, *map(plain, estimate(at_alpha))] for alpha, at_alpha in zip(alphas, samples)]
    value, se = ([p[i] for p in points] for i in (1, 2))
    return {"name": name, "metric": metric, "value": value, "se": se, "unit": unit, "runs": len(samples[0]), "curve": points}


def alpha_panel(title: str, rows: Iterable[dict[str, Any]], label: str, y_limits: tuple[float, float] | None = None) -> Panel:
    """A panel of rows with curves; a line is called after the last part of its row's name."""
    rows, lines = list(rows), {}
    for r in rows:
        x, y, se = (np.array([p[i] for p in r["curve"]], float) for i in range(3))
        lines[f"{label}{r['name'].split('/')[-1]}"] = (x, y, se)
    return Panel(title, "step size alpha", rows[0]["unit"], lines, y_limits)


def leaves(value: Any, place: str = "") -> Iterator[tuple[str, Any]]:
    """Place and number of every number in nested lists and dicts."""
    if not isinstance(value, dict | list):
        yield place, value
        return
    for key, part in value.items() if isinstance(value, dict) else enumerate(value):
        yield from leaves(part, f"{place}/{key}" if place else str(key))


def flat(rows: Iterable[dict[str, Any]]) -> Iterator[tuple[Any, ...]]:
    """Rows of the CSV: name, metric, place (alpha, position in a list, or name of a quantity), value, se, unit, runs."""
    for r in rows:
        if "curve" in r:
            parts = r["curve"]
        else:
            errors = [se for _, se in leaves(r["se"])]
            values = list(leaves(r["value"]))
            parts = [(*at, se) for at, se in zip(values, errors if len(errors) > 1 else errors * len(values))]
        beside = r.get("exact", {})
        known = [] if beside == r["value"] else [(*at, 0.0) for at in leaves(beside)]
        for part in (*parts, *known):
            yield (r["name"], r["metric"], *part, r["unit"], r["runs"])


def save(folder: Path, name: str, outcome: Outcome) -> None:
    """Write NAME.json, NAME.csv and NAME.png into the folder, each whole or not at all."""
    write_rows(folder / f"{name}.json", outcome.rows)
    with atomic_write(folder / f"{name}.csv") as temporary, open(temporary, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("name", "metric", "place", "value", "se", "unit", "runs"))
        writer.writerows(flat(outcome.rows))
    if outcome.panels:
        draw(folder / f"{name}.png", name, outcome)


def draw(path: Path, name: str, outcome: Outcome) -> None:
    """A figure with a panel beside the other; bands are two standard errors to either side."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogFormatter, ScalarFormatter

    panels = outcome.panels
    beside = [len(panel.lines) > 4 for panel in panels]  # such a legend would cover lines
    figure = Figure(figsize=(1.0 + 5.4 * len(panels) + 1.2 * sum(beside), 4.3), layout="constrained")
    for i, panel in enumerate(panels):
        axis = figure.add_subplot(1, len(panels), i + 1)
        for k, (label, (x, y, se)) in enumerate(panel.lines.items()):
            x, y = np.asarray(x, float), np.asarray(y, float)
            axis.plot(x, y, color=f"C{k % 10}", lw=1.6, marker="." if len(x) < 30 else None, label=label)
            if se is not None:
                low, high = y - 2 * np.asarray(se, float), y + 2 * np.asarray(se, float)
                axis.fill_between(x, low, high, color=f"C{k % 10}", alpha=0.2, lw=0)
        if panel.log_x:
            axis.set_xscale("log")
        if panel.log_y:
            axis.set_yscale("log")
            axis.yaxis.set_major_formatter(ScalarFormatter())
            axis.yaxis.set_minor_formatter(LogFormatter(minor_thresholds=(2, 0.5)))
        if panel.y_limits:
            axis.set_ylim(*panel.y_limits)
        axis.set_title(panel.title, fontsize=11)
        axis.set_xlabel(panel.x_label)
        axis.set_ylabel(panel.y_label)
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
        axis.legend(frameon=False, fontsize=8, **({"loc": "upper left", "bbox_to_anchor": (1.0, 1.0)} if beside[i] else {}))
    runs = max((r["runs"] for r in outcome.rows), default=1)
    spread = f"means over up to {runs} runs, bands of two standard errors" if runs > 1 else "one run, or exact"
    figure.supxlabel(f"{name}: {spread}", x=0.995, ha="right", fontsize=7.5)
    with atomic_write(path) as temporary:
        figure.savefig(temporary, dpi=120, format="png")
