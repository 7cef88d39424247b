"""Planning as ground truth: exact and iterative solutions of any finite MDP with a transition table `P`.

    v(s) = sum_a pi(a|s) sum_s' p(s'|s, a) [r + gamma v(s')]           (Bellman 1957; Sutton & Barto eq. 3.14)
    v*(s) = max_a sum_s' p(s'|s, a) [r + gamma v*(s')]                 (eq. 3.19)

S states   A actions. A transition that terminates counts in the reward and leads nowhere: `P` here holds the probabilities of
going on, so that its rows may sum to less than 1 and no terminal state needs a special case. Policies are (S,) actions or
(S, A) probabilities.
"""

from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from tdraft.envs.compiled import Table, table_env

LARGEST = 300_000_000  # entries of P as one array: 2.4 GB
MAX_SWEEPS = 50_000  # where no bound says when it ends


class MDP(NamedTuple):
    """A finite MDP as arrays."""

    P: np.ndarray  # (S, A, S) probability to go on to s'
    R: np.ndarray  # (S, A) expected reward
    start: np.ndarray  # (S,) law of the first state


class SparseMDP(NamedTuple):
    """The same as lists of at most K outcomes, for thousands of states: `value_iteration` and `finite_horizon` take it too."""

    probability: np.ndarray  # (S, A, K) to go on by this outcome; 0 where it terminates
    following: np.ndarray  # (S, A, K) int64 state it leads to
    R: np.ndarray  # (S, A) expected reward
    start: np.ndarray  # (S,)


class Solution(NamedTuple):
    """Values, what they are of, and how sure they are."""

    v: np.ndarray  # (S,)
    q: np.ndarray  # (S, A)
    policy: np.ndarray  # (S,) greedy actions, the lowest where there are ties
    sweeps: int
    bound: float  # |v - v*| is at most this; inf where gamma = 1 gives no such bound


class Gain(NamedTuple):
    """An average-reward solution: gain + h(s) = max_a r(s, a) + sum_s' p(s'|s, a) h(s')."""

    gain: float  # reward a step
    h: np.ndarray  # (S,) differential values, h[0] = 0
    policy: np.ndarray  # (S,)
    bound: float  # the gain is exact to this


class PlanningError(ValueError):
    """An env without a table, or a problem that has no finite solution."""


def mdp(env: gym.Env | Any) -> MDP:
    """The table of an env as arrays: `env.unwrapped.P`, whatever wrappers do (a time limit is not in it).

    :param env: a Gymnasium env with `P`, or such a table by itself
    :raises PlanningError: no `P`, a continuous space, or more than LARGEST entries of P (see `sparse_mdp`)
    :raises ValueError: probabilities that don't sum to 1, a next state out of range, a reward that is not finite
    """
    sparse = sparse_mdp(env)
    n_states, n_actions, width = sparse.probability.shape
    if n_states**2 * n_actions > LARGEST:
        raise PlanningError(f"P of {n_states} states and {n_actions} actions is too large as one array: use sparse_mdp(env)")
    P = np.zeros((n_states, n_actions, n_states))
    s, a = np.indices((n_states, n_actions))
    for k in range(width):
        P[s, a, sparse.following[:, :, k]] += sparse.probability[:, :, k]
    return MDP(P, sparse.R, sparse.start)


def sparse_mdp(env: gym.Env | Any) -> SparseMDP:
    """The table of an env as lists of outcomes; parameters and errors as `mdp`."""
    inner = getattr(env, "unwrapped", env)
    for what in ("action", "observation"):
        space = getattr(inner, f"{what}_space", None)
        if space is not None and not isinstance(space, spaces.Discrete):
            raise PlanningError(f"planning needs a Discrete {what} space, got {space}: discretise it, or use a learning agent")
    table = getattr(inner, "params", None)
    if not isinstance(table, Table):
        transitions = inner if isinstance(inner, dict | list | tuple) else getattr(inner, "P", None)
        if transitions is None:
            raise PlanningError(f"{type(inner).__name__} has no transition table P: planning needs one, learning agents don't")
        n_states = len(transitions)
        start = getattr(inner, "initial_state_distrib", np.full(n_states, 1 / n_states))
        table = table_env(transitions, start).params
    probability = np.diff(table.cumulative, axis=2, prepend=0.0)
    reward = (probability * table.reward).sum(axis=2)
    return SparseMDP(np.where(table.terminated, 0.0, probability), table.following, reward, np.diff(table.start, prepend=0.0))


def probabilities(model: MDP, policy: np.ndarray) -> np.ndarray:
    """(S, A) probabilities of a policy given as actions (S,) or as probabilities.

    :raises PlanningError: another shape, or rows that don't sum to 1
    """
    policy, (n_states, n_actions) = np.asarray(policy), model.R.shape
    if policy.shape == (n_states,) and policy.dtype.kind in "iu" and 0 <= policy.min() and policy.max() < n_actions:
        return np.eye(n_actions)[policy]
    if policy.shape != (n_states, n_actions) or policy.min() < 0 or np.abs(policy.sum(axis=1) - 1).max() > 1e-9:
        raise PlanningError(f"policy must be {n_states} actions in 0..{n_actions - 1}, or probabilities {(n_states, n_actions)}")
    return policy.astype(float)


def chain(model: MDP, policy: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(S, S) probabilities to go on and (S,) expected rewards under a policy: P_pi and r_pi."""
    pi = probabilities(model, policy)
    return np.einsum("sa,sat->st", pi, model.P), (pi * model.R).sum(axis=1)


def q_values(model: MDP | SparseMDP, v: np.ndarray, gamma: float) -> np.ndarray:
    """(S, A) one step of look-ahead: q(s, a) = r(s, a) + gamma sum_s' p(s'|s, a) v(s')."""
    if isinstance(model, SparseMDP):
        return model.R + gamma * np.einsum("sak,sak->sa", model.probability, v[model.following])
    return model.R + gamma * (model.P @ v)


def exact_values(model: MDP, policy: np.ndarray, gamma: float) -> np.ndarray:
    """v_pi by linear algebra: (I - gamma P_pi) v = r_pi. With gamma = 1 on states from which the chain surely ends, or where it
    stays without reward for ever (value 0).

    :return: (S,)
    :raises PlanningError: gamma = 1 and rewards that go on for ever
    """
    _check_gamma(gamma)
    P, r = chain(model, policy)
    live = np.ones(len(r), bool)
    if gamma == 1.0:
        live = ~_closed(P)
        if np.any(r[~live] != 0):
            state = int(np.flatnonzero(~live & (r != 0))[0])
            raise PlanningError(f"at gamma = 1 the rewards of state {state} go on for ever: take gamma < 1 or average_reward")
    v = np.zeros(len(r))
    v[live] = np.linalg.solve(np.eye(live.sum()) - gamma * P[np.ix_(live, live)], r[live])
    return v


def _closed(P: np.ndarray) -> np.ndarray:
    """(S,) states from which the chain can never end, and which are recurrent: members of closed classes without an exit."""
    reach = (P > 0) | np.eye(len(P), dtype=bool)
    while True:  # reachability by repeated squaring
        further = (reach.astype(np.float32) @ reach.astype(np.float32)) > 0
        if np.array_equal(further, reach):
            break
        reach = further
    leak = P.sum(axis=1) < 1 - 1e-9
    endless = ~(reach & leak[None, :]).any(axis=1)
    recurrent = ~(reach & ~reach.T).any(axis=1)
    return endless & recurrent


def policy_evaluation(
    model: MDP, policy: np.ndarray, gamma: float, *, tolerance: float = 1e-10, v: np.ndarray | None = None
) -> Solution:
    """v <- r_pi + gamma P_pi v until the sweeps change it by no more than the tolerance (Sutton & Barto, section 4.1).

    :param tolerance: of the error where gamma < 1: a sweep that changes v by d leaves an error of at most d gamma / (1 - gamma)
    :param v: (S,) values to begin with, by default 0
    :raises PlanningError: no convergence
    """
    P, r = chain(model, policy)
    v, sweeps, bound = _sweep(lambda v: r + gamma * (P @ v), v, len(r), gamma, tolerance)
    return Solution(v, q_values(model, v, gamma), np.asarray(probabilities(model, policy)).argmax(axis=1), sweeps, bound)


def value_iteration(model: MDP | SparseMDP, gamma: float, *, tolerance: float = 1e-10, v: np.ndarray | None = None) -> Solution:
    """v <- max_a r + gamma P v (Sutton & Barto eq. 4.10). Where gamma < 1 the error is at most `bound` <= tolerance; at gamma = 1
    the sweeps stop when they change nothing by more than the tolerance.

    :param v: (S,) values to begin with, by default 0
    :raises PlanningError: no convergence, as where rewards go on for ever at gamma = 1
    """
    best = lambda v: q_values(model, v, gamma).max(axis=1)  # noqa: E731
    v, sweeps, bound = _sweep(best, v, len(model.R), gamma, tolerance)
    q = q_values(model, v, gamma)
    return Solution(v, q, first_best(q), sweeps, bound)


def _sweep(backup, v: np.ndarray | None, n_states: int, gamma: float, tolerance: float) -> tuple[np.ndarray, int, float]:
    """Repeat a backup up to the tolerance: values, sweeps and the error's bound."""
    _check_gamma(gamma)
    if not tolerance > 0:
        raise PlanningError(f"tolerance must be > 0, got {tolerance}")
    old = np.zeros(n_states) if v is None else np.array(v, float)
    factor = gamma / (1 - gamma) if gamma < 1 else 1.0
    for sweep in range(1, MAX_SWEEPS + 1 if gamma == 1.0 else 2**31):
        new = backup(old)
        change = float(np.abs(new - old).max()) * factor
        old = new
        floor = 4 * np.finfo(float).eps * np.abs(old).max() * max(factor, 1.0)  # rounding allows no less
        if change <= max(tolerance, floor):
            return old, sweep, change if gamma < 1 else float("inf")
        if not np.isfinite(change):
            break
    raise PlanningError(f"values do not converge at gamma = {gamma}: rewards go on for ever; take gamma < 1 or average_reward")


def first_best(q: np.ndarray, slack: float = 1e-9) -> np.ndarray:
    """(S,) the lowest action within `slack` (relative) of the best: rounding decides no ties."""
    best = q.max(axis=1, keepdims=True)
    return (q >= best - slack * np.maximum(1.0, np.abs(best))).argmax(axis=1)


def policy_iteration(model: MDP, gamma: float, *, policy: np.ndarray | None = None) -> Solution:
    """Evaluate exactly, then act greedily, until the policy stays (Howard 1960; Sutton & Barto, section 4.3).

    :param policy: (S,) actions to begin with. By default 0 everywhere, at gamma = 1 value iteration's: evaluation needs a policy
        under which episodes end
    :return: a `Solution` whose `sweeps` counts the evaluations; exact up to rounding
    """
    if policy is None:
        policy = value_iteration(model, gamma, tolerance=1e-8).policy if gamma == 1.0 else np.zeros(len(model.R), np.int64)
    states = np.arange(len(model.R))
    for evaluations in range(1, 10_000):
        v = exact_values(model, policy, gamma)
        q = q_values(model, v, gamma)
        better = q.max(axis=1) > q[states, policy] + 1e-9 * np.maximum(1.0, np.abs(v))
        if not better.any():
            return Solution(v, q, policy, evaluations, 0.0 if gamma < 1 else float("inf"))
        policy = np.where(better, first_best(q), policy)
    raise PlanningError("policy iteration goes round in circles")


def finite_horizon(
    model: MDP | SparseMDP, horizon: int, gamma: float = 1.0, final: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """v_k = max_a r + gamma P v_{k-1} with v_0 = `final`: the best that k steps can bring (Puterman 1994, section 4.5).

    :param final: (S,) worth of the states where time runs out, by default 0
    :return: (horizon + 1, S) values and (horizon, S) actions; row k of the actions is for k + 1 steps to go
    """
    if horizon < 0:
        raise PlanningError(f"horizon must be >= 0, got {horizon}")
    values, actions = np.zeros((horizon + 1, len(model.R))), np.zeros((horizon, len(model.R)), np.int64)
    values[0] = 0.0 if final is None else final
    for k in range(horizon):
        q = q_values(model, values[k], gamma)
        values[k + 1], actions[k] = q.max(axis=1), first_best(q)
    return values, actions


def average_reward(model: MDP, policy: np.ndarray | None = None, *, tolerance: float = 1e-10) -> Gain:
    """The best reward a step, by relative value iteration (White 1963; Puterman 1994, section 8.5), or a policy's.

    Half a step of waiting is mixed in (Schweitzer's transformation), so that periodic chains converge too; `h` is turned back.

    :param policy: evaluate this one in place of the best
    :raises PlanningError: episodes that end, or a gain that depends on where one starts
    """
    if np.abs(model.P.sum(axis=2) - 1).max() > 1e-9:
        raise PlanningError("average reward is for continuing tasks: in this one episodes end")
    if policy is None:
        backup = lambda h: q_values(model, h, 1.0).max(axis=1)  # noqa: E731
    else:
        P, r = chain(model, policy)
        backup = lambda h: r + P @ h  # noqa: E731
    h = np.zeros(len(model.R))
    for _ in range(MAX_SWEEPS):
        new = 0.5 * (h + backup(h))
        change = new - h
        low, high = 2 * float(change.min()), 2 * float(change.max())  # the gain lies between (Odoni 1969)
        h = new - new[0]
        if high - low <= max(tolerance, 64 * np.finfo(float).eps * np.abs(h).max()):
            q = q_values(model, h, 1.0)
            best = first_best(q) if policy is None else probabilities(model, policy).argmax(axis=1)
            return Gain((low + high) / 2, h, best, (high - low) / 2)
    raise PlanningError(f"the gain depends on the start (between {low:.6g} and {high:.6g}): the chain is not unichain")


def _check_gamma(gamma: float) -> None:
    if not 0 <= gamma <= 1:
        raise PlanningError(f"gamma must be in [0, 1], got {gamma}")
