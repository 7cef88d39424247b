"""Prediction with eligibility traces: TD(lambda), true online TD(lambda) and emphatic TD(lambda)."""

from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

from tdraft.kernels.jit import lean
from tdraft.value.features import StateFeatures, add_features, state_value

from ..settings import SettingsError, check
from .base import Prediction, PredictionSettings, act, ratio, tick, value

TRACES = ("accumulating", "replacing", "dutch")
DECAY, V_OLD, FOLLOW_ON = range(3)


class Traces(NamedTuple):
    """Eligibility of each weight."""

    z: np.ndarray  # (F,)
    carried: np.ndarray  # (3,) gamma * lambda of the last transition; v of its end before the update; gamma * rho * follow-on
    lambda_: float
    kind: int  # index into TRACES


@lean
def begin(learner, obs, rng):
    """Traces are zero at the start of an episode."""
    traces = learner.memory
    traces.z[:] = 0.0
    traces.carried[:] = 0.0
    return act(learner, obs, rng)


@lean
def scale(z, factor):
    for i in range(len(z)):
        z[i] *= factor


@lean
def move(w, z, change):
    """w += change * z."""
    for i in range(len(w)):
        w[i] += change * z[i]


@lean
def td_lambda_step(learner, reward, discount, obs, duration, rng):
    """w += alpha * delta * z, with delta = r + discount * v(s') - v(s)   (Sutton & Barto sec. 12.2) and

    accumulating   z = rho * (gamma lambda z + x(s))                           (eq. 12.5, 12.25)
    replacing      z = gamma lambda z, then z_i = x_i(s) where that is not 0    (Singh & Sutton 1996; eq. 12.12)
    dutch          z = gamma lambda z + (1 - alpha gamma lambda z.x(s)) x(s)    (eq. 12.11)
    """
    traces, features, state = learner.memory, learner.features, learner.last[0]
    z, decay = traces.z, traces.carried[DECAY]
    error = reward + discount * value(learner, obs) - value(learner, state)
    alpha = tick(learner, error)
    scale(z, decay)
    if traces.kind == 1:
        for t in range(features.index.shape[1]):
            if features.value[state, t] != 0.0:
                z[features.index[state, t]] = features.value[state, t]
    else:
        overlap = alpha * state_value(z, features, state) if traces.kind == 2 else 0.0
        add_features(z, features, state, 1.0 - overlap)
        scale(z, ratio(learner))
    move(learner.w, z, alpha * error)
    traces.carried[DECAY] = discount * traces.lambda_
    return act(learner, obs, rng)


@lean
def true_online_step(learner, reward, discount, obs, duration, rng):
    """z = gamma lambda z + (1 - alpha gamma lambda z.x) x;   w += alpha (delta + v(s) - v_old) z - alpha (v(s) - v_old) x

    with v_old the value of s before the last update: exactly the online lambda-return algorithm (van Seijen & Sutton 2014;
    Sutton & Barto sec. 12.5).
    """
    traces, features, state = learner.memory, learner.features, learner.last[0]
    z, following, now = traces.z, value(learner, obs), value(learner, state)
    error = reward + discount * following - now
    alpha = tick(learner, error)
    surprise = now - traces.carried[V_OLD] if traces.carried[DECAY] > 0.0 else 0.0
    scale(z, traces.carried[DECAY])
    add_features(z, features, state, 1.0 - alpha * state_value(z, features, state))
    move(learner.w, z, alpha * (error + surprise))
    add_features(learner.w, features, state, -alpha * surprise)
    traces.carried[DECAY], traces.carried[V_OLD] = discount * traces.lambda_, following
    return act(learner, obs, rng)


@lean
def emphatic_step(learner, reward, discount, obs, duration, rng):
    """F = gamma rho_{t-1} F + 1;  M = lambda + (1 - lambda) F;  z = rho (gamma lambda z + M x(s));  w += alpha * delta * z

    (Sutton, Mahmood & White 2016; Sutton & Barto sec. 11.8, 12.11), with an interest of 1 in every state.
    """
    traces, state, rho = learner.memory, learner.last[0], ratio(learner)
    error = reward + discount * value(learner, obs) - value(learner, state)
    alpha = tick(learner, error)
    follow_on = traces.carried[FOLLOW_ON] + 1.0
    scale(traces.z, traces.carried[DECAY])
    add_features(traces.z, learner.features, state, traces.lambda_ + (1.0 - traces.lambda_) * follow_on)
    scale(traces.z, rho)
    move(learner.w, traces.z, alpha * error)
    traces.carried[DECAY], traces.carried[FOLLOW_ON] = discount * traces.lambda_, discount * rho * follow_on
    return act(learner, obs, rng)


@dataclass(frozen=True)
class LambdaSettings(PredictionSettings):
    lambda_: float = 0.9
    """Decay of the traces beside gamma, in [0, 1]."""

    def __post_init__(self):
        super().__post_init__()
        check("lambda_", self.lambda_, 0, 1)


@dataclass(frozen=True)
class TracesSettings(LambdaSettings):
    trace: Literal["accumulating", "replacing", "dutch"] = "accumulating"
    """Kind of traces; off-policy only accumulating ones."""

    def __post_init__(self):
        super().__post_init__()
        if self.trace not in TRACES:
            raise SettingsError(f"trace must be one of {', '.join(TRACES)}, got {self.trace!r}")


class _Traced(Prediction):
    Settings = LambdaSettings
    begin_rule = staticmethod(begin)

    def make_memory(self, features: StateFeatures) -> Traces:
        kind = TRACES.index(getattr(self.settings, "trace", "accumulating"))
        return Traces(np.zeros(features.n_features), np.zeros(3), float(self.settings.lambda_), kind)


class TDLambda(_Traced):
    """TD(lambda) (Sutton 1988; Sutton & Barto sec. 12.2, off-policy 12.9) with accumulating, replacing or dutch traces."""

    name = "td-lambda-prediction"
    Settings = TracesSettings
    step_rule = staticmethod(td_lambda_step)

    @property
    def on_policy_only(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.settings.trace != "accumulating"


class TrueOnlineTD(_Traced):
    """True online TD(lambda) (van Seijen & Sutton 2014; Sutton & Barto sec. 12.5)."""

    name = "true-online-td-prediction"
    step_rule = staticmethod(true_online_step)
    on_policy_only = True


class EmphaticTD(_Traced):
    """Emphatic TD(lambda) (Sutton, Mahmood & White 2016; Sutton & Barto sec. 11.8)."""

    name = "emphatic-td-prediction"
    step_rule = staticmethod(emphatic_step)
