"""`tdraft evaluate`, `tdraft plot` and their statistics."""

import json

import gymnasium as gym
import numpy as np
import pytest

from tdraft import agents
from tdraft.agents import QLearning
from tdraft.agents.curves import CurveError, bootstrap_band, common_steps, interquartile_mean, learning_curve, mean
from tdraft.agents.runs import COLUMNS, STEP, RunLogger, read_progress
from tdraft.envs.decoding.draft import DraftEnv
from tdraft.models.decoding import observation as ob
from tdraft.scripts.evaluate import mean_and_error, play, ratio_and_error
from tdraft.scripts.main import main

# Statistics.


def test_interquartile_mean_by_hand():
    scores = np.array([[0.0, 1.0], [1.0, 1.0], [2.0, 2.0], [9.0, 3.0]])
    assert interquartile_mean(scores).tolist() == [1.5, 1.5]  # 1 and 2; 1 and 2
    assert interquartile_mean(scores[:3]).tolist() == mean(scores[:3]).tolist()
    assert interquartile_mean(np.arange(20.0)[::-1, None]).tolist() == [9.5]


def test_two_runs_bootstrap_to_both_ends():
    """Resamples of the runs 0 and 1 have the mean 0, 1/2, 1 with probabilities 1/4, 1/2, 1/4."""
    low, high = bootstrap_band([np.array([[0.0, 5.0], [1.0, 5.0]])], mean)
    assert (low.tolist(), high.tolist()) == ([0.0, 5.0], [1.0, 5.0])
    inner_low, inner_high = bootstrap_band([np.array([[0.0], [1.0]])], mean, level=0.4)
    assert (inner_low.tolist(), inner_high.tolist()) == ([0.5], [0.5])


def test_runs_are_redrawn_within_their_stratum():
    low, high = bootstrap_band([np.zeros((3, 1)), np.full((5, 1), 8.0)], mean)
    assert (low.tolist(), high.tolist()) == ([5.0], [5.0])


def test_the_band_of_a_mean_is_its_normal_interval():
    """200 normal runs, 4000 resamples: the ends are mean ± 1.96 s / sqrt(n), within 4 of a percentile's standard errors."""
    scores = np.random.default_rng(1).normal(size=(200, 1))
    low, high = bootstrap_band([scores], mean, resamples=4000)
    spread = scores.std() / np.sqrt(200)
    error = spread * np.sqrt(0.025 * 0.975 / 4000) / 0.058  # 0.058 is the normal density at 1.96
    assert abs(low[0] - (scores.mean() - 1.96 * spread)) < 4 * error
    assert abs(high[0] - (scores.mean() + 1.96 * spread)) < 4 * error


def test_common_steps():
    steps, scores = common_steps([{10: 1.0, 20: 2.0, 30: 3.0}, {20: 4.0, 30: 5.0, 40: 6.0}])
    assert steps.tolist() == [20, 30] and scores.tolist() == [[2.0, 3.0], [4.0, 5.0]]
    with pytest.raises(CurveError, match="no step in common"):
        common_steps([{1: 0.0}, {2: 0.0}])
    with pytest.raises(CurveError, match='mean, iqm, got "median"'):
        learning_curve([{1: 0.0}], "median")


def test_errors_of_means_and_ratios_by_hand():
    assert mean_and_error(np.array([1.0, 3.0])) == (2.0, 1.0)
    assert np.isnan(mean_and_error(np.array([1.0]))[1])
    ratio, error = ratio_and_error(np.array([4.0, 4.0]), np.array([1.0, 3.0]))
    assert ratio == 2.0 and error == 1.0  # residuals 2 and -2: standard error 2, over the mean time 2
    assert ratio_and_error(np.array([4.0, 6.0]), np.array([2.0, 3.0])) == (2.0, 0.0)


# tdraft evaluate.


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Q-learning with three seeds and Sarsa with one, through the command line."""
    root = tmp_path_factory.mktemp("runs")
    common = ["--env", "CliffWalking-v1", "--timesteps", "20000", "--runs", str(root)]
    assert main(["train", "q-learning", "--seeds", "0:3", *common]) == 0
    assert main(["train", "sarsa", *common]) == 0
    return root / "CliffWalking-v1"


def test_evaluate_finds_the_cliffs_best_path(runs, tmp_path, capsys):
    out = tmp_path / "rows.json"
    paths = [str(runs / "q-learning" / "seed0" / "checkpoint.npz"), str(runs / "q-learning" / "seed1")]
    assert main(["evaluate", *paths, "--episodes", "3", "--json", str(out)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("q-learning/CliffWalking-v1/seed0: mean reward -13.000 ± 0.000, mean length 13.000 ± 0.000")
    written = json.loads(out.read_text())
    assert [(r["metric"], r["value"], r["se"], r["runs"]) for r in written["rows"]] == [
        ("mean reward", -13.0, 0.0, 3),
        ("mean length", 13.0, 0.0, 3),
    ] * 2


def test_an_agent_that_never_arrives_is_cut_off(tmp_path, capsys):
    QLearning(gym.make("CliffWalking-v1"), seed=0).save(tmp_path / "untrained.npz")
    assert main(["evaluate", str(tmp_path / "untrained.npz"), "--episodes", "2", "--max-steps", "30"]) == 0
    assert "mean length 30.000 ± 0.000 (standard errors over 2 episodes; 2 cut off after 30 steps)" in capsys.readouterr().out


class Drafts:
    """Drafts k tokens, then verifies."""

    def __init__(self, k: int):
        self.k = k

    def predict(self, obs, deterministic=True):
        return np.array(ob.DRAFT if obs[ob.DRAFTED] < self.k else ob.VERIFY), None


def test_decoding_envs_are_scored_by_ratios_of_sums():
    env = DraftEnv(n_tokens=20, reference_rate=1.25)
    seen = play(Drafts(3), env, 5, seed=10)
    assert seen.tokens.tolist() == [20] * 5
    assert seen.rewards == pytest.approx(20 / 1.25 - seen.times)
    assert ratio_and_error(seen.tokens, seen.times)[0] == pytest.approx(100 / seen.times.sum())
    plain = play(Drafts(0), env, 2)
    assert plain.times.tolist() == [20.0, 20.0] and plain.lengths.tolist() == [20.0, 20.0]


def test_an_episode_depends_on_its_own_seed_only():
    env = DraftEnv(n_tokens=20)
    whole, part = play(Drafts(2), env, 5, seed=0), play(Drafts(2), env, 2, seed=3)
    np.testing.assert_array_equal(np.array(whole[:4])[:, 3:], np.array(part[:4]))
    assert len(set(whole.times)) > 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["none.npz"], "no checkpoint none.npz"),
        (["{runs}/sarsa"], "give the folder of one run"),
        (["{runs}/sarsa/seed0/config.json"], "is not a checkpoint"),
        (["{runs}/sarsa/seed0", "--env", "CartPole-v1"], "the agent was made for Discrete(48)"),
        (["{runs}/sarsa/seed0", "--env", "CliffWalkin-v1"], 'did you mean "CliffWalking-v1"'),
        (["{runs}/sarsa/seed0", "--episodes", "0"], "episodes and max_steps must be at least 1"),
    ],
)
def test_evaluate_says_what_is_wrong(runs, capsys, arguments, message):
    assert main(["evaluate", *[a.format(runs=runs) for a in arguments]]) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ") and message in err and err.count("\n") == 1


# tdraft plot.


def test_plot_draws_every_agent(runs, tmp_path, capsys):
    out = tmp_path / "figure" / "curves.png"
    assert main(["plot", str(runs.parent), "--statistic", "iqm", "--ylim", "-100", "0", "--out", str(out)]) == 0
    assert out.read_bytes().startswith(b"\x89PNG")
    assert capsys.readouterr().out.strip() == f"{out}: 2 agents on CliffWalking-v1"
    assert main(["plot", f"{runs}/q-*", "--out", str(tmp_path / "one.svg"), "--metric", "train/td_error"]) == 0
    assert "q-learning (3 seeds)" in (tmp_path / "one.svg").read_text()


def test_seeds_of_different_length_share_the_common_steps(tmp_path, capsys):
    for seed, length in enumerate((3, 5)):
        logger = RunLogger(tmp_path / "env" / "agent" / f"seed{seed}", {})
        for step in range(1, length + 1):
            logger.write(10 * step, {"rollout/ep_rew_mean": float(step + seed)})
        logger.close()
    assert main(["plot", str(tmp_path), "--out", str(tmp_path / "a.png")]) == 0
    assert "seeds end at steps 30 to 50; only the steps that all have are drawn" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{runs}/none"], "no folder {runs}/none"),
        (["{runs}/sarsa/seed0/config.json"], "no runs in"),
        (
            ["{runs}", "--metric", "train/loss"],
            'has the metric "train/loss": they have rollout/ep_len_mean, rollout/ep_rew_mean, rollout/exploration_rate, '
            "rollout/reward_rate, time/fps, train/td_error",
        ),
        (["{runs}", "--out", "curves.txt"], "out must end in .png"),
    ],
)
def test_plot_says_what_is_wrong(runs, capsys, arguments, message):
    assert main(["plot", *[a.format(runs=runs) for a in arguments]]) == 2
    err = capsys.readouterr().err
    assert message.format(runs=runs) in err and err.count("\n") == 1


# Run folders.


def test_tensorboard_shows_the_rows_of_progress(runs):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder = runs / "q-learning" / "seed1"
    events, rows = EventAccumulator(str(folder)).Reload(), read_progress(folder / "progress.csv")
    assert [row[STEP] for row in rows] == list(range(200, 20001, 200))
    assert set(events.Tags()["scalars"]) == set(COLUMNS) - {STEP}
    for column in set(COLUMNS) - {STEP}:
        expected = {row[STEP]: np.float32(row[column]) for row in rows if row[column] != ""}
        assert {e.step: np.float32(e.value) for e in events.Scalars(column)} == expected


def test_a_line_that_was_cut_off_is_no_row(tmp_path):
    logger = RunLogger(tmp_path, {})
    for step in (10, 20):
        logger.write(step, {"rollout/ep_rew_mean": 1.5, "train/td_error": 0.25})
    logger.close()
    whole = (tmp_path / "progress.csv").read_bytes()
    for cut in range(1, len(whole)):
        (tmp_path / "progress.csv").write_bytes(whole[:cut])
        rows = read_progress(tmp_path / "progress.csv")
        assert [row[STEP] for row in rows] == [10, 20][: whole[:cut].count(b"\n") - 1 if b"\n" in whole[:cut] else 0]
        assert all(row["train/td_error"] == 0.25 for row in rows)


def test_rows_of_an_older_version_lack_a_column(tmp_path):
    """They are read, kept by a run that goes on from them, and drawn."""
    folder = tmp_path / "env" / "agent" / "seed0"
    folder.mkdir(parents=True)
    (folder / "progress.csv").write_text(f"{STEP},rollout/ep_rew_mean,train/td_error\n10,-3.0,0.5\n20,,0.25\n")
    for _ in range(2):
        rows = read_progress(folder / "progress.csv")
        nothing = dict.fromkeys(COLUMNS, "")
        assert rows == [
            nothing | {STEP: 10, "rollout/ep_rew_mean": -3.0, "train/td_error": 0.5},
            nothing | {STEP: 20, "train/td_error": 0.25},
        ]
        RunLogger(folder, {}, start=20).close()
    assert main(["plot", str(tmp_path), "--out", str(tmp_path / "a.png"), "-m", "train/td_error"]) == 0
    assert main(["plot", str(tmp_path), "--out", str(tmp_path / "a.png"), "-m", "rollout/reward_rate"]) == 2


@pytest.mark.parametrize(("env", "agent"), [("tdraft/AccessControl-v0", "differential-sarsa"), ("CliffWalking-v1", "q-learning")])
def test_the_reward_rate_is_the_reward_since_the_last_row_over_its_steps(env, agent, tmp_path):
    """With episodes and without; on the interpreted path, where a wrapper counts the rewards, and on the compiled one."""

    class Counting(gym.Wrapper):
        total = 0.0

        def step(self, action):
            obs, reward, *rest = self.env.step(action)
            self.total += float(reward)
            return obs, reward, *rest

    kind, counting, totals = getattr(agents, agents.AGENTS[agent]), Counting(gym.make(env)), [0.0]
    first = kind(counting, seed=0)
    assert first.path.startswith("interpreted")
    first.learn(1000, log_dir=tmp_path / "a", log_every=130, callback=lambda _: totals.append(counting.total))
    kind(gym.make(env), seed=0).learn(1000, log_dir=tmp_path / "b", log_every=130)
    one, two = (read_progress(tmp_path / name / "progress.csv") for name in "ab")
    steps = np.diff([0, *(row[STEP] for row in one)])
    assert steps.tolist() == [130] * 7 + [90]
    np.testing.assert_allclose([row["rollout/reward_rate"] for row in one], np.diff(totals) / steps, rtol=1e-12)
    assert [row["rollout/reward_rate"] for row in one] == [row["rollout/reward_rate"] for row in two]
    assert (one[-1]["rollout/ep_rew_mean"] == "") == (agent == "differential-sarsa")


def test_training_without_episode_ends_says_what_it_earns(tmp_path, capsys):
    given = ["--env", "tdraft/AccessControl-v0", "--timesteps", "5000", "--runs", str(tmp_path)]
    assert main(["train", "differential-sarsa", *given]) == 0
    [file] = tmp_path.rglob("progress.csv")
    rate = read_progress(file)[-1]["rollout/reward_rate"]
    assert f"no episode has ended yet, reward per step lately {rate:.4g}, " in capsys.readouterr().out


def test_many_seeds_end_with_a_summary(runs, tmp_path, capsys):
    command = [
        "train",
        "q-learning",
        "--env",
        "CliffWalking-v1",
        "--timesteps",
        "2000",
        "--seeds",
        "0:3",
        "--runs",
        str(tmp_path),
    ]
    assert main(command) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines] == ["seed 0", "seed 1", "seed 2", "3 seeds", "look at them"]
