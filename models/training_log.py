"""What a training leaves to look at: config.json, progress.csv and TensorBoard events."""

import csv
import json
from pathlib import Path
from typing import Any

from .files import atomic_write

COLUMNS = (
    "step", "seconds", "tokens", "train/loss", "train/bits_per_byte", "train/lr", "train/grad_norm", "train/loss_scale",
    "train/skipped_steps", "time/tokens_per_second", "eval/bits_per_byte",
)  # fmt: skip


class Log:
    """progress.csv, config.json and TensorBoard events of a run; nothing at all without a folder.

    :param identity: what config.json holds
    :param step: that the run goes on from; later rows of a run that was killed are dropped
    """

    def __init__(self, run_dir: str | Path | None, identity: dict[str, Any], step: int):
        self.file = self.events = None
        if run_dir is None:
            return
        from torch.utils.tensorboard import SummaryWriter  # takes a second to import

        run_dir = Path(run_dir)
        with atomic_write(run_dir / "config.json") as temporary:
            temporary.write_text(json.dumps(identity, indent=2) + "\n")
        path = run_dir / "progress.csv"
        rows = list(csv.reader(path.read_text().splitlines()))[1:] if step and path.exists() else []
        rows = [row for row in rows if len(row) == len(COLUMNS) and int(row[0]) <= step]  # a kill leaves later ones
        with atomic_write(path) as temporary, open(temporary, "w", newline="") as file:
            csv.writer(file).writerows([COLUMNS, *rows])
        self.file = open(path, "a", newline="")
        self.events = SummaryWriter(str(run_dir), purge_step=step + 1)

    def row(self, step: int, values: tuple[float, ...]) -> None:
        """Write one value a column; NaN is left out."""
        if self.file is not None and self.events is not None:
            csv.writer(self.file).writerow(["" if v != v else f"{v:.7g}" if isinstance(v, float) else v for v in values])
            self.file.flush()
            for tag, value in zip(COLUMNS[3:], values[3:]):
                if value == value:
                    self.events.add_scalar(tag, value, step)

    def text(self, step: int, text: str) -> None:
        """Show a sample of the model's text."""
        if self.events is not None:
            self.events.add_text("samples", "    " + text.replace("\n", "\n    "), step)  # indented: Markdown leaves it as it is

    def __enter__(self) -> "Log":
        return self

    def __exit__(self, *error: object) -> None:
        if self.file is not None and self.events is not None:
            self.file.close()
            self.events.close()
