"""The provable optimum in the simulator of hidden difficulty (envs/decoding/sources.py): planning over the posterior belief.

A round that begins with belief b (probability of the easy state) and has drafted k tokens with bins f_1..f_k is described by
how many of them fell into each bin: survival S and the posterior follow from b and those counts. So a round is an exact finite
tree of counts, C(B + K, K) nodes, and only the belief at the start of the next round needs a grid. With h the relative value of
a round that begins with belief b, lambda the rate in tokens per unit of time, b' the posterior moved by one transition,

    verify   1 + S_1 + .. + S_k  -  lambda T(k+1)  +  h(b')
    drop     1 + S_1 + .. + S_{k-1}  -  lambda T(k)  +  h(b')        the newest token's bin has been seen all the same
    draft    -lambda t_d  +  E[best of the three with one more token]

and lambda* is the rate at which the best value returns to itself: h(b) = best from (b, no drafts). Howard's policy iteration
for semi-Markov processes (Puterman 1994, section 11.4) solves it in a few sweeps. h is convex, as a maximum over policies of
values linear in b, so linear interpolation never underestimates it and the grid's lambda is an *upper bound* on every policy's
rate (Lovejoy 1991; Yu & Bertsekas 2004 for average cost). Evaluating the returned policy gives the other side.

The optimum is that of an endless text. An episode of N tokens clips its last round and begins from `initial`, so every policy
has another rate there. Measured by simulating this policy with the default difficulty (t_d = 0.05, T(2) = 1.3, +0.03 a token):
6.1% below lambda* at N = 64, 0.9% at N = 512, 0.1% at N = 8192. Compare policies with each other at the same N, and with
lambda* on long texts only: an `initial` that is easier than the chain's average can lift short texts above it.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numba import njit

from tdraft.envs.decoding.sources import Difficulty
from tdraft.kernels.jit import lean
from tdraft.models.decoding import observation as ob
from tdraft.models.decoding.cost import CostModel
from tdraft.models.decoding.policy import DraftPolicy

MAX_NODES = 1_000_000
ITERATIONS = 50


class _Round(NamedTuple):
    """The tree of counts: node 0 has no drafts, the nodes of depth k are level[k]..level[k + 1] - 1."""

    level: np.ndarray  # (K + 2,)
    child: np.ndarray  # (nodes, B) the node with one more token of each bin; -1 at depth K
    easy: np.ndarray  # (nodes,) likelihood of the bins under the easy state
    hard: np.ndarray
    survival: np.ndarray


class _Problem(NamedTuple):
    """A simulator and prices; the order of the bins doesn't matter."""

    transition: np.ndarray
    emission: np.ndarray
    acceptance: np.ndarray
    verify: np.ndarray
    draft: float
    max_drafted: int


class Tables(NamedTuple):
    """What the policy reads; belief and sqrt(survival) on even grids over [0, 1]."""

    draft: np.ndarray  # (K, beliefs, survivals) value of drafting on, net of what verifying everything has already gained
    verify: np.ndarray  # (K + 2,) lambda T(m)


@dataclass(frozen=True)
class BeliefPlan:
    """The optimum and how well it is known.

    :param policy: "belief optimum"
    :param rate: lambda* on the finer grid, tokens per plain step: an upper bound for every policy on an endless text
    :param coarse_rate: the same with half as many beliefs; never below `rate` where the grids are nested
    :param policy_rate: what `policy`, which interpolates in its tables, achieves on an endless text, on the same belief grid
    """

    policy: DraftPolicy
    rate: float
    coarse_rate: float
    policy_rate: float

    @property
    def error(self) -> float:
        """How far lambda* may still fall: the change by the last doubling of the grid, or the policy's gap, whichever is more."""
        return max(self.coarse_rate - self.rate, self.rate - self.policy_rate)


def plan_belief(difficulty: Difficulty, cost: CostModel, *, beliefs: int = 41, table: tuple[int, int] = (161, 201)) -> BeliefPlan:
    """Solve the simulator exactly but for a grid over round-start beliefs.

    :param difficulty: the simulator
    :param cost: prices; K is `cost.max_drafted`
    :param beliefs: odd number of grid points over the beliefs that a round can start with
    :param table: grid points (belief, sqrt survival) of the policy's tables
    :raises ValueError: a chain that hardly ever, or always, changes its state, or more count vectors than fit in memory
    """
    problem = _checked(difficulty, cost)
    if beliefs < 5 or beliefs % 2 == 0:
        raise ValueError(f"beliefs must be odd and at least 5, so that a grid half as fine is nested in it, got {beliefs}")
    tree = _count_tree(problem)
    coarse, _, _ = _solve(problem, tree, _belief_grid(problem, beliefs // 2 + 1))
    grid = _belief_grid(problem, beliefs)
    rate, h, actions = _solve(problem, tree, grid)
    tables = Tables(_draft_table(problem, grid, h, rate, *table), rate * problem.verify)
    _tabulate_actions(problem, tree, tables, grid, actions)
    policy_rate, _ = _gain(*_evaluate(problem, tree, grid, actions))
    policy = DraftPolicy("belief optimum", decide_on_belief, tables)
    return BeliefPlan(policy, rate, coarse, policy_rate)


def static_rates(difficulty: Difficulty, cost: CostModel) -> np.ndarray:
    """(K + 1,) tokens per plain step of every fixed length k on an endless text, in closed form.

    rate(k) = sum_z pi_z (1 + a_z + .. + a_z^k) / (T(k+1) + k t_d), a_z the mean acceptance in state z, pi the stationary law.
    """
    problem = _checked(difficulty, cost)
    leave_easy, leave_hard = problem.transition[0, 1], problem.transition[1, 0]
    stationary = np.array([leave_hard, leave_easy]) / (leave_easy + leave_hard)
    k = np.arange(problem.max_drafted + 1)
    tokens = np.cumsum((problem.emission @ problem.acceptance)[:, None] ** k, axis=1)
    return stationary @ tokens / (problem.verify[1:] + k * problem.draft)


def _checked(difficulty: Difficulty, cost: CostModel) -> _Problem:
    arrays = [np.ascontiguousarray(a, np.float64) for a in (difficulty.transition, difficulty.emission, difficulty.acceptance)]
    transition, emission, acceptance = arrays
    for name, a in (("transition", transition), ("emission", emission)):
        if len(a) != 2 or np.any(a < 0) or not np.allclose(a.sum(1), 1.0):
            raise ValueError(f"{name} must have two rows that sum to 1, got {a.tolist()}")
    if not np.all((acceptance >= 0) & (acceptance <= 1)):
        raise ValueError(f"acceptance must lie in [0, 1], got {acceptance.tolist()}")
    memory = abs(transition[0, 0] - transition[1, 0])
    if memory > 1.0 - 1e-6:
        raise ValueError(
            f"the chain must be able to change and to stay (no rate is defined otherwise), got {transition.tolist()}"
        )
    return _Problem(transition, emission, acceptance, cost.verify, float(cost.draft), cost.max_drafted)


def _belief_grid(problem: _Problem, points: int) -> np.ndarray:
    """Even over the beliefs just after a transition; a single point where a round says nothing about the next."""
    low, high = np.sort(problem.transition[:, 0])
    return np.linspace(low, high, points) if high - low > 1e-12 else np.array([low])


def _count_tree(problem: _Problem) -> _Round:
    """All count vectors of up to K tokens, depth by depth."""
    n_bins, depth = len(problem.acceptance), problem.max_drafted
    total, nodes = 1, 1
    for k in range(1, depth + 1):
        nodes = nodes * (n_bins + k - 1) // k
        total += nodes
    if total > MAX_NODES:
        raise ValueError(
            f"{n_bins} bins and drafts of up to {depth} tokens make {total} count vectors, more than {MAX_NODES}: "
            "use fewer bins or tokens"
        )
    tree = _Round(
        np.zeros(depth + 2, np.int64), np.full((total, n_bins), -1, np.int32), np.ones(total), np.ones(total), np.ones(total)
    )
    parent, last = np.zeros((2, total), np.int32)
    _fill_tree(problem.emission[0], problem.emission[1], problem.acceptance, parent, last, tree)
    return tree


@njit
def _fill_tree(easy, hard, acceptance, parent, last, tree):
    """Make each count vector once, by adding bins in ascending order; `parent` is it without one token of `last`, its highest."""
    n_bins = len(acceptance)
    tree.level[1] = 1
    size = 1
    for k in range(len(tree.level) - 2):
        for node in range(tree.level[k], tree.level[k + 1]):
            for f in range(n_bins):
                if k > 0 and f < last[node]:
                    # Without its last token, then f, then the last again: a vector made before this one.
                    tree.child[node, f] = tree.child[tree.child[parent[node], f], last[node]]
                    continue
                tree.child[node, f] = size
                parent[size], last[size] = node, f
                tree.easy[size] = tree.easy[node] * easy[f]
                tree.hard[size] = tree.hard[node] * hard[f]
                tree.survival[size] = tree.survival[node] * acceptance[f]
                size += 1
        tree.level[k + 2] = size


@lean
def _posterior(belief, easy, hard):
    total = belief * easy + (1.0 - belief) * hard
    return belief * easy / total if total > 0.0 else belief


@lean
def _place(grid, belief):
    """(i, weight of i + 1) of a belief on an even grid; the ends beyond it."""
    if len(grid) == 1:
        return 0, 0.0
    x = (belief - grid[0]) / (grid[1] - grid[0])
    i = min(max(int(x), 0), len(grid) - 2)
    return i, min(max(x - i, 0.0), 1.0)


@lean
def _next_value(problem, grid, h, belief):
    i, w = _place(grid, belief * problem.transition[0, 0] + (1.0 - belief) * problem.transition[1, 0])
    return h[i] + w * (h[i + 1] - h[i]) if w > 0.0 else h[i]


@njit
def _improve(problem, tree, grid, h, rate, actions):
    """Best action in every node for every start belief, by backward induction."""
    depth = problem.max_drafted
    value = np.empty(len(tree.survival))
    for start in range(len(grid)):
        b0 = grid[start]
        for k in range(depth, -1, -1):
            for node in range(tree.level[k], tree.level[k + 1]):
                b = _posterior(b0, tree.easy[node], tree.hard[node])
                action, best = ob.VERIFY, -rate * problem.verify[k + 1]
                if k > 0:
                    drop = -tree.survival[node] - rate * problem.verify[k]
                    if drop > best:
                        action, best = ob.DROP, drop
                best += _next_value(problem, grid, h, b)
                if k < depth:
                    draft = -rate * problem.draft
                    for f in range(len(problem.acceptance)):
                        p = b * problem.emission[0, f] + (1.0 - b) * problem.emission[1, f]
                        child = tree.child[node, f]
                        draft += p * (tree.survival[child] + value[child])
                    if draft > best:
                        action, best = ob.DRAFT, draft
                actions[start, node], value[node] = action, best


@njit
def _evaluate(problem, tree, grid, actions):
    """Tokens and time of a round and the law of the next start belief, for every start belief: (n,), (n,), (n, n)."""
    n = len(grid)
    tokens, time, step = np.ones(n), np.zeros(n), np.zeros((n, n))
    reach = np.empty(len(tree.survival))
    for start in range(n):
        b0 = grid[start]
        reach[:] = 0.0
        reach[0] = 1.0
        for k in range(problem.max_drafted + 1):
            for node in range(tree.level[k], tree.level[k + 1]):
                r = reach[node]
                if r == 0.0:
                    continue
                b = _posterior(b0, tree.easy[node], tree.hard[node])
                if actions[start, node] == ob.DRAFT:
                    time[start] += r * problem.draft
                    for f in range(len(problem.acceptance)):
                        p = b * problem.emission[0, f] + (1.0 - b) * problem.emission[1, f]
                        child = tree.child[node, f]
                        reach[child] += r * p
                        tokens[start] += r * p * tree.survival[child]
                    continue
                dropped = actions[start, node] == ob.DROP
                time[start] += r * problem.verify[k if dropped else k + 1]
                tokens[start] -= r * tree.survival[node] if dropped else 0.0
                i, w = _place(grid, b * problem.transition[0, 0] + (1.0 - b) * problem.transition[1, 0])
                step[start, i] += r * (1.0 - w)
                if w > 0.0:
                    step[start, i + 1] += r * w
    return tokens, time, step


def _gain(tokens: np.ndarray, time: np.ndarray, step: np.ndarray) -> tuple[float, np.ndarray]:
    """Rate and relative values of a fixed policy: h = tokens - rate * time + step h, with h[0] = 0."""
    matrix = np.eye(len(tokens)) - step
    matrix[:, 0] = time
    solution = np.linalg.solve(matrix, tokens)
    return float(solution[0]), np.concatenate([[0.0], solution[1:]])


def _solve(problem: _Problem, tree: _Round, grid: np.ndarray) -> tuple[float, np.ndarray, np.ndarray]:
    """Policy iteration: (lambda*, h, actions)."""
    actions = np.zeros((len(grid), len(tree.survival)), np.uint8)  # begins with plain decoding
    rate, h = _gain(*_evaluate(problem, tree, grid, actions))
    for _ in range(ITERATIONS):
        _improve(problem, tree, grid, h, rate, actions)
        improved, h = _gain(*_evaluate(problem, tree, grid, actions))
        if improved <= rate + 1e-12:
            return max(rate, improved), h, actions
        rate = improved
    raise RuntimeError(f"policy iteration did not settle in {ITERATIONS} sweeps (rate {rate}): please report the parameters")


@njit
def _draft_table(problem, grid, h, rate, n_beliefs, n_survivals):
    """Values of drafting on, on the policy's own grid, given lambda and h: (K, n_beliefs, n_survivals)."""
    depth = problem.max_drafted
    n_bins = len(problem.acceptance)
    table = np.empty((max(depth, 1), n_beliefs, n_survivals))
    value = np.empty((n_beliefs, n_survivals))  # of the best action with k + 1 drafts
    here = np.empty((n_beliefs, n_survivals))
    for k in range(depth, -1, -1):
        for i in range(n_beliefs):
            b = i / (n_beliefs - 1.0)
            after = _next_value(problem, grid, h, b)
            for j in range(n_survivals):
                s = (j / (n_survivals - 1.0)) ** 2
                best = -rate * problem.verify[k + 1]
                if k > 0:
                    best = max(best, -s - rate * problem.verify[k])
                if k < depth:
                    draft = -rate * problem.draft - after
                    for f in range(n_bins):
                        p = b * problem.emission[0, f] + (1.0 - b) * problem.emission[1, f]
                        if p > 0.0:
                            survival = s * problem.acceptance[f]
                            posterior = _posterior(b, problem.emission[0, f], problem.emission[1, f])
                            draft += p * (survival + _look_up(value, posterior, survival))
                    table[k, i, j] = draft
                    best = max(best, draft)
                here[i, j] = best + after
        value, here = here, value
    return table


@njit
def _look_up(table, belief, survival):
    """Linear in belief and in survival, between points that are even in sqrt(survival)."""
    x = belief * (table.shape[0] - 1)
    i = min(int(x), table.shape[0] - 2)
    last = table.shape[1] - 1.0
    j = min(int(np.sqrt(survival) * last), table.shape[1] - 2)
    low, high = (j / last) ** 2, ((j + 1) / last) ** 2
    u, w = x - i, (survival - low) / (high - low)
    a = table[i, j] + w * (table[i, j + 1] - table[i, j])
    b = table[i + 1, j] + w * (table[i + 1, j + 1] - table[i + 1, j])
    return a + u * (b - a)


@njit
def _choose(tables, drafted, belief, survival):
    depth = len(tables.verify) - 2
    action, best = ob.VERIFY, -tables.verify[drafted + 1]
    if drafted > 0:
        drop = -survival - tables.verify[drafted]
        if drop > best:
            action, best = ob.DROP, drop
    if drafted < depth and _look_up(tables.draft[drafted], belief, survival) > best:
        action = ob.DRAFT
    return action


@njit
def _tabulate_actions(problem, tree, tables, grid, actions):
    """The policy's own decision in every node, for its evaluation."""
    for start in range(len(grid)):
        for k in range(problem.max_drafted + 1):
            for node in range(tree.level[k], tree.level[k + 1]):
                b = _posterior(grid[start], tree.easy[node], tree.hard[node])
                actions[start, node] = _choose(tables, k, b, tree.survival[node])


@njit
def decide_on_belief(params, memory, obs):
    """Read the three parts of the sufficient statistic and look the decision up."""
    return _choose(params, int(obs[ob.DRAFTED]), obs[ob.BELIEF], obs[ob.SURVIVAL])
