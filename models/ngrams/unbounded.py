"""n-grams without a longest one: the context is as much of the text as has been seen before (Liu et al. 2024, infini-gram).

The end of the context that stands in the training text is looked up in a suffix array. Their estimate, c(context w) / c(context)
at the longest such end, says zero to whatever is new. Ours goes on to shorter ends,

    p_k(w) = (c_k(w) + T_k p_{k+1}(w)) / (n_k + T_k)      (Witten & Bell 1991)

over the ends that stand at different numbers of places n_k, T_k different tokens behind them, down to the empty one and the
uniform distribution: an end at the same places as a longer one has nothing to add. Memory is 16 bytes a token.
"""

import numpy as np

from tdraft.kernels import suffix_array as kernels

from .counts import NGramError, checked


class UnboundedModel:
    """A model of a text; nothing is estimated before it is asked.

    :param tokens: (N,) integers in 0..vocab_size - 1, N >= 1
    :raises NGramError: bad tokens
    """

    def __init__(self, tokens: np.ndarray, vocab_size: int = 256):
        self.tokens, self.vocab_size = checked(tokens, vocab_size), vocab_size
        if not 1 <= len(self.tokens) < 2**31:
            raise NGramError(f"an unbounded model needs between 1 and 2**31 tokens, got {len(self.tokens)}")
        self.places = kernels.suffix_array(self.tokens)

    def count(self, ngram: np.ndarray) -> int:
        """How often an n-gram (n,) of any length stands in the text."""
        ngram = checked(ngram, self.vocab_size, "ngram")
        low, high = kernels.find(self.tokens, self.places, ngram, 0, len(ngram))
        return high - low

    def probabilities(self, tokens: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Of each of tokens (N,) after all those before it: (N,) float64; and (N,) the length of context that was found."""
        return kernels.text_probabilities(self.tokens, self.places, checked(tokens, self.vocab_size), self.vocab_size)

    def bits_per_token(self, tokens: np.ndarray) -> float:
        """Mean of -log2 p over tokens (N,)."""
        if not len(tokens):
            raise NGramError("bits_per_token needs at least one token, got none")
        return float(-np.log2(self.probabilities(tokens)[0]).mean())

    def distribution(self, context: np.ndarray, *, smooth: bool = True) -> np.ndarray:
        """(V,) float64 probabilities of the next token after context (T,).

        :param smooth: False gives infini-gram's estimate: relative counts at the longest end, zero for all else
        """
        context = checked(context, self.vocab_size, "context")
        rows = kernels.chain(self.tokens, self.places, context, len(context), len(context))
        if not smooth:
            n, low, high, _ = rows[0]
            return np.bincount(self.tokens[self.places[low:high] + n], minlength=self.vocab_size) / (high - low)
        return np.array([kernels.witten_bell(self.tokens, self.places, rows, w, self.vocab_size) for w in range(self.vocab_size)])
