"""`tdraft bench linear`: linear Sarsa on mountain car with 8 tilings, one-step and true online, beside plain Python and Numba."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from math import cos
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np

import tdraft.envs  # noqa: F401
from tdraft.agents import LinearSarsa
from tdraft.kernels.jit import lean
from tdraft.kernels.rng import randint, seed_state, uniform
from tdraft.scripts.bench import Measurement, heading, interleaved, speed_row
from tdraft.scripts.results import write_rows

ALPHA, EPSILON, LAMBDA, BINS, TILINGS, LIMIT = 0.3, 0.1, 0.9, 8, 8, 200
LOW, SIZE = np.array([-1.2, -0.07]), np.array([1.8, 0.14])
SHIFTS = (np.arange(TILINGS)[:, None] * np.array([1, 3])) % TILINGS / TILINGS  # of `value.tiles.uniform_tiles`
ACROSS = BINS + 1  # shifted tilings need one tile more
TILES = ACROSS * ACROSS
ACTIONS = 3


@dataclass(frozen=True)
class LinearBench:
    """Measure linear Sarsa beside plain Python and hand-written Numba: one thread, interleaved runs, medians."""

    repeats: int = 5
    """runs of each measurement, after one that compiles and warms up"""
    steps: int = 2_000_000
    """env steps of a run; plain Python takes a 400th of them"""
    json: Path | None = None
    """also write the rows to this file"""


def python_loop(env: gym.Env, true_online: bool) -> Callable[[int], None]:
    """Sarsa in plain Python over NumPy arrays; each call takes that many more steps.

    :param true_online: Sutton & Barto sec. 12.7; otherwise one-step semi-gradient Sarsa, sec. 10.1
    """
    w, rng, first = np.zeros((TILINGS * TILES, ACTIONS)), np.random.default_rng(0), np.arange(TILINGS) * TILES
    env.reset(seed=0)
    change = ALPHA / TILINGS

    def tiles(obs: np.ndarray) -> np.ndarray:
        place = ((obs - LOW) / SIZE * BINS + SHIFTS).astype(np.int64)
        return first + place[:, 0] * ACROSS + place[:, 1]

    def act(q: np.ndarray) -> int:
        if rng.random() < EPSILON:
            return int(rng.integers(ACTIONS))
        best = np.flatnonzero(q == q.max())
        return int(best[0] if len(best) == 1 else best[rng.integers(len(best))])

    def start() -> tuple[np.ndarray, int]:
        x = tiles(env.reset()[0])
        return x, act(w[x].sum(axis=0))

    def work(steps: int) -> None:
        x, action = start()
        z, q_old = np.zeros_like(w), 0.0
        for _ in range(steps):
            obs, reward, terminated, truncated, _ = env.step(action)
            after = tiles(obs)
            values = w[after].sum(axis=0)
            next_action = act(values)
            q, following = w[x, action].sum(), 0.0 if terminated else values[next_action]
            error = float(reward) + following - q
            if true_online:
                active = z[x, action].sum()
                z *= LAMBDA
                z[x, action] += 1.0 - change * LAMBDA * active
                w[:] += change * (error + q - q_old) * z
                w[x, action] -= change * (q - q_old)
                q_old = following
            else:
                w[x, action] += change * error
            x, action = after, next_action
            if terminated or truncated:
                x, action = start()
                z[:], q_old = 0.0, 0.0

    return work


@lean
def _values(w, position, velocity, x, q):
    for a in range(ACTIONS):
        q[a] = 0.0
    across, along = (position + 1.2) / 1.8 * BINS, (velocity + 0.07) / 0.14 * BINS
    for t in range(TILINGS):
        i = int(across + (t % TILINGS) / TILINGS)
        j = int(along + (3 * t % TILINGS) / TILINGS)
        f = t * TILES + i * ACROSS + j
        x[t] = f
        for a in range(ACTIONS):
            q[a] += w[f, a]


@lean
def _act(q, rng):
    if uniform(rng) < EPSILON:
        action = randint(rng, ACTIONS)
    else:
        best, action, ties = q[0], 0, 1
        for a in range(1, ACTIONS):
            if q[a] > best:
                best, action, ties = q[a], a, 1
            elif q[a] == best:
                ties += 1
        if ties > 1:
            skip = randint(rng, ties)
            for a in range(ACTIONS):
                if q[a] == best:
                    if skip == 0:
                        action = a
                    skip -= 1
    return action


@lru_cache
def compiled_loop(true_online: bool):
    """The same by hand, mountain car's dynamics and the tiles inside the loop; its traces are a list of those above 1e-12.

    Unlike Gymnasium it doesn't round what the agent sees to float32.

    :return: `loop(w, flat, trace, x, after, q, pairs, steps, rng) -> episodes`; flat is w as one row
    """

    @lean
    def loop(w, flat, trace, x, after, q, pairs, steps, rng):
        change = ALPHA / TILINGS
        elapsed, episodes, action, count, q_old, position, velocity = LIMIT, 0, 0, 0, 0.0, 0.0, 0.0
        for _ in range(steps):
            if elapsed == LIMIT:
                position, velocity, elapsed, q_old = -0.6 + 0.2 * uniform(rng), 0.0, 0, 0.0
                for k in range(count):
                    trace[pairs[k]] = 0.0
                count = 0
                _values(w, position, velocity, x, q)
                action = _act(q, rng)
            velocity = min(max(velocity + (action - 1) * 0.001 - 0.0025 * cos(3 * position), -0.07), 0.07)
            position = min(max(position + velocity, -1.2), 0.6)
            if position == -1.2 and velocity < 0:
                velocity = 0.0
            terminated = position >= 0.5
            elapsed += 1
            _values(w, position, velocity, after, q)
            following = _act(q, rng)
            value, target = 0.0, 0.0 if terminated else q[following]
            for t in range(TILINGS):
                value += w[x[t], action]
            error = -1.0 + target - value
            if true_online:
                active = 0.0
                for t in range(TILINGS):
                    active += trace[x[t] * ACTIONS + action]
                for t in range(TILINGS):
                    i = x[t] * ACTIONS + action
                    if trace[i] == 0.0:
                        pairs[count] = i
                        count += 1
                    trace[i] += (1.0 - change * LAMBDA * active) / LAMBDA  # decayed with the others below
                    flat[i] -= change * (value - q_old)
                kept = 0
                for k in range(count):
                    i = pairs[k]
                    e = LAMBDA * trace[i]
                    flat[i] += change * (error + value - q_old) * e
                    if abs(e) > 1e-12:
                        trace[i] = e
                        pairs[kept] = i
                        kept += 1
                    else:
                        trace[i] = 0.0
                count, q_old = kept, target
            else:
                for t in range(TILINGS):
                    w[x[t], action] += change * error
            action = following
            for t in range(TILINGS):
                x[t] = after[t]
            if terminated or elapsed == LIMIT:
                elapsed = LIMIT
                episodes += 1
        return episodes

    return loop


def numba_loop(true_online: bool) -> Callable[[int], Any]:
    """`compiled_loop` with its arrays; each call takes that many more steps."""
    w, rng = np.zeros((TILINGS * TILES, ACTIONS)), seed_state(0)
    trace, x, after, q = np.zeros(w.size), np.zeros(TILINGS, np.int64), np.zeros(TILINGS, np.int64), np.zeros(ACTIONS)
    pairs, loop = np.zeros(w.size, np.int64), compiled_loop(true_online)

    def work(steps: int) -> Any:
        trace[:] = 0.0  # each call begins an episode
        return loop(w, w.reshape(-1), trace, x, after, q, pairs, steps, rng)

    return work


def linear(bench: LinearBench) -> None:
    """Speeds of one-step and of true online linear Sarsa on tdraft/MountainCar-v0 beside two peers."""
    logging.getLogger("tdraft.agents").setLevel(logging.WARNING)  # a line for each call of `learn`
    heading()
    rows = []
    for true_online in (False, True):
        title = f"MountainCar-v0, {'true online Sarsa(lambda)' if true_online else 'semi-gradient Sarsa'}"
        settings: dict[str, Any] = {"trace": "dutch", "lambda_": LAMBDA} if true_online else {}
        env = gym.make("tdraft/MountainCar-v0")
        agent = LinearSarsa(env, seed=0, alpha=ALPHA, epsilon=EPSILON, bins=BINS, tilings=TILINGS, **settings)
        ours = Measurement(title, bench.steps, agent.learn)
        plain = python_loop(gym.make("MountainCar-v0"), true_online)
        peers = [
            Measurement(f"{title}, plain Python", max(bench.steps // 400, 1), plain),
            Measurement(f"{title}, numba by hand", bench.steps, numba_loop(true_online)),
        ]
        speeds = interleaved([ours, *peers], bench.repeats)
        row = speed_row(ours, speeds[0])
        rows += [speed_row(peer, s) for peer, s in zip(peers, speeds[1:])]
        for peer, s in zip(("plain Python", "numba by hand"), speeds[1:]):
            ratio = float(np.median(speeds[0] / s))
            print(f"    times {peer}: {ratio:.2f}", flush=True)
            rows.append(row | {"peer": peer, "ratio": ratio})
    if bench.json is not None:
        write_rows(bench.json, rows)
