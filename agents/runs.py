"""Run folders: `runs/<env>/<agent>/seed<k>/` with config.json, progress.csv, TensorBoard events and a checkpoint."""

import csv
import io
import json
import sys
import time
from pathlib import Path
from typing import Any

from tdraft.models.files import atomic_write

STEP = "time/total_timesteps"
COLUMNS: tuple[str, ...] = (
    STEP,
    "time/fps",
    "rollout/ep_rew_mean",
    "rollout/ep_len_mean",
    "rollout/reward_rate",
    "rollout/exploration_rate",
    "train/td_error",
)


def run_folder(root: str | Path, env_id: str, agent: str, seed: int) -> Path:
    """The folder of one run; "/" and ":" of an env id become "-"."""
    return Path(root) / env_id.replace("/", "-").replace(":", "-") / agent / f"seed{seed}"


def write_json(path: Path, data: dict[str, Any]) -> None:
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(data, indent=2) + "\n")


class RunLogger:
    """Writes one line of numbers a log point, to progress.csv and to TensorBoard. Doesn't import torch.

    :param folder: made where it doesn't exist
    :param config: written to config.json
    :param start: steps trained so far; lines past them (of a run that was killed after its checkpoint) are dropped
    """

    def __init__(self, folder: str | Path, config: dict[str, Any], start: int = 0):
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        write_json(self.folder / "config.json", config)
        rows = [r for r in read_progress(self.folder / "progress.csv") if 0 < r[STEP] <= start]
        with atomic_write(self.folder / "progress.csv") as temporary, open(temporary, "w", newline="") as file:
            table = csv.DictWriter(file, COLUMNS)
            table.writeheader()
            table.writerows(rows)
        self._file = open(self.folder / "progress.csv", "a", newline="")
        self._table = csv.DictWriter(self._file, COLUMNS, extrasaction="ignore")
        if start == 0:
            for old in self.folder.glob("events.out.tfevents.*"):
                old.unlink()
        self._events = EventFileWriter(str(self.folder))
        self._restart(start)

    def _restart(self, start: int) -> None:
        """Tell TensorBoard to drop events of later steps."""
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog  # pyright: ignore[reportAttributeAccessIssue]

        event = Event(step=start + 1, session_log=SessionLog(status=SessionLog.START), wall_time=time.time())
        self._events.add_event(event)

    def write(self, step: int, numbers: dict[str, float]) -> None:
        """One line at this step; the file is flushed, so that a kill costs no line."""
        self._table.writerow({STEP: step, **numbers})
        self._file.flush()
        self._events.add_event(scalars(step, numbers))

    def close(self) -> None:
        self._file.close()
        self._events.close()


def scalars(step: int, numbers: dict[str, float]) -> Any:
    """TensorBoard's event of numbers by their tags at a step."""
    from tensorboard.compat.proto.event_pb2 import Event  # pyright: ignore[reportAttributeAccessIssue]
    from tensorboard.compat.proto.summary_pb2 import Summary  # pyright: ignore[reportAttributeAccessIssue]

    values = [Summary.Value(tag=tag, simple_value=number) for tag, number in numbers.items()]
    return Event(step=step, summary=Summary(value=values), wall_time=time.time())


def read_progress(path: Path) -> list[dict[str, Any]]:
    """The complete rows of a progress.csv, numbers as floats (an empty string where there is none, or where an older file has no
    such column) and steps as ints; an empty list where there is no file. A line that a kill cut off has no line end, and is left
    out."""
    rows = []
    text = path.read_bytes().decode(errors="replace") if path.is_file() else ""
    for row in csv.DictReader(io.StringIO(text[: text.rfind("\n") + 1], newline="")):
        try:
            numbers: dict[str, Any] = {k: float(row[k]) if row.get(k) else "" for k in COLUMNS}
            numbers[STEP] = int(row[STEP])
        except (TypeError, ValueError, KeyError):
            continue  # not a row of ours
        if None not in row.values():
            rows.append(numbers)
    return rows


def progress(total: int, *, enabled: bool, unit: str = "step") -> Any:
    """A tqdm bar that shows itself after two seconds, on a terminal only."""
    from tqdm import tqdm

    return tqdm(total=total, unit=unit, unit_scale=True, delay=2, leave=False, disable=not (enabled and sys.stderr.isatty()))
