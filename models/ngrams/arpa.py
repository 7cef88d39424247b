"""ARPA files: the text format of back-off models that SRILM, kenlm and others read and write.

    \\data\\
    ngram 1=4

    \\1-grams:
    -0.9    <unk>   0
    0       <s>     -0.3
    ...
    \\end\\

A line is log10 p, the n-gram, and log10 of its back-off weight (0 where left out; the longest have none). Numbers are written
with the fewest digits that give the same float32 again, so that reading back what was written gives the same model, bit for bit.
"""

import gzip
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from ..files import atomic_write
from .backoff import BackoffModel
from .counts import NGramError
from .vocabulary import BOS, EOS, UNK

ZERO = -99.0  # written where p = 0, as SRILM does
MISSING = -100.0  # log10 p of <unk> and </s> where a file has none, as kenlm's


class ArpaError(NGramError):
    """A malformed ARPA file; the message begins with file:line."""


def write_arpa(path: str | Path, model: BackoffModel, words: list[str] | None = None) -> None:
    """Write a model as an ARPA file (.gz: compressed), all or nothing.

    :param words: (V,) the words; None writes the tokens' numbers
    :raises NGramError: a model that the format cannot hold, or words with white space
    """
    if model.uniform:
        raise NGramError("an ARPA file cannot hold add-k: its unseen words do not back off; use another smoothing")
    words = [str(i) for i in range(model.vocab_size)] if words is None else words
    if len(words) != model.vocab_size or len(set(words)) != len(words) or BOS in words:
        raise NGramError(f"words must be {model.vocab_size} distinct strings without {BOS}, got {len(words)}")
    wrong = next((w for w in words if len(w.encode(errors="surrogateescape").split()) != 1), None)
    if wrong is not None:
        raise NGramError(f"an ARPA file cannot hold the word {wrong!r}: it is empty or has white space in it")
    with atomic_write(path) as temporary, open(temporary, "wb") as raw:
        if Path(path).suffix == ".gz":
            with gzip.GzipFile(fileobj=raw, mode="wb", filename="", mtime=0, compresslevel=6) as file:
                file.writelines(_lines(model, words))
        else:
            raw.writelines(_lines(model, words))


def _lines(model: BackoffModel, words: list[str]) -> Iterator[bytes]:
    start = model.level_start.tolist()
    yield b"\\data\\\n"
    for n in range(1, model.order + 1):
        yield b"ngram %d=%d\n" % (n, start[n + 1] - start[n])
    encoded = [word.encode(errors="surrogateescape") for word in [*words, BOS]]
    suffixes: list[bytes] = [b""]
    for n in range(1, model.order + 1):
        begin, end = start[n], start[n + 1]
        parents = (model.parents[begin:end] - start[n - 1]).tolist()
        tokens = model.tokens[begin:end].tolist()
        texts = [encoded[t] + suffixes[p] for p, t in zip(parents, tokens)]
        probability, backoff = (_numbers(model.values[begin:end, j]) for j in (0, 1))
        rows = list(zip(probability, texts, backoff))
        if n == 1:
            rows.insert(1, rows.pop())  # <s> stands second, as kenlm writes it
        yield b"\n\\%d-grams:\n" % n
        if n < model.order:
            yield from (b"%s\t%s\t%s\n" % row for row in rows)
        else:
            yield from (b"%s\t%s\n" % row[:2] for row in rows)
        suffixes = [b" " + text for text in texts]
    yield b"\n\\end\\\n"


def _numbers(values: np.ndarray) -> list[bytes]:
    values = np.where(np.isneginf(values), np.float32(ZERO), values)
    return [text.removesuffix(".0").encode() for text in values.astype(str).tolist()]


def read_arpa(path: str | Path) -> tuple[BackoffModel, list[str]]:
    """Read an ARPA file (.gz: compressed).

    :return: the model; its V words in the file's order without <s>, with <unk> and </s> at the end where the file has none
    :raises ArpaError: what is malformed, with file:line
    :raises NGramError: no such file
    """
    try:
        with (gzip.open if Path(path).suffix == ".gz" else open)(path, "rb") as file:
            lines = _Lines(path, file.read().split(b"\n"))
    except FileNotFoundError:
        raise NGramError(f"{path} does not exist") from None
    except (OSError, EOFError) as error:
        raise NGramError(f"{path} cannot be read: {error}") from None
    counts = _header(lines)
    words, ids, parents, tokens, values = _unigrams(lines, counts[0], len(counts) == 1)
    first = len(words) + 2
    nodes = {word: i + 1 for word, i in ids.items()}
    for n in range(2, len(counts) + 1):
        nodes = _section(lines, n, counts[n - 1], n == len(counts), ids, nodes, first, parents, tokens, values)
        first += len(nodes)
    lines.expect(b"\\end\\")
    model = BackoffModel(
        len(counts), len(words), np.array(parents, np.int32), np.array(tokens, np.int32), np.array(values, np.float32)
    )
    return model, words


class _Lines:
    """The lines of a file, one after the other, without blank ones."""

    def __init__(self, path, lines: list[bytes]):
        self.path, self.lines, self.number = path, lines, 0

    def next(self) -> bytes:
        while self.number < len(self.lines):
            line = self.lines[self.number].strip()
            self.number += 1
            if line:
                return line
        raise self.error("the file ends here, \\end\\ was expected; it may have been cut")

    def expect(self, text: bytes) -> None:
        line = self.next()
        if line != text:
            raise self.error(f"expected {text.decode()}, got {_shown(line)}")

    def error(self, text: str) -> ArpaError:
        return ArpaError(f"{self.path}:{self.number}: {text}")


def _shown(line: bytes) -> str:
    return repr(line[:60].decode(errors="replace"))


def _header(lines: _Lines) -> list[int]:
    """Number of n-grams of each length; text before \\data\\ is a comment."""
    while lines.next() != b"\\data\\":
        pass
    counts = []
    while True:
        line = lines.next()
        if line.startswith(b"\\"):
            break
        name, _, count = line.partition(b"=")
        if name.split() != [b"ngram", b"%d" % (len(counts) + 1)] or not count.strip().isdigit():
            raise lines.error(f'expected "ngram {len(counts) + 1}=COUNT", got {_shown(line)}')
        counts.append(int(count))
    if not 1 <= len(counts) <= 32 or counts[0] < 1:
        raise lines.error(f"expected the numbers of 1-grams to at most 32-grams before this line, got {counts}")
    if line != b"\\1-grams:":
        raise lines.error(f"expected \\1-grams:, got {_shown(line)}")
    return counts


def _entry(lines: _Lines, n: int, longest: bool) -> tuple[list[bytes], tuple[float, float]]:
    """The words and the two numbers of the next line."""
    line = lines.next()
    fields = line.split()
    if line.startswith(b"\\") and len(fields) == 1:
        raise lines.error(f"{line.decode(errors='replace')} comes before all {n}-grams that \\data\\ announced")
    if not n + 1 <= len(fields) <= n + 2 - longest:
        wanted = f"log10 p and {n} words" + ("" if longest else ", then perhaps a back-off weight")
        raise lines.error(f"expected {wanted}, got {_shown(line)}")
    try:
        p, weight = float(fields[0]), float(fields[n + 1]) if len(fields) == n + 2 else 0.0
    except ValueError:
        raise lines.error(f"expected numbers before and behind the {n} words, got {_shown(line)}") from None
    if not p <= 0 or not weight < np.inf:
        raise lines.error(f"log10 p must be at most 0, and the back-off weight a number, got {fields[0].decode()} and {weight}")
    return fields[1 : n + 1], (p, weight)


def _unigrams(lines: _Lines, count: int, longest: bool):
    words, ids, values, begin = [], {}, [], (ZERO, 0.0)
    for _ in range(count):
        (word,), entry = _entry(lines, 1, longest)
        if word in ids or (word == BOS.encode() and begin != (ZERO, 0.0)):
            raise lines.error(f"the word {_shown(word)} stands here for the second time")
        if word == BOS.encode():
            begin = entry
        else:
            ids[word] = len(words)
            words.append(word.decode(errors="surrogateescape"))
            values.append(entry)
    for word in (UNK, EOS):
        if word.encode() not in ids:
            ids[word.encode()] = len(words)
            words.append(word)
            values.append((MISSING, 0.0))
    ids[BOS.encode()] = len(words)
    tokens = [-1, *range(len(words) + 1)]
    return words, ids, [0] * (len(words) + 2), tokens, [(0.0, 0.0), *values, begin]


def _section(lines: _Lines, n: int, count: int, longest: bool, ids, shorter, first: int, parents, tokens, values):
    """Read the n-grams of length n behind those of length n - 1, `shorter`; append to the lists.

    :return: n-gram -> node
    """
    lines.expect(b"\\%d-grams:" % n)
    nodes: dict[bytes, int] = {}
    for i in range(count):
        ngram, entry = _entry(lines, n, longest)
        text, context, suffix = b" ".join(ngram), b" ".join(ngram[:-1]), b" ".join(ngram[1:])
        if ngram[0] not in ids:
            raise lines.error(f"the word {_shown(ngram[0])} is not among the 1-grams")
        for part, role in ((context, "context"), (suffix, "suffix")):
            if part not in shorter:
                raise lines.error(f"the {role} {_shown(part)} of {_shown(text)} is not among the {n - 1}-grams")
        if text in nodes:
            raise lines.error(f"{_shown(text)} stands here for the second time")
        nodes[text] = first + i
        parents.append(shorter[suffix])
        tokens.append(ids[ngram[0]])
        values.append(entry)
    return nodes
