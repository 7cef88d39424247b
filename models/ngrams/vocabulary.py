"""Words as tokens, as kenlm has them: split at ASCII white space, nothing else; what is not known is <unk>.

Ids: 0 is <unk>, 1 is </s>, then the words; <s> is V, which no text predicts.
"""

import re
from collections import Counter
from collections.abc import Iterable

import numpy as np

from .counts import NGramError

UNK, BOS, EOS = "<unk>", "<s>", "</s>"
_WORD = re.compile(r"[^\0\t\n\v\f\r ]+")


def split_words(text: str) -> list[str]:
    """The words of a text, between ASCII white space; a no-break space is part of a word."""
    return _WORD.findall(text)


class Vocabulary:
    """Words and their ids.

    :param words: the V words in the order of their ids, without <s>
    :raises NGramError: repeated words, or no <unk> or </s> among them
    """

    def __init__(self, words: list[str]):
        self.words = words
        self.ids = {word: i for i, word in enumerate(words)}
        if len(self.ids) != len(words) or BOS in self.ids or UNK not in self.ids or EOS not in self.ids:
            raise NGramError(f"a vocabulary is distinct words with {UNK} and {EOS} and without {BOS}, got {len(words)} words")
        self.unk, self.eos, self.bos = self.ids[UNK], self.ids[EOS], len(words)
        self._inside = {word: i for word, i in self.ids.items() if i != self.eos}  # what may stand inside a sentence

    @classmethod
    def fit(cls, sentences: Iterable[str], min_count: int = 1) -> "Vocabulary":
        """The words of some sentences in the order of their first appearance.

        :param min_count: rarer words are left out, and become <unk>
        """
        counts = Counter(word for sentence in sentences for word in split_words(sentence))
        return cls([UNK, EOS, *(w for w, n in counts.items() if n >= min_count and w not in (UNK, BOS, EOS))])

    def __len__(self) -> int:
        return len(self.words)

    def encode(self, sentences: Iterable[str]) -> np.ndarray:
        """(N,) int64 ids of the sentences one after the other, each as <s> words </s>. The strings "<s>" and "</s>" inside a
        sentence are words like others: unknown ones."""
        known, unk = self._inside, self.unk
        ids: list[int] = []
        for sentence in sentences:
            ids.append(self.bos)
            ids += [known.get(word, unk) for word in split_words(sentence)]
            ids.append(self.eos)
        return np.array(ids, np.int64)
