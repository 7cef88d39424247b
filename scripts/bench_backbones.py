"""`tdraft bench backbones`: every family learns the same tasks from the same sequences in the same number of steps."""

import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from tdraft.models.backbones import BACKBONES, Backbone, make_backbone
from tdraft.models.files import atomic_write
from tdraft.models.threads import one_thread
from tdraft.scripts.main import unknown
from tdraft.scripts.results import write_rows
from tdraft.scripts.sequence_tasks import TASKS, Batch, Task

TIME_INVARIANT = ("s4", "s4d", "lru", "retnet")  # the same dynamics whatever the input


@dataclass(frozen=True)
class BackboneBench:
    """Train every family on selective copying, induction heads, adding and digits with one budget; a table and a plot."""

    families: tuple[str, ...] = tuple(BACKBONES)
    """families to train"""
    tasks: tuple[str, ...] = tuple(TASKS)
    """tasks to train on"""
    steps: int | None = None
    """training steps of each family, by default the task's own number"""
    d_model: int = 64
    """width"""
    n_layers: int = 2
    """layers"""
    lr: float = 1e-2
    """highest learning rate: Adam, warmed up over a tenth of the steps, then a cosine to nothing"""
    seeds: int = 1
    """runs of each"""
    out: Path = Path("runs/backbones")
    """folder of the table (table.md), the rows (rows.json) and the plot (backbones.png)"""
    json: Path | None = None
    """also write the rows to this file"""


class Reader(nn.Module):
    """Inputs to width D, a backbone, and outputs at every place."""

    def __init__(self, task: Task, backbone: Backbone):
        super().__init__()
        d = backbone.d_model
        self.into: nn.Module = nn.Embedding(task.vocabulary, d) if task.vocabulary else nn.Linear(task.n_inputs, d)
        self.backbone = backbone
        self.head = nn.Linear(d, task.n_outputs)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.head(self.backbone(self.into(inputs))[0])


def loss_of(task: Task, outputs: Tensor, batch: Batch) -> Tensor:
    """Cross-entropy, or the squared error of a number, at the places that ask for an answer."""
    _, targets, places = batch
    if task.n_outputs == 1:
        return F.mse_loss(outputs[places][:, 0], targets[places])
    return F.cross_entropy(outputs[places], targets[places])


def score_of(task: Task, model: Reader, length: int, size: int = 256) -> float:
    """Share of right answers, or the squared error of a number, on fresh sequences."""
    batch = task.draw(np.random.default_rng(10**6), size, length, True)
    with torch.inference_mode():
        outputs = torch.cat([model(part) for part in batch[0].split(64)])
    if task.n_outputs == 1:
        return float(loss_of(task, outputs, batch))
    _, targets, places = batch
    return float((outputs.argmax(-1) == targets)[places].float().mean())


def train(bench: BackboneBench, task: Task, family: str, seed: int, n_steps: int) -> tuple[Reader, float]:
    """The trained model and the seconds that it took.

    No weight decays: Mamba's and S4's rates must not, and they are matrices, which no rule by shape would exempt.
    """
    torch.manual_seed(seed)
    longest = {"max_length": 2 * max(task.test_lengths), "n_heads": 4} if family == "transformer" else {}
    model = Reader(task, make_backbone(family, d_model=bench.d_model, n_layers=bench.n_layers, **longest))
    optimiser = torch.optim.Adam(model.parameters(), lr=bench.lr)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, bench.lr, n_steps, pct_start=0.1)
    rng, start = np.random.default_rng(seed), time.process_time()
    for step in tqdm(range(n_steps), f"{task.name}, {family}", leave=False, disable=None):
        batch = task.draw(rng, task.batch, task.length_at(step / n_steps), False)
        loss = loss_of(task, model(batch[0]), batch)
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        schedule.step()
    return model, time.process_time() - start


def run(bench: BackboneBench) -> None:
    """Train, test, and write table, rows and plot."""
    for kind, given, known in (("family", bench.families, BACKBONES), ("task", bench.tasks, TASKS)):
        for name in given:
            if name not in known:
                raise unknown(kind, name, list(known), "tdraft bench backbones --help")
    bench.out.mkdir(parents=True, exist_ok=True)
    rows = []
    with one_thread():
        for name in bench.tasks:
            for family in bench.families:
                rows += measured(bench, TASKS[name], family)
                write(bench, rows)  # after each, as the whole takes half an hour
    print(f"{table(rows)}\nwrote {bench.out}/table.md, rows.json and backbones.png")


def write(bench: BackboneBench, rows: list[dict]) -> None:
    """Rows, table and plot of what is measured so far."""
    write_rows(bench.out / "rows.json", rows)
    if bench.json is not None:
        write_rows(bench.json, rows)
    with atomic_write(bench.out / "table.md") as temporary:
        temporary.write_text(table(rows))
    draw(rows, bench.out / "backbones.png")


def measured(bench: BackboneBench, task: Task, family: str) -> list[dict]:
    """A row for each length that a family is tested at, and one for its seconds of training."""
    scores, seconds = np.zeros((bench.seeds, len(task.test_lengths))), np.zeros(bench.seeds)
    for seed in range(bench.seeds):
        model, seconds[seed] = train(bench, task, family, seed, bench.steps or task.steps)
        scores[seed] = [score_of(task, model, length) for length in task.test_lengths]
    metric, unit = ("squared error", "1") if task.n_outputs == 1 else ("accuracy", "share")
    rows = [_row(f"{task.name}/{family}/{n}", metric, unit, scores[:, i]) for i, n in enumerate(task.test_lengths)]
    print("  ".join(f"{row['name']}: {row['value']:.4f}" for row in rows) + f"  ({seconds.mean():.0f} s of training)", flush=True)
    return [*rows, _row(f"{task.name}/{family}", "training time", "CPU seconds", seconds)]


def _row(name: str, metric: str, unit: str, values: np.ndarray) -> dict:
    error = float(values.std(ddof=1) / len(values) ** 0.5) if len(values) > 1 else None
    return {"name": name, "metric": metric, "value": float(values.mean()), "unit": unit, "runs": len(values), "se": error}


def grouped(rows: list[dict]) -> dict[str, dict[str, dict]]:
    """{task and length: {family: row}}."""
    found: dict[str, dict[str, dict]] = {}
    for row in rows:
        if row["metric"] != "training time":
            task, family, length = row["name"].split("/")
            found.setdefault(f"{task}, {length}", {})[family] = row
    return found


def table(rows: list[dict]) -> str:
    """A row a family, a column a task and length."""
    columns = grouped(rows)
    families = list(dict.fromkeys(family for column in columns.values() for family in column))
    lines = ["| family | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
    for family in families:
        cells = [f"{column[family]['value']:.4f}" if family in column else "" for column in columns.values()]
        lines.append(f"| {family} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def draw(rows: list[dict], path: Path) -> None:
    """A panel a task and length, a bar a family."""
    from matplotlib.figure import Figure

    columns = grouped(rows)
    figure = Figure(figsize=(3.2 * len(columns), 3.6), layout="constrained")
    for axes, (title, column) in zip(np.atleast_1d(figure.subplots(1, len(columns))), columns.items()):
        colours = ["tab:grey" if family in TIME_INVARIANT else "tab:blue" for family in column]
        errors = [row["se"] or 0.0 for row in column.values()]
        axes.barh(list(column), [row["value"] for row in column.values()], xerr=errors, color=colours)
        axes.invert_yaxis()
        axes.set(title=title, xlabel=next(iter(column.values()))["metric"])
    figure.suptitle("grey: the same dynamics whatever the input")
    with atomic_write(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)
