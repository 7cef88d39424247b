"""LanguageModel: states, files, fingerprints."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from tdraft.models.backbones import BACKBONES
from tdraft.models.language_model import CheckpointError, LanguageModel, LMConfig

TINY = LMConfig(vocab_size=19, d_model=16, n_layers=2, n_heads=2, max_length=32)


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    return LanguageModel(TINY, seed=3)


def tokens(B=1, T=8):
    return torch.randint(TINY.vocab_size, (B, T), generator=torch.Generator().manual_seed(0))


def test_stepwise_logits_equal_parallel_logits():
    model = LanguageModel(TINY).double()
    whole, _ = model(tokens(2))
    state = model.initial_state(2)
    for t in range(8):
        logits, state = model(tokens(2)[:, t : t + 1], state)
        torch.testing.assert_close(logits[:, 0], whole[:, t], rtol=0, atol=1e-12)


def test_a_tree_of_tokens(model):
    _, state = model(tokens())
    logits, _ = model(torch.tensor([[1, 2, 3]]), state, parents=[-1, -1, 0])
    alone, _ = model(torch.tensor([[1, 3]]), state)
    torch.testing.assert_close(logits[:, 2], alone[:, 1])


def test_untrained_model_knows_nothing(model):
    """Initial logits are small: the first loss is about log V."""
    logits, _ = model(tokens())
    loss = torch.nn.functional.cross_entropy(logits[0, :-1], tokens()[0, 1:])
    assert abs(loss.item() - torch.tensor(19.0).log().item()) < 0.3


def test_weights_come_from_the_seed_alone():
    before = torch.get_rng_state()
    a, b, c = LanguageModel(TINY, seed=1), LanguageModel(TINY, seed=1), LanguageModel(TINY, seed=2)
    assert a.fingerprint == b.fingerprint != c.fingerprint
    assert torch.equal(before, torch.get_rng_state())


def test_sizes(model):
    D, F, V = 16, 64, 19
    assert model.n_parameters == V * D + D + 2 * (4 * D * D + 3 * D * F)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_save_and_load_are_bit_identical(tmp_path, dtype):
    model = LanguageModel(TINY, seed=4).to(dtype)
    model.save(tmp_path / "m.safetensors")
    loaded = LanguageModel.load(tmp_path / "m.safetensors")
    assert loaded.fingerprint == model.fingerprint and loaded.config == model.config
    assert torch.equal(loaded(tokens())[0], model(tokens())[0])
    assert [p.name for p in tmp_path.iterdir()] == ["m.safetensors"]


def test_a_failed_save_keeps_the_former_file(tmp_path, model, monkeypatch):
    path = tmp_path / "m.safetensors"
    model.save(path)
    before = path.read_bytes()

    def fail(*_):
        raise OSError("no space left on device")

    monkeypatch.setattr("tdraft.models.language_model.save_file", fail)
    with pytest.raises(OSError, match="no space"):
        LanguageModel(TINY, seed=9).save(path)
    assert path.read_bytes() == before and len(list(tmp_path.iterdir())) == 1


def broken(path, how):
    """Damage the good file at `path` in one way."""
    tensors, config = load_file(path), {"d_model": 16, "n_layers": 2, "n_heads": 2, "max_length": 32, "vocab_size": 19}
    metadata = {"class": "LanguageModel", "schema": "1", "config": json.dumps(config)}
    if how == "truncated":
        path.write_bytes(path.read_bytes()[:-100])
    elif how == "garbage":
        path.write_bytes(b"not a model")
    elif how == "missing":
        path.unlink()
    elif how == "class":
        save_file(tensors, path, metadata | {"class": "NGram"})
    elif how == "no metadata":
        save_file(tensors, path)
    elif how == "schema":
        save_file(tensors, path, metadata | {"schema": "99"})
    elif how == "config":
        save_file(tensors, path, metadata | {"config": json.dumps(config | {"d_model": 32})})
    elif how == "tensor":
        save_file({k: v for k, v in tensors.items() if "qkv" not in k}, path, metadata)


@pytest.mark.parametrize("how", ["truncated", "garbage", "missing", "class", "no metadata", "schema", "config", "tensor"])
def test_a_wrong_file_is_one_line(tmp_path, model, how):
    path = tmp_path / "m.safetensors"
    model.save(path)
    broken(path, how)
    with pytest.raises(CheckpointError) as error:
        LanguageModel.load(path)
    assert "\n" not in str(error.value) and str(path) in str(error.value)


@pytest.mark.parametrize("bad", [torch.zeros(3, dtype=torch.int64), torch.zeros(1, 3), torch.zeros(1, 3, dtype=torch.int32)])
def test_tokens_must_be_a_batch_of_integers(model, bad):
    with pytest.raises(ValueError, match="tokens must be"):
        model(bad)


def test_vocab_size_must_be_positive():
    with pytest.raises(ValueError, match="vocab_size"):
        LanguageModel(LMConfig(vocab_size=0))


def test_fingerprints_tell_dtypes_apart():
    prints = {
        dtype: LanguageModel(TINY, seed=1).to(dtype).fingerprint for dtype in (torch.float32, torch.float64, torch.bfloat16)
    }
    assert len(set(prints.values())) == 3


@pytest.mark.parametrize("family", BACKBONES)
def test_any_backbone_learns_at_mixed_precision(family):
    config = LMConfig(vocab_size=19, backbone=family, d_model=32, n_layers=2, max_length=32)
    model = LanguageModel(config, seed=1)
    tokens = torch.randint(19, (2, 12), generator=torch.Generator().manual_seed(0))
    exact, _ = model(tokens)
    with torch.autocast("cpu", torch.bfloat16):
        mixed, _ = model(tokens)
    assert mixed.dtype == torch.bfloat16
    torch.testing.assert_close(mixed.float(), exact, atol=0.05 * float(exact.detach().abs().max()), rtol=0)
    mixed.float().logsumexp(-1).mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_a_size_of_another_family_is_refused():
    with pytest.raises(ValueError, match="n_heads is a size of the transformer"):
        LanguageModel(LMConfig(backbone="mamba", n_heads=2))
    with pytest.raises(ValueError, match="did you mean mamba"):
        LanguageModel(LMConfig(backbone="mamb"))
