"""Small decision problems of Sutton & Barto: maximisation bias (ex 6.7), the gambler (ex 4.3), access control (ex 10.2)."""

from math import comb, cos, log, pi, sqrt
from typing import NamedTuple

import numpy as np
from gymnasium import spaces

from tdraft.kernels.jit import lean
from tdraft.kernels.rng import uniform

from .base import DynamicsEnv, TableEnv


class Bias(NamedTuple):
    """Mean and standard deviation of the rewards behind B."""

    mean: float
    deviation: float


@lean
def bias_reset(params, rng):
    return 0


@lean
def bias_step(params, obs, action, rng):
    """A (0): odd actions lead left to B (1), even ones right to the end; B: every action ends with a normal reward."""
    if obs == 0:
        left = action % 2 == 1
        return (1 if left else 2), 0.0, not left, 1.0
    normal = sqrt(-2.0 * log(1.0 - uniform(rng))) * cos(2.0 * pi * uniform(rng))  # Box & Muller 1958
    return 2, params.mean + params.deviation * normal, True, 1.0


class MaximizationBias(DynamicsEnv):
    """Left to B looks good by chance alone (Sutton & Barto, ex 6.7).

    States: 0 is A, where episodes begin, 1 is B, 2 the end. In A action 0 is *right* (the end, reward 0) and 1 is *left* (B,
    reward 0); in B each action ends the episode with a reward from N(mean, deviation^2). `available` says how many actions the
    book gives each state; Gymnasium has one number for all states, and here the further actions of A repeat right and left.

    :param n_actions: actions in B, 10 in the book's figure 6.5
    """

    reset_rule = staticmethod(bias_reset)
    step_rule = staticmethod(bias_step)
    mutable = ()

    def __init__(self, n_actions: int = 10, *, mean: float = -0.1, deviation: float = 1.0, render_mode: str | None = None):
        if n_actions < 2 or deviation < 0:
            raise ValueError(f"n_actions must be at least 2 and deviation at least 0, got {n_actions} and {deviation}")
        super().__init__(Bias(float(mean), float(deviation)), spaces.Discrete(3), spaces.Discrete(n_actions), render_mode)
        self.available = np.array([2, n_actions, 1])
        self.initial_state_distrib = np.array([1.0, 0.0, 0.0])

    @property
    def P(self) -> dict[int, dict[int, list[tuple[float, int, float, bool]]]]:
        """The toy-text table with mean rewards, for planning; the env's own rewards are normal."""
        actions, mean = range(int(self.available[1])), self.params.mean
        return {
            0: {a: [(1.0, 1, 0.0, False) if a % 2 else (1.0, 2, 0.0, True)] for a in actions},
            1: {a: [(1.0, 2, mean, True)] for a in actions},
            2: {a: [(1.0, 2, 0.0, True)] for a in actions},
        }


class Gambler(TableEnv):
    """Stakes on the flips of a coin until the capital is 0 or the goal (Sutton & Barto, ex 4.3).

    State: capital, 0 to goal. Action a stakes a + 1, or as much as is there or needed, if that is less. Reward 1 at the goal.

    :param heads: probability to win a stake
    :param start: capital at the start, or None for 1 to goal - 1 alike
    """

    def __init__(self, heads: float = 0.4, *, goal: int = 100, start: int | None = None, render_mode: str | None = None):
        if not 0 <= heads <= 1:
            raise ValueError(f"heads must be a probability in [0, 1], got {heads}")
        if goal < 2 or not (start is None or 0 < start < goal):
            raise ValueError(f"goal must be at least 2 and start in 1..goal - 1, got {goal} and {start}")

        def outcomes(capital: int, action: int):
            if capital in (0, goal):
                return [(1.0, capital, 0.0, True)]
            stake = min(action + 1, capital, goal - capital)
            won, lost = capital + stake, capital - stake
            return [(heads, won, float(won == goal), won == goal), (1 - heads, lost, 0.0, lost == 0)]

        first = np.zeros(goal + 1)
        first[slice(1, goal) if start is None else start] = 1.0
        transitions = {s: {a: outcomes(s, a) for a in range(goal // 2)} for s in range(goal + 1)}
        super().__init__(transitions, first / first.sum(), render_mode=render_mode)


class AccessControl(TableEnv):
    """A queue of customers who pay by priority, and servers to give them (Sutton & Barto, ex 10.2). A continuing task.

    State = free servers * priorities + index of the priority of the customer at the head. Action 0 rejects, 1 accepts (with no
    server free: rejects too). An accepted customer pays the priority and takes a server; then every busy server, the new one
    included, becomes free with probability `freed`, and the next customer comes.

    :param servers: how many there are; episodes begin with all free
    :param freed: probability that a busy server becomes free in a step
    :param priorities: what customers pay, all equally likely
    """

    def __init__(
        self,
        servers: int = 10,
        *,
        freed: float = 0.06,
        priorities: tuple[float, ...] = (1.0, 2.0, 4.0, 8.0),
        render_mode: str | None = None,
    ):
        if servers < 1 or not 0 <= freed <= 1 or not priorities:
            raise ValueError(f"expected servers >= 1, freed in [0, 1] and priorities, got {servers}, {freed} and {priorities}")
        self.servers, self.priorities, n = servers, tuple(priorities), len(priorities)

        def outcomes(free: int, index: int, accept: int):
            accept = accept and free > 0
            reward, free = (priorities[index], free - 1) if accept else (0.0, free)
            busy = servers - free
            return [
                (comb(busy, k) * freed**k * (1 - freed) ** (busy - k) / n, (free + k) * n + head, float(reward), False)
                for k in range(busy + 1)
                for head in range(n)
            ]

        transitions = {f * n + i: {a: outcomes(f, i, a) for a in (0, 1)} for f in range(servers + 1) for i in range(n)}
        start = np.zeros((servers + 1, n))
        start[servers] = 1 / n
        super().__init__(transitions, start.ravel(), render_mode=render_mode)
