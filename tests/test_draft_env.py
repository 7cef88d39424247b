"""Draft-v0: checkers, meaning of the actions, the reward's identity, vector = single."""

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from stable_baselines3.common.env_checker import check_env as sb3_check_env

import tdraft.envs  # noqa: F401
from tdraft.envs.decoding.draft import DraftEnv
from tdraft.models.decoding import observation as ob


def episode(env: DraftEnv, seed: int, actions: np.random.Generator):
    """Total reward, tokens and time of an episode under random actions."""
    env.reset(seed=seed)
    total = tokens = time = 0.0
    terminated = False
    while not terminated:
        _, reward, terminated, truncated, info = env.step(int(actions.integers(3)))
        assert not truncated
        total, tokens, time = total + reward, tokens + info["tokens"], time + info["duration"]
    return total, tokens, time


@pytest.mark.filterwarnings("ignore")
def test_both_checkers_pass():
    env = gym.make("tdraft/Draft-v0").unwrapped
    check_env(env)
    sb3_check_env(env)


def test_the_return_is_tokens_over_rho_minus_time():
    env, rng = DraftEnv(n_tokens=20, reference_rate=1.7), np.random.default_rng(0)
    for seed in range(20):
        total, tokens, time = episode(env, seed, rng)
        assert tokens == 20
        assert total == pytest.approx(20 / 1.7 - time, abs=1e-9)


def test_expected_rewards_have_the_mean_of_sampled_ones():
    """400 episodes each of the same length-4 policy; difference within 4 standard errors."""
    returns = {}
    for expected in (False, True):
        env = DraftEnv(n_tokens=30, expected_reward=expected)
        found = []
        for seed in range(400):
            obs, _ = env.reset(seed=seed)
            total, done = 0.0, False
            while not done:
                obs, reward, done, _, _ = env.step(ob.DRAFT if obs[ob.DRAFTED] < 4 else ob.VERIFY)
                total += reward
            found.append(total)
        returns[expected] = np.array(found)
    difference = returns[True].mean() - returns[False].mean()
    error = np.sqrt(returns[True].var() / 400 + returns[False].var() / 400)
    # the last round is clipped at N in both, so the means agree up to that round's clipping
    assert abs(difference) < 4 * error


def test_every_action_is_legal_everywhere():
    env = DraftEnv()
    env.reset(seed=0)
    _, _, _, _, plain = env.step(ob.VERIFY)
    assert (plain["tokens"], plain["duration"]) == (1, 1.0)
    _, _, _, _, dropped_nothing = env.step(ob.DROP)
    assert (dropped_nothing["tokens"], dropped_nothing["duration"]) == (1, 1.0)
    k = env.params.max_drafted
    for i in range(k):
        obs, _, _, _, info = env.step(ob.DRAFT)
        assert (obs[ob.DRAFTED], info["tokens"]) == (i + 1, 0)
    obs, _, _, _, info = env.step(ob.DRAFT)
    assert obs[ob.DRAFTED] == 0
    assert info["duration"] == env.source.cost.verify[k + 1]
    for _ in range(3):
        env.step(ob.DRAFT)
    _, _, _, _, info = env.step(ob.DROP)
    assert info["duration"] == env.source.cost.verify[3]


def test_vector_lanes_are_single_envs():
    lanes, steps = 5, 300
    vector = gym.make_vec("tdraft/Draft-v0", num_envs=lanes, n_tokens=16)
    singles = [DraftEnv(n_tokens=16) for _ in range(lanes)]
    seen, _ = vector.reset(seed=11)
    expected = [env.reset(seed=11 + i)[0] for i, env in enumerate(singles)]
    np.testing.assert_array_equal(seen, expected)
    rng, ended = np.random.default_rng(0), [False] * lanes
    for _ in range(steps):
        actions = rng.integers(3, size=lanes)
        seen, rewards, terminated, _, _ = vector.step(actions)
        for i, env in enumerate(singles):
            if ended[i]:
                obs, reward, ended[i] = env.reset()[0], 0.0, False
            else:
                obs, reward, ended[i], _, _ = env.step(int(actions[i]))
            np.testing.assert_array_equal(seen[i], obs)
            assert (rewards[i], terminated[i]) == (reward, ended[i])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"n_tokens": 0}, "n_tokens must be in"),
        ({"reference_rate": -1.0}, "reference_rate must be > 0"),
        ({"observe": "words"}, 'got "words"'),
        ({"observe": "tokens"}, "the simulator has none"),
    ],
)
def test_bad_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        DraftEnv(**settings)


def test_an_unknown_action():
    env = DraftEnv()
    with pytest.raises(gym.error.ResetNeeded):
        env.step(0)
    env.reset(seed=0)
    with pytest.raises(ValueError, match="got 3"):
        env.step(3)
