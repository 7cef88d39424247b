"""Tabular n-step control: Sarsa, Expected Sarsa, off-policy Sarsa, tree backup and Q(sigma) (Sutton & Barto ch. 7).

The last n transitions lie in a ring. When it is full its oldest pair is updated towards the return of n rewards and the value of
the newest state; at the end of an episode every pair that waits is, oldest first: with nothing after a termination, with the
value of the last state seen after a truncation. A step costs O(n), as all returns are worked out from the values as they stand.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar, NamedTuple

import numpy as np

from tdraft.kernels.jit import lean
from tdraft.value.targets import (
    controlled_q_sigma_value,
    discounted_return,
    expected_value,
    greedy_probability,
    q_sigma_value,
    tree_backup_value,
)

from .settings import SettingsError, check, exploration
from .table_rules import TableLearner, act, update
from .tabular import TableSettings, TabularAgent

HEAD, COUNT = range(2)


class NStepLearner(NamedTuple):
    """A table and a ring of n + 1 places: those of the transitions that wait and of the newest state."""

    table: TableLearner
    state: np.ndarray  # (n + 1,) int64
    action: np.ndarray  # (n + 1,) int64 action taken there
    chance: np.ndarray  # (n + 1,) probability with which it was taken, where a rule asks for it
    reward: np.ndarray  # (n + 1,) what it brought
    discount: np.ndarray  # (n + 1,)
    where: np.ndarray  # (2,) int64 place of the newest state, transitions that wait
    sigma: float
    epsilon_target: float  # of the target policy, below 0 for that of the policy that acts


@lean
def target_epsilon(learner):
    epsilon = exploration(learner.table.schedule, learner.table.clock[0])
    return epsilon if learner.epsilon_target < 0.0 else learner.epsilon_target


# How returns go back through a state: (learner, place in the ring, return that followed, is it the newest state) -> value.


@lean
def sarsa_back(learner, i, g, newest):
    return g


@lean
def expected_sarsa_back(learner, i, g, newest):
    return expected_value(learner.table.q[learner.state[i]], target_epsilon(learner)) if newest else g


@lean
def tree_back(learner, i, g, newest):
    q = learner.table.q[learner.state[i]]
    if newest:
        return expected_value(q, target_epsilon(learner))
    return tree_backup_value(q, learner.action[i], g, target_epsilon(learner))


@lean
def q_sigma_back(learner, i, g, newest):
    return q_sigma_value(learner.table.q[learner.state[i]], learner.action[i], g, learner.sigma, target_epsilon(learner))


@lean
def importance(learner, i):
    """pi(a | s) / b(a | s) of a place: pi by the values as they stand, b as it was."""
    q = learner.table.q[learner.state[i]]
    return greedy_probability(q, learner.action[i], target_epsilon(learner)) / learner.chance[i]


@lean
def controlled_q_sigma_back(learner, i, g, newest):
    q, rho = learner.table.q[learner.state[i]], importance(learner, i)
    return controlled_q_sigma_value(q, learner.action[i], g, learner.sigma, rho, target_epsilon(learner))


@lru_cache
def n_step_rule(back, act_first: bool, weighted: bool, chances: bool):
    """begin and step of an n-step agent:  q[s, a] += alpha * (G - q[s, a]).

    :param back: one of the functions above
    :param act_first: the return needs the newest action; otherwise the agent learns before it acts
    :param weighted: multiply the change by the ratios of all later actions: rho_{t+1:t+n} (Sutton & Barto eq. 7.11)
    :param chances: keep the probabilities of the actions
    """

    @lean
    def learn(learner, head, count):
        """Update the pair `count` places before the newest state."""
        q, i, g, rho = learner.table.q, head, 0.0, 1.0
        if act_first:
            g = q[learner.state[head], learner.action[head]]
        for _ in range(count):
            g = back(learner, i, g, i == head)
            before = i - 1 if i > 0 else len(learner.state) - 1
            if weighted and learner.discount[before] != 0.0:  # a terminal state has no action
                rho *= importance(learner, i)
            i = before
            g = discounted_return(learner.reward[i], learner.discount[i], g)
        s, a = learner.state[i], learner.action[i]
        error = g - q[s, a]
        update(learner.table, s, a, rho * error if weighted else error)

    @lean
    def choose(learner, place, rng):
        obs = learner.state[place]
        action = act(learner.table, obs, rng)
        learner.action[place] = action
        if chances:
            epsilon = exploration(learner.table.schedule, learner.table.clock[0])
            learner.chance[place] = greedy_probability(learner.table.q[obs], action, epsilon)
        return action

    @lean
    def begin(learner, obs, rng):
        head = learner.where[HEAD]
        for count in range(learner.where[COUNT], 0, -1):
            learn(learner, head, count)
        learner.where[COUNT] = 0
        learner.state[head] = obs
        return choose(learner, head, rng)

    @lean
    def step(learner, reward, discount, obs, duration, rng):
        last = learner.where[HEAD]
        learner.reward[last], learner.discount[last] = reward, discount
        head = last + 1 if last + 1 < len(learner.state) else 0
        count = learner.where[COUNT] + 1
        learner.state[head] = obs
        action = 0
        if act_first:
            action = choose(learner, head, rng)
        least = 0 if discount == 0.0 else len(learner.state) - 2
        while count > least:
            learn(learner, head, count)
            count -= 1
        if not act_first:
            action = choose(learner, head, rng)
        learner.where[HEAD], learner.where[COUNT] = head, count
        return action

    return begin, step


@dataclass(frozen=True)
class NStepSettings(TableSettings):
    """Hyper-parameters of an on-policy n-step agent."""

    n: int = 4
    """Rewards in a return, from 1; where it exceeds the episode's length the return is complete, as in Monte Carlo."""

    def __post_init__(self):
        super().__post_init__()
        check("n", self.n, 1, 10_000_000)
        if not isinstance(self.n, int):
            raise SettingsError(f"n must be an integer, got {self.n!r}")


@dataclass(frozen=True)
class TargetSettings(NStepSettings):
    """Hyper-parameters of an n-step agent that may learn about another policy than it follows."""

    epsilon_target: float | None = None
    """Exploration of the policy learned about, in [0, 1]; by default that of the policy that acts."""

    def __post_init__(self):
        super().__post_init__()
        if self.epsilon_target is not None:
            check("epsilon_target", self.epsilon_target, 0, 1)


@dataclass(frozen=True)
class OffPolicySettings(TargetSettings):
    """Hyper-parameters of off-policy n-step Sarsa."""

    epsilon_target: float | None = 0.0
    """Exploration of the policy learned about, in [0, 1]; None for that of the policy that acts."""


@dataclass(frozen=True)
class QSigmaSettings(TargetSettings):
    """Hyper-parameters of n-step Q(sigma)."""

    sigma: float = 0.5
    """Degree of sampling, in [0, 1]: 1 for Sarsa, 0 for the tree backup."""
    control_variate: bool = True
    """As in Sutton & Barto eq. 7.17, which may be off-policy; without, as De Asis et al. (2018): sigma = 1 is n-step Sarsa."""

    def __post_init__(self):
        super().__post_init__()
        check("sigma", self.sigma, 0, 1)
        if self.epsilon_target is not None and not self.control_variate:
            raise SettingsError("epsilon_target needs control_variate=True: without it Q(sigma) learns on-policy only")


class NStepSarsa(TabularAgent):
    """n-step Sarsa (Sutton & Barto sec. 7.2): G = r_1 + gamma * r_2 + ... + gamma^n * q(s_n, a_n)."""

    name = "n-step-sarsa"
    Settings = NStepSettings
    rules: ClassVar[tuple[Any, bool, bool, bool]] = (sarsa_back, True, False, False)  # of `n_step_rule`

    def make_learner(self) -> Any:
        self.begin_rule, self.step_rule = n_step_rule(*self.rule())  # pyright: ignore[reportAttributeAccessIssue]
        target, size = getattr(self.settings, "epsilon_target", None), self.settings.n + 1
        return NStepLearner(
            table=self.table_learner(),
            state=np.zeros(size, np.int64),
            action=np.zeros(size, np.int64),
            chance=np.ones(size),
            reward=np.zeros(size),
            discount=np.zeros(size),
            where=np.zeros(2, np.int64),
            sigma=float(getattr(self.settings, "sigma", 1.0)),
            epsilon_target=-1.0 if target is None else float(target),
        )

    def rule(self) -> tuple[Any, bool, bool, bool]:
        return self.rules

    @property
    def table(self) -> TableLearner:
        return self.learner.table


class NStepExpectedSarsa(NStepSarsa):
    """n-step Expected Sarsa (Sutton & Barto eq. 7.7): n-step Sarsa's return that ends in sum_a pi(a) q(s_n, a)."""

    name = "n-step-expected-sarsa"
    rules = (expected_sarsa_back, False, False, False)


class OffPolicyNStepSarsa(NStepSarsa):
    """Off-policy n-step Sarsa (Sutton & Barto sec. 7.3): q[s, a] += alpha * rho_{t+1:t+n} * (G - q[s, a])."""

    name = "off-policy-n-step-sarsa"
    Settings = OffPolicySettings
    rules = (sarsa_back, True, True, True)


class TreeBackup(NStepSarsa):
    """n-step tree backup (Precup, Sutton & Singh 2000; Sutton & Barto sec. 7.5): off-policy without importance sampling."""

    name = "tree-backup"
    Settings = TargetSettings
    rules = (tree_back, False, False, False)


class QSigma(NStepSarsa):
    """n-step Q(sigma) (De Asis et al. 2018; Sutton & Barto sec. 7.6): between Sarsa and the tree backup, sigma constant."""

    name = "q-sigma"
    Settings = QSigmaSettings

    def rule(self) -> tuple[Any, bool, bool, bool]:
        if self.settings.sigma == 0:
            return TreeBackup.rules
        if self.settings.control_variate:
            return controlled_q_sigma_back, True, False, True
        return q_sigma_back, True, False, False
