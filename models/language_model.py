"""A language model: token embedding, backbone, and the embedding again as output (Press & Wolf 2017, arXiv 1608.05859).

B batch   T tokens   V vocabulary   D model width
"""

import json
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from .backbones import Backbone, State, make_backbone
from .bpe import BPETokenizer
from .checkpoints import CheckpointError, fingerprint, read_safetensors
from .files import atomic_write
from .tokenizer import ByteTokenizer

SCHEMA = 1
Tokenizer = ByteTokenizer | BPETokenizer


@dataclass(frozen=True)
class LMConfig:
    """Sizes of a language model."""

    vocab_size: int = 256
    """Number of tokens V; 256 for bytes."""
    d_model: int = 128
    """Width D."""
    n_layers: int = 4
    """Number of blocks."""
    n_heads: int | None = None
    """Attention heads of a Transformer; D / heads must be even. By default as many as are 32 wide."""
    max_length: int = 256
    """Longest context in tokens; train with windows this long (`TrainConfig.length`), a model is poor beyond them."""
    backbone: str = "transformer"
    """Family of the backbone: a key of `tdraft.models.backbones.BACKBONES`."""

    def make(self, **others: Any) -> Backbone:
        """A new backbone, drawn with torch's global generator.

        :param others: sizes of the family beside these
        """
        sizes: dict[str, Any] = {"d_model": self.d_model, "n_layers": self.n_layers, **others}
        if self.backbone == "transformer":
            sizes |= {"n_heads": self.n_heads, "max_length": self.max_length}
        elif self.n_heads is not None:
            raise ValueError(f"n_heads is a size of the transformer, {self.backbone} has its own; leave it out")
        return make_backbone(self.backbone, **sizes)


class LanguageModel(nn.Module):
    """Next-token logits for sequences of bytes, or of what a tokenizer makes of them.

    :param config: the sizes
    :param seed: of the initial weights; the global generator is left alone
    :param tokenizer: whose ids the tokens are; saved with the model
    :raises ValueError: a tokenizer with another vocabulary, or impossible sizes
    """

    def __init__(self, config: LMConfig, seed: int = 0, tokenizer: Tokenizer | None = None):
        super().__init__()
        if tokenizer is not None and tokenizer.vocab_size != config.vocab_size:
            raise ValueError(
                f"the tokenizer has {tokenizer.vocab_size} tokens, the model vocab_size={config.vocab_size}; make them equal"
            )
        self.tokenizer = ByteTokenizer() if tokenizer is None else tokenizer
        if config.vocab_size < 1 or config.d_model < 1:
            raise ValueError(f"vocab_size and d_model must be positive, got {config.vocab_size} and {config.d_model}")
        self.config = config
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.embedding = nn.Parameter(0.5 * config.d_model**-0.5 * torch.randn(config.vocab_size, config.d_model))
            self.backbone = config.make()

    def initial_state(self, batch_size: int) -> State:
        """The state before any token."""
        return self.backbone.initial_state(batch_size)

    def forward(
        self, tokens: Tensor, state: Any = None, *, reset: Tensor | None = None, parents: Any = None
    ) -> tuple[Tensor, State]:
        """Logits of the token after each of `tokens`, and the state after them (see `Backbone.forward`).

        :param tokens: (B, T) int64, 0 <= token < V
        :return: (B, T, V) and the new state
        """
        y, new = self.hidden(tokens, state, reset=reset, parents=parents)
        return self.logits(y), new

    def hidden(
        self, tokens: Tensor, state: Any = None, *, reset: Tensor | None = None, parents: Any = None
    ) -> tuple[Tensor, State]:
        """As `forward`, but what the backbone gives (B, T, D), of which `logits` makes logits."""
        if tokens.dim() != 2 or tokens.dtype != torch.int64:
            raise ValueError(f"tokens must be (B, T) int64, got {tuple(tokens.shape)} {tokens.dtype}")
        return self.backbone(self.embed(tokens), state, reset=reset, parents=parents)

    def embed(self, tokens: Tensor) -> Tensor:
        """The backbone's inputs (..., D) for tokens (...)."""
        return F.embedding(tokens, self.embedding) * self.config.d_model**0.5  # small as an output, of order 1 as an input

    def logits(self, hidden: Tensor) -> Tensor:
        """(..., D) -> (..., V)."""
        return F.linear(hidden, self.embedding)

    def count_bytes(self, tokens: np.ndarray) -> int:
        """How many bytes tokens (N,) stand for; those of a vocabulary without a tokenizer count as one each."""
        return len(tokens) if isinstance(self.tokenizer, ByteTokenizer) else int(self.tokenizer.byte_lengths[tokens].sum())

    @property
    def n_parameters(self) -> int:
        """Number of weights, the tied embedding counted once."""
        return sum(p.numel() for p in self.parameters())

    @property
    def fingerprint(self) -> str:
        """16 hex digits of the sha256 of configuration and weights."""
        vocabulary = self.tokenizer.fingerprint if isinstance(self.tokenizer, BPETokenizer) else ""
        return fingerprint(json.dumps(asdict(self.config), sort_keys=True) + vocabulary, self.state_dict())

    def save(self, path: str | Path) -> None:
        """Write weights and configuration to one safetensors file; a failure leaves the former file as it was."""
        metadata = {"class": type(self).__name__, "schema": str(SCHEMA), "config": json.dumps(asdict(self.config))}
        if isinstance(self.tokenizer, BPETokenizer):
            metadata["tokenizer"] = self.tokenizer.to_json()
        tensors = {name: tensor.detach().contiguous() for name, tensor in self.state_dict().items()}
        with atomic_write(path) as temporary:
            save_file(tensors, temporary, metadata)

    @classmethod
    def load(cls, path: str | Path) -> "LanguageModel":
        """The model that `save` wrote, on the CPU.

        :raises CheckpointError: no such file, a damaged one, another class or a newer schema
        """
        metadata, tensors = read_safetensors(path)
        if metadata.get("class") != cls.__name__:
            raise CheckpointError(f"{path} must hold a {cls.__name__}, it holds {metadata.get('class', 'no class name')}")
        if metadata.get("schema") != str(SCHEMA):
            raise CheckpointError(f"{path} has schema {metadata.get('schema')}, this tdraft reads {SCHEMA}; train anew or update")
        try:
            tokenizer = BPETokenizer.from_json(metadata["tokenizer"]) if "tokenizer" in metadata else None
            model = cls(LMConfig(**json.loads(metadata["config"])), tokenizer=tokenizer)
            model.to(tensors["embedding"].dtype).load_state_dict(tensors)
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise CheckpointError(f"{path}: weights and configuration disagree: {str(error).splitlines()[0]}") from None
        return model


def bits_per_byte(model: LanguageModel, tokens: np.ndarray, *, length: int | None = None, batch: int = 16) -> float:
    """-log2 p(token | the tokens before it) over tokens[1:], a byte of them by the model's tokenizer.

    Windows of `length` (default: the model's longest context) overlap by half, so that every prediction but the first ones
    sees at least length / 2 tokens.
    """
    if len(tokens) < 2:
        raise ValueError(f"tokens must hold at least 2, got {len(tokens)}")
    nats = 0.0
    for begin, logits in sweep_logits(model, tokens, length, batch):
        target = torch.from_numpy(tokens[begin + 1 : begin + 1 + len(logits)].astype(np.int64))
        nats += F.cross_entropy(logits[: len(target)].double(), target, reduction="sum").item()
    return nats / math.log(2) / model.count_bytes(tokens[1:])


def predict_argmax(model: LanguageModel, tokens: np.ndarray, *, length: int | None = None, batch: int = 16) -> np.ndarray:
    """(N,) int64: the model's top choice for the token after each of `tokens`; contexts are at least length / 4 tokens."""
    top = np.empty(len(tokens), dtype=np.int64)
    for begin, logits in sweep_logits(model, tokens, length, batch, overlap=0.25):
        top[begin : begin + len(logits)] = logits.argmax(-1).numpy()
    return top


def sweep_logits(
    model: LanguageModel, tokens: np.ndarray, length: int | None = None, batch: int = 16, *, overlap: float = 0.5
) -> Iterator[tuple[int, Tensor]]:
    """As `sweep_hidden`, logits (n, V) in place of hidden states."""
    for begin, hidden in sweep_hidden(model, tokens, length, batch, overlap=overlap):
        yield begin, model.logits(hidden)


def sweep_hidden(
    model: LanguageModel, tokens: np.ndarray, length: int | None = None, batch: int = 16, *, overlap: float = 0.5
) -> Iterator[tuple[int, Tensor]]:
    """(first position, hidden states (n, D)) that together cover every position of the text once.

    :param length: of a window, by default the model's longest context
    :param overlap: share of a window that the one before it has covered: what the first of its logits see of the text
    """
    size = min(length or model.config.max_length, model.config.max_length, len(tokens))
    starts = list(range(0, len(tokens) - size, max(int(size * (1 - overlap)), 1))) + [len(tokens) - size]
    done = 0
    for i in range(0, len(starts), batch):
        chosen = np.array(starts[i : i + batch])
        with torch.inference_mode():
            hidden, _ = model.hidden(torch.from_numpy(tokens[chosen[:, None] + np.arange(size)].astype(np.int64)))
            for start, row in zip(chosen.tolist(), hidden):
                yield done, row[done - start :]
                done = start + size
