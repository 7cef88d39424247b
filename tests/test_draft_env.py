"""Draft-v0: checkers, meaning of the actions, the reward's identity, vector = single = compiled functions, copies."""

import copy
import pickle

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from stable_baselines3.common.env_checker import check_env as sb3_check_env

import tdraft.envs  # noqa: F401
from tdraft.envs.compiled import env_rng
from tdraft.envs.decoding.draft import DEFAULT_COST, DraftEnv, Replay, Simulator
from tdraft.models.decoding import observation as ob
from tdraft.models.decoding.calibration import simulator_calibration
from tdraft.scripts.bench import drawn_trace


@pytest.fixture(scope="module")
def sources():
    """By name; what the trace's calibration predicts doesn't matter here."""
    simulator = Simulator()
    trace = drawn_trace(contexts=8, n_tokens=32)
    return {"simulator": simulator, "trace": Replay(trace, simulator_calibration(simulator.arrays), DEFAULT_COST)}


def play(env, actions) -> list:
    """All that the steps give, as plain values; a new episode after each end."""
    found = []
    for action in actions:
        obs, reward, terminated, _, info = env.step(int(action))
        found.append((obs.tolist(), reward, terminated, info))
        if terminated:
            found.append(env.reset()[0].tolist())
    return found


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


@pytest.mark.parametrize("expected_reward", [False, True])
@pytest.mark.parametrize("source", ["simulator", "trace"])
def test_shaping_leaves_every_return_as_it_was(sources, source, expected_reward):
    settings = {"n_tokens": 20, "reference_rate": 1.7, "expected_reward": expected_reward}
    plain, shaped = (DraftEnv(sources[source], shaped=s, **settings) for s in (False, True))
    for seed in range(50):
        expected = episode(plain, seed, np.random.default_rng(seed))
        assert episode(shaped, seed, np.random.default_rng(seed)) == pytest.approx(expected, abs=1e-9)


def test_shaping_pays_for_a_draft_what_it_promises():
    env = DraftEnv(shaped=True, reference_rate=2.0)
    env.reset(seed=0)
    obs, reward, _, _, _ = env.step(ob.DRAFT)
    assert reward == obs[ob.SURVIVAL] / 2.0 - DEFAULT_COST.draft
    _, reward, _, _, info = env.step(ob.VERIFY)
    assert reward == (info["tokens"] - obs[ob.EXPECTED]) / 2.0 - DEFAULT_COST.verify[2]


@pytest.mark.parametrize("source", ["simulator", "trace"])
def test_steps_are_those_of_the_compiled_functions(sources, source):
    env, other = DraftEnv(sources[source]), DraftEnv(sources[source])
    dynamics, params, rng = other.source.dynamics, other.params, env_rng(7)
    seen, _ = env.reset(seed=7)
    dynamics.begin(params, rng)
    np.testing.assert_array_equal(seen, params.obs)
    for action in np.random.default_rng(0).integers(3, size=500).tolist():
        drafted = params.obs[ob.DRAFTED]
        reward, terminated, duration = dynamics.act(params, action, rng)
        tokens, accepted = (0, 0) if params.obs[ob.DRAFTED] > drafted else (int(x) for x in params.outcome)
        info = {"duration": duration, "seconds": duration * 1e-3, "tokens": tokens, "accepted": accepted}
        obs, *rest = env.step(action)
        np.testing.assert_array_equal(obs, params.obs)
        assert rest == [reward, terminated, False, info]
        if terminated:
            seen, _ = env.reset()
            dynamics.begin(params, rng)
            np.testing.assert_array_equal(seen, params.obs)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda env: pickle.loads(pickle.dumps(env))], ids=["deepcopy", "pickle"])
@pytest.mark.parametrize("source", ["simulator", "trace"])
def test_a_copy_goes_on_by_itself(sources, source, copied):
    actions = np.random.default_rng(0).integers(3, size=300)
    env = gym.make("tdraft/Draft-v0", source=sources[source]).unwrapped
    with pytest.raises(gym.error.ResetNeeded):
        copied(env).step(0)
    env.reset(seed=1)
    play(env, actions[:100])
    other = copied(env)
    expected = play(env, actions[100:])
    env.reset(seed=2)
    assert play(other, actions[100:]) == expected


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda env: pickle.loads(pickle.dumps(env))], ids=["deepcopy", "pickle"])
def test_a_copy_of_the_vector_env_goes_on_by_itself(copied):
    vector, actions = gym.make_vec("tdraft/Draft-v0", num_envs=3), np.random.default_rng(0).integers(3, size=(100, 3))
    vector.reset(seed=1)
    other = copied(vector)
    expected = [vector.step(row)[0] for row in actions]
    vector.reset(seed=2)
    np.testing.assert_array_equal([other.step(row)[0] for row in actions], expected)


def test_what_a_step_returned_stays():
    env = DraftEnv()
    first, _ = env.reset(seed=0)
    kept = first.copy()
    second, *_ = env.step(ob.DRAFT)
    np.testing.assert_array_equal(first, kept)
    first[:], second[:] = 7.0, 7.0
    assert env.step(ob.DRAFT)[0][ob.DRAFTED] == 2


def test_rendered_rounds():
    env = DraftEnv(render_mode="ansi")
    env.reset(seed=0)
    tokens = [env.step(action)[4]["tokens"] for action in (ob.DRAFT, ob.DRAFT, ob.VERIFY, ob.VERIFY)]
    assert env.render() == f"dd|{tokens[2]} |1 "


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


@pytest.mark.parametrize("mode", ["vector_entry_point", "sync", "async"])
def test_vector_lanes_are_single_envs(mode):
    lanes, steps = 5, 300
    vector = gym.make_vec("tdraft/Draft-v0", num_envs=lanes, n_tokens=16, vectorization_mode=mode)
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


def test_steps_outside_an_episode():
    env = DraftEnv(n_tokens=1)
    with pytest.raises(gym.error.ResetNeeded):
        env.step(0)
    env.reset(seed=0)
    assert env.step(0)[2]
    with pytest.raises(gym.error.ResetNeeded):
        env.step(0)


@pytest.mark.parametrize("action", [3, -1, np.int64(3), 1.0, "1", None, np.array([1])])
def test_an_unknown_action(action):
    env = DraftEnv()
    env.reset(seed=0)
    with pytest.raises(ValueError, match="action must be 0"):
        env.step(action)


@pytest.mark.parametrize("action", [1, np.int64(1), np.uint8(1), np.array(1)])
def test_an_action_is_any_integer(action):
    env = DraftEnv()
    env.reset(seed=0)
    assert env.step(action)[0][ob.DRAFTED] == 1


def test_seeds_of_another_number_of_lanes():
    with pytest.raises(ValueError, match="a list of 3, got 2"):
        gym.make_vec("tdraft/Draft-v0", num_envs=3).reset(seed=[1, 2])
