"""Where Accept-v0's distributions come from: simulated texts, or two language models live.

C texts   N positions a text   V vocabulary   K drafted tokens a round
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from tdraft.kernels.rng import randint, uniform
from tdraft.models.decoding.sampling import Sampling, sample


class LiveSource(Protocol):
    """What Accept-v0 asks of a live source. `rng` is a (4,) uint64 array for `tdraft.kernels.rng.uniform`."""

    vocab_size: int

    def reset(self, rng: np.ndarray) -> None:
        """Begin a new text."""
        ...

    def round(self, rng: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Draft k tokens from here: p (k + 1, V), q (k, V) and drafts (k,), where drafts[i] was drawn from q[i]; p[k]
        is the bonus token's.
        """
        ...

    def extend(self, tokens: Sequence[int]) -> None:
        """The round emitted these tokens."""
        ...


@dataclass(frozen=True)
class Simulator:
    """Texts of hidden, changing difficulty: a target and a drafter that resembles it more or less.

    At each position the target is softmax(sharpness g) with g standard normal, and the drafter softmax(sharpness g +
    noise g'), so that the drafter is the target with noisy logits. A Markov chain over difficulty states sets the
    noise, and is hidden. p and q belong to a text position whatever tokens were emitted before it: runs of different
    policies see the same texts, and expectations over the drafted tokens and the coins are sums. Seeds that differ
    share no text.

    :param texts: C
    :param length: N, positions of a text; an episode emits all of them
    :param vocabulary: V
    :param seed: of the texts
    :param noises: noise of each difficulty state, in logits
    :param stay: probability that the difficulty stays from one position to the next
    :param sharpness: range from which each position draws the scale of the target's logits
    """

    texts: int = 256
    length: int = 64
    vocabulary: int = 16
    seed: int = 0
    noises: tuple[float, ...] = (0.4, 1.0, 2.0)
    stay: float = 0.8
    sharpness: tuple[float, float] = (1.0, 4.0)

    def __post_init__(self):
        for name, least in (("texts", 1), ("length", 2), ("vocabulary", 2), ("seed", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, got {getattr(self, name)}")
        if not self.noises or min(self.noises) < 0:
            raise ValueError(f"noises must be one or more numbers >= 0, got {self.noises}")
        if not 0 <= self.stay <= 1:
            raise ValueError(f"stay must be in [0, 1], got {self.stay}")
        if not 0 < self.sharpness[0] <= self.sharpness[1]:
            raise ValueError(f"sharpness must be (low, high) with 0 < low <= high, got {self.sharpness}")

    def draw(self) -> tuple[np.ndarray, np.ndarray]:
        """The texts: p and q, (C, N, V) float64 each."""
        rng = np.random.default_rng(self.seed)
        shape = (self.texts, self.length)
        states = rng.integers(len(self.noises), size=shape)
        stay = rng.random(shape) < self.stay
        for t in range(1, self.length):
            states[:, t] = np.where(stay[:, t], states[:, t - 1], states[:, t])
        logits = rng.uniform(*self.sharpness, shape)[..., None] * rng.standard_normal((*shape, self.vocabulary))
        noise = np.asarray(self.noises)[states][..., None] * rng.standard_normal(logits.shape)
        return _softmax(logits), _softmax(logits + noise)


class Live:
    """Two language models, target and drafter, as callables from the context to the next token's distribution.

    :param target: list of tokens -> (V,) probabilities
    :param drafter: likewise
    :param prompts: contexts from which episodes start, drawn at random
    :param vocab_size: V
    :param sampling: how both are sampled: temperature, top-k, top-p, applied to the logarithm of what the callables
        give; None leaves it as it is
    """

    def __init__(
        self,
        target: Callable[[list[int]], np.ndarray],
        drafter: Callable[[list[int]], np.ndarray],
        prompts: Sequence[Sequence[int]],
        vocab_size: int,
        sampling: Sampling | None = None,
    ):
        if not len(prompts):
            raise ValueError("prompts must hold at least one context, got none (an empty list of tokens is a context)")
        self.target, self.drafter, self.vocab_size, self.sampling = target, drafter, vocab_size, sampling
        self.prompts = [list(map(int, prompt)) for prompt in prompts]
        self.context: list[int] = list(self.prompts[0])

    def reset(self, rng: np.ndarray) -> None:
        self.context = list(self.prompts[randint(rng, len(self.prompts))])

    def round(self, rng: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        context, p, q, drafts = list(self.context), [], [], []
        for _ in range(k):
            p.append(self._distribution(self.target, context))
            q.append(self._distribution(self.drafter, context))
            drafts.append(int(sample(q[-1], uniform(rng))))
            context.append(drafts[-1])
        p.append(self._distribution(self.target, context))
        return np.array(p), np.array(q).reshape(k, self.vocab_size), np.array(drafts, np.int64)

    def extend(self, tokens: Sequence[int]) -> None:
        self.context.extend(int(token) for token in tokens)

    def _distribution(self, model, context: list[int]) -> np.ndarray:
        p = np.asarray(model(list(context)), np.float64)
        if p.shape != (self.vocab_size,) or not np.all(p >= 0) or abs(p.sum() - 1) > 1e-4:
            raise ValueError(
                f"a model must return {self.vocab_size} probabilities that sum to 1, got shape {p.shape}, sum {p.sum():g}"
            )
        if self.sampling is None:
            return p / p.sum()
        with np.errstate(divide="ignore"):
            return self.sampling(np.log(p))


def _softmax(logits: np.ndarray) -> np.ndarray:
    p = np.exp(logits - logits.max(-1, keepdims=True))
    return p / p.sum(-1, keepdims=True)
