"""Held-out sentences, and the same made less plausible."""

import re

import numpy as np

WORD = r"[A-Za-z_]+(?:'[a-z]+)?|[0-9]+"


def split(text: bytes) -> list[str]:
    """All sentences, by paragraph and full stop."""
    paragraphs = re.split(r"\n\s*\n", text.decode(errors="replace"))
    return [sentence for p in paragraphs for sentence in re.split(r"(?<=[.!?])\s+", " ".join(p.split()))]


def prose(text: bytes) -> list[str]:
    """Whole sentences of 6 to 40 words."""
    return [s for s in split(text) if re.fullmatch(r"[A-Z][A-Za-z' ,\-]+\.", s) and 6 <= len(re.findall(WORD, s)) <= 40]


def spaced(sentence: str) -> str:
    """Lower-case words, numbers and a few marks, with spaces between."""
    return " ".join(re.findall(rf"{WORD}|[,;:()]", sentence)).lower()


def changed(originals: list[str], names: list[str], used: list[str]) -> dict[str, list[str]]:
    """Each sentence with two words swapped, with one replaced by any of `names`, and with one replaced by one of `used`. Marks
    and spaces stay, and the first word has the capital letter.

    :param used: words as often as they are used
    """
    rng = np.random.default_rng(0)
    found: dict[str, list[str]] = {"two swapped": [], "one replaced by any": [], "one replaced by a usual one": []}
    for sentence in originals:
        marks, words = re.split(WORD, sentence), re.findall(WORD, sentence)
        words[0] = words[0].lower()
        i, j = rng.choice(len(words), 2, replace=False)
        while words[i] == words[j]:
            i, j = rng.choice(len(words), 2, replace=False)
        swapped = list(words)
        swapped[i], swapped[j] = words[j], words[i]
        others = [[*words[:i], draw[rng.integers(len(draw))], *words[i + 1 :]] for draw in (names, used)]
        for kind, other in zip(found.values(), (swapped, *others)):
            other[0] = other[0][0].upper() + other[0][1:]
            kind.append("".join(mark + word for mark, word in zip(marks, [*other, ""])))
    return found
