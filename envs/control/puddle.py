"""The puddle world (Boyan & Moore 1995; Sutton 1996): to the upper right corner, round two puddles."""

from math import cos, hypot, log, pi, sqrt
from typing import NamedTuple

import numpy as np
from gymnasium import spaces
from numba import njit

from tdraft.envs.textbook.base import DynamicsEnv
from tdraft.kernels.jit import lean
from tdraft.kernels.rng import uniform


class Puddles(NamedTuple):
    """The agent's place and the constants of the world."""

    place: np.ndarray  # (2,) x and y, in [0, 1]
    puddles: np.ndarray  # (n, 4) ends of each puddle's axis: x, y, x, y
    radius: float
    noise: float  # standard deviation of each coordinate's step
    fixed: int  # 1: episodes begin where `start` says
    start: np.ndarray  # (2,)


@lean
def normal(rng):
    """A standard normal number (Box & Muller 1958)."""
    return sqrt(-2.0 * log(1.0 - uniform(rng))) * cos(2.0 * pi * uniform(rng))


@lean
def depth(params, x, y):
    """How far inside the puddles (x, y) lies: the sum over them of radius less distance to the axis, where that is positive."""
    total = 0.0
    for i in range(len(params.puddles)):
        x0, y0 = params.puddles[i, 0], params.puddles[i, 1]
        dx, dy = params.puddles[i, 2] - x0, params.puddles[i, 3] - y0
        along = min(max(((x - x0) * dx + (y - y0) * dy) / (dx * dx + dy * dy), 0.0), 1.0)
        total += max(params.radius - hypot(x - x0 - along * dx, y - y0 - along * dy), 0.0)
    return total


@lean
def arrived(x, y):
    return x + y >= 1.9


@njit
def puddle_reset(params, rng):
    place = params.place
    place[0], place[1] = params.start[0], params.start[1]
    if params.fixed == 0:
        place[0], place[1] = uniform(rng), uniform(rng)
        while arrived(place[0], place[1]):
            place[0], place[1] = uniform(rng), uniform(rng)
    return place


@lean
def puddle_move(params, action, rng):
    """.05 up, right, down or left and normal noise on both coordinates; reward -1 - 400 depth at the new place."""
    place = params.place
    x = place[0] + (0.05 if action == 1 else -0.05 if action == 3 else 0.0) + params.noise * normal(rng)
    y = place[1] + (0.05 if action == 0 else -0.05 if action == 2 else 0.0) + params.noise * normal(rng)
    place[0], place[1] = min(max(x, 0.0), 1.0), min(max(y, 0.0), 1.0)
    return -1.0 - 400.0 * depth(params, place[0], place[1]), arrived(place[0], place[1])


@njit
def puddle_step(params, obs, action, rng):
    reward, terminated = puddle_move(params, action, rng)
    return params.place, reward, terminated, 1.0


class PuddleWorld(DynamicsEnv):
    """A point in the unit square; actions 0 up, 1 right, 2 down, 3 left. The goal is the corner x + y >= 1.9.

    :param noise: standard deviation of the noise on each coordinate of a step, .01 in the paper
    :param start: where episodes begin; None: uniform outside the goal
    """

    reset_rule = staticmethod(puddle_reset)
    step_rule = staticmethod(puddle_step)
    mutable = ("place",)

    def __init__(self, *, noise: float = 0.01, start: tuple[float, float] | None = None, render_mode: str | None = None):
        if noise < 0:
            raise ValueError(f"noise must be >= 0, got {noise}")
        if start is not None and not (0 <= min(start) and max(start) <= 1 and sum(start) < 1.9):
            raise ValueError(f"start must lie in the unit square with x + y < 1.9, got {start}")
        puddles = np.array([[0.1, 0.75, 0.45, 0.75], [0.45, 0.4, 0.45, 0.8]])
        first = np.array((0.0, 0.0) if start is None else start, float)
        params = Puddles(np.zeros(2), puddles, 0.1, float(noise), int(start is not None), first)
        super().__init__(params, spaces.Box(0.0, 1.0, (2,), np.float64), spaces.Discrete(4), render_mode)
