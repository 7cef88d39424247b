"""`tdraft bench embed`: Word2Vec's speed and the inflection rank of its vectors, beside gensim's where it is installed."""

import importlib
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np

from tdraft.models.corpus import default_corpus
from tdraft.models.embeddings import Word2VecConfig, WordVectors, words_by_paragraph
from tdraft.scripts.results import write_rows


@dataclass(frozen=True)
class EmbedBench:
    """Train word vectors of the default corpus on one thread, ours and gensim's in turns, by the same settings."""

    architectures: tuple[Literal["skip-gram", "cbow"], ...] = ("skip-gram", "cbow")
    """What is trained; each library with its own first learning rate."""
    repeats: int = 3
    """runs of each, with different seeds, after one that compiles"""
    epochs: int = 20
    """Passes over the text."""
    json: Path | None = None
    """also write the rows to this file"""


def embed(bench: EmbedBench) -> list[dict]:
    """Words/s from lists of words to vectors, the vocabulary's making included, and the median inflection rank."""
    sentences = words_by_paragraph(default_corpus().train.decode(errors="replace"))
    words = sum(map(len, sentences))
    theirs = gensim_training(sentences)
    if theirs is None:
        print("gensim is not installed here (pip install gensim): no peer")
    print(f"{words:,} words, {bench.epochs} epochs, one thread; median (min to max) of {bench.repeats} runs")
    rows = []
    for architecture in bench.architectures:
        config = Word2VecConfig(architecture, epochs=bench.epochs)
        WordVectors.train(sentences[:300], config)
        makers = {"tdraft": lambda config: WordVectors.train(sentences, config)} | ({"gensim": theirs} if theirs else {})
        found = {name: [] for name in makers}
        for seed in range(bench.repeats):  # in turns, so that a change of the machine's speed meets both
            for name, train in makers.items():
                found[name].append(measured(train, replace(config, seed=seed + 1), words))
        rows += compared(architecture, {name: np.array(values) for name, values in found.items()})
    if bench.json is not None:
        write_rows(bench.json, rows)
    return rows


def measured(train: Callable[[Word2VecConfig], WordVectors], config: Word2VecConfig, words: int) -> tuple[float, float, float]:
    """Words/s, median inflection rank and mean of 1 / rank."""
    start = time.perf_counter()
    vectors = train(config)
    seconds = time.perf_counter() - start
    rank = vectors.inflection_rank()
    return config.epochs * words / seconds, rank.median, rank.reciprocal


def gensim_training(sentences: list[list[str]]) -> Callable[[Word2VecConfig], WordVectors] | None:
    """gensim's Word2Vec on the same sentences by the same settings; None where it isn't installed."""
    try:
        word2vec = importlib.import_module("gensim.models.word2vec")
    except ImportError:
        return None

    def train(config: Word2VecConfig) -> WordVectors:
        model = word2vec.Word2Vec(
            sentences, workers=1, sg=int(config.architecture == "skip-gram"), vector_size=config.size, window=config.window,
            negative=config.negative, sample=config.sample, min_count=config.min_count, epochs=config.epochs, seed=config.seed,
        )  # fmt: skip
        return WordVectors(model.wv.index_to_key, model.wv.vectors)

    return train


def compared(architecture: str, found: dict[str, np.ndarray]) -> list[dict]:
    """The rows of one architecture, and their lines on the terminal."""
    rows = []
    for column, (metric, unit) in enumerate(
        [("speed", "words/s"), ("inflection rank", "median"), ("inflection rank", "mean of 1/rank")]
    ):
        for name, all_values in found.items():
            values = all_values[:, column]
            middle = float(np.median(values))
            error = float(values.std(ddof=1) / np.sqrt(len(values))) if len(values) > 1 else 0.0
            row = {"name": f"{architecture}, {name}", "metric": metric, "value": middle, "unit": unit}
            rows.append(row | {"runs": len(values), "se": error})
            print(f"{rows[-1]['name']:20} {middle:12,.6g}  ({values.min():,.6g} to {values.max():,.6g})  {metric}, {unit}")
        if len(found) == 2:
            ours, theirs = rows[-2:]
            ours |= {"peer": "gensim", "ratio": ours["value"] / theirs["value"]}
            print(f"    ours / gensim: {ours['ratio']:.3f}", flush=True)
    return rows
