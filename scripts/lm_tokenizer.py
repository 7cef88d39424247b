"""`tdraft lm tokenizer`: learn the tokens of a text by byte pair encoding."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from tdraft.models.bpe import BPETokenizer
from tdraft.models.corpus import default_corpus, load_corpus
from tdraft.scripts.main import UsageError


@dataclass(frozen=True)
class LMTokenizer:
    """Learn a vocabulary of frequent strings on the corpus' training split (byte pair encoding), for `lm train --tokenizer`."""

    output: Annotated[Path, tyro.conf.Positional]
    """The tokenizer.json to write; Hugging Face's tokenizers read it."""
    corpus: Path | None = None
    """A text file or folder; by default the Python documentation and sources on this machine."""
    max_bytes: int | None = None
    """Use at most this much of the default corpus."""
    vocab_size: int = 4096
    """Number of tokens, the 256 bytes included."""
    min_count: int = 2
    """Pairs that stand less often are not merged."""


def tokenizer(config: LMTokenizer) -> None:
    """Run `tdraft lm tokenizer`."""
    corpus = default_corpus(config.max_bytes) if config.corpus is None else load_corpus(config.corpus)
    try:
        learned = BPETokenizer.train(corpus.documents["train"], config.vocab_size, config.min_count)
    except ImportError as error:
        raise UsageError(str(error)) from None
    learned.save(config.output)
    if learned.vocab_size < config.vocab_size:
        print(f"no more pairs stand {config.min_count} times in the text: {learned.vocab_size} tokens, not {config.vocab_size}")
    held_out = corpus.validation
    rate = len(held_out) / len(learned.encode(held_out))
    print(
        f"{learned!r} in {config.output}: {rate:.3f} bytes a token on the validation split ({len(held_out):,} B) of {corpus.name}"
    )
