"""Language models of words: is this sentence plausible, how surprising is this text, in files that other tools read."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from .arpa import read_arpa, write_arpa
from .backoff import BackoffModel
from .binary import read_binary, write_binary
from .counts import NGramError
from .smoothing import Smoothing
from .vocabulary import BOS, EOS, UNK, Vocabulary, split_words


class SentenceScore(NamedTuple):
    """How plausible each word of a sentence is after those before it; T words and </s>.

    :param words: T + 1 words, the last one </s>
    :param log10: (T + 1,) log10 p of each
    :param matched: (T + 1,) length of the longest known n-gram that ends in it
    :param unknown: (T + 1,) whether it is not in the vocabulary
    """

    words: list[str]
    log10: np.ndarray
    matched: np.ndarray
    unknown: np.ndarray

    @property
    def total(self) -> float:
        """log10 of the sentence's probability."""
        return float(self.log10.sum())

    @property
    def per_token(self) -> float:
        """log10 p per word, </s> among them: for comparing sentences of different lengths."""
        return float(self.log10.mean())


class Perplexity(NamedTuple):
    """10 ** (- mean log10 p) of a text, with and without the words that the vocabulary lacks; </s> counts as a word.

    :param tokens: words and ends of sentences
    :param unknown: how many of them are not in the vocabulary
    """

    with_unknown: float
    without_unknown: float
    tokens: int
    unknown: int
    sentences: int


class WordModel:
    """A back-off model and its vocabulary. Make one with `fit` or `load`."""

    def __init__(self, model: BackoffModel, vocabulary: Vocabulary):
        if len(vocabulary) != model.vocab_size:
            raise NGramError(f"the model has {model.vocab_size} words, the vocabulary {len(vocabulary)}; they are not a pair")
        self.model, self.vocabulary = model, vocabulary

    @classmethod
    def fit(
        cls,
        sentences: Iterable[str],
        order: int = 5,
        smoothing: Smoothing = "kneser-ney",
        *,
        k: float = 1.0,
        prune: Sequence[int] = (),
        min_count: int = 1,
    ) -> "WordModel":
        """Count and smooth sentences, which are split at white space.

        :param k: of add-k
        :param prune: thresholds by length: `smooth` says how
        :param min_count: words that stand less often are <unk>
        :raises NGramError: no words, reserved words in a sentence, bad arguments
        """
        sentences = list(sentences)
        for number, sentence in enumerate(sentences, 1):
            if "<" in sentence and not {BOS, EOS}.isdisjoint(split_words(sentence)):
                raise NGramError(f"sentence {number} has {BOS} or {EOS} in it; these are added here, take them out")
        if min_count < 1:
            raise NGramError(f"min_count must be at least 1, got {min_count}")
        vocabulary = Vocabulary.fit(sentences, min_count)
        if len(vocabulary) == 2:
            raise NGramError(f"the text has no word that stands {min_count} times; give more text")
        ids = vocabulary.encode(sentences)
        begins = ids == vocabulary.bos
        starts = np.flatnonzero(begins) - np.arange(begins.sum())  # where the sentences begin once the <s> are taken out
        model = BackoffModel.fit(ids[~begins], order, len(vocabulary), starts=starts, smoothing=smoothing, k=k, prune=prune)
        return cls(model, vocabulary)

    def score(self, sentence: str) -> SentenceScore:
        """log10 p of each word of a sentence and of its end, after <s>."""
        ids = self.vocabulary.encode([sentence])
        log10, matched = self.model.score_tokens(ids)
        return SentenceScore([*split_words(sentence), EOS], log10[1:], matched[1:], ids[1:] == self.vocabulary.unk)

    def totals(self, sentences: Sequence[str]) -> np.ndarray:
        """(S,) log10 of each sentence's probability, in one batch."""
        ids = self.vocabulary.encode(sentences)
        return np.add.reduceat(self.model.score_tokens(ids)[0], np.flatnonzero(ids == self.vocabulary.bos)) if len(ids) else ids

    def perplexity(self, sentences: Iterable[str]) -> Perplexity:
        """:raises NGramError: no sentence"""
        ids = self.vocabulary.encode(sentences)
        if not len(ids):
            raise NGramError("perplexity needs at least one sentence, got none")
        log10, _ = self.model.score_tokens(ids)
        known = (ids != self.vocabulary.bos) & (ids != self.vocabulary.unk)
        count, unknown = int((ids != self.vocabulary.bos).sum()), int((ids == self.vocabulary.unk).sum())
        with np.errstate(over="ignore"):
            both = 10 ** (-log10.sum() / count), 10 ** (-log10[known].sum() / (count - unknown))
        return Perplexity(float(both[0]), float(both[1]), count, unknown, int((ids == self.vocabulary.bos).sum()))

    def save(self, path: str | Path) -> None:
        """Write an ARPA file (.arpa, .arpa.gz) or a binary one for mapping into memory (.bin), all or nothing.

        :raises NGramError: another suffix, or a model that ARPA cannot hold
        """
        (write_arpa if _is_arpa(path) else write_binary)(path, self.model, self.vocabulary.words)

    @classmethod
    def load(cls, path: str | Path) -> "WordModel":
        """:raises NGramError: no such file, a malformed one (ARPA: with the line), another suffix"""
        model, words = read_arpa(path) if _is_arpa(path) else read_binary(path)
        if words is None:
            raise NGramError(f"{path} has no words; read it with tdraft.models.ngrams.binary.read_binary")
        return cls(model, Vocabulary(words))

    def __repr__(self) -> str:
        return f"WordModel({self.model!r})"


def _is_arpa(path: str | Path) -> bool:
    name = Path(path).name
    if not name.endswith((".arpa", ".arpa.gz", ".bin")):
        raise NGramError(f"{path} must end in .arpa, .arpa.gz or .bin")
    return not name.endswith(".bin")


__all__ = ["BOS", "EOS", "UNK", "Perplexity", "SentenceScore", "WordModel"]
