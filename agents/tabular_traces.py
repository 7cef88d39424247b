"""Tabular control with eligibility traces: Sarsa(lambda) and Watkins's Q(lambda).

    delta = r + discount * q' - q[s, a],    q += alpha * delta * e,    e *= gamma * lambda

The pairs that have a trace stand in a list, so that a step touches those alone; a trace below NEGLIGIBLE is dropped.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from tdraft.kernels.jit import lean
from tdraft.value.targets import largest, q_learning_error, sarsa_error

from .settings import SettingsError, check, step_size
from .table_rules import TableLearner, act, remember, tick, write
from .tabular import TableSettings, TabularAgent

NEGLIGIBLE = 1e-12  # traces that are dropped; an error of this times the sum of all later |alpha * delta|


class TraceLearner(NamedTuple):
    """A table and the traces of at most all of its pairs."""

    table: TableLearner
    pairs: np.ndarray  # (S * A, 2) int64 states and actions that have a trace
    trace: np.ndarray  # (S * A,) their traces
    place: np.ndarray  # (S, A) int64 index in `pairs`, -1 where there is no trace
    count: np.ndarray  # (1,) int64 how many there are
    q_old: np.ndarray  # (1,) value of the pair remembered, before the last update
    decay: float  # gamma * lambda


@lean
def forget(learner):
    """No traces."""
    for i in range(learner.count[0]):
        learner.place[learner.pairs[i, 0], learner.pairs[i, 1]] = -1
    learner.count[0] = 0


@lean
def enlist(learner, s, a):
    """Index of the pair in the list; a new one has trace 0."""
    i = learner.place[s, a]
    if i < 0:
        i = learner.count[0]
        learner.count[0] = i + 1
        learner.place[s, a], learner.trace[i] = i, 0.0
        learner.pairs[i, 0], learner.pairs[i, 1] = s, a
    return i


@lean
def sweep(learner, change):
    """q += change * e for every pair with a trace, then e *= decay."""
    q, kept, count = learner.table.q, 0, learner.count[0]
    for i in range(count):
        s, a, trace = learner.pairs[i, 0], learner.pairs[i, 1], learner.trace[i]
        write(learner.table, s, a, q[s, a] + change * trace)
        trace *= learner.decay
        if trace > NEGLIGIBLE:
            learner.trace[kept], learner.pairs[kept, 0], learner.pairs[kept, 1] = trace, s, a
            learner.place[s, a] = kept
            kept += 1
        else:
            learner.place[s, a] = -1
    learner.count[0] = kept


@lru_cache
def trace_rule(trace: str, watkins: bool):
    """begin and step of an agent with traces.

    accumulating: e[s, a] += 1;  replacing: e[s, a] = 1   (Sutton & Barto sec. 12.2, 12.7)
    dutch: e[s, a] = (1 - alpha) * e[s, a] + 1, and corrections by q_old: true online Sarsa(lambda) with one-hot features
    (van Seijen et al. 2016; Sutton & Barto sec. 12.5, 12.7)

    :param watkins: Q-learning's error, and no traces after an action that isn't greedy (Watkins 1989; Sutton & Barto sec. 12.10);
        it learns before it acts
    """
    dutch, replacing = trace == "dutch", trace == "replacing"

    @lean
    def learn(learner, error, s, a):
        """One update of every traced pair from the error of this one."""
        table = learner.table
        alpha, i = step_size(table.schedule, table.clock[0]), enlist(learner, s, a)
        if replacing:
            learner.trace[i] = 1.0
        elif dutch:
            learner.trace[i] = (1.0 - alpha) * learner.trace[i] + 1.0
        else:
            learner.trace[i] += 1.0
        if dutch:
            surprise = table.q[s, a] - learner.q_old[0]
            write(table, s, a, table.q[s, a] - alpha * surprise)
            sweep(learner, alpha * (error + surprise))
        else:
            sweep(learner, alpha * error)
        tick(table, error)

    @lean
    def begin(learner, obs, rng):
        forget(learner)
        action = act(learner.table, obs, rng)
        if dutch:
            learner.q_old[0] = learner.table.q[obs, action]
        return remember(learner.table, obs, action)

    @lean
    def sarsa_step(learner, reward, discount, obs, duration, rng):
        table = learner.table
        s, a = table.last[0], table.last[1]
        action = act(table, obs, rng)
        value = table.q[obs, action]
        learn(learner, sarsa_error(table.q[s], a, reward, discount, table.q[obs], action), s, a)
        learner.q_old[0] = value
        return remember(table, obs, action)

    @lean
    def watkins_step(learner, reward, discount, obs, duration, rng):
        table = learner.table
        s, a = table.last[0], table.last[1]
        learn(learner, q_learning_error(table.q[s], a, reward, discount, table.q[obs]), s, a)
        action = act(table, obs, rng)
        if table.q[obs, action] < largest(table.q[obs]):
            forget(learner)
        return remember(table, obs, action)

    return begin, watkins_step if watkins else sarsa_step


@dataclass(frozen=True)
class TraceSettings(TableSettings):
    """Hyper-parameters of a tabular agent with traces."""

    lambda_: float = 0.9
    """Decay of the traces beside gamma, in [0, 1]; 0 is the one-step agent."""
    trace: str = "replacing"
    """"accumulating", "replacing" or, for Sarsa, "dutch": true online Sarsa(lambda)."""

    def __post_init__(self):
        super().__post_init__()
        check("lambda_", self.lambda_, 0, 1)
        if self.trace not in ("accumulating", "replacing", "dutch"):
            raise SettingsError(f'trace must be "accumulating", "replacing" or "dutch", got {self.trace!r}')


class SarsaLambda(TabularAgent):
    """Tabular Sarsa(lambda) (Rummery & Niranjan 1994; Sutton & Barto sec. 12.7)."""

    name = "sarsa-lambda"
    Settings = TraceSettings
    watkins = False

    def make_learner(self) -> Any:
        if self.watkins and self.settings.trace == "dutch":
            raise SettingsError(f'trace of {self.name} must be "accumulating" or "replacing": dutch traces need Sarsa\'s error')
        rules = trace_rule(self.settings.trace, self.watkins)
        self.begin_rule, self.step_rule = rules  # pyright: ignore[reportAttributeAccessIssue]
        table = self.table_learner()
        return TraceLearner(
            table=table,
            pairs=np.zeros((table.q.size, 2), np.int64),
            trace=np.zeros(table.q.size),
            place=np.full(table.q.shape, -1),
            count=np.zeros(1, np.int64),
            q_old=np.zeros(1),
            decay=float(self.settings.gamma * self.settings.lambda_),
        )

    @property
    def table(self) -> TableLearner:
        return self.learner.table


class WatkinsQ(SarsaLambda):
    """Watkins's Q(lambda) (Watkins 1989; Sutton & Barto sec. 12.10): Q-learning with traces up to the first exploring action."""

    name = "q-lambda"
    watkins = True
