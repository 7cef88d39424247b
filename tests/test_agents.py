"""Agents: exact values, compiled = interpreted, training in parts = training at once, Stable-Baselines3's verbs."""

import subprocess
import sys

import gymnasium as gym
import numpy as np
import pytest
from stable_baselines3.common.evaluation import evaluate_policy

from tdraft import agents
from tdraft.agents import AGENTS, Agent, QLearning, Sarsa, checkpoint
from tdraft.agents.base import DivergedError, SpaceError
from tdraft.agents.checkpoint import CheckpointError
from tdraft.agents.settings import SettingsError
from tdraft.envs.compiled import leaves
from tdraft.envs.decoding.draft import DraftEnv
from tdraft.envs.decoding.tabular import TabularDraft
from tdraft.value.tiles import uniform_tiles

LINEAR = sorted(name for name in AGENTS if name.startswith("linear")) + ["actor-critic", "cross-entropy"]
TABULAR = sorted(set(AGENTS) - set(LINEAR))


def make(name: str, seed: int = 3) -> Agent:
    """An agent on Draft-v0's simulator, in the form that it takes."""
    env = DraftEnv(n_tokens=12, reference_rate=1.3)
    kind = getattr(agents, AGENTS[name])
    if name == "cross-entropy":
        return kind(env, seed=seed, population=5, elite=2)
    if name in LINEAR:
        exploration = {"beta": 0.05, "n_steps": 7} if name == "actor-critic" else {"epsilon": 0.2}
        features = uniform_tiles(np.zeros(6), np.array([8.0, 1.0, 3.0, 8.0, 5.0, 1.0]))
        return kind(env, seed=seed, alpha=0.1, features=features, **exploration)
    return kind(TabularDraft(env), seed=seed, alpha=0.1, epsilon=0.2)


def state(agent: Agent) -> dict[str, np.ndarray]:
    return {name: array.copy() for name, array in leaves(agent.learner)}


def assert_same(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> None:
    assert a.keys() == b.keys()
    for name in a:
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)


def test_q_learning_finds_the_cliffs_optimum_exactly():
    env = gym.make("CliffWalking-v1")
    agent = QLearning(env, alpha=0.5, epsilon=0.1, seed=0).learn(400_000)
    assert agent.path == "compiled"
    best = -13.0  # 11 steps along the edge and one at each end
    assert agent.q[36].max() == best
    mean, spread = evaluate_policy(agent, env, n_eval_episodes=3, warn=False)
    assert (mean, spread) == (best, 0.0)


@pytest.mark.parametrize("name", TABULAR + LINEAR)
def test_compiled_equals_interpreted(name):
    compiled, interpreted = make(name), make(name)
    assert compiled.path == "compiled"
    interpreted.compiled = None
    compiled.learn(3000)
    interpreted.learn(3000)
    assert_same(state(compiled), state(interpreted))
    assert np.any(next(iter(state(compiled).values())) != 0)


@pytest.mark.parametrize("name", TABULAR + LINEAR)
def test_training_in_parts_equals_training_at_once(name, tmp_path):
    whole = make(name).learn(5001)
    first = make(name).learn(2000)
    first.save(tmp_path / "agent")
    second = type(first).load(tmp_path / "agent", env=first.env).learn(3001)
    assert_same(state(whole), state(second))
    assert second.num_timesteps == whole.num_timesteps
    assert_same(dict(leaves(whole.standing)), dict(leaves(second.standing)))


@pytest.mark.parametrize("name", TABULAR + LINEAR)
def test_predict_is_the_compiled_policy(name):
    agent = make(name).learn(2000)
    assert agent.env is not None
    decide, params, memory = agent.policy()
    obs, _ = agent.env.reset(seed=5)
    for _ in range(200):
        action, _ = agent.predict(obs)
        assert int(action) == decide(params, memory, obs)
        obs, _, terminated, _, _ = agent.env.step(int(action))
        if terminated:
            obs, _ = agent.env.reset()


def test_seeds_differ():
    assert np.any(make("q-learning", 1).learn(500).q != make("q-learning", 2).learn(500).q)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"alpha": 0.0}, r"alpha must be in \(0, 1\], got 0.0"),
        ({"epsilon": 1.5}, "epsilon must be in"),
        ({"alhpa": 0.1}, 'did you mean "alpha"'),
        ({"alpha_final": 0.1}, "needs horizon"),
    ],
)
def test_settings_out_of_range(settings, message):
    with pytest.raises(SettingsError, match=message):
        QLearning(gym.make("CliffWalking-v1"), **settings)


def test_spaces_that_do_not_fit():
    with pytest.raises(SpaceError, match="Discrete observation space"):
        QLearning(gym.make("CartPole-v1"))
    with pytest.raises(SpaceError, match="expected observations"):
        QLearning(gym.make("CliffWalking-v1")).predict(99)


def test_a_checkpoint_of_another_class(tmp_path):
    make("q-learning").save(tmp_path / "agent")
    with pytest.raises(CheckpointError, match="holds a q-learning, not a sarsa"):
        Sarsa.load(tmp_path / "agent")
    (tmp_path / "broken").write_bytes(b"PK\x03\x04 no archive")
    with pytest.raises(CheckpointError):
        Agent.load(tmp_path / "broken")


def test_a_checkpoint_of_an_older_version_lacks_the_reward_earned(tmp_path):
    agent = make("q-learning").learn(500)
    agent.save(tmp_path / "new")
    meta, arrays = checkpoint.read(tmp_path / "new")
    del arrays["standing.earned"]
    checkpoint.write(tmp_path / "old", meta, arrays)
    old, new = (QLearning.load(tmp_path / name, env=agent.env).learn(500) for name in ("old", "new"))
    assert_same(state(old), state(new))
    assert old.reward_rate == pytest.approx(new.reward_rate, rel=1e-12)


def test_a_fresh_process_finds_the_class_that_a_checkpoint_names(tmp_path):
    env = gym.make("CliffWalking-v1")
    for name, agent in {"control": QLearning(env, seed=0), "prediction": agents.TD(env, seed=0)}.items():
        agent.save(tmp_path / name)
    names = [str(tmp_path / name) for name in ("control", "prediction")]
    code = f"from tdraft.agents import Agent\nfor name in {names}: print(type(Agent.load(name)).__name__)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["QLearning", "TD"]


def test_linear_step_sizes_may_overshoot_by_all_of_the_error():
    env = gym.make("tdraft/MountainCar-v0")
    assert agents.LinearSarsa(env, alpha=2.0).settings.alpha == 2.0
    for name in ("alpha", "alpha_final"):
        with pytest.raises(SettingsError, match=rf"{name} must be in [(\[]0, 2\], got 2.1"):
            agents.LinearSarsa(env, **{name: 2.1, "horizon": 10})


def test_values_that_are_not_finite_stop_the_training():
    class Rich(gym.Env):
        observation_space = gym.spaces.Discrete(2)
        action_space = gym.spaces.Discrete(2)

        def reset(self, *, seed=None, options=None):
            super().reset(seed=seed)
            return 0, {}

        def step(self, action):
            return 1, 1e308, False, False, {}

    with pytest.raises(DivergedError, match="not finite"):
        QLearning(Rich(), seed=0, alpha=1.0).learn(100)
