"""Stable-Baselines3's PPO and DQN behind the same command line, run folders and decoder as our agents."""

import csv
import json
import subprocess
import sys

import gymnasium as gym
import numpy as np
import pytest
import stable_baselines3
import torch
from gymnasium import spaces
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import DummyVecEnv

import tdraft.envs  # noqa: F401
from tdraft.agents import sb3
from tdraft.agents.base import SpaceError
from tdraft.agents.checkpoint import CheckpointError
from tdraft.agents.decoding_evaluation import play
from tdraft.agents.runs import COLUMNS, STEP, read_progress
from tdraft.agents.settings import SettingsError
from tdraft.envs.decoding.draft import DEFAULT_COST, DraftEnv, Replay, Simulator
from tdraft.envs.decoding.dynamics import TOKENS
from tdraft.kernels.jit import lean
from tdraft.models.decoding import observation as ob
from tdraft.models.decoding.policy import DraftPolicy
from tdraft.models.decoding.record import count_accepted
from tdraft.models.decoding.trace import Trace
from tdraft.scripts.main import main

SMALL = {"n_steps": 64, "batch_size": 32, "n_epochs": 2, "net": (8,)}


def weights(agent: sb3.Sb3Agent) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in agent.model.policy.parameters()])


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of PPO on Draft-v0 through the command line: 256 steps, then on to 320."""
    root = tmp_path_factory.mktemp("runs")
    command = ["train", "ppo", "--env", "tdraft/Draft-v0", "--runs", str(root), "--n-steps", "64", "--net", "8", "8"]
    assert main([*command, "--timesteps", "256"]) == 0
    first = read_progress(root / "tdraft-Draft-v0" / "ppo" / "seed0" / "progress.csv")
    assert main([*command, "--timesteps", "320", "--resume"]) == 0
    return root / "tdraft-Draft-v0" / "ppo" / "seed0", first, command


def test_the_run_folder_is_that_of_our_agents(trained):
    folder, first, _ = trained
    config = json.loads((folder / "config.json").read_text())
    assert (config["agent"], config["env"], config["seed"], config["gamma"]) == ("ppo", "tdraft/Draft-v0", 0, 1.0)
    with open(folder / "progress.csv", newline="") as file:
        assert tuple(next(csv.reader(file))) == COLUMNS
    assert first[-1][STEP] == 256
    assert {p.name for p in folder.iterdir() if not p.name.startswith("events.")} == {
        "config.json",
        "progress.csv",
        "checkpoint.zip",
    }


def test_resume_goes_on_where_the_run_stopped(trained):
    folder, first, _ = trained
    rows = read_progress(folder / "progress.csv")
    steps = [row[STEP] for row in rows]
    assert steps == sorted(set(steps)) and steps[-1] == 320
    assert rows[: len(first)] == first
    assert sb3.PPO.load(folder / "checkpoint.zip").num_timesteps == 320


def test_resume_with_other_settings_is_refused(trained, capsys):
    _, _, command = trained
    assert main([*command, "--timesteps", "320", "--resume", "--learning-rate", "0.1"]) == 2
    assert "learning_rate 0.0003 -> 0.1" in capsys.readouterr().err
    assert main(command) == 2
    assert "--resume goes on with it" in capsys.readouterr().err


def test_tensorboard_reads_its_tags(trained):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(trained[0])).Reload()
    assert {"rollout/ep_rew_mean", "rollout/ep_len_mean", "time/fps", "train/loss"} <= set(events.Tags()["scalars"])
    assert [e.step for e in events.Scalars("time/fps")] == [row[STEP] for row in read_progress(trained[0] / "progress.csv")]


def test_the_zip_is_stable_baselines_own(trained):
    path = trained[0] / "checkpoint.zip"
    plain, ours = stable_baselines3.PPO.load(path), sb3.PPO.load(path)
    obs = DraftEnv().reset(seed=3)[0]
    assert plain.predict(obs, deterministic=True)[0] == ours.predict(obs)[0] == sb3.sb3_policy(ours)(obs)


@pytest.mark.parametrize("name", ["ppo", "dqn"])
def test_the_seed_decides_everything(name):
    options = SMALL if name == "ppo" else {"net": (8,), "learning_starts": 20}
    runs = [sb3.AGENTS[name](gym.make("CartPole-v1"), seed=seed, **options).learn(128) for seed in (1, 1, 2)]
    assert runs[0].num_timesteps == 128
    assert torch.equal(weights(runs[0]), weights(runs[1]))
    assert not torch.equal(weights(runs[0]), weights(runs[2]))


def test_dqn_keeps_its_replay_buffer(tmp_path):
    env = gym.make("CartPole-v1")
    agent = sb3.DQN(env, seed=0, net=(8,), buffer_size=500).learn(200)
    agent.save(tmp_path / "checkpoint.zip")
    loaded = sb3.DQN.load(tmp_path / "checkpoint.zip", env=env)
    assert torch.equal(weights(agent), weights(loaded))
    assert loaded.model.replay_buffer.size() == 200
    assert loaded.settings == agent.settings and loaded.seed == 0
    assert loaded.learn(100).num_timesteps == 300
    assert loaded.model.replay_buffer.size() == 300


@pytest.mark.parametrize("name", ["ppo", "dqn"])
def test_every_step_of_cartpole_earns_one(name, tmp_path):
    sb3.AGENTS[name](gym.make("CartPole-v1"), seed=0, net=(8,)).learn(100, log_dir=tmp_path, log_every=30)
    rates = [row["rollout/reward_rate"] for row in read_progress(tmp_path / "progress.csv")]
    assert len(rates) >= 4 and set(rates) == {1.0}


def test_callback_stops_at_a_log_point():
    agent = sb3.PPO(gym.make("CartPole-v1"), seed=0, **SMALL)
    agent.learn(512, callback=lambda a: a.num_timesteps < 100, log_every=50)
    assert agent.num_timesteps == 100


@pytest.mark.parametrize("env_id", ["tdraft/Draft-v0", pytest.param("tdraft/Accept-v0", marks=pytest.mark.slow)])
def test_gamma_is_one_in_the_decoding_envs(env_id):
    assert sb3.PPO(gym.make(env_id), **SMALL).model.gamma == 1.0
    with pytest.raises(SettingsError, match=f"gamma must be 1 in {env_id}"):
        sb3.DQN(gym.make(env_id), gamma=0.99)


def test_gamma_elsewhere():
    assert sb3.PPO(gym.make("CartPole-v1"), **SMALL).model.gamma == 0.99
    assert sb3.PPO(gym.make("CartPole-v1"), gamma=0.5, **SMALL).model.gamma == 0.5


def test_envs_side_by_side():
    agent = sb3.PPO(gym.make("CartPole-v1"), seed=0, n_envs=2, **SMALL).learn(128)
    assert agent.num_timesteps == 128 and agent.model.n_envs == 2
    with pytest.raises(SettingsError, match="n_envs=2 needs an env made"):
        sb3.PPO(DraftEnv(), n_envs=2)
    vector = DummyVecEnv([lambda: DraftEnv(n_tokens=8)] * 2)
    assert sb3.PPO(vector, **SMALL).model.gamma == 1.0


def test_scaled_observations():
    low, high = np.array([-1.0, 0.0, -np.inf]), np.array([3.0, 8.0, np.inf])
    scaled = sb3.ScaledObservation(spaces.Box(low, high, dtype=np.float64))
    found = scaled(torch.tensor([[-1.0, 0.0, 7.0], [3.0, 8.0, -7.0], [1.0, 4.0, 0.0]], dtype=torch.float64))
    assert found.tolist() == [[-1, -1, 7], [1, 1, -7], [0, 0, 0]]


def test_spaces_and_settings_that_do_not_fit(tmp_path):
    with pytest.raises(SpaceError, match="dqn needs a Discrete action space, got Box"):
        sb3.DQN(gym.make("Pendulum-v1"))
    with pytest.raises(SettingsError, match="batch_size must divide n_steps"):
        sb3.PPO(gym.make("CartPole-v1"), n_steps=100)
    with pytest.raises(SettingsError, match='did you mean "n_steps"'):
        sb3.PPO(gym.make("CartPole-v1"), n_step=64)
    with pytest.raises(SettingsError, match="seed must be"):
        sb3.PPO(gym.make("CartPole-v1"), seed=-1)
    sb3.PPO(gym.make("CartPole-v1"), **SMALL).save(tmp_path / "a.zip")
    with pytest.raises(SpaceError, match="trained on other spaces"):
        sb3.PPO.load(tmp_path / "a.zip", env=gym.make("MountainCar-v0"))


def test_files_that_are_none_of_its_checkpoints(tmp_path):
    with pytest.raises(FileNotFoundError, match="no checkpoint"):
        sb3.PPO.load(tmp_path / "none.zip")
    stable_baselines3.A2C("MlpPolicy", "CartPole-v1").save(tmp_path / "a2c.zip")
    with pytest.raises(CheckpointError, match="is no PPO or DQN"):
        sb3.Sb3Agent.load(tmp_path / "a2c.zip")
    sb3.PPO(gym.make("CartPole-v1"), **SMALL).save(tmp_path / "a.zip")
    with pytest.raises(CheckpointError, match="is no dqn"):
        sb3.DQN.load(tmp_path / "a.zip")
    whole = (tmp_path / "a.zip").read_bytes()
    (tmp_path / "a.zip").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CheckpointError, match="damaged"):
        sb3.PPO.load(tmp_path / "a.zip")


@pytest.mark.filterwarnings("ignore:Evaluation environment is not wrapped")
def test_evaluate_policy_takes_it():
    env = gym.make("CartPole-v1")
    mean, _ = evaluate_policy(sb3.PPO(env, seed=0, **SMALL), env, n_eval_episodes=2)  # pyright: ignore
    assert 1 <= mean <= 500


# On traces and in the decoder.


@lean
def cautious(params, memory, obs):
    """Draft while the survival is above a threshold; drop a last token that is unlikely."""
    if obs[ob.DRAFTED] > 0 and obs[ob.ACCEPTANCE] < 0.2:
        return ob.DROP
    return ob.DRAFT if obs[ob.SURVIVAL] > params[0] and obs[ob.DRAFTED] < 4 else ob.VERIFY


class Rule:
    """A compiled policy with the `predict` of a model."""

    def __init__(self, policy: DraftPolicy):
        self.policy, self.calls = policy, 0

    def predict(self, obs, deterministic=False):
        assert deterministic
        self.calls += 1
        return (np.array([self.policy(row) for row in obs]), None) if obs.ndim == 2 else (np.array(self.policy(obs)), None)


def random_trace(contexts: int, positions: int, depth: int) -> Trace:
    rng = np.random.default_rng(0)
    tokens = rng.integers(2, size=(contexts, positions)).astype(np.int32)
    proposals = rng.integers(2, size=(contexts, positions, depth)).astype(np.int32)
    return Trace(
        tokens,
        rng.integers(2, size=(contexts, 2)).astype(np.int32),
        proposals,
        rng.random((contexts, positions, depth, 4)).astype(np.float32),
        rng.random((contexts, positions, depth)),
        count_accepted(proposals, tokens),
        rng.random((contexts, positions)).astype(np.float32),
        np.zeros((contexts, positions, 0), np.float32),
        rng.random((contexts, positions)).astype(np.float32),
        {"drafter": "d", "target": "t"},
    )


@pytest.mark.slow
def test_play_side_by_side_counts_what_the_compiled_replay_counts():
    source = Replay(random_trace(7, 20, 9), Simulator().calibration, DEFAULT_COST, shuffle=False)
    policy = DraftPolicy("cautious", cautious, (0.3,))
    for texts in (7, 5):
        expected = play(source, policy, texts=texts)
        rule = Rule(policy)
        np.testing.assert_array_equal(sb3.play_sb3(source, rule, texts=texts), expected)
        assert np.all(expected[:, TOKENS] == 20) and rule.calls == expected[:, -1].max()


def test_a_trained_model_plays_as_its_policy_decides(trained):
    agent = sb3.PPO.load(trained[0] / "checkpoint.zip")
    source = Replay(random_trace(4, 12, 9), Simulator().calibration, DEFAULT_COST, shuffle=False)
    counts = sb3.play_sb3(source, agent, texts=4)
    decide, env = sb3.sb3_policy(agent), DraftEnv(source, n_tokens=12)
    seen = {}
    for _ in range(4):
        obs, _ = env.reset(seed=0 if not seen else None)
        time, done = 0.0, False
        while not done:
            obs, _, done, _, info = env.step(decide(obs))
            time += info["duration"]
        seen[int(env.params.cursor[0])] = time
    assert seen == pytest.approx(dict(enumerate(counts[:, 1])))


def test_decoding_with_it_is_lossless(trained):
    from tdraft.models.decoding.decoder import SpeculativeDecoder
    from tdraft.models.decoding.drafters import LMDrafter
    from tdraft.models.language_model import LanguageModel, LMConfig

    small = LMConfig(vocab_size=6, d_model=8, n_layers=1, n_heads=2, max_length=64)
    target, draft = (LanguageModel(small, seed=seed).double().eval() for seed in (1, 2))
    policy = sb3.sb3_policy(sb3.PPO.load(trained[0] / "checkpoint.zip"))
    prompt = np.array([0, 3, 1])
    plain = SpeculativeDecoder(target).generate(prompt, 20, key=5)
    decoded = SpeculativeDecoder(target, LMDrafter(draft), policy, max_drafted=4).generate(prompt, 20, key=5)
    assert decoded.tokens == plain.tokens


@pytest.mark.slow
def test_only_its_own_agents_import_torch(tmp_path):
    code = (
        "import sys; from tdraft.scripts.main import main\n"
        "train = ['train', 'q-learning', '--env', 'CliffWalking-v1', '--timesteps', '5000', '--runs']\n"
        f"assert main([*train, {str(tmp_path)!r}]) == 0\n"
        f"assert main(['plot', {str(tmp_path)!r}, '--out', {str(tmp_path / 'a.png')!r}]) == 0\n"
        f"assert main(['evaluate', {str(tmp_path / 'CliffWalking-v1/q-learning/seed0')!r}, '--max-steps', '50']) == 0\n"
        "print(sorted({'torch', 'stable_baselines3'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.splitlines()[-1:] == ["[]"], done.stdout + done.stderr
