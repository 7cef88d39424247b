"""Models that come with tdraft: targets and their drafters, in bfloat16 safetensors; README.md beside this file is their card."""

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.resources import as_file, files
from pathlib import Path

from ..checkpoints import CheckpointError, metadata_of
from ..language_model import LanguageModel

PRETRAINED = {
    "transformer": "a byte-level Transformer target",
    "mamba": "a byte-level Mamba target",
    "drafter": "a one-layer Transformer that drafts for either",
}
"""Names that `load_pretrained` takes, and what they are."""

HEADS = ("medusa", "mtp")
"""Kinds of heads that come with each target."""


def load_pretrained(name: str | Path) -> LanguageModel:
    """The model of that name, or in that file, on the CPU; weights of 16 bits become float32.

    :raises CheckpointError: no such model
    """
    if str(name) not in PRETRAINED or Path(name).exists():
        if Path(name).suffix != ".safetensors":
            raise CheckpointError(f"no language model {name}: give a .safetensors file, or one of {', '.join(PRETRAINED)}")
        model = LanguageModel.load(name)
    else:
        with as_file(files(__name__) / f"{name}.safetensors") as path:
            model = LanguageModel.load(path)
    return model.float() if model.embedding.dtype.itemsize < 4 else model


@contextmanager
def pretrained_heads(kind: str, target: LanguageModel) -> Iterator[Path]:
    """The file of the heads of that kind that come with a target.

    :raises CheckpointError: none do
    """
    for name in PRETRAINED:
        source = files(__name__) / f"{name}-{kind}.safetensors"
        if source.is_file():
            with as_file(source) as path:
                if metadata_of(path).get("target") == target.fingerprint:
                    yield path
                    return
    raise CheckpointError(
        f"no {kind} heads come with target {target.fingerprint}; train some: tdraft lm heads {kind} --target FILE"
    )
