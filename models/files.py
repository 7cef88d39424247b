"""Saving without loss: write beside the target, flush to disk, rename."""

import os
import struct
import tempfile
import tokenize
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# What NumPy raises on a file that is no whole npz, or whose arrays are not those that were asked for.
DAMAGED: tuple[type[Exception], ...] = (
    *(
        OSError,
        EOFError,
        zipfile.BadZipFile,
        zlib.error,
        struct.error,
        tokenize.TokenError,
        SyntaxError,
        RuntimeError,
        MemoryError,
    ),
    *(KeyError, ValueError, TypeError, AttributeError, OverflowError),
)


@contextmanager
def atomic_write(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path in the target's folder; on success it replaces `path`, on any error it is removed.

    A full disk or a kill in the middle leaves the former file as it was.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=path.suffix)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
