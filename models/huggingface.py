"""Models that others trained: a local Hugging Face directory (config.json and safetensors) in our backbones.

One file a family, `huggingface_<family>.py`, whose `build(config, tensors)` makes the model. It takes each tensor that it uses
out of the dict, with `take`; what is left there in the end is a tensor that the model has no place for.

B batch   T tokens   V vocabulary
"""

import difflib
import json
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .backbones.base import Backbone, State
from .checkpoints import CheckpointError, read_safetensors

FAMILIES = {
    "gpt2": "huggingface_gpt2",
    "llama": "huggingface_llama",
    "mamba": "huggingface_mamba",
    "mamba2": "huggingface_mamba2",
    "mistral": "huggingface_llama",
    "rwkv": "huggingface_rwkv4",
}
"""The module beside this one that builds each `model_type` of a config.json."""

_REQUIRED: Any = object()


class HuggingFaceModel(nn.Module):
    """Token embedding, backbone and head; it decodes as our own language models do.

    :param embedding: tokens (B, T) to the backbone's inputs
    :param head: the backbone's outputs to logits (B, T, V); it may share its weight with the embedding
    """

    def __init__(self, embedding: nn.Module, backbone: Backbone, head: nn.Module):
        super().__init__()
        self.embedding, self.backbone, self.head = embedding, backbone, head

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
        if tokens.dim() != 2 or tokens.dtype != torch.int64:
            raise ValueError(f"tokens must be (B, T) int64, got {tuple(tokens.shape)} {tokens.dtype}")
        y, new = self.backbone(self.embedding(tokens), state, reset=reset, parents=parents)
        return self.head(y), new


def load_huggingface(path: str | Path, dtype: torch.dtype = torch.float32) -> HuggingFaceModel:
    """The model in a local directory of Hugging Face's, in evaluation mode on the CPU. Nothing is downloaded.

    :param path: a directory with config.json and model.safetensors, or its shards and their index
    :param dtype: of the weights, whatever they were stored in
    :raises CheckpointError: no such directory or file, a `model_type` that we have no backbone for, a setting that ours cannot
        do, missing, left over or misshapen tensors
    """
    path = Path(path)
    if not path.is_dir():
        raise CheckpointError(f"no directory {path}; save_pretrained or a clone of a repository makes one")
    config = _read_json(path / "config.json")
    family = config.get("model_type")
    if family not in FAMILIES:
        near = difflib.get_close_matches(str(family), FAMILIES, 1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise CheckpointError(f'{path}: no backbone for model_type "{family}"{hint} (there are {", ".join(FAMILIES)})')
    builder = import_module(f".{FAMILIES[family]}", __package__)
    tensors = {name: tensor.to(dtype) for name, tensor in _read_tensors(path).items()}
    try:
        model = builder.build(config, tensors)
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}") from error
    if tensors:
        raise CheckpointError(f"{path}: {len(tensors)} tensors have no place in a {family} model: {_some(tensors)}")
    return model.to(dtype).eval()


def take(tensors: dict[str, Tensor], name: str, shape: tuple[int, ...] | torch.Size) -> Tensor:
    """The tensor of that name, out of the dict.

    :raises CheckpointError: it is missing or has another shape
    """
    if name not in tensors:
        near = difflib.get_close_matches(name, tensors, 1)
        hint = f"; nearest is {near[0]}" if near else ""
        raise CheckpointError(f"tensor {name} is missing{hint}")
    if tensors[name].shape != torch.Size(shape):
        raise CheckpointError(f"tensor {name} must be {tuple(shape)} by config.json, got {tuple(tensors[name].shape)}")
    return tensors.pop(name)


def take_into(module: nn.Module, tensors: dict[str, Tensor], prefix: str, names: dict[str, str] | None = None) -> None:
    """Copy `prefix` + name into every parameter of `module`, out of the dict.

    :param names: the tensor's name for a parameter's, where it is not the same
    :raises CheckpointError: as `take`
    """
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            parameter.copy_(take(tensors, prefix + (names or {}).get(name, name), parameter.shape))


def setting(config: dict[str, Any], name: str, default: Any = _REQUIRED) -> Any:
    """A value of config.json, `default` where it is absent or null.

    :raises CheckpointError: it is absent and there is no default
    """
    value = config.get(name)
    if value is not None:
        return value
    if default is _REQUIRED:
        raise CheckpointError(f"config.json has no {name}")
    return default


def check_setting(config: dict[str, Any], name: str, *able: Any) -> None:
    """Raise CheckpointError unless config.json's value is one of `able`, of which the first counts where it is absent."""
    if (value := setting(config, name, able[0])) not in able:
        raise CheckpointError(f"config.json's {name} must be {' or '.join(map(repr, able))} for our backbone, got {value!r}")


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise CheckpointError(f"cannot read {path}: {error}") from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} must hold a JSON object, got {type(value).__name__}")
    return value


def _read_tensors(path: Path) -> dict[str, Tensor]:
    """All tensors of the directory: those of one file, or of the shards that the index names."""
    single, index = path / "model.safetensors", path / "model.safetensors.index.json"
    if single.exists():
        return read_safetensors(single)[1]
    if not index.exists():
        others = sorted(file.name for file in path.glob("*.bin"))
        hint = f"; {_some(others)} must first be saved as safetensors" if others else ""
        raise CheckpointError(f"{path} has neither {single.name} nor {index.name}{hint}")
    places = _read_json(index).get("weight_map")
    if not isinstance(places, dict) or not all(isinstance(file, str) for file in places.values()):
        raise CheckpointError(f"{index} has no weight_map from tensors to files")
    tensors: dict[str, Tensor] = {}
    for file in sorted(set(places.values())):
        if Path(file).name != file:
            raise CheckpointError(f"{index} must name files beside it, got {file}")
        tensors |= read_safetensors(path / file)[1]
    if lost := sorted(set(places) - set(tensors)):
        raise CheckpointError(f"{index} names {len(lost)} tensors that its files do not hold: {_some(lost)}")
    return tensors


def _some(names: Any, most: int = 4) -> str:
    names = sorted(names)
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
