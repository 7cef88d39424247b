"""Prediction from whole episodes: Monte Carlo, on-policy and off-policy, and the off-line lambda-return algorithm.

Nothing is learned before an episode's end; then its states are updated, first to last.
"""

from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

from tdraft.kernels.jit import lean
from tdraft.value.features import StateFeatures, add_features

from ..settings import SettingsError, check
from .base import Prediction, PredictionSettings, act, ratio, tick, value

SAMPLING = ("ordinary", "weighted", "per-decision")
FROZEN = ("nothing", "returns", "everything")


class Episode(NamedTuple):
    """The episode so far, in C places."""

    states: np.ndarray  # (C,) int64
    rewards: np.ndarray  # (C,)
    discounts: np.ndarray  # (C,)
    ratios: np.ndarray  # (C,)
    returns: np.ndarray  # (C,)
    weights: np.ndarray  # (C,) products of ratios from a step to the end
    counts: np.ndarray  # (2,) int64: steps, and episodes finished
    seen: np.ndarray  # (S,) int64: number of the last episode that met the state; () where every visit counts
    mass: np.ndarray  # (F,) sum of the weights of all updates; (0,) where alpha is constant
    kind: int  # index into SAMPLING or FROZEN
    lambda_: float


@lean
def record(learner, reward, discount):
    episode = learner.memory
    t = episode.counts[0]
    episode.states[t], episode.rewards[t], episode.discounts[t] = learner.last[0], reward, discount
    episode.ratios[t] = ratio(learner)
    episode.counts[0] = t + 1


@lean
def is_over(learner, discount):
    """Whether the return ends here: the episode has, or there is no room for more of it."""
    return discount == 0.0 or learner.memory.counts[0] == len(learner.memory.states)


@lean
def monte_carlo_update(learner):
    """Learn from the episode and forget it."""
    episode = learner.memory
    target, weight = 0.0, 1.0
    for t in range(episode.counts[0] - 1, -1, -1):
        target = episode.rewards[t] + episode.discounts[t] * target
        if episode.kind == 2:
            target *= episode.ratios[t]
        else:
            weight *= episode.ratios[t]
        episode.returns[t], episode.weights[t] = target, weight
    episode.counts[1] += 1
    for t in range(episode.counts[0]):
        state = episode.states[t]
        if len(episode.seen) > 0:
            if episode.seen[state] == episode.counts[1]:
                continue
            episode.seen[state] = episode.counts[1]
        weight, target = episode.weights[t], episode.returns[t]
        if episode.kind == 1 and weight == 0.0:
            continue
        error = (target if episode.kind == 1 else weight * target) - value(learner, state)
        step = tick(learner, error)
        if len(episode.mass) > 0:
            group, share = learner.features.index[state, 0], weight if episode.kind == 1 else 1.0
            episode.mass[group] += share
            step = share / episode.mass[group]
        add_features(learner.w, learner.features, state, step * error)
    episode.counts[0] = 0


@lean
def monte_carlo_begin(learner, obs, rng):
    """After a time limit, the returns close with the last reward."""
    if learner.memory.counts[0] > 0:
        monte_carlo_update(learner)
    return act(learner, obs, rng)


@lean
def monte_carlo_step(learner, reward, discount, obs, duration, rng):
    """At the episode's end, w += alpha * (G - v(s)) * x(s) for its states, first to last   (Sutton & Barto eq. 6.1, sec. 9.3).

    G = r_{t+1} + gamma r_{t+2} + ...;   off-policy, with W the product of the ratios from t to the end (sec. 5.5 to 5.9):

    ordinary       G is multiplied by W
    weighted       the step is W / (sum of all W at this state), in place of alpha
    per-decision   G_t = rho_t (r_{t+1} + gamma G_{t+1})
    """
    record(learner, reward, discount)
    if is_over(learner, discount):
        monte_carlo_update(learner)
    return act(learner, obs, rng)


@lean
def lambda_return(learner, last_value, first):
    """Fill the lambda-returns of the steps from `first` on, with the values as they stand:

    G_t = r_{t+1} + gamma ((1 - lambda) v(s_{t+1}) + lambda G_{t+1})   (Sutton & Barto eq. 12.18)
    """
    episode = learner.memory
    following, target = last_value, last_value
    for t in range(episode.counts[0] - 1, first - 1, -1):
        target = episode.rewards[t] + episode.discounts[t] * ((1.0 - episode.lambda_) * following + episode.lambda_ * target)
        episode.returns[t] = target
        following = value(learner, episode.states[t])


@lean
def lambda_return_update(learner, last):
    """Learn from the episode that ended in state `last`, and forget it."""
    episode = learner.memory
    count, frozen = episode.counts[0], episode.kind
    lambda_return(learner, value(learner, last), 0)
    if frozen == 2:
        for t in range(count):
            episode.returns[t] -= value(learner, episode.states[t])
    for t in range(count):
        state = episode.states[t]
        if frozen == 0:
            lambda_return(learner, value(learner, last), t)
        error = episode.returns[t] - (0.0 if frozen == 2 else value(learner, state))
        add_features(learner.w, learner.features, state, tick(learner, error) * error)
    episode.counts[0] = 0
    episode.counts[1] += 1


@lean
def lambda_return_begin(learner, obs, rng):
    """After a time limit, the returns bootstrap from the last state seen."""
    if learner.memory.counts[0] > 0:
        lambda_return_update(learner, learner.last[0])
    return act(learner, obs, rng)


@lean
def lambda_return_step(learner, reward, discount, obs, duration, rng):
    """At the episode's end, w += alpha * (G^lambda - v(s)) * x(s) for its states, first to last   (Sutton & Barto eq. 12.4)."""
    record(learner, reward, discount)
    if is_over(learner, discount):
        lambda_return_update(learner, obs)
    return act(learner, obs, rng)


@dataclass(frozen=True)
class EpisodeSettings(PredictionSettings):
    capacity: int = 10_000
    """Longest return, in steps: one that is longer closes there, as at a time limit."""

    def check_shared(self):
        super().check_shared()
        check("gamma", self.gamma, 0, 1, open_low=True)  # a discount of 0 marks the end of a return
        check("capacity", self.capacity, 1, 100_000_000)


@dataclass(frozen=True)
class MonteCarloSettings(EpisodeSettings):
    alpha: float | None = None
    """Step size, in (0, 1]; None for averages over all visits."""
    visits: Literal["first", "every"] = "every"
    """Visits of a state in an episode that count."""
    sampling: Literal["ordinary", "weighted", "per-decision"] = "ordinary"
    """Kind of importance sampling, off-policy; weighted is for averages."""

    def __post_init__(self):
        self.check_shared()
        if self.visits not in ("first", "every"):
            raise SettingsError(f"visits must be first or every, got {self.visits!r}")
        if self.sampling not in SAMPLING:
            raise SettingsError(f"sampling must be one of {', '.join(SAMPLING)}, got {self.sampling!r}")
        if self.sampling == "weighted" and self.alpha is not None:
            raise SettingsError(f"weighted importance sampling averages: alpha must be None, got {self.alpha}")


def new_episode(capacity: int, seen: int, mass: int, kind: int, lambda_: float = 1.0) -> Episode:
    c = int(capacity)
    return Episode(
        states=np.zeros(c, np.int64),
        rewards=np.zeros(c),
        discounts=np.zeros(c),
        ratios=np.zeros(c),
        returns=np.zeros(c),
        weights=np.zeros(c),
        counts=np.zeros(2, np.int64),
        seen=np.zeros(seen, np.int64),
        mass=np.zeros(mass),
        kind=kind,
        lambda_=float(lambda_),
    )


class _FromEpisodes(Prediction):
    @property
    def rows(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        return int(self.settings.capacity) + 3


class MonteCarlo(_FromEpisodes):
    """Monte Carlo prediction, first-visit or every-visit (Sutton & Barto sec. 5.1, 5.5; gradient Monte Carlo, sec. 9.3)."""

    name = "monte-carlo-prediction"
    Settings = MonteCarloSettings
    begin_rule = staticmethod(monte_carlo_begin)
    step_rule = staticmethod(monte_carlo_step)

    def make_memory(self, features: StateFeatures) -> Episode:
        settings, averages = self.settings, self.settings.alpha is None
        if self.is_vector and settings.visits == "first":
            raise SettingsError('visits="first" needs numbered states, observations are vectors')
        if averages and (features.value.shape[1] > 1 or np.any((features.value != 1) & (features.value != 0))):
            raise SettingsError("averages need a table or groups of states: with other features, give alpha")
        seen = len(features.index) if settings.visits == "first" else 0
        kind = SAMPLING.index(settings.sampling)
        return new_episode(settings.capacity, seen, features.n_features if averages else 0, kind)


@dataclass(frozen=True)
class LambdaReturnSettings(EpisodeSettings):
    lambda_: float = 0.9
    """Weight of longer returns, in [0, 1]; 1 is Monte Carlo."""
    frozen: Literal["nothing", "returns", "everything"] = "returns"
    """What stays as at the episode's start while its states are updated, first to last: the returns (S&B eq. 12.4), the errors
    too ("everything"), or neither: each return is then worked out anew from the newest values, so that lambda = 0 is TD(0)."""

    def __post_init__(self):
        super().__post_init__()
        check("lambda_", self.lambda_, 0, 1)
        if self.frozen not in FROZEN:
            raise SettingsError(f"frozen must be one of {', '.join(FROZEN)}, got {self.frozen!r}")


class LambdaReturn(_FromEpisodes):
    """The off-line lambda-return algorithm (Sutton & Barto sec. 12.1)."""

    name = "lambda-return-prediction"
    Settings = LambdaReturnSettings
    begin_rule = staticmethod(lambda_return_begin)
    step_rule = staticmethod(lambda_return_step)
    on_policy_only = True

    def make_memory(self, features: StateFeatures) -> Episode:
        return new_episode(self.settings.capacity, 0, 0, FROZEN.index(self.settings.frozen), self.settings.lambda_)
