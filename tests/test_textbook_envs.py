"""The textbook's environments: exact tables, known facts, compiled = interpreted."""

import copy

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

import tdraft.envs
from tdraft.agents import QLearning
from tdraft.envs.compiled import CompiledEnv, compile_env, draw
from tdraft.envs.textbook.base import TableEnv
from tdraft.envs.textbook.blackjack import Blackjack
from tdraft.envs.textbook.drawing import draw_grid, save_gif
from tdraft.envs.textbook.grids import DynaMaze, WindyGridworld, ZhaoGrid
from tdraft.envs.textbook.walks import Baird, BoyanChain, RandomWalk

TEXTBOOK = sorted(name for name, (entry, *_) in tdraft.envs._ENVS.items() if entry.startswith("textbook."))


def make(name: str, **keywords) -> gym.Env:
    return gym.make(f"tdraft/{name}-v0", **keywords)


def steps_to_the_end(env) -> int:
    """Length of the shortest way from the start to a terminal transition, breadth first over `P`."""
    seen = {int(np.argmax(env.initial_state_distrib))}
    frontier, steps = set(seen), 0
    while frontier:
        steps += 1
        outcomes = [o for s in frontier for options in env.P[s].values() for o in options]
        if any(o[3] for o in outcomes):
            return steps
        frontier = {o[1] for o in outcomes} - seen
        seen |= frontier
    raise AssertionError("no end")


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", TEXTBOOK)
def test_gymnasiums_checker_finds_nothing(name):
    env = make(name)
    check_env(env.unwrapped, skip_render_check=name in ("Racetrack", "JacksCarRental"))
    assert isinstance(compile_env(env), CompiledEnv)


@pytest.mark.parametrize("name", TEXTBOOK)
def test_rows_of_p_are_distributions(name):
    env = make(name).unwrapped
    n_states, n_actions = int(env.observation_space.n), int(env.action_space.n)
    assert env.initial_state_distrib.shape == (n_states,) and env.initial_state_distrib.sum() == pytest.approx(1, abs=1e-12)
    table = env.P
    assert len(table) == n_states
    for s in table:
        assert len(table[s]) == n_actions
        for options in table[s].values():
            assert sum(o[0] for o in options) == pytest.approx(1, abs=1e-9)
            assert all(o[0] > 0 and 0 <= o[1] < n_states for o in options)


@pytest.mark.parametrize("name", TEXTBOOK)
def test_compiled_training_equals_interpreted(name):
    tables = []
    for path in ("compiled", "interpreted"):
        agent = QLearning(make(name), seed=3, alpha=0.1, epsilon=0.3)
        assert agent.path == "compiled"
        if path == "interpreted":
            agent.compiled = None
        tables.append(agent.learn(4000).q.copy())
    np.testing.assert_array_equal(*tables)
    assert tables[0].any() or name == "Baird"


@pytest.mark.parametrize(
    ("env", "steps"),
    [
        (WindyGridworld(), 15),
        (WindyGridworld(moves=8), 7),
        (WindyGridworld(moves=9), 7),
        (DynaMaze(), 14),
        (make("BlockingMaze").unwrapped, 10),
        (make("BlockingMaze", change_at=0).unwrapped, 16),
        (make("ShortcutMaze").unwrapped, 16),
        (make("ShortcutMaze", change_at=0).unwrapped, 10),
    ],
)
def test_shortest_ways(env, steps):
    assert steps_to_the_end(env) == steps


def test_the_maze_changes_at_its_step_and_a_seed_starts_it_again():
    env = make("BlockingMaze", change_at=3).unwrapped
    env.reset(seed=0)
    before = env.P
    for _ in range(3):
        assert not env.changed
        env.step(3)
    assert env.changed and env.P != before and (3, 8) in env.walls
    env.reset()
    assert env.changed
    env.reset(seed=0)
    assert not env.changed and env.P == before


def test_stochastic_wind_blows_three_ways():
    assert WindyGridworld(moves=8, stochastic=True).P[30 + 6][2] == [
        (pytest.approx(1 / 3), 36, -1.0, False),
        (pytest.approx(1 / 3), 26, -1.0, False),
        (pytest.approx(1 / 3), 16, -1.0, False),
    ]


def test_zhaos_rewards():
    grid = ZhaoGrid(r_boundary=-2, r_forbidden=-10, r_target=5, r_other=-0.5).P
    assert grid[0][0] == [(1.0, 0, -2.0, False)]  # up: off the grid
    assert grid[1][2] == [(1.0, 6, -10.0, False)]  # down from (0, 1) into a forbidden cell
    assert grid[17][4] == [(1.0, 17, 5.0, False)]  # staying at the target
    assert grid[0][1] == [(1.0, 1, -0.5, False)]
    assert ZhaoGrid(terminal=True).P[22][0] == [(1.0, 17, 1.0, True)]


def test_blackjack_deals_like_a_deck():
    env = Blackjack()
    assert env.initial_state_distrib[201:].sum() == pytest.approx(2 * (1 / 13) * (4 / 13))
    assert Blackjack(naturals=False).initial_state_distrib[201:].sum() == 0
    assert sum(p for p, *_ in env.P[Blackjack.number(21, 6, False)][0]) == pytest.approx(1)
    assert env.P[Blackjack.number(12, 6, False)][1][-1] == (pytest.approx(4 / 13), 200, -1.0, True)  # a ten busts


def test_features_of_the_chains():
    features = BoyanChain().features
    assert np.array_equal(features[[12, 11, 4, 0]], [[1, 0, 0, 0], [0.75, 0.25, 0, 0], [0, 0, 1, 0], [0, 0, 0, 0]])
    assert np.allclose(features @ [-24, -16, -8, 0], -2.0 * np.arange(13))
    assert np.array_equal(Baird.features[6], [0, 0, 0, 0, 0, 0, 1, 2]) and np.linalg.matrix_rank(Baird.features) == 7


def test_bias_rewards_are_normal():
    env = make("MaximizationBias").unwrapped
    env.reset(seed=1)
    rewards = []
    for _ in range(4000):
        env.reset()
        env.step(1)
        rewards.append(env.step(3)[1])
    assert abs(np.mean(rewards) + 0.1) < 4 / np.sqrt(4000) and abs(np.std(rewards) - 1) < 4 / np.sqrt(8000)


def test_continuing_tasks_have_no_end():
    for name in ("Baird", "AccessControl", "JacksCarRental", "ZhaoGrid"):
        env = make(name)
        assert not env.unwrapped.params.terminated.any() and env.spec is not None and env.spec.max_episode_steps is None


@pytest.mark.parametrize(
    ("transitions", "message"),
    [
        ({0: {0: [(0.5, 0, 0.0, False)]}}, "must sum to 1"),
        ({0: {0: [(float("nan"), 0, 0.0, False)]}}, "must sum to 1"),
        ({0: {0: [(1.0, 1, 0.0, False)]}}, "leads to state 1, but there are 1 states"),
        ({0: {0: [(1.0, 0, float("nan"), False)]}}, "rewards must be finite"),
    ],
)
def test_bad_tables_are_refused_before_the_first_step(transitions, message):
    with pytest.raises(ValueError, match=message):
        TableEnv(transitions, [1.0])


def test_bad_arguments():
    with pytest.raises(ValueError, match=r"start must be in 0\.\.4, got 9"):
        RandomWalk(5, start=9)
    with pytest.raises(ValueError, match="moves must be 4, 8 or 9, got 5"):
        WindyGridworld(moves=5)
    with pytest.raises(ValueError, match=r"target must lie in the grid of 5 x 5, got \(7, 0\)"):
        ZhaoGrid(target=(7, 0))
    with pytest.raises(ValueError, match="render_mode must be None or one of"):
        RandomWalk(render_mode="human")
    env = RandomWalk()
    with pytest.raises(gym.error.ResetNeeded):
        env.step(0)
    env.reset(seed=0)
    with pytest.raises(ValueError, match="expected an action"):
        env.step(1)


def test_a_copy_goes_on_by_itself():
    env = make("StochasticWindyGridworld").unwrapped
    env.reset(seed=2)
    other = copy.deepcopy(env)
    ways = [[e.step(a % 8)[0] for a in range(6)] for e in (env, other)]
    assert ways[0] == ways[1]


@pytest.mark.parametrize("n", [1, 3, 16, 17, 40, 441])
def test_draws_are_gymnasiums(n):
    """`categorical_sample`: the first index whose cumulated probability exceeds the draw, else 0; also in halved long rows."""
    rng = np.random.default_rng(n)
    for k in range(100):
        p = rng.dirichlet(np.full(n, 0.3)) * (rng.random(n) < 0.7)
        cumulated = np.cumsum(p / max(p.sum(), 1e-9)) * (0.9 if k % 3 == 0 else 1.0)
        assert draw(cumulated, np.random.default_rng(k)) == np.argmax(cumulated > np.random.default_rng(k).random())


def test_an_override_is_not_compiled():
    class Kinder(WindyGridworld):
        def step(self, action):
            obs, reward, *rest = super().step(action)
            return obs, reward + 1, *rest

    assert str(compile_env(Kinder())) == "Kinder has a step of its own beside its compiled one"
    assert isinstance(compile_env(gym.wrappers.TimeLimit(WindyGridworld(), 5)), CompiledEnv)


def test_pictures(tmp_path):
    env = ZhaoGrid(render_mode="rgb_array")
    env.reset(seed=0)
    plain = env.render()
    assert plain.shape == (240, 240, 3) and plain.dtype == np.uint8
    assert np.array_equal(plain[24, 24], [38, 84, 170])  # the agent's disc
    assert plain[3 * 48 + 24, 2 * 48 + 24, 1] > plain[3 * 48 + 24, 2 * 48 + 24, 0]  # the target is green
    shown = draw_grid(env, np.arange(25.0), np.ones(25, int), size=40)
    assert shown.shape == (200, 200, 3) and np.any(shown != draw_grid(env, np.arange(25.0), np.full(25, 3), size=40))
    save_gif([plain, env.render()], tmp_path / "walk.gif")
    assert (tmp_path / "walk.gif").read_bytes()[:6] == b"GIF89a"
    for name in ("FrozenLake-v1", "CliffWalking-v1", "tdraft/Racetrack-v0"):
        assert draw_grid(gym.make(name)).ndim == 3
    assert make("DynaMaze", render_mode="ansi").unwrapped.render().splitlines()[0] == ".......#G"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((np.zeros(24),), r"values must have an entry for each of the 25 cells, got shape \(24,\)"),
        ((None, np.full(25, 5)), r"policy must hold actions in 0\.\.4"),
        ((None, np.ones((25, 5))), r"probabilities of shape \(25, 5\)"),
    ],
)
def test_pictures_of_the_wrong_size(arguments, message):
    with pytest.raises(ValueError, match=message):
        draw_grid(ZhaoGrid(), *arguments)
    with pytest.raises(ValueError, match="expected a grid world, got RandomWalk"):
        draw_grid(RandomWalk())
