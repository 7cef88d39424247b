"""Models that come with tdraft: targets and their drafters, in bfloat16 safetensors; README.md beside this file is their card."""

from importlib.resources import as_file, files
from pathlib import Path

from ..language_model import CheckpointError, LanguageModel

PRETRAINED = {
    "transformer": "a byte-level Transformer target",
    "mamba": "a byte-level Mamba target",
    "drafter": "a one-layer Transformer that drafts for either",
}
"""Names that `load_pretrained` takes, and what they are."""


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
