"""Heads by the name of their kind, and in safetensors files that name the trunk they belong to."""

import json
from pathlib import Path
from typing import Literal, get_args

import torch
from safetensors.torch import save_file

from ..checkpoints import CheckpointError, read_safetensors
from ..files import atomic_write
from ..language_model import LanguageModel
from .base import Heads
from .eagle import Eagle, Eagle3
from .early_exit import EarlyExit
from .medusa import Medusa
from .mtp import MTP
from .parallel import ParallelHeads

SCHEMA = 1
Kind = Literal["medusa", "parallel", "mtp", "eagle", "eagle3", "early-exit"]
KINDS: dict[str, type[Heads]] = dict(zip(get_args(Kind), (Medusa, ParallelHeads, MTP, Eagle, Eagle3, EarlyExit)))


def make_heads(kind: str, trunk: LanguageModel, depth: int | None = None, seed: int = 0) -> Heads:
    """New heads for a trunk, of its dtype.

    :param kind: a key of `KINDS`
    :param depth: tokens drafted after the trunk's own, or layers for early exit; None: the kind's default
    :param seed: of the initial weights; the global generator is left alone
    :raises ValueError: no such kind, or an impossible depth
    """
    if kind not in KINDS:
        raise ValueError(f'no heads "{kind}"; there are {", ".join(KINDS)}')
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        heads = KINDS[kind](trunk) if depth is None else KINDS[kind](trunk, depth)  # pyright: ignore[reportCallIssue]
    return heads.to(trunk.embedding.dtype)


def save_heads(heads: Heads, path: str | Path, *, bf16: bool = False) -> None:
    """Write kind, depth, the trunk's fingerprint and the weights that are the heads' own; a failure leaves the former file.

    :param bf16: keep the weights in bfloat16, half the size
    """
    metadata = {"class": type(heads).__name__, "schema": str(SCHEMA), "target": heads.trunk_fingerprint}
    metadata["config"] = json.dumps({"depth": heads.depth})
    tensors = {name: tensor.detach().contiguous() for name, tensor in heads.own().items()}
    if bf16:
        tensors = {name: tensor.bfloat16() for name, tensor in tensors.items()}
    with atomic_write(path) as temporary:
        save_file(tensors, temporary, metadata)


def load_heads(path: str | Path, trunk: LanguageModel) -> Heads:
    """The heads that `save_heads` wrote, in the trunk's dtype.

    :raises CheckpointError: no such file, a damaged one, of no heads, of another schema, or of another trunk
    """
    metadata, tensors = read_safetensors(path)
    kinds = {cls.__name__: kind for kind, cls in KINDS.items()}
    if metadata.get("class") not in kinds:
        raise CheckpointError(f"{path} must hold heads ({', '.join(kinds)}), it holds {metadata.get('class', 'no class name')}")
    if metadata.get("schema") != str(SCHEMA):
        raise CheckpointError(f"{path} has schema {metadata.get('schema')}, this tdraft reads {SCHEMA}; train anew or update")
    if metadata.get("target") != trunk.fingerprint:
        raise CheckpointError(
            f"{path} belongs to target {metadata.get('target')}, this is {trunk.fingerprint}; give that target, or train heads "
            "for this one"
        )
    try:
        heads = make_heads(kinds[metadata["class"]], trunk, json.loads(metadata["config"])["depth"])
        own = heads.own()
        if {name: tensor.shape for name, tensor in own.items()} != {name: tensor.shape for name, tensor in tensors.items()}:
            raise ValueError(f"tensors must be {', '.join(own)}, got {', '.join(tensors)}")
        heads.load_state_dict(tensors, strict=False)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"{path}: weights and configuration disagree: {str(error).splitlines()[0]}") from None
    return heads
