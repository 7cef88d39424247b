"""Advantage actor-critic over sparse binary features: a softmax policy and a state value, both linear.

    pi(a | s) = softmax_a of sum theta[f, a],   v(s) = sum w[f] over the active features f of s

    delta_t = r - rho * duration + discount * v(s') - v(s),   A_t = delta_t + discount * lambda * A_{t+1}
    w[f]        += alpha_w / T * A_t
    theta[f, a] += alpha / T * (A_t * (1[a = a_t] - pi(a)) - beta * pi(a) * (log pi(a) + H))

A policy gradient (Sutton & Barto sec. 13.5-13.6) with generalised advantages (Schulman et al. 2016, arXiv 1506.02438) over
segments of n steps (Mnih et al. 2016, arXiv 1602.01783) and an entropy bonus beta. Where features hide part of the state, action
values that bootstrap settle on another policy than the best of those that the features can tell; a policy gradient does not.
"""

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from tdraft.kernels.jit import lean
from tdraft.value.tables import sample, softmax

from .linear import LinearAgent
from .linear_rules import Features
from .settings import SettingsError, check


class Decay(NamedTuple):
    """A number that falls linearly over the horizon."""

    first: float
    change: float


class ActorCriticLearner(NamedTuple):
    """State of the agent: F features of which T are active, A actions, segments of n steps."""

    theta: np.ndarray  # (F, A) preferences
    w: np.ndarray  # (F,) state values
    features: Features
    active: np.ndarray  # (n + 1, T) int64 features of the segment's states
    policy: np.ndarray  # (n + 1, A) action probabilities there
    action: np.ndarray  # (n + 1,) int64 action taken there
    value: np.ndarray  # (n + 1,)
    reward: np.ndarray  # (n,)
    discount: np.ndarray  # (n,)
    duration: np.ndarray  # (n,)
    count: np.ndarray  # (2,) int64 transitions in the segment; 1 where one more awaits the next episode's first state
    rate: np.ndarray  # (3,) rho, and reward and duration of the transition that waits
    clock: np.ndarray  # (1,) int64 steps learned from
    error: np.ndarray  # (1,) sum of absolute TD errors since it was last reported
    alpha: Decay
    alpha_w: Decay
    beta: Decay
    pace: float  # 1 / horizon, 0 for none
    lambda_: float
    eta: float  # step size of rho as a multiple of the critic's; 0 for discounted values
    average_reward: bool


@lean
def now(decay, progress):
    return decay.first + decay.change * progress


@lean
def improve(learner, count):
    """Learn from the segment's first `count` transitions and empty it."""
    t_active, n_actions = learner.active.shape[1], learner.policy.shape[1]
    progress = min(1.0, learner.clock[0] * learner.pace)
    alpha, beta = now(learner.alpha, progress) / t_active, now(learner.beta, progress)
    alpha_w = now(learner.alpha_w, progress) / t_active
    advantage, drift = 0.0, 0.0
    for i in range(count - 1, -1, -1):
        p, chosen = learner.policy[i], learner.action[i]
        discount = learner.discount[i]
        relative = learner.reward[i] - learner.rate[0] * learner.duration[i]
        delta = relative + discount * learner.value[i + 1] - learner.value[i]
        advantage = delta + discount * learner.lambda_ * advantage
        drift += delta
        learner.error[0] += abs(delta)
        entropy = 0.0
        if beta > 0.0:
            for a in range(n_actions):
                entropy -= p[a] * math.log(p[a] + 1e-300)
        for a in range(n_actions):
            change = advantage * ((1.0 if a == chosen else 0.0) - p[a])
            if beta > 0.0:
                change -= beta * p[a] * (math.log(p[a] + 1e-300) + entropy)
            for t in range(t_active):
                learner.theta[learner.active[i, t], a] += alpha * change
        for t in range(t_active):
            learner.w[learner.active[i, t]] += alpha_w * advantage
    learner.rate[0] += learner.eta * alpha_w * t_active * drift
    learner.count[0] = 0


@lru_cache
def actor_critic_rule(rule) -> tuple[Any, Any]:
    """Compiled begin and step for features with this rule."""

    @lean
    def observe(learner, obs, row, rng):
        """Act at the observation, which becomes the segment's state `row`."""
        p, value = learner.policy[row], 0.0
        for a in range(len(p)):
            p[a] = 0.0
        for t in range(learner.active.shape[1]):
            f = rule(learner.features, obs, t)
            learner.active[row, t] = f
            value += learner.w[f]
            for a in range(len(p)):
                p[a] += learner.theta[f, a]
        learner.value[row] = value
        softmax(p, 1.0, p)
        learner.action[row] = sample(p, rng)
        return learner.action[row]

    @lean
    def restart(learner, row):
        """State `row` becomes the first of an empty segment."""
        for t in range(learner.active.shape[1]):
            learner.active[0, t] = learner.active[row, t]
        for a in range(learner.policy.shape[1]):
            learner.policy[0, a] = learner.policy[row, a]
        learner.action[0], learner.value[0] = learner.action[row], 0.0
        for t in range(learner.active.shape[1]):
            learner.value[0] += learner.w[learner.active[0, t]]

    @lean
    def arrive(learner, reward, discount, obs, duration, rng):
        i = learner.count[0]
        learner.reward[i], learner.discount[i], learner.duration[i] = reward, discount, duration
        action = observe(learner, obs, i + 1, rng)
        learner.count[0] = i + 1
        learner.clock[0] += 1
        if i + 1 == len(learner.reward):
            improve(learner, i + 1)
            restart(learner, i + 1)
        return action

    @lean
    def begin(learner, obs, rng):
        if learner.count[1] != 0:
            learner.count[1] = 0
            return arrive(learner, learner.rate[1], 1.0, obs, learner.rate[2], rng)
        improve(learner, learner.count[0])
        return observe(learner, obs, 0, rng)

    @lean
    def step(learner, reward, discount, obs, duration, rng):
        if learner.average_reward and discount == 0.0:
            learner.count[1], learner.rate[1], learner.rate[2] = 1, reward, duration
            return learner.action[learner.count[0]]
        return arrive(learner, reward, discount, obs, duration, rng)

    return begin, step


@dataclass(frozen=True)
class ActorCriticSettings:
    """Hyper-parameters of the actor-critic."""

    alpha: float = 0.1
    """Step size of the policy, > 0; each of the T active preferences moves by alpha / T."""
    alpha_final: float | None = None
    """Step size of the policy from step `horizon` on; by default alpha."""
    alpha_w: float = 0.1
    """Step size of the state values, in (0, 1]."""
    alpha_w_final: float | None = None
    """Step size of the state values from step `horizon` on; by default alpha_w."""
    beta: float = 0.01
    """Weight of the entropy bonus, >= 0, in units of the reward."""
    beta_final: float | None = None
    """Weight of the entropy bonus from step `horizon` on; by default beta."""
    horizon: int | None = None
    """Steps over which alpha, alpha_w and beta fall."""
    gamma: float = 0.99
    """Discount factor, in [0, 1]; 1 for average reward."""
    lambda_: float = 0.9
    """Decay of the advantage's look-ahead beside gamma, in [0, 1]."""
    n_steps: int = 64
    """Steps in a segment, at whose end the agent learns; an episode's end ends it too."""
    average_reward: bool = False
    """Learn values relative to the average reward per unit of time in place of discounted ones."""
    eta: float = 0.01
    """Step size of the rate rho as a multiple of alpha_w, for average reward."""
    rho_init: float = 0.0
    """First estimate of the reward per unit of time, for average reward."""
    bins: int = 8
    """Tiles across each dimension, where no `features` are given."""
    tilings: int = 8
    """Number of tilings, where no `features` are given."""

    def __post_init__(self):
        check("alpha", self.alpha, 0, 1e6, open_low=True)
        check("alpha_w", self.alpha_w, 0, 1, open_low=True)
        check("beta", self.beta, 0, 1e6)
        for name, high in (("alpha_final", 1e6), ("alpha_w_final", 1), ("beta_final", 1e6)):
            if getattr(self, name) is not None:
                check(name, getattr(self, name), 0, high)
                if self.horizon is None:
                    raise SettingsError(f"{name}={getattr(self, name)} needs horizon, the number of steps you mean to train for")
        if self.horizon is not None:
            check("horizon", self.horizon, 1, 1e15)
        check("gamma", self.gamma, 0, 1)
        check("lambda_", self.lambda_, 0, 1)
        check("n_steps", self.n_steps, 1, 100_000)
        check("eta", self.eta, 0, 1e6)
        check("rho_init", self.rho_init, -1e300, 1e300)
        check("bins", self.bins, 1, 10_000)
        check("tilings", self.tilings, 1, 10_000)
        if self.average_reward and self.gamma != 1:
            raise SettingsError(f"average_reward has no discounting: gamma must be 1, got {self.gamma}")


class ActorCritic(LinearAgent):
    """Advantage actor-critic with a linear softmax policy; spaces and `features` as `LinearAgent` has them.

    `weights` and `values` are the policy's preferences theta, and a greedy action is one of the largest preference.
    """

    name = "actor-critic"
    Settings = ActorCriticSettings

    def make_learner(self) -> Any:
        settings, features = self.settings, self.make_features()
        self.begin_rule, self.step_rule = actor_critic_rule(features.rule)  # pyright: ignore[reportAttributeAccessIssue]
        n, t, n_actions = settings.n_steps, features.n_active, self.n_actions
        decay = lambda name: Decay(  # noqa: E731
            float(getattr(settings, name)),
            0.0 if getattr(settings, f"{name}_final") is None else getattr(settings, f"{name}_final") - getattr(settings, name),
        )
        return ActorCriticLearner(
            theta=np.zeros((features.n_features, n_actions)),
            w=np.zeros(features.n_features),
            features=features,
            active=np.zeros((n + 1, t), np.int64),
            policy=np.full((n + 1, n_actions), 1.0 / n_actions),
            action=np.zeros(n + 1, np.int64),
            value=np.zeros(n + 1),
            reward=np.zeros(n),
            discount=np.zeros(n),
            duration=np.zeros(n),
            count=np.zeros(2, np.int64),
            rate=np.array([settings.rho_init if settings.average_reward else 0.0, 0.0, 0.0], np.float64),
            clock=np.zeros(1, np.int64),
            error=np.zeros(1),
            alpha=decay("alpha"),
            alpha_w=decay("alpha_w"),
            beta=decay("beta"),
            pace=1.0 / settings.horizon if settings.horizon else 0.0,
            lambda_=float(settings.lambda_),
            eta=float(settings.eta) if settings.average_reward else 0.0,
            average_reward=bool(settings.average_reward),
        )

    @property
    def epsilon(self) -> float:
        """Probability of an action that is not the likeliest, mean over the states of the last segment."""
        return float(1.0 - self.learner.policy.max(axis=1).mean())

    def weights(self) -> np.ndarray:
        return self.learner.theta

    def exploring_actions(self, batch: np.ndarray, greedy: np.ndarray) -> np.ndarray:
        probability = self.values(batch)
        for row in probability:
            softmax(row, 1.0, row)
        return np.array([sample(row, self.predict_rng) for row in probability], np.int64)
