"""`tdraft bench hippo`: how near the memories of HiPPO come to the best that their polynomials can do, over several signals."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tdraft.models.files import atomic_write
from tdraft.models.hippo import band_limited_noise, basis, compress, compress_legs, least_squares, legt
from tdraft.scripts.results import write_rows

FLOOR = "least squares"
MEMORIES = ("LegS", "LegS, t = k", "LegT")  # LegS by the middle of each step, and as published, by its end
SIZES = (16, 32, 64)
DRAWN = (4, 8, 12, 16, 20, 24, 28, 32, 40, 48, 56, 64)
ROUNDING = 1e-20  # a floor below is no floor: the polynomials hold the signals exactly
SHOWN = 24  # coefficients of the reconstructions in the figure


@dataclass(frozen=True)
class HippoBench:
    """Measure the reconstruction errors of HiPPO-LegS and LegT beside the least-squares floor of the same signals."""

    signals: int = 20
    """band-limited noises of variance 1/4, seeds 0, 1, ..."""
    length: int = 4096
    """inputs of a signal, T; also the window of LegT"""
    cycles: int = 10
    """highest frequency of a signal, in cycles per signal"""
    json: Path | None = None
    """also write the rows to this file"""
    out: Path | None = None
    """also draw a figure: png, pdf or svg"""


def reconstructions(f: np.ndarray, N: int) -> dict[str, np.ndarray]:
    """The whole signal f (T,) from N coefficients, by the name of what chose them; all in the same N polynomials."""
    functions = basis("legs", N, (np.arange(len(f)) + 0.5) / len(f))
    coefficients = {
        "LegS": compress_legs(f, N)[-1],
        "LegS, t = k": compress_legs(f, N, midpoint=False)[-1],
        "LegT": compress(f, *legt(N), window=len(f))[-1],
    }
    return {FLOOR: least_squares(f, functions)} | {name: functions @ c for name, c in coefficients.items()}


def errors(signals: list[np.ndarray], N: int) -> dict[str, np.ndarray]:
    """Mean squared errors (signals,) by name."""
    found = [{name: float(np.mean((g - f) ** 2)) for name, g in reconstructions(f, N).items()} for f in signals]
    return {name: np.array([row[name] for row in found]) for name in found[0]}


def rows_of(N: int, found: dict[str, np.ndarray]) -> list[dict]:
    """A row for the floor and one for each memory, with the median of its ratios to the floor; printed with the extremes."""
    rows = []
    for name, mse in found.items():
        ratio = mse / found[FLOOR]
        compared = name != FLOOR and found[FLOOR].max() > ROUNDING
        spread = f"{np.median(ratio):10.5f} {ratio.min():10.5f} {ratio.max():10.5f}" if compared else ""
        print(f"N = {N:<3} {name:14} {mse.mean():10.3e} {mse.min():10.3e} {mse.max():10.3e}   {spread}", flush=True)
        error = float(mse.std(ddof=1) / np.sqrt(len(mse))) if len(mse) > 1 else 0.0
        row = {"name": f"HiPPO, N = {N}, {name}", "metric": "mean squared error", "value": float(mse.mean())}
        row |= {"unit": "of a signal of variance 1/4", "runs": len(mse), "se": error}
        if compared:
            row |= {
                "peer": FLOOR,
                "ratio": float(np.median(ratio)),
                "least_ratio": float(ratio.min()),
                "largest_ratio": float(ratio.max()),
            }
        rows.append(row)
    return rows


def draw(signals: list[np.ndarray], bench: HippoBench, out: Path) -> None:
    """The first signal with its reconstructions, and the errors by the number of coefficients."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12.4, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1.5, 1))
    f, styles = signals[0], {FLOOR: ("k", "--"), "LegS": ("C0", "-"), "LegS, t = k": ("C2", ":"), "LegT": ("C1", "-")}
    left.plot(f, color="0.75", lw=3, label="signal")
    for name in ("LegS", "LegT"):
        g = reconstructions(f, SHOWN)[name]
        left.plot(g, color=styles[name][0], lw=1.3, label=f"{name}, error {np.mean((g - f) ** 2):.1e}")
    left.set_title(f"{bench.length} inputs kept as {SHOWN} numbers", fontsize=11)
    left.set_xlabel("input")
    left.set_xlim(0, len(f) - 1)
    left.set_ylim(1.6 * f.min(), 1.6 * f.max())
    found = {N: errors(signals, N) for N in DRAWN}
    for name, (colour, line) in styles.items():
        values = np.array([found[N][name] for N in DRAWN])  # (N, signals)
        right.semilogy(DRAWN, np.median(values, axis=1), color=colour, ls=line, lw=1.6, label=name)
        right.fill_between(DRAWN, values.min(axis=1), values.max(axis=1), color=colour, alpha=0.12, lw=0)
    right.set_ylim(1e-8, 1)
    right.set_xlim(DRAWN[0], DRAWN[-1])
    right.set_xlabel("coefficients, N")
    right.set_ylabel("mean squared error")
    right.set_title(f"median and range of {len(signals)} signals", fontsize=11)
    for axis in (left, right):
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
        axis.legend(frameon=False, fontsize=9)
    with atomic_write(out) as temporary:
        figure.savefig(temporary, dpi=130, format=out.suffix[1:])


def hippo(bench: HippoBench) -> None:
    """Errors of LegS, LegT and the least-squares floor at N = 16, 32 and 64."""
    signals = [band_limited_noise(bench.length, bench.cycles, seed) for seed in range(bench.signals)]
    print(f"{'mean squared error':22}       mean      least    largest   over the floor: median, least, largest")
    rows = [row for N in SIZES for row in rows_of(N, errors(signals, N))]
    if bench.json is not None:
        write_rows(bench.json, rows)
    if bench.out is not None:
        draw(signals, bench, bench.out)
