"""Tabular agents reach what is known to be best; models are exact; planning in order of priority saves updates."""

import gymnasium as gym
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tdraft import agents
from tdraft.agents import AGENTS, DifferentialSarsa, DynaQ, DynaQPlus, PrioritisedSweeping, RelativeQ, RLearning, SemiMarkovQ
from tdraft.agents.settings import SettingsError
from tdraft.kernels.heap import new_heap, pop, raise_to

CLIFF = "CliffWalking-v1"


def optimal_values(gamma: float) -> np.ndarray:
    """(48, 4) optimal action values of the cliff."""
    table, q = gym.make(CLIFF).unwrapped.P, np.zeros((48, 4))  # pyright: ignore
    for _ in range(200):
        for s in range(48):
            for a in range(4):
                ((_, following, reward, terminated),) = table[s][a]
                q[s, a] = reward + gamma * (0.0 if terminated else q[following].max())
    return q


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("double-q", {"epsilon": 0.3}),  # with 0.1 it takes longer to come back to the edge
        ("tree-backup", {"n": 3, "epsilon_target": 0.0}),
        ("q-sigma", {"n": 3, "sigma": 0.5, "epsilon_target": 0.0, "alpha": 0.1}),
        ("off-policy-n-step-sarsa", {"n": 3, "alpha": 0.1}),
        ("q-lambda", {"lambda_": 0.8}),
        ("dyna-q", {}),
        ("prioritised-sweeping", {"theta": 0.0}),
    ],
)
def test_agents_that_learn_the_greedy_policy_find_the_cliffs_optimum(name, options):
    agent = getattr(agents, AGENTS[name])(gym.make(CLIFF), seed=0, **{"alpha": 0.5, "epsilon": 0.1, **options}).learn(600_000)
    assert agent.path == "compiled"
    assert agent.q[36].max() == pytest.approx(-13.0, abs=1e-6)


@pytest.mark.parametrize("kind", [DynaQ, DynaQPlus, PrioritisedSweeping])
def test_the_model_is_exact_where_the_env_is_deterministic(kind):
    agent = kind(gym.make(CLIFF), seed=0, alpha=0.5, epsilon=0.5, gamma=0.95).learn(20_000)
    table, model = agent.env.unwrapped.P, agent.learner.model
    tried = np.argwhere(model.tried)
    assert len(tried) == 37 * 4  # all but those of the cliff and the goal
    for s, a in tried:
        ((_, following, reward, terminated),) = table[s][a]
        assert (model.following[s, a], model.reward[s, a]) == (following, reward)
        assert model.discount[s, a] == (0.0 if terminated else 0.95)


def test_dyna_q_plus_considers_untried_actions_and_what_was_not_tried_for_long():
    agent = DynaQPlus(gym.make(CLIFF), seed=0, alpha=1.0, epsilon=0.0, gamma=0.5, planning=500, kappa=2.0)
    agent.begin(36)
    agent.learner.table.last[:] = 36, 0
    agent.step(-1.0, 0.5, 24)
    assert agent.learner.known[: agent.learner.count[0]].tolist() == [36]
    assert sorted(agent.learner.actions[36, : agent.learner.choices[36]]) == [0, 1, 2, 3]
    # never tried at step 1: reward 0 + 2 * sqrt(1 - 0), and back to 36: q = 2 / (1 - 0.5); just tried: -1 + 2 * sqrt(0)
    np.testing.assert_allclose(agent.q[36], [-1.0, 4.0, 4.0, 4.0], atol=1e-9)
    assert agent.updates == 501


def test_dyna_q_draws_a_state_and_then_one_of_its_actions():
    """With one action taken in state 0 and three in state 1, that one is in half of the planning updates, not a quarter.

    Each pair's model says reward 1 and the end, so that with a tiny alpha its value counts its updates.
    """
    alpha, n = 1e-9, 40_000
    agent = DynaQ(gym.make(CLIFF), seed=0, alpha=alpha, epsilon=0.0, planning=0)
    pairs = [(0, 2), (1, 0), (1, 3), (1, 1)]
    for s, a in pairs[:3]:
        agent.begin(s)
        agent.learner.table.last[:] = s, a
        agent.step(1.0, 0.0, 2)
    agent.learner.table.q[:] = 0.0
    planner = DynaQ(gym.make(CLIFF), seed=1, alpha=alpha, epsilon=0.0, planning=n)
    for name in ("known", "actions", "choices", "count"):
        getattr(planner.learner, name)[:] = getattr(agent.learner, name)
    for mine, theirs in zip(planner.learner.model, agent.learner.model):
        mine[:] = theirs
    planner.begin(1)
    planner.learner.table.last[:] = pairs[3]
    planner.step(1.0, 0.0, 2)
    updates = [planner.q[pair] / alpha - (pair == pairs[3]) for pair in pairs]
    assert sum(updates) == pytest.approx(n, rel=1e-3) and np.count_nonzero(planner.q) == 4
    np.testing.assert_allclose(np.array(updates) / n, [1 / 2, 1 / 6, 1 / 6, 1 / 6], atol=5 * 0.5 / np.sqrt(n))


def updates_to_optimum(kind, seed: int) -> int:
    """Updates until the start of the 8x8 lake is worth what it is on the shortest way, 14 steps; only the last one pays."""
    env = gym.make("FrozenLake-v1", map_name="8x8", is_slippery=False)
    agent = kind(env, seed=seed, alpha=1.0, epsilon=0.1, gamma=0.95, planning=5)
    while agent.q[0].max() < 0.99 * 0.95**13:
        agent.learn(20)
    assert agent.q[0].max() == pytest.approx(0.95**13, abs=1e-12)
    return agent.updates


def test_prioritised_sweeping_needs_far_fewer_updates_than_dyna_q():
    swept, drawn = (np.array([updates_to_optimum(kind, seed) for seed in range(5)]) for kind in (PrioritisedSweeping, DynaQ))
    assert np.all(10 * swept < drawn), (swept, drawn)


def test_prioritised_sweeping_converges_to_the_optimal_values_and_rests():
    wanted = optimal_values(0.95)
    agent = PrioritisedSweeping(gym.make(CLIFF), seed=0, alpha=1.0, epsilon=0.5, gamma=0.95, theta=1e-9, planning=50)
    agent.learn(20_000)
    known = agent.learner.model.tried > 0
    np.testing.assert_allclose(agent.q[known], wanted[known], atol=1e-6)
    before = agent.updates
    assert agent.learn(1000).updates == before


def test_predecessors_follow_a_model_that_changes():
    agent = PrioritisedSweeping(gym.make("FrozenLake-v1"), seed=0, alpha=0.1, epsilon=1.0, gamma=0.9).learn(5000)
    model, leading = agent.learner.model, agent.learner.leading
    for s in range(16):
        listed, pair = [], leading.first[s]
        while pair >= 0:
            listed.append(divmod(int(pair), 4))
            pair = leading.after[pair]
        assert sorted(listed) == [tuple(p) for p in np.argwhere((model.tried > 0) & (model.following == s))]


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 9), st.floats(0, 10), st.booleans()), max_size=60))
def test_heap_gives_the_largest(moves):
    heap, known = new_heap(10), {}
    for item, priority, take in moves:
        if take and known:
            top = pop(heap)
            assert known.pop(top) == max([*known.values(), heap.priority[top]])
        else:
            raise_to(heap, item, priority)
            known[item] = max(priority, known.get(item, 0.0))
        assert heap.size[0] == len(known)


class Clock(gym.Env):
    """Two states in turn: in state 0 action 1 pays 2, in state 1 action 0 pays 4, the others nothing; the best rate is 3."""

    observation_space, action_space = gym.spaces.Discrete(2), gym.spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.s, self.t = 0, 0
        return 0, {}

    def step(self, action):
        reward = (0.0, 2.0)[action] if self.s == 0 else (4.0, 0.0)[action]
        self.s, self.t = 1 - self.s, self.t + 1
        return self.s, reward, False, False, {}


class Laps(Clock):
    """The same in episodes of two steps: an end is a renewal, so the rate is the same."""

    def step(self, action):
        obs, reward, *_ = super().step(action)
        return obs, reward, self.t == 2, False, {}


@pytest.mark.parametrize("env", [Clock, Laps])
@pytest.mark.parametrize("kind", [DifferentialSarsa, RLearning, RelativeQ, SemiMarkovQ])
def test_average_reward_agents_find_the_best_rate(kind, env):
    agent = kind(env(), seed=0, alpha=0.1, epsilon=0.1, horizon=8000, epsilon_final=0.0).learn(12_000)
    assert agent.rho == pytest.approx(3.0, abs=0.05)
    np.testing.assert_array_equal(agent.predict(np.arange(2))[0], [1, 0])


@pytest.mark.parametrize("kind", [DifferentialSarsa, RLearning, RelativeQ, SemiMarkovQ])
def test_the_last_transition_of_an_episode_teaches_its_own_pair(kind):
    agent = kind(gym.make(CLIFF), seed=0, alpha=0.5)
    agent.begin(3)
    action = agent.learner.table.last[1]
    agent.step(10.0, 0.0, 47)
    assert not agent.q.any()
    agent.begin(3)
    wanted = np.zeros((48, 4))
    wanted[3, action] = 5.0
    np.testing.assert_array_equal(agent.q, wanted)


def test_durations_count():
    agent = DifferentialSarsa(gym.make(CLIFF), seed=0, alpha=0.5, beta=0.25, rho_init=2.0, epsilon=1.0)
    agent.begin(0)
    action = agent.learner.table.last[1]
    agent.step(10.0, 1.0, 1, 3.0)  # 10 - 2 * 3 = 4
    assert (agent.q[0, action], agent.rho) == (2.0, 3.0)


def test_the_references_of_rvi_q():
    assert RelativeQ(gym.make(CLIFF), reference=36).learner.reference[0] == 36
    agent = RelativeQ(gym.make(CLIFF), seed=0).learn(5)
    assert agent.learner.reference[0] == 36  # where episodes start
    with pytest.raises(ValueError, match="expected an observation"):
        RelativeQ(gym.make(CLIFF), reference=48)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("n-step-sarsa", {"n": 0}, r"n must be in \[1"),
        ("n-step-sarsa", {"n": 2.5}, "n must be an integer"),
        ("tree-backup", {"epsilon_target": 1.5}, "epsilon_target must be in"),
        ("q-sigma", {"sigma": -0.1}, "sigma must be in"),
        ("q-sigma", {"control_variate": False, "epsilon_target": 0.0}, "needs control_variate=True"),
        ("sarsa-lambda", {"lambda_": 1.1}, "lambda_ must be in"),
        ("sarsa-lambda", {"trace": "duch"}, "trace must be"),
        ("q-lambda", {"trace": "dutch"}, "need Sarsa's error"),
        ("monte-carlo", {"capacity": 0}, "capacity must be in"),
        ("off-policy-monte-carlo", {"epsilon": 0.0}, r"epsilon must be in \(0, 1\]"),
        ("dyna-q", {"planning": -1}, "planning must be in"),
        ("dyna-q", {"planning": 1.5}, "planning must be an integer"),
        ("dyna-q-plus", {"kappa": -1.0}, "kappa must be in"),
        ("prioritised-sweeping", {"theta": -1.0}, "theta must be in"),
        ("prioritised-sweeping", {"planning": 0}, "planning must be in"),
        ("differential-sarsa", {"beta": 2.0}, "beta must be in"),
        ("rvi-q", {"reference": 0.5}, "reference must be an observation"),
    ],
)
def test_settings_out_of_range(name, options, message):
    with pytest.raises(SettingsError, match=message):
        getattr(agents, AGENTS[name])(gym.make(CLIFF), **options)
