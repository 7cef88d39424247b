"""Chains: random walks of 5, 19 and 1000 states, Boyan's chain and Baird's counterexample."""

import numpy as np

from .base import TableEnv, one_hot


class RandomWalk(TableEnv):
    """A walk over n states in a row; it ends beyond either end (Sutton & Barto, ex 6.2, 7.1 and 9.1).

    States 0 to n - 1 from left to right; state n stands for both ends, where the episode is over. There is one action: the walk
    is a chain, to predict the values of.

    :param n_states: n
    :param jump: up to so many states to either side, each number 1..jump equally likely; 100 with 1000 states
    :param left_reward: for leaving on the left, `right_reward` for leaving on the right; every other step pays `step_reward`
    :param start: first state, by default the middle one (of an even number the upper middle's left neighbour: 499 of 1000)
    """

    def __init__(
        self,
        n_states: int = 19,
        *,
        jump: int = 1,
        left_reward: float = -1.0,
        right_reward: float = 1.0,
        step_reward: float = 0.0,
        start: int | None = None,
        render_mode: str | None = None,
    ):
        if n_states < 1 or jump < 1:
            raise ValueError(f"n_states and jump must be at least 1, got {n_states} and {jump}")
        start = (n_states - 1) // 2 if start is None else start
        if not 0 <= start < n_states:
            raise ValueError(f"start must be in 0..{n_states - 1}, got {start}")
        self.n_walk = n_states
        steps = [d for d in range(-jump, jump + 1) if d]
        transitions = {}
        for s in range(n_states):
            beyond = (left_reward, sum(s + d < 0 for d in steps)), (right_reward, sum(s + d >= n_states for d in steps))
            ends = [(count / len(steps), n_states, reward, True) for reward, count in beyond if count]
            transitions[s] = {0: ends + [(1 / len(steps), s + d, step_reward, False) for d in steps if 0 <= s + d < n_states]}
        transitions[n_states] = {0: [(1.0, n_states, 0.0, True)]}
        super().__init__(transitions, one_hot(n_states + 1, start), render_mode=render_mode)

    def render(self):
        """The row of states with the walker as `o`."""
        if self.render_mode != "ansi":
            return None
        where = self._obs if self._obs is not None else self.n_walk
        return f"|{'.' * where}{'o' * (where < self.n_walk)}{'.' * (self.n_walk - where - 1)}|\n"


class BoyanChain(TableEnv):
    """Boyan's chain (Boyan 2002, "Technical update: least-squares temporal difference learning").

    From state s > 1 one or two states down, with probability 1/2 each, reward -3; from 1 to 0, reward -2; 0 is the end. The
    value of state s is -2 s, linear in `features`.

    :param n_states: states beside the end, 12 in the paper: a multiple of 4 gives the features of the paper
    """

    def __init__(self, n_states: int = 12, *, render_mode: str | None = None):
        if n_states < 2:
            raise ValueError(f"n_states must be at least 2, got {n_states}")
        transitions = {0: {0: [(1.0, 0, 0.0, True)]}, 1: {0: [(1.0, 0, -2.0, True)]}}
        for s in range(2, n_states + 1):
            transitions[s] = {0: [(0.5, s - 1, -3.0, False), (0.5, s - 2, -3.0, s == 2)]}
        super().__init__(transitions, one_hot(n_states + 1, n_states), render_mode=render_mode)

    @property
    def features(self) -> np.ndarray:
        """(n + 1, n / 4 + 1) hat functions at every fourth state; the row of the end is zero."""
        n = self.initial_state_distrib.size - 1
        centres = np.arange(n, -1, -4)
        table = np.clip(1 - np.abs(np.arange(n + 1)[:, None] - centres[None, :]) / 4, 0, None)
        table[0] = 0.0
        return table


class Baird(TableEnv):
    """Baird's counterexample (Baird 1995; Sutton & Barto, section 11.2): off-policy semi-gradient TD diverges on it.

    Seven states and a continuing task. Action 0, dashed, leads to one of the states 0 to 5, each with probability 1/6; action 1,
    solid, to state 6. Every reward is 0, gamma is .99 in the book. The behaviour policy takes the dashed action with
    probability 6/7, the target policy the solid one always. Starts are uniform.
    """

    features = np.hstack([2 * np.eye(7), np.ones((7, 1))])  # (7, 8) 2 w_s + w_8, but w_7 + 2 w_8 in the last state
    features[6, 6:] = 1.0, 2.0
    behaviour = np.array([6 / 7, 1 / 7])  # (2,) in every state
    target = np.array([0.0, 1.0])

    def __init__(self, *, render_mode: str | None = None):
        upper = [(1 / 6, s, 0.0, False) for s in range(6)]
        transitions = {s: {0: upper, 1: [(1.0, 6, 0.0, False)]} for s in range(7)}
        super().__init__(transitions, np.full(7, 1 / 7), render_mode=render_mode)
