"""`tdraft lm embed` and `tdraft lm embed-start`: word vectors of a text, and a language model that begins with such vectors."""

import csv
import tempfile
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import tyro

from tdraft.models.bpe import BPETokenizer
from tdraft.models.corpus import default_corpus, load_corpus
from tdraft.models.embeddings import Word2VecConfig, WordVectors, train_ids, words_by_paragraph
from tdraft.models.files import atomic_write
from tdraft.models.language_model import LanguageModel, LMConfig
from tdraft.models.training import TrainConfig, train_language_model
from tdraft.scripts.results import write_rows


@dataclass(frozen=True)
class LMEmbed:
    """Train word vectors by Word2Vec on the training split of a corpus."""

    output: Annotated[Path, tyro.conf.Positional]
    """File in word2vec's text format, which gensim and others read."""
    corpus: Path | None = None
    """A text file or folder; by default the Python documentation and sources on this machine."""
    max_bytes: int | None = None
    """Use at most this much of the default corpus."""
    word2vec: Word2VecConfig = field(default_factory=lambda: Word2VecConfig(epochs=20))
    projector: Path | None = None
    """Also write files for TensorBoard's projector to this folder."""
    show: tuple[str, ...] = ()
    """Words whose neighbours are printed; by default three frequent ones."""


@dataclass(frozen=True)
class LMEmbedStart:
    """Train a language model of BPE tokens twice, from random embeddings and from Word2Vec's: loss against time."""

    out: Path | None = None
    """Draw both curves to this PNG file."""
    json: Path | None = None
    """Also write the curves to this file."""
    vocab_size: int = 4096
    """Number of BPE tokens."""
    word2vec: Word2VecConfig = field(default_factory=lambda: Word2VecConfig(epochs=3))
    model: LMConfig = field(default_factory=lambda: LMConfig(d_model=128, n_layers=2, max_length=128))
    training: TrainConfig = field(
        default_factory=lambda: TrainConfig(steps=1000, batch=8, length=128, eval_every=50, eval_tokens=8192)
    )
    max_bytes: int | None = None
    """Use at most this much of the default corpus."""


def embed(config: LMEmbed) -> WordVectors:
    """Run `tdraft lm embed`."""
    corpus = default_corpus(config.max_bytes) if config.corpus is None else load_corpus(config.corpus)
    sentences = words_by_paragraph(corpus.train.decode(errors="replace"))
    started = time.perf_counter()
    vectors = WordVectors.train(sentences, config.word2vec)
    seconds, read = time.perf_counter() - started, config.word2vec.epochs * sum(map(len, sentences))
    vectors.save(config.output)
    print(f"{vectors!r} in {config.output}: {read:,} words read in {seconds:.1f} s, {read / seconds:,.0f} words/s with compiling")
    for word in config.show or [w for w in vectors.words if len(w) > 4][:3]:
        print(f"  {word}: " + ", ".join(f"{near} {cosine:.2f}" for near, cosine in vectors.nearest(word, 6)))
    if len(vectors.inflection_pairs()):
        rank = vectors.inflection_rank()
        print(f"inflection rank: median {rank.median:g}, mean of 1/rank {rank.reciprocal:.3f}, {rank.pairs} pairs")
    if config.projector is not None:
        vectors.export_projector(config.projector)
        print(f"tensorboard --logdir {config.projector}   # then PROJECTOR")
    return vectors


def start(config: LMEmbedStart) -> dict[str, np.ndarray]:
    """Run `tdraft lm embed-start`.

    :return: name -> (E, 2) seconds, the vectors' own included, and bits per byte on validation
    """
    corpus = default_corpus(config.max_bytes)
    tokenizer = BPETokenizer.train(corpus.train, config.vocab_size)
    train, validation = tokenizer.encode(corpus.train), tokenizer.encode(corpus.validation)
    sizes = replace(config.model, vocab_size=tokenizer.vocab_size)
    word2vec = replace(config.word2vec, size=sizes.d_model)
    train_ids(train[:100], tokenizer.vocab_size, word2vec)  # compiles
    began = time.perf_counter()
    vectors = train_ids(train, tokenizer.vocab_size, word2vec)
    spent = time.perf_counter() - began
    print(f"{len(train):,} tokens, {len(corpus.train) / len(train):.2f} bytes each; {spent:.1f} s for their vectors")
    curves = {}
    for name, before in (("random", 0.0), ("Word2Vec", spent)):
        model = LanguageModel(sizes, seed=0, tokenizer=tokenizer)
        if before:
            begin_with(model, vectors)
        with tempfile.TemporaryDirectory() as folder:
            train_language_model(model, train, validation, config.training, folder)
            with open(Path(folder) / "progress.csv", newline="") as file:
                rows = [row for row in csv.DictReader(file) if row["eval/bits_per_byte"]]
        curves[name] = np.array([(before + float(r["seconds"]), float(r["eval/bits_per_byte"])) for r in rows])
        print(f"{name}: {curves[name][-1, 1]:.4f} bits per byte after {curves[name][-1, 0]:.0f} s", flush=True)
    (*_, (whole, last)), found = curves["random"], curves["Word2Vec"]
    reached = found[found[:, 1] <= last, 0]
    when = f"after {reached[0]:.0f} s" if len(reached) else "not reached"
    print(f"the random start's last loss, of {whole:.0f} s: from Word2Vec's {when}")
    if config.out is not None:
        draw(curves, config.out)
    if config.json is not None:
        names = ("seconds", "bits_per_byte")
        write_rows(config.json, [{"name": name, **dict(zip(names, row))} for name in curves for row in curves[name].tolist()])
    return curves


def begin_with(model: LanguageModel, vectors: np.ndarray) -> None:
    """Set a model's embedding to (V, D) vectors, centred and of the spread that its random ones had."""
    centred = torch.from_numpy(vectors - vectors.mean(axis=0))
    with torch.no_grad():
        model.embedding.copy_(centred * (model.embedding.std() / centred.std()))


def draw(curves: dict[str, np.ndarray], out: Path) -> None:
    """Both curves of loss against time."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3.6), layout="constrained")
    axes = figure.subplots()
    for name, curve in curves.items():
        axes.plot(curve[:, 0], curve[:, 1], label=f"{name} embedding at the start")
    axes.set(xlabel="seconds, Word2Vec's own included", ylabel="bits per byte, validation")
    axes.legend()
    with atomic_write(out) as temporary:
        figure.savefig(temporary, dpi=90, format="png")
