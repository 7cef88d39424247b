"""`tdraft bench ngram`: counting, estimating and querying n-grams on one thread, beside kenlm's queries where it is installed."""

import importlib
import sysconfig
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tdraft.models.corpus import default_corpus
from tdraft.models.ngrams.backoff import BackoffModel
from tdraft.models.ngrams.counts import count_ngrams
from tdraft.models.ngrams.vocabulary import split_words
from tdraft.models.ngrams.words import WordModel
from tdraft.models.tokenizer import ByteTokenizer
from tdraft.scripts.results import write_rows


@dataclass(frozen=True)
class NGramBench:
    """Measure n-grams on the default corpus: one thread, medians of several runs."""

    repeats: int = 5
    """runs of each measurement, after one that compiles and warms up"""
    megabytes: float = 10.0
    """size of the text (sources of the standard library) for the byte 6-gram"""
    json: Path | None = None
    """also write the rows to this file"""


def ngram(bench: NGramBench) -> None:
    """Counting in tokens/s, queries in us/token, a byte 6-gram in seconds."""
    corpus = default_corpus()
    lines = [line for line in corpus.train.decode(errors="replace").splitlines() if line.strip()]
    held_out = [line for line in corpus.test.decode(errors="replace").splitlines() if line.strip()]
    model = WordModel.fit(lines, 5)
    words, queries = model.vocabulary.encode(lines), model.vocabulary.encode(held_out)
    data = ByteTokenizer().encode(corpus.train)
    bytes6 = BackoffModel.fit(data, 6, 256)
    test = ByteTokenizer().encode(corpus.test)
    starts = np.flatnonzero(words == model.vocabulary.bos) - np.arange((words == model.vocabulary.bos).sum())
    words = words[words != model.vocabulary.bos]
    source = ByteTokenizer().encode(_source(round(bench.megabytes * 1e6)))
    print(f"{'one thread':62}     median       min       max")
    rows = []

    def measure(name: str, unit: str, work: Callable[[], object], scale: Callable[[float], float]) -> float:
        values = scaled(work, bench.repeats, scale)
        print(f"{name:62} {np.median(values):10.4g}{values.min():10.4g}{values.max():10.4g}  {unit}", flush=True)
        error = float(values.std(ddof=1) / np.sqrt(len(values))) if len(values) > 1 else 0.0
        rows.append({"name": name, "metric": "speed", "value": float(np.median(values)), "unit": unit})
        rows[-1] |= {"runs": len(values), "se": error}
        return rows[-1]["value"]

    size = f"{len(data) / 1e6:.1f} MB"
    measure(f"count, bytes, lengths 1-6, {size}", "M tokens/s", lambda: count_ngrams(data, 6, 256), lambda s: len(data) / s / 1e6)
    measure(
        f"count, words, lengths 1-5, {len(words) / 1e6:.1f} M words", "M tokens/s",
        lambda: count_ngrams(words, 5, len(model.vocabulary), starts=starts), lambda s: len(words) / s / 1e6,
    )  # fmt: skip
    measure(
        f"byte 6-gram, counted and estimated, {len(source) / 1e6:.1f} MB", "s",
        lambda: BackoffModel.fit(source, 6, 256), lambda s: s,
    )  # fmt: skip
    measure(
        f"query, byte 6-gram, {len(test):,} bytes", "us/token", lambda: bytes6.score_tokens(test), lambda s: s / len(test) * 1e6
    )
    whole = model.vocabulary.encode(lines)
    measure(
        f"query, word 5-gram of {len(model.model.parents):,}, its own {len(words):,} words", "us/word",
        lambda: model.model.score_tokens(whole), lambda s: s / len(words) * 1e6,
    )  # fmt: skip
    scored = int((queries != model.vocabulary.bos).sum())
    name = f"query, the same, {scored:,} held-out words"
    measure(name, "us/word", lambda: model.model.score_tokens(queries), lambda s: s / scored * 1e6)
    ours = measure(f"{name}, from strings", "us/word", lambda: model.totals(held_out), lambda s: s / scored * 1e6)
    theirs = kenlm_query(model, held_out)
    if theirs is None:
        print("kenlm is not installed here (pip install kenlm): no peer")
    else:
        peer = measure(f"{name}, from strings, kenlm", "us/word", theirs, lambda s: s / scored * 1e6)
        print(f"    ours / kenlm, time a word from strings: {ours / peer:.2f}")
        rows.append(rows[-2] | {"peer": "kenlm", "ratio": ours / peer})
    if bench.json is not None:
        write_rows(bench.json, rows)


def scaled(work: Callable[[], object], repeats: int, scale: Callable[[float], float]) -> np.ndarray:
    """Seconds of some runs after a first one, each through `scale`."""
    work()
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    return np.array([scale(s) for s in seconds])


def kenlm_query(model: WordModel, sentences: list[str]) -> Callable[[], object] | None:
    """kenlm scoring the same sentences under the same model, read from our ARPA file; None where it isn't installed."""
    try:
        kenlm = importlib.import_module("kenlm")
    except ImportError:
        return None
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.arpa"
        model.save(path)
        theirs = kenlm.Model(str(path))
    joined = [" ".join(split_words(s)) for s in sentences]
    total, expected = sum(theirs.score(s) for s in joined), float(model.totals(sentences).sum())
    if abs(total - expected) > 1e-4 * abs(expected):
        raise AssertionError(f"kenlm scores the text {total}, we {expected}")
    return lambda: [theirs.score(s) for s in joined]


def _source(size: int) -> bytes:
    """The first bytes of the standard library's sources, in the order of their names."""
    parts, found = [], 0
    for path in sorted(Path(sysconfig.get_path("stdlib")).rglob("*.py")):
        if found >= size:
            break
        if "site-packages" not in path.parts:
            parts.append(path.read_bytes())
            found += len(parts[-1])
    return b"".join(parts)[:size]
