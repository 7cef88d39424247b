"""The cross-entropy method: a search among the weights of a deterministic policy, by the rewards of whole episodes.

    theta_i ~ N(mu, diag(sigma^2)),  i = 1..P;   G_i = sum of the rewards of m episodes under argmax_a h(s, a; theta_i)
    mu, sigma <- mean and standard deviation of the best E of the theta_i, sigma + max(0, 1 - g / decay) * noise * sigma_0

(Rubinstein 1999; de Boer et al. 2005; with the decreasing noise of Szita & Lorincz 2006.) It learns no values and takes no
gradient, so it finds the best of what few weights can say where values that bootstrap, or a softmax that has to be sharp, do
not. Comparing candidates is exact where an env deals out the same m episodes in turn.
"""

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple, Protocol, cast

import numpy as np
from gymnasium import spaces
from numpy.typing import ArrayLike

from tdraft.kernels.jit import lean
from tdraft.kernels.rng import uniform
from tdraft.value.tables import first_greedy

from .base import Decision, SpaceError
from .checkpoint import CheckpointError
from .linear import LinearAgent, readers_of
from .settings import SettingsError, check, make_settings


class Scores(Protocol):
    """A policy's preferences h(s, a; theta) as a NamedTuple of arrays."""

    @property
    def rule(self) -> Any:
        """Compiled `rule(scores, theta, obs, a)`."""
        ...

    @property
    def n_weights(self) -> int: ...

    @property
    def n_inputs(self) -> int:
        """Length of the shortest observation that it reads."""
        ...


class AffineScores(NamedTuple):
    """h(s, a; theta) = theta[a, 0] + theta[a, 1:] . (s - shift) * scale: one row of weights an action."""

    shift: np.ndarray  # (D,)
    scale: np.ndarray  # (D,)
    n_actions: int

    @property
    def rule(self) -> Any:
        return affine_score

    @property
    def n_weights(self) -> int:
        return self.n_actions * (len(self.shift) + 1)

    @property
    def n_inputs(self) -> int:
        return len(self.shift)


@lean
def affine_score(scores, theta, obs, a):
    first = a * (len(scores.shift) + 1)
    total = theta[first]
    for i in range(len(scores.shift)):
        total += theta[first + 1 + i] * (obs[i] - scores.shift[i]) * scores.scale[i]
    return total


def affine_scores(space: spaces.Box, n_actions: int) -> AffineScores:
    """Scores on observations scaled to [-1, 1] by the bounds of a Box (D,); entries without finite bounds stay as they are."""
    low, high = space.low.astype(np.float64), space.high.astype(np.float64)
    bounded = (low > -1e30) & (high < 1e30) & (high > low)
    low, high = np.where(bounded, low, -1.0), np.where(bounded, high, 1.0)
    return AffineScores(low / 2 + high / 2, 1.0 / (high / 2 - low / 2), n_actions)


class CrossEntropyLearner(NamedTuple):
    """State of the search: F weights, P candidates."""

    theta: np.ndarray  # (F,) the candidate that acts
    scores: Any
    preference: np.ndarray  # (A,) room for h(s, .)
    candidates: np.ndarray  # (P, F)
    returns: np.ndarray  # (P,) G_i so far
    mean: np.ndarray  # (F,)
    std: np.ndarray  # (F,)
    first_std: np.ndarray  # (F,) sigma_0
    count: np.ndarray  # (4,) int64 candidate, its episodes so far, generation, 1 inside an episode
    clock: np.ndarray  # (1,) int64 steps
    error: np.ndarray  # (1,) unused: there is no TD error
    episodes: int
    elite: int
    noise: float
    decay: float


@lean
def refit(learner):
    """The next mean and deviation, of the best candidates; their returns become -inf."""
    n_candidates, n_weights = learner.candidates.shape
    for f in range(n_weights):
        learner.mean[f], learner.std[f] = 0.0, 0.0
    for _ in range(learner.elite):
        best = 0
        for i in range(n_candidates):
            if learner.returns[i] > learner.returns[best]:
                best = i
        for f in range(n_weights):
            learner.mean[f] += learner.candidates[best, f]
            learner.std[f] += learner.candidates[best, f] ** 2
        learner.returns[best] = -np.inf
    extra = learner.noise * max(0.0, 1.0 - learner.count[2] / learner.decay)
    for f in range(n_weights):
        mean = learner.mean[f] / learner.elite
        variance = max(0.0, learner.std[f] / learner.elite - mean * mean)
        learner.mean[f], learner.std[f] = mean, math.sqrt(variance) + extra * learner.first_std[f]


@lean
def breed(learner, rng):
    """Draw the candidates of a generation, the mean itself first."""
    n_candidates, n_weights = learner.candidates.shape
    for i in range(n_candidates):
        learner.returns[i] = 0.0
        for f in range(n_weights):
            normal = 0.0
            if i > 0:  # Box & Muller 1958
                normal = math.sqrt(-2.0 * math.log(1.0 - uniform(rng))) * math.cos(2.0 * math.pi * uniform(rng))
            learner.candidates[i, f] = learner.mean[f] + learner.std[f] * normal


@lru_cache
def cross_entropy_rule(rule) -> tuple[Any, Any]:
    """Compiled begin and step for scores with this rule."""

    @lean
    def act(learner, obs):
        learner.clock[0] += 1
        for a in range(len(learner.preference)):
            learner.preference[a] = rule(learner.scores, learner.theta, obs, a)
        return first_greedy(learner.preference)

    @lean
    def begin(learner, obs, rng):
        count = learner.count
        if count[3] == 1:  # an episode has ended, by itself or at the time limit
            count[1] += 1
            if count[1] == learner.episodes:
                count[0], count[1] = count[0] + 1, 0
                if count[0] == len(learner.candidates):
                    count[0], count[2] = 0, count[2] + 1
                    refit(learner)
                    breed(learner, rng)
        elif learner.clock[0] == 0:
            breed(learner, rng)
        count[3] = 1
        for f in range(len(learner.theta)):
            learner.theta[f] = learner.candidates[count[0], f]
        return act(learner, obs)

    @lean
    def step(learner, reward, discount, obs, duration, rng):
        learner.returns[learner.count[0]] += reward
        return act(learner, obs)

    return begin, step


@lru_cache
def score_readers(rule) -> tuple[Any, Any]:
    """`readers_of` weights theta (F,) for scores with this rule."""

    @lean
    def score(theta, scores, obs, out):
        for a in range(len(out)):
            out[a] = rule(scores, theta, obs, a)

    return readers_of(score)


@dataclass(frozen=True)
class CrossEntropySettings:
    """Hyper-parameters of the cross-entropy method."""

    population: int = 50
    """Candidates in a generation, P."""
    elite: int = 10
    """Best candidates that the next generation is drawn around, E."""
    episodes: int = 1
    """Episodes that a candidate is judged by."""
    sigma: float = 1.0
    """First standard deviation of every weight, sigma_0."""
    noise: float = 0.1
    """What is added to the deviation at first, as a multiple of sigma_0."""
    decay: int = 20
    """Generations over which the noise falls to zero."""

    def __post_init__(self):
        check("population", self.population, 2, 100_000)
        check("elite", self.elite, 1, self.population)
        check("episodes", self.episodes, 1, 1e9)
        check("sigma", self.sigma, 0, 1e9, open_low=True)
        check("noise", self.noise, 0, 1e6)
        check("decay", self.decay, 1, 1e9)


class CrossEntropy(LinearAgent):
    """The cross-entropy method on Discrete actions; it serves the mean of the last whole generation.

    :param scores: the policy's preferences, by default `affine_scores` of the observation
    :param mean: (F,) first weights, by default 0
    :param std: (F,) their first deviations, by default sigma; 0 keeps a weight as it is
    :raises SpaceError, SettingsError: as every agent, or `mean` and `std` not of the scores' size
    """

    name = "cross-entropy"
    Settings = CrossEntropySettings

    def __init__(
        self, env, *, scores: Scores | None = None, mean: ArrayLike | None = None, std: ArrayLike | None = None, **options
    ):
        self.scores, self.first = scores, (mean, std)
        super().__init__(env, **options)

    def make_learner(self) -> Any:
        settings, (mean, std) = self.settings, self.first
        if self.scores is None:
            if not isinstance(self.observation_space, spaces.Box):
                raise SpaceError(
                    f"{self.name} needs scores= for observations of {self.observation_space}; for a Box it makes them"
                )
            self.scores = affine_scores(self.observation_space, self.n_actions)
        scores = self.scores
        if scores.n_inputs > self.n_inputs:
            raise SpaceError(f"scores use dimension {scores.n_inputs - 1}, observations have {self.n_inputs} (counted from 0)")
        n = scores.n_weights
        first = np.zeros(n) if mean is None else np.array(mean, np.float64)
        spread = np.full(n, float(settings.sigma)) if std is None else np.array(std, np.float64)
        if first.shape != (n,) or spread.shape != (n,) or not np.isfinite(first).all() or not (spread >= 0).all():
            raise SettingsError(f"mean and std must be {n} finite numbers, std >= 0, got {first.tolist()} and {spread.tolist()}")
        self.begin_rule, self.step_rule = cross_entropy_rule(scores.rule)  # pyright: ignore[reportAttributeAccessIssue]
        return CrossEntropyLearner(
            theta=first.copy(),
            scores=scores,
            preference=np.zeros(self.n_actions),
            candidates=np.zeros((settings.population, n)),
            returns=np.zeros(settings.population),
            mean=first,
            std=spread.copy(),
            first_std=spread,
            count=np.zeros(4, np.int64),
            clock=np.zeros(1, np.int64),
            error=np.zeros(1),
            episodes=int(settings.episodes),
            elite=int(settings.elite),
            noise=float(settings.noise),
            decay=float(settings.decay),
        )

    def settings_from(self, meta: dict[str, Any], arrays: dict[str, np.ndarray]) -> Any:
        if "learner.scores.shift" not in arrays:
            raise CheckpointError("the checkpoint holds scores that were passed to its agent: keep such a policy by save_policy")
        self.scores, self.first = None, (None, None)
        return make_settings(self.Settings, self.name, meta["settings"])

    @property
    def epsilon(self) -> float:
        """0: candidates differ in their weights, none acts at random."""
        return 0.0

    def weights(self) -> np.ndarray:
        """(F,) weights that `predict` serves."""
        return self.learner.mean

    def values(self, observations: np.ndarray) -> np.ndarray:
        """(n, A) preferences at (n, D) observations."""
        out, x = np.zeros((len(observations), self.n_actions)), self.learner
        score_readers(x.scores.rule)[1](x.mean, x.scores, np.ascontiguousarray(observations, np.float64), out)
        return out

    def policy(self) -> Decision:
        scores = self.learner.scores
        params = cast(Any, (self.learner.mean.copy(), scores))
        return Decision(score_readers(scores.rule)[0], params, np.zeros(self.n_actions))
