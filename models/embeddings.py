"""Word vectors: Word2Vec's training (Mikolov et al. 2013, arXiv 1310.4546), neighbours, analogies, and the files others read.

A one-hot row times a matrix is a row of the matrix, so a table of vectors *is* the first layer of a network over words; what
Word2Vec learns can start such a layer. The loops are in `kernels.word2vec`.

V words   D size of a vector   N tokens
"""

import difflib
import re
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from tqdm import tqdm

from tdraft.kernels import word2vec as kernels
from tdraft.kernels.rng import seed_state

from .files import atomic_write

SUFFIXES = ("s", "ed", "ing")
_LETTERS = re.compile(r"[^\W\d_]+")
_BLANK = re.compile(r"[\0\t\n\v\f\r ]")
ALPHA = {"skip-gram": 0.025, "cbow": 0.1}  # first learning rates
_EXPONENT = 0.75  # of the counts, in the law of the negatives
_FLOOR = 1e-4  # the last learning rate, as a part of the first


class EmbeddingError(ValueError):
    """A text, a setting, a word or a file that word vectors cannot be made of; the message says which."""


@dataclass(frozen=True)
class Word2VecConfig:
    """How to train word vectors."""

    architecture: Literal["skip-gram", "cbow"] = "skip-gram"
    """`skip-gram`: each word of a window predicts the middle one; `cbow`: their mean does, faster."""
    size: int = 100
    """Size of a vector, D."""
    window: int = 5
    """Words on each side at most; the number is drawn anew for each word."""
    negative: int = 5
    """Words drawn for contrast, for each prediction."""
    sample: float = 1e-3
    """Words of a larger share of the text are left out at random, more the more frequent they are; 0 keeps all."""
    min_count: int = 5
    """Words that stand less often are left out."""
    epochs: int = 5
    """Passes over the text; a text of less than some million words wants 20."""
    alpha: float | None = None
    """First learning rate, which falls linearly to a ten-thousandth; by default 0.025 for skip-gram and 0.1 for CBOW."""
    seed: int = 0
    """Of the first vectors and of all draws: the same seed gives the same vectors."""


class InflectionRank(NamedTuple):
    """Where the other form of a word stands among its neighbours; 1 is the nearest."""

    pairs: int  # of words x and xs, xed or xing
    median: float  # over both directions of every pair
    reciprocal: float  # mean of 1 / rank


class WordVectors:
    """Words and their vectors.

    :param words: V distinct words without white space, the most frequent first where `train` made them
    :param vectors: (V, D) float32
    :param counts: (V,) int64, how often each stood in the text; None where that isn't known
    :raises EmbeddingError: repeated or empty words, words with ASCII white space, or another number of vectors
    """

    def __init__(self, words: Sequence[str], vectors: np.ndarray, counts: np.ndarray | None = None):
        self.words = list(words)
        self.vectors = np.ascontiguousarray(vectors, np.float32)
        self.counts = None if counts is None else np.asarray(counts, np.int64)
        self.ids = {word: i for i, word in enumerate(self.words)}
        if self.vectors.ndim != 2 or len(self.vectors) != len(self.words) or (counts is not None and len(counts) != len(words)):
            raise EmbeddingError(f"{len(self.words)} words need (V, D) vectors and V counts, got vectors {self.vectors.shape}")
        if len(self.ids) != len(self.words):
            raise EmbeddingError(f"words must be distinct, {Counter(self.words).most_common(1)[0][0]!r} stands twice")
        for word in self.words:
            if not word or _BLANK.search(word):
                raise EmbeddingError(f"a word has no white space and is not empty, got {word!r}")
        norms = np.linalg.norm(self.vectors.astype(np.float64), axis=1, keepdims=True)  # in float32 squares may overflow
        self._unit = (self.vectors / np.where(norms > 0, norms, 1)).astype(np.float32)

    def __len__(self) -> int:
        return len(self.words)

    def __repr__(self) -> str:
        return f"WordVectors({len(self.words):,} words, size {self.vectors.shape[1]})"

    @classmethod
    def train(cls, sentences: Iterable[Sequence[str]], config: Word2VecConfig = Word2VecConfig()) -> "WordVectors":
        """Vectors of the words of some sentences, which are sequences of words (`words_by_paragraph` makes some of a text).

        :raises EmbeddingError: no word stands `min_count` times, or a setting is out of its range
        """
        sentences = sentences if isinstance(sentences, list) else list(sentences)
        counted = Counter(word for sentence in sentences for word in sentence)
        words = [word for word, n in counted.most_common() if n >= config.min_count]
        if not words:
            raise EmbeddingError(
                f"the text has {sum(counted.values())} words and none stands {config.min_count} times; "
                "give more text or a smaller min_count"
            )
        ids = {word: i for i, word in enumerate(words)}
        known = [[ids[word] for word in sentence if word in ids] for sentence in sentences]
        tokens = np.fromiter((i for sentence in known for i in sentence), np.int32)
        vectors = train_ids(tokens, len(words), config, ends=np.cumsum([len(sentence) for sentence in known]))
        return cls(words, vectors, np.array([counted[word] for word in words]))

    def vector(self, word: str) -> np.ndarray:
        """(D,) float32.

        :raises EmbeddingError: an unknown word; the message names those of nearly the same spelling
        """
        return self.vectors[self._id(word)]

    def nearest(self, word: str, k: int = 10) -> list[tuple[str, float]]:
        """The k other words of largest cosine, and that."""
        i = self._id(word)
        return self._largest(self._unit[i], [i], k)

    def analogy(self, a: str, b: str, c: str, k: int = 5) -> list[tuple[str, float]]:
        """What is to c as b is to a: the k words nearest to b - a + c, of unit vectors, the three left out (Mikolov et al. 2013,
        arXiv 1301.3781; 3CosAdd in Levy & Goldberg 2014)."""
        given = [self._id(word) for word in (a, b, c)]
        direction = self._unit[given[1]] - self._unit[given[0]] + self._unit[given[2]]
        return self._largest(direction / max(float(np.linalg.norm(direction)), 1e-12), given, k)

    def inflection_pairs(self) -> np.ndarray:
        """(P, 2) ids of the pairs x and xs, xed, xing of words that both are here; x has three letters at least."""
        return np.array(
            [
                (i, self.ids[word + suffix])
                for i, word in enumerate(self.words)
                if len(word) >= 3
                for suffix in SUFFIXES
                if word + suffix in self.ids
            ],
            np.int64,
        ).reshape(-1, 2)

    def inflection_rank(self) -> InflectionRank:
        """The rank of a word's other form by cosine among all words but itself, both ways round for every pair.

        Where a text is too small for analogies, this still tells good vectors from bad ones; by chance the median is V / 2.

        :raises EmbeddingError: no such pair among the words
        """
        pairs = self.inflection_pairs()
        if not len(pairs):
            raise EmbeddingError(f"no word of the {len(self)} stands beside itself with -{', -'.join(SUFFIXES)}; use more text")
        ranks = []
        for block in np.array_split(np.concatenate([pairs, pairs[:, ::-1]]), len(pairs) // 128 + 1):
            cosines, rows = self._unit[block[:, 0]] @ self._unit.T, np.arange(len(block))
            partner = cosines[rows, block[:, 1]]
            cosines[rows, block[:, 0]] = -np.inf
            ranks.append((cosines > partner[:, None]).sum(axis=1) + 1)
        found = np.concatenate(ranks)
        return InflectionRank(len(pairs), float(np.median(found)), float((1 / found).mean()))

    def save(self, path: str | Path) -> None:
        """Write word2vec's text format, V and D in the first line and then `word x_1 .. x_D`, of which `load` makes the very same
        vectors (counts have no place in it); a failure leaves the former file as it was."""
        with atomic_write(path) as temporary, open(temporary, "w", encoding="utf-8", newline="\n") as file:
            file.write(f"{len(self)} {self.vectors.shape[1]}\n")
            file.writelines(f"{word} {row}\n" for word, row in zip(self.words, _decimals(self.vectors, " ")))

    @classmethod
    def load(cls, path: str | Path) -> "WordVectors":
        """The vectors of a file in word2vec's text format: ours, word2vec.c's or gensim's.

        :raises EmbeddingError: no such file, or a malformed line, with its number
        """
        words: dict[str, int] = {}
        rows = []
        try:
            with open(path, "rb") as file:
                count, size = _header(file.readline(), f"{path}:1")
                for number, line in enumerate(file, start=2):
                    word, row = _entry(line, size, f"{path}:{number}")
                    if words.setdefault(word, number) != number:
                        raise EmbeddingError(f"{path}:{number}: {word!r} stands in line {words[word]} already")
                    rows.append(row)
        except OSError as error:
            raise EmbeddingError(f"{path} cannot be read ({error.strerror}); give a file in word2vec's text format") from None
        if len(rows) != count:
            raise EmbeddingError(f"{path}:1: {count} words are announced, {len(rows)} follow; is the file whole?")
        return cls(list(words), np.stack(rows))

    def export_projector(self, log_dir: str | Path) -> None:
        """Write tensors.tsv, metadata.tsv and projector_config.pbtxt, which `tensorboard --logdir log_dir` shows as PROJECTOR."""
        folder = Path(log_dir)
        lines = self.words if self.counts is None else [f"{w}\t{n}" for w, n in zip(self.words, self.counts.tolist())]
        head = [] if self.counts is None else ["word\tcount"]  # with one column, the projector takes a head for a word
        config = 'embeddings {\n  tensor_name: "words"\n  tensor_path: "tensors.tsv"\n  metadata_path: "metadata.tsv"\n}\n'
        files = {"tensors.tsv": _decimals(self.vectors, "\t"), "metadata.tsv": [*head, *lines]}
        for name, content in [*files.items(), ("projector_config.pbtxt", [config.rstrip()])]:
            with atomic_write(folder / name) as temporary, open(temporary, "w", encoding="utf-8", newline="\n") as file:
                file.writelines(f"{line}\n" for line in content)

    def _id(self, word: str) -> int:
        if word not in self.ids:
            near = ", ".join(map(repr, difflib.get_close_matches(word, self.words, 3, 0.6)))
            raise EmbeddingError(f"{word!r} is not among the {len(self)} words" + (f"; near in spelling: {near}" if near else ""))
        return self.ids[word]

    def _largest(self, direction: np.ndarray, left_out: list[int], k: int) -> list[tuple[str, float]]:
        """The k words of largest cosine with a unit vector."""
        if k < 1:
            raise EmbeddingError(f"k must be positive, got {k}")
        cosines = self._unit @ direction
        cosines[left_out] = -np.inf
        best = np.argsort(-cosines, kind="stable")[: min(k, len(self) - len(set(left_out)))]
        return [(self.words[i], float(cosines[i])) for i in best]


def words_by_paragraph(text: str) -> list[list[str]]:
    """The lower-case words, runs of letters, of each paragraph of a text; paragraphs stand between blank lines."""
    found = (_LETTERS.findall(part.lower()) for part in re.split(r"\n[ \t\r]*\n", text))
    return [words for words in found if words]


def train_ids(
    ids: np.ndarray, vocab_size: int, config: Word2VecConfig = Word2VecConfig(), *, ends: np.ndarray | None = None
) -> np.ndarray:
    """Vectors of the tokens 0..V-1 of any text; `min_count` does not apply, an id that stands nowhere keeps its first vector.

    :param ids: (N,) token ids
    :param vocab_size: V
    :param ends: (S,) where each sentence ends, ascending up to N; windows stay inside. None: the text is one sentence
    :return: (V, D) float32
    :raises EmbeddingError: no token, an id outside 0..V-1, or a setting out of its range
    """
    _check(config)
    ids, ends = np.asarray(ids), np.array([len(ids)]) if ends is None else np.asarray(ends)
    if not len(ids) or not 0 <= ids.min() <= ids.max() < vocab_size:
        seen = f"ids {ids.min()} to {ids.max()}" if len(ids) else "no token"
        raise EmbeddingError(f"ids must be at least one token in 0..{vocab_size - 1}, got {seen}")
    if not len(ends) or ends[-1] != len(ids) or ends[0] < 0 or (np.diff(ends) < 0).any():
        raise EmbeddingError(f"ends must ascend to the number of tokens {len(ids)}")
    ids, ends = ids.astype(np.int32), ends.astype(np.int64)
    counts = np.bincount(ids, minlength=vocab_size)
    first, draws = np.random.SeedSequence(config.seed).spawn(2)
    rng = seed_state(draws)
    vectors = np.random.default_rng(first).uniform(-1, 1, (vocab_size, config.size)).astype(np.float32) / np.float32(config.size)
    output = np.zeros_like(vectors)
    share, law = keep_probabilities(counts, config.sample), kernels.alias_table(counts**_EXPONENT)
    loop = kernels.skip_gram if config.architecture == "skip-gram" else kernels.cbow
    kept, kept_ends = np.empty_like(ids), np.empty_like(ends)
    alpha = ALPHA[config.architecture] if config.alpha is None else config.alpha
    rates = alpha * np.linspace(1, _FLOOR, config.epochs + 1)
    for epoch in tqdm(range(config.epochs), unit="epoch", disable=not sys.stderr.isatty()):
        kernels.subsample(ids, ends, share, rng, kept, kept_ends)
        text = kept[: kept_ends[-1]]
        loop(text, kept_ends, vectors, output, *law, config.window, config.negative, rates[epoch], rates[epoch + 1], rng)
    return vectors


def keep_probabilities(counts: np.ndarray, sample: float) -> np.ndarray:
    """(V,) the probability with which each occurrence of a word is kept, sqrt(t / f) + t / f for a word of share f of the text
    and t = sample: word2vec.c's law, a little milder than the sqrt(t / f) of Mikolov et al. 2013, arXiv 1310.4546, eq. 5."""
    if sample == 0:
        return np.ones(len(counts))
    ratio = sample * counts.sum() / np.maximum(counts, 1)
    return np.minimum(np.sqrt(ratio) + ratio, 1)


def _check(config: Word2VecConfig) -> None:
    for name in ("size", "window", "negative", "min_count", "epochs"):
        if getattr(config, name) < 1:
            raise EmbeddingError(f"{name} must be positive, got {getattr(config, name)}")
    if config.architecture not in ALPHA:
        raise EmbeddingError(f'architecture must be "skip-gram" or "cbow", got {config.architecture!r}')
    if not 0 <= config.sample < 1:
        raise EmbeddingError(f"sample must be in [0, 1), a share of the text, got {config.sample}")
    if config.alpha is not None and not 0 < config.alpha < 1:
        raise EmbeddingError(f"alpha must be in (0, 1), got {config.alpha}")


def _decimals(vectors: np.ndarray, separator: str) -> Iterable[str]:
    """Each row as text; nine digits tell any two float32 apart."""
    form = separator.join(["%.9g"] * vectors.shape[1])
    return (form % tuple(row) for row in vectors.tolist())


def _header(line: bytes, where: str) -> tuple[int, int]:
    parts = line.split()
    if len(parts) != 2 or not all(part.isdigit() for part in parts) or min(map(int, parts)) < 1:
        raise EmbeddingError(f'{where}: the first line must be "V D", two positive integers, got {line[:60]!r}')
    return int(parts[0]), int(parts[1])


def _entry(line: bytes, size: int, where: str) -> tuple[str, np.ndarray]:
    """The word and the vector of a line."""
    try:
        word, *numbers = line.decode().rstrip(" \r\n").split(" ")
        row = np.array(numbers, np.float32)
    except ValueError as error:  # UnicodeDecodeError is one
        raise EmbeddingError(f"{where}: expected UTF-8 with a word and {size} numbers ({error})") from None
    if not word or _BLANK.search(word) or len(row) != size or not np.isfinite(row).all():
        raise EmbeddingError(f"{where}: expected a word and {size} finite numbers, got {line[:60]!r}")
    return word, row
