"""A Hugging Face Mamba on disk gives the same logits in our backbone, whichever way its tokens are fed."""

import json

import pytest
import torch
from theirs import in_pieces, stepwise

from tdraft.models.huggingface import CheckpointError, load_huggingface

transformers = pytest.importorskip("transformers")
SIZES = {"vocab_size": 50, "hidden_size": 24, "state_size": 5, "num_hidden_layers": 3, "time_step_rank": 3, "conv_kernel": 3}


@pytest.fixture(scope="module")
def theirs():
    torch.manual_seed(0)
    config = transformers.MambaConfig(**SIZES, layer_norm_epsilon=1e-6, use_associative_scan=False)
    model = transformers.MambaForCausalLM(config).eval()
    with torch.no_grad():  # away from gains of 1 and biases of 0
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return model


@pytest.fixture
def saved(theirs, tmp_path):
    theirs.save_pretrained(tmp_path)
    return tmp_path


def test_logits_are_theirs_stepwise_whole_and_continued(theirs, saved):
    ours = load_huggingface(saved)
    tokens = torch.randint(50, (1, 17), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = stepwise(theirs, tokens)
        assert (ours(tokens)[0] - expected).abs().max() < 1e-5
        assert (in_pieces(ours, tokens, 1) - expected).abs().max() < 1e-5

        _, state = ours(tokens[:, :9])
        block, _ = ours(tokens[:, 9:], state)
        assert (block - expected[:, 9:]).abs().max() < 1e-5
        out = theirs(tokens[:, :9], use_cache=True)
        their_block = theirs(tokens[:, 9:], cache=out.cache, use_cache=True).logits
    off = (their_block - expected[:, 9:]).abs().max()
    assert off > 1e-3  # theirs begins the block's scan from no state; should this fail, they have mended it


def test_shards_an_untied_head_and_another_dtype(theirs, tmp_path):
    config = transformers.MambaConfig(**SIZES, tie_word_embeddings=False)
    torch.manual_seed(1)
    model = transformers.MambaForCausalLM(config).eval()
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    assert not (tmp_path / "model.safetensors").exists()
    tokens = torch.arange(6).unsqueeze(0)
    with torch.no_grad():
        ours = load_huggingface(tmp_path, torch.float64)
        logits, _ = ours(tokens)
        assert logits.dtype == torch.float64
        assert (logits - stepwise(model, tokens)).abs().max() < 1e-5
    index = tmp_path / "model.safetensors.index.json"
    places = json.loads(index.read_text())
    places["weight_map"]["backbone.extra"] = next(iter(places["weight_map"].values()))
    index.write_text(json.dumps(places))
    with pytest.raises(CheckpointError, match=r"1 tensors that its files do not hold: backbone.extra"):
        load_huggingface(tmp_path)
    next(tmp_path.glob("model-*.safetensors")).unlink()
    with pytest.raises(CheckpointError, match="cannot read"):
        load_huggingface(tmp_path)


def test_a_bare_model_has_the_same_outputs(theirs, tmp_path):
    """MambaModel's tensors have no prefix; the head is then the embedding's."""
    theirs.backbone.save_pretrained(tmp_path)
    tokens = torch.arange(5).unsqueeze(0)
    with torch.no_grad():
        assert (load_huggingface(tmp_path)(tokens)[0] - stepwise(theirs, tokens)).abs().max() < 1e-5


def edit(path, **values):
    config = json.loads((path / "config.json").read_text()) | values
    (path / "config.json").write_text(json.dumps(config))


def test_what_is_wrong_with_a_directory_is_named(saved, tmp_path):
    with pytest.raises(CheckpointError, match="no directory"):
        load_huggingface(tmp_path / "nowhere")
    edit(saved, model_type="mambo")
    with pytest.raises(CheckpointError, match=r'model_type "mambo"; did you mean mamba.*gpt2, llama'):
        load_huggingface(saved)
    edit(saved, model_type="mamba", state_size=6)
    with pytest.raises(CheckpointError, match=r"layers.0.mixer.*A_log must be \(48, 6\) by config.json, got \(48, 5\)"):
        load_huggingface(saved)
    edit(saved, state_size=5, num_hidden_layers=4)
    with pytest.raises(CheckpointError, match=r"tensor backbone.layers.3.mixer.* is missing"):
        load_huggingface(saved)
    edit(saved, num_hidden_layers=2)
    with pytest.raises(CheckpointError, match=r"10 tensors have no place in a mamba model: backbone.layers.2"):
        load_huggingface(saved)
    edit(saved, num_hidden_layers=3, hidden_act="gelu")
    with pytest.raises(CheckpointError, match="hidden_act must be 'silu'"):
        load_huggingface(saved)
    edit(saved, hidden_act="silu", hidden_size=None)
    with pytest.raises(CheckpointError, match="has no hidden_size"):
        load_huggingface(saved)
    (saved / "model.safetensors").write_bytes(b"damaged")
    edit(saved, hidden_size=24)
    with pytest.raises(CheckpointError, match=r"cannot read .* as a safetensors file"):
        load_huggingface(saved)
    (saved / "model.safetensors").rename(saved / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"neither model.safetensors nor .*pytorch_model.bin must first be saved"):
        load_huggingface(saved)
    (saved / "config.json").write_text("[]")
    with pytest.raises(CheckpointError, match="must hold a JSON object"):
        load_huggingface(saved)
    (saved / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"cannot read .*config.json"):
        load_huggingface(saved)
