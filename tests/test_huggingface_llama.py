"""Llama and Mistral as Hugging Face saves them: our logits are theirs, however the text is fed."""

import json

import pytest
import torch
from theirs import check_rejected_drafts_and_a_tree, close, in_pieces, stepwise

from tdraft.models.backbones import ContextOverflow
from tdraft.models.huggingface import load_huggingface
from tdraft.models.language_model import CheckpointError

transformers = pytest.importorskip("transformers")

V, T = 61, 24
SIZES = {
    "vocab_size": V,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "initializer_range": 0.3,  # far from a uniform attention
}
KINDS = {
    "tied": {"num_key_value_heads": 4, "tie_word_embeddings": True},
    "untied, grouped, other theta and eps": {
        "num_key_value_heads": 2,
        "rms_norm_eps": 1e-3,
        "rope_parameters": {"rope_type": "default", "rope_theta": 100.0},
    },
    "one head of keys": {"num_key_value_heads": 1},
    "mistral": {"num_key_value_heads": 2, "sliding_window": 7},
}


@pytest.fixture(scope="module", params=KINDS, ids=lambda kind: kind.replace(" ", "-"))
def pair(request, tmp_path_factory):
    """(theirs, ours, tokens (2, T), their logits from one token at a time (2, T, V))."""
    path = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    name = "Mistral" if request.param == "mistral" else "Llama"
    config = getattr(transformers, f"{name}Config")(**SIZES | KINDS[request.param])
    theirs = getattr(transformers, f"{name}ForCausalLM")(config).eval()
    with torch.no_grad():
        for key, weight in theirs.named_parameters():
            if "norm" in key:
                weight.uniform_(0.5, 1.5)  # they begin at 1, where a lost gain would not show
    theirs.save_pretrained(path)
    tokens = torch.randint(V, (2, T))
    return theirs, load_huggingface(path), tokens, stepwise(theirs, tokens, "past_key_values")


@pytest.mark.parametrize("pieces", [(T,), (1,) * T, (9, 5, 1, 9)], ids=["whole", "stepwise", "split"])
def test_logits_are_theirs(pair, pieces):
    _, ours, tokens, expected = pair
    close(in_pieces(ours, tokens, pieces), expected)


def test_rejected_drafts_and_a_tree_leave_no_trace(pair):
    _, ours, tokens, expected = pair
    check_rejected_drafts_and_a_tree(ours, tokens, expected, V)


def test_only_a_window_goes_past_the_longest_context(pair):
    theirs, ours, _, _ = pair
    tokens = torch.randint(V, (1, 80))
    if ours.backbone.window is None:
        with pytest.raises(ContextOverflow, match="context of 64"):
            ours(tokens)
        return
    with torch.no_grad():
        _, state = ours(tokens[:, :60])
        y, state = ours(tokens[:, 60:], state)
        close(y, stepwise(theirs, tokens)[:, 60:])
    assert state.length == 80 and state.kv[0].shape[1] < 30


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}}, 'scaled positions of the type "linear"'),
        ({"rope_parameters": None, "rope_scaling": {"type": "dynamic", "factor": 2.0}}, '"dynamic"'),
        ({"attention_bias": True}, "attention_bias must be False"),
        ({"mlp_bias": True}, "mlp_bias must be False"),
        ({"hidden_act": "gelu"}, "hidden_act must be 'silu'"),
        ({"head_dim": 16}, "head_dim must be 8"),
        ({"num_key_value_heads": 3}, "n_kv_heads must divide n_heads=4"),
        ({"intermediate_size": 40}, r"mlp.gate_proj.weight must be \(40, 32\)"),
        ({"num_hidden_layers": 1}, "9 tensors have no place"),
        ({"num_hidden_layers": 3}, "model.layers.2.* is missing"),
        ({"tie_word_embeddings": False}, "lm_head.weight is missing"),
    ],
)
def test_what_ours_cannot_do_is_refused(tmp_path, change, message):
    config = transformers.LlamaConfig(**SIZES | KINDS["tied"])
    transformers.LlamaForCausalLM(config).save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(CheckpointError, match=message):
        load_huggingface(tmp_path)


def test_a_config_of_before_transformers_5(tmp_path):
    """`rope_theta` at the top, no `rope_parameters`."""
    config = transformers.LlamaConfig(**SIZES | KINDS["tied"], rope_parameters={"rope_type": "default", "rope_theta": 50.0})
    theirs = transformers.LlamaForCausalLM(config).eval()
    theirs.save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    old = json.loads(file.read_text())
    del old["rope_parameters"]
    file.write_text(json.dumps(old | {"rope_theta": 50.0, "rope_scaling": None}))
    tokens = torch.randint(V, (1, 20))
    with torch.no_grad():
        close(load_huggingface(tmp_path)(tokens)[0], theirs(tokens).logits)
