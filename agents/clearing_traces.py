"""Sarsa(lambda) over sparse features with replacing traces that are cleared for the actions not taken (Singh & Sutton 1996)."""

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

from tdraft.kernels.jit import lean

from .linear import LinearSarsa, LinearSettings
from .linear_rules import LinearLearner
from .settings import SettingsError
from .traces import TINY, TRACE, settle


@lru_cache
def clearing_step(step):
    """The step of a rule with replacing traces, after z[f, b] = 0 for the active features f and all actions b not taken.

    :param step: of `traced_rule`
    """

    @lean
    def cleared(learner, reward, discount, obs, duration, rng):
        taken, pairs = learner.last[0], learner.traces.pairs
        for t in range(learner.active.shape[1]):
            f = learner.active[0, t]
            for b in range(pairs.shape[1]):
                if b != taken and pairs[f, b, TRACE] != 0.0:
                    settle(learner, f, b)
                    pairs[f, b, TRACE] = TINY  # which keeps its place in the list
        return step(learner, reward, discount, obs, duration, rng)

    return cleared


@dataclass(frozen=True)
class ClearingSettings(LinearSettings):
    """Hyper-parameters of Sarsa(lambda) with clearing; it has no average reward."""

    lambda_: float = 0.9
    """Decay of the eligibility traces beside gamma, in (0, 1]."""
    trace: Literal["accumulating", "replacing", "dutch"] = "replacing"
    """Kind of traces: replacing ones only."""

    def __post_init__(self):
        super().__post_init__()
        if not self.lambda_ * self.gamma or self.average_reward:
            raise SettingsError("clearing needs lambda_ and gamma above 0, and has no average reward: take linear-sarsa")


class LinearClearingSarsa(LinearSarsa):
    """Semi-gradient Sarsa(lambda), replacing traces with clearing (Singh & Sutton 1996; Sutton & Barto sec. 12.7)."""

    name = "linear-clearing-sarsa"
    Settings = ClearingSettings
    kinds = ("replacing",)

    def make_learner(self) -> LinearLearner:
        learner = super().make_learner()
        self.step_rule = clearing_step(self.step_rule)  # pyright: ignore[reportAttributeAccessIssue]
        return learner
