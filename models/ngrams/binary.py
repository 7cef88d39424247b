"""Back-off models in one binary file that is mapped into memory: it opens at once, and processes share its pages.

    b"tdngram1", 4 bytes length of the header, 4 bytes crc32 of all that follows (little endian), the header as JSON, the arrays

The header says order, vocabulary, and each array's shape and place, a multiple of 64 bytes behind it.
"""

import json
import struct
import zlib
from pathlib import Path

import numpy as np

from ..files import atomic_write
from .backoff import BackoffModel
from .counts import NGramError

MAGIC = b"tdngram1"
_ARRAYS = {"parents": "<i4", "tokens": "<i4", "values": "<f4", "slots": "<i8", "words": "|u1"}


def write_binary(path: str | Path, model: BackoffModel, words: list[str] | None = None) -> None:
    """Write a model, all or nothing.

    :param words: (V,) the words, without line breaks; None for tokens that are numbers
    """
    text = b"" if words is None else "\n".join(words).encode(errors="surrogateescape")
    if words is not None and len(text.split(b"\n")) != model.vocab_size:
        raise NGramError(f"words must be {model.vocab_size} without line breaks, got {len(words)}")
    found = {"parents": model.parents, "tokens": model.tokens, "values": model.values, "slots": model.slots}
    found["words"] = np.frombuffer(text, np.uint8)
    arrays, place, parts = {}, 0, []
    for name, array in found.items():
        array = np.ascontiguousarray(array, _ARRAYS[name])
        arrays[name] = [list(array.shape), place]
        parts.append(array.tobytes() + bytes(-array.nbytes % 64))
        place += len(parts[-1])
    header = {"order": model.order, "vocab_size": model.vocab_size, "uniform": model.uniform, "named": words is not None}
    encoded = json.dumps(header | {"bytes": place, "arrays": arrays}).encode()
    encoded += b" " * (-(16 + len(encoded)) % 64)
    crc = 0
    for part in (encoded, *parts):
        crc = zlib.crc32(part, crc)
    with atomic_write(path) as temporary, open(temporary, "wb") as file:
        file.write(MAGIC + struct.pack("<II", len(encoded), crc))
        for part in (encoded, *parts):
            file.write(part)


def read_binary(path: str | Path, *, check: bool = True) -> tuple[BackoffModel, list[str] | None]:
    """Map a model into memory.

    :param check: read it once and compare its checksum; without it, a file of hundreds of MB opens in no time
    :raises NGramError: no such file, a foreign or damaged one
    """
    damaged = NGramError(f"{path} is no whole binary n-gram model; write it again")
    try:
        with open(path, "rb") as file:
            begin = file.read(16)
            if len(begin) < 16 or begin[:8] != MAGIC:
                raise damaged
            length, crc = struct.unpack("<II", begin[8:])
            encoded = file.read(length)
        header, data = json.loads(encoded), np.memmap(path, np.uint8, "r", offset=16 + length)
        if len(data) != header["bytes"]:
            raise damaged
        if check and zlib.crc32(memoryview(data), zlib.crc32(encoded)) != crc:  # pyright: ignore[reportArgumentType]
            raise damaged
        arrays = {}
        for name, (shape, at) in header["arrays"].items():
            kind = np.dtype(_ARRAYS[name])
            arrays[name] = np.asarray(data[at : at + int(np.prod(shape)) * kind.itemsize]).view(kind).reshape(shape)
        words = bytes(arrays.pop("words")).decode(errors="surrogateescape").split("\n") if header["named"] else None
        slots = arrays.pop("slots")
        model = BackoffModel(
            header["order"], header["vocab_size"], arrays["parents"], arrays["tokens"], arrays["values"],
            uniform=header["uniform"], slots=slots,
        )  # fmt: skip
    except FileNotFoundError:
        raise NGramError(f"{path} does not exist") from None
    except NGramError:
        raise
    except (OSError, KeyError, ValueError, TypeError, AttributeError):
        raise damaged from None
    return model, words
