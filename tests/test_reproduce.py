"""Textbook experiments: names and shapes of all rows, exact quantities, and runs that do not depend on each other."""

import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tdraft.agents.experiments import rms_error
from tdraft.agents.prediction import TD
from tdraft.envs.textbook.walks import Baird
from tdraft.scripts.main import main
from tdraft.scripts.reproduce import baird, car, control, known, mazes, rows, thousand, walks, zhao
from tdraft.scripts.reproduce.command import EXPERIMENTS, Reproduce, run
from tdraft.scripts.reproduce.many import curves, sweep
from tdraft.scripts.reproduce.rows import Outcome, Panel

# Names of the rows: entries of the project's settings file, and ENTRY/KEY where it has several settings by name.
NAMES = (Path(__file__).parent / "data" / "reproduce_names.txt").read_text().splitlines()


def named(outcome: Outcome) -> dict[str, dict[str, Any]]:
    return {row["name"]: row for row in outcome.rows}


def test_experiments_make_the_rows_that_are_asked_for(tmp_path, monkeypatch):
    """With the training left out: every row's name, and that what is not asked for is one of our own experiments."""

    def no_curves(make, seeds, episodes, metric, data=(), *, at=(), width=1):
        marks = episodes if np.size(at) == 0 else np.size(at)
        return np.ones((len(seeds), marks, width) if width > 1 else (len(seeds), marks))

    def no_sweep(make, alphas: Sequence[float], seeds: Sequence[int], *rest) -> list[np.ndarray]:
        return [np.ones(len(seeds)) for _ in alphas]

    for module in (baird, car, control, mazes, thousand, walks, zhao):
        for name, instead in (("curves", no_curves), ("sweep", no_sweep)):
            if hasattr(module, name):
                monkeypatch.setattr(module, name, instead)
    monkeypatch.setattr(mazes, "goals_reached", lambda make, steps, every, seeds: np.ones((len(seeds), steps // every + 1)))
    monkeypatch.setattr(mazes, "SERVING_STEPS", 2000)
    run(Reproduce(names=("all",), runs=2, out=tmp_path / "out", json=tmp_path / "all.json"))
    found = json.loads((tmp_path / "all.json").read_text())["rows"]
    assert len({row["name"] for row in found}) == len(found)
    assert not set(NAMES) - {row["name"] for row in found}
    own = {row["name"] for row in found} - set(NAMES)
    assert {name.split("/")[0] for name in own} == {"fig8.4", "fig8.5", "zhao7", "zhao8"}
    for row in found:
        assert {"name", "metric", "value", "se", "unit", "runs"} <= row.keys()
        if isinstance(row["value"], list):
            assert len(row["se"]) == len(row["value"])
    for row in found:
        if row["name"] in ("ex6.6/exact", "fig9.1/exact"):
            assert row["exact"] == row["value"] and len(row["exact"]) in (3, 11)
    for name in EXPERIMENTS:
        assert (tmp_path / "out" / name / f"{name}.csv").stat().st_size > 50
        assert (tmp_path / "out" / name / f"{name}.png").exists() or name == "gym"


def test_a_name_that_there_is_not(capsys):
    assert main(["reproduce", "fig6.33"]) == 2
    assert 'no experiment "fig6.33"; did you mean "fig6.3"?' in capsys.readouterr().err
    assert main(["reproduce"]) == 2
    assert "ex6.2" in capsys.readouterr().err


def test_runs_are_the_same_alone_and_together():
    two, first, second = (named(walks.example_6_2(seeds)) for seeds in (range(2), [0], [1]))
    for name, row in two.items():
        alone = np.array([first[name]["value"], second[name]["value"]])
        np.testing.assert_allclose(row["value"], alone.mean(axis=0), rtol=1e-12)
        np.testing.assert_allclose(row["se"], alone.std(axis=0, ddof=1) / np.sqrt(2), rtol=1e-9, atol=1e-15)
        assert row["runs"] == 2 and len(row["value"]) == 7
    assert named(walks.example_6_2(range(2))) == two


def test_episode_0_is_the_first_guess():
    errors = [abs(0.5 - i / 6) for i in range(1, 6)]
    for row in walks.example_6_2(range(3)).rows:
        assert row["value"][0] == pytest.approx(np.sqrt(np.mean(np.square(errors))), abs=1e-12)
        assert row["se"][0] == pytest.approx(0, abs=1e-15)


def test_curves_and_sweeps_are_the_same_runs():
    env = walks.RandomWalk(19)
    true = walks.truth(env)
    swept = sweep(lambda alpha: TD(env, alpha=alpha), [0.1, 0.4], range(5), 10, rms_error, true)
    for alpha, samples in zip((0.1, 0.4), swept):
        history = curves(partial(TD, env, alpha=alpha), range(5), 10, rms_error, true)
        np.testing.assert_array_equal(samples, history.mean(axis=1))


def test_maximisation_bias_has_two_actions_in_a():
    """Half of the first episodes go left, whatever the rule; about 5% is the least, as half of the exploring actions do."""
    outcome = control.figure_6_5(range(400))
    for row in outcome.rows:
        assert abs(row["value"][0] - 50) < 4 * 100 * 0.5 / np.sqrt(400)
    for kind in (control.QLearning, control.DoubleQ):
        agent: Any = control.two_actions_in_a(kind)
        agent.learn(5000)
        assert np.isneginf(agent.q[0, 2:]).all() and np.isfinite(agent.q[0, :2]).all() and np.isfinite(agent.q[1:]).all()


def test_cliff_walking_exactly():
    model = control.mdp(control.gym.make("CliffWalking-v1"))
    best = control.policy_iteration(model, 1.0)
    assert best.v[control.CLIFF_START] == -13
    pi = control.epsilon_greedy(best.q, 0.1)
    np.testing.assert_allclose(pi.sum(axis=1), 1, rtol=1e-12)
    soft = control.policy_iteration(control.epsilon_soft(model, 0.1), 1.0).v[control.CLIFF_START]
    assert control.exact_values(model, pi, 1.0)[control.CLIFF_START] < soft < -13


def test_shortest_ways():
    assert control.steps_to_go(control.mdp(control.WindyGridworld())) == 15
    assert mazes.steps_to_go(mazes.mdp(mazes.DynaMaze())) == 14


def test_known_optimal_values():
    values = {row["name"]: row["value"] for row in known.optimal_values(range(1)).rows}
    assert values["gym/CliffWalking-v1/gamma=1.0"] == pytest.approx(-13, abs=1e-8)
    assert values["gym/FrozenLake-v1/gamma=1.0"] == pytest.approx(14 / 17, abs=1e-8)
    assert values["gym/FrozenLake-v1{'map_name': '8x8'}/gamma=1.0"] == pytest.approx(1, abs=1e-8)


def test_thousand_states_exactly():
    w, groups = thousand.walk(), thousand.aggregation(1000, 10).matrix()
    np.testing.assert_allclose(w.v[:1000] + w.v[:1000][::-1], 0, atol=1e-10)
    assert w.mu.sum() == pytest.approx(1, abs=1e-12)
    v, mu = w.v[:1000], w.mu[:1000]
    means = np.array([np.average(v[g], weights=mu[g]) for g in np.arange(1000).reshape(10, 100)])
    np.testing.assert_allclose(thousand.least_value_error(groups, v, mu), means, atol=1e-10)
    assert thousand.least_root_error(groups) == pytest.approx(np.sqrt(mu @ (np.repeat(means, 100) - v) ** 2), abs=1e-10)


def test_tilings_are_offset_by_four_states():
    X = thousand.tilings(50).matrix()
    assert X.shape[0] == 1000 and (X.sum(axis=1) == 50).all()
    shared = X @ X.T
    assert shared[500, 504] == 49 and shared[500, 503] in (49, 50) and shared[100, 299] <= 1 and shared[100, 300] == 0
    assert (thousand.tilings(1).matrix() == thousand.aggregation(1000, 5).matrix()).all()


def test_bairds_expectations_exactly():
    """Against the sums over states and actions, written out."""
    X, gamma, w = Baird.features, 0.99, baird.FIRST.copy()
    for _ in range(1000):
        error = gamma * X[6] @ w - X @ w
        w = w + 0.01 / 7 * sum(error[s] * X[s] for s in range(7))
    m = baird.known()
    states = baird.sweeps(lambda s: (baird.expected_td(m, s[0], 0.01),), (baird.FIRST,))
    np.testing.assert_allclose(states[-1][0], w, rtol=1e-8)

    w, emphasis = baird.FIRST.copy(), np.zeros(7)
    for sweep_number in range(1, 101):
        emphasis = np.append(np.ones(6), 1 + gamma * 7 * emphasis.mean())
        error = gamma * X[6] @ w - X @ w
        w = w + 0.03 / 7 * sum(emphasis[s] * error[s] * X[s] for s in range(7))
        if sweep_number == 50:
            at_50 = w
    exact = baird.figure_11_6(range(1)).rows[0]["exact"]
    np.testing.assert_allclose(exact["50"]["w"], at_50, atol=1e-8)
    np.testing.assert_allclose(exact["100"]["w"], w, atol=1e-8)
    assert exact["100"]["sqrtVE"] == pytest.approx(np.sqrt(np.mean((X @ w) ** 2)), abs=1e-8)


def test_sampled_baird_measures_what_the_weights_say():
    found = baird.sampled(baird.TDC, range(3), 40, alpha=0.005, beta=0.05)
    m = baird.known()
    for ve, pbe, *w in found:
        assert ve == pytest.approx(baird.root_ve(m, np.array(w)), abs=1e-10)
        assert pbe == pytest.approx(baird.root_pbe(m, np.array(w)), abs=1e-10)


def test_car_tiles_are_those_of_tiles3():
    """floor((floor(8 x') + t) / 8), floor((floor(8 v') + 3 t) / 8) of x' = 8 x / 1.7, v' = 8 v / .14: the same cells."""
    coding, rng = car.tiles(), np.random.default_rng(0)
    points = np.stack([rng.uniform(-1.2, 0.6, 400), rng.uniform(-0.07, 0.07, 400)], axis=1)
    for t in range(8):
        ours = [coding.rule(coding, p, t) for p in points]
        theirs = [
            (int(np.floor((np.floor(64 * x / 1.7) + t) / 8)), int(np.floor((np.floor(64 * v / 0.14) + 3 * t) / 8)))
            for x, v in points
        ]
        assert len(set(zip(ours, theirs))) == len(set(ours)) == len(set(theirs))


def test_rows_become_csv():
    samples = np.array([[1.0, 2.0], [3.0, np.inf]])
    made = [
        rows.row("a", "m", "u", samples, exact={"w": np.ones(2)}),
        rows.curve_row("b", "m", "u", [0.1, 0.2], [np.ones(3), np.zeros(3)]),
        rows.exact_row("c", "m", "u", {"x": 1, "y": {"z": 2.5}}),
    ]
    assert made[0]["value"] == [2.0, None] and made[0]["se"][0] == 1.0
    lines = list(rows.flat(made))
    assert lines[:2] == [("a", "m", "0", 2.0, 1.0, "u", 2), ("a", "m", "1", None, made[0]["se"][1], "u", 2)]
    assert ("a", "m", "w/1", 1.0, 0.0, "u", 2) in lines
    assert ("b", "m", 0.2, 0.0, 0.0, "u", 3) in lines
    assert ("c", "m", "y/z", 2.5, 0.0, "u", 1) in lines
    json.dumps(made, allow_nan=False)


def test_standard_errors_of_what_has_no_noise():
    equal = np.full((2000, 2), 0.1) * np.array([1.0, 1.0 + 1e-9])
    assert equal.std(axis=0, ddof=1).max() > 0  # by rounding of the mean alone
    assert rows.estimate(equal)[1].tolist() == [0.0, 0.0] and rows.row("a", "m", "u", equal[:, 0])["se"] == 0.0
    assert rows.estimate(np.array([1.0, 1.0 + 1e-11]))[1] > 0
    assert rows.estimate(np.array([0.0, 1e-100]))[1] > 0
    assert rows.exact_row("a", "m", "u", np.ones((2, 2)))["se"] == [[0.0, 0.0], [0.0, 0.0]]
    assert rows.exact_row("a", "m", "u", 1.0)["se"] == rows.exact_row("a", "m", "u", {"x": 1.0})["se"] == 0.0


def test_exact_values_are_once_in_the_csv():
    found = {"x": 1.0, "w": np.array([2.0, 3.0])}
    made = rows.exact_row("a", "m", "u", found, exact=found)
    assert [line[2:4] for line in rows.flat([made])] == [("x", 1.0), ("w/0", 2.0), ("w/1", 3.0)]


def test_a_figure_is_drawn(tmp_path):
    panel = Panel("title", "x", "y", {"line": (range(3), [1, 2, 3], [0.1, 0.1, 0.1]), "exact": ([0, 2], [1, 1], None)})
    rows.save(tmp_path, "it", Outcome([rows.exact_row("a", "m", "u", 1.0)], [panel]))
    assert (tmp_path / "it.png").read_bytes()[:4] == b"\x89PNG"


@pytest.mark.slow
def test_all_experiments_run(tmp_path, monkeypatch):
    """Two runs of each, whole."""
    monkeypatch.setattr(mazes, "SERVING_STEPS", 20_000)
    run(Reproduce(names=("all",), runs=2, out=tmp_path, json=tmp_path / "all.json"))
    found = {row["name"]: row for row in json.loads((tmp_path / "all.json").read_text())["rows"]}
    assert set(NAMES) <= set(found)
    assert 100 < found["fig10.4/1"]["value"][4] < 2000
    assert found["ex6.6/Q-learning/maxQ_start"]["value"] == pytest.approx(-13, abs=0.1)
