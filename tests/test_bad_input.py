"""What no training can go on from: one clear error, before the first step where it can be known before; on the command line exit
code 2 and one line."""

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.envs.toy_text import FrozenLakeEnv

import tdraft.envs  # noqa: F401
from tdraft import agents
from tdraft.agents import AGENTS, prediction
from tdraft.agents.checks import EnvError, SpaceError
from tdraft.agents.settings import SettingsError
from tdraft.scripts.main import main
from tdraft.value.features import fourier_basis
from tdraft.value.tiles import uniform_tiles

ALL = [getattr(agents, kind) for kind in AGENTS.values()] + [
    getattr(prediction, n) for n in prediction.__all__ if n != "Prediction"
]
STATES, VECTORS = spaces.Discrete(3), spaces.Box(0.0, 1.0, (2,), np.float64)
NOTHING = float("nan")


class Scripted(gym.Env):
    """Gives the same observation and reward for ever, whatever its spaces are."""

    def __init__(self, observation_space=STATES, action_space=spaces.Discrete(2), obs=1, reward=0.0):  # noqa: B008
        self.observation_space, self.action_space, self.obs, self.reward, self.steps = (
            observation_space,
            action_space,
            obs,
            reward,
            0,
        )

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self.obs if isinstance(self.observation_space, spaces.Discrete) else np.full(2, 0.5), {}

    def step(self, action):
        self.steps += 1
        return self.obs, self.reward, False, False, {}


class BadLake(FrozenLakeEnv):
    """FrozenLake with one other row of P."""

    def __init__(self, outcomes=((0.5, 0, 0.0, False),), **keywords):
        super().__init__(**keywords)
        self.P[3][2] = list(outcomes)


gym.register("tests/BadLake-v0", entry_point=BadLake)
gym.register("tests/Unpaid-v0", entry_point=Scripted, kwargs={"reward": NOTHING})
gym.register("tests/Continuous-v0", entry_point=Scripted, kwargs={"action_space": spaces.Box(-1.0, 1.0)})
gym.register("tests/Dict-v0", entry_point=Scripted, kwargs={"observation_space": spaces.Dict({"a": STATES})})


@pytest.mark.parametrize("kind", ALL)
def test_spaces_that_no_agent_takes(kind):
    observations = VECTORS if kind.name.startswith(("linear", "actor", "cross")) else STATES
    with pytest.raises(SpaceError, match=r"needs a Discrete action space, got Box.*wrap the env"):
        kind(Scripted(observations, spaces.Box(-1.0, 1.0)))
    with pytest.raises(SpaceError, match=r"needs .*, got Dict\('a': Discrete\(3\)\)"):
        kind(Scripted(spaces.Dict({"a": STATES})))


@pytest.mark.parametrize(
    ("outcomes", "message"),
    [
        ([(0.5, 0, 0.0, False)], r"FrozenLake-v1: probabilities of state 3, action 2 must sum to 1, got \[0.5\]"),
        ([(1.5, 0, 0.0, False), (-0.5, 1, 0.0, False)], "must sum to 1"),
        ([], "must sum to 1"),
        ([(1.0, 16, 0.0, False)], r"P\[3\]\[2\] leads to state 16, but there are 16 states"),
        ([(1.0, -1, 0.0, False)], "leads to state -1"),
        ([(1.0, 0, NOTHING, False)], "rewards must be finite"),
        (None, "P lacks an action or a state"),
    ],
)
def test_a_transition_table_that_is_none(outcomes, message):
    env = gym.make("FrozenLake-v1")
    table = env.unwrapped.P[3]  # pyright: ignore[reportAttributeAccessIssue]
    table.pop(2) if outcomes is None else table.update({2: outcomes})
    with pytest.raises(EnvError, match=message):
        agents.QLearning(env)


def test_a_table_smaller_than_its_spaces():
    env = gym.make("FrozenLake-v1")
    for row in env.unwrapped.P.values():  # pyright: ignore[reportAttributeAccessIssue]
        row.pop(3)
    with pytest.raises(EnvError, match="P must be of 16 states and 4 actions, got 16 and 3"):
        agents.Sarsa(env)


def test_a_changed_table_counts_from_set_env_on():
    env = gym.make("CliffWalking-v1")
    agent = agents.QLearning(env, seed=0)
    for row in env.unwrapped.P.values():  # pyright: ignore[reportAttributeAccessIssue]
        for a in row:
            row[a] = [(1.0, 36, -7.0, True)]
    agent.set_env(env)
    assert agent.learn(10).statistics()["rollout/ep_rew_mean"] == -7.0


@pytest.mark.parametrize("reward", [NOTHING, float("inf"), -float("inf"), None, "much", np.ones(2)])
@pytest.mark.parametrize("kind", [agents.QLearning, agents.LinearSarsa, agents.MonteCarlo, agents.TD, agents.LSTD])
def test_rewards_that_are_no_finite_numbers(kind, reward):
    vector = kind is agents.LinearSarsa
    env = Scripted(VECTORS if vector else STATES, obs=np.zeros(2) if vector else 1, reward=reward)
    with pytest.raises(EnvError, match="expected a reward that is a finite number, the env gave"):
        kind(env, seed=0).learn(100)
    assert env.steps == 1


@pytest.mark.parametrize("obs", [3, -1, 1.5, NOTHING, None, np.zeros(2)])
def test_states_that_are_none(obs):
    env = Scripted(obs=obs)
    with pytest.raises(SpaceError, match=r"expected an observation of Discrete\(3\), got"):
        agents.QLearning(env, seed=0).learn(100)
    assert env.steps == 0


@pytest.mark.parametrize("obs", [np.array([0.5, NOTHING]), np.zeros(3), 1.0])
@pytest.mark.parametrize("kind", [agents.LinearSarsa, agents.TD, agents.ActorCritic])
def test_vectors_that_are_none(kind, obs):
    env = Scripted(VECTORS, obs=obs)
    with pytest.raises(SpaceError, match="expected an observation of Box"):
        kind(env, seed=0).learn(100)
    assert env.steps == 1
    with pytest.raises(SpaceError, match=r"expected (an )?observations? of Box"):
        kind(env, seed=0).predict(obs)


@pytest.mark.parametrize(
    "features", [uniform_tiles([0.0, 0.0], [1.0, 1.0], bins=3, tilings=2), fourier_basis([0.0, 0.0], [1.0, 1.0], 2)]
)
def test_observations_outside_the_bounds_count_as_the_nearest_inside(features):
    outside, nearest = np.array([5.0, -7.0]), np.array([1.0, 0.0])
    learned = [agents.TD(Scripted(VECTORS, obs=o, reward=1.0), features=features, seed=0).learn(50).w for o in (outside, nearest)]
    np.testing.assert_array_equal(*learned)
    assert learned[0].any()


@pytest.mark.parametrize("kind", ALL)
def test_step_sizes_and_decays_out_of_range(kind):
    env = Scripted(VECTORS, obs=np.zeros(2)) if kind.name.startswith(("linear", "actor", "cross")) else Scripted()
    for name in ("alpha", "lambda_", "gamma", "epsilon"):
        if name in kind.Settings.__dataclass_fields__:
            for value in (-0.1, 1e7, NOTHING, "much", True):
                with pytest.raises(SettingsError, match=rf"^{name} must be (a number )?in [(\[]0, .*[)\]], got {value!r}$"):
                    kind(env, **{name: value})


def test_numbers_of_numpys_are_numbers():
    env = gym.make("CliffWalking-v1")
    assert agents.QLearning(env, alpha=np.float32(0.5)).settings == agents.QLearning(env, alpha=0.5).settings


def test_features_and_envs_of_another_kind():
    with pytest.raises(SpaceError, match="features must be a TileCoding, PeriodicTiles or HashedFeatures, got ndarray"):
        agents.LinearSarsa(Scripted(VECTORS), features=np.eye(2))  # pyright: ignore[reportArgumentType]
    with pytest.raises(SpaceError, match=r"trains on a gym\.Env, got 'CliffWalking-v1': make one with gym\.make"):
        agents.QLearning("CliffWalking-v1")  # pyright: ignore[reportArgumentType]


@pytest.mark.filterwarnings("ignore:.*reward is a NaN")
@pytest.mark.parametrize(
    ("agent", "env", "options", "message"),
    [
        ("q-learning", "tests/BadLake-v0", (), "probabilities of state 3, action 2 must sum to 1, got [0.5]"),
        ("q-learning", "tests/Unpaid-v0", (), "expected a reward that is a finite number, the env gave nan"),
        ("linear-sarsa", "Pendulum-v1", (), "needs a Discrete action space, got Box"),
        ("q-learning", "tests/Continuous-v0", (), "needs a Discrete action space, got Box"),
        ("linear-sarsa", "tests/Dict-v0", (), "got Dict('a': Discrete(3)): wrap the env"),
        ("q-learning", "CliffWalking-v1", ("--alpha", "1.5"), "alpha must be in (0, 1], got 1.5"),
        ("sarsa-lambda", "CliffWalking-v1", ("--lambda_", "1.5"), "lambda_ must be in [0, 1], got 1.5"),
    ],
)
def test_the_command_line_says_so_in_a_line(agent, env, options, message, tmp_path, capsys):
    given = ["--env", env, "--timesteps", "50", "--runs", str(tmp_path), *options]
    assert main(["train", agent, *given]) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    assert len(lines) == 1 and message in lines[0]
    assert not list(tmp_path.rglob("checkpoint*"))
