"""Training that is killed at any moment, or meets a full disk, loses nothing but the time since its last checkpoint."""

import errno
import random
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from tdraft.agents import checkpoint
from tdraft.agents.runs import STEP, read_progress
from tdraft.scripts.main import main

STEPS = 100_000_000
COMMAND = ["train", "q-learning", "--env", "CliffWalking-v1", "--timesteps", str(STEPS), "--checkpoint-seconds", "0"]


@pytest.mark.slow
def test_kills_at_random_moments_change_nothing(tmp_path):
    """Five times: wait for a new checkpoint, then up to a fifth of a second, and SIGKILL. What comes out at last is bit-identical
    to a run that nobody killed: values, counters, generators, env, and the learning curve."""
    whole, killed = (tmp_path / name / "CliffWalking-v1" / "q-learning" / "seed0" for name in ("whole", "killed"))
    command = [sys.executable, "-m", "tdraft.scripts.main", *COMMAND, "--runs", str(tmp_path / "killed"), "--resume"]
    moments, kills = random.Random(0), 0
    for _ in range(5):
        before = (killed / "checkpoint.npz").stat().st_mtime_ns if kills else 0
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while process.poll() is None:
            path = killed / "checkpoint.npz"
            if path.exists() and path.stat().st_mtime_ns > before:
                time.sleep(moments.random() / 5)
                process.send_signal(signal.SIGKILL)
                process.wait()
                kills += process.returncode == -signal.SIGKILL
            time.sleep(0.001)
        assert checkpoint.read(killed / "checkpoint.npz")  # whole, whatever the moment
    assert kills >= 3
    assert subprocess.run(command, capture_output=True).returncode == 0
    assert main([*COMMAND, "--runs", str(tmp_path / "whole")]) == 0

    (meta, arrays), (expected_meta, expected) = (checkpoint.read(folder / "checkpoint.npz") for folder in (killed, whole))
    assert meta == expected_meta and meta["num_timesteps"] == STEPS
    assert arrays.keys() == expected.keys()
    for name in expected:
        np.testing.assert_array_equal(arrays[name], expected[name], err_msg=name)

    assert (killed / "progress.csv").read_bytes().endswith(b"\n")
    rows, expected_rows = (read_progress(folder / "progress.csv") for folder in (killed, whole))
    steps = [row[STEP] for row in rows]
    assert steps == sorted(set(steps)) == list(range(STEPS // 100, STEPS + 1, STEPS // 100))
    for tag in ("rollout/ep_rew_mean", "rollout/ep_len_mean"):
        assert [row[tag] for row in rows] == [row[tag] for row in expected_rows]
    assert not list(killed.glob(".*"))  # temporaries of killed writes are gone


@pytest.mark.parametrize("written", [0, 100, 4000])
def test_a_full_disk_keeps_the_last_checkpoint(tmp_path, monkeypatch, capsys, written):
    command = ["train", "q-learning", "--env", "CliffWalking-v1", "--runs", str(tmp_path), "--checkpoint-seconds", "0"]
    assert main([*command, "--timesteps", "1000"]) == 0
    path = tmp_path / "CliffWalking-v1" / "q-learning" / "seed0" / "checkpoint.npz"
    before = path.read_bytes()
    savez = np.savez

    def full(file, **arrays):
        savez(file, **arrays)
        file.truncate(written)
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoint.np, "savez", full)
    capsys.readouterr()
    assert main([*command, "--timesteps", "2000", "--resume"]) == 2
    err = capsys.readouterr().err
    assert err.splitlines()[-1].startswith("error: cannot write to ") and "No space left on device" in err
    assert "--resume goes on from it" in err
    assert path.read_bytes() == before
    assert not list(path.parent.glob(".*"))
    monkeypatch.undo()
    assert main([*command, "--timesteps", "2000", "--resume"]) == 0
    assert checkpoint.read(path)[0]["num_timesteps"] == 2000
    assert [row[STEP] for row in read_progress(path.parent / "progress.csv")][-1] == 2000


def test_temporaries_of_a_killed_write_are_cleared_away(tmp_path):
    folder = tmp_path / "CliffWalking-v1" / "q-learning" / "seed0"
    folder.mkdir(parents=True)
    for name in (".checkpoint.npz.abcd.npz", ".progress.csv.abcd.csv", ".config.json.abcd.json"):
        (folder / name).write_bytes(b"half")
    assert main(["train", "q-learning", "--env", "CliffWalking-v1", "--runs", str(tmp_path), "--timesteps", "100"]) == 0
    assert not list(folder.glob(".*"))
