"""`tdraft policies`: what every decoding policy is worth on recorded traces, and the best of them as files that decode."""

import logging
import sys
from dataclasses import dataclass
from pathlib import Path

from tdraft.agents.policy_files import save_policy
from tdraft.models.decoding.calibration import fit_calibration
from tdraft.models.decoding.cost import CostModel
from tdraft.models.decoding.observation import Calibration
from tdraft.models.decoding.trace import Trace
from tdraft.scripts.comparison import Comparison, compare
from tdraft.scripts.loading import at_least
from tdraft.scripts.main import UsageError
from tdraft.scripts.report import HEAD, markdown_table, policy_cells
from tdraft.scripts.results import write_rows
from tdraft.scripts.train import parse_seeds

SAME = ("drafter", "target", "temperature", "top_k", "top_p")  # of the three traces of a table


@dataclass(frozen=True)
class TraceTable:
    """Tune every published rule and train the learned policies on recorded traces, and compare them on test contexts."""

    train: Path
    """Trace that agents train on, and the predictor of acceptance is fitted to."""
    validation: Path
    """Trace that rules are tuned, and seeds chosen, on."""
    test: Path
    """Trace that all are compared on."""
    cost: Path
    """The clock, as `tdraft trace --cost` measured it."""
    save: Path | None = None
    """Folder for best-static.npz, best-baseline.npz and best-learned.npz, chosen on validation, which `tdraft decode` takes."""
    json: Path | None = None
    """Also write the rows to this file."""
    seeds: str = "0:5"
    """Seeds of each agent: "3", "0,3,5" or "0:5" (0 to 4)."""
    timesteps: int = 12_000_000
    """Env steps of each training."""
    log_dir: Path | None = None
    """Folder for TensorBoard events of the trainings."""


def trace(options: TraceTable) -> None:
    """Run `tdraft policies trace`."""
    logging.getLogger("tdraft").setLevel(logging.WARNING)
    at_least(1, timesteps=options.timesteps)
    seeds = parse_seeds(options.seeds)
    train, validation, test = load_traces(options)
    cost = CostModel.load(options.cost)
    depth = min(t.shape[2] for t in (train, validation, test))
    if not 1 <= cost.max_drafted <= depth:
        raise UsageError(
            f"{options.cost} prices drafts of {cost.max_drafted} bytes, the traces hold {depth}: measure it with the same --depth"
        )
    _say("fitting the predictor of acceptance")
    calibration = fit_calibration(train)
    _say(f"tuning the rules on {len(validation.tokens)} contexts, training the agents ({len(seeds)} seeds each)")
    found = compare(train, validation, test, calibration, cost, seeds=seeds, timesteps=options.timesteps, log_dir=options.log_dir)
    meta = test.meta
    print(f"{len(test.tokens)} test contexts, temperature {meta['temperature']:g}, drafts up to {cost.max_drafted}\n")
    print(table(found))
    if options.json is not None:
        write_rows(options.json, rows_of(found, len(test.tokens)))
    if options.save is not None:
        print("\n" + "\n".join(save_best(options.save, found, calibration, cost, meta)))


def load_traces(options: TraceTable) -> tuple[Trace, Trace, Trace]:
    """The three traces, which must be of one drafter, target and temperature."""
    traces = [Trace.load(path) for path in (options.train, options.validation, options.test)]
    for path, other in ((options.validation, traces[1]), (options.test, traces[2])):
        for key in SAME:
            first, second = traces[0].meta.get(key), other.meta.get(key)
            if first != second:
                raise UsageError(f"{options.train} was recorded with {key} {first}, {path} with {second}: record them alike")
    return traces[0], traces[1], traces[2]


def table(found: Comparison) -> str:
    """Markdown, the fastest first."""
    return markdown_table(HEAD, map(policy_cells, sorted(found.rows, key=lambda row: -row["speedup"])))


def rows_of(found: Comparison, contexts: int) -> list[dict]:
    """The comparison as rows of results, one a policy."""
    return [
        {"name": row["name"], "metric": "speedup", "value": row["speedup"], "unit": "tokens per plain step", "runs": contexts}
        | {"se": (row["ci95"][1] - row["ci95"][0]) / 3.92, "kind": row["kind"], "ci95": row["ci95"]}
        for row in found.rows
    ]


def save_best(folder: Path, found: Comparison, calibration: Calibration, cost: CostModel, meta: dict) -> list[str]:
    """Save the best static length, baseline and learned policy; a line of text each."""
    lines = []
    for kind, name in found.best.items():
        path = folder / f"best-{kind}.npz"
        save_policy(
            path,
            found.policies[name],
            calibration=calibration,
            cost=cost,
            drafter=meta["drafter"],
            target=meta["target"],
            temperature=meta["temperature"],
        )
        lines.append(f"{path}: {name}")
    return lines


def _say(text: str) -> None:
    print(f"{text} ...", file=sys.stderr, flush=True)
