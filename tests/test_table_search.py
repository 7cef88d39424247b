"""The short ways through a transition table are `draw` and `table_step`, bit for bit, and so is the generator after them."""

import gymnasium as gym
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tdraft.envs.compiled import Table, certain_step, compile_env, draw, env_rng, guide, table_reset, table_step
from tdraft.kernels.rng import uniform


def generator_that_draws(u: float) -> np.ndarray:
    """A state of xoshiro256++ whose next draw is u, rounded down to a multiple of 2**-53: rotl(s0 + s3, 23) + s0 with s0 = 0."""
    bits = int(u * 2**53) << 11
    return np.array([0, 1, 1, (bits >> 23 | bits << 41) % 2**64], np.uint64)


def table(start: np.ndarray, **options) -> Table:
    nothing = np.zeros((1, 1, 1))
    return Table(nothing, nothing.astype(np.int64), nothing, nothing.astype(bool), start, **options)


@settings(deadline=None)  # the first one compiles
@given(st.lists(st.integers(0, 3), min_size=1, max_size=70).filter(any))
def test_the_guide_finds_what_a_search_finds(weights):
    """For draws on every edge, beside it and between: of the law and of the guide's own cells."""
    start = np.cumsum(np.array(weights) / sum(weights))
    found = guide(start)
    edges = np.concatenate([start, np.arange(len(found)) / len(found), np.random.default_rng(0).random(50)])
    draws = np.concatenate([edges, np.nextafter(edges, 0), np.nextafter(edges, 1)])
    for u in np.floor(draws[draws < 1] * 2**53) / 2**53:
        assert uniform(generator_that_draws(u)) == u
        expected = np.searchsorted(start, u, side="right") % len(start)
        for params in (table(start, guide=found), table(start)):
            assert table_reset(params, generator_that_draws(u)) == expected


@pytest.mark.parametrize("name", ["Taxi-v4", "CliffWalking-v1", "FrozenLake-v1"])
@pytest.mark.parametrize("generator", [env_rng, np.random.default_rng])
def test_the_short_ways_change_no_trajectory(name, generator):
    """A step without chance draws from a NumPy generator, as Gymnasium's envs do, and leaves one of ours alone."""
    env = gym.make(name)
    params, reset, step, _, _ = compile_env(env)
    assert (step is certain_step) == (params.cumulative.shape[2] == 1) == (name != "FrozenLake-v1")
    ours, theirs, choice = generator(3), generator(3), np.random.default_rng(5)
    leaves_ours_alone = step is certain_step and generator is env_rng
    for _ in range(300):
        obs = reset(params, ours)
        assert obs == draw(params.start, theirs)
        for action in choice.integers(params.following.shape[1], size=20):
            now = step(params, obs, action, ours)
            assert now == table_step(params, obs, action, theirs.copy() if leaves_ours_alone else theirs)
            obs = now[0]
            if now[2]:
                break
    assert draw(np.arange(1, 17) / 16, ours) == draw(np.arange(1, 17) / 16, theirs)
    after = [g.tolist() if isinstance(g, np.ndarray) else g.bit_generator.state for g in (ours, theirs)]
    assert after[0] == after[1]
