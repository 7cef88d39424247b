"""Back-off models: log10 probabilities and weights in a trie of n-grams, as counted and smoothed, or as read from a file.

log10 p(w | c) = log10 p[c w]  where that n-gram is known,  else backoff[c] + log10 p(w | c without its oldest token)
"""

from collections.abc import Sequence
from functools import cached_property

import numpy as np

from tdraft.kernels import ngram_backoff as kernels
from tdraft.kernels.ngram import context_levels

from .counts import NGramError, checked, count_ngrams
from .smoothing import Smoothed, Smoothing, smooth


class BackoffModel:
    """An n-gram model over integer tokens 0..vocab_size - 1. `vocab_size` itself stands for the beginning of a text, <s>.

    Nodes are numbered as `kernels.ngram_backoff` says, level by level (level = length of the n-gram).

    :param order: length of the longest n-grams
    :param vocab_size: V
    :param parents: (M,) int32 each n-gram without its oldest token
    :param tokens: (M,) int32 its oldest token
    :param values: (M, 2) float32 log10 probability, log10 back-off weight
    :param uniform: words unseen after a context share its weight evenly (add-k) instead of backing off
    :param slots: their hash table, where a file has it
    """

    def __init__(self, order, vocab_size, parents, tokens, values, *, uniform=False, slots: np.ndarray | None = None):
        self.order, self.vocab_size, self.uniform = int(order), int(vocab_size), bool(uniform)
        self.parents, self.tokens, self.values = parents, tokens, values
        if slots is not None:
            self.slots = slots

    @classmethod
    def fit(
        cls,
        tokens: np.ndarray,
        order: int,
        vocab_size: int,
        *,
        starts: np.ndarray | None = None,
        smoothing: Smoothing = "kneser-ney",
        k: float = 1.0,
        prune: Sequence[int] = (),
    ) -> "BackoffModel":
        """Count and smooth a text: `count_ngrams` and `smooth` say what the arguments are.

        :raises NGramError: bad tokens or arguments
        """
        counts = count_ngrams(tokens, order, vocab_size, starts=starts)
        smoothed = smooth(counts, order, vocab_size, smoothing, k=k, prune=prune)
        return _from_smoothed(smoothed, order, vocab_size, uniform=smoothing == "add-k")

    @cached_property
    def slots(self) -> np.ndarray:
        """(S, 2) int64 hash table (parent, token) -> node."""
        return kernels.build_slots(self.parents, self.tokens)

    @cached_property
    def level_start(self) -> np.ndarray:
        """(order + 2,) first node of each length 0..order, and M."""
        return np.searchsorted(context_levels(self.parents), np.arange(self.order + 2))

    def score_tokens(self, tokens: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """log10 p of each token after those before it.

        :param tokens: (N,) integers in 0..V; V begins a text: nothing looks behind it, and it is itself not scored
        :return: (N,) float64, 0 at the beginning of a text; (N,) int32 length of the longest n-gram that matched
        """
        tokens = checked(tokens, self.vocab_size + 1)
        return kernels.score_tokens(self.slots, self.values, tokens, self.order, self.vocab_size, self.uniform)

    def bits_per_token(self, tokens: np.ndarray) -> float:
        """Mean of -log2 p over tokens (N,) that are scored."""
        tokens = checked(tokens, self.vocab_size + 1)
        scored = int((tokens < self.vocab_size).sum())
        if not scored:
            raise NGramError("bits_per_token needs at least one token, got none")
        return float(-self.score_tokens(tokens)[0].sum() / scored / np.log10(2))

    def distribution(self, context: np.ndarray) -> np.ndarray:
        """(V,) float64 probabilities of the next token after context (T,), which may begin with V."""
        context = checked(np.asarray(context), self.vocab_size + 1, "context")
        return 10.0 ** kernels.score_vocabulary(self.slots, self.values, context, self.order, self.vocab_size, self.uniform)

    def __repr__(self) -> str:
        sizes = np.diff(self.level_start)[1:].tolist()
        return f"BackoffModel(order={self.order}, vocab_size={self.vocab_size}, n-grams={sizes})"


def _from_smoothed(smoothed: Smoothed, order: int, vocab_size: int, *, uniform: bool) -> BackoffModel:
    """Turn the trie of contexts around: each n-gram becomes a node, under the n-gram without its oldest token."""
    n_unigrams = int(smoothed.entry_start[1])
    first = vocab_size + 2  # behind the empty n-gram, the words and <s>
    node = np.concatenate([smoothed.entry_tokens[:n_unigrams] + 1, np.arange(len(smoothed.suffix) - n_unigrams) + first])
    owner = np.repeat(np.arange(len(smoothed.parents)), np.diff(smoothed.entry_start))
    parents = np.concatenate([np.zeros(first), node[smoothed.suffix[n_unigrams:]]]).astype(np.int32)
    tokens = np.concatenate([[-1], np.arange(vocab_size + 1), smoothed.tokens[owner[n_unigrams:]]]).astype(np.int32)
    values = np.zeros((len(parents), 2))
    with np.errstate(divide="ignore"):
        values[1 : first - 1, 0] = np.log10(smoothed.backoff[0] / vocab_size)  # words that never stood in the text
        values[node, 0] = np.log10(smoothed.probability)
        slots = kernels.build_slots(parents, tokens)
        contexts = kernels.context_nodes(slots, smoothed.parents, smoothed.tokens)[1:]
        if (contexts < 0).any():
            raise NGramError("a context of these counts is no n-gram itself: labels that are not the text's cannot back off")
        values[contexts, 1] = np.log10(smoothed.backoff[1:])
    return BackoffModel(order, vocab_size, parents, tokens, values.astype(np.float32), uniform=uniform, slots=slots)
