"""Models that commands read, and what they refuse in the same words."""

from pathlib import Path

from tdraft.models.decoding.drafters import LMDrafter, NGramDrafter, load_drafter
from tdraft.models.language_model import LanguageModel
from tdraft.models.tokenizer import ByteTokenizer
from tdraft.scripts.main import UsageError


def at_least(least: int, **options: int) -> None:
    """Refuse an option below `least`: at_least(1, tokens=0) says that --tokens must be at least 1."""
    for name, value in options.items():
        if value < least:
            raise UsageError(f"--{name.replace('_', '-')} must be at least {least}, got {value}")


def load_target(path: Path) -> LanguageModel:
    """A byte-level language model."""
    target = LanguageModel.load(path)
    if target.config.vocab_size != ByteTokenizer.vocab_size:
        raise UsageError(f"the target must predict bytes, {path} has a vocabulary of {target.config.vocab_size}")
    return target


def load_drafter_of(path: Path, target: LanguageModel) -> NGramDrafter | LMDrafter:
    """A drafter over the target's vocabulary."""
    drafter = load_drafter(path)
    size = drafter.model.config.vocab_size if isinstance(drafter, LMDrafter) else drafter.model.vocab_size
    if size != target.config.vocab_size:
        raise UsageError(f"{path} has a vocabulary of {size}, the target one of {target.config.vocab_size}: give another drafter")
    return drafter


def check_context(drafter: NGramDrafter | LMDrafter, length: int) -> None:
    """Refuse a drafter that cannot read texts of `length` bytes; an n-gram model reads any."""
    if isinstance(drafter, LMDrafter) and drafter.model.config.max_length < length:
        raise UsageError(
            f"the drafter's context holds {drafter.model.config.max_length} bytes, prompt, text and draft may take {length}: "
            "ask for less, or give another drafter"
        )
