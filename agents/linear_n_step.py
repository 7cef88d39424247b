"""n-step semi-gradient Sarsa over sparse binary features (Sutton & Barto sec. 10.2).

The last n transitions lie in a ring. When it is full its oldest pair is updated towards the return of n rewards and the value of
the newest pair; at the end of an episode every pair that waits is, oldest first: with nothing after a termination, with the value
of the last pair after a truncation. With n = 1 it is `LinearSarsa`, bit for bit.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from tdraft.kernels.jit import lean
from tdraft.value.tables import average
from tdraft.value.targets import discounted_return
from tdraft.value.tiles import linear_value, linear_values

from .linear import LinearSarsa, LinearSettings
from .linear_rules import LinearLearner, choose, update
from .settings import SettingsError, check

HEAD, COUNT = range(2)


class Ring(NamedTuple):
    """n + 1 places: those of the transitions that wait and of the newest pair."""

    features: np.ndarray  # (n + 1, T) int64 active features
    action: np.ndarray  # (n + 1,) int64 action taken there
    reward: np.ndarray  # (n + 1,) what it brought
    discount: np.ndarray  # (n + 1,)
    where: np.ndarray  # (2,) int64 place of the newest pair, transitions that wait


@lru_cache
def linear_n_step_rule(rule):
    """begin and step:  w += alpha / T * (G - q(s, a)) * x(s, a),  G = r_1 + gamma r_2 + ... + gamma^n q(s_n, a_n)   (eq. 10.4).

    :param rule: of the features
    """

    @lean
    def learn(learner, head, count):
        """Update the pair `count` places before the newest one."""
        ring = learner.traces
        i, g = head, linear_value(learner.w, ring.features[head], ring.action[head])
        for _ in range(count):
            i = i - 1 if i > 0 else len(ring.action) - 1
            g = discounted_return(ring.reward[i], ring.discount[i], g)
        for t in range(learner.active.shape[1]):
            learner.active[0, t] = ring.features[i, t]
        learner.last[0] = ring.action[i]
        update(learner, g - linear_value(learner.w, ring.features[i], ring.action[i]))

    @lean
    def enter(learner, place, obs, rng):
        """The new observation goes to a place of the ring, with the action taken there."""
        ring = learner.traces
        for t in range(learner.active.shape[1]):
            f = rule(learner.features, obs, t)
            learner.active[1, t], ring.features[place, t] = f, f
        linear_values(learner.w, learner.active[1], learner.q[1])
        action = choose(learner, rng)
        ring.action[place] = action
        return action

    @lean
    def begin(learner, obs, rng):
        where = learner.traces.where
        for count in range(where[COUNT], 0, -1):
            learn(learner, where[HEAD], count)
        where[COUNT] = 0
        return enter(learner, where[HEAD], obs, rng)

    @lean
    def step(learner, reward, discount, obs, duration, rng):
        ring = learner.traces
        last, count = ring.where[HEAD], ring.where[COUNT] + 1
        ring.reward[last], ring.discount[last] = reward, discount
        head = last + 1 if last + 1 < len(ring.action) else 0
        action = enter(learner, head, obs, rng)
        least = 0 if discount == 0.0 else len(ring.action) - 2
        while count > least:
            learn(learner, head, count)
            count -= 1
        ring.where[HEAD], ring.where[COUNT] = head, count
        return action

    return begin, step


@dataclass(frozen=True)
class LinearNStepSettings(LinearSettings):
    """Hyper-parameters of n-step Sarsa over features; it has neither traces nor average reward."""

    n: int = 4
    """Rewards in a return, from 1."""

    def __post_init__(self):
        super().__post_init__()
        check("n", self.n, 1, 10_000_000)
        if not isinstance(self.n, int):
            raise SettingsError(f"n must be an integer, got {self.n!r}")
        if self.lambda_ or self.average_reward:
            raise SettingsError("n-step Sarsa has neither traces nor average reward: take linear-sarsa for those")


class LinearNStepSarsa(LinearSarsa):
    """n-step semi-gradient Sarsa (Sutton & Barto sec. 10.2)."""

    name = "linear-n-step-sarsa"
    Settings = LinearNStepSettings

    def make_learner(self) -> LinearLearner:
        learner, size = super().make_learner(), self.settings.n + 1
        self.begin_rule, self.step_rule = linear_n_step_rule(learner.features.rule)  # pyright: ignore[reportAttributeAccessIssue]
        return learner._replace(
            traces=Ring(
                features=np.zeros((size, learner.active.shape[1]), np.int64),
                action=np.zeros(size, np.int64),
                reward=np.zeros(size),
                discount=np.zeros(size),
                where=np.zeros(2, np.int64),
            )
        )

    def weights(self) -> np.ndarray:
        """(F, A) weights that `predict` serves: averaged over the last steps where `average` says so."""
        x = self.learner
        return average(x.w, x.total, x.since, float(x.clock[0]), x.schedule.average_start) if x.total.size else x.w
