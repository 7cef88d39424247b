"""`tdraft bench`: the rows have their fields, and the peers that the agents are compared with solve the tasks."""

import json

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.wrappers import RecordEpisodeStatistics

from tdraft.scripts import bench_linear, bench_tabular
from tdraft.scripts.bench import Measurement, interleaved
from tdraft.scripts.bench_peers import numba_loop, python_loop
from tdraft.scripts.main import main


def rows_of(path) -> list[dict]:
    rows = json.loads(path.read_text())["rows"]
    for row in rows:
        assert row["name"] and row["metric"] and row["unit"] in ("steps/s", "writes/s")
        assert np.isfinite(row["value"]) and row["value"] > 0
        assert ("peer" in row) == ("ratio" in row) and row.get("ratio", 1.0) > 0
    return rows


def test_measurements_alternate_and_count_what_they_say():
    calls: list[str] = []
    done = [0]

    def work(steps: int) -> None:
        calls.append("b")
        done[0] += 3 * steps

    a = Measurement("a", 10_000, lambda steps: calls.append("a"))
    b = Measurement("b", 10_000, work, lambda: done[0])
    speeds = interleaved([a, b], repeats=3)
    assert calls == ["a", "b"] * 4 and [s.shape for s in speeds] == [(3,), (3,)]
    assert (a.unit, b.unit) == ("steps/s", "writes/s")


@pytest.mark.parametrize("kind", ["q-learning", "sarsa", "expected-sarsa"])
@pytest.mark.parametrize("random_ties", [True, False])
def test_the_numba_peer_learns_to_walk_along_the_cliff(kind, random_ties):
    work = numba_loop(gym.make("CliffWalking-v1"), kind, random_ties)
    work(300_000)
    episodes, total = work(100_000)
    assert -100 < total / episodes < -13  # a random walk has about -50 000


def test_the_plain_peer_learns_to_walk_along_the_cliff():
    env = RecordEpisodeStatistics(gym.make("CliffWalking-v1"))
    python_loop(env, "sarsa")(20_000)
    assert -100 < np.mean(list(env.return_queue)) < -13


@pytest.mark.parametrize("true_online", [False, True])
def test_the_linear_peers_drive_up_the_mountain(true_online):
    work = bench_linear.numba_loop(true_online)
    work(200_000)
    assert 100_000 / work(100_000) < 170  # 200 where the goal is never reached
    env = RecordEpisodeStatistics(gym.make("MountainCar-v0"))
    bench_linear.python_loop(env, true_online)(40_000)
    assert np.mean(list(env.length_queue)[-50:]) < 190


def test_tabular_rows(tmp_path, monkeypatch, capsys):
    for names in ("ONE_STEP", "EPISODES", "N_STEP", "TRACES", "PLANNING"):  # one agent of each kind: the others only compile more
        monkeypatch.setattr(bench_tabular, names, getattr(bench_tabular, names)[:1])
    monkeypatch.setattr(bench_tabular, "COMPARED", ("q-learning",))
    out = tmp_path / "rows.json"
    assert main(["bench", "tabular", "--repeats", "2", "--steps", "4000", "--json", str(out)]) == 0
    rows = rows_of(out)
    peers = {(row["name"], row["peer"]) for row in rows if "peer" in row}
    assert peers == {(f"{env}, q-learning", peer) for env in ("CliffWalking-v1", "Taxi-v4") for peer in bench_tabular.PEERS}
    units = {row["name"].split(", ")[1]: row["unit"] for row in rows}
    assert units["double-q"] == "steps/s" and units["n-step-sarsa"] == units["dyna-q"] == "writes/s"
    assert "plain Python" in capsys.readouterr().out


def test_linear_rows(tmp_path):
    out = tmp_path / "rows.json"
    assert main(["bench", "linear", "--repeats", "2", "--steps", "4000", "--json", str(out)]) == 0
    assert sum("peer" in row for row in rows_of(out)) == 4


@pytest.mark.slow
def test_bench_scan_runs_every_kernel(tmp_path):
    assert main(["bench", "scan", "--no-peers", "--repeats", "1", "--json", str(tmp_path / "rows.json")]) in (0, None)
    rows = json.loads((tmp_path / "rows.json").read_text())["rows"]
    names = {row["name"].split(",")[0].split(" (")[0] for row in rows}
    assert names == {"selective scan", "complex diagonal recurrence", "SSD", "diagonal SSM", "WKV-4", "WKV-7"}
    assert all(row["value"] > 0 and row["unit"] == "s" for row in rows)
