"""Machine-readable results: `{"machine": ..., "rows": [...]}`, written whole or not at all."""

import json
import os
import platform
from pathlib import Path

from tdraft.models.files import atomic_write


def machine() -> dict:
    """What the figures were measured on."""
    from importlib.metadata import version

    names = ("numpy", "numba", "torch", "gymnasium")
    return {"processor": platform.machine(), "cores": os.cpu_count(), "python": platform.python_version()} | {
        name: version(name) for name in names
    }


def write_rows(path: Path, rows: list[dict]) -> None:
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps({"machine": machine(), "rows": rows}, indent=1))
