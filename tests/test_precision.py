"""Mixed precision: each rule by itself, then trainings."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from tdraft.models import precision
from tdraft.models.language_model import LanguageModel, LMConfig
from tdraft.models.precision import LossScaler, Masters, clip, resolve, storage
from tdraft.models.training import TrainConfig, TrainingDiverged, train_language_model

TEXT = np.array([1, 5, 2, 9, 3, 7, 4, 8] * 40)
TINY = LMConfig(vocab_size=10, d_model=16, n_layers=1, n_heads=2, max_length=16)
FAST = TrainConfig(steps=150, batch=4, length=16, lr=1e-2, log_every=50, eval_every=150, eval_tokens=200)


def test_an_overflow_halves_the_scale_and_counts():
    scaler = LossScaler(True)
    scaler.update(False)
    scaler.update(False)
    assert scaler.scale == 2.0**14 and scaler.skipped == 2 and scaler.clean == 0


def test_two_thousand_clean_updates_double_the_scale():
    scaler = LossScaler(True)
    for _ in range(1999):
        scaler.update(True)
    assert scaler.scale == 2.0**16
    scaler.update(True)
    assert scaler.scale == 2.0**17 and scaler.clean == 0
    for _ in range(1999):
        scaler.update(True)
    scaler.update(False)  # one overflow, and the count begins anew
    for _ in range(1999):
        scaler.update(True)
    assert scaler.scale == 2.0**16


def test_a_scale_below_one_is_an_error():
    scaler = LossScaler(True)
    with pytest.raises(FloatingPointError, match="17 updates overflowed"):
        for _ in range(17):
            scaler.update(False)


def test_without_float16_the_scale_is_one():
    scaler = LossScaler(False)
    for finite in (True, False) * 3000:
        scaler.update(finite)
    assert scaler.scale == 1.0 and scaler.skipped == 0


def test_masters_keep_what_float16_loses():
    """1000 updates of 1e-4 on 1.0: float16 cannot hold 1.0001, its neighbour of 1 is 1.00098."""
    plain = torch.ones(1, dtype=torch.float16)
    weight = nn.Parameter(torch.ones(1, dtype=torch.float16))
    masters = Masters([weight])
    optimizer = torch.optim.SGD(masters.of([weight]), lr=1.0)
    for _ in range(1000):
        plain -= -1e-4
        weight.grad = torch.full((1,), -1e-4, dtype=torch.float16)
        masters.take_gradients(1.0)
        optimizer.step()
        masters.write_back()
    assert plain.item() == 1.0
    assert masters.masters[0].item() == pytest.approx(1.1, abs=1e-4)
    assert weight.item() == pytest.approx(1.1, abs=1e-3) and weight.dtype == torch.float16


def test_float32_weights_are_their_own_masters():
    weight = nn.Parameter(torch.ones(3))
    masters = Masters([weight])
    assert masters.of([weight])[0] is weight and masters.state_dict() == []
    weight.grad = torch.full((3,), 8.0)
    assert masters.take_gradients(4.0)[0].tolist() == [2.0, 2.0, 2.0]


def test_clip_gives_the_norm_before():
    gradients = [torch.tensor([3.0]), torch.tensor([4.0])]
    assert clip(gradients, 10.0) == 5.0 and gradients[0].item() == 3.0
    assert clip(gradients, 1.0) == 5.0 and torch.cat(gradients).norm().item() == pytest.approx(1.0)
    assert clip([torch.tensor([np.inf])], 1.0) == np.inf


def test_names(monkeypatch):
    monkeypatch.setattr(precision, "has_fast_bf16", lambda: True)
    assert resolve("auto") == "bf16-mixed"
    monkeypatch.setattr(precision, "has_fast_bf16", lambda: False)
    assert resolve("auto") == "32-true"
    assert [storage(p) for p in ("16-true", "bf16-true", "16-mixed")] == [torch.float16, torch.bfloat16, torch.float32]
    with pytest.raises(ValueError, match='got "fp16"'):
        resolve("fp16")


def test_float16_on_a_cpu_warns_once():
    precision._warn_of_slow_float16.cache_clear()
    with pytest.warns(UserWarning, match="float16 on a CPU"):
        resolve("16-mixed")
    with np.testing.assert_no_warnings():
        resolve("16-mixed")


@pytest.mark.filterwarnings("ignore:float16 on a CPU")
@pytest.mark.parametrize("kind", ["bf16-mixed", "16-mixed", "bf16-true", "16-true"])
def test_every_precision_learns(kind):
    model = LanguageModel(TINY, seed=1)
    result = train_language_model(model, TEXT, TEXT, replace(FAST, precision=kind))
    assert result.bits_per_byte < 0.2
    assert all(p.dtype == storage(kind) for p in model.parameters())


@pytest.mark.filterwarnings("ignore:float16 on a CPU")
@pytest.mark.parametrize("kind", ["16-mixed", "16-true"])
def test_two_halves_equal_the_whole_with_scaler_and_masters(tmp_path, kind):
    config = replace(FAST, steps=12, precision=kind, eval_every=6, checkpoint_every=6)
    whole, first, second = (LanguageModel(TINY, seed=1) for _ in range(3))
    train_language_model(whole, TEXT, TEXT, config)
    train_language_model(first, TEXT, TEXT, config, tmp_path, stop=6)
    train_language_model(second, TEXT, TEXT, config, tmp_path, resume=True)
    assert second.fingerprint == whole.fingerprint != first.fingerprint


@pytest.mark.filterwarnings("ignore:float16 on a CPU")
def test_overflowing_updates_are_skipped(tmp_path, monkeypatch):
    """A loss too large for float16 at the first scales: the weights stay until the scale has come down, and the log says so."""
    model = LanguageModel(TINY, seed=1)
    logits = model.logits
    monkeypatch.setattr(model, "logits", lambda hidden: logits(hidden) * 64)
    before = [p.clone() for p in model.parameters()]
    train_language_model(model, TEXT, TEXT, replace(FAST, steps=2, precision="16-mixed"), tmp_path, stop=1)
    skipped = torch.load(tmp_path / "checkpoint.pt", weights_only=True)["scaler"]
    assert skipped == {"scale": 2.0**15, "clean": 0, "skipped": 1}
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters()))


@pytest.mark.filterwarnings("ignore:float16 on a CPU")
def test_what_always_overflows_is_an_error(monkeypatch):
    model = LanguageModel(TINY, seed=1)
    logits = model.logits
    monkeypatch.setattr(model, "logits", lambda hidden: logits(hidden) * torch.inf)
    with pytest.raises(TrainingDiverged):
        train_language_model(model, TEXT, TEXT, replace(FAST, precision="16-mixed"))
