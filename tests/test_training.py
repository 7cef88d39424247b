"""Training: it learns, it goes on bit by bit where it stopped, and it says what is wrong."""

import csv
import json
import math
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest
import torch

from tdraft.models.language_model import CheckpointError, LanguageModel, LMConfig
from tdraft.models.optimizers import Optimizers, schedule
from tdraft.models.precision import Masters
from tdraft.models.training import (
    TrainConfig,
    TrainingDiverged,
    bits_per_byte,
    data_hash,
    predict_argmax,
    train_language_model,
)
from tdraft.models.training_run import Run, draw
from tdraft.scripts.main import main

TINY = LMConfig(vocab_size=32, d_model=16, n_layers=1, n_heads=2, max_length=16)
FAST = TrainConfig(steps=20, batch=4, length=16, log_every=5, eval_every=10, eval_tokens=200, checkpoint_every=5)
TEXT = np.random.default_rng(0).integers(0, 32, 500)


def tiny() -> LanguageModel:
    return LanguageModel(TINY, seed=1)


def test_overfits_a_tiny_text():
    text = np.array([1, 5, 2, 9, 3, 7, 4, 8] * 40, dtype=np.uint8)
    model = tiny()
    result = train_language_model(model, text, text, replace(FAST, steps=150, lr=1e-2))
    assert result.finished and result.step == 150
    assert result.bits_per_byte < 0.2
    assert (predict_argmax(model, text)[20:-1] == text[21:]).all()


def test_two_halves_equal_the_whole_bit_for_bit(tmp_path):
    whole = tiny()
    straight = train_language_model(whole, TEXT, TEXT, FAST, tmp_path / "whole")
    first, second = tiny(), tiny()
    half = train_language_model(first, TEXT, TEXT, FAST, tmp_path / "halves", stop=10)
    assert half.step == 10 and not half.finished
    assert not (tmp_path / "halves" / "model.safetensors").exists()
    rest = train_language_model(second, TEXT, TEXT, FAST, tmp_path / "halves", resume=True)
    assert rest.finished and second.fingerprint == whole.fingerprint != first.fingerprint
    assert rest.bits_per_byte == straight.bits_per_byte
    assert LanguageModel.load(tmp_path / "halves" / "model.safetensors").fingerprint == whole.fingerprint
    a, b = (list(csv.DictReader(open(tmp_path / name / "progress.csv"))) for name in ("whole", "halves"))
    timing = ("seconds", "time/tokens_per_second")
    assert [{k: v for k, v in row.items() if k not in timing} for row in a] == [
        {k: v for k, v in row.items() if k not in timing} for row in b
    ]
    again = train_language_model(tiny(), TEXT, TEXT, FAST, tmp_path / "halves", resume=True)
    assert again.step == 20 and again.finished  # nothing left to do


def test_a_run_leaves_its_files(tmp_path):
    train_language_model(tiny(), TEXT, TEXT, FAST, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["config"]["steps"] == 20 and config["model"]["d_model"] == 16
    assert config["data"] == data_hash(TEXT, TEXT)
    rows = list(csv.DictReader(open(tmp_path / "progress.csv")))
    assert [row["step"] for row in rows] == ["5", "10", "15", "20"]
    assert [bool(row["eval/bits_per_byte"]) for row in rows] == [False, True, False, True]
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path))
    events.Reload()
    assert set(events.Tags()["scalars"]) == {
        "train/loss", "train/bits_per_byte", "train/lr", "train/grad_norm", "time/tokens_per_second", "eval/bits_per_byte",
    }  # fmt: skip
    assert len(events.Scalars("train/loss")) == 4
    assert [event.step for event in events.Tensors("samples/text_summary")] == [10, 20]


def test_passes_of_an_update_are_one_batch():
    one, two = tiny(), tiny()
    train_language_model(one, TEXT, TEXT, replace(FAST, batch=8))
    train_language_model(two, TEXT, TEXT, replace(FAST, batch=2, accumulate=4))
    for a, b in zip(one.parameters(), two.parameters()):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-4)


@pytest.mark.parametrize("family", ["transformer", "gru"])
def test_muon_learns_and_goes_on_bit_for_bit(tmp_path, family):
    text = np.array([1, 5, 2, 9, 3, 7, 4, 8] * 40, dtype=np.uint8)
    sizes = replace(TINY, backbone=family, n_heads=2 if family == "transformer" else None)
    config = replace(FAST, steps=150, lr=1e-2, optimizer="muon")
    whole, half = LanguageModel(sizes, seed=1), LanguageModel(sizes, seed=1)
    assert train_language_model(whole, text, text, config).bits_per_byte < 1.0  # 3 bits without looking back
    train_language_model(half, text, text, config, tmp_path, stop=75)
    resumed = LanguageModel(sizes, seed=1)
    train_language_model(resumed, text, text, config, tmp_path, resume=True)
    assert resumed.fingerprint == whole.fingerprint


def test_a_teacher_is_learned_beside_the_text(monkeypatch):
    """One update's gradient is that of (1 - d) CE(text) + d CE(teacher), and the loss reported is the text's."""
    student, teacher, by_hand = tiny(), LanguageModel(TINY, seed=2), tiny()
    config = replace(FAST, distil=0.7, clip=1e9)
    run = Run(student, config, teacher, token_bytes=1.0)
    for method in ("step", "zero_grad"):
        monkeypatch.setattr(run.optimizers, method, lambda *_: None)  # the gradients stay
    loss, _ = run.update(TEXT, 0.1)
    windows = draw(TEXT, np.random.default_rng(np.random.SeedSequence(config.seed)), config.batch, config.length)
    log_p = by_hand(windows[:, :-1])[0].log_softmax(-1)
    text = -log_p.gather(2, windows[:, 1:, None]).mean()
    said = -(teacher(windows[:, :-1])[0].softmax(-1).detach() * log_p).sum(-1).mean()
    (0.3 * text + 0.7 * said).backward()
    assert loss == pytest.approx(text.item(), rel=1e-5)
    for a, b in zip(student.parameters(), by_hand.parameters()):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-4, atol=1e-6)
    assert all(p.grad is None for p in teacher.parameters())


def test_a_student_goes_on_with_its_teacher_bit_for_bit(tmp_path):
    teacher, whole, halves = LanguageModel(TINY, seed=2), tiny(), tiny()
    train_language_model(whole, TEXT, TEXT, FAST, teacher=teacher)
    train_language_model(tiny(), TEXT, TEXT, FAST, tmp_path, teacher=teacher, stop=10)
    with pytest.raises(CheckpointError, match=rf"made with teacher {teacher.fingerprint}, not None"):
        train_language_model(tiny(), TEXT, TEXT, FAST, tmp_path, resume=True)
    train_language_model(halves, TEXT, TEXT, FAST, tmp_path, teacher=teacher, resume=True)
    assert halves.fingerprint == whole.fingerprint


def test_teachers_that_do_not_fit():
    for sizes, message in (
        (replace(TINY, vocab_size=16), "teacher has 16 tokens, the model 32"),
        (replace(TINY, max_length=8), "teacher's max_length 8"),
    ):
        with pytest.raises(ValueError, match=message):
            train_language_model(tiny(), TEXT, TEXT, FAST, teacher=LanguageModel(sizes))


def test_what_has_no_decay_and_what_muon_takes():
    model = LanguageModel(LMConfig(backbone="mamba", d_model=16, n_layers=1))
    optimizers = Optimizers(model, Masters(model.parameters()), "muon", beta1=0.9, beta2=0.95, weight_decay=0.1)
    adamw, muon = optimizers.optimizers
    names = {id(p): name.removeprefix("backbone.layers.0.") for name, p in model.named_parameters()}
    decayed, plain = ({names[id(p)] for p in group["params"]} for group in adamw.param_groups)
    assert decayed == {"embedding", "conv1d.weight"} and adamw.param_groups[1]["weight_decay"] == 0.0
    assert plain == {"A_log", "D", "conv1d.bias", "dt_proj.bias", "norm.gain", "backbone.norm.gain"}
    assert {names[id(p)] for p in muon.param_groups[0]["params"]} == {
        "in_proj.weight", "x_proj.weight", "dt_proj.weight", "out_proj.weight"
    }  # fmt: skip
    with pytest.raises(ValueError, match='got "sgd"'):
        Optimizers(model, Masters(model.parameters()), "sgd", beta1=0.9, beta2=0.95, weight_decay=0.1)


def test_patience_stops_early_and_keeps_the_best_model(tmp_path):
    """A text that validation has nothing to do with: each evaluation is soon worse than the one before."""
    other = np.random.default_rng(1).integers(0, 32, 300)
    config = replace(FAST, steps=400, lr=1e-2, eval_every=5, patience=3)
    model = tiny()
    result = train_language_model(model, np.arange(500) % 8, other, config, tmp_path)
    scores = [
        float(row["eval/bits_per_byte"]) for row in csv.DictReader(open(tmp_path / "progress.csv")) if row["eval/bits_per_byte"]
    ]
    assert result.finished and result.step == 5 * len(scores) < 400
    assert scores.index(min(scores)) == len(scores) - 4 and result.bits_per_byte == pytest.approx(min(scores), rel=1e-6)
    best = LanguageModel.load(tmp_path / "model.safetensors")
    assert bits_per_byte(best, other[: config.eval_tokens]) == pytest.approx(min(scores), rel=1e-6)


def test_a_changed_text_is_taken_when_told(tmp_path):
    train_language_model(tiny(), TEXT, TEXT, FAST, tmp_path, stop=5)
    shrunk = TEXT[:400]
    with pytest.raises(CheckpointError, match=r"grown, shrunk or changed.*--changed-text"):
        train_language_model(tiny(), shrunk, TEXT, FAST, tmp_path, resume=True)
    result = train_language_model(tiny(), shrunk, TEXT, FAST, tmp_path, resume=True, changed_text=True)
    assert result.finished and result.step == 20


def test_global_generator_is_left_alone():
    before = torch.get_rng_state()
    train_language_model(tiny(), TEXT, TEXT, replace(FAST, steps=2))
    assert torch.equal(before, torch.get_rng_state())


def test_nan_loss_keeps_the_last_checkpoint(tmp_path, monkeypatch):
    train_language_model(tiny(), TEXT, TEXT, FAST, tmp_path, stop=10)
    good = (tmp_path / "checkpoint.pt").read_bytes()
    model = tiny()
    forward, calls = model.forward, []

    def poisoned(*args, **kwargs):
        logits, state = forward(*args, **kwargs)
        calls.append(1)
        return (logits * math.nan if len(calls) == 3 else logits), state

    monkeypatch.setattr(model, "forward", poisoned)
    with pytest.raises(TrainingDiverged, match=r"loss nan.* at step 13.*lower lr.*checkpoint\.pt"):
        train_language_model(model, TEXT, TEXT, FAST, tmp_path, resume=True)
    assert (tmp_path / "checkpoint.pt").read_bytes() == good
    assert all(torch.isfinite(p).all() for p in model.parameters())
    resumed, whole = tiny(), tiny()
    train_language_model(resumed, TEXT, TEXT, FAST, tmp_path, resume=True)
    train_language_model(whole, TEXT, TEXT, FAST)
    assert resumed.fingerprint == whole.fingerprint


def test_a_time_budget_ends_in_time():
    started = time.perf_counter()
    result = train_language_model(tiny(), TEXT, TEXT, replace(FAST, seconds=0.3))
    assert result.finished and result.step > 1
    assert 0.3 <= result.seconds and time.perf_counter() - started < 20


def test_checkpoint_of_other_things_is_refused(tmp_path):
    train_language_model(tiny(), TEXT, TEXT, FAST, tmp_path, stop=5)

    def resume(model=None, text=TEXT, config=FAST):
        train_language_model(model or tiny(), text, TEXT, config, tmp_path, resume=True)

    with pytest.raises(CheckpointError, match="was trained on text"):
        resume(text=TEXT[1:])
    with pytest.raises(CheckpointError, match=r"config lr=0\.003, not 0\.1"):
        resume(config=replace(FAST, lr=0.1))
    with pytest.raises(CheckpointError, match="model d_model=16, not 32"):
        resume(model=LanguageModel(replace(TINY, d_model=32)))
    with pytest.raises(ValueError, match="is there already"):
        train_language_model(tiny(), TEXT, TEXT, FAST, tmp_path)
    path = tmp_path / "checkpoint.pt"
    for damage in (path.read_bytes()[:-50], b"junk", b""):
        path.write_bytes(damage)
        with pytest.raises(CheckpointError, match="cannot read checkpoint"):
            resume()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": 0}, "steps must be positive"),
        ({"lr": 0.0}, "lr and seconds"),
        ({"seconds": -1.0}, "lr and seconds"),
        ({"length": 17}, "length 17 exceeds"),
        ({"distil": 1.5}, r"distil must be in \[0, 1\], got 1.5"),
    ],
)
def test_impossible_configurations(change, message):
    with pytest.raises(ValueError, match=message):
        train_language_model(tiny(), TEXT, TEXT, replace(FAST, **change))


@pytest.mark.parametrize("option", ["--training.steps=0", "--training.distil=2", "--model.backbone=foo", "--model.d-model=0"])
def test_the_command_line_says_so_in_one_line(tmp_path, capsys, option):
    assert main(["lm", "train", "--run-dir", str(tmp_path / "run"), "--max-bytes", "100000", option]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and not (tmp_path / "run").exists()


def test_too_little_text():
    with pytest.raises(ValueError, match="got 16 and 500"):
        train_language_model(tiny(), TEXT[:16], TEXT, FAST)
    with pytest.raises(ValueError, match="at least 2"):
        bits_per_byte(tiny(), TEXT[:1])


def test_schedule():
    assert schedule(0.0, 0.1, 0.02) < 0.02
    assert schedule(0.1, 0.1, 0.02) == 1.0
    assert schedule(0.55, 0.1, 0.02) == pytest.approx(0.51)
    assert schedule(1.0, 0.1, 0.02) == pytest.approx(0.02)


@pytest.mark.parametrize("N", [2, 3, 16, 17, 24, 25, 100])
def test_sweeps_cover_every_position_once(N):
    """Against the definition: the first window predicts all it can, each later one the part that is new."""
    model, text = tiny().double(), TEXT[:N]
    for stride in (8, 12):  # of bits_per_byte and of predict_argmax
        size, covered, logp, top = min(16, N), 0, 0.0, []
        for start in [*range(0, N - size, stride), N - size] if N > size else [0]:
            with torch.inference_mode():
                logits = model(torch.from_numpy(text[None, start : start + size]))[0][0].log_softmax(-1)
            for i in range(covered, start + size):
                top.append(int(logits[i - start].argmax()))
                if i + 1 < N:
                    logp += logits[i - start, text[i + 1]].item()
            covered = start + size
        if stride == 8:
            assert bits_per_byte(model, text, batch=3) == pytest.approx(-logp / math.log(2) / (N - 1), rel=1e-12)
        else:
            assert predict_argmax(model, text, batch=3).tolist() == top


def test_uniform_model_costs_log2_of_the_vocabulary():
    model = tiny()
    torch.nn.init.zeros_(model.embedding)
    assert bits_per_byte(model, TEXT) == pytest.approx(5.0)


def test_data_hash_is_of_the_numbers():
    assert data_hash(TEXT) == data_hash(TEXT.astype(np.uint8)) != data_hash(TEXT[:-1])
    assert data_hash(TEXT[:100], TEXT[100:]) != data_hash(TEXT)


PROCESSES = """
import sys
sys.path.insert(0, {tests!r})
import test_training as t
from tdraft.models.distributed import process_group
t.torch.set_num_threads(1)
with process_group():
    t.train_language_model(t.tiny(), t.TEXT, t.TEXT, t.replace(t.FAST, batch=2), sys.argv[1])
"""


@pytest.mark.slow
def test_two_processes_are_one_with_twice_the_batch(tmp_path):
    script = tmp_path / "train.py"
    script.write_text(PROCESSES.format(tests=os.path.dirname(__file__)))
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    subprocess.run([*torchrun, str(script), str(tmp_path / "two")], check=True, timeout=120, capture_output=True)
    train_language_model(tiny(), TEXT, TEXT, FAST, tmp_path / "one")
    one, two = (list(csv.DictReader(open(tmp_path / name / "progress.csv"))) for name in ("one", "two"))
    assert len(one) == len(two) == 4
    for name in ("tokens", "train/loss", "train/grad_norm", "eval/bits_per_byte"):
        a, b = ([float(row[name]) for row in rows if row[name]] for rows in (one, two))
        assert a == pytest.approx(b, rel=1e-5)


WORKER = """
import sys, torch
sys.path.insert(0, {tests!r})
import test_training as t
torch.set_num_threads(1)
model = t.tiny()
print("ready", flush=True)
t.train_language_model(model, t.TEXT, t.TEXT, t.replace(t.FAST, steps=400), sys.argv[1], resume=True)
print(model.fingerprint)
"""


@pytest.mark.slow
def test_killed_at_any_moment_it_resumes_bit_for_bit(tmp_path):
    command = [sys.executable, "-c", WORKER.format(tests=os.path.dirname(__file__)), str(tmp_path)]
    delay = random.Random(0)
    for _ in range(3):
        worker = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert worker.stdout is not None and worker.stdout.readline() == "ready\n"
        time.sleep(delay.uniform(0.1, 1.5))
        worker.send_signal(signal.SIGKILL)
        worker.wait()
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, timeout=120)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        whole = tiny()
        train_language_model(whole, TEXT, TEXT, replace(FAST, steps=400))
    finally:
        torch.set_num_threads(threads)
    assert done.stdout.split()[-1] == whole.fingerprint
    steps = [int(row["step"]) for row in csv.DictReader(open(tmp_path / "progress.csv"))]
    assert steps == list(range(5, 401, 5))  # no row twice, none missing
