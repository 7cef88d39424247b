"""Weights in safetensors files: reading them, what they say of themselves, and a digest of tensors."""

import hashlib
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor


class CheckpointError(ValueError):
    """A file does not hold what was asked for: missing, damaged, of another class or another version."""


def read_safetensors(path: str | Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    """(metadata, tensors by name, on the CPU).

    :raises CheckpointError: no such file, or a damaged one
    """
    try:
        with safe_open(path, framework="pt") as file:
            return file.metadata() or {}, {name: file.get_tensor(name) for name in file.keys()}
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"cannot read {path} as a safetensors file: {str(error).splitlines()[0]}") from None


def metadata_of(path: str | Path) -> dict[str, str]:
    """What a safetensors file says of itself; nothing where it cannot be read."""
    try:
        with safe_open(path, framework="pt") as file:
            return file.metadata() or {}
    except (OSError, SafetensorError):
        return {}


def fingerprint(identity: str, tensors: Mapping[str, Tensor]) -> str:
    """16 hex digits of the sha256 of a text and of tensors, their names and dtypes."""
    digest = hashlib.sha256(identity.encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]
