"""GPT-2 as Hugging Face saves it: our logits are theirs, however the text is fed."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from theirs import check_rejected_drafts_and_a_tree, close, in_pieces, stepwise

from tdraft.models.backbones import ContextOverflow
from tdraft.models.huggingface import load_huggingface
from tdraft.models.language_model import CheckpointError

transformers = pytest.importorskip("transformers")

V, T = 61, 24
SIZES = {"vocab_size": V, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 32, "initializer_range": 0.2}
KINDS = {"tied": {}, "untied": {"tie_word_embeddings": False, "n_inner": 40, "layer_norm_epsilon": 1e-3}}


def make(kind):
    torch.manual_seed(0)
    theirs = transformers.GPT2LMHeadModel(transformers.GPT2Config(**SIZES | KINDS[kind])).eval()
    with torch.no_grad():
        for key, weight in theirs.named_parameters():
            if "ln_" in key or key.endswith("bias"):
                weight.add_(0.3 * torch.randn_like(weight))  # they begin at 1 and 0, where a lost one would not show
    return theirs


@pytest.fixture(scope="module", params=KINDS)
def pair(request, tmp_path_factory):
    """(ours, tokens (2, T), their logits from one token at a time (2, T, V))."""
    path = tmp_path_factory.mktemp("model")
    theirs = make(request.param)
    theirs.save_pretrained(path)
    tokens = torch.randint(V, (2, T))
    return load_huggingface(path), tokens, stepwise(theirs, tokens, "past_key_values")


@torch.no_grad()
@pytest.mark.parametrize("pieces", [(T,), (1,) * T, (9, 5, 1, 9)], ids=["whole", "stepwise", "split"])
def test_logits_are_theirs(pair, pieces):
    ours, tokens, expected = pair
    close(in_pieces(ours, tokens, pieces), expected)


@torch.no_grad()
def test_rejected_drafts_a_tree_and_resets(pair):
    ours, tokens, expected = pair
    check_rejected_drafts_and_a_tree(ours, tokens, expected, V)
    _, state = ours(tokens[:, :8])
    reset = torch.zeros(2, T, dtype=torch.bool)
    reset[1, 0] = True  # one row begins anew, at position 0
    close(ours(tokens, state, reset=reset)[0][1], expected[1])


def test_positions_bound_the_context(pair):
    with pytest.raises(ContextOverflow, match="context of 32"):
        pair[0](torch.zeros(1, 33, dtype=torch.int64))


def test_a_state_of_another_family(pair):
    from tdraft.models.backbones import make_backbone

    llama = make_backbone("transformer", d_model=32, n_layers=2, n_heads=4)
    with pytest.raises(ValueError, match=r"state must be of GPT2\(2 layers, 4 heads of 8.*got Transformer\(2 layers"):
        pair[0](torch.zeros(1, 1, dtype=torch.int64), llama.initial_state(1))


@pytest.mark.parametrize("extra", ["bare", "masks"])
def test_older_files(tmp_path, extra):
    """The first releases were of the model without a head, and held the causal masks."""
    theirs = make("tied")
    theirs.save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    tensors = load_file(file)
    if extra == "bare":
        tensors = {name.removeprefix("transformer."): tensor for name, tensor in tensors.items()}
    else:
        tensors["transformer.h.0.attn.bias"] = torch.ones(1, 1, 32, 32)
    save_file(tensors, file)
    tokens = torch.randint(V, (1, T))
    with torch.no_grad():
        close(load_huggingface(tmp_path)(tokens)[0], theirs(tokens).logits)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"activation_function": "relu"}, "activation_function must be 'gelu_new'"),
        ({"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx must be False"),
        ({"scale_attn_weights": False}, "scale_attn_weights must be True"),
        ({"n_head": 5}, "n_heads must divide d_model"),
        ({"n_positions": 16}, r"wpe.weight must be \(16, 32\)"),
        ({"n_layer": 1}, "12 tensors have no place"),
        ({"n_layer": 3}, "h.2.* is missing"),
    ],
)
def test_what_ours_cannot_do_is_refused(tmp_path, change, message):
    make("tied").save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(CheckpointError, match=message):
        load_huggingface(tmp_path)
