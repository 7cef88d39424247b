"""Mamba-2 as Hugging Face saves it: our logits are its stepwise ones, however the text is fed."""

import json

import pytest
import torch
from theirs import in_pieces, stepwise

from tdraft.models.huggingface import load_huggingface
from tdraft.models.language_model import CheckpointError

transformers = pytest.importorskip("transformers")

V, T = 61, 24
SIZES = {
    "vocab_size": V,
    "hidden_size": 32,
    "state_size": 6,
    "num_hidden_layers": 2,
    "head_dim": 8,
    "num_heads": 8,
    "n_groups": 1,
    "chunk_size": 16,
}
KINDS = {
    "tied": {"tie_word_embeddings": True},
    "untied, groups, biases": {
        "n_groups": 2,
        "use_bias": True,
        "layer_norm_epsilon": 1e-3,
        "conv_kernel": 3,
        "tie_word_embeddings": False,
    },
    "no bias of the convolution, narrow": {"use_conv_bias": False, "expand": 1, "num_heads": 4},
}


@pytest.fixture(scope="module", params=KINDS, ids=lambda kind: kind.replace(" ", "-"))
def pair(request, tmp_path_factory):
    """(theirs, ours, tokens (2, T), their logits from one token at a time (2, T, V))."""
    path = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    theirs = transformers.Mamba2ForCausalLM(transformers.Mamba2Config(**SIZES | KINDS[request.param])).eval()
    with torch.no_grad():
        for key, weight in theirs.named_parameters():
            if "norm" in key or key.endswith((".D", "bias")):
                weight.copy_(weight + torch.rand_like(weight))  # where all are 1 or 0 a lost one would not show
    theirs.save_pretrained(path)
    tokens = torch.randint(V, (2, T))
    return theirs, load_huggingface(path), tokens, stepwise(theirs, tokens)


def close(ours, theirs):
    error = float((ours - theirs).abs().max() / theirs.abs().max())
    assert error <= 1e-5, f"off by {error:.1e} of the largest logit"


@torch.no_grad()
def test_logits_in_one_call_and_step_by_step(pair):
    _, ours, tokens, logits = pair
    close(ours(tokens)[0], logits)
    close(in_pieces(ours, tokens, 1), logits)


@torch.no_grad()
def test_many_tokens_from_a_state(pair):
    _, ours, tokens, logits = pair
    _, state = ours(tokens[:, :7])
    close(ours(tokens[:, 7:], state)[0], logits[:, 7:])
    _, state = ours(torch.cat((tokens[:, 7:9], tokens[:, :5]), dim=1), state)  # of a draft of 7 tokens 2 are right
    close(ours(tokens[:, 9:], state.at(2))[0], logits[:, 9:])


def test_what_ours_cannot_do_is_refused(pair, tmp_path):
    theirs, *_ = pair
    theirs.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    for name, value in {"hidden_act": "gelu", "time_step_limit": [0.0, 0.1], "num_heads": 7, "state_size": 5}.items():
        (tmp_path / "config.json").write_text(json.dumps(config | {name: value}))
        with pytest.raises(CheckpointError, match="by config.json" if name == "state_size" else name):
            load_huggingface(tmp_path)
