"""Actor-critic: the update against a naive one, renewals under average reward, sampling, a bandit learned."""

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces

from tdraft.agents import ActorCritic
from tdraft.agents.settings import SettingsError
from tdraft.value.tiles import tile_coding

EDGES = (0.5, 1.5, 2.5)


class Walk(gym.Env):
    """Four states in a row as vectors; the action is added to the state, 3 is the end. Rewards and durations depend on both."""

    observation_space = spaces.Box(0.0, 3.0, (1,), np.float64)
    action_space = spaces.Discrete(3)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.state = 0
        return np.array([0.0]), {}

    def step(self, action):
        reward, duration = float(action) - 0.3 * self.state, 1.0 + 0.5 * action
        self.state = min(self.state + int(action), 3)
        return np.array([float(self.state)]), reward, self.state == 3, False, {"duration": duration}


class Recorder(ActorCritic):
    """Remembers what it has seen."""

    def begin(self, obs):
        action = super().begin(obs)
        self.log.append(("begin", int(obs[0]), action))
        return action

    def step(self, reward, discount, obs, duration=1.0):
        action = super().step(reward, discount, obs, duration)
        self.log.append(("step", reward, discount, duration, int(obs[0]), action))
        return action


def naive(log, *, average_reward, n_steps, alpha, alpha_w, beta, lambda_, eta):
    """The docstring's equations on one-hot features, in plain NumPy, from a log of calls."""
    theta, w, rho = np.zeros((4, 3)), np.zeros(4), 0.0
    segment, state, action, p, v, waiting = [], 0, 0, None, 0.0, None

    def look(s):
        e = np.exp(theta[s] - theta[s].max())
        return e / e.sum(), w[s]

    def learn(last_value):
        nonlocal theta, w, rho
        advantage, drift, following = 0.0, 0.0, last_value
        for s, a, p, v, r, d, t in reversed(segment):
            delta = r - rho * t + d * following - v
            advantage = delta + d * lambda_ * advantage
            drift += delta
            one = np.eye(3)[a]
            entropy = -(p * np.log(p)).sum()
            theta[s] += alpha * (advantage * (one - p) - beta * p * (np.log(p) + entropy))
            w[s] += alpha_w * advantage
            following = v
        rho += eta * alpha_w * drift
        segment.clear()

    def arrive(r, d, t, s, a):
        nonlocal state, action, p, v
        segment.append((state, action, p, v, r, d, t))
        p, v = look(s)
        state, action = s, a
        if len(segment) == n_steps:
            learn(v)
            v = w[s]

    for event in log:
        if event[0] == "begin":
            _, s, a = event
            if waiting is not None:
                r, t = waiting
                waiting = None
                arrive(r, 1.0, t, s, a)
            else:
                learn(v)
                p, v = look(s)
                state, action = s, a
        else:
            _, r, d, t, s, a = event
            if average_reward and d == 0.0:
                waiting = r, t
            else:
                arrive(r, d, t, s, a)
    return theta, w, rho


@pytest.mark.parametrize("average_reward", [False, True])
def test_the_update_is_the_docstrings(average_reward):
    numbers = {"n_steps": 5, "alpha": 0.3, "alpha_w": 0.2, "beta": 0.05, "lambda_": 0.8, "eta": 0.1}
    gamma = 1.0 if average_reward else 0.9
    agent = Recorder(Walk(), seed=1, features=tile_coding([{0: EDGES}]), gamma=gamma, average_reward=average_reward, **numbers)
    agent.log = []
    agent.learn(203)
    eta = numbers.pop("eta") if average_reward else numbers.pop("eta") * 0.0
    theta, w, rho = naive(agent.log, average_reward=average_reward, eta=eta, **numbers)
    np.testing.assert_allclose(agent.learner.theta, theta, atol=1e-12)
    np.testing.assert_allclose(agent.learner.w, w, atol=1e-12)
    assert agent.rho == pytest.approx(rho, abs=1e-12)
    assert np.abs(theta).max() > 0.1


def test_exploring_actions_follow_the_softmax():
    """4000 draws at one state; each share within 4 standard errors."""
    agent = ActorCritic(Walk(), seed=0, features=tile_coding([{0: EDGES}]))
    agent.learner.theta[1] = [0.0, 1.0, 2.0]
    p = np.exp(agent.learner.theta[1])
    p /= p.sum()
    drawn, _ = agent.predict(np.full((4000, 1), 1.0), deterministic=False)
    share = np.bincount(drawn, minlength=3) / 4000
    assert np.all(np.abs(share - p) < 4 * np.sqrt(p * (1 - p) / 4000))
    assert agent.predict(np.array([1.0]))[0] == 2


def test_a_bandit_is_learned():
    """Three seeds, each of which must prefer the best arm by the end."""

    class Bandit(gym.Env):
        observation_space = spaces.Box(0.0, 1.0, (1,), np.float64)
        action_space = spaces.Discrete(3)

        def reset(self, *, seed=None, options=None):
            super().reset(seed=seed)
            return np.zeros(1), {}

        def step(self, action):
            return np.zeros(1), float(self.np_random.normal([0.0, 1.0, 0.5][action])), True, False, {}

    for seed in range(3):
        agent = ActorCritic(Bandit(), seed=seed, features=tile_coding([{0: (0.5,)}]), n_steps=8, beta=0.0, alpha=0.1)
        agent.learn(8000)
        assert int(agent.predict(np.zeros(1))[0]) == 1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"alpha": 0.0}, "alpha must be in"),
        ({"alpha_w": 2.0}, "alpha_w must be in"),
        ({"n_steps": 0}, "n_steps must be in"),
        ({"beta_final": 0.0}, "needs horizon"),
        ({"average_reward": True}, "gamma must be 1, got 0.99"),
    ],
)
def test_settings_out_of_range(settings, message):
    with pytest.raises(SettingsError, match=message):
        ActorCritic(Walk(), **settings)
