"""Semi-gradient one-step control, action values linear in binary tile features: q(s, a) = sum of w[tile, a] over active tiles."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple, cast

import numpy as np
from gymnasium import spaces
from numba import njit

from tdraft.kernels.jit import lean
from tdraft.value.tables import accumulate, average, epsilon_greedy, first_greedy
from tdraft.value.targets import expected_sarsa_error, q_learning_error, sarsa_error
from tdraft.value.tiles import TileCoding, active, linear_values, tile_index, uniform_tiles

from .base import Agent, Decision, SpaceError
from .settings import Schedule, SettingsError, StepSettings, check, exploration, step_size


class LinearLearner(NamedTuple):
    """State of a linear agent: F features of which T are active, A actions."""

    w: np.ndarray  # (F, A) weights
    tiles: TileCoding
    active: np.ndarray  # (2, T) int64 features of the previous and of the new observation
    q: np.ndarray  # (2, A) their action values
    last: np.ndarray  # (2,) int64 previous action; 1 where a transition awaits the next episode's first state
    rate: np.ndarray  # (3,) rho, and reward and duration of the transition that waits
    clock: np.ndarray  # (1,) int64 steps learned from
    error: np.ndarray  # (1,) sum of absolute TD errors since it was last reported
    total: np.ndarray  # (F, A) integral of w for its average, (0, 0) where none is kept
    since: np.ndarray  # (F, A) step up to which `total` is complete
    schedule: Schedule
    eta: float  # step size of rho as a multiple of alpha; 0 for discounted values
    average_reward: bool


@lean
def observe(learner, obs):
    """Active tiles and action values of the new observation."""
    active(learner.tiles, obs, learner.active[1])
    linear_values(learner.w, learner.active[1], learner.q[1])


@lean
def choose(learner, rng):
    """Epsilon-greedy action at the new observation."""
    return epsilon_greedy(learner.q[1], exploration(learner.schedule, learner.clock[0]), rng)


@lean
def remember(learner, action):
    """The new observation becomes the previous one."""
    for t in range(learner.active.shape[1]):
        learner.active[0, t] = learner.active[1, t]
    learner.last[0] = action
    return action


@lean
def update(learner, error):
    """w[tile, a] += alpha / T * error for each of the T active tiles, and time goes on."""
    now, a = learner.clock[0], learner.last[0]
    alpha = step_size(learner.schedule, now)
    change = alpha / learner.active.shape[1] * error
    for t in range(learner.active.shape[1]):
        f = learner.active[0, t]
        if now >= learner.schedule.average_start:
            accumulate(learner.total, learner.since, learner.w, f, a, now, learner.schedule.average_start)
        learner.w[f, a] += change
    learner.rate[0] += learner.eta * alpha * error
    learner.clock[0] = now + 1
    learner.error[0] += abs(error)


@lean
def sarsa_bootstrap(q_tm1, a_tm1, r_t, discount_t, q_t, a_t, epsilon):
    return sarsa_error(q_tm1, a_tm1, r_t, discount_t, q_t, a_t)


@lean
def expected_sarsa_bootstrap(q_tm1, a_tm1, r_t, discount_t, q_t, a_t, epsilon):
    return expected_sarsa_error(q_tm1, a_tm1, r_t, discount_t, q_t, epsilon)


@lean
def q_learning_bootstrap(q_tm1, a_tm1, r_t, discount_t, q_t, a_t, epsilon):
    return q_learning_error(q_tm1, a_tm1, r_t, discount_t, q_t)


@lru_cache
def linear_rule(td_error):
    """begin and step of a linear agent with this TD error:  w += alpha / T * delta * x(s, a).

    Average-reward values have delta = td_error(r - rho * duration) and rho += eta * alpha * delta; the end of an episode is a
    renewal there, so its transition waits for the next episode's first state (as in `average_reward.py`).
    """

    @njit
    def learn(learner, reward, discount, duration, action):
        linear_values(learner.w, learner.active[0], learner.q[0])
        epsilon = exploration(learner.schedule, learner.clock[0])
        relative = reward - learner.rate[0] * duration
        update(learner, td_error(learner.q[0], learner.last[0], relative, discount, learner.q[1], action, epsilon))

    @njit
    def begin(learner, obs, rng):
        observe(learner, obs)
        action = choose(learner, rng)
        if learner.last[1] != 0:
            learner.last[1] = 0
            learn(learner, learner.rate[1], 1.0, learner.rate[2], action)
        return remember(learner, action)

    @njit
    def step(learner, reward, discount, obs, duration, rng):
        observe(learner, obs)
        action = choose(learner, rng)
        if learner.average_reward and discount == 0.0:
            learner.last[1], learner.rate[1], learner.rate[2] = 1, reward, duration
            return action  # what is remembered stays: begin learns from it
        learn(learner, reward, discount, duration, action)
        return remember(learner, action)

    return begin, step


@lean
def linear_decide(params, memory, obs):
    """Greedy action: params = (w (F, A), dims, edges, strides, offsets of a TileCoding), memory (A,) is scratch."""
    w, dims, edges, strides, offsets = params
    for a in range(len(memory)):
        memory[a] = 0.0
    for t in range(len(dims)):
        index = tile_index(dims, edges, strides, offsets, obs, t)
        for a in range(len(memory)):
            memory[a] += w[index, a]
    return first_greedy(memory)


@njit
def batch_values(w, tiles, observations, out):
    """(n, A) action values of (n, D) observations."""
    features = np.zeros(len(tiles.dims), np.int64)
    for i in range(len(observations)):
        active(tiles, observations[i], features)
        linear_values(w, features, out[i])


@dataclass(frozen=True)
class LinearSettings(StepSettings):
    """Hyper-parameters of a linear agent."""

    alpha: float = 0.1
    """Step size, in (0, 1]; each of the T active weights moves by alpha / T."""
    gamma: float = 1.0
    """Discount factor, in [0, 1]; 1 for average reward."""
    q_init: float = 0.0
    """Initial action values."""
    average_reward: bool = False
    """Learn values relative to the average reward per unit of time in place of discounted ones."""
    eta: float = 0.1
    """Step size of the rate rho as a multiple of alpha, for average reward."""
    rho_init: float = 0.0
    """First estimate of the reward per unit of time, for average reward."""
    bins: int = 8
    """Tiles across each dimension, where no `features` are given."""
    tilings: int = 8
    """Number of tilings, where no `features` are given."""

    def __post_init__(self):
        super().__post_init__()
        check("gamma", self.gamma, 0, 1)
        check("eta", self.eta, 0, 1e6)
        check("q_init", self.q_init, -1e300, 1e300)
        check("rho_init", self.rho_init, -1e300, 1e300)
        check("bins", self.bins, 1, 10_000)
        check("tilings", self.tilings, 1, 10_000)
        if self.average_reward and self.gamma != 1:
            raise SettingsError(f"average_reward has no discounting: gamma must be 1, got {self.gamma}")


class LinearAgent(Agent):
    """An agent with tile-coded linear action values, for Box observations and Discrete actions.

    :param features: a `TileCoding`; by default `uniform_tiles` over the bounds of the observation space
    """

    Settings = LinearSettings

    def __init__(self, env, *, seed: int | None = None, features: TileCoding | None = None, **hyperparameters):
        self.features = features
        super().__init__(env, seed=seed, **hyperparameters)

    @classmethod
    def check_spaces(cls, observation_space: spaces.Space, action_space: spaces.Space) -> None:
        if not isinstance(observation_space, spaces.Box) or len(observation_space.shape) != 1:
            way_out = (
                "use a tabular agent (q-learning)"
                if isinstance(observation_space, spaces.Discrete)
                else "wrap the env in FlattenObservation"
            )
            raise SpaceError(f"{cls.name} needs a Box observation space of one dimension, got {observation_space}: {way_out}")
        super().check_spaces(observation_space, action_space)

    def make_learner(self) -> LinearLearner:
        if self.features is None:
            self.features = default_tiles(self.observation_space, self.settings.bins, self.settings.tilings)
        tiles, settings = self.features, self.settings
        size = self.observation_space.shape[0]  # pyright: ignore[reportOptionalSubscript]
        if tiles.dims.max() >= size:
            raise SpaceError(f"features use dimension {tiles.dims.max()}, observations have {size} (counted from 0)")
        shape = (tiles.n_features, self.n_actions)
        averaged = shape if settings.average else (0, 0)
        return LinearLearner(
            w=np.full(shape, settings.q_init / tiles.n_tilings),
            tiles=tiles,
            active=np.zeros((2, tiles.n_tilings), np.int64),
            q=np.zeros((2, self.n_actions)),
            last=np.zeros(2, np.int64),
            rate=np.array([settings.rho_init if settings.average_reward else 0.0, 0.0, 0.0], np.float64),
            clock=np.zeros(1, np.int64),
            error=np.zeros(1),
            total=np.zeros(averaged),
            since=np.zeros(averaged),
            schedule=settings.schedule(),
            eta=float(settings.eta) if settings.average_reward else 0.0,
            average_reward=bool(settings.average_reward),
        )

    def settings_from(self, meta: dict[str, Any], arrays: dict[str, np.ndarray]) -> Any:
        self.features = TileCoding(*(arrays[f"learner.tiles.{name}"] for name in TileCoding._fields))
        return super().settings_from(meta, arrays)

    @property
    def table(self) -> LinearLearner:
        return self.learner

    @property
    def rho(self) -> float:
        """Estimated reward per unit of time, 0 for discounted values."""
        return float(self.learner.rate[0])

    def weights(self) -> np.ndarray:
        """(F, A) weights that `predict` serves: averaged over the last steps where `average` says so."""
        x = self.learner
        return average(x.w, x.total, x.since, float(x.clock[0]), x.schedule.average_start) if x.total.size else x.w

    def values(self, observations: np.ndarray) -> np.ndarray:
        """(n, A) action values of (n, D) observations."""
        out = np.zeros((len(observations), self.n_actions))
        batch_values(self.weights(), self.learner.tiles, np.ascontiguousarray(observations, np.float64), out)
        return out

    def policy(self) -> Decision:
        return Decision(linear_decide, (self.weights().copy(), *self.learner.tiles), np.zeros(self.n_actions))

    def blank_observation(self) -> np.ndarray:
        return np.zeros(self.observation_space.shape or ())

    def encode(self, obs: Any) -> np.ndarray:
        vector = np.array(obs, np.float64)
        if vector.shape != self.observation_space.shape:
            raise SpaceError(f"expected an observation of {self.observation_space}, got an array of shape {vector.shape}")
        return vector

    def batch(self, obs: Any) -> tuple[np.ndarray, bool]:
        vectors = np.asarray(obs, np.float64)
        shape = self.observation_space.shape or ()
        if vectors.shape[-1:] != shape or vectors.ndim > 2:
            raise SpaceError(f"expected observations of {self.observation_space}, got an array of shape {vectors.shape}")
        return vectors.reshape(-1, *shape), vectors.ndim == 1

    def greedy_actions(self, batch: np.ndarray) -> np.ndarray:
        return self.values(batch).argmax(axis=1)


def default_tiles(space: spaces.Space, bins: int, tilings: int) -> TileCoding:
    """`uniform_tiles` over a Box's bounds; SpaceError where one is infinite or there are too many tiles."""
    assert isinstance(space, spaces.Box)
    if not (np.isfinite(space.low).all() and np.isfinite(space.high).all()) or np.abs([space.low, space.high]).max() > 1e30:
        raise SpaceError(f"tiles need finite bounds, {space} has infinite ones: pass features=tile_coding(...) with bin edges")
    try:
        return uniform_tiles(space.low, space.high, bins=bins, tilings=tilings)
    except ValueError as error:
        raise SpaceError(f"{error}; or pass features=tile_coding(...) over fewer dimensions") from error


class LinearSarsa(LinearAgent):
    """Episodic or average-reward semi-gradient Sarsa (Sutton & Barto sec. 10.1 and 10.3)."""

    name = "linear-sarsa"
    begin_rule, step_rule = (staticmethod(cast(Callable, rule)) for rule in linear_rule(sarsa_bootstrap))


class LinearExpectedSarsa(LinearAgent):
    """Semi-gradient Expected Sarsa."""

    name = "linear-expected-sarsa"
    begin_rule, step_rule = (staticmethod(cast(Callable, rule)) for rule in linear_rule(expected_sarsa_bootstrap))


class LinearQ(LinearAgent):
    """Semi-gradient Q-learning; off-policy bootstrapping with linear values may diverge (Sutton & Barto sec. 11.3)."""

    name = "linear-q"
    begin_rule, step_rule = (staticmethod(cast(Callable, rule)) for rule in linear_rule(q_learning_bootstrap))
