"""Objectives on finite chains: numbers computed by hand, identities, Baird's counterexample, the random walks."""

import numpy as np
import pytest

from tdraft.agents.planning import chain, exact_values, mdp
from tdraft.envs.textbook.walks import Baird, BoyanChain, RandomWalk
from tdraft.value.objectives import (
    ObjectiveError,
    bellman_error,
    bellman_errors,
    least_value_error,
    mean_length,
    on_policy_distribution,
    project,
    projected_bellman_error,
    root_value_error,
    stationary_distribution,
    td_fixed_point,
    value_error,
    zhao_objective,
)

# Two states: from 0 to either with 1/2, from 1 back to 0; reward 1 in state 1.
P, R, MU = np.array([[0.5, 0.5], [1.0, 0.0]]), np.array([0.0, 1.0]), np.array([2 / 3, 1 / 3])


def test_two_states_by_hand():
    assert stationary_distribution(P) == pytest.approx(MU, abs=1e-12)
    v, true = np.array([1.0, 3.0]), np.array([0.0, 1.0])
    assert value_error(v, true, MU) == pytest.approx(2 / 3 * 1 + 1 / 3 * 4)
    assert zhao_objective(v, true, P) == pytest.approx(2.0) and root_value_error(v, true, MU) == pytest.approx(np.sqrt(2))
    assert bellman_errors(v, P, R, 0.5) == pytest.approx([0.5 * 2 - 1, 1 + 0.5 - 3])
    assert bellman_error(v, P, R, 0.5, MU) == pytest.approx(1 / 3 * 2.25)
    # One feature (1, 2): A = sum mu x (x - gamma x'), b = sum mu x r
    X = np.array([[1.0], [2.0]])
    a = 2 / 3 * 1 * (1 - 0.5 * 1.5) + 1 / 3 * 2 * (2 - 0.5 * 1)
    assert td_fixed_point(X, P, R, 0.5, MU) == pytest.approx([(2 / 3) / a])
    assert least_value_error(X, true, MU) == pytest.approx([(1 / 3 * 2) / (2 / 3 + 4 / 3)])
    # The projection of a vector on (1, 2): coefficient sum mu x v / sum mu x x
    assert project(X, np.array([0.0, -1.5]), MU) == pytest.approx([-0.5, -1.0])
    assert projected_bellman_error(X, np.array([0.0]), P, R, 0.5, MU) == pytest.approx(2 / 3 / 9 + 1 / 3 * 4 / 9)


def test_pbe_vanishes_at_the_fixed_point_and_only_there():
    rng = np.random.default_rng(0)
    chain_, r, X = rng.dirichlet(np.ones(6), 6), rng.normal(size=6), rng.normal(size=(6, 3))
    mu = stationary_distribution(chain_)
    assert mu @ chain_ == pytest.approx(mu, abs=1e-12)
    w = td_fixed_point(X, chain_, r, 0.9, mu)
    assert projected_bellman_error(X, w, chain_, r, 0.9, mu) < 1e-20
    assert projected_bellman_error(X, w + 0.1, chain_, r, 0.9, mu) > 1e-6
    true = np.linalg.solve(np.eye(6) - 0.9 * chain_, r)
    best = least_value_error(X, true, mu)
    assert td_fixed_point(X, chain_, r, 0.9, mu, lambda_=1.0) == pytest.approx(best, abs=1e-9)  # TD(1) is least squares
    assert td_fixed_point(np.eye(6), chain_, r, 0.9, mu, lambda_=0.4) == pytest.approx(true, abs=1e-9)
    errors = [value_error(X @ td_fixed_point(X, chain_, r, 0.9, mu, lam), true, mu) for lam in (0.0, 0.5, 0.9)]
    for error, lam in zip(errors, (0.0, 0.5, 0.9)):  # Tsitsiklis & Van Roy's bound, Sutton & Barto eq. 12.8
        assert error <= ((1 - 0.9 * lam) / (1 - 0.9)) ** 2 * value_error(X @ best, true, mu) + 1e-12
    assert bellman_error(true, chain_, r, 0.9, mu) < 1e-20


def test_the_19_state_walk():
    model = mdp(RandomWalk(19))
    P19, r = chain(model, np.zeros(20, np.int64))
    true = exact_values(model, np.zeros(20, np.int64), 1.0)
    assert true[:19] == pytest.approx(np.arange(-9, 10) / 10, abs=1e-12)
    mu = on_policy_distribution(P19, model.start)
    assert mean_length(P19, model.start) == pytest.approx(100.0)  # 10 * 10 steps from the middle
    assert mu[:19] == pytest.approx([min(i, 20 - i) / 100 for i in range(1, 20)], abs=1e-12)
    X = np.eye(20)[:, :19]
    assert td_fixed_point(X, P19, r, 1.0, mu) == pytest.approx(true[:19], abs=1e-9)
    assert td_fixed_point(X, P19, r, 1.0, mu, lambda_=0.8) == pytest.approx(true[:19], abs=1e-9)


def test_the_1000_state_walk_with_ten_groups():
    model = mdp(RandomWalk(1000, jump=100))
    P1000, r = chain(model, np.zeros(1001, np.int64))
    true, mu = exact_values(model, np.zeros(1001, np.int64), 1.0), on_policy_distribution(P1000, model.start)
    X = np.zeros((1001, 10))
    X[np.arange(1000), np.arange(1000) // 100] = 1.0
    best, fixed = least_value_error(X, true, mu), td_fixed_point(X, P1000, r, 1.0, mu)
    groups = mu[:1000].reshape(10, 100)
    assert best == pytest.approx((groups * true[:1000].reshape(10, 100)).sum(axis=1) / groups.sum(axis=1), abs=1e-9)
    assert root_value_error(X @ best, true, mu) < root_value_error(X @ fixed, true, mu) < 0.15
    assert fixed[0] > best[0] and fixed[9] < best[9]  # figure 9.2: TD lies nearer to 0 at both ends


def test_boyans_values_are_linear_in_its_features():
    env = BoyanChain()
    model = mdp(env)
    P13, r = chain(model, np.zeros(13, np.int64))
    mu = on_policy_distribution(P13, model.start)
    assert td_fixed_point(env.features, P13, r, 1.0, mu) == pytest.approx([-24, -16, -8, 0], abs=1e-9)


def test_baird():
    """Semi-gradient TD's expected update has no stable fixed point; w = 0 has no error; the book's start is far away."""
    env = Baird()
    model = mdp(env)
    P7, r = chain(model, np.tile(env.target, (7, 1)))
    mu = stationary_distribution(chain(model, np.tile(env.behaviour, (7, 1)))[0])
    assert mu == pytest.approx(np.full(7, 1 / 7), abs=1e-12)
    w = np.array([1, 1, 1, 1, 1, 1, 10, 1.0])
    assert root_value_error(env.features @ w, np.zeros(7), mu) == pytest.approx(np.sqrt((6 * 3**2 + 12**2) / 7))
    assert bellman_error(env.features @ w, P7, r, 0.99, mu) == pytest.approx(
        (6 * (0.99 * 12 - 3) ** 2 + (0.99 * 12 - 12) ** 2) / 7
    )
    assert projected_bellman_error(env.features, np.zeros(8), P7, r, 0.99, mu) == 0
    # The features span all seven states: the projection changes nothing
    assert projected_bellman_error(env.features, w, P7, r, 0.99, mu) == pytest.approx(
        bellman_error(env.features @ w, P7, r, 0.99, mu)
    )
    A = env.features.T * mu @ (np.eye(7) - 0.99 * P7) @ env.features
    assert np.linalg.eigvals(A).real.min() < 0  # it diverges
    with pytest.raises(ObjectiveError, match="no single fixed point"):
        td_fixed_point(env.features, P7, r, 0.99, mu)


def test_errors():
    with pytest.raises(ObjectiveError, match="episodes end in this chain"):
        stationary_distribution(np.array([[0.5, 0.4], [0.5, 0.5]]))
    with pytest.raises(ObjectiveError, match="several closed classes"):
        stationary_distribution(np.eye(2))
    with pytest.raises(ObjectiveError, match="may never end"):
        on_policy_distribution(np.eye(2), np.array([1.0, 0.0]))
    with pytest.raises(ObjectiveError, match=r"square matrix \(S, S\), got shape \(2, 3\)"):
        stationary_distribution(np.ones((2, 3)))
    with pytest.raises(ObjectiveError, match=r"r must have an entry for each of the 2 states, got shape \(3,\)"):
        bellman_errors(np.zeros(2), P, np.zeros(3), 0.9)
    with pytest.raises(ObjectiveError, match="must hold probabilities"):
        stationary_distribution(np.array([[1.5, -0.5], [0.0, 1.0]]))
