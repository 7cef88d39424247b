"""One file an agent: arrays and a JSON description, in NumPy's npz. No pickles, so that loading a file runs no code."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from tdraft.models.files import DAMAGED, atomic_write

FORMAT = "tdraft agent"
SCHEMA = 1


class CheckpointError(ValueError):
    """A file that is not an agent's checkpoint, is damaged, or belongs to another agent or version."""


def write(path: str | Path, meta: dict[str, Any], arrays: dict[str, np.ndarray]) -> None:
    """Write a checkpoint atomically: a kill or a full disk leaves the former file as it was."""
    text = json.dumps({"format": FORMAT, "schema": SCHEMA, **meta})
    with atomic_write(path) as temporary, open(temporary, "wb") as file:
        np.savez(file, **{"meta": np.frombuffer(text.encode(), np.uint8), **arrays})  # pyright: ignore[reportArgumentType]


def read(path: str | Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The description and the arrays of a checkpoint.

    :raises FileNotFoundError: no such file
    :raises CheckpointError: not a checkpoint, or one of another version
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no checkpoint {path}")
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        meta = json.loads(arrays.pop("meta").tobytes())
    except DAMAGED as error:
        raise CheckpointError(f"{path} is not a checkpoint of an agent, or it is damaged ({error})") from error
    if not isinstance(meta, dict) or meta.get("format") != FORMAT:
        raise CheckpointError(f"{path} is not a checkpoint of a tdraft agent")
    if meta.get("schema") != SCHEMA:
        raise CheckpointError(
            f"{path} has schema {meta.get('schema')}, this version reads {SCHEMA}: train again, or use the version that wrote it"
        )
    return meta, arrays


def restore(target: dict[str, np.ndarray], arrays: dict[str, np.ndarray], prefix: str, path: str | Path) -> None:
    """Copy the stored arrays named `prefix`.* into the arrays of `target`, in place.

    :raises CheckpointError: an array is missing or has another shape or type
    """
    for name, array in target.items():
        stored = arrays.get(f"{prefix}.{name}")
        if stored is None or stored.shape != array.shape or stored.dtype != array.dtype:
            got = "nothing" if stored is None else f"{stored.dtype} {stored.shape}"
            raise CheckpointError(f"{path}: expected {array.dtype} {array.shape} for {prefix}.{name}, got {got}")
    for name, array in target.items():
        array[...] = arrays[f"{prefix}.{name}"]
