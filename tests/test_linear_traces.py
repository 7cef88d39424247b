"""Eligibility traces: equal to dense NumPy ones, to the online lambda-return, and the same on every path."""

import gymnasium as gym
import numpy as np
import pytest

from tdraft import agents
from tdraft.agents import AGENTS, Agent, LinearExpectedSarsa, LinearQ, LinearSarsa
from tdraft.agents.settings import SettingsError
from tdraft.agents.traces import settled
from tdraft.envs.compiled import leaves
from tdraft.envs.decoding.draft import DraftEnv
from tdraft.value.hashing import hashed_features
from tdraft.value.tiles import TileCoding, tile_coding, uniform_tiles

LONG = {"horizon": 2999, "average": 0.4, "alpha_final": 0.01}  # averages begin at step 1799.4
CASES = [
    ("linear-sarsa", {"trace": "accumulating"}),
    ("linear-sarsa", {"trace": "replacing", **LONG}),
    ("linear-sarsa", {"trace": "dutch", **LONG}),
    ("linear-sarsa", {"trace": "dutch", "average_reward": True}),
    ("linear-sarsa", {"trace": "replacing", "lambda_": 1.0}),
    ("linear-expected-sarsa", {"trace": "accumulating", **LONG}),
    ("linear-expected-sarsa", {"trace": "replacing", "average_reward": True}),
    ("linear-q", {"trace": "accumulating"}),
    ("linear-q", {"trace": "replacing", "average_reward": True, **LONG}),
]


def grid() -> TileCoding:
    return uniform_tiles(np.zeros(3), np.array([8.0, 1.0, 3.0]), bins=4)


def hashed():
    return hashed_features({0: range(1, 9), 6: (0.2, 0.4, 0.6, 0.8), 8: (0.5, 1.5)}, crosses=[(0, 6)], bits=5)


def make(name: str, settings: dict, features=grid) -> Agent:
    kind, options = getattr(agents, AGENTS[name]), {"lambda_": 0.9, "alpha": 0.1, "epsilon": 0.2, **settings}
    return kind(DraftEnv(n_tokens=12, reference_rate=1.3), seed=3, features=features(), **options)


def state(agent: Agent) -> dict[str, np.ndarray]:
    return {name: array.copy() for name, array in leaves(agent.learner)}


def assert_same(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> None:
    assert a.keys() == b.keys()
    for name in a:
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)


def play(agent: Agent, env: gym.Env, steps: int, limit: int = 10**9):
    """Train by `begin` and `step`; yields (obs or None after an end, action, reward, discount, next obs, next action, end)."""
    (obs, _), elapsed = env.reset(seed=1), 0
    action = agent.begin(obs)
    for _ in range(steps):
        following, reward, terminated, truncated, _ = env.step(action)
        elapsed += 1
        discount = 0.0 if terminated else agent.gamma
        next_action = agent.step(reward, discount, following)
        end = terminated or truncated or elapsed == limit
        yield obs, action, reward, discount, following, next_action, end
        obs, action = following, next_action
        if end:
            (obs, _), elapsed = env.reset(), 0
            action = agent.begin(obs)


class Dense:
    """Linear TD(lambda) with a trace for every pair, as the textbook writes it; the features are 0-1 vectors."""

    def __init__(self, agent: Agent):
        self.agent, self.features = agent, agent.learner.features
        self.w = np.full(agent.learner.w.shape, agent.settings.q_init / self.features.n_active)
        self.z, self.q_old = np.zeros_like(self.w), 0.0
        self.total, self.now = np.zeros_like(self.w), 0

    def x(self, obs) -> np.ndarray:
        x = np.zeros(self.features.n_features)
        obs = np.array(obs, np.float64)
        np.add.at(x, [self.features.rule(self.features, obs, t) for t in range(self.features.n_active)], 1.0)
        return x

    def value(self, q: np.ndarray, action: int) -> float:
        """What the rule bootstraps from."""
        epsilon = self.agent.settings.epsilon
        if isinstance(self.agent, LinearQ):
            return q.max()
        return epsilon * q.mean() + (1 - epsilon) * q.max() if isinstance(self.agent, LinearExpectedSarsa) else q[action]

    def learn(self, obs, action, reward, discount, following, next_action, end) -> None:
        s, x, x_next = self.agent.settings, np.zeros_like(self.w), self.x(following)
        x[:, action] = self.x(obs)
        horizon = s.horizon or 1
        alpha = s.alpha + ((s.alpha_final or s.alpha) - s.alpha) * min(1.0, self.now / horizon)
        step, decay, q, q_next = alpha / self.features.n_active, s.gamma * s.lambda_, (self.w * x).sum(), x_next @ self.w
        delta = reward + discount * self.value(q_next, next_action) - q
        if s.trace == "dutch":
            self.z = decay * self.z + step * (1 - decay * (self.z * x).sum()) * x
            self.w += (delta + q - self.q_old) * self.z - step * (q - self.q_old) * x
            self.q_old = q_next[next_action]
        else:
            self.z = decay * self.z + x if s.trace == "accumulating" else np.where(x > 0, 1.0, decay * self.z)
            self.w += step * delta * self.z
        start = (1 - s.average) * horizon if s.average else np.inf
        self.total += self.w * np.clip(self.now + 1 - max(self.now, start), 0, 1)
        self.now += 1
        if end or (isinstance(self.agent, LinearQ) and q_next[next_action] < q_next.max()):
            self.z[:], self.q_old = 0.0, 0.0 if end else self.q_old


def mountain_car(kind, **settings) -> Agent:
    env = gym.make("MountainCar-v0")
    tiles = uniform_tiles(env.observation_space.low, env.observation_space.high, bins=8, tilings=8)
    return kind(env, seed=0, features=tiles, **{"alpha": 0.3, "epsilon": 0.1, "lambda_": 0.9, **settings})


@pytest.mark.parametrize("lambda_", [0.05, 0.9, 0.99])
@pytest.mark.parametrize("kind, trace", [(LinearSarsa, "dutch"), (LinearSarsa, "replacing"), (LinearQ, "accumulating")])
def test_sparse_equals_dense_on_mountain_car(kind, trace, lambda_):
    """3000 steps, 15 episodes, 648 tiles; no weight is off by more than 1e-10."""
    agent = mountain_car(kind, trace=trace, lambda_=lambda_, alpha=0.05 if trace == "accumulating" else 0.3)
    dense = Dense(agent)
    assert agent.env is not None
    for transition in play(agent, agent.env, 3000):
        dense.learn(*transition)
    assert np.abs(agent.weights()).max() > 1
    np.testing.assert_allclose(agent.weights(), dense.w, rtol=0, atol=1e-10)


@pytest.mark.parametrize("features, gamma", [(grid, 1.0), (hashed, 0.97)])
@pytest.mark.parametrize("name, settings", [case for case in CASES if "average_reward" not in case[1]])
def test_sparse_equals_dense_on_draft(name, settings, features, gamma):
    """With schedules and averages, and with features that collide (44 of them in 32 weights)."""
    agent = make(name, {"gamma": gamma, "alpha": 0.05, **settings}, features)
    dense = Dense(agent)
    assert agent.env is not None
    for transition in play(agent, agent.env, 2900):
        dense.learn(*transition)
    np.testing.assert_allclose(settled(agent.learner)[0], dense.w, rtol=0, atol=1e-10)
    if settings.get("average"):
        np.testing.assert_allclose(agent.weights(), dense.total / (2900 - 0.6 * 2999), rtol=0, atol=1e-10)


@pytest.mark.parametrize("n_tilings", [1, 3])
@pytest.mark.parametrize("lambda_", [0.5, 0.95, 1.0])
def test_dutch_traces_are_the_online_lambda_return(lambda_, n_tilings):
    """At every step the weights are those of a sweep over the episode so far, from its start, towards the interim lambda-returns
    (Sutton & Barto sec. 12.4). One tiling: one-hot features."""
    env, gamma, alpha = DraftEnv(n_tokens=25), 0.95, 0.4
    tiles = tile_coding([{0: (1, 2, 4), 6: (0.3, 0.7)}, {6: (0.1, 0.5)}, {8: (1, 2)}][:n_tilings])
    agent = LinearSarsa(env, seed=5, features=tiles, alpha=alpha, gamma=gamma, epsilon=0.5, lambda_=lambda_, trace="dutch")
    dense = Dense(agent)
    w0, seen = dense.w.copy(), []
    for obs, action, reward, discount, following, next_action, end in play(agent, env, 80):
        x, x_next = np.zeros_like(w0), np.zeros_like(w0)
        x[:, action], x_next[:, next_action] = dense.x(obs), dense.x(following)
        online = seen[-1][4] if seen else w0  # after the step before: what the bootstrap at this step's end is taken from
        seen.append([x, reward, discount, (online * x_next).sum(), None])
        w = w0.copy()
        for t in range(len(seen)):
            target = seen[-1][1] + seen[-1][2] * seen[-1][3]
            for _, r, d, bootstrap, _ in reversed(seen[t:-1]):
                target = r + d * ((1 - lambda_) * bootstrap + lambda_ * target)
            w += alpha / n_tilings * (target - (w * seen[t][0]).sum()) * seen[t][0]
        seen[-1][4] = w
        if not end:
            np.testing.assert_allclose(settled(agent.learner)[0], w, rtol=0, atol=1e-10)
        if end:
            w0, seen = w, []
    assert np.abs(w0).max() > 0.1


class Corridor(gym.Env):
    """States 0 to 9 in order, reward s * s on leaving s, one action: lambda = 1 is Monte Carlo here."""

    observation_space = gym.spaces.Box(0.0, 10.0, (1,), np.float64)
    action_space = gym.spaces.Discrete(1)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.s = 0
        return np.array([0.0]), {}

    def step(self, action):
        self.s += 1
        return np.array([float(self.s)]), float((self.s - 1) ** 2), self.s == 10, False, {}


@pytest.mark.parametrize("trace", ["accumulating", "replacing", "dutch"])
def test_lambda_1_is_monte_carlo(trace):
    tiles = tile_coding([{0: np.arange(1, 10)}])
    agent = LinearSarsa(Corridor(), seed=0, features=tiles, alpha=0.25, lambda_=1.0, trace=trace).learn(30)
    returns = np.cumsum(np.arange(9, -1, -1) ** 2.0)[::-1]
    np.testing.assert_allclose(agent.weights()[:, 0], returns * (1 - 0.75**3), rtol=1e-13)


@pytest.mark.parametrize("kind", [LinearSarsa, LinearExpectedSarsa, LinearQ])
def test_lambda_0_is_the_one_step_rule_and_the_limit_of_traces(kind):
    """lambda 0, and gamma 0 with any lambda, carry no traces; a lambda near 0 gives nearly the same weights."""
    one_step, none = mountain_car(kind, lambda_=0.0), mountain_car(kind, lambda_=0.0, trace="replacing")
    near, dense = mountain_car(kind, lambda_=1e-14), Dense(one_step)
    for agent in (none, near):
        assert agent.env is not None
        for _ in play(agent, agent.env, 1000):
            pass
    assert one_step.env is not None
    for transition in play(one_step, one_step.env, 1000):
        dense.learn(*transition)
    assert one_step.learner.traces == ()
    np.testing.assert_array_equal(one_step.learner.w, none.learner.w)
    np.testing.assert_allclose(one_step.learner.w, dense.w, rtol=0, atol=1e-12)
    np.testing.assert_allclose(near.weights(), one_step.weights(), rtol=0, atol=1e-10)
    assert mountain_car(kind, gamma=0.0).learner.traces == ()


def test_watkins_cut_zeroes_the_traces_after_an_exploratory_action():
    agent, cuts = make("linear-q", {"trace": "accumulating", "epsilon": 0.3}), 0
    assert agent.env is not None
    for *_, following, action, end in play(agent, agent.env, 500):
        q = agent.learner.q[1]  # the values that the action was chosen from
        explored = q[action] < q.max()
        assert (agent.learner.traces.count[0] == 0) == explored, following
        assert np.any(agent.learner.traces.pairs[..., 0]) != explored
        cuts += explored and not end
    assert 20 < cuts < 200


def test_an_episode_begins_without_traces():
    agent = make("linear-sarsa", {"trace": "dutch"})
    assert agent.env is not None
    for *_, end in play(agent, agent.env, 60):
        assert agent.learner.traces.count[0] > 0
        if end:
            agent.begin(agent.env.reset()[0])
            assert agent.learner.traces.count[0] == 0
            assert not agent.learner.traces.pairs[..., 0].any()


def test_the_list_of_traces_is_never_full():
    """Many features and a long episode: traces are dropped at the threshold, before the list's end that was worked out."""
    env = gym.make("MountainCar-v0", max_episode_steps=2000)
    tiles = uniform_tiles(env.observation_space.low, env.observation_space.high, bins=200, tilings=8)
    agent, most = LinearSarsa(env, seed=0, features=tiles, alpha=0.01, epsilon=1.0, lambda_=0.8), 0
    traces = agent.learner.traces
    assert len(traces.listed) < tiles.n_features
    for _ in play(agent, env, 2000):
        most = max(most, int(traces.count[0]))
    assert 200 < most < len(traces.listed) - tiles.n_active


@pytest.mark.parametrize("name, settings", CASES)
def test_compiled_equals_interpreted(name, settings):
    compiled, interpreted = make(name, settings, hashed), make(name, settings, hashed)
    assert compiled.path == "compiled"
    interpreted.compiled = None
    compiled.learn(3000)
    interpreted.learn(3000)
    assert_same(state(compiled), state(interpreted))
    assert compiled.weights().any()


@pytest.mark.parametrize("name, settings", CASES)
def test_training_in_parts_equals_training_at_once(name, settings, tmp_path):
    whole, first = make(name, settings, hashed).learn(5001), make(name, settings, hashed).learn(2000)
    first.save(tmp_path / "agent")
    np.testing.assert_array_equal(first.weights(), Agent.load(tmp_path / "agent").weights())
    second = type(first).load(tmp_path / "agent", env=first.env).learn(3001)
    assert_same(state(whole), state(second))


@pytest.mark.parametrize("name, settings", CASES)
def test_predict_is_the_compiled_policy(name, settings):
    agent = make(name, settings, hashed).learn(2000)
    decide, params, memory = agent.policy()
    assert agent.env is not None
    obs, _ = agent.env.reset(seed=5)
    for _ in range(200):
        action, _ = agent.predict(obs)
        assert int(action) == decide(params, memory, obs)
        obs, _, terminated, _, _ = agent.env.step(int(action))
        if terminated:
            obs, _ = agent.env.reset()


def test_average_reward_with_traces_finds_the_rate():
    """One action, so rho is the mean reward per unit of time: 285 / 10 on the corridor, whose end is a renewal."""
    tiles = tile_coding([{0: np.arange(1, 10)}])
    settings = {"alpha": 0.05, "eta": 0.02, "lambda_": 0.5, "average_reward": True}
    agent = LinearSarsa(Corridor(), seed=0, features=tiles, **settings).learn(100_000)
    assert agent.rho == pytest.approx(28.5, rel=0.02)


@pytest.mark.parametrize(
    "kind, settings, message",
    [
        (LinearQ, {"trace": "dutch"}, "linear-q has no dutch traces: trace must be one of accumulating, replacing"),
        (LinearExpectedSarsa, {"trace": "dutch"}, "linear-expected-sarsa has no dutch traces"),
        (LinearSarsa, {"lambda_": 1.1}, r"lambda_ must be in \[0, 1\], got 1.1"),
        (LinearSarsa, {"trace": "dutsch"}, "trace must be one of accumulating, replacing, dutch, got 'dutsch'"),
    ],
)
def test_settings_out_of_range(kind, settings, message):
    with pytest.raises(SettingsError, match=message):
        kind(DraftEnv(), **settings)
