"""`tdraft lm sample`: let a language model write."""

import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from tdraft.models.decoding.decoder import SpeculativeDecoder
from tdraft.models.decoding.sampling import Sampling
from tdraft.models.pretrained import load_pretrained
from tdraft.scripts.main import UsageError


@dataclass(frozen=True)
class LMSample:
    """Continue a prompt by plain decoding, token by token; `tdraft decode` does the same sooner, with a drafter."""

    model: Path = Path("transformer")
    """A language model (.safetensors), or the name of one that comes with tdraft: transformer, mamba, drafter."""
    prompt: str = "\n\ndef "
    """What the text begins with, at least two tokens."""
    tokens: int = 200
    """Tokens to write at most; the model's context bounds them too."""
    samples: int = 1
    """Texts to write."""
    temperature: float = 0.8
    """0 is greedy."""
    top_k: int = 0
    """Keep the k likeliest tokens; 0 keeps all."""
    top_p: float = 1.0
    """Keep the likeliest tokens that make up this probability."""
    key: int = 0
    """Seed of the first text's noise; each further text takes the next one."""


def sample(config: LMSample) -> None:
    """Run `tdraft lm sample`."""
    if config.tokens < 1 or config.samples < 1:
        raise UsageError(f"--tokens and --samples must be at least 1, got {config.tokens} and {config.samples}")
    model = load_pretrained(config.model)
    torch.set_num_threads(1)  # a step of so small a model is slower on more
    prompt = model.tokenizer.encode(config.prompt)
    sampling = Sampling(config.temperature, config.top_k, config.top_p)
    decoder = SpeculativeDecoder(model, sampling=sampling)
    for i in range(config.samples):
        if config.samples > 1:
            print(f"--- key {config.key + i}")
        found = decoder.generate(prompt, config.tokens, key=config.key + i)
        sys.stdout.buffer.write(model.tokenizer.decode_bytes(np.concatenate([prompt, found.tokens])) + b"\n")
        sys.stdout.buffer.flush()
        if found.reason == "context":
            print(f"note: the model's context of {model.config.max_length} tokens is full", file=sys.stderr)
