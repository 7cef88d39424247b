"""Prediction: estimating the values v(s) = w . x(s) of a given policy, on the loop that control agents train on.

A predictor is an agent whose actions come from a fixed policy. It may follow one policy, the behaviour, and evaluate another, the
target: then each action carries its importance ratio rho = target / behaviour. With the default features, one a state, v is a
table. Every rule is written once for all features.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple, get_args

import numpy as np
from gymnasium import spaces
from numpy.typing import ArrayLike

from tdraft.envs.compiled import draw
from tdraft.kernels.jit import lean
from tdraft.value.features import FourierBasis, StateFeatures, one_hot, state_features, state_value

from ..base import Agent, Decision
from ..checkpoint import CheckpointError
from ..checks import SpaceError, check_observation, check_vectors
from ..linear import default_tiles
from ..linear_rules import Features
from ..settings import Schedule, SettingsError, check, step_size
from ..tabular import table_decide
from .policies import constant_decide, padded, probabilities, ratios
from .vectors import Source, blank_rows, over_vectors, value_rule, vector_values


class Predictor(NamedTuple):
    """State of a predictor: S states, A actions, F features."""

    w: np.ndarray  # (F,) weights
    features: StateFeatures
    target: np.ndarray  # (S, A) probabilities of the policy that is evaluated
    behaviour: np.ndarray  # (S, A) cumulated probabilities of the policy that acts
    ratios: np.ndarray  # (S, A) target / behaviour, 0 where the behaviour never goes
    last: np.ndarray  # (2,) int64 previous state and action
    clock: np.ndarray  # (1,) int64 updates made
    error: np.ndarray  # (1,) sum of absolute errors since it was last reported
    schedule: Schedule
    memory: Any  # what the method keeps beside: a NamedTuple of arrays and numbers, or ()
    source: Any  # of vector observations: a `vectors.Source`, and S is the number of rows; else ()


@lean
def act(learner, obs, rng):
    """Remember the state and the behaviour's action there; a single action takes no random number."""
    action = draw(learner.behaviour[obs], rng) if learner.behaviour.shape[1] > 1 else 0
    learner.last[0], learner.last[1] = obs, action
    return action


@lean
def ratio(learner):
    """rho of the last action."""
    return learner.ratios[learner.last[0], learner.last[1]]


@lean
def value(learner, state):
    return state_value(learner.w, learner.features, state)


@lean
def tick(learner, error):
    """Count an update and its error; returns the step size for it."""
    alpha = step_size(learner.schedule, learner.clock[0])
    learner.clock[0] += 1
    learner.error[0] += abs(error)
    return alpha


@dataclass(frozen=True)
class PredictionSettings:
    """Hyper-parameters of every predictor."""

    alpha: float | None = 0.1
    """Step size, in (0, 1]."""
    alpha_final: float | None = None
    """Step size after `horizon` updates, to which it falls linearly; by default alpha."""
    horizon: int | None = None
    """Updates over which alpha falls."""
    gamma: float = 1.0
    """Discount factor, in [0, 1]."""
    v_init: float = 0.0
    """Initial weights: the initial values, where features are one-hot or groups."""

    def __post_init__(self):
        if self.alpha is None:
            raise SettingsError("alpha must be in (0, 1], got None")
        self.check_shared()

    def check_shared(self):
        if self.alpha is not None:
            check("alpha", self.alpha, 0, 1, open_low=True)
        if self.alpha_final is not None:
            check("alpha_final", self.alpha_final, 0, 1)
            if self.horizon is None or self.alpha is None:
                raise SettingsError(f"alpha_final={self.alpha_final} needs alpha, and horizon, the updates over which it falls")
        if self.horizon is not None:
            check("horizon", self.horizon, 1, 1e15)
        check("gamma", self.gamma, 0, 1)
        check("v_init", self.v_init, -1e300, 1e300)

    def schedule(self) -> Schedule:
        alpha = 0.0 if self.alpha is None else float(self.alpha)
        change = 0.0 if self.alpha_final is None else self.alpha_final - alpha
        return Schedule(alpha, change, 0.0, 0.0, 1.0 / self.horizon if self.horizon else 0.0, float("inf"))


class Prediction(Agent):
    """An agent that follows a fixed policy and learns values, for Discrete observations or vectors.

    :param policy: the policy to evaluate: (S, A) probabilities, (A,) where they are the same everywhere, or what `agent.policy()`
        returns; uniform by default. With vectors one of the last three
    :param behaviour: the policy that acts, likewise (with vectors (A,) only); `policy` by default
    :param features: `StateFeatures`, or a matrix X (S, F), one-hot by default; states beyond its rows have no features: value 0.
        For vectors a `TileCoding`, `PeriodicTiles`, `HashedFeatures` or `FourierBasis`, by default `uniform_tiles`
    :raises SettingsError: probabilities that do not sum to 1, or a behaviour that never does what the policy does
    :raises SpaceError: spaces of another kind, or features that do not fit them
    """

    Settings = PredictionSettings
    learner: Predictor
    on_policy_only = False
    rows = 3  # of vector observations that the rule remembers, and two more

    def __init__(
        self,
        env,
        *,
        policy: ArrayLike | Decision | None = None,
        behaviour: ArrayLike | Decision | None = None,
        features: Any = None,
        seed: int | None = None,
        **hyperparameters,
    ):
        self._given: tuple[Any, Any, Any] = (policy, behaviour, features)
        super().__init__(env, seed=seed, **hyperparameters)

    @classmethod
    def check_spaces(cls, observation_space: spaces.Space, action_space: spaces.Space) -> None:
        vector = isinstance(observation_space, spaces.Box) and len(observation_space.shape) == 1
        if not vector and not isinstance(observation_space, spaces.Discrete):
            raise SpaceError(f"{cls.name} needs Discrete observations or a Box of one dimension, got {observation_space}")
        super().check_spaces(observation_space, action_space)

    @property
    def is_vector(self) -> bool:
        return isinstance(self.observation_space, spaces.Box)

    def make_learner(self) -> Predictor:
        policy, behaviour, features = self._given
        space, source, decided = self.observation_space, (), None
        if self.is_vector:
            decided = policy if isinstance(policy, Decision) else None
            if isinstance(behaviour, Decision) or (decided and behaviour is not None):
                raise SettingsError("off-policy over vectors, policy and behaviour must be (A,) probabilities")
            given = default_tiles(space, 8, 8) if features is None else features
            if not isinstance(given, Features | FourierBasis) or given.n_inputs > space.shape[0]:  # pyright: ignore[reportOptionalSubscript]
                raise SpaceError(
                    f"features must be a TileCoding or one of its kind, or a FourierBasis, over {space}, got {given}"
                )
            params, memory = (decided.params, decided.memory.copy()) if decided else ((), np.zeros(0))
            source, features = Source(given, np.zeros(1, np.int64), params, memory), blank_rows(given, self.rows)
            rules = type(self).begin_rule, type(self).step_rule, given.rule, value_rule(given), decided and decided.decide
            self.begin_rule, self.step_rule = over_vectors(*rules)  # pyright: ignore[reportAttributeAccessIssue]
        else:
            n_states = int(space.n)  # pyright: ignore[reportAttributeAccessIssue]
            if not isinstance(features, StateFeatures):
                features = one_hot(n_states) if features is None else state_features(features)
            features = padded(features, n_states)
        shape = (len(features.index), self.n_actions)
        target = probabilities("policy", None if decided else policy, shape)
        acting = target if behaviour is None else probabilities("behaviour", behaviour, shape)
        if self.on_policy_only and not np.array_equal(acting, target):
            raise SettingsError(f"{self.name} with these settings learns on-policy: leave out behaviour")
        return Predictor(
            w=np.full(features.n_features, float(self.settings.v_init)),
            features=features,
            target=target,
            behaviour=np.cumsum(acting, axis=1),
            ratios=ratios(target, acting),
            last=np.zeros(2, np.int64),
            clock=np.zeros(1, np.int64),
            error=np.zeros(1),
            schedule=self.settings.schedule(),
            memory=self.make_memory(features),
            source=source,
        )

    def make_memory(self, features: StateFeatures) -> Any:
        """What the method keeps beside the weights."""
        return ()

    def settings_from(self, meta: dict[str, Any], arrays: dict[str, np.ndarray]) -> Any:
        if any(name.startswith("learner.source.params") for name in arrays):
            raise CheckpointError(
                "this predictor follows another agent's policy, which its checkpoint does not hold: make it anew"
            )
        target = arrays["learner.target"]
        acting = np.diff(arrays["learner.behaviour"], axis=1, prepend=0.0)
        acting = target if np.allclose(acting, target, atol=1e-12) else acting
        prefix = "learner.source.features."
        stored = {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}
        if stored:
            kind = next(k for k in (*get_args(Features), FourierBasis) if set(k._fields) == stored.keys())
            self._given = (target[0], acting[0], kind(**stored))
        else:
            parts = arrays["learner.features.index"], arrays["learner.features.value"]
            self._given = (target, acting, StateFeatures(*parts, len(arrays["learner.w"])))
        return super().settings_from(meta, arrays)

    @property
    def table(self) -> Predictor:
        return self.learner

    @property
    def w(self) -> np.ndarray:
        """(F,) weights."""
        return self.learner.w

    @property
    def v(self) -> np.ndarray:
        """(S,) estimated values; that of a terminal state means nothing."""
        if self.is_vector:
            raise SpaceError("observations are vectors, not numbered states: use values(observations)")
        features = self.learner.features
        return (self.w[features.index] * features.value).sum(axis=1)

    def values(self, observations: Any) -> np.ndarray:
        """(n,) estimated values of n observations."""
        batch, _ = self.batch(observations)
        return vector_values(self.w, self.learner.source.features, batch) if self.is_vector else self.v[batch]

    def policy(self) -> Decision:
        """The policy that is evaluated, its likeliest action; the lowest where there are several."""
        if self.is_vector:
            given = self._given[0]
            return given if isinstance(given, Decision) else Decision(constant_decide, (self.learner.target[0],), np.zeros(1))
        return Decision(table_decide, (self.learner.target,), np.zeros(1))

    def blank_observation(self) -> Any:
        space = self.observation_space
        return np.zeros(space.shape) if isinstance(space, spaces.Box) else 0

    def encode(self, obs: Any) -> Any:
        space = self.observation_space
        if isinstance(space, spaces.Discrete):
            return check_observation(space, obs) - int(space.start)
        vector = np.array(obs, np.float64)
        if vector.shape != space.shape:
            raise SpaceError(f"expected an observation of {space}, got an array of shape {vector.shape}")
        return check_vectors(space, vector)

    def batch(self, obs: Any) -> tuple[np.ndarray, bool]:
        array, inner = np.asarray(obs), 1 if self.is_vector else 0
        if array.ndim not in (inner, inner + 1):
            raise SpaceError(f"expected observations of {self.observation_space}, got an array of shape {array.shape}")
        single = array.ndim == inner
        return np.array([self.encode(x) for x in (array[None] if single else array)]), single

    def greedy_actions(self, batch: np.ndarray) -> np.ndarray:
        decide, params, memory = self.policy()
        return np.array([decide(params, memory, obs) for obs in batch], np.int64)

    def exploring_actions(self, batch: np.ndarray, greedy: np.ndarray) -> np.ndarray:
        """(n,) actions of the behaviour policy."""
        if self.is_vector and isinstance(self._given[0], Decision):
            return greedy
        rows = np.zeros(len(batch), np.int64) if self.is_vector else batch
        return np.array([draw(self.learner.behaviour[row], self.predict_rng) for row in rows], np.int64)
