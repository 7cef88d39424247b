"""Prioritised sweeping (Moore & Atkeson 1993; Peng & Williams 1993; Sutton & Barto sec. 8.4): planning where values change most.

    P = |r + discount * max_b q[s', b] - q[s, a]|;  where P > theta the pair enters a heap, and up to `planning` times a step the
    pair of largest P is updated and the pairs that lead to its state enter in turn

The model is deterministic: what a pair last brought. So each pair leads to one state at a time, and the pairs that lead to a
state are a linked list: S * A links are enough for all.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from tdraft.kernels.heap import Heap, new_heap, pop, raise_to
from tdraft.kernels.jit import lean
from tdraft.value.targets import discounted_return, largest, q_learning_error

from .dyna import DynaSettings, Model, new_model, note
from .settings import check, step_size
from .table_rules import TableLearner, begin, tick, write
from .tabular import TabularAgent


class Predecessors(NamedTuple):
    """For each state a doubly linked list of the pairs s * A + a that lead to it; -1 ends a list."""

    first: np.ndarray  # (S,) int64
    after: np.ndarray  # (S * A,) int64
    before: np.ndarray  # (S * A,) int64


class SweepingLearner(NamedTuple):
    """A table, a model, who leads where, and the pairs by priority."""

    table: TableLearner
    model: Model
    leading: Predecessors
    heap: Heap
    updates: np.ndarray  # (1,) int64 updates of the table so far
    planning: int
    theta: float


@lean
def link(leading, pair, state):
    """The pair leads to this state now."""
    old = leading.first[state]
    leading.after[pair], leading.before[pair], leading.first[state] = old, -1, pair
    if old >= 0:
        leading.before[old] = pair


@lean
def unlink(leading, pair, state):
    """The pair leads to this state no more."""
    after, before = leading.after[pair], leading.before[pair]
    if before >= 0:
        leading.after[before] = after
    else:
        leading.first[state] = after
    if after >= 0:
        leading.before[after] = before


@lean
def model_error(learner, s, a):
    """Q-learning's error of a pair by the model."""
    q, model = learner.table.q, learner.model
    return q_learning_error(q[s], a, model.reward[s, a], model.discount[s, a], q[np.uint64(model.following[s, a])])


@lean
def observe(learner, s, a, reward, discount, obs):
    """The model learns what a pair brought."""
    model, pair = learner.model, s * learner.model.reward.shape[1] + a
    if model.tried[s, a] != 0 and model.following[s, a] != obs:
        unlink(learner.leading, pair, model.following[s, a])
    if model.tried[s, a] == 0 or model.following[s, a] != obs:
        link(learner.leading, pair, obs)
    note(model, s, a, reward, discount, obs, learner.table.clock[0] + 1)


@lean
def sweeping_begin(learner, obs, rng):
    """The first action of an episode."""
    return begin(learner.table, obs, rng)


@lean
def sweeping_step(learner, reward, discount, obs, duration, rng):
    """The model learns from the transition and the table from the model, in the order of the priorities."""
    table, model, leading, heap = learner.table, learner.model, learner.leading, learner.heap
    n_actions = table.q.shape[1]
    s, a = table.last[0], table.last[1]
    observe(learner, s, a, reward, discount, obs)
    error = model_error(learner, s, a)
    if abs(error) > learner.theta:
        raise_to(heap, s * n_actions + a, abs(error))
    alpha, done, width = step_size(table.schedule, table.clock[0]), 0, np.uint64(n_actions)
    while done < learner.planning and heap.size[0] > 0:
        pair = np.uint64(pop(heap))  # unsigned, as in `table_rules`, and faster to divide
        state = pair // width
        action = pair - state * width
        write(table, state, action, table.q[state, action] + alpha * model_error(learner, state, action))
        best, other = largest(table.q[state]), leading.first[state]
        while other >= 0:
            pair = np.uint64(other)
            before = pair // width
            b = pair - before * width
            priority = abs(discounted_return(model.reward[before, b], model.discount[before, b], best) - table.q[before, b])
            if priority > learner.theta:
                raise_to(heap, other, priority)
            other = leading.after[pair]
        done += 1
    learner.updates[0] += done
    tick(table, error)
    return begin(table, obs, rng)


@dataclass(frozen=True)
class SweepingSettings(DynaSettings):
    """Hyper-parameters of prioritised sweeping."""

    theta: float = 1e-4
    """Smallest change worth an update, >= 0."""

    def __post_init__(self):
        super().__post_init__()
        check("theta", self.theta, 0, 1e300)
        check("planning", self.planning, 1, 1e9)


class PrioritisedSweeping(TabularAgent):
    """Prioritised sweeping for a deterministic environment (Sutton & Barto sec. 8.4)."""

    name = "prioritised-sweeping"
    Settings = SweepingSettings
    begin_rule = staticmethod(sweeping_begin)
    step_rule = staticmethod(sweeping_step)

    def make_learner(self) -> Any:
        table = self.table_learner()
        n_states, n_pairs = table.q.shape[0], table.q.size
        return SweepingLearner(
            table=table,
            model=new_model(table.q.shape),  # pyright: ignore[reportArgumentType]
            leading=Predecessors(np.full(n_states, -1), np.full(n_pairs, -1), np.full(n_pairs, -1)),
            heap=new_heap(n_pairs),
            updates=np.zeros(1, np.int64),
            planning=int(self.settings.planning),
            theta=float(self.settings.theta),
        )

    @property
    def table(self) -> TableLearner:
        return self.learner.table

    @property
    def updates(self) -> int:
        """Updates of the table so far."""
        return int(self.learner.updates[0])
