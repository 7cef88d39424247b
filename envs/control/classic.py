"""Mountain car and CartPole, compiled. From the same seed and actions the trajectories are Gymnasium's, bit for bit.

The state is float64 and the observation its float32 rounding, as Gymnasium has it. Starts: Gymnasium draws them from the env's
NumPy generator, and so does `reset` here. Compiled training draws them from its own, three times faster generator; with
`numpy_reset=False` the env does so too, and interpreted training gives the same numbers as compiled.
"""

from math import cos, pi, sin
from typing import Any, ClassVar, NamedTuple

import numpy as np
from gymnasium import spaces
from gymnasium.envs.classic_control.utils import maybe_parse_reset_bounds
from numba import njit

from tdraft.envs.textbook.base import DynamicsEnv
from tdraft.kernels.jit import lean
from tdraft.kernels.rng import uniform


class ClassicEnv(DynamicsEnv):
    """What the three of them share: params with `state` and `obs`, a uniform start, and the choice of its generator.

    :param numpy_reset: draw starts as Gymnasium does, from `np_random`; False: as compiled training does
    """

    mutable = ("state", "obs")
    bounds: ClassVar[tuple[float, float]]  # of the start's uniform law

    def __init__(
        self, params: Any, high: np.ndarray, low: np.ndarray, n_actions: int, numpy_reset: bool, render_mode: str | None
    ):
        space = spaces.Box(low.astype(np.float32), high.astype(np.float32), dtype=np.float32)
        super().__init__(params, space, spaces.Discrete(n_actions), render_mode)
        self.numpy_reset = numpy_reset

    @property
    def state(self) -> np.ndarray:
        """The state in float64, a copy."""
        return self.params.state.copy()

    def restart(self) -> None:
        if not self.numpy_reset:
            super().restart()

    def begin(self, options: dict[str, Any] | None) -> Any:
        low, high = maybe_parse_reset_bounds(options, *self.bounds)
        if not self.numpy_reset:
            if options:
                raise ValueError(f"reset options {options} need numpy_reset=True: the compiled start has fixed bounds")
            return super().begin(options)
        self.place(low, high)
        return self.params.obs

    def place(self, low: float, high: float) -> None:
        """Set state and observation to a start drawn from `np_random`."""
        self.params.state[:] = self.np_random.uniform(low=low, high=high, size=len(self.params.state))
        self.params.obs[:] = self.params.state.astype(np.float32)


@lean
def show(params):
    """The observation: the state, each entry rounded to float32."""
    for i in range(len(params.state)):
        params.obs[i] = np.float32(params.state[i])


class Car(NamedTuple):
    """Mountain car's state and constants."""

    state: np.ndarray  # (2,) position and velocity
    obs: np.ndarray  # (2,)
    goal_velocity: float


@njit
def car_reset(params, rng):
    params.state[0] = -0.6 + 0.2 * uniform(rng)
    params.state[1] = 0.0
    show(params)
    return params.obs


@lean
def car_move(params, action):
    """v += .001 (a - 1) - .0025 cos(3 x), x += v; -1 a step until x >= .5   (Moore 1990; Sutton & Barto, ex 10.1)."""
    position, velocity = params.state[0], params.state[1]
    velocity += (action - 1) * 0.001 + cos(3 * position) * (-0.0025)
    velocity = min(max(velocity, -0.07), 0.07)
    position = min(max(position + velocity, -1.2), 0.6)
    if position == -1.2 and velocity < 0:
        velocity = 0.0
    params.state[0], params.state[1] = position, velocity
    show(params)
    return -1.0, position >= 0.5 and velocity >= params.goal_velocity


@njit
def car_step(params, obs, action, rng):
    reward, terminated = car_move(params, action)
    return params.obs, reward, terminated, 1.0


class MountainCar(ClassicEnv):
    """A car too weak for the hill rocks itself up. Actions: 0 back, 1 nothing, 2 forward; observation (position, velocity).

    Registered with Gymnasium's limit of 200 steps; `gym.make(..., max_episode_steps=-1)` is the book's task, without one.

    :param goal_velocity: least velocity at the goal
    """

    reset_rule = staticmethod(car_reset)
    step_rule = staticmethod(car_step)
    bounds = (-0.6, -0.4)

    def __init__(self, *, goal_velocity: float = 0.0, numpy_reset: bool = True, render_mode: str | None = None):
        params = Car(np.zeros(2), np.zeros(2), float(goal_velocity))
        super().__init__(params, np.array([0.6, 0.07]), np.array([-1.2, -0.07]), 3, numpy_reset, render_mode)

    def place(self, low: float, high: float) -> None:
        self.params.state[:] = self.np_random.uniform(low=low, high=high), 0.0
        self.params.obs[:] = self.params.state.astype(np.float32)


class Pole(NamedTuple):
    """CartPole's state and rewards."""

    state: np.ndarray  # (4,) position, velocity, angle, angular velocity
    obs: np.ndarray  # (4,)
    reward: float  # of a step
    last_reward: float  # of the step that fails


@njit
def pole_reset(params, rng):
    for i in range(4):
        params.state[i] = -0.05 + 0.1 * uniform(rng)
    show(params)
    return params.obs


@lean
def pole_move(params, action):
    """Euler's method, .02 s a step (Barto, Sutton & Anderson 1983; Florian 2007 for the equations)."""
    state = params.state
    x, x_dot, theta, theta_dot = state[0], state[1], state[2], state[3]
    force = 10.0 if action == 1 else -10.0
    cosine, sine = cos(theta), sin(theta)
    mass, moment = 0.1 + 1.0, 0.1 * 0.5
    push = (force + moment * (theta_dot * theta_dot) * sine) / mass
    theta_acc = (9.8 * sine - cosine * push) / (0.5 * (4.0 / 3.0 - 0.1 * (cosine * cosine) / mass))
    x_acc = push - moment * theta_acc * cosine / mass
    x, x_dot = x + 0.02 * x_dot, x_dot + 0.02 * x_acc
    theta, theta_dot = theta + 0.02 * theta_dot, theta_dot + 0.02 * theta_acc
    state[0], state[1], state[2], state[3] = x, x_dot, theta, theta_dot
    limit = 12 * 2 * pi / 360
    failed = x < -2.4 or x > 2.4 or theta < -limit or theta > limit
    show(params)
    return params.last_reward if failed else params.reward, failed


@njit
def pole_step(params, obs, action, rng):
    reward, terminated = pole_move(params, action)
    return params.obs, reward, terminated, 1.0


class CartPole(ClassicEnv):
    """A pole to be balanced on a cart. Actions: 0 push to the left, 1 to the right; reward 1 a step. Limit 500, as CartPole-v1.

    :param sutton_barto_reward: 0 a step and -1 for failing, as in the book's exercise 3.6
    """

    reset_rule = staticmethod(pole_reset)
    step_rule = staticmethod(pole_step)
    bounds = (-0.05, 0.05)

    def __init__(self, *, sutton_barto_reward: bool = False, numpy_reset: bool = True, render_mode: str | None = None):
        rewards = (0.0, -1.0) if sutton_barto_reward else (1.0, 1.0)
        high = np.array([2.4 * 2, np.inf, 12 * 2 * pi / 360 * 2, np.inf])
        super().__init__(Pole(np.zeros(4), np.zeros(4), *rewards), high, -high, 2, numpy_reset, render_mode)
