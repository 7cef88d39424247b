"""Tabular one-step control: Q-learning, Sarsa and Expected Sarsa; what every agent with a table shares."""

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from gymnasium import spaces
from numba import njit

from tdraft.value.tables import average, first_greedy

from .base import Agent, Decision, SpaceError, check_observation
from .behaviours import BEHAVIOURS, DECAYS, VisitLearner, behaved_rule, exponent
from .settings import SettingsError, StepSettings, check
from .table_rules import TableLearner, begin, expected_sarsa_step, q_learning_step, sarsa_step


@njit
def table_decide(params, memory, obs):
    """Greedy action of a table: params = (q,) with q (S, A), obs the state; memory is not used."""
    return first_greedy(params[0][int(obs)])


@dataclass(frozen=True)
class TableSettings(StepSettings):
    """Hyper-parameters of a tabular agent."""

    gamma: float = 1.0
    """Discount factor, in [0, 1]."""
    q_init: float = 0.0
    """Initial action values."""

    def __post_init__(self):
        super().__post_init__()
        check("gamma", self.gamma, 0, 1)
        check("q_init", self.q_init, -1e300, 1e300)


class TabularAgent(Agent):
    """An agent with a table of action values, for Discrete observations and actions."""

    Settings = TableSettings
    begin_rule = staticmethod(begin)
    learner: Any

    @classmethod
    def check_spaces(cls, observation_space: spaces.Space, action_space: spaces.Space) -> None:
        if not isinstance(observation_space, spaces.Discrete):
            raise SpaceError(
                f"{cls.name} needs a Discrete observation space, got {observation_space}: use an agent with features "
                "(linear-sarsa), or wrap the env so that an observation is one integer"
            )
        super().check_spaces(observation_space, action_space)

    def table_learner(self) -> TableLearner:
        assert isinstance(self.observation_space, spaces.Discrete)
        shape = (int(self.observation_space.n), self.n_actions)
        q = np.full(shape, float(self.settings.q_init))
        averaged = shape if self.settings.average else (0, 0)
        return TableLearner(
            q,
            np.zeros(2, np.int64),
            np.zeros(1, np.int64),
            np.zeros(1),
            np.zeros(averaged),
            np.zeros(averaged),
            self.settings.schedule(),
        )

    def make_learner(self) -> Any:
        return self.table_learner()

    @property
    def table(self) -> TableLearner:
        """The arrays that the tabular rules share."""
        return self.learner

    @property
    def q(self) -> np.ndarray:
        """(S, A) action values as they stand, not averaged."""
        return self.table.q

    def values(self) -> np.ndarray:
        """(S, A) action values that `predict` serves: averaged over the last steps where `average` says so."""
        t = self.table
        return average(t.q, t.total, t.since, float(t.clock[0]), t.schedule.average_start)

    def policy(self) -> Decision:
        return Decision(table_decide, (self.values(),), np.zeros(1))

    def encode(self, obs: Any) -> int:
        space = self.observation_space
        assert isinstance(space, spaces.Discrete)
        return check_observation(space, obs) - int(space.start)

    def batch(self, obs: Any) -> tuple[np.ndarray, bool]:
        space = self.observation_space
        assert isinstance(space, spaces.Discrete)
        states = np.asarray(obs)
        if states.dtype.kind not in "iu":
            raise SpaceError(f"expected integer observations of {space}, got {states.dtype}")
        states = states.astype(np.int64) - int(space.start)
        if states.size and (states.min() < 0 or states.max() >= space.n):
            raise SpaceError(f"expected observations of {space}, got {np.asarray(obs).min()}..{np.asarray(obs).max()}")
        return states.reshape(-1), states.ndim == 0

    def greedy_actions(self, batch: np.ndarray) -> np.ndarray:
        return (self.values() if self.settings.average else self.q)[batch].argmax(axis=1)


@dataclass(frozen=True)
class OneStepSettings(TableSettings):
    """Hyper-parameters of a one-step agent."""

    behaviour: str = "epsilon-greedy"
    """"epsilon-greedy"; "softmax" (Boltzmann) with `temperature`; "ucb", upper confidence bounds with `c`."""
    temperature: float = 1.0
    """Of softmax, > 0, in units of the reward."""
    c: float = 1.0
    """Degree of UCB's exploration, >= 0, in units of the reward."""
    alpha_decay: str = "linear"
    """From alpha to alpha_final: "linear" or "exponential" over the horizon; "visits": alpha / n(s, a), a mean for alpha 1;
    "steps": alpha / n, n steps in all."""
    epsilon_decay: str = "linear"
    """From epsilon to epsilon_final: "linear" or "exponential" over the horizon; "visits": epsilon / n(s);
    "steps": epsilon / n."""

    def __post_init__(self):
        super().__post_init__()
        check("temperature", self.temperature, 0, 1e300, open_low=True)
        check("c", self.c, 0, 1e300)
        for name, known in (("behaviour", BEHAVIOURS), ("alpha_decay", DECAYS), ("epsilon_decay", DECAYS)):
            if getattr(self, name) not in known:
                raise SettingsError(f"{name} must be one of {', '.join(known)}, got {getattr(self, name)!r}")
        for name in ("alpha", "epsilon"):
            decay, final = getattr(self, f"{name}_decay"), getattr(self, f"{name}_final")
            if decay == "exponential" and (not final or not getattr(self, name)):
                raise SettingsError(f'{name}_decay="exponential" needs {name} and {name}_final above 0, and horizon')
            if decay in ("visits", "steps") and final is not None:
                raise SettingsError(f'{name}_decay="{decay}" has no {name}_final')

    @property
    def plain(self) -> bool:
        """Whether the table is all that the rules need: no counts of visits, no powers."""
        return (self.behaviour, self.alpha_decay, self.epsilon_decay) == ("epsilon-greedy", "linear", "linear")


class OneStepAgent(TabularAgent):
    """A one-step agent with a choice of behaviours and decays; the default ones are compiled without any trace of the others."""

    Settings = OneStepSettings
    plain_step: ClassVar[Any]
    kind: ClassVar[str]  # of `behaved_rule`

    def make_learner(self) -> Any:
        settings, table = self.settings, self.table_learner()
        if settings.plain:
            self.begin_rule, self.step_rule = begin, self.plain_step  # pyright: ignore[reportAttributeAccessIssue]
            return table
        rule = behaved_rule(self.kind, settings.behaviour, settings.alpha_decay, settings.epsilon_decay)
        self.begin_rule, self.step_rule = rule.begin, rule.step  # pyright: ignore[reportAttributeAccessIssue]
        self._rule = rule
        return VisitLearner(
            table=table,
            visits=np.zeros(table.q.shape),
            scratch=np.zeros(self.n_actions),
            temperature=float(settings.temperature),
            c=float(settings.c),
            alpha_exponent=exponent(settings.alpha, settings.alpha_final, settings.alpha_decay),
            epsilon_exponent=exponent(settings.epsilon, settings.epsilon_final, settings.epsilon_decay),
        )

    @property
    def table(self) -> TableLearner:
        return self.learner if self.settings.plain else self.learner.table

    @property
    def epsilon(self) -> float:
        """Exploration probability at this moment: a mean over the states visited where it depends on the state; 0 for UCB."""
        if self.settings.plain:
            return super().epsilon
        visited = np.flatnonzero(self.learner.visits.sum(axis=1))
        chances = [self._rule.exploring(self.learner, s) for s in (visited if len(visited) else range(1))]
        return float(np.mean(chances))

    def exploring_actions(self, batch: np.ndarray, greedy: np.ndarray) -> np.ndarray:
        if self.settings.plain:
            return super().exploring_actions(batch, greedy)
        return np.array([self._rule.choose(self.learner, s, self.predict_rng) for s in batch], np.int64)


class QLearning(OneStepAgent):
    """Tabular Q-learning (Watkins 1989; Sutton & Barto sec. 6.5)."""

    name = "q-learning"
    plain_step, kind = staticmethod(q_learning_step), "q-learning"


class Sarsa(OneStepAgent):
    """Tabular Sarsa (Rummery & Niranjan 1994; Sutton & Barto sec. 6.4)."""

    name = "sarsa"
    plain_step, kind = staticmethod(sarsa_step), "sarsa"


class ExpectedSarsa(OneStepAgent):
    """Tabular Expected Sarsa (van Seijen et al. 2009; Sutton & Barto sec. 6.6); UCB is no distribution to expect over."""

    name = "expected-sarsa"
    plain_step, kind = staticmethod(expected_sarsa_step), "expected-sarsa"

    def make_learner(self) -> Any:
        if self.settings.behaviour == "ucb":
            raise SettingsError(
                'expected-sarsa needs behaviour "epsilon-greedy" or "softmax", got "ucb", which is no distribution'
            )
        return super().make_learner()
