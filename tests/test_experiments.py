"""Many seeds and settings at once: each result is what a single agent learns, bit for bit, whatever runs beside it."""

import re
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.wrappers import TransformReward
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar import layout_pb2

from tdraft import agents
from tdraft.agents import AGENTS, DynaQ, NStepSarsa, QLearning, SemiMarkovQ, learning_curve, sweep
from tdraft.agents.bands import write_bands
from tdraft.agents.base import Agent
from tdraft.agents.experiments import episode_length, reward_rate, rms_error, step_loop
from tdraft.agents.linear import LinearSarsa
from tdraft.agents.prediction import TD, NStepTD
from tdraft.agents.settings import SettingsError
from tdraft.envs.textbook.grids import WindyGridworld
from tdraft.envs.textbook.walks import RandomWalk
from tdraft.kernels.jit import lean
from tdraft.scripts.main import main
from tdraft.scripts.plot import find_runs, read_curve

GRID = {"alpha": [0.1, 0.5, 1], "epsilon": [0.0, 0.1]}


@lean
def table(learner, data, reward, length, out):
    """All action values."""
    n_states, n_actions = learner.q.shape
    for s in range(n_states):
        for a in range(n_actions):
            out[s * n_actions + a] = learner.q[s, a]


@lean
def inner_table(learner, data, reward, length, out):
    """The same of a learner that keeps more than a table."""
    table(learner.table, data, reward, length, out)


@lean
def linear(learner, data, reward, length, out):
    """All weights (F, A), as they stand."""
    for i in range(len(out)):
        out[i] = learner.w.flat[i]


def alone(kind: Any, env: gym.Env, steps: int, seed: int, **settings: Any) -> Any:
    """An agent after so many steps."""
    return kind(env, seed=seed, **settings).learn(steps)


def steps_of(kind: Any, env: gym.Env, cell: dict[str, Any], seed: int, episodes: int, **fixed: Any) -> int:
    """Steps of a run's episodes."""
    return int(learning_curve(kind(env, **cell, **fixed), [seed], episodes, episode_length).sum())


def test_a_cell_is_what_an_agent_learns_alone():
    env, seeds = gym.make("CliffWalking-v1"), [0, 7, 3]
    found = sweep(QLearning, env, GRID, seeds, 30, table, width=192, at=[30], gamma=0.9)
    assert found.settings == [{"alpha": a, "epsilon": e} for a in GRID["alpha"] for e in GRID["epsilon"]]
    assert found.history.shape == (6, 3, 1, 192) and found.seeds == seeds and found.at.tolist() == [30]
    for cell, rows in zip(found.settings, found.history):
        for seed, row in zip(seeds, rows):
            steps = steps_of(QLearning, env, cell, seed, 30, gamma=0.9)
            np.testing.assert_array_equal(row[0], alone(QLearning, env, steps, seed, gamma=0.9, **cell).q.ravel())


@pytest.mark.parametrize("steps", [1, 777, 5000])
def test_steps_are_what_an_agent_learns_alone(steps):
    """Also within an episode."""
    env = WindyGridworld()
    found = sweep(NStepSarsa, env, {"n": [1, 4]}, [2, 5], timesteps=5000, metric=inner_table, width=280, at=[0, steps])
    for cell, rows in zip(found.settings, found.history):
        for seed, row in zip([2, 5], rows):
            assert not row[0].any()
            np.testing.assert_array_equal(row[1], alone(NStepSarsa, env, steps, seed, **cell).q.ravel())


def test_companions_and_threads_change_nothing():
    env = gym.make("FrozenLake-v1")
    whole = sweep(DynaQ, env, {**GRID, "planning": [0, 5]}, range(9), 20)
    assert np.ptp(whole.history) > 0
    for workers in (1, 3, 16):
        other = sweep(DynaQ, env, {**GRID, "planning": [0, 5]}, range(9), 20, workers=workers)
        np.testing.assert_array_equal(other.history, whole.history)
    few = sweep(DynaQ, env, {"epsilon": [0.1], "planning": [5], "alpha": [0.5]}, [8, 2], 20)
    [cell] = whole.cells(alpha=0.5, epsilon=0.1, planning=5)
    np.testing.assert_array_equal(few.history[0], whole.history[cell][[8, 2]])
    np.testing.assert_array_equal(whole.history[cell][2], learning_curve(DynaQ(env, **whole.settings[cell]), [2], 20)[0])


def test_predictors_and_vectors():
    env, true = RandomWalk(19), np.append(np.linspace(-0.9, 0.9, 19), np.nan)
    policy = np.array([1.0])
    found = sweep(NStepTD, env, {"n": [1, 8], "alpha": [0.1, 0.4]}, range(4), 10, rms_error, true, policy=policy)
    for cell, rows in zip(found.settings, found.history):
        np.testing.assert_array_equal(rows, learning_curve(NStepTD(env, policy=policy, **cell), range(4), 10, rms_error, true))
    car: Any = gym.make("tdraft/MountainCar-v0")
    width = LinearSarsa(car).learner.w.size
    cars = sweep(LinearSarsa, car, {"alpha": [0.1, 0.3]}, [4], timesteps=3000, metric=linear, width=width, at=[700, 3000])
    for cell, rows in zip(cars.settings, cars.history[:, 0]):
        for steps, row in zip(cars.at, rows):
            np.testing.assert_array_equal(row, alone(LinearSarsa, car, int(steps), 4, **cell).learner.w.ravel())
            assert row.any()


def test_rates_of_a_continuing_task():
    """Rewards per step of every hundredth part add up to all that an agent got alone."""
    env = gym.make("Taxi-v4")
    found = sweep(SemiMarkovQ, env, {"eta": [0.1, 1]}, [3], timesteps=20_000, metric=reward_rate)
    for cell, rates in zip(found.settings, found.history[:, 0]):
        assert len(rates) == 100
        curve = learning_curve(SemiMarkovQ(env, **cell), [3], 3000)[0].cumsum()
        lengths = learning_curve(SemiMarkovQ(env, **cell), [3], 3000, episode_length)[0].cumsum()
        ended = [i for i, length in enumerate(lengths) if length % 200 == 0 and length <= 20_000]
        assert len(ended) > 5
        for i in ended:
            assert rates[: int(lengths[i]) // 200].sum() * 200 == pytest.approx(curve[i], rel=1e-12)


def test_scores_and_the_best_cell():
    env = gym.make("CliffWalking-v1")
    found = sweep(QLearning, env, GRID, range(10), 50)
    np.testing.assert_array_equal(found.scores(), found.history.mean(axis=2))
    means = found.scores(10).mean(axis=1)
    np.testing.assert_array_equal(means, found.history[:, :, -10:].mean(axis=2).mean(axis=1))
    assert found.best(last=10) == means.argmax() and found.best(lowest=True, last=10) == means.argmin()
    assert found.cells(epsilon=0.1) == [1, 3, 5] and found.cells() == list(range(6)) and found.cells(epsilon=0.7) == []
    broken = found._replace(history=np.where(np.arange(6)[:, None, None] == found.best(), np.nan, found.history))
    assert broken.best() == np.delete(found.scores().mean(axis=1), found.best()).argsort()[-1] + (found.best() == 0)
    with pytest.raises(SettingsError, match="finite score"):
        found._replace(history=found.history * np.inf).best()
    with pytest.raises(SettingsError, match=r"last must be in 1..50"):
        found.scores(51)


def test_the_env_stays_as_it_is():
    env = gym.make("FrozenLake-v1")
    env.reset(seed=1)
    before = env.unwrapped.np_random.bit_generator.state, env.unwrapped.s  # pyright: ignore[reportAttributeAccessIssue]
    sweep(QLearning, env, {}, range(3), 10)
    assert before == (env.unwrapped.np_random.bit_generator.state, env.unwrapped.s)  # pyright: ignore


NUMBERS: dict[str, list[float]] = {
    "alpha": [0.5, 1],
    "gamma": [0.9, 1, 0],
    "epsilon": [0.2, 0, 1],
    "lambda_": [0, 0.5, 1],
    "n": [1, 3],
    "q_init": [0, -1.5],
    "eta": [1, 0.1],
    "rho_init": [1, 0.5],
    "alpha_w": [1, 0.5],
    "n_steps": [1, 8],
    "beta": [1, 0.1],
    "planning": [1, 5],
    "kappa": [0, 1e-3],
    "theta": [1, 0.01],
    "sigma": [0, 1, 0.5],
}


# A rule of its own, without traces or with one kind of backup only, where lambda_ or sigma is 0.
TWO_RULES = {"linear-sarsa", "linear-q", "linear-expected-sarsa", "q-sigma"}


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(AGENTS))
def test_numbers_compile_once(name):
    """A loop for each rule, whatever its numbers, integers and floats alike."""
    kind: Any = getattr(agents, AGENTS[name])
    env = gym.make(
        "tdraft/MountainCar-v0" if "linear" in name or name in ("actor-critic", "cross-entropy") else "CliffWalking-v1"
    )
    loops = set()
    for field in fields(kind.Settings):
        for value in NUMBERS.get(field.name, ()):
            try:
                agent: Agent = kind(env, **{field.name: value})
            except SettingsError:
                continue  # not for this agent
            assert agent.compiled is not None
            loops.add(step_loop(agent.compiled.reset, agent.compiled.step, agent.begin_rule, agent.step_rule, episode_length))
            learning_curve(agent, [0], timesteps=2, metric=episode_length)
    assert len(loops) == (2 if name in TWO_RULES else 1)
    assert all(len(loop.signatures) == 1 for loop in loops)


@pytest.mark.parametrize(
    ("grid", "more", "said"),
    [
        ({"alpa": [0.1]}, {}, r'cell \{\'alpa\': 0.1\}: q-learning has no hyper-parameter "alpa"; did you mean "alpha"'),
        ({"alpha": [0.1, 3.0]}, {}, r"cell \{'alpha': 3.0\}: alpha must be in \(0, 1\], got 3.0"),
        ({"alpha": []}, {}, r"the grid's alpha must be a list of at least one value, got \[\]"),
        ({"alpha": 0.1}, {}, "the grid's alpha must be a list of at least one value, got 0.1"),
        ({"alpha": [0.1]}, {"alpha": 0.2}, "alpha is in the grid and beside it"),
        ({}, {"gamma": 2.0}, r"^gamma must be in \[0, 1\], got 2.0"),
        ({}, {"timesteps": 10}, "give either episodes or timesteps, got 5 and 10"),
        ({}, {"at": [3, 2]}, r"at must hold increasing numbers of episodes in 0..5, got \[3, 2\]"),
        ({}, {"seeds": [0, -1]}, "seeds must be integers >= 0, got -1"),
    ],
)
def test_errors_say_what_was_wrong(grid, more, said):
    env = gym.make("CliffWalking-v1")
    with pytest.raises(SettingsError, match=said):
        sweep(QLearning, env, grid, **{"seeds": [0, 1], "episodes": 5, **more})


def test_an_env_that_does_not_compile():
    env = TransformReward(gym.make("CliffWalking-v1"), lambda r: 2 * r)
    with pytest.raises(SettingsError, match="needs an env that compiles, this one does not: TransformReward may change"):
        sweep(QLearning, env, GRID, [0], 5)
    with pytest.raises(SettingsError, match="need an env that compiles: CliffWalking-v1 is interpreted: TransformReward"):
        learning_curve(QLearning(env), [0], 5)


def test_without_torch():
    code = (
        "import sys, gymnasium as gym; from tdraft.agents import QLearning, sweep\n"
        "QLearning(gym.make('CliffWalking-v1'), seed=0).learn(10)\n"
        "print(sweep(QLearning, gym.make('CliffWalking-v1'), {'alpha': [0.5]}, [0], 2).history.shape, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "(1, 1, 2) False\n", done.stderr


TRAIN = ["train", "q-learning", "--env", "CliffWalking-v1", "--timesteps", "20000", "--seeds", "0:4"]


def test_bands_of_many_seeds(tmp_path, capsys):
    """TensorBoard gets the numbers of `tdraft plot`; plot and --resume take the folder for no seed."""
    command = [*TRAIN, "--runs", str(tmp_path)]
    assert main(command) == 0
    assert "bands: its tab Custom Scalars" in capsys.readouterr().out
    folder = tmp_path / "CliffWalking-v1" / "q-learning"
    [agent] = find_runs((str(tmp_path),)).values()
    assert [file.parent.name for file in agent] == ["seed0", "seed1", "seed2", "seed3"]
    curve, _ = read_curve(agent, "rollout/ep_rew_mean", "mean")
    for _ in range(2):  # a second time, over what is there
        assert sorted(path.name for path in folder.iterdir()) == ["all", "seed0", "seed1", "seed2", "seed3"]
        [events] = (folder / "all").iterdir()
        read = EventAccumulator(str(events)).Reload()
        for name, numbers in zip(("mean", "low", "high"), (curve.centre, curve.low, curve.high)):
            points = read.Scalars(f"rollout/ep_rew_mean/{name}")
            assert [point.step for point in points] == curve.steps.tolist()
            np.testing.assert_array_equal([point.value for point in points], numbers.astype(np.float32))
        [stored] = read.Tensors("custom_scalars__config__")
        layout = layout_pb2.Layout.FromString(stored.tensor_proto.string_val[0])
        titles = [chart.title for chart in layout.category[0].chart]
        names = ("ep_rew_mean", "ep_len_mean", "reward_rate", "exploration_rate")
        assert titles == [*(f"rollout/{name}" for name in names), "train/td_error"]
        [band] = layout.category[0].chart[0].margin.series
        assert (band.value, band.lower, band.upper) == tuple(f"rollout/ep_rew_mean/{name}" for name in ("mean", "low", "high"))
        assert main([*command, "--resume"]) == 0


def test_a_seed_alone_joins_the_bands(tmp_path):
    for seed in ("0", "1"):
        assert not list(tmp_path.rglob("all"))
        assert main([*TRAIN[:-1], seed, "--runs", str(tmp_path)]) == 0
    assert len(list(tmp_path.rglob("all/events*"))) == 1


def test_no_bands_of_one_seed(tmp_path):
    assert write_bands(tmp_path) is None
    assert main(["train", "sarsa", "--env", "CliffWalking-v1", "--timesteps", "2000", "--runs", str(tmp_path)]) == 0
    assert write_bands(tmp_path / "CliffWalking-v1" / "sarsa") is None


def resident() -> int:
    """Bytes of memory that this process holds."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs Linux's /proc")
@pytest.mark.parametrize("name", ["q-learning", "n-step-sarsa", "dyna-q", "prioritised-sweeping", "sarsa-lambda", "monte-carlo"])
def test_memory_grows_with_the_tables_only(name):
    """What 20 million steps (2 million for planning) leave behind after a warm-up is at most 2 MiB, less than a byte a step."""
    steps = 2_000_000 if name in ("dyna-q", "prioritised-sweeping") else 20_000_000
    agent: Agent = getattr(agents, AGENTS[name])(gym.make("CliffWalking-v1"), seed=0)
    agent.learn(100_000)
    before = resident()
    agent.learn(steps)
    assert agent.num_timesteps == steps + 100_000
    assert resident() - before <= 2 * 2**20


def test_a_predictor_given_a_policy_needs_no_grid():
    env, true = RandomWalk(5), np.append(np.linspace(-2 / 3, 2 / 3, 5), np.nan)
    found = sweep(TD, env, {}, range(5), 10, rms_error, true, alpha=0.2)
    assert found.settings == [{}]
    np.testing.assert_array_equal(found.history[0], learning_curve(TD(env, alpha=0.2), range(5), 10, rms_error, true))


def test_the_page_s_blocks_run(tmp_path, monkeypatch):
    page = (Path(__file__).parent.parent / "docs" / "many_runs.md").read_text()
    first, second = re.findall(r"```python\n(.*?)```", page, re.S)
    names: dict[str, Any] = {}
    exec(first + second, names)
    assert names["found"].history.shape == (6, 100, 500) and names["history"].shape == (2000, 100)
    monkeypatch.chdir(tmp_path)
    train, plot, _ = re.search(r"```\n(.*?)```", page, re.S)[1].splitlines()  # pyright: ignore[reportOptionalSubscript]
    assert main([*train.split()[1:], "--timesteps", "1000"]) == 0
    assert main(plot.split()[1:]) == 0
    assert (tmp_path / "curves.png").exists()
