"""Q-learning from a fixed policy: the optimum whoever acts, the behaviour that was given, Q-learning where both explore alike."""

import gymnasium as gym
import numpy as np
import pytest

import tdraft.envs  # noqa: F401
from tdraft.agents import Agent, OffPolicyQ, QLearning
from tdraft.agents.planning import mdp, value_iteration
from tdraft.agents.settings import SettingsError

LAZY = np.array([0.45, 0.3, 0.2, 0.05])


@pytest.mark.parametrize("epsilon", [0.0, 0.5])
def test_values_are_optimal_whoever_acts(epsilon):
    """In a deterministic maze with alpha = 1 they are so exactly, once every pair was tried often enough."""
    env = gym.make("tdraft/DynaMaze-v0")
    agent = OffPolicyQ(env, behaviour=LAZY, alpha=1.0, epsilon=epsilon, gamma=0.9, seed=0).learn(2_000_000)
    assert agent.path == "compiled"
    exact, tried = value_iteration(mdp(env), 0.9).q, agent.q.any(axis=1)
    assert tried.sum() > 40
    np.testing.assert_allclose(agent.q[tried], exact[tried], atol=1e-8)


def test_actions_are_the_behaviours():
    agent, n = OffPolicyQ(gym.make("CliffWalking-v1"), behaviour=LAZY, seed=1), 20_000
    agent.q[:] = [0.0, 0.0, 0.0, 1.0]  # what is greedy makes no difference
    actions = np.array([agent.begin(36) for _ in range(n)])
    served, _ = agent.predict(np.full(n, 36), deterministic=False)
    for taken in (actions, served):
        assert np.all(abs(np.bincount(taken, minlength=4) / n - LAZY) < 4 * np.sqrt(LAZY * (1 - LAZY) / n))
    assert agent.predict(36)[0] == 3


def test_another_agents_policy_acts():
    env = gym.make("CliffWalking-v1")
    teacher = QLearning(env, seed=0).learn(100_000)
    agent = OffPolicyQ(env, behaviour=teacher.policy(), seed=0).learn(1000)
    assert agent.statistics()["rollout/ep_rew_mean"] == -13.0


def test_all_exploring_it_is_q_learning_bit_for_bit():
    env = gym.make("FrozenLake-v1")
    one, other = OffPolicyQ(env, epsilon=1.0, gamma=0.9, seed=4), QLearning(env, epsilon=1.0, gamma=0.9, seed=4)
    np.testing.assert_array_equal(one.learn(5000).q, other.learn(5000).q)
    np.testing.assert_array_equal(one.rng, other.rng)


def test_the_behaviour_is_saved_too(tmp_path):
    env = gym.make("FrozenLake-v1")
    whole, half = (OffPolicyQ(env, behaviour=LAZY, gamma=0.9, seed=4) for _ in range(2))
    half.learn(700).save(tmp_path / "agent")
    resumed = Agent.load(tmp_path / "agent", env=env).learn(800)
    np.testing.assert_array_equal(whole.learn(1500).q, resumed.table.q)


@pytest.mark.parametrize("behaviour", [[0.5, 0.5, 0.5, 0.5], [1.0, 0.0], [1.5, -0.5, 0.0, 0.0], [np.nan, 0.5, 0.25, 0.25]])
def test_what_is_no_policy_is_refused(behaviour):
    with pytest.raises(SettingsError, match="behaviour must hold"):
        OffPolicyQ(gym.make("CliffWalking-v1"), behaviour=behaviour)
