"""Models that commands read, and what they refuse in the same words."""

from pathlib import Path

from tdraft.models.decoding.drafters import Drafter, load_drafter
from tdraft.models.language_model import LanguageModel
from tdraft.models.pretrained import load_pretrained
from tdraft.models.tokenizer import ByteTokenizer
from tdraft.scripts.main import UsageError


def at_least(least: int, **options: int) -> None:
    """Refuse an option below `least`: at_least(1, tokens=0) says that --tokens must be at least 1."""
    for name, value in options.items():
        if value < least:
            raise UsageError(f"--{name.replace('_', '-')} must be at least {least}, got {value}")


def load_target(path: Path) -> LanguageModel:
    """A byte-level language model, of a file or by the name of one that comes with tdraft."""
    target = load_pretrained(path)
    if target.config.vocab_size != ByteTokenizer.vocab_size:
        raise UsageError(f"the target must predict bytes, {path} has a vocabulary of {target.config.vocab_size}")
    return target


def load_drafter_of(path: str | Path, target: LanguageModel) -> Drafter:
    """A drafter over the target's vocabulary, by file or name (`load_drafter`)."""
    drafter = load_drafter(path, target)
    if drafter.vocab_size != target.config.vocab_size:
        raise UsageError(
            f"{path} has a vocabulary of {drafter.vocab_size}, the target one of {target.config.vocab_size}: give another drafter"
        )
    return drafter


def check_context(drafter: Drafter, length: int) -> None:
    """Refuse a drafter that cannot read texts of `length` bytes."""
    if drafter.max_length is not None and drafter.max_length < length:
        raise UsageError(
            f"the drafter's context holds {drafter.max_length} bytes, prompt, text and draft may take {length}: "
            "ask for less, or give another drafter"
        )
