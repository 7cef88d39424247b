"""Acrobot, compiled: Gymnasium's Acrobot-v1 (the book's equations, fourth-order Runge-Kutta), bit for bit."""

from math import cos, pi, sin
from typing import NamedTuple

import numpy as np
from numba import njit

from tdraft.kernels.jit import lean
from tdraft.kernels.rng import uniform

from .classic import ClassicEnv

G, DT = 9.8, 0.2
FAST_1, FAST_2 = 4 * pi, 9 * pi  # bounds of the angular velocities


class Arms(NamedTuple):
    """The state, and room for the integrator."""

    state: np.ndarray  # (4,) angles of both joints and their velocities
    obs: np.ndarray  # (6,) cosine and sine of both angles, and the velocities
    two: float  # an exponent that the compiler does not see: NumPy's x**2 is the C library's pow, which is not always x * x


@lean
def derivatives(theta1, theta2, speed1, speed2, torque, two):
    """Accelerations of both joints (Sutton & Barto 1998, ex 11.3); masses, lengths and moments are 1, centres of mass at .5."""
    d1 = 0.25 + (1.0 + 0.25 + 2 * 0.5 * cos(theta2)) + 1.0 + 1.0
    d2 = (0.25 + 0.5 * cos(theta2)) + 1.0
    phi2 = 0.5 * G * cos(theta1 + theta2 - pi / 2.0)
    phi1 = -0.5 * speed2**two * sin(theta2) - 1.0 * speed2 * speed1 * sin(theta2) + 1.5 * G * cos(theta1 - pi / 2) + phi2
    acceleration2 = (torque + d2 / d1 * phi1 - 0.5 * speed1**two * sin(theta2) - phi2) / (0.25 + 1.0 - d2**two / d1)
    return -(d2 * acceleration2 + phi1) / d1, acceleration2


@lean
def wrapped(angle):
    while angle > pi:
        angle = angle - 2 * pi
    while angle < -pi:
        angle = angle + 2 * pi
    return angle


@lean
def look(params):
    """The observation, each entry rounded to float32."""
    s, obs = params.state, params.obs
    obs[0], obs[1] = np.float32(cos(s[0])), np.float32(sin(s[0]))
    obs[2], obs[3] = np.float32(cos(s[1])), np.float32(sin(s[1]))
    obs[4], obs[5] = np.float32(s[2]), np.float32(s[3])


@njit
def acrobot_reset(params, rng):
    for i in range(4):
        params.state[i] = np.float32(-0.1 + 0.2 * uniform(rng))
    look(params)
    return params.obs


@lean
def acrobot_move(params, action):
    """Torque action - 1 on the second joint for .2 s; -1 a step until the tip is one arm's length above the first joint."""
    s, two, torque = params.state, params.two, action - 1.0
    half = DT / 2.0
    a, b, c, d = s[0], s[1], s[2], s[3]
    c1, d1 = derivatives(a, b, c, d, torque, two)
    a2, b2 = c + half * c1, d + half * d1
    c2, d2 = derivatives(a + half * c, b + half * d, a2, b2, torque, two)
    a3, b3 = c + half * c2, d + half * d2
    c3, d3 = derivatives(a + half * a2, b + half * b2, a3, b3, torque, two)
    a4, b4 = c + DT * c3, d + DT * d3
    c4, d4 = derivatives(a + DT * a3, b + DT * b3, a4, b4, torque, two)
    sixth = DT / 6.0
    s[0] = wrapped(a + sixth * (c + 2 * a2 + 2 * a3 + a4))
    s[1] = wrapped(b + sixth * (d + 2 * b2 + 2 * b3 + b4))
    s[2] = min(max(c + sixth * (c1 + 2 * c2 + 2 * c3 + c4), -FAST_1), FAST_1)
    s[3] = min(max(d + sixth * (d1 + 2 * d2 + 2 * d3 + d4), -FAST_2), FAST_2)
    up = -cos(s[0]) - cos(s[1] + s[0]) > 1.0
    look(params)
    return 0.0 if up else -1.0, up


@njit
def acrobot_step(params, obs, action, rng):
    reward, terminated = acrobot_move(params, action)
    return params.obs, reward, terminated, 1.0


class Acrobot(ClassicEnv):
    """Two arms hang from a joint; a motor between them swings the tip up. Limit 500, as Acrobot-v1."""

    reset_rule = staticmethod(acrobot_reset)
    step_rule = staticmethod(acrobot_step)
    bounds = (-0.1, 0.1)

    def __init__(self, *, numpy_reset: bool = True, render_mode: str | None = None):
        high = np.array([1.0, 1.0, 1.0, 1.0, FAST_1, FAST_2])
        super().__init__(Arms(np.zeros(4), np.zeros(6), 2.0), high, -high, 3, numpy_reset, render_mode)

    def place(self, low: float, high: float) -> None:
        """Gymnasium rounds the start to float32 and takes its cosine in float32."""
        s = self.np_random.uniform(low=low, high=high, size=(4,)).astype(np.float32)
        self.params.state[:] = s
        self.params.obs[:] = np.cos(s[0]), np.sin(s[0]), np.cos(s[1]), np.sin(s[1]), s[2], s[3]
