"""Gradient TD, which converges off-policy with any linear features: GTD2 and TDC (Sutton et al. 2009; S&B sec. 11.7)."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from tdraft.kernels.jit import lean
from tdraft.value.features import StateFeatures, add_features, state_value

from ..settings import check
from .base import Prediction, PredictionSettings, act, ratio, tick, value


class Auxiliary(NamedTuple):
    """The second estimate: u . x(s) is about the expected TD error in s."""

    u: np.ndarray  # (F,)
    beta: float


@lean
def gtd2_step(learner, reward, discount, obs, duration, rng):
    """w += alpha rho (x - gamma x') (u.x);   u += beta rho (delta - u.x) x   (Sutton & Barto sec. 11.7)."""
    features, state, rho, aside = learner.features, learner.last[0], ratio(learner), learner.memory
    error = reward + discount * value(learner, obs) - value(learner, state)
    expected = state_value(aside.u, features, state)
    change = tick(learner, error) * rho * expected
    add_features(learner.w, features, state, change)
    add_features(learner.w, features, obs, -discount * change)
    add_features(aside.u, features, state, aside.beta * rho * (error - expected))
    return act(learner, obs, rng)


@lean
def tdc_step(learner, reward, discount, obs, duration, rng):
    """w += alpha rho (delta x - gamma x' (u.x));   u += beta rho (delta - u.x) x   (Sutton & Barto sec. 11.7)."""
    features, state, rho, aside = learner.features, learner.last[0], ratio(learner), learner.memory
    error = reward + discount * value(learner, obs) - value(learner, state)
    expected = state_value(aside.u, features, state)
    change = tick(learner, error) * rho
    add_features(learner.w, features, state, change * error)
    add_features(learner.w, features, obs, -discount * change * expected)
    add_features(aside.u, features, state, aside.beta * rho * (error - expected))
    return act(learner, obs, rng)


@dataclass(frozen=True)
class GradientSettings(PredictionSettings):
    beta: float = 0.1
    """Step size of the second estimate, in (0, 1]."""

    def __post_init__(self):
        super().__post_init__()
        check("beta", self.beta, 0, 1, open_low=True)


class GTD2(Prediction):
    """GTD2 (Sutton et al. 2009; Sutton & Barto sec. 11.7)."""

    name = "gtd2-prediction"
    Settings = GradientSettings
    begin_rule = staticmethod(act)
    step_rule = staticmethod(gtd2_step)

    def make_memory(self, features: StateFeatures) -> Auxiliary:
        return Auxiliary(np.zeros(features.n_features), float(self.settings.beta))


class TDC(GTD2):
    """TD(0) with gradient correction, TDC or GTD(0) (Sutton et al. 2009; Sutton & Barto sec. 11.7)."""

    name = "tdc-prediction"
    step_rule = staticmethod(tdc_step)
