"""Many seeds of an experiment in one compiled call: the history of a metric over episodes or steps, a row for each seed.

    agent = TD(env, alpha=0.1, v_init=0.5)
    history = learning_curve(agent, range(100), episodes=100, metric=rms_error, data=true_values)   # (100, 100)

Row k is what an agent made with `seed=seeds[k]` would have learned, bit for bit, whatever runs beside it.
"""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from itertools import pairwise
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import ArrayLike

from tdraft.envs.compiled import env_rng, leaves, mutable_leaves
from tdraft.kernels.jit import lean
from tdraft.kernels.rng import seed_state
from tdraft.value.features import state_value

from .base import Agent
from .runs import progress
from .settings import SettingsError

WORKERS = min(os.cpu_count() or 1, 8)

# Metrics: compiled (learner, data, reward, length, out), called after an episode with its sum of rewards and its length; they
# fill out (K,). `data` is an array of the caller's. Where steps are counted, reward and length are since the last measurement.


@lean
def episode_reward(learner, data, reward, length, out):
    """Sum of the episode's rewards."""
    out[0] = reward


@lean
def episode_length(learner, data, reward, length, out):
    """Steps of the episode."""
    out[0] = length


@lean
def reward_rate(learner, data, reward, length, out):
    """Reward per step."""
    out[0] = reward / length if length else 0.0


@lean
def rms_error(learner, data, reward, length, out):
    """Root of the mean square of v(s) - data[s], the true values (S,), over the states where data is not NaN."""
    total, count = 0.0, 0
    for s in range(len(data)):
        if data[s] == data[s]:
            total += (state_value(learner.w, learner.features, s) - data[s]) ** 2
            count += 1
    out[0] = np.sqrt(total / count)


@lean
def value_error(learner, data, reward, length, out):
    """Root of VE = sum_s mu(s) (v(s) - v_pi(s))^2   (Sutton & Barto eq. 9.1); data (2, S) holds v_pi and mu."""
    total = 0.0
    for s in range(data.shape[1]):
        if data[1, s] > 0.0:
            total += data[1, s] * (state_value(learner.w, learner.features, s) - data[0, s]) ** 2
    out[0] = np.sqrt(total)


@lean
def weights(learner, data, reward, length, out):
    """The weights w themselves, for K = F."""
    for i in range(len(out)):
        out[i] = learner.w[i]


def learning_curve(
    agent: Agent,
    seeds: Sequence[int],
    episodes: int | None = None,
    metric: Any = episode_reward,
    data: ArrayLike = (),
    *,
    timesteps: int | None = None,
    at: ArrayLike = (),
    width: int = 1,
) -> np.ndarray:
    """Train copies of an untrained agent, one a seed, and measure each as it goes. In one thread.

    :param agent: a fresh one on an env that compiles; it stays as it is. Other first weights go into `agent.learner.w[:]` before
    :param seeds: of the runs, as an agent's `seed=`
    :param episodes: to train each for; one that reaches the env's time limit counts, but what a rule learns from it when the
        next begins (n-step and Monte Carlo returns) is measured after the next
    :param metric: `episode_reward`, `rms_error`, ..., or an own compiled function of the same form
    :param data: array that the metric reads
    :param timesteps: in place of `episodes`, env steps to train each for
    :param at: increasing numbers of episodes (or steps) after which to measure, 0 for before the first; by default 1, 2, ...,
        episodes, or every hundredth part of the steps
    :param width: numbers K that the metric writes
    :return: (seeds, measurements), or (seeds, measurements, K) where width > 1
    :raises SettingsError: an agent that has learned, an env that does not compile, or `at` out of order
    """
    loop = _loop(agent, metric, timesteps)
    if agent.num_timesteps:
        raise SettingsError(f"learning_curve needs a fresh agent, this one has learned for {agent.num_timesteps} steps")
    marks = measured_at(episodes, timesteps, at)
    assert agent.compiled is not None
    params, _, _, limit, _ = agent.compiled
    changing = [a for _, a in leaves(agent.learner)] + list(mutable_leaves(agent.compiled).values())
    state = tuple(_bytes(a) for a in changing if a.size and a.flags.writeable)
    first = tuple(a.copy() for a in state)
    history = np.zeros((len(seeds), len(marks), width))
    generators = np.array([_generators(seed) for seed in seeds]).reshape(-1, 2, 4)
    numbers = np.ascontiguousarray(data, np.float64)
    try:
        loop(params, agent.learner, agent.gamma, limit, generators, marks, numbers, state, first, history)
    finally:
        for array, original in zip(state, first):
            array[:] = original
    return history[:, :, 0] if width == 1 else history


def measured_at(episodes: int | None, timesteps: int | None, at: ArrayLike) -> np.ndarray:
    """(measurements,) int64: after how many episodes or steps to measure."""
    if (episodes is None) == (timesteps is None):
        raise SettingsError(f"give either episodes or timesteps, got {episodes} and {timesteps}")
    name, total = ("episodes", episodes) if timesteps is None else ("timesteps", timesteps)
    if not isinstance(total, int | np.integer) or total < 0:
        raise SettingsError(f"{name} must be an integer >= 0, got {total!r}")
    stride = 1 if timesteps is None else max(1, timesteps // 100)
    marks = np.arange(stride, total + 1, stride) if np.size(at) == 0 else np.array(at, np.int64)
    if np.any(np.diff(marks) <= 0) or (marks.size and (marks[0] < 0 or marks[-1] > total)):
        raise SettingsError(f"at must hold increasing numbers of {name} in 0..{total}, got {marks.tolist()}")
    return marks


def _loop(agent: Agent, metric: Any, timesteps: int | None) -> Any:
    """The loop of an agent on its env."""
    if agent.compiled is None:
        raise SettingsError(f"many seeds at once need an env that compiles: {agent.env_id} is {agent.path}")
    make = episode_loop if timesteps is None else step_loop
    return make(agent.compiled.reset, agent.compiled.step, agent.begin_rule, agent.step_rule, metric)


def measure(
    makes: Sequence[Callable[[], Agent]],
    seeds: Sequence[int],
    episodes: int | None = None,
    metric: Any = episode_reward,
    data: ArrayLike = (),
    *,
    timesteps: int | None = None,
    at: ArrayLike = (),
    width: int = 1,
    workers: int = WORKERS,
    progress_bar: bool = False,
) -> np.ndarray:
    """`learning_curve` of several agents, over threads, since compiled loops let go of the interpreter.

    :param makes: functions that return a fresh agent at each call, one a cell
    :param workers: threads; their number changes no bit of the result
    :param progress_bar: show one where the output is a terminal and it takes more than two seconds
    :return: (cells, seeds, measurements), or (cells, seeds, measurements, K) where width > 1
    """
    marks = measured_at(episodes, timesteps, at)
    for make in makes:  # before threads ask for a loop, so that all get the same and it is compiled once
        _loop(make(), metric, timesteps)
    history = np.zeros((len(makes), len(seeds), len(marks), width)[: 3 if width == 1 else 4])
    pieces = min(len(seeds), -(-8 * workers // max(1, len(makes))))  # enough for the threads to end together
    ends = np.linspace(0, len(seeds), pieces + 1).astype(int)
    shares = [slice(int(a), int(b)) for a, b in pairwise(ends)]

    def work(cell: int, share: slice) -> None:
        agent = makes[cell]()
        history[cell, share] = learning_curve(
            agent, seeds[share], episodes, metric, data, timesteps=timesteps, at=at, width=width
        )

    pool, bar = ThreadPoolExecutor(workers), progress(len(makes) * len(seeds), enabled=progress_bar, unit="run")
    try:
        tasks = [(share, pool.submit(work, cell, share)) for cell in range(len(makes)) for share in shares]
        for share, task in tasks:
            task.result()
            bar.update(share.stop - share.start)
    finally:
        pool.shutdown(cancel_futures=True)  # after an error or Ctrl-C no thread begins another run
        bar.close()
    return history


def _bytes(array: np.ndarray) -> np.ndarray:
    """The array's memory as bytes, not a copy."""
    view = array.view()
    view.shape = -1  # where reshape would copy, this raises
    return view.view(np.uint8)


@lru_cache(maxsize=100_000)
def _generators(seed: int) -> np.ndarray:
    """(2, 4) generators of env and agent, as `Agent` makes them from its seed."""
    if not isinstance(seed, int | np.integer) or isinstance(seed, bool) or seed < 0:
        raise SettingsError(f"seeds must be integers >= 0, got {seed!r}")
    env_seed, acting, _ = np.random.SeedSequence(seed).spawn(3)
    return np.array([env_rng(int(env_seed.generate_state(1)[0])), seed_state(acting)])


@lru_cache(maxsize=256)
def episode_loop(env_reset, env_step, begin, step, metric):
    """All seeds of an experiment, each from the same first state: the bytes of every array of learner and env.

    :return: `loop(env, learner, gamma, limit, generators, marks, data, state, first, history)`
    """

    @njit(nogil=True, error_model="numpy")
    def loop(env, learner, gamma, limit, generators, marks, data, state, first, history):
        for k in range(len(generators)):
            for i in range(len(state)):
                state[i][:] = first[i]
            env_rng, rng = generators[k, 0].copy(), generators[k, 1].copy()
            place = 0
            if len(marks) > 0 and marks[0] == 0:
                metric(learner, data, 0.0, 0, history[k, 0])
                place = 1
            for episode in range(1, marks[-1] + 1 if len(marks) > 0 else 1):
                obs = env_reset(env, env_rng)
                action = begin(learner, obs, rng)
                elapsed, score, terminated = 0, 0.0, False
                while not terminated and (elapsed == 0 or elapsed != limit):
                    obs, reward, terminated, duration = env_step(env, obs, action, env_rng)
                    elapsed += 1
                    score += reward
                    action = step(learner, reward, 0.0 if terminated else gamma, obs, duration, rng)
                if place < len(marks) and marks[place] == episode:
                    metric(learner, data, score, elapsed, history[k, place])
                    place += 1

    return loop


@lru_cache(maxsize=256)
def step_loop(env_reset, env_step, begin, step, metric):
    """The same by steps: measured when so many are made, also within an episode; for tasks that go on."""

    @njit(nogil=True, error_model="numpy")
    def loop(env, learner, gamma, limit, generators, marks, data, state, first, history):
        for k in range(len(generators)):
            for i in range(len(state)):
                state[i][:] = first[i]
            env_rng, rng = generators[k, 0].copy(), generators[k, 1].copy()
            done, inside, elapsed, action = 0, False, 0, 0
            for place in range(len(marks)):
                score, length = 0.0, marks[place] - done
                while done < marks[place]:
                    if not inside:
                        obs = env_reset(env, env_rng)
                        action = begin(learner, obs, rng)
                        inside, elapsed = True, 0
                    obs, reward, terminated, duration = env_step(env, obs, action, env_rng)
                    done += 1
                    elapsed += 1
                    score += reward
                    action = step(learner, reward, 0.0 if terminated else gamma, obs, duration, rng)
                    inside = not (terminated or elapsed == limit)
                metric(learner, data, score, length, history[k, place])

    return loop
