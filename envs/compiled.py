"""Environments as compiled functions: how an env of Gymnasium's is turned into one, and when it may be.

An own env says how by a method `compiled()`; a toy-text env is made from its transition table `P`. Anything between the user and
the dynamics that could change them means that the env is stepped from Python as usual.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
from gymnasium.envs.toy_text import CliffWalkingEnv, FrozenLakeEnv, TaxiEnv
from gymnasium.utils.seeding import np_random
from gymnasium.wrappers import OrderEnforcing, PassiveEnvChecker, TimeLimit
from numba import njit, types
from numba.extending import overload

from tdraft.kernels.jit import lean
from tdraft.kernels.rng import seed_state, uniform

PASS_THROUGH = (TimeLimit, OrderEnforcing, PassiveEnvChecker)
TABLE_ENVS = (CliffWalkingEnv, FrozenLakeEnv, TaxiEnv)


class CompiledEnv(NamedTuple):
    """An env as two compiled functions and their parameters.

    `reset(params, rng) -> obs` and `step(params, obs, action, rng) -> (obs, reward, terminated, duration)`. An observation is an
    integer from 0, or a float64 vector: a buffer of the env's, which the next step may overwrite.
    """

    params: Any  # a (nested) NamedTuple of arrays and numbers; arrays may hold hidden state
    reset: Callable
    step: Callable
    limit: int = 0  # time limit in steps, 0 for none
    mutable: tuple[str, ...] | None = None  # names of the arrays that reset and step change; None: it may be any


class Reason(str):
    """Why an env cannot be compiled, as part of a sentence."""


def compile_env(env: gym.Env) -> CompiledEnv | Reason:
    """The compiled form of an env, with arrays of its own, or the reason why there is none.

    Wrappers are walked from the outside: pass-through ones (TimeLimit, OrderEnforcing, PassiveEnvChecker) are skipped, and the
    first wrapper or env with a method `compiled` answers. Gymnasium's toy-text envs are made from `P`, if `P` is all there is to
    them.
    """
    limit = 0
    layer: Any = env
    while True:
        changed = [name for name in ("step", "reset") if name in vars(layer)]
        if changed:
            return Reason(f"{type(layer).__name__}.{changed[0]} was replaced on the instance")
        if callable(getattr(type(layer), "compiled", None)):
            made = layer.compiled()
            if isinstance(made, Reason):
                return made
            if made is None:
                return Reason(f"{type(layer).__name__} has no compiled form with these settings")
            return own_arrays(made._replace(limit=_tighter(made.limit, limit)))
        if not isinstance(layer, gym.Wrapper):
            break
        if type(layer) not in PASS_THROUGH:
            return Reason(f"{type(layer).__name__} may change what the agent sees")
        if isinstance(layer, TimeLimit):
            limit = _tighter(layer._max_episode_steps, limit)
        layer = layer.env
    why = _table_reason(layer)
    return why if why else table_env(layer.P, layer.initial_state_distrib, limit)


def _tighter(a: int, b: int) -> int:
    return min(a, b) if a and b else a or b


def _table_reason(env: gym.Env) -> Reason | None:
    """Why the env's `P` is not the whole of its dynamics; None where it is."""
    name = type(env).__name__
    if not hasattr(env, "P"):
        return Reason(f"{name} has neither a method compiled() nor a transition table P")
    if not any(type(env).step is known.step and type(env).reset is known.reset for known in TABLE_ENVS):
        return Reason(f"{name} has a step or reset of its own beside its P")
    if getattr(env, "fickle_passenger", False):
        return Reason("a fickle passenger is not in P")
    if env.render_mode == "human":
        return Reason('render_mode is "human"')
    return None


class Table(NamedTuple):
    """Transition tables of S states, A actions and up to K outcomes; the outcome number is 0 to K - 1."""

    cumulative: np.ndarray  # (S, A, K) cumulated probabilities of the outcomes
    following: np.ndarray  # (S, A, K) int64 next state
    reward: np.ndarray  # (S, A, K)
    terminated: np.ndarray  # (S, A, K) bool
    start: np.ndarray  # (S,) cumulated probabilities of the first state
    guide: np.ndarray = np.zeros(1, np.int64)  # (G,) where to look for a draw u of it from on, by floor(u * G): see `guide`


@njit(nogil=True, error_model="numpy", boundscheck=False)
def _halving(cumulative, u):
    """What `draw` finds, for long rows. A call, not inlined: in the loop of short rows it would cost half of the speed."""
    index, end = 0, len(cumulative)
    while index < end:
        middle = (index + end) // 2
        if cumulative[middle] <= u:
            index = middle + 1
        else:
            end = middle
    return index


@lean
def draw(cumulative, rng):
    """The first index whose cumulated probability exceeds a uniform draw, else 0: Gymnasium's categorical_sample, bit for bit."""
    u, index = uniform(rng), 0
    if len(cumulative) > 16:
        index = _halving(cumulative, u)
    else:
        while index < len(cumulative) and cumulative[index] <= u:
            index += 1
    return index if index < len(cumulative) else 0


def guide(cumulative: np.ndarray) -> np.ndarray:
    """Indexed search (Chen & Asau 1974): for a draw in [k / G, (k + 1) / G) the first index that it can be, k = 0..G - 1.

    :param cumulative: (S,) cumulated probabilities
    :return: (G,) int64, G the power of two from S on, by which a draw is multiplied without a rounding error
    """
    size = 1 << max(len(cumulative) - 1, 0).bit_length()
    return np.searchsorted(cumulative, np.arange(size) / size, side="right")


@lean
def table_reset(params, rng):
    """As `draw` of the start, in a time that doesn't grow with the number of states."""
    u = uniform(rng)
    index = params.guide[int(u * len(params.guide))]
    while index < len(params.start) and params.start[index] <= u:
        index += 1
    return index if index < len(params.start) else 0


@lean
def table_step(params, obs, action, rng):
    outcome = draw(params.cumulative[obs, action], rng)
    return (
        params.following[obs, action, outcome],
        params.reward[obs, action, outcome],
        params.terminated[obs, action, outcome],
        1.0,
    )


def _pass_over(rng):
    if not isinstance(rng, np.ndarray):
        rng.random()


@overload(_pass_over, inline="always")
def _pass_over_overload(rng):
    return (lambda rng: None) if isinstance(rng, types.Array) else (lambda rng: rng.random())


@lean
def certain_step(params, obs, action, rng):
    """`table_step` where each pair has one outcome. Gymnasium's envs draw a number all the same, so a NumPy generator that is
    handed in goes on as theirs; a generator of ours is left alone, which is a tenth of the time.
    """
    _pass_over(rng)
    s, a = np.uint64(obs), np.uint64(action)  # unsigned: as none is below 0, none need be asked whether it counts from the end
    return params.following[s, a, 0], params.reward[s, a, 0], params.terminated[s, a, 0], 1.0


def table_env(transitions: Any, start: Any, limit: int = 0) -> CompiledEnv:
    """A compiled env from a toy-text transition table.

    :param transitions: `P[state][action]` = list of (probability, next state, reward, terminated)
    :param start: (S,) probabilities of the first state
    :param limit: time limit in steps, 0 for none
    :raises ValueError: probabilities that do not sum to 1, a next state out of range, or a reward that is not finite
    """
    n_states, n_actions = len(transitions), len(transitions[0])
    width = max(len(transitions[s][a]) for s in range(n_states) for a in range(n_actions))
    shape = (n_states, n_actions, width)
    table = Table(np.ones(shape), np.zeros(shape, np.int64), np.zeros(shape), np.zeros(shape, bool), np.cumsum(start))
    for s in range(n_states):
        for a in range(n_actions):
            outcomes = transitions[s][a]
            cumulated = np.cumsum([o[0] for o in outcomes])
            if not outcomes or not abs(cumulated[-1] - 1) <= 1e-9 or any(o[0] < 0 for o in outcomes):
                raise ValueError(f"probabilities of state {s}, action {a} must sum to 1, got {[o[0] for o in outcomes]}")
            table.cumulative[s, a] = cumulated[-1]
            table.cumulative[s, a, : len(outcomes)] = cumulated
            for k, (_, following, reward, terminated) in enumerate(outcomes):
                if not 0 <= following < n_states:
                    raise ValueError(f"P[{s}][{a}] leads to state {following}, but there are {n_states} states")
                if not np.isfinite(reward):
                    raise ValueError(f"P[{s}][{a}] has the reward {reward}: rewards must be finite")
                table.following[s, a, k], table.reward[s, a, k] = following, reward
                table.terminated[s, a, k] = terminated
    if len(table.start) != n_states or abs(table.start[-1] - 1) > 1e-9:
        raise ValueError(
            f"start must hold {n_states} probabilities that sum to 1, got {len(table.start)} that sum to {table.start[-1]}"
        )
    table = table._replace(guide=guide(table.start))
    return CompiledEnv(table, table_reset, certain_step if width == 1 else table_step, limit, mutable=())


def env_rng(generator: np.random.Generator | int) -> np.ndarray:
    """The xoshiro state that an env of ours makes in `reset(seed=...)` from its NumPy generator, and the compiled path for
    itself.

    :param generator: the env's `np_random`, fresh from its seed, or that seed
    """
    numpy_rng = np_random(generator)[0] if isinstance(generator, int) else generator
    return seed_state(np.random.SeedSequence(int(numpy_rng.integers(2**63))))


def leaves(params: Any, prefix: str = "") -> Iterator[tuple[str, np.ndarray]]:
    """Dotted name and array of every array in nested NamedTuples."""
    if isinstance(params, np.ndarray):
        yield prefix, params
    elif isinstance(params, tuple):
        names = getattr(params, "_fields", range(len(params)))
        for name, value in zip(names, params):
            yield from leaves(value, f"{prefix}.{name}" if prefix else str(name))


def mutable_leaves(env: CompiledEnv) -> dict[str, np.ndarray]:
    """The arrays that hold the env's state, by dotted name; `env.mutable` names their last parts."""
    return {name: array for name, array in leaves(env.params) if env.mutable is None or name.split(".")[-1] in env.mutable}


def own_arrays(env: CompiledEnv) -> CompiledEnv:
    """The same env with copies of the arrays that it changes, so that stepping it leaves the env it came from alone."""
    mutable = set(mutable_leaves(env))

    def copy(value: Any, prefix: str) -> Any:
        if isinstance(value, np.ndarray):
            return value.copy() if prefix in mutable else value
        if not isinstance(value, tuple):
            return value
        names = getattr(value, "_fields", range(len(value)))
        parts = [copy(v, f"{prefix}.{n}" if prefix else str(n)) for n, v in zip(names, value)]
        return type(value)(*parts) if hasattr(value, "_fields") else tuple(parts)

    return env._replace(params=copy(env.params, ""))
