"""`tdraft lm heads`: train heads that draft for a language model, and say how often it agrees with them."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import tyro

from tdraft.models.corpus import default_corpus, load_corpus
from tdraft.models.heads.base import Heads
from tdraft.models.heads.files import Kind, make_heads, save_heads
from tdraft.models.heads.training import HeadTraining, agreement, greedy_windows, train_heads
from tdraft.models.language_model import LanguageModel
from tdraft.models.pretrained import load_pretrained

CONTEXTS = 64  # held-out windows that heads are measured on


@dataclass(frozen=True)
class LMHeads:
    """Train heads that draft for a target."""

    kind: Annotated[Kind, tyro.conf.Positional]
    """Which heads: docs/heads.md says when to use which."""
    target: Path
    """The trunk, a language model (.safetensors), or the name of one that comes with tdraft: transformer, mamba, drafter."""
    output: Path | None = None
    """Where the heads go; by default <target>-<kind>.safetensors beside the target's file, or here."""
    depth: int | None = None
    """Tokens drafted after the one that the trunk itself chooses; for early-exit the layers that are run."""
    corpus: Path | None = None
    """A text file or folder; by default the Python documentation and sources on this machine."""
    max_bytes: int | None = None
    """Use at most this much of the default corpus."""
    training: HeadTraining = field(default_factory=HeadTraining)
    bf16_weights: bool = False
    """Save the weights in bfloat16, half the size."""
    seed: int = 0
    """Of the initial weights."""
    threads: int | None = None
    """Threads torch may use; by default its own choice."""


def heads(config: LMHeads) -> Heads:
    """Run `tdraft lm heads`."""
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    trunk = load_pretrained(config.target)
    made = make_heads(config.kind, trunk, config.depth, config.seed)
    corpus = default_corpus(config.max_bytes) if config.corpus is None else load_corpus(config.corpus)
    print(f"{config.kind}, depth {made.depth}: {made.n_parameters:,} weights for target {made.trunk_fingerprint}")
    result = train_heads(made, trunk, trunk.tokenizer.encode(corpus.train), config.training)
    output = config.output or config.target.with_name(f"{config.target.stem}-{config.kind}.safetensors")
    save_heads(made, output, bf16=config.bf16_weights)
    loss = result.losses[-50:].mean()
    print(f"loss {loss:.3f} after {result.steps} steps, {result.seconds:.0f} s; heads {made.fingerprint} in {output}")
    if config.training.joint:
        beside = output.with_name(f"{output.stem}-target.safetensors")
        trunk.save(beside)
        print(f"the target {trunk.fingerprint} that was trained along in {beside}")
    report(made, trunk, trunk.tokenizer.encode(corpus.validation))
    return made


def report(made: Heads, trunk: LanguageModel, text: np.ndarray) -> None:
    """Print how often the trunk agrees with the heads, by depth, on held-out text and on its own."""
    size, prompt = trunk.config.max_length, trunk.config.max_length // 4
    if len(text) < size:
        print(f"the validation text has {len(text)} tokens, too few to measure on windows of {size}")
        return
    windows = text[: len(text) // size * size].reshape(-1, size)
    windows = windows[:: max(len(windows) // CONTEXTS, 1)][:CONTEXTS]
    on_text = agreement(made, trunk, windows)[:, prompt:]
    own = agreement(made, trunk, greedy_windows(trunk, windows[:, :prompt], prompt))[:, prompt - 1 :]
    print("share of proposals that the target agrees with, by depth (held-out text; text of its own after held-out prompts):")
    for k, (a, b) in enumerate(zip(on_text.mean((0, 1)), own.mean((0, 1))), 1):
        print(f"  {k}  {a:.3f}  {b:.3f}")
    accepted = np.cumprod(own, axis=-1).sum(-1).mean(-1)
    print(
        f"{accepted.mean():.2f} of {own.shape[-1]} accepted a round on the target's own text (standard error "
        f"{accepted.std() / len(accepted) ** 0.5:.2f}, {len(own)} contexts)"
    )
