"""From logits to the distribution that is sampled: temperature, top-k, top-p, and sampling by the inverse of the
distribution function.

Plain NumPy on (..., V) arrays, float32 or float64. Target and drafter both go through `process` before any acceptance
rule: what is exact is exact for the processed distributions.
"""

from dataclasses import dataclass

import numpy as np


class SamplingError(ValueError):
    """A temperature, top-k or top-p out of range."""


@dataclass(frozen=True)
class Sampling:
    """How logits become a distribution.

    :param temperature: > 0 divides the logits; 0 is greedy, all mass on the largest logit (the lowest index among
        equals)
    :param top_k: keep the k largest logits; 0 keeps all
    :param top_p: keep the fewest tokens whose probability reaches top_p, in (0, 1]; 1 keeps all
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0

    def __post_init__(self):
        if not (self.temperature >= 0.0 and np.isfinite(self.temperature)):
            raise SamplingError(f"temperature must be >= 0 and finite, got {self.temperature} (0 is greedy)")
        if self.top_k < 0 or self.top_k != int(self.top_k):
            raise SamplingError(f"top_k must be an integer >= 0, got {self.top_k} (0 keeps every token)")
        if not 0.0 < self.top_p <= 1.0:
            raise SamplingError(f"top_p must be in (0, 1], got {self.top_p} (1 keeps every token)")

    @property
    def greedy(self) -> bool:
        """Whether all mass is on one token."""
        return self.temperature == 0.0 or self.top_k == 1

    def __call__(self, logits: np.ndarray) -> np.ndarray:
        """`process` with these settings."""
        return process(logits, self.temperature, self.top_k, self.top_p)


def process(logits: np.ndarray, temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0) -> np.ndarray:
    """Probabilities after temperature, then top-k, then top-p (the order of Hugging Face's processors).

    Exactly k tokens survive top-k; among equal logits the lowest indices do. Top-p keeps a token if the mass before
    it, in falling order, is below top_p, so that the token that crosses it stays. -inf logits have probability 0.

    :param logits: (..., V); any floating type
    :param temperature: >= 0; 0 gives one-hot at the largest logit
    :param top_k: 0 or at least V keeps all
    :param top_p: in (0, 1]
    :return: (..., V) of the logits' floating type, each row sums to one
    :raises ValueError: a setting out of range, NaN or +inf logits, or a row without a finite logit
    """
    Sampling(temperature, top_k, top_p)
    logits = np.asarray(logits)
    kind = logits.dtype if np.issubdtype(logits.dtype, np.floating) else np.dtype(np.float64)
    z = logits.astype(np.float64)
    if z.ndim == 0 or z.shape[-1] == 0:
        raise ValueError(f"logits must have shape (..., V) with V >= 1, got {z.shape}")
    peak = z.max(-1, keepdims=True)
    if not np.isfinite(peak).all():  # NaN and +inf reach the maximum, and so does a row of -inf
        raise ValueError("logits must be finite or -inf with a finite one in each row; got NaN, +inf or a row of -inf")
    if temperature == 0.0:
        p = np.zeros_like(z)
        np.put_along_axis(p, z.argmax(-1)[..., None], 1.0, -1)
        return p.astype(kind)
    with np.errstate(over="ignore"):
        p = np.exp((z - peak) / temperature)
    if 0 < top_k < z.shape[-1] or top_p < 1.0:
        order = np.argsort(-z, axis=-1, kind="stable")
        ranked = np.take_along_axis(p, order, -1)
        if 0 < top_k < z.shape[-1]:
            ranked[..., top_k:] = 0.0
        if top_p < 1.0:
            ranked /= ranked.sum(-1, keepdims=True)
            before = np.cumsum(ranked, -1) - ranked
            ranked[before >= top_p] = 0.0
        np.put_along_axis(p, order, ranked, -1)
    return (p / p.sum(-1, keepdims=True)).astype(kind)


def sample(p: np.ndarray, u: np.ndarray | float) -> np.ndarray:
    """Draw tokens by the inverse of the distribution function: the smallest x with p(0) + ... + p(x) > u * sum(p).

    :param p: (..., V) non-negative weights; they need not sum to one
    :param u: (...) uniforms in [0, 1), one a row
    :return: (...) int64; never a token of zero weight
    """
    total = np.cumsum(np.asarray(p, np.float64), -1)
    threshold = np.asarray(u, np.float64)[..., None] * total[..., -1:]
    # u * sum can round up to the sum itself: the last token that has weight is then the answer
    threshold = np.minimum(threshold, np.nextafter(total[..., -1:], -np.inf))
    return (total <= threshold).sum(-1)
