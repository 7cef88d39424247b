"""`tdraft lm`: train a language model on the corpus, or evaluate one."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from tdraft.models.corpus import Corpus, default_corpus, load_corpus
from tdraft.models.language_model import LanguageModel, LMConfig
from tdraft.models.tokenizer import ByteTokenizer
from tdraft.models.training import TrainConfig, TrainResult, bits_per_byte, train_language_model


@dataclass(frozen=True)
class LMTrain:
    """Train a byte-level language model."""

    run_dir: Path = Path("runs/lm")
    """Where config, progress, TensorBoard events, checkpoint and model.safetensors go."""
    corpus: Path | None = None
    """A text file or folder; by default the Python documentation and sources on this machine."""
    max_bytes: int | None = None
    """Use at most this much of the default corpus."""
    model: LMConfig = field(default_factory=LMConfig)
    training: TrainConfig = field(default_factory=TrainConfig)
    model_seed: int = 0
    """Of the initial weights."""
    resume: bool = False
    """Go on from the checkpoint in run_dir."""
    threads: int | None = None
    """Threads torch may use; by default its own choice."""


@dataclass(frozen=True)
class LMEval:
    """Bits per byte of a model on one split of the corpus."""

    model: Path
    """A model.safetensors file."""
    corpus: Path | None = None
    """A text file or folder; by default the Python documentation and sources on this machine."""
    max_bytes: int | None = None
    """Use at most this much of the default corpus."""
    split: Literal["train", "validation", "test"] = "test"
    """Part of the corpus."""
    tokens: int = 200_000
    """Evaluate on at most this many tokens."""
    length: int | None = None
    """Context length; by default the model's longest."""


def train(config: LMTrain) -> TrainResult:
    """Run `tdraft lm train`."""
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    corpus = _corpus(config.corpus, config.max_bytes)
    model = LanguageModel(config.model, seed=config.model_seed)
    print(f"{model.n_parameters:,} parameters, {len(corpus.train):,} training bytes of {corpus.name}")
    result = train_language_model(
        model, _tokens(corpus.train), _tokens(corpus.validation), config.training, config.run_dir, resume=config.resume
    )
    print(
        f"{result.bits_per_byte:.3f} bits per byte on validation after {result.step} steps, {result.seconds:.0f} s; "
        f"model {model.fingerprint} in {config.run_dir / 'model.safetensors'}"
    )
    return result


def evaluate(config: LMEval) -> float:
    """Run `tdraft lm eval`."""
    model = LanguageModel.load(config.model)
    corpus = _corpus(config.corpus, config.max_bytes)
    tokens = _tokens(getattr(corpus, config.split))[: config.tokens]
    bits = bits_per_byte(model, tokens, length=config.length)
    print(f"{bits:.4f} bits per byte on {len(tokens):,} {config.split} bytes of {corpus.name}, model {model.fingerprint}")
    return bits


def _corpus(path: Path | None, max_bytes: int | None) -> Corpus:
    return default_corpus(max_bytes) if path is None else load_corpus(path)


def _tokens(text: bytes) -> np.ndarray:
    return ByteTokenizer().encode(text)
