"""Feature maps: numbers that one can check in one's head, and sparse rows equal to the dense matrix."""

import numpy as np
import pytest

from tdraft.value.features import (
    active_features,
    add_features,
    aggregation,
    fourier,
    fourier_basis,
    one_hot,
    polynomial,
    radial_basis,
    state_features,
    state_value,
)
from tdraft.value.tiles import tile_coding, uniform_tiles


def test_polynomial_multiplies_powers():
    np.testing.assert_array_equal(polynomial([2.0], 3), [[1, 2, 4, 8]])
    np.testing.assert_array_equal(polynomial([[2.0, 3.0]], 1), [[1, 3, 2, 6]])


def test_fourier_is_a_cosine_of_every_frequency_vector():
    np.testing.assert_allclose(fourier([0.0, 0.5, 1.0], 2), [[1, 1, 1], [1, 0, -1], [1, -1, 1]], atol=1e-15)
    np.testing.assert_allclose(fourier([[1.0, 0.5]], 1), [[1, 0, -1, 0]], atol=1e-15)  # c = (0,0), (0,1), (1,0), (1,1)


def test_a_fourier_basis_gives_the_rows_of_the_matrix_and_clips():
    basis = fourier_basis([-1.0, 0.0], [1.0, 2.0], 2)
    points = np.random.default_rng(0).random((4, 2))
    for point, row in zip(points, fourier(points, 2)):
        obs = np.array([-1.0, 0.0]) + 2 * point
        values = [basis.value_rule(basis, obs, t) for t in range(basis.n_active)]
        np.testing.assert_allclose(values, row, atol=1e-14)
    assert basis.value_rule(basis, np.array([9.0, 0.0]), 3) == pytest.approx(-1.0)  # c = (1, 0), at the upper bound


def test_radial_basis_is_one_at_its_centre():
    np.testing.assert_allclose(radial_basis([0.0, 1.0], [0.0, 1.0], 1.0), [[1, np.exp(-0.5)], [np.exp(-0.5), 1]])
    np.testing.assert_allclose(radial_basis([[0.0, 0.0]], [[3.0, 4.0]], 5.0), [[np.exp(-0.5)]])


def test_one_hot_and_groups():
    np.testing.assert_array_equal(one_hot(3).matrix(), np.eye(3))
    np.testing.assert_array_equal(aggregation(6, 3).matrix(), np.repeat(np.eye(3), 2, axis=0))
    assert aggregation(1000, 10).index[[0, 99, 100, 999], 0].tolist() == [0, 0, 1, 9]
    assert one_hot(5).index.shape == state_features(np.eye(5)).index.shape == (5, 1)


def test_sparse_rows_equal_the_dense_matrix():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(7, 5)) * (rng.random((7, 5)) < 0.6)
    x[3] = 0.0
    features, w = state_features(x), rng.normal(size=5)
    np.testing.assert_array_equal(features.matrix(), x)
    for s in range(7):
        assert state_value(w, features, s) == pytest.approx(x[s] @ w, abs=1e-14)
        moved = w.copy()
        add_features(moved, features, s, 0.5)
        np.testing.assert_allclose(moved, w + 0.5 * x[s], atol=1e-15)


def test_tiles_have_one_feature_a_tiling():
    x = active_features([0.1, 0.6], tile_coding([{0: (0.5,)}, {0: (0.25,)}])).matrix()
    np.testing.assert_array_equal(x, [[1, 0, 1, 0], [0, 1, 0, 1]])
    points = np.random.default_rng(1).random((10, 2))
    grid = active_features(points, uniform_tiles([0.0, 0.0], [1.0, 1.0], bins=4, tilings=4))
    np.testing.assert_array_equal(grid.matrix().sum(axis=1), np.full(10, 4.0))


@pytest.mark.parametrize(
    "make",
    [
        lambda: state_features(np.zeros(3)),
        lambda: state_features([[np.nan]]),
        lambda: aggregation(3, 4),
        lambda: polynomial([1.0], -1),
        lambda: fourier(np.zeros((1, 9)), 9),
        lambda: radial_basis([1.0], [1.0], 0.0),
        lambda: radial_basis([1.0], [[1.0, 2.0]], 1.0),
        lambda: fourier([np.inf], 1),
        lambda: fourier_basis([1.0], [0.0], 2),
    ],
)
def test_bad_input_is_named(make):
    with pytest.raises(ValueError, match=r"expected|must be"):
        make()
