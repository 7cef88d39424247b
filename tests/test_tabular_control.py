"""Tabular control: compiled = interpreted, parts = whole, and identities between agents that hold bit for bit."""

import gymnasium as gym
import numpy as np
import pytest

from tdraft import agents
from tdraft.agents import AGENTS, Agent
from tdraft.envs.compiled import leaves

CASES = [
    ("n-step-sarsa", {"n": 3}),
    ("n-step-expected-sarsa", {"n": 3}),
    ("off-policy-n-step-sarsa", {"n": 3}),
    ("tree-backup", {"n": 3}),
    ("q-sigma", {"n": 3, "epsilon_target": 0.0}),
    ("q-sigma", {"n": 3, "control_variate": False}),
    ("double-q", {}),
    ("double-expected-sarsa", {}),
    ("sarsa-lambda", {"trace": "accumulating"}),
    ("sarsa-lambda", {"trace": "replacing"}),
    ("sarsa-lambda", {"trace": "dutch"}),
    ("q-lambda", {"trace": "replacing"}),
    ("monte-carlo", {"capacity": 1000}),
    ("monte-carlo", {"capacity": 1000, "first_visit": False, "sample_average": True}),
    ("off-policy-monte-carlo", {"capacity": 50}),
    ("dyna-q", {}),
    ("dyna-q-plus", {}),
    ("prioritised-sweeping", {}),
    ("differential-sarsa", {}),
    ("r-learning", {}),
    ("rvi-q", {}),
]
LONG = {"horizon": 2500, "average": 0.4, "alpha_final": 0.01}  # averages begin at step 1500


def make(name: str, env: str = "CliffWalking-v1", **settings) -> Agent:
    """An agent on a toy-text env of Gymnasium's, cut off after 150 steps."""
    options = {"seed": 3, "alpha": 0.1, "epsilon": 0.2, **settings}
    return getattr(agents, AGENTS[name])(gym.make(env, max_episode_steps=150), **options)


class Twin(gym.Env):
    """The compiled form of an agent's env behind Gymnasium's interface, drawing from the same generator."""

    def __init__(self, agent: Agent):
        assert agent.compiled is not None
        self.observation_space, self.action_space = agent.observation_space, agent.action_space
        self.params, self.first, self.move, self.limit, _ = agent.compiled
        self.rng = agent.env_rng.copy()

    def reset(self, *, seed=None, options=None):
        self.obs, self.elapsed = self.first(self.params, self.rng), 0
        return self.obs, {}

    def step(self, action):
        self.obs, reward, terminated, duration = self.move(self.params, self.obs, action, self.rng)
        self.elapsed += 1
        return self.obs, reward, bool(terminated), self.elapsed == self.limit, {"duration": duration}


def state(agent: Agent) -> dict[str, np.ndarray]:
    return {name: array.copy() for name, array in leaves(agent.learner)}


def assert_same(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> None:
    assert a.keys() == b.keys()
    for name in a:
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)


@pytest.mark.parametrize("env", ["CliffWalking-v1", "FrozenLake-v1"])
@pytest.mark.parametrize(("name", "settings"), CASES)
def test_compiled_interpreted_and_resumed_training_are_the_same(name, settings, env, tmp_path):
    settings = {**settings, **LONG}
    compiled = make(name, env, **settings)
    interpreted = make(name, env, **settings)
    interpreted.set_env(Twin(interpreted))
    assert compiled.path == "compiled" and interpreted.path.startswith("interpreted")
    compiled.learn(1100).save(tmp_path / "agent")
    resumed = type(compiled).load(tmp_path / "agent", env=compiled.env)
    compiled.learn(1400)
    assert_same(state(compiled), state(resumed.learn(1400)))
    assert_same(state(compiled), state(interpreted.learn(2500)))
    assert np.any(compiled.table.q != 0)  # pyright: ignore
    assert int(compiled.table.clock[0]) > 2000


def same_as(name: str, settings: dict, other: str, other_settings: dict, env: str, steps: int = 3000) -> None:
    """Two agents that must be the same, random numbers included."""
    a, b = make(name, env, **settings).learn(steps), make(other, env, **other_settings).learn(steps)
    kept, wanted = ({k: v for k, v in leaves(agent.table) if k != "last"} for agent in (a, b))  # n-step agents have a ring for it
    assert_same(kept, wanted)
    np.testing.assert_array_equal(a.rng, b.rng)


@pytest.mark.parametrize("env", ["CliffWalking-v1", pytest.param("FrozenLake-v1", marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    ("name", "settings", "other", "other_settings"),
    [
        ("n-step-sarsa", {"n": 1}, "sarsa", {}),
        ("n-step-expected-sarsa", {"n": 1}, "expected-sarsa", {}),
        ("off-policy-n-step-sarsa", {"n": 1, "epsilon_target": None}, "sarsa", {}),
        ("tree-backup", {"n": 1}, "expected-sarsa", {}),
        ("tree-backup", {"n": 1, "epsilon_target": 0.0}, "q-learning", {}),
        ("q-sigma", {"n": 4, "sigma": 0.0}, "tree-backup", {"n": 4}),
        ("q-sigma", {"n": 4, "sigma": 0.0, "epsilon_target": 0.0}, "tree-backup", {"n": 4, "epsilon_target": 0.0}),
        ("q-sigma", {"n": 4, "sigma": 1.0, "control_variate": False}, "n-step-sarsa", {"n": 4}),
        ("sarsa-lambda", {"lambda_": 0.0, "trace": "replacing"}, "sarsa", {}),
        ("sarsa-lambda", {"lambda_": 0.0, "trace": "accumulating"}, "sarsa", {}),
        ("q-lambda", {"lambda_": 0.0}, "q-learning", {}),
        ("dyna-q", {"planning": 0}, "q-learning", {}),
        ("dyna-q-plus", {"planning": 0}, "q-learning", {}),
    ],
)
def test_special_cases_are_the_simpler_agent_bit_for_bit(name, settings, other, other_settings, env):
    common = {"gamma": 0.95, **LONG}
    same_as(name, {**settings, **common}, other, {**other_settings, **common}, env)


def test_sarsa_with_returns_longer_than_the_episodes_is_every_visit_monte_carlo():
    def trained(name, **settings):
        return getattr(agents, AGENTS[name])(gym.make("CliffWalking-v1"), seed=1, alpha=0.1, epsilon=0.5, **settings)

    a = trained("n-step-sarsa", n=50_000).learn(60_000)
    b = trained("monte-carlo", first_visit=False, capacity=50_000).learn(60_000)
    assert a.standing.counts[3] > 10 and a.standing.recent[:, 1].max() < 50_000
    np.testing.assert_array_equal(a.q, b.q)
    np.testing.assert_array_equal(a.rng, b.rng)


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("sarsa-lambda", {"trace": "dutch"}),
        ("double-q", {}),
        ("dyna-q", {}),
        ("prioritised-sweeping", {}),
        ("differential-sarsa", {}),
        ("q-learning", {"behaviour": "softmax"}),
    ],
)
def test_averages_are_the_means_of_the_values_after_each_step(name, settings):
    agent, tables = make(name, horizon=300, average=0.5, **settings), []
    for _ in range(300):
        agent.learn(1)
        tables.append(agent.table.q.copy())
    np.testing.assert_allclose(agent.values(), np.mean(tables[150:], axis=0), rtol=1e-12, atol=1e-12)  # pyright: ignore
    assert agent.table.clock[0] == 300
