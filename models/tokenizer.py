"""Bytes as tokens: no vocabulary to learn, nothing unknown, 256 ids."""

from collections.abc import Iterable

import numpy as np


class ByteTokenizer:
    """Token i is byte i."""

    vocab_size = 256

    def encode(self, text: str | bytes) -> np.ndarray:
        """(T,) int64 ids of the text's UTF-8 bytes."""
        data = text.encode(errors="surrogateescape") if isinstance(text, str) else bytes(text)
        return np.frombuffer(data, np.uint8).astype(np.int64)

    def decode_bytes(self, ids: np.ndarray | Iterable[int]) -> bytes:
        """The bytes of (T,) ids.

        :raises ValueError: an id outside 0..255
        """
        ids = np.asarray(ids if isinstance(ids, np.ndarray) else list(ids), dtype=np.int64)
        if ids.size and not 0 <= ids.min() <= ids.max() < 256:
            wrong = ids[(ids < 0) | (ids > 255)][0]
            raise ValueError(f"a byte's id is in 0..255, got {wrong}; was it made by another tokenizer?")
        return ids.astype(np.uint8).tobytes()

    def decode(self, ids: np.ndarray | Iterable[int]) -> str:
        """The text of (T,) ids; what is not UTF-8 becomes U+FFFD."""
        return self.decode_bytes(ids).decode(errors="replace")
