"""Tabular planning from a learned model: Dyna-Q and Dyna-Q+ (Sutton 1990; Sutton & Barto sec. 8.2-8.3).

The model is a table of what each pair last brought, exact where the env is deterministic.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from tdraft.kernels.jit import lean
from tdraft.kernels.rng import randint
from tdraft.value.targets import q_learning_error

from .settings import SettingsError, check, step_size
from .table_rules import TableLearner, begin, tick, write
from .tabular import TableSettings, TabularAgent


class Model(NamedTuple):
    """What each pair last brought."""

    following: np.ndarray  # (S, A) int64 next state
    reward: np.ndarray  # (S, A)
    discount: np.ndarray  # (S, A) gamma, or 0 where the episode terminated
    tried: np.ndarray  # (S, A) int64 step of the last try, from 1; 0 for never


class DynaLearner(NamedTuple):
    """A table, a model and what to plan with: a state drawn from those known, then an action drawn from its own."""

    table: TableLearner
    model: Model
    known: np.ndarray  # (S,) int64 states that planning draws from, in the order of their first visit
    actions: np.ndarray  # (S, A) int64 the actions that it draws from in each, in the order of getting to know them
    choices: np.ndarray  # (S,) int64 how many actions there are in each
    count: np.ndarray  # (2,) int64 how many known states there are; updates of the table so far
    planning: int  # updates from the model a step
    kappa: float  # Dyna-Q+'s bonus per square root of a step
    gamma: float


@lean
def note(model, s, a, reward, discount, obs, now):
    """The model learns what (s, a) brought at step `now`."""
    model.following[s, a], model.reward[s, a], model.discount[s, a], model.tried[s, a] = obs, reward, discount, now


@lean
def know(learner, s, a):
    """Planning may draw this pair."""
    k = learner.choices[s]
    if k == 0:
        learner.known[learner.count[0]] = s
        learner.count[0] += 1
    learner.actions[s, k] = a
    learner.choices[s] = k + 1


@lean
def dyna_begin(learner, obs, rng):
    """The first action of an episode."""
    return begin(learner.table, obs, rng)


@lru_cache
def dyna_rule(plus: bool):
    """A step of Dyna-Q: Q-learning from the transition, then from `planning` pairs drawn from the model.

    As in the book's box, a pair is a state drawn from those visited, then an action drawn from those taken in it. That is not
    uniform over the pairs: an action that is alone in its state comes up more often than one of four.

    :param plus: Dyna-Q+: the model's rewards have a bonus kappa * sqrt(steps since the pair was tried), and of a visited state
        the actions never tried count too, as leading back to it with reward 0 (Sutton & Barto sec. 8.3 and its footnote)
    """

    @lean
    def meet(learner, s, a):
        """Planning gets to know the pair, or all pairs of its state, at the first time."""
        model = learner.model
        if plus:
            if learner.choices[s] != 0:
                return
            for b in range(model.tried.shape[1]):
                know(learner, s, b)
                model.following[s, b], model.reward[s, b], model.discount[s, b] = s, 0.0, learner.gamma
        elif model.tried[s, a] == 0:
            know(learner, s, a)

    @lean
    def step(learner, reward, discount, obs, duration, rng):
        table, model = learner.table, learner.model
        s, a = table.last[0], table.last[1]
        now, alpha = table.clock[0] + 1, step_size(table.schedule, table.clock[0])
        surprise = q_learning_error(table.q[s], a, reward, discount, table.q[obs])
        write(table, s, a, table.q[s, a] + alpha * surprise)
        meet(learner, s, a)
        note(model, s, a, reward, discount, obs, now)
        for _ in range(learner.planning):
            s = learner.known[randint(rng, learner.count[0])]
            a = learner.actions[s, randint(rng, learner.choices[s])]
            r = model.reward[s, a]
            if plus:
                r += learner.kappa * np.sqrt(now - model.tried[s, a])
            error = q_learning_error(table.q[s], a, r, model.discount[s, a], table.q[model.following[s, a]])
            write(table, s, a, table.q[s, a] + alpha * error)
        learner.count[1] += 1 + learner.planning
        tick(table, surprise)
        return begin(table, obs, rng)

    return step


@dataclass(frozen=True)
class DynaSettings(TableSettings):
    """Hyper-parameters of Dyna-Q."""

    planning: int = 5
    """Updates from the model after each step; 0 is Q-learning."""

    def __post_init__(self):
        super().__post_init__()
        check("planning", self.planning, 0, 1e9)
        if not isinstance(self.planning, int):
            raise SettingsError(f"planning must be an integer, got {self.planning!r}")


@dataclass(frozen=True)
class DynaPlusSettings(DynaSettings):
    """Hyper-parameters of Dyna-Q+."""

    kappa: float = 1e-3
    """Bonus reward per square root of a step since a pair was tried, >= 0."""

    def __post_init__(self):
        super().__post_init__()
        check("kappa", self.kappa, 0, 1e300)


def new_model(shape: tuple[int, int]) -> Model:
    """A model that knows nothing, for (S, A)."""
    return Model(np.zeros(shape, np.int64), np.zeros(shape), np.zeros(shape), np.zeros(shape, np.int64))


class DynaQ(TabularAgent):
    """Dyna-Q (Sutton 1990; Sutton & Barto sec. 8.2)."""

    name = "dyna-q"
    Settings = DynaSettings
    begin_rule = staticmethod(dyna_begin)
    step_rule = staticmethod(dyna_rule(False))

    def make_learner(self) -> Any:
        table = self.table_learner()
        return DynaLearner(
            table=table,
            model=new_model(table.q.shape),  # pyright: ignore[reportArgumentType]
            known=np.zeros(len(table.q), np.int64),
            actions=np.zeros(table.q.shape, np.int64),
            choices=np.zeros(len(table.q), np.int64),
            count=np.zeros(2, np.int64),
            planning=int(self.settings.planning),
            kappa=float(getattr(self.settings, "kappa", 0.0)),
            gamma=float(self.settings.gamma),
        )

    @property
    def table(self) -> TableLearner:
        return self.learner.table

    @property
    def updates(self) -> int:
        """Updates of the table so far, from transitions and from the model."""
        return int(self.learner.count[1])


class DynaQPlus(DynaQ):
    """Dyna-Q+ (Sutton 1990; Sutton & Barto sec. 8.3): tries again what it has not tried for long."""

    name = "dyna-q-plus"
    Settings = DynaPlusSettings
    step_rule = staticmethod(dyna_rule(True))
