"""Linear control: Sarsa, Expected Sarsa and Q-learning over sparse binary features, one-step or with eligibility traces."""

from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar, Literal, cast, get_args

import numpy as np
from gymnasium import spaces
from numba import njit

from tdraft.kernels.jit import lean
from tdraft.value.tables import average, first_greedy
from tdraft.value.tiles import TileCoding, uniform_tiles

from .base import Agent, Decision
from .checkpoint import CheckpointError
from .checks import SpaceError, check_vectors
from .linear_rules import (
    Features,
    LinearLearner,
    expected_sarsa_bootstrap,
    one_step_rule,
    q_learning_bootstrap,
    sarsa_bootstrap,
)
from .settings import SettingsError, StepSettings, check
from .traces import new_traces, settled, traced_rule

TRACES = ("accumulating", "replacing", "dutch")
PARTS = ("vector", "tokens")  # of a dict observation, in the order in which features see them


def readers_of(add_up) -> tuple[Any, Any]:
    """Two compiled readers of weights for a compiled `add_up(w, features, obs, out)`, which fills out (A,) with action values.

    :return: `decide(params, memory, obs)`, the greedy action, where params = (w, features) and memory (A,) is scratch; and
        `values(w, features, observations, out)`, which fills out (n, A) from observations (n, D)
    """

    @lean
    def decide(params, memory, obs):
        add_up(params[0], params[1], obs, memory)
        return first_greedy(memory)

    @njit
    def values(w, features, observations, out):
        for i in range(len(observations)):
            add_up(w, features, observations[i], out[i])

    return decide, values


@lru_cache
def readers(rule) -> tuple[Any, Any]:
    """`readers_of` weights w (F, A) for features with this rule."""

    @lean
    def add_up(w, features, obs, out):
        for a in range(len(out)):
            out[a] = 0.0
        for t in range(len(features.dims)):
            index = rule(features, obs, t)
            for a in range(len(out)):
                out[a] += w[index, a]

    return readers_of(add_up)


@dataclass(frozen=True)
class LinearSettings(StepSettings):
    """Hyper-parameters of a linear agent."""

    largest_alpha: ClassVar[float] = 2.0  # at 2 a step leaves an error as large as it found

    alpha: float = 0.1
    """Step size, in (0, 2]; each of the T active weights moves by alpha / T, so that above 1 a step overshoots its target."""
    gamma: float = 1.0
    """Discount factor, in [0, 1]; 1 for average reward."""
    q_init: float = 0.0
    """Initial action values."""
    lambda_: float = 0.0
    """Decay of the eligibility traces beside gamma, in [0, 1]; 0 for one-step learning."""
    trace: Literal["accumulating", "replacing", "dutch"] = "accumulating"
    """Kind of traces; dutch ones make Sarsa the true online Sarsa(lambda), the other agents have none."""
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
        check("lambda_", self.lambda_, 0, 1)
        if self.trace not in TRACES:
            raise SettingsError(f"trace must be one of {', '.join(TRACES)}, got {self.trace!r}")
        check("eta", self.eta, 0, 1e6)
        check("q_init", self.q_init, -1e300, 1e300)
        check("rho_init", self.rho_init, -1e300, 1e300)
        check("bins", self.bins, 1, 10_000)
        check("tilings", self.tilings, 1, 10_000)
        if self.average_reward and self.gamma != 1:
            raise SettingsError(f"average_reward has no discounting: gamma must be 1, got {self.gamma}")


class LinearAgent(Agent):
    """An agent whose action values are linear in sparse binary features, for Discrete actions.

    Observations are vectors (a Box of one dimension), or dicts of a vector and of tokens as Draft-v0 gives them with
    `observe="tokens"`: `{"vector": Box (n,), "tokens": MultiDiscrete (k,)}`. The features see those as one vector of n + k
    entries, first the vector's.

    :param features: a `TileCoding`, `PeriodicTiles` or `HashedFeatures`; by default `uniform_tiles` over the bounds of a Box
    :raises SpaceError: spaces of another kind, features of dimensions that the observation lacks, no default for the space
    """

    Settings = LinearSettings
    bootstrap: ClassVar[Any]  # compiled (q_tm1, a_tm1, r_t, discount_t, q_t, a_t, epsilon) -> error
    kinds: ClassVar[tuple[str, ...]] = TRACES[:2]  # of traces that the rule has
    cut: ClassVar[bool] = False  # zero the traces after an action that isn't greedy

    def __init__(self, env, *, seed: int | None = None, features: Features | None = None, **hyperparameters):
        self.features = features
        super().__init__(env, seed=seed, **hyperparameters)

    @classmethod
    def check_spaces(cls, observation_space: spaces.Space, action_space: spaces.Space) -> None:
        if n_inputs(observation_space) is None:
            way_out = (
                "use a tabular agent (q-learning)"
                if isinstance(observation_space, spaces.Discrete)
                else "wrap the env in FlattenObservation"
            )
            raise SpaceError(
                f"{cls.name} needs a Box observation space of one dimension, or a Dict of such a vector and of tokens, "
                f"got {observation_space}: {way_out}"
            )
        super().check_spaces(observation_space, action_space)

    def make_learner(self) -> LinearLearner:
        settings = self.settings
        if settings.trace not in self.kinds:
            raise SettingsError(f"{self.name} has no {settings.trace} traces: trace must be one of {', '.join(self.kinds)}")
        features = self.make_features()
        shape, decay = (features.n_features, self.n_actions), settings.gamma * settings.lambda_
        averaged = shape if settings.average else (0, 0)
        rules = (
            traced_rule(features.rule, self.bootstrap, settings.trace, self.cut)
            if decay
            else one_step_rule(features.rule, self.bootstrap)
        )
        self.begin_rule, self.step_rule = rules  # pyright: ignore[reportAttributeAccessIssue]  they depend on the settings here
        return LinearLearner(
            w=np.full(shape, settings.q_init / features.n_active),
            features=features,
            active=np.zeros((2, features.n_active), np.int64),
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
            traces=new_traces(shape, features.n_active, decay, bool(settings.average)) if decay else (),
        )

    def make_features(self) -> Features:
        """`features` as they were given, or else tiles over the observation's bounds."""
        if self.features is None:
            self.features = default_tiles(self.observation_space, self.settings.bins, self.settings.tilings)
        if not isinstance(self.features, Features):
            raise SpaceError(
                f"features must be a TileCoding, PeriodicTiles or HashedFeatures, got {type(self.features).__name__}"
            )
        if self.features.n_inputs > self.n_inputs:
            raise SpaceError(
                f"features use dimension {self.features.n_inputs - 1}, observations have {self.n_inputs} (counted from 0)"
            )
        return self.features

    def settings_from(self, meta: dict[str, Any], arrays: dict[str, np.ndarray]) -> Any:
        prefix = "learner.features."
        stored = {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}
        kind = next((kind for kind in get_args(Features) if set(kind._fields) == stored.keys()), None)
        if kind is None:
            raise CheckpointError(f"the checkpoint holds no features that this version knows, only {sorted(stored)}: train again")
        self.features = kind(**stored)
        return super().settings_from(meta, arrays)

    @property
    def table(self) -> LinearLearner:
        return self.learner

    @property
    def n_inputs(self) -> int:
        """Length of an observation as the features see it."""
        return cast(int, n_inputs(self.observation_space))

    @property
    def rho(self) -> float:
        """Estimated reward per unit of time, 0 for discounted values."""
        return float(self.learner.rate[0])

    def weights(self) -> np.ndarray:
        """(F, A) weights that `predict` serves: averaged over the last steps where `average` says so."""
        x = self.learner
        w, total, since = settled(x) if x.traces and x.traces.count[0] else (x.w, x.total, x.since)
        return average(w, total, since, float(x.clock[0]), x.schedule.average_start) if total.size else w

    def values(self, observations: np.ndarray) -> np.ndarray:
        """(n, A) action values of (n, D) observations, tokens behind the vector."""
        out, x = np.zeros((len(observations), self.n_actions)), self.learner
        readers(x.features.rule)[1](self.weights(), x.features, np.ascontiguousarray(observations, np.float64), out)
        return out

    def policy(self) -> Decision:
        features = self.learner.features
        return Decision(readers(features.rule)[0], cast(Any, (self.weights().copy(), features)), np.zeros(self.n_actions))

    def blank_observation(self) -> np.ndarray:
        return np.zeros(self.n_inputs)

    def encode(self, obs: Any) -> np.ndarray:
        vector = self._joined(obs)
        if vector.shape != (self.n_inputs,):
            raise SpaceError(f"expected an observation of {self.observation_space}, got an array of shape {vector.shape}")
        return check_vectors(self.observation_space, vector)

    def batch(self, obs: Any) -> tuple[np.ndarray, bool]:
        vectors = self._joined(obs)
        if vectors.shape[-1:] != (self.n_inputs,) or vectors.ndim > 2:
            raise SpaceError(f"expected observations of {self.observation_space}, got an array of shape {vectors.shape}")
        return check_vectors(self.observation_space, vectors.reshape(-1, self.n_inputs)), vectors.ndim == 1

    def _joined(self, obs: Any) -> np.ndarray:
        """A copy as float64; the parts of a dict one behind the other."""
        if not isinstance(self.observation_space, spaces.Dict):
            return np.array(obs, np.float64)
        parts = [np.asarray(obs[key], np.float64) for key in PARTS] if isinstance(obs, dict) and obs.keys() >= set(PARTS) else []
        if not parts or parts[0].ndim == 0 or parts[0].shape[:-1] != parts[1].shape[:-1]:
            raise SpaceError(f"expected an observation of {self.observation_space}, got {obs!r}")
        return np.concatenate(parts, axis=-1)

    def greedy_actions(self, batch: np.ndarray) -> np.ndarray:
        return self.values(batch).argmax(axis=1)


def n_inputs(space: spaces.Space) -> int | None:
    """Length of an observation as the features see it, None where the space is neither a vector nor a vector with tokens."""
    if isinstance(space, spaces.Box) and len(space.shape) == 1:
        return space.shape[0]
    if isinstance(space, spaces.Dict) and set(space.spaces) == set(PARTS):
        vector, tokens = (space[key] for key in PARTS)
        if (
            isinstance(vector, spaces.Box)
            and isinstance(tokens, spaces.MultiDiscrete)
            and len(vector.shape) == len(tokens.shape) == 1
        ):
            return vector.shape[0] + tokens.shape[0]
    return None


def default_tiles(space: spaces.Space, bins: int, tilings: int) -> TileCoding:
    """`uniform_tiles` over a Box's bounds; SpaceError where there are none, one is infinite or there are too many tiles."""
    if not isinstance(space, spaces.Box):
        raise SpaceError(f"tiles by default need a Box, got {space}: pass features=hashed_features(edges, tokens=...)")
    if not (np.isfinite(space.low).all() and np.isfinite(space.high).all()) or np.abs([space.low, space.high]).max() > 1e30:
        raise SpaceError(f"tiles need finite bounds, {space} has infinite ones: pass features=tile_coding(...) with bin edges")
    try:
        return uniform_tiles(space.low, space.high, bins=bins, tilings=tilings)
    except ValueError as error:
        raise SpaceError(f"{error}; or pass features=tile_coding(...) over fewer dimensions") from error


class LinearSarsa(LinearAgent):
    """Semi-gradient Sarsa(lambda) (Sutton & Barto sec. 10.1, 10.3, 12.7), with dutch traces the true online one."""

    name = "linear-sarsa"
    bootstrap = staticmethod(sarsa_bootstrap)
    kinds = TRACES


class LinearExpectedSarsa(LinearAgent):
    """Semi-gradient Expected Sarsa(lambda) (Sutton & Barto sec. 12.9; on-policy, so all importance ratios are 1)."""

    name = "linear-expected-sarsa"
    bootstrap = staticmethod(expected_sarsa_bootstrap)


class LinearQ(LinearAgent):
    """Semi-gradient Q-learning, with traces Watkins's Q(lambda) (Sutton & Barto sec. 11.3, 12.10); it may diverge off-policy."""

    name = "linear-q"
    bootstrap = staticmethod(q_learning_bootstrap)
    cut = True
