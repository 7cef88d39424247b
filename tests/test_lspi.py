"""LSPI: equal to policy iteration where every transition is counted by its probability; the chain of Lagoudakis & Parr; tiles."""

import re
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces

import tdraft.envs  # noqa: F401
from tdraft.agents.base import SpaceError
from tdraft.agents.lspi import Samples, collect, lspi
from tdraft.agents.planning import mdp, policy_iteration
from tdraft.agents.settings import SettingsError
from tdraft.value.features import active_features
from tdraft.value.tiles import uniform_tiles


class Chain(gym.Env):
    """Lagoudakis & Parr 2003, section 9.1: four states in a row, moves that fail with .1, reward in the middle two."""

    observation_space, action_space = spaces.Discrete(4), spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.state = int(self.np_random.integers(4))
        return self.state, {}

    def step(self, action):
        move = (1 if action else -1) * (-1 if self.np_random.random() < 0.1 else 1)
        self.state = min(max(self.state + move, 0), 3)
        return self.state, float(self.state in (1, 2)), False, False, {}


@pytest.mark.parametrize("name", ["FrozenLake-v1", "CliffWalking-v1"])
def test_all_transitions_by_their_probability_give_policy_iteration(name):
    P = gym.make(name).unwrapped.P  # pyright: ignore[reportAttributeAccessIssue]
    rows = [(s, a, r, end, after, p) for s in P for a in P[s] for p, after, r, end in P[s][a]]
    obs, action, reward, ended, after, count = (np.array(column) for column in zip(*rows))
    samples = Samples(obs, action, reward, ended, after, count, n_actions=4)
    found = lspi(samples, gamma=0.95, ridge=0.0)
    exact = policy_iteration(mdp(gym.make(name)), gamma=0.95)
    assert found.stable
    np.testing.assert_allclose(found.values(np.arange(len(P))), exact.q, atol=1e-8)


def test_the_chain_s_policy_from_random_actions():
    """Right, right, left, left, with values that are those of the model that the samples imply."""
    samples = collect(Chain(), 4000, seed=0)
    found = lspi(samples, gamma=0.9)
    assert found.stable and found.iterations <= 10
    assert found.policy(np.arange(4)).tolist() == [1, 1, 0, 0]
    implied = np.zeros((4, 2, 4))
    np.add.at(implied, (samples.obs, samples.action, samples.next_obs), 1.0)
    implied /= implied.sum(axis=2, keepdims=True)
    q = np.zeros((4, 2))
    for _ in range(2000):
        q = implied @ (np.isin(np.arange(4), (1, 2)) + 0.9 * q.max(axis=1))
    np.testing.assert_allclose(found.values(np.arange(4)), q, atol=1e-6)


def test_tiles_of_a_vector_and_collecting_by_the_policy_found():
    env = gym.make("tdraft/PuddleWorld-v0")
    space = env.observation_space
    assert isinstance(space, spaces.Box)
    tiles = uniform_tiles(space.low, space.high, bins=4, tilings=2)
    found = lspi(collect(env, 3000, seed=1), gamma=0.98, features=lambda obs: active_features(obs, tiles).matrix(), ridge=1e-3)
    played = collect(env, 300, seed=2, policy=found.policy)
    np.testing.assert_array_equal(found.policy(played.obs), played.action)


def test_bad_input_is_refused():
    samples = collect(Chain(), 20)
    with pytest.raises(SettingsError, match=r"gamma must be in \[0, 1\], got 1.5"):
        lspi(samples, gamma=1.5)
    with pytest.raises(SettingsError, match="sample 3 has another"):
        lspi(samples._replace(reward=np.where(np.arange(20) == 3, np.nan, 0.0)), gamma=0.9)
    with pytest.raises(SettingsError, match="need features="):
        lspi(samples._replace(obs=np.zeros((20, 2))), gamma=0.9)
    with pytest.raises(SpaceError, match="Discrete action space"):
        collect(gym.make("Pendulum-v1"), 5)


def test_the_page_s_code_finds_the_way_over_the_ice():
    page = (Path(__file__).parent.parent / "docs" / "lspi.md").read_text()
    block = re.findall(r"```python\n(.*?)```", page, re.S)[0]
    names: dict = {}
    exec(compile(block, "page", "exec"), names)
    exact = policy_iteration(mdp(gym.make("FrozenLake-v1", is_slippery=False)), gamma=0.9)
    seen = np.unique(names["samples"].obs)
    np.testing.assert_allclose(names["found"].values(seen).max(axis=1), exact.v[seen], atol=1e-6)


@pytest.mark.slow
def test_the_page_s_figure(tmp_path, monkeypatch):
    """With two runs of few transitions."""
    monkeypatch.chdir(tmp_path)
    page = (Path(__file__).parent.parent / "docs" / "lspi.md").read_text()
    block = re.findall(r"```python\n(.*?)```", page, re.S)[1]
    short = re.sub(r"seeds, sizes = .*", "seeds, sizes = 2, [50, 400]", block)
    assert short != block
    exec(compile(short, "page", "exec"), {})
    assert (tmp_path / "lspi.png").stat().st_size > 1000
