"""Tiles that wrap around: the tiles of `uniform_tiles` where nothing wraps, and none that ends at the seam where it does."""

import gymnasium as gym
import numpy as np
import pytest

import tdraft.envs  # noqa: F401
from tdraft.agents import TD, LinearSarsa
from tdraft.value.periodic import PeriodicTiles, periodic_tiles
from tdraft.value.tiles import tile_index, uniform_tiles

LOW, HIGH = np.array([-np.pi, 2.0]), np.array([np.pi, 5.0])


def active(tiles: PeriodicTiles, obs) -> list[int]:
    return [tiles.rule(tiles, np.asarray(obs, float), t) for t in range(tiles.n_active)]


def test_without_a_period_they_are_the_uniform_tiles():
    ours, plain = periodic_tiles(LOW, HIGH, periodic=(), bins=5, tilings=8), uniform_tiles(LOW, HIGH, bins=5, tilings=8)
    assert (ours.n_active, ours.n_features, ours.n_inputs) == (plain.n_active, plain.n_features, plain.n_inputs)
    points = np.random.default_rng(0).uniform(LOW - 1, HIGH + 1, (500, 2))
    for obs in points:
        assert active(ours, obs) == [tile_index(plain, obs, t) for t in range(8)]


def test_a_period_makes_no_difference_and_tiles_share_it_evenly():
    tiles = periodic_tiles(LOW, HIGH, periodic=(0,), bins=5, tilings=8)
    assert tiles.n_features == 8 * 5 * 6
    points = np.random.default_rng(1).uniform(LOW, HIGH, (20_000, 2))
    indices = np.array([active(tiles, obs) for obs in points])
    for turns in (-3, 1, 10):
        moved = np.array([active(tiles, obs + [2 * np.pi * turns, 0.0]) for obs in points[:500]])
        np.testing.assert_array_equal(moved, indices[:500])
    along = indices - np.arange(8) * 30  # within a tiling
    counts = np.array([np.bincount(column % 5, minlength=5) for column in along.T])
    assert abs(counts - 4000).max() < 5 * np.sqrt(20_000 * 0.2 * 0.8)  # 40 counts, five standard deviations


def test_tiles_reach_over_the_seam():
    """Of points just left and right of it as many tiles are shared as of any two that are as close."""
    tiles = periodic_tiles([0.0], [1.0], periodic=(0,), bins=4, tilings=16)
    near = [len(set(active(tiles, [x - 0.002])) & set(active(tiles, [x + 0.003]))) for x in (0.0, 0.25, 0.51, 1.0)]
    assert near == [15, 15, 16, 15]  # an edge of one of the 64 is at each multiple of 1/64
    assert not set(active(tiles, [0.1])) & set(active(tiles, [0.6]))


def test_any_number_has_a_tile():
    tiles = periodic_tiles(LOW, HIGH, periodic=(0,), bins=7, tilings=3)
    for x in (np.nan, -np.inf, np.inf, 1e300, -1e300, np.nextafter(-np.pi, -4), np.nextafter(np.pi, 4)):
        for obs in ([x, 3.0], [0.0, x]):
            assert all(t * 56 <= index < (t + 1) * 56 for t, index in enumerate(active(tiles, obs)))


@pytest.mark.parametrize("kind", [LinearSarsa, TD])
def test_agents_train_on_them_on_both_paths_and_from_a_file(kind, tmp_path):
    env = gym.make("tdraft/MountainCar-v0", numpy_reset=False)
    tiles = periodic_tiles([-1.2, -0.07], [0.6, 0.07], periodic=(1,), bins=6, tilings=4)
    compiled, interpreted = (kind(env, features=tiles, seed=0) for _ in range(2))
    interpreted.compiled = None
    compiled.learn(500).save(tmp_path / "agent")
    loaded = kind.load(tmp_path / "agent", env=env)
    compiled.learn(500)
    for agent in (loaded.learn(500), interpreted.learn(1000)):
        np.testing.assert_array_equal(agent.learner.w, compiled.learner.w)
    assert compiled.learner.w.any()
    assert compiled.predict(np.array([[-0.5, 0.0], [-0.5, 0.02]]))[0].shape == (2,)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([0.0], [np.inf]), "finite bounds"),
        (([1.0], [0.0]), "low < high"),
        (([0.0], [1.0, 2.0]), "finite bounds"),
    ],
)
def test_bounds_that_are_none(arguments, message):
    with pytest.raises(ValueError, match=message):
        periodic_tiles(*arguments, periodic=())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"periodic": (1,)}, r"periodic must be dimensions in 0\.\.0, got \(1,\)"),
        ({"periodic": (0,), "bins": 0}, "bins and tilings must be at least 1"),
        ({"periodic": (0,), "bins": 10**8}, "use fewer bins or tilings"),
    ],
)
def test_options_that_are_none(options, message):
    with pytest.raises(ValueError, match=message):
        periodic_tiles([0.0], [1.0], **options)
