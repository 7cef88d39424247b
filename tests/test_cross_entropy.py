"""Cross-entropy search: a generation against NumPy, a task solved, and the stopping formula against the rule that it contains."""

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces

import tdraft.envs  # noqa: F401
from tdraft.agents import Agent, CrossEntropy
from tdraft.agents.base import SpaceError
from tdraft.agents.checkpoint import CheckpointError
from tdraft.agents.cross_entropy import affine_scores, score_readers
from tdraft.agents.decoding_baselines import survival_cost
from tdraft.agents.settings import SettingsError
from tdraft.agents.stopping import STOPPING_MEAN, STOPPING_STD, stopping_score, stopping_scores
from tdraft.envs.decoding.draft import DEFAULT_COST
from tdraft.models.decoding import observation as ob


class OneStep(gym.Env):
    """Episodes of one step that pay 1 for the second action where the only observation is positive, and for the first elsewhere;
    it deals out -1, -.5, .5, 1 in turn."""

    observation_space = spaces.Box(-1.0, 1.0, (1,), np.float64)
    action_space = spaces.Discrete(2)

    def __init__(self):
        self.turn = 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.obs = np.array([(-1.0, -0.5, 0.5, 1.0)[self.turn % 4]])
        self.turn += 1
        return self.obs, {}

    def step(self, action):
        return self.obs, float(action == (self.obs[0] > 0)), True, False, {}


def test_a_generation_is_the_mean_and_deviation_of_the_best():
    agent = CrossEntropy(OneStep(), seed=1, population=6, elite=2, episodes=4, noise=0.5, decay=4)
    agent.learn(24)  # the whole generation, whose last episode is closed when the next begins
    drawn = agent.learner.candidates.copy()
    returns = []
    for theta in drawn.reshape(6, 2, 2):
        scores = [theta[:, 0] + theta[:, 1] * x for x in (-1.0, -0.5, 0.5, 1.0)]
        returns.append(sum(h.argmax() == (x > 0) for h, x in zip(scores, (-1.0, -0.5, 0.5, 1.0))))
    np.testing.assert_array_equal(agent.learner.returns, returns)
    np.testing.assert_array_equal(drawn[0], 0.0)  # the mean itself is a candidate
    best = drawn[np.argsort(-np.array(returns), kind="stable")[:2]]
    agent.learn(1)
    np.testing.assert_allclose(agent.learner.mean, best.mean(axis=0), atol=1e-12)
    np.testing.assert_allclose(agent.learner.std, best.std(axis=0) + 0.5 * (1 - 1 / 4), atol=1e-12)


def test_it_finds_the_policy():
    agent = CrossEntropy(OneStep(), seed=0, episodes=4, population=20, elite=4).learn(4000)
    assert agent.predict(np.array([[-1.0], [-0.5], [0.5], [1.0]]))[0].tolist() == [0, 0, 1, 1]


def test_a_weight_of_no_deviation_stays():
    agent = CrossEntropy(OneStep(), seed=0, mean=[0.25, 0.0, 0.0, 0.0], std=[0.0, 1.0, 1.0, 1.0], noise=0.3).learn(500)
    assert agent.learner.count[2] > 2 and agent.learner.mean[0] == 0.25
    assert np.all(agent.learner.candidates[:, 0] == 0.25) and len(np.unique(agent.learner.candidates[:, 1])) > 2


def test_compiled_is_interpreted_and_training_resumes_bit_for_bit(tmp_path):
    env = lambda: gym.make("tdraft/CartPole-v0", numpy_reset=False)  # noqa: E731
    whole = CrossEntropy(env(), seed=5, population=5, elite=2).learn(3000)
    assert whole.path == "compiled"
    half = CrossEntropy(env(), seed=5, population=5, elite=2).learn(1500)
    half.save(tmp_path / "half.npz")
    resumed = Agent.load(tmp_path / "half.npz", env()).learn(1500)
    interpreted = CrossEntropy(env(), seed=5, population=5, elite=2)
    interpreted.compiled = None
    interpreted.learn(3000)
    for other in (resumed, interpreted):
        for name in ("mean", "std", "candidates", "returns", "count"):
            np.testing.assert_array_equal(getattr(other.learner, name), getattr(whole.learner, name))


def test_scores_scale_by_the_bounds_that_there_are():
    space = spaces.Box(np.array([-4.0, -np.inf, 2.0]), np.array([4.0, np.inf, 2.0]), dtype=np.float64)
    scores = affine_scores(space, 2)
    np.testing.assert_array_equal(scores.shift, [0.0, 0.0, 0.0])
    np.testing.assert_array_equal(scores.scale, [0.25, 1.0, 1.0])


def test_the_stopping_formula_contains_the_rule_of_survival_and_cost():
    rate, longest, rng = 1.3, DEFAULT_COST.max_drafted, np.random.default_rng(0)
    theta = STOPPING_MEAN.copy()
    theta[[0, 5]] = -np.log(rate)
    decide = score_readers(stopping_score)[0]
    formula = (theta, stopping_scores(DEFAULT_COST))
    rule = np.array([rate, 1.0, DEFAULT_COST.draft, *DEFAULT_COST.verify])
    seen = set()
    for _ in range(3000):
        obs = np.zeros(ob.SIZE)
        obs[ob.DRAFTED], obs[ob.REMAINING] = rng.integers(longest + 1), rng.integers(1, 40)
        obs[ob.ACCEPTANCE], obs[ob.TARGET_ENTROPY] = rng.random(), rng.random()
        obs[ob.SURVIVAL] = 1.0 if obs[ob.DRAFTED] == 0 else np.exp(-5 * rng.random())
        action = decide(formula, np.zeros(3), obs)
        assert action == survival_cost(rule, np.zeros(1), obs)
        seen.add(action)
    assert seen == {ob.VERIFY, ob.DRAFT, ob.DROP}


def test_bad_input_is_refused(tmp_path):
    with pytest.raises(SpaceError, match="Box observation space"):
        CrossEntropy(gym.make("CliffWalking-v1"))
    with pytest.raises(SettingsError, match=r"elite must be in \[1, 5\], got 6"):
        CrossEntropy(OneStep(), population=5, elite=6)
    with pytest.raises(SettingsError, match="mean and std must be 4 finite numbers"):
        CrossEntropy(OneStep(), mean=[0.0, 1.0])
    env = gym.make("tdraft/Draft-v0")
    first = {"mean": STOPPING_MEAN, "std": STOPPING_STD, "scores": stopping_scores(DEFAULT_COST)}
    CrossEntropy(env, seed=0, **first).learn(10).save(tmp_path / "own.npz")
    with pytest.raises(CheckpointError, match="save_policy"):
        Agent.load(tmp_path / "own.npz", env)
