"""Planning: known optima, exact linear algebra, bounds that hold, and errors."""

import gymnasium as gym
import numpy as np
import pytest

import tdraft.envs  # noqa: F401
from tdraft.agents.planning import (
    PlanningError,
    average_reward,
    chain,
    exact_values,
    finite_horizon,
    mdp,
    policy_evaluation,
    policy_iteration,
    q_values,
    sparse_mdp,
    value_iteration,
)
from tdraft.envs.textbook.blackjack import Blackjack
from tdraft.envs.textbook.grids import ZhaoGrid
from tdraft.envs.textbook.rental import JacksCarRental


def model(name: str, **keywords):
    return mdp(gym.make(name, **keywords))


@pytest.mark.parametrize(
    ("name", "keywords", "optimum"),
    [
        ("FrozenLake-v1", {}, 14 / 17),
        ("FrozenLake-v1", {"map_name": "8x8"}, 1.0),
        ("Taxi-v4", {}, 7.93),
        ("CliffWalking-v1", {}, -13.0),
        ("tdraft/WindyGridworld-v0", {}, -15.0),
        ("tdraft/KingsWindyGridworld-v0", {}, -7.0),
        ("tdraft/DynaMaze-v0", {}, 1.0),
    ],
)
def test_optima_without_discount_and_time_limit(name, keywords, optimum):
    m = model(name, **keywords)
    iterated, improved = value_iteration(m, 1.0), policy_iteration(m, 1.0)
    assert m.start @ iterated.v == pytest.approx(optimum, abs=5e-8)
    assert m.start @ improved.v == pytest.approx(optimum, abs=1e-10)
    assert improved.v == pytest.approx(exact_values(m, improved.policy, 1.0), abs=1e-12)


def test_cliffs_best_action_at_the_start():
    assert value_iteration(model("CliffWalking-v1"), 1.0).q[36].max() == -13.0


def test_taxi_from_every_start_alike():
    m = model("Taxi-v4")
    assert (m.start > 0).sum() == 300
    assert value_iteration(m, 1.0).v[m.start > 0].mean() == pytest.approx(7.93, abs=1e-10)


def test_dyna_maze_pays_gamma_to_the_thirteenth():
    m = model("tdraft/DynaMaze-v0")
    assert m.start @ value_iteration(m, 0.95).v == pytest.approx(0.95**13, abs=1e-12)


def test_the_gambler():
    """Values of bold play, which is optimal for p < 1/2: v(50) = p, v(25) = p^2, v(75) = p + (1 - p) p."""
    m = model("tdraft/Gambler-v0")
    v = value_iteration(m, 1.0).v
    assert v[[25, 50, 75]] == pytest.approx([0.16, 0.4, 0.64], abs=1e-9)
    bold = np.array([max(min(s, 100 - s), 1) - 1 for s in range(101)])
    assert exact_values(m, bold, 1.0) == pytest.approx(v, abs=1e-8)
    fair = value_iteration(model("tdraft/Gambler-v0", heads=0.5), 1.0)
    assert fair.v[1:100] == pytest.approx(np.arange(1, 100) / 100, abs=1e-8)


def test_jacks_car_rental():
    """The top row and the corners of figure 4.2's policy; its values, by a simulation of the book's words from three states."""
    env = JacksCarRental()
    m = mdp(env)
    solution = policy_iteration(m, 0.9)
    iterated = value_iteration(m, 0.9, tolerance=1e-7)
    assert np.abs(iterated.v - solution.v).max() <= iterated.bound <= 1e-7
    moves = np.array([env.moved(s, a) for s, a in enumerate(solution.policy)]).reshape(21, 21)
    assert list(moves[20]) == [5, 5, 5, 5, 4, 4, 3, 3, 3, 3, 2, 2, 2, 2, 2, 1, 1, 1, 0, 0, 0]
    assert list(moves[0]) == [0, 0, 0, 0, 0, 0, 0, 0, -1, -1, -2, -2, -2, -3, -3, -3, -3, -3, -4, -4, -4]
    rng, runs = np.random.default_rng(0), 10_000
    for i, j in ((0, 0), (20, 20), (10, 10)):
        first, second, total = np.full(runs, i), np.full(runs, j), np.zeros(runs)
        for day in range(150):
            night = moves[first, second]
            first, second = np.minimum(first - night, 20), np.minimum(second + night, 20)
            rented = np.minimum(rng.poisson(3, runs), first), np.minimum(rng.poisson(4, runs), second)
            total += 0.9**day * (10 * (rented[0] + rented[1]) - 2 * np.abs(night))
            first = np.minimum(first - rented[0] + rng.poisson(3, runs), 20)
            second = np.minimum(second - rented[1] + rng.poisson(2, runs), 20)
        assert abs(total.mean() - solution.v.reshape(21, 21)[i, j]) < 4 * total.std() / np.sqrt(runs)


ZHAO = {
    -1: "5.8 5.6 6.2 6.5 5.8  6.5 7.2 8 7.2 6.5  7.2 8 10 8 7.2  8 10 10 10 8  7.2 9 10 9 8.1",
    -10: "3.5 3.9 4.3 4.8 5.3  3.1 3.5 4.8 5.3 5.9  2.8 2.5 10 5.9 6.6  2.5 10 10 10 7.3  2.3 9 10 9 8.1",
}


@pytest.mark.parametrize("r_forbidden", ZHAO)
def test_zhaos_figures(r_forbidden):
    """The optimal values of chapter 3's figures, gamma = .9."""
    v = value_iteration(mdp(ZhaoGrid(r_forbidden=r_forbidden)), 0.9).v
    assert list(v.round(1)) == [float(number) for number in ZHAO[r_forbidden].split()]


def test_blackjacks_known_values():
    env, m = Blackjack(), mdp(Blackjack())
    twenty = np.ones(211, np.int64)
    twenty[env.number(20, 1, False) : 200] = 0
    # Sutton & Barto, section 5.5: about -0.27726, from 10^8 simulated games
    assert exact_values(m, twenty, 1.0)[env.number(13, 2, True)] == pytest.approx(-0.27726, abs=2e-4)
    hits = policy_iteration(m, 1.0).policy[:200].reshape(10, 10, 2)
    stick_from = 12 + hits.sum(axis=0)  # (dealer's card, usable ace), figure 5.2
    assert list(stick_from[:, 0]) == [17, 13, 13, 12, 12, 12, 17, 17, 17, 17]
    assert list(stick_from[1:, 1]) == [18, 18, 18, 18, 18, 18, 18, 19, 19]


def test_walks_have_linear_values():
    v = exact_values(model("tdraft/RandomWalk19-v0"), np.zeros(20, np.int64), 1.0)
    assert v[:19] == pytest.approx(np.arange(-9, 10) / 10, abs=1e-12) and v[19] == 0
    v = exact_values(model("tdraft/RandomWalk5-v0"), np.zeros(6, np.int64), 1.0)
    assert v[:5] == pytest.approx(np.arange(1, 6) / 6, abs=1e-12)
    v = exact_values(model("tdraft/BoyanChain-v0"), np.zeros(13, np.int64), 1.0)
    assert v == pytest.approx(-2.0 * np.arange(13), abs=1e-12)


def test_iterative_evaluation_keeps_its_bound():
    m, policy = model("FrozenLake-v1"), np.full((16, 4), 0.25)
    for gamma, tolerance in ((0.5, 1e-3), (0.9, 1e-6), (0.99, 1e-9)):
        found = policy_evaluation(m, policy, gamma, tolerance=tolerance)
        assert np.abs(found.v - exact_values(m, policy, gamma)).max() <= found.bound <= tolerance
    rough = value_iteration(m, 0.9, tolerance=1e-2)
    assert np.abs(rough.v - value_iteration(m, 0.9, tolerance=1e-12).v).max() <= rough.bound <= 1e-2


def test_solutions_satisfy_bellman():
    m = model("tdraft/StochasticWindyGridworld-v0")
    solution = policy_iteration(m, 0.95)
    assert np.abs(q_values(m, solution.v, 0.95).max(axis=1) - solution.v).max() < 1e-10
    P, r = chain(m, solution.policy)
    assert np.abs(r + 0.95 * P @ solution.v - solution.v).max() < 1e-10


def test_finite_horizon():
    m = model("CliffWalking-v1")
    values, actions = finite_horizon(m, 20)
    assert values[13, 36] == values[20, 36] == -13 and values[5, 36] == -5
    assert actions[12, 36] == 0 and values.shape == (21, 48)


def test_average_reward_of_two_states():
    """From 0: stay for 1 or go to 1 for 0; from 1: back for 3 only. The round pays 3 in two steps. A periodic chain."""
    table = {0: {0: [(1.0, 0, 1.0, False)], 1: [(1.0, 1, 0.0, False)]}, 1: {a: [(1.0, 0, 3.0, False)] for a in (0, 1)}}
    best = average_reward(mdp(table))
    assert (best.gain, best.policy[0]) == (pytest.approx(1.5, abs=1e-9), 1)
    assert best.h == pytest.approx([0, 1.5], abs=1e-8)
    assert average_reward(mdp(table), np.array([0, 0])).gain == pytest.approx(1.0, abs=1e-9)


def test_average_reward_of_access_control_is_the_stationary_one():
    m = model("tdraft/AccessControl-v0")
    best = average_reward(m)
    P, r = chain(m, best.policy)
    mu = np.linalg.matrix_power(P, 4096)[0]
    assert best.gain == pytest.approx(mu @ r, abs=1e-9) and best.bound < 1e-9
    accepts = best.policy.reshape(11, 4)
    assert accepts[1:, 3].all() and list(accepts[1:, 0].nonzero()[0]) == []
    assert average_reward(m, np.ones(44, np.int64)).gain < best.gain


def test_access_control_by_the_books_words():
    m = model("tdraft/AccessControl-v0")
    best = average_reward(m)
    rng, runs, days = np.random.default_rng(1), 400, 2000
    free, totals = np.full(runs, 10), np.zeros(runs)
    for day in range(days):
        head = rng.integers(4, size=runs)
        accept = (best.policy[free * 4 + head] == 1) & (free > 0)
        totals += accept * np.array([1.0, 2.0, 4.0, 8.0])[head] * (day >= 200)
        free = free - accept
        free = free + rng.binomial(10 - free, 0.06)
    totals /= days - 200
    assert abs(totals.mean() - best.gain) < 4 * totals.std() / np.sqrt(runs)


def test_sparse_is_dense():
    for name in ("FrozenLake-v1", "tdraft/StochasticWindyGridworld-v0", "tdraft/MaximizationBias-v0"):
        dense, sparse = mdp(gym.make(name)), sparse_mdp(gym.make(name))
        assert value_iteration(sparse, 0.9).v == pytest.approx(value_iteration(dense, 0.9).v, abs=1e-12)
        assert np.allclose(finite_horizon(sparse, 7)[0], finite_horizon(dense, 7)[0])
    assert value_iteration(dense, 1.0).q[0, :2] == pytest.approx([0.0, -0.1])  # right, left: the bias is in the estimates


def test_racetrack_needs_sparse_planning():
    env = gym.make("tdraft/Racetrack-v0", slip=0.0)
    with pytest.raises(PlanningError, match="use sparse_mdp"):
        mdp(env)
    m = sparse_mdp(env)
    sure = value_iteration(m, 1.0)
    # From the last start it is best to crash at once: the mean m of all starts solves m = (4 * -10 - 11 + (m - 1)) / 6
    assert sure.v[m.start > 0] == pytest.approx([-10, -10, -10, -10, -11, -11.4], abs=1e-9)
    slippery = sparse_mdp(gym.make("tdraft/Racetrack-v0"))
    assert slippery.start @ value_iteration(slippery, 1.0).v < m.start @ sure.v


def test_a_maze_that_changes_is_planned_as_it_stands():
    env = gym.make("tdraft/BlockingMaze-v0", change_at=1)
    before = mdp(env).start @ value_iteration(mdp(env), 0.95).v
    env.reset(seed=0)
    env.step(0)
    assert (before, mdp(env).start @ value_iteration(mdp(env), 0.95).v) == (pytest.approx(0.95**9), pytest.approx(0.95**15))


class Untold(gym.Env):
    """An env that keeps its table to itself."""

    observation_space = action_space = gym.spaces.Discrete(2)


def test_errors():
    with pytest.raises(PlanningError, match="Discrete observation space"):
        model("CartPole-v1")
    with pytest.raises(PlanningError, match="Discrete action space"):
        model("Pendulum-v1")
    with pytest.raises(PlanningError, match="no transition table P"):
        mdp(Untold())
    with pytest.raises(PlanningError, match="take gamma < 1"):
        value_iteration(mdp(ZhaoGrid()), 1.0)
    with pytest.raises(PlanningError, match="go on for ever"):
        exact_values(mdp(ZhaoGrid()), np.zeros(25, np.int64), 1.0)
    with pytest.raises(PlanningError, match=r"gamma must be in \[0, 1\], got 1.1"):
        value_iteration(model("FrozenLake-v1"), 1.1)
    with pytest.raises(PlanningError, match="policy must be 16 actions"):
        exact_values(model("FrozenLake-v1"), np.full(16, 4), 0.9)
    with pytest.raises(PlanningError, match="episodes end"):
        average_reward(model("FrozenLake-v1"))
    with pytest.raises(PlanningError, match="not unichain"):
        average_reward(mdp({s: {0: [(1.0, s, float(s), False)]} for s in (0, 1)}))
    with pytest.raises(ValueError, match="must sum to 1"):
        mdp({0: {0: [(0.9, 0, 0.0, False)]}})
    with pytest.raises(ValueError, match="rewards must be finite"):
        mdp({0: {0: [(1.0, 0, float("nan"), False)]}})
