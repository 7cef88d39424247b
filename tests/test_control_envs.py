"""Control problems: Gymnasium's trajectories bit for bit, the compiled path, the puddles."""

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

import tdraft.envs  # noqa: F401
from tdraft.agents import AGENTS
from tdraft.envs.compiled import CompiledEnv, compile_env, leaves
from tdraft.envs.control.puddle import PuddleWorld
from tdraft.value.tiles import uniform_tiles

TWINS = {"MountainCar": "MountainCar-v0", "CartPole": "CartPole-v1", "Acrobot": "Acrobot-v1"}
CONTROL = [*TWINS, "PuddleWorld"]


def pumping(name: str, obs: np.ndarray, rng: np.random.Generator) -> int:
    """An action that gets somewhere: with the car's velocity mostly, else random."""
    if name == "MountainCar" and rng.random() < 0.9:
        return 2 if obs[1] >= 0 else 0
    return int(rng.integers(2 if name == "CartPole" else 3))


@pytest.mark.parametrize("name", TWINS)
def test_trajectories_are_gymnasiums(name):
    """Observations, rewards, ends and time limits are equal, and the float64 states, over several episodes from a seed."""
    ours, theirs = gym.make(f"tdraft/{name}-v0"), gym.make(TWINS[name])
    assert ours.observation_space == theirs.observation_space and ours.action_space == theirs.action_space
    for seed in range(3):
        rng = np.random.default_rng(seed)
        ended = 0
        (mine, _), (other, _) = ours.reset(seed=seed), theirs.reset(seed=seed)
        for _ in range(1200):
            assert mine.dtype == other.dtype and np.array_equal(mine, other)
            state = np.array(theirs.unwrapped.state, float)
            np.testing.assert_allclose(ours.unwrapped.state, state, rtol=0, atol=1e-12)
            action = pumping(name, mine, rng)
            mine, *rest = ours.step(action)
            other, *expected = theirs.step(action)
            assert rest[:3] == expected[:3]
            if any(rest[1:3]):
                ended += 1
                assert np.array_equal(mine, other)
                (mine, _), (other, _) = ours.reset(), theirs.reset()
        assert ended > 1


@pytest.mark.parametrize("name", TWINS)
def test_reset_options_are_gymnasiums(name):
    ours, theirs = gym.make(f"tdraft/{name}-v0"), gym.make(TWINS[name])
    options = {"low": -0.3, "high": -0.2}
    assert np.array_equal(ours.reset(seed=1, options=options)[0], theirs.reset(seed=1, options=options)[0])


@pytest.mark.filterwarnings("error", "ignore:.*infinity")  # CartPole's bounds are Gymnasium's
@pytest.mark.parametrize("name", CONTROL)
def test_gymnasiums_checker_finds_nothing(name):
    check_env(gym.make(f"tdraft/{name}-v0").unwrapped)


@pytest.mark.parametrize("name", CONTROL)
def test_compiled_training_equals_interpreted(name):
    from tdraft import agents

    kind = getattr(agents, AGENTS[sorted(n for n in AGENTS if n.startswith("linear"))[0]])
    weights = []
    for path in ("compiled", "interpreted"):
        env = gym.make(f"tdraft/{name}-v0", **({} if name == "PuddleWorld" else {"numpy_reset": False}))
        low, high = np.clip(env.observation_space.low, -5, 5), np.clip(env.observation_space.high, -5, 5)
        agent = kind(env, seed=3, alpha=0.1, epsilon=0.2, features=uniform_tiles(low.astype(float), high.astype(float)))
        assert agent.path == "compiled"
        if path == "interpreted":
            agent.compiled = None
        weights.append({key: array.copy() for key, array in leaves(agent.learn(1500).learner)})
    for key in weights[0]:
        np.testing.assert_array_equal(weights[0][key], weights[1][key], err_msg=key)


@pytest.mark.parametrize("name", TWINS)
def test_the_compiled_step_is_the_envs(name):
    """The function that training calls, put into the env's state, goes the same way bit for bit."""
    env = gym.make(f"tdraft/{name}-v0").unwrapped
    obs, _ = env.reset(seed=7)
    made = compile_env(env)
    assert isinstance(made, CompiledEnv)
    rng = np.random.default_rng(7)
    buffer = made.params.obs
    for _ in range(60):
        action = pumping(name, obs, rng)
        obs, reward, terminated, _, _ = env.step(action)
        buffer, again, ended, _ = made.step(made.params, buffer, action, np.zeros(4, np.uint64))
        assert np.array_equal(obs, buffer) and (reward, terminated) == (again, ended)
        if terminated:
            break


def test_puddles_cost_by_depth():
    env = PuddleWorld(noise=0.0, start=(0.3, 0.7))
    env.reset(seed=0)
    obs, reward, *_ = env.step(0)  # onto the first axis at (.3, .75): depth .1
    assert obs == pytest.approx([0.3, 0.75]) and reward == pytest.approx(-1 - 400 * 0.1)
    env = PuddleWorld(noise=0.0, start=(0.45, 0.7))
    env.reset(seed=0)
    assert env.step(0)[1] == pytest.approx(-1 - 400 * 0.2)  # (.45, .75) lies on both axes
    env = PuddleWorld(noise=0.0, start=(1.0, 0.86))
    env.reset(seed=0)
    assert env.step(0)[1:3] == (-1.0, True)


def test_bad_arguments():
    with pytest.raises(ValueError, match="noise must be >= 0, got -1"):
        PuddleWorld(noise=-1)
    with pytest.raises(ValueError, match=r"x \+ y < 1.9"):
        PuddleWorld(start=(1.0, 1.0))
    with pytest.raises(ValueError, match="need numpy_reset=True"):
        gym.make("tdraft/CartPole-v0", numpy_reset=False).reset(options={"low": -0.01, "high": 0.01})
