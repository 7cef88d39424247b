"""Behaviours and decays of the one-step tabular agents: values by hand, identities with the default, both paths."""

import math

import gymnasium as gym
import numpy as np
import pytest

from tdraft import agents
from tdraft.agents import AGENTS, ExpectedSarsa, QLearning, Sarsa
from tdraft.agents.settings import SettingsError
from tdraft.envs.compiled import leaves
from tdraft.kernels.rng import seed_state
from tdraft.value.tables import sample, softmax, upper_bounds

ONE_STEP = ["q-learning", "sarsa", "expected-sarsa"]
CHOICES = [
    {"behaviour": "softmax", "temperature": 0.5},
    {"behaviour": "ucb", "c": 2.0},
    {"alpha_decay": "visits", "alpha": 1.0},
    {"alpha_decay": "exponential", "alpha_final": 0.01, "horizon": 2500},
    {"epsilon_decay": "visits", "epsilon": 1.0},
    {"epsilon_decay": "exponential", "epsilon_final": 0.01, "horizon": 2500, "behaviour": "epsilon-greedy"},
    {"alpha_decay": "steps", "epsilon_decay": "steps", "alpha": 1.0},
    {"behaviour": "softmax", "alpha_decay": "visits", "average": 0.4, "horizon": 2500},
]


def make(name: str, **settings):
    return getattr(agents, AGENTS[name])(gym.make("CliffWalking-v1"), **{"seed": 3, "alpha": 0.2, "epsilon": 0.2, **settings})


def assert_same(a, b) -> None:
    a, b = dict(leaves(a)), dict(leaves(b))
    assert a.keys() == b.keys()
    for name in a:
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)


@pytest.mark.parametrize("name", ONE_STEP)
@pytest.mark.parametrize("settings", CHOICES)
def test_compiled_interpreted_and_resumed_training_are_the_same(name, settings, tmp_path):
    if (name, settings.get("behaviour")) == ("expected-sarsa", "ucb"):
        return
    compiled, interpreted = make(name, **settings), make(name, **settings)
    interpreted.compiled = None
    compiled.learn(1000).save(tmp_path / "agent")
    resumed = type(compiled).load(tmp_path / "agent", env=compiled.env).learn(1500)
    compiled.learn(1500)
    assert_same(compiled.learner, resumed.learner)
    assert_same(compiled.learner, interpreted.learn(2500).learner)
    assert compiled.learner.visits.sum() == compiled.table.clock[0] == 2500
    assert 0 <= compiled.epsilon <= 1
    actions, _ = compiled.predict(np.arange(48), deterministic=False)
    assert actions.shape == (48,) and actions.dtype == np.int64


@pytest.mark.parametrize("name", ONE_STEP)
def test_exponential_decays_that_do_not_decay_are_the_default_bit_for_bit(name):
    same = {"alpha_final": 0.2, "epsilon_final": 0.2, "horizon": 1000}
    plain, powers = make(name), make(name, alpha_decay="exponential", epsilon_decay="exponential", **same)
    assert plain.settings.plain and not powers.settings.plain
    plain, powers = plain.learn(5000), powers.learn(5000)
    np.testing.assert_array_equal(plain.q, powers.q)
    np.testing.assert_array_equal(plain.rng, powers.rng)
    assert powers.epsilon == pytest.approx(0.2, abs=1e-15)


def test_softmax_by_hand():
    p = np.zeros(3)
    softmax(np.array([0.0, 2 * math.log(2), -1e9]), 2.0, p)
    np.testing.assert_allclose(p, [1 / 3, 2 / 3, 0], atol=1e-15)
    q = np.array([1.0, 2.0, 4.0])
    softmax(q, 1.5, p)
    rng, n = seed_state(0), 40_000
    share = np.bincount([sample(p, rng) for _ in range(n)], minlength=3) / n
    assert np.all(abs(share - p) < 4 * np.sqrt(p * (1 - p) / n))


def test_upper_bounds_by_hand():
    bounds = np.zeros(3)
    upper_bounds(np.array([1.0, 2.0, 3.0]), np.array([1.0, 4.0, 0.0]), 2.0, bounds)
    np.testing.assert_allclose(bounds, [1 + 2 * math.sqrt(math.log(5)), 2 + 2 * math.sqrt(math.log(5) / 4), math.inf])


def test_ucb_tries_every_action_first_and_draws_only_for_ties():
    agent = make("q-learning", behaviour="ucb", c=1.0)
    tried = {agent.begin(0)}
    for _ in range(3):
        tried.add(agent.step(0.0, 1.0, 0))
    assert tried == {0, 1, 2, 3}
    agent.learner.visits[0] = [10, 10, 10, 9]
    before = agent.rng.copy()
    agent.learner.table.last[:] = 1, 0
    assert agent.step(0.0, 1.0, 0) == 3
    np.testing.assert_array_equal(agent.rng, before)
    assert agent.epsilon == 0.0


def test_step_sizes_by_visits_are_sample_averages():
    agent = make("q-learning", alpha=1.0, alpha_decay="visits")
    for reward in (3.0, 5.0, 10.0):
        agent.begin(0)
        agent.table.last[1] = 2
        agent.step(reward, 0.0, 47)
    assert agent.q[0, 2] == pytest.approx(6.0, abs=1e-12)


def test_step_sizes_by_steps_are_by_all_of_them():
    agent = make("q-learning", alpha=0.6, alpha_decay="steps")
    for state in (0, 1):
        agent.begin(state)
        agent.table.last[1] = 2
        agent.step(10.0, 0.0, 47)
    assert agent.q[0, 2] == pytest.approx(6.0) and agent.q[1, 2] == pytest.approx(3.0)


def test_exploration_falls_as_it_says():
    agent = make("sarsa", epsilon=0.4, epsilon_final=0.1, epsilon_decay="exponential", horizon=100)
    assert agent.learn(50).epsilon == pytest.approx(0.2)
    assert agent.learn(100).epsilon == pytest.approx(0.1)
    agent = make("sarsa", epsilon=0.4, epsilon_decay="visits")
    agent.learner.visits[7] = 2
    assert agent.epsilon == pytest.approx(0.05)
    assert make("sarsa", epsilon=0.4, epsilon_decay="steps").learn(7).epsilon == pytest.approx(0.05)


def test_expected_sarsa_expects_over_softmax():
    agent = make("expected-sarsa", behaviour="softmax", temperature=2.0, alpha=0.5)
    agent.q[1] = [0.0, 2 * math.log(2), -1e9, -1e9]
    agent.begin(0)
    action = agent.table.last[1]
    agent.step(1.0, 0.5, 1)
    with np.errstate(all="ignore"):
        assert agent.q[0, action] == pytest.approx(0.5 * (1 + 0.5 * 2 / 3 * 2 * math.log(2)))


def test_behaviours_that_find_the_cliffs_optimum():
    options = {"alpha": 0.5, "seed": 0}
    for settings in ({"behaviour": "ucb", "c": 1.0}, {"behaviour": "softmax", "temperature": 1.0}):
        assert QLearning(gym.make("CliffWalking-v1"), **options, **settings).learn(400_000).q[36].max() == pytest.approx(
            -13, abs=1e-6
        )


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        (QLearning, {"behaviour": "softmx"}, "behaviour must be one of epsilon-greedy, softmax, ucb"),
        (QLearning, {"temperature": 0.0}, r"temperature must be in \(0"),
        (Sarsa, {"c": -1.0}, "c must be in"),
        (Sarsa, {"alpha_decay": "fast"}, "alpha_decay must be one of"),
        (Sarsa, {"alpha_decay": "exponential"}, "needs alpha and alpha_final above 0, and horizon"),
        (Sarsa, {"epsilon_decay": "exponential", "epsilon_final": 0.0, "horizon": 10}, "above 0"),
        (Sarsa, {"epsilon_decay": "visits", "epsilon_final": 0.1, "horizon": 10}, "has no epsilon_final"),
        (Sarsa, {"alpha_decay": "steps", "alpha_final": 0.1, "horizon": 10}, "has no alpha_final"),
        (ExpectedSarsa, {"behaviour": "ucb"}, "which is no distribution"),
    ],
)
def test_settings_out_of_range(kind, options, message):
    with pytest.raises(SettingsError, match=message):
        kind(gym.make("CliffWalking-v1"), **options)
