"""Hashed features: indices equal to a Python re-computation, errors, dict observations with tokens."""

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from hypothesis import given, settings
from hypothesis import strategies as st

from tdraft.agents import Agent, LinearQ, LinearSarsa
from tdraft.agents.base import SpaceError
from tdraft.agents.checkpoint import CheckpointError
from tdraft.envs.decoding.draft import DraftEnv, Replay
from tdraft.models.decoding import observation as ob
from tdraft.models.decoding.cost import CostModel
from tdraft.models.decoding.observation import empty_calibration
from tdraft.models.decoding.trace import Trace
from tdraft.value.hashing import hashed_features
from tdraft.value.tiles import tile_coding

MASK = (1 << 64) - 1
GOLDEN = 0x9E3779B97F4A7C15


def mix(z: int) -> int:
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 & MASK
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB & MASK
    return z ^ (z >> 31)


def indices(features, obs) -> list[int]:
    obs = np.array(obs, np.float64)
    return [features.rule(features, obs, t) for t in range(features.n_active)]


@settings(deadline=None)  # the first call compiles
@given(
    st.floats(allow_nan=False),
    st.floats(-2, 2),
    st.lists(st.integers(-(2**40), 2**40), min_size=2, max_size=2),
    st.integers(1, 26),
)
def test_indices_are_those_of_a_python_recomputation(x, y, tokens, bits):
    edges = {0: (0.5, 2.0), 2: (-1.0, 0.0, 1.0)}
    features = hashed_features(edges, tokens=(3, 4), crosses=[(0, 2), (3, 4), (4, 3), (2, 0, 3)], bits=bits)
    values = {0: sum(x >= e for e in edges[0]), 2: sum(y >= e for e in edges[2]), 3: tokens[0], 4: tokens[1]}
    expected = []
    for t, template in enumerate([(0,), (2,), (3,), (4,), (0, 2), (3, 4), (4, 3), (2, 0, 3)]):
        z = mix((t + 1) * GOLDEN & MASK)
        for dim in template:
            z = mix((z + (values[dim] + 1) * GOLDEN) & MASK)
        expected.append(z % (1 << bits))
    assert indices(features, [x, 7.0, y, *tokens]) == expected
    assert features.n_active == 8 and features.n_features == 1 << bits and features.n_inputs == 5


def test_values_on_an_edge_and_nan():
    features = hashed_features({0: (1.0, 2.0)})
    assert indices(features, [1.0]) == indices(features, [1.5]) != indices(features, [0.5])
    assert indices(features, [np.nan]) == indices(features, [-np.inf])


def test_indices_are_spread_evenly():
    """40,000 different features in 256 entries: chi-squared with 255 degrees of freedom, within 5 of its standard deviations."""
    features = hashed_features({}, tokens=(0, 1), crosses=[(0, 1)], bits=8)
    found = [indices(features, [a, b])[2] for a in range(200) for b in range(200)]
    expected = len(found) / 256
    chi = ((np.bincount(found, minlength=256) - expected) ** 2 / expected).sum()
    assert abs(chi - 255) < 5 * np.sqrt(2 * 255)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"edges": {0: (1,)}, "bits": 0}, r"bits must be an integer in 1..26, got 0"),
        ({"edges": {0: (1,)}, "bits": 27}, "bits must be"),
        ({"edges": {0: (1,)}, "bits": 8.0}, "bits must be"),
        ({"edges": {1: (1, 1)}}, "edges of dimension 1 must be finite and increase"),
        ({"edges": {0: (2, 1)}}, "must be finite and increase"),
        ({"edges": {0: (1, np.inf)}}, "must be finite"),
        ({"edges": {-1: (1,)}}, "count from 0"),
        ({"edges": {0: (1,)}, "tokens": (0,)}, "must be different"),
        ({"edges": {}}, "at least one"),
        ({"edges": {0: (1,)}, "crosses": [(0, 3)]}, r"out of \[0\], got \(0, 3\)"),
        ({"edges": {0: (1,), 1: (1,)}, "crosses": [(0, 0)]}, "two or more different"),
        ({"edges": {0: (1,), 1: (1,)}, "crosses": [(1,)]}, "two or more different"),
    ],
)
def test_errors(arguments, message):
    with pytest.raises(ValueError, match=message):
        hashed_features(**arguments)


class Echo(gym.Env):
    """Reward 1 for the action that is the parity of the first token times the vector's sign: neither alone tells it."""

    observation_space = spaces.Dict(
        {"vector": spaces.Box(-1.0, 1.0, (2,), np.float64), "tokens": spaces.MultiDiscrete([1 << 20] * 3)}
    )
    action_space = spaces.Discrete(2)

    def _observe(self):
        self.vector = self.np_random.uniform(-1, 1, 2)
        self.tokens = self.np_random.integers(1000, 1020, 3)
        return {"vector": self.vector, "tokens": self.tokens}

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self._observe(), {}

    def step(self, action):
        right = (self.vector[0] >= 0) == (self.tokens[0] % 2)
        return self._observe(), float(action == right), True, False, {}


def echo_agent(kind=LinearSarsa, **options):
    features = hashed_features({0: (0.0,)}, tokens=(2, 3), crosses=[(0, 2)], bits=12)
    return kind(Echo(), seed=0, features=features, alpha=0.5, **options)


@pytest.mark.parametrize("lambda_", [0.0, 0.5])
@pytest.mark.parametrize("kind", [LinearSarsa, LinearQ])
def test_dict_observations_with_tokens(kind, lambda_, tmp_path):
    agent = echo_agent(kind, lambda_=lambda_).learn(6000)
    assert agent.path.startswith("interpreted")
    env = Echo()
    obs, _ = env.reset(seed=9)
    right = 0
    decide, params, memory = agent.policy()
    agent.save(tmp_path / "agent")
    loaded = Agent.load(tmp_path / "agent", env=env)
    for _ in range(200):
        action, _ = agent.predict(obs)
        assert int(action) == decide(params, memory, np.concatenate([obs["vector"], obs["tokens"]]))
        assert int(action) == int(loaded.predict(obs)[0])
        obs, reward, *_ = env.step(action)
        right += reward
    assert right > 190
    many = {"vector": np.array([[0.5, 0], [-0.5, 0]]), "tokens": np.array([[1001, 0, 0], [1001, 0, 0]])}
    np.testing.assert_array_equal(agent.predict(many)[0], [1, 0])


def draft_with_tokens() -> DraftEnv:
    """Draft-v0 over a trace of two contexts; token 1 is always accepted, token 0 never."""
    rng, (c, n, k) = np.random.default_rng(0), (2, 30, 4)
    proposals = rng.integers(2, size=(c, n, k)).astype(np.int32)
    trace = Trace(
        tokens=rng.integers(2, size=(c, n)).astype(np.int32),
        prompts=np.zeros((c, 2), np.int32),
        proposals=proposals,
        features=np.full((c, n, k, 4), 0.5, np.float32),
        target_prob=proposals.astype(np.float64),
        accepted=np.cumprod(proposals, axis=2).sum(axis=2).astype(np.int32),
        target_entropy=np.ones((c, n), np.float32),
        hidden=np.zeros((c, n, 0), np.float32),
        margin=np.ones((c, n), np.float32),
    )
    cost = CostModel(np.array([0.0, 1.0, 1.1, 1.2, 1.3, 1.4]), draft=0.05, unit_seconds=1e-3)
    return DraftEnv(Replay(trace, empty_calibration(), cost), observe="tokens", reference_rate=1.5)


def test_draft_with_tokens():
    """With one token drafted the policy verifies token 1 and not token 0: it sees what the vector doesn't say."""
    env = draft_with_tokens()
    features = hashed_features({ob.DRAFTED: range(1, 5)}, tokens=(ob.SIZE,), crosses=[(ob.DRAFTED, ob.SIZE)], bits=10)
    schedule = {"alpha": 0.3, "alpha_final": 0.01, "horizon": 20_000, "epsilon": 0.2, "average_reward": True, "lambda_": 0.3}
    agent = LinearSarsa(env, seed=0, features=features, **schedule).learn(20_000)
    assert agent.path == "interpreted: DraftEnv has no compiled form with these settings"
    obs, _ = env.reset(seed=0)
    vector = obs["vector"]
    vector[ob.DRAFTED] = 1.0
    chosen = [int(agent.predict({"vector": vector, "tokens": np.array([token, 0, 0])})[0]) for token in (0, 1)]
    assert chosen[0] != ob.VERIFY and chosen[1] == ob.VERIFY


def test_dict_observations_that_do_not_fit():
    agent = echo_agent()
    with pytest.raises(SpaceError, match="expected an observation of Dict"):
        agent.predict(np.zeros(5))
    with pytest.raises(SpaceError, match="expected an observation of Dict"):
        agent.begin({"vector": np.zeros(2)})
    with pytest.raises(SpaceError, match="got an array of shape"):
        agent.begin({"vector": np.zeros(2), "tokens": np.zeros(2)})
    with pytest.raises(SpaceError, match=r"pass features=hashed_features"):
        LinearSarsa(Echo())
    with pytest.raises(SpaceError, match=r"features use dimension 5, observations have 5 \(counted from 0\)"):
        LinearSarsa(Echo(), features=hashed_features({}, tokens=(5,)))
    with pytest.raises(SpaceError, match="features use dimension 4, observations have 4"):
        LinearSarsa(gym.make("CartPole-v1"), features=tile_coding([{4: (1.0,)}]))


def test_a_checkpoint_without_known_features(tmp_path):
    agent = echo_agent()
    agent.save(tmp_path / "agent")
    with np.load(tmp_path / "agent") as file:
        arrays = {name: file[name] for name in file.files if not name.endswith("features.tokens")}
    with open(tmp_path / "other", "wb") as file:
        np.savez(file, **arrays)
    with pytest.raises(CheckpointError, match="no features that this version knows"):
        Agent.load(tmp_path / "other")
