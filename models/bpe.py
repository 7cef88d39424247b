"""Byte pair encoding over bytes: frequent strings become one token each, and nothing is ever unknown.

Merges (Sennrich, Haddow & Birch 2016, arXiv 1508.07909) over the bytes of pieces of text, cut by a pattern so that no token
crosses a word's border (Radford et al. 2019, "Language models are unsupervised multitask learners", sec. 2.2). The file is
Hugging Face's `tokenizer.json`, and the ids are those that their `tokenizers` library gives; learning the merges needs that
library, reading, encoding and decoding need nothing.
"""

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import lru_cache
from heapq import heapify, heappop, heappush
from itertools import chain, groupby, pairwise
from pathlib import Path
from typing import Any

import numpy as np

from .bpe_format import ALPHABET, TokenizerError, byte_name, read_json, read_merges, write_json
from .files import atomic_write

CACHED_PIECES = 1 << 16  # pieces whose ids are remembered; a text repeats its words
CACHED_LENGTH = 64  # longer pieces seldom come back

# Letters and numbers of Unicode 15 and 16, which Python 3.11 to 3.13 do not know in full and `tokenizers` does.
_NEW_LETTERS = (
    "1c89-1c8a a7cb-a7cd a7da-a7dc 105c0-105f3 10d4a-10d65 10d6f-10d85 10ec2-10ec4 1123f-11240 11380-11389 1138b 1138e"
    " 11390-113b5 113b7 113d1 113d3 11bc0-11be0 11f02 11f04-11f10 11f12-11f33 1342f 13441-13446 13460-143fa 16100-1611d"
    " 16d40-16d6c 18cff 1b132 1b155 1df25-1df2a 1e030-1e06d 1e4d0-1e4eb 1e5d0-1e5ed 1e5f0 2b739 2ebf0-2ee5d 31350-323af"
)
_NEW_NUMBERS = (
    "10d40-10d49 116d0-116e3 11bf0-11bf9 11f50-11f59 16130-16139 16d70-16d79 1ccf0-1ccf9 1d2c0-1d2d3 1e4f0-1e4f9 1e5f1-1e5fa"
)


class BPETokenizer:
    """Bytes <-> ids by byte pair encoding; the interface of `ByteTokenizer`, and the bytes of each token.

    :param tokens: (V,) the bytes of each id; all 256 single bytes are among them
    :param merges: pairs of tokens whose concatenation is a token, the first to be merged first
    :param added: tokens that are found in the text before all else, as entries of tokenizer.json's `added_tokens`
    :raises TokenizerError: a byte that is no token, a merge of or into what is no token
    """

    def __init__(self, tokens: Sequence[bytes], merges: Sequence[tuple[bytes, bytes]], added: Sequence[dict[str, Any]] = ()):
        self.tokens, self.merges, self.added = list(tokens), list(merges), list(added)
        ids = {token: i for i, token in enumerate(self.tokens)}
        missing = [b for b in range(256) if bytes([b]) not in ids]
        if missing:
            raise TokenizerError(
                f"the vocabulary lacks the byte 0x{missing[0]:02x}; all 256 must be tokens, or texts have unknowns"
            )
        self._byte_ids = [ids[bytes([b])] for b in range(256)]
        self._merges: dict[tuple[int, int], tuple[int, int]] = {}  # two ids -> rank, id of both together
        for rank, (a, b) in enumerate(self.merges):
            absent = [token for token in (a, b, a + b) if token not in ids]
            if absent:
                first = byte_name(absent[0])
                raise TokenizerError(f"merge {rank} ({byte_name(a)} {byte_name(b)}): {first} is not in the vocabulary")
            self._merges[ids[a], ids[b]] = rank, ids[a + b]
        self._added_ids: dict[str, int] = {entry["content"]: entry["id"] for entry in self.added}
        longest_first = sorted(self._added_ids, key=len, reverse=True)
        self._added_pattern = re.compile(f"({'|'.join(map(re.escape, longest_first))})") if longest_first else None
        self._cache = _Cache(self._encode_piece)

    def __reduce__(self):
        return BPETokenizer, (self.tokens, self.merges, self.added)

    def __repr__(self) -> str:
        return f"BPETokenizer({self.vocab_size} tokens, {self.fingerprint})"

    @property
    def vocab_size(self) -> int:
        """Number of tokens V, the added ones included."""
        return len(self.tokens)

    @property
    def byte_lengths(self) -> np.ndarray:
        """(V,) int64: bytes of each token. Bits a byte are the sum of a text's bits over byte_lengths[ids].sum()."""
        return np.array([len(token) for token in self.tokens], dtype=np.int64)

    @property
    def fingerprint(self) -> str:
        """16 hex digits of the sha256 of `to_json()`."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()[:16]

    def token_bytes(self, token: int) -> bytes:
        """The bytes of one id; they need not be whole characters."""
        return self.decode_bytes([token])

    def encode(self, text: str | bytes) -> np.ndarray:
        """(T,) int64 ids; any bytes, UTF-8 or not, come back from `decode_bytes` as they were."""
        text = _escaped(text)
        cut = piece_pattern(text.isascii()).findall
        parts = self._added_pattern.split(text) if self._added_pattern else [text]
        pieces = [piece for i, part in enumerate(parts) for piece in ([part] if i % 2 else cut(part))]
        return np.fromiter(chain.from_iterable(map(self._cache.__getitem__, pieces)), np.int64)

    def decode_bytes(self, ids: np.ndarray | Iterable[int]) -> bytes:
        """The bytes of (T,) ids, added tokens as their text.

        :raises ValueError: an id outside 0..V-1
        """
        ids = np.asarray(ids if isinstance(ids, np.ndarray) else list(ids), dtype=np.int64)
        if ids.size and not 0 <= ids.min() <= ids.max() < len(self.tokens):
            wrong = ids[(ids < 0) | (ids >= len(self.tokens))][0]
            raise ValueError(f"an id is in 0..{len(self.tokens) - 1}, got {wrong}; was it made by another tokenizer?")
        return b"".join(map(self.tokens.__getitem__, ids.ravel().tolist()))

    def decode(self, ids: np.ndarray | Iterable[int]) -> str:
        """The text of (T,) ids; what is not UTF-8 becomes U+FFFD."""
        return self.decode_bytes(ids).decode(errors="replace")

    def _encode_piece(self, piece: str) -> list[int]:
        """Merge the neighbours of the lowest rank, the leftmost first, until none is left: n log n in the piece's n bytes."""
        if piece in self._added_ids:
            return [self._added_ids[piece]]
        ids = [self._byte_ids[b] for b in piece.encode(errors="surrogateescape")]
        merges, n = self._merges, len(ids)
        before, after = list(range(-1, n - 1)), list(range(1, n + 1))  # a linked list: what was merged away is -1 in ids
        heap = [merges[pair][0] * n + i for i, pair in enumerate(pairwise(ids)) if pair in merges]
        heapify(heap)
        while heap:
            rank, i = divmod(heappop(heap), n)
            j = after[i]
            found = merges.get((ids[i], ids[j])) if j < n else None
            if found is None or found[0] != rank:  # one of the two has been merged since
                continue
            ids[i], ids[j], after[i] = found[1], -1, after[j]
            if after[i] < n:
                before[after[i]] = i
            for left, right in ((before[i], i), (i, after[i])):
                if left >= 0 and right < n and (pair := (ids[left], ids[right])) in merges:
                    heappush(heap, merges[pair][0] * n + left)
        return [token for token in ids if token >= 0]

    @classmethod
    def train(cls, text: bytes | str | Iterable[bytes | str], vocab_size: int, min_count: int = 2) -> "BPETokenizer":
        """Learn the merges with `tokenizers`: id i is byte i below 256, then the merged strings, the most frequent first.

        :param text: one text, or several, across whose borders nothing is merged; bytes that aren't UTF-8 count like others
        :param vocab_size: at most so many tokens, 256 or more; a small text has fewer
        :param min_count: a pair that stands less often is not merged
        :raises ImportError: without the `tokenizers` library
        :raises TokenizerError: a text without a pair to merge, a vocabulary smaller than 256, or min_count below 1
        """
        if vocab_size < 256:
            raise TokenizerError(f"vocab_size must be at least 256, one for each byte, got {vocab_size}")
        if min_count < 1:
            raise TokenizerError(f"min_count must be at least 1, got {min_count}")
        try:
            from tokenizers import Tokenizer, models, pre_tokenizers, trainers
        except ImportError:
            raise ImportError('learning a BPE vocabulary needs tokenizers; pip install "tdraft[hf]"') from None
        learner = Tokenizer(models.BPE())
        learner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # of our own pieces, which `byte_name` rids of white space
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size, min_frequency=min_count, initial_alphabet=list(ALPHABET), show_progress=False
        )
        learner.train_from_iterator(map(_named_pieces, [text] if isinstance(text, bytes | str) else text), trainer)
        model = json.loads(learner.to_str())["model"]
        merges = read_merges(model["merges"])
        if not merges and vocab_size > 256:
            raise TokenizerError(f"no two bytes stand side by side {min_count} times in the text; give a longer one")
        strings = dict.fromkeys(a + b for a, b in merges)  # two merges may make the same string
        return cls([*(bytes([b]) for b in range(256)), *strings], merges)

    def save(self, path: str | Path) -> None:
        """Write a tokenizer.json, which `tokenizers.Tokenizer.from_file` reads; a failure leaves the former file as it was."""
        with atomic_write(path) as temporary:
            temporary.write_text(self.to_json(), encoding="utf-8")

    @classmethod
    def load(cls, path: str | Path) -> "BPETokenizer":
        """The tokenizer in a tokenizer.json: `save`'s, GPT-2's, or another byte-level BPE by `tokenizers`.

        :raises TokenizerError: no such file, no JSON (with line and column), or what is not supported (with the field's name)
        """
        try:
            return cls.from_json(Path(path).read_text(encoding="utf-8"))
        except OSError as error:
            raise TokenizerError(f"{path} cannot be read ({error.strerror}); give a tokenizer.json") from None
        except UnicodeDecodeError as error:
            raise TokenizerError(f"{path} is not UTF-8 at byte {error.start}; give a tokenizer.json") from None
        except TokenizerError as error:
            raise TokenizerError(f"{path}: {error}") from None

    def to_json(self) -> str:
        """The tokenizer as the text of a tokenizer.json; the same for the same tokens and merges."""
        return write_json(self.tokens, self.merges, self.added)

    @classmethod
    def from_json(cls, text: str) -> "BPETokenizer":
        """The tokenizer of `to_json`'s text, or of any byte-level BPE of `tokenizers`.

        :raises TokenizerError: no JSON, or what is not supported
        """
        return cls(*read_json(text))


class _Cache(dict[str, list[int]]):
    """piece -> ids, computed when first asked for; emptied when full."""

    def __init__(self, compute: Callable[[str], list[int]]):
        super().__init__()
        self.compute = compute

    def __missing__(self, piece: str) -> list[int]:
        ids = self.compute(piece)
        if len(piece) <= CACHED_LENGTH:
            if len(self) >= CACHED_PIECES:
                self.clear()
            self[piece] = ids
        return ids


# Pieces


@lru_cache
def piece_pattern(ascii: bool) -> re.Pattern[str]:
    r"""GPT-2's pattern: contractions, then words, numbers and the rest, each with one space before it; runs of white space.

        's|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+

    Python's `re` has no \p, and its \s holds four control characters too many, so the classes are spelled out: as in Unicode 16,
    whatever Python's own version up to that one. Bytes that aren't UTF-8, which stand in the text as surrogates, are "the rest".

    :param ascii: for texts of ASCII only: the same pieces, five times faster
    """
    if ascii:
        letters, numbers, spaces = "A-Za-z", "0-9", "\t-\r "
    else:
        letters = _ranges(chr(c).isalpha() for c in range(0x110000)) + _spelled(_NEW_LETTERS)
        numbers = _ranges(chr(c).isnumeric() and not chr(c).isalpha() for c in range(0x110000)) + _spelled(_NEW_NUMBERS)
        spaces = "\t-\r \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"
    rest = f"[^{spaces}{letters}{numbers}]"
    return re.compile(f"'(?:[stmd]|re|ve|ll)| ?[{letters}]+| ?[{numbers}]+| ?{rest}+|[{spaces}]+(?![^{spaces}])|[{spaces}]+")


def _ranges(members: Iterable[bool]) -> str:
    """The code points for which `members` is true, as the inside of a character class."""
    runs: Iterator[list[int]] = (list(c for c, _ in run) for inside, run in groupby(enumerate(members), lambda m: m[1]) if inside)
    return "".join(f"{chr(run[0])}-{chr(run[-1])}" for run in runs)


def _spelled(ranges: str) -> str:
    """`1c89-1c8a 1138b`, hexadecimal, as the inside of a character class."""
    return re.sub("[0-9a-f]+", lambda code: chr(int(code[0], 16)), ranges).replace(" ", "")


def _escaped(text: bytes | str) -> str:
    """The text of bytes, one surrogate for each that isn't UTF-8; the same for a text that was read so as for its bytes."""
    data = text.encode(errors="surrogateescape") if isinstance(text, str) else bytes(text)
    return data.decode(errors="surrogateescape")


def _named_pieces(text: bytes | str) -> str:
    """A text's pieces with single spaces between them."""
    text = _escaped(text)
    return " ".join(byte_name(piece.encode(errors="surrogateescape")) for piece in piece_pattern(text.isascii()).findall(text))
