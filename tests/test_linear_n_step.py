"""n-step Sarsa and Sarsa(lambda) with clearing, over features: against sums written out, and identities bit for bit."""

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.wrappers import TimeLimit

from tdraft.agents.clearing_traces import LinearClearingSarsa
from tdraft.agents.linear import LinearSarsa
from tdraft.agents.linear_n_step import LinearNStepSarsa
from tdraft.agents.settings import SettingsError
from tdraft.envs.control.classic import MountainCar
from tdraft.value.tiles import uniform_tiles

SETTINGS = {"alpha": 0.4, "epsilon": 0.1, "gamma": 0.95, "seed": 5}
TILES = uniform_tiles(np.array([-1.2, -0.07]), np.array([0.6, 0.07]), bins=4, tilings=3)


def car() -> gym.Env:
    return TimeLimit(MountainCar(numpy_reset=False), 60)


def active(obs: np.ndarray) -> np.ndarray:
    return np.array([TILES.rule(TILES, obs, t) for t in range(TILES.n_active)])


def script(agent, episodes: int = 8):
    """Feed an agent random transitions; episodes as lists of (observation, action, reward, discount), and how each ended."""
    rng, space = np.random.default_rng(3), agent.observation_space
    told = []
    for episode in range(episodes):
        obs = rng.uniform(space.low, space.high)
        action, steps = agent.begin(obs), []
        length, terminates = int(rng.integers(1, 9)), episode % 3 != 2
        for t in range(length):
            reward, over = float(rng.normal()), terminates and t == length - 1
            following = rng.uniform(space.low, space.high)
            discount = 0.0 if over else 0.95
            steps.append((active(obs), action, reward, discount))
            action, obs = agent.step(reward, discount, following), following
        told.append((steps, (active(obs), action)))
    return told


@pytest.mark.parametrize("n", [1, 3, 20])
def test_n_step_returns_written_out(n):
    agent = LinearNStepSarsa(car(), n=n, features=TILES, **SETTINGS)
    told = script(agent)
    agent.begin(np.zeros(2))  # flushes what waits after a truncation
    w = np.zeros_like(agent.learner.w)
    for steps, last in told:
        pairs = [(f, a) for f, a, _, _ in steps] + [last]
        for tau in range(len(steps)):
            end, g, discount = min(tau + n, len(steps)), 0.0, 1.0
            for _, _, reward, d in steps[tau:end]:
                g, discount = g + discount * reward, discount * d
            f, a = pairs[end]
            g += discount * w[f, a].sum()
            f, a = pairs[tau]
            w[f, a] += 0.4 / TILES.n_active * (g - w[f, a].sum())
    np.testing.assert_allclose(agent.learner.w, w, atol=1e-12)


def test_one_step_is_sarsa():
    one, sarsa = LinearNStepSarsa(car(), n=1, features=TILES, **SETTINGS), LinearSarsa(car(), features=TILES, **SETTINGS)
    np.testing.assert_array_equal(one.learn(5000).learner.w, sarsa.learn(5000).learner.w)


@pytest.mark.parametrize("kind", [LinearNStepSarsa, LinearClearingSarsa])
def test_parts_are_the_whole(kind, tmp_path):
    whole, part = (kind(car(), features=TILES, **SETTINGS) for _ in range(2))
    part.learn(1700).save(tmp_path / "agent.npz")
    part = kind.load(tmp_path / "agent.npz", car()).learn(1300)
    np.testing.assert_array_equal(whole.learn(3000).weights(), part.weights())
    assert whole.path == "compiled" and np.abs(whole.weights()).max() > 0


@pytest.mark.parametrize("kind", [LinearNStepSarsa, LinearClearingSarsa])
def test_interpreted_is_compiled(kind):
    class Plain(gym.Wrapper):
        """Anything between the agent and the dynamics: the agent steps it from Python."""

    compiled, interpreted = kind(car(), features=TILES, **SETTINGS), kind(Plain(car()), features=TILES, **SETTINGS)
    assert interpreted.path != "compiled"
    np.testing.assert_array_equal(compiled.learn(400).weights(), interpreted.learn(400).weights())


def test_clearing_written_out():
    agent = LinearClearingSarsa(car(), features=TILES, lambda_=0.8, **SETTINGS)
    told = script(agent)
    w = np.zeros_like(agent.learner.w)
    for steps, last in told:
        pairs, z = [(f, a) for f, a, _, _ in steps] + [last], np.zeros_like(w)
        for t, (f, a, reward, discount) in enumerate(steps):
            z *= 0.95 * 0.8
            z[f] = 0.0
            z[f, a] = 1.0
            following, b = pairs[t + 1]
            w += 0.4 / TILES.n_active * (reward + discount * w[following, b].sum() - w[f, a].sum()) * z
    np.testing.assert_allclose(agent.weights(), w, atol=1e-10)


def test_what_they_refuse():
    for settings in ({"n": 0}, {"n": 2.5}, {"lambda_": 0.5}, {"average_reward": True}):
        with pytest.raises(SettingsError):
            LinearNStepSarsa(car(), features=TILES, **settings)
    for settings in ({"lambda_": 0.0}, {"trace": "dutch"}, {"average_reward": True}):
        with pytest.raises(SettingsError):
            LinearClearingSarsa(car(), features=TILES, **settings)
