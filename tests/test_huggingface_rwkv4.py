"""RWKV-4 of Hugging Face's library: our logits are its own, one token at a time and many from a state."""

import pytest
import torch

from tdraft.models.huggingface import load_huggingface
from tdraft.models.language_model import CheckpointError

transformers = pytest.importorskip("transformers")

SIZES = {"vocab_size": 23, "hidden_size": 12, "num_hidden_layers": 3, "intermediate_size": 20}


def theirs(path, **changes):
    """A random model of theirs, away from its regular initial weights, and saved before it is used."""
    torch.manual_seed(0)
    model = transformers.RwkvForCausalLM(transformers.RwkvConfig(**(SIZES | changes))).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.3 * torch.randn_like(weight))
    model.save_pretrained(path)
    return model


def stepwise(model, tokens):
    """Their logits (B, T, V), a sequence and a token at a time: at T = 1 they mix up the sequences of a batch."""
    rows = []
    for row in tokens:
        state, logits = None, []
        for token in row:
            out = model(token.view(1, 1), state=state, use_cache=True)
            state = out.state
            logits.append(out.logits[0, 0])
        rows.append(torch.stack(logits))
    return torch.stack(rows)


@torch.no_grad()
@pytest.mark.parametrize("changes", [{}, {"rescale_every": 0}, {"tie_word_embeddings": True}, {"intermediate_size": None}])
def test_logits_are_theirs(tmp_path, changes):
    model = theirs(tmp_path, **changes)
    ours = load_huggingface(tmp_path)
    tokens = torch.randint(23, (2, 40), generator=torch.Generator().manual_seed(1))
    right = stepwise(model, tokens)
    scale = right.abs().max()
    whole, _ = ours(tokens)
    assert (whole - right).abs().max() <= 1e-5 * scale
    begun, state = ours(tokens[:, :17])
    rest, _ = ours(tokens[:, 17:], state)
    assert (torch.cat((begun, rest), 1) - right).abs().max() <= 1e-5 * scale
    state = ours.initial_state(2)
    for t in range(40):
        y, state = ours(tokens[:, t : t + 1], state)
        assert (y[:, 0] - right[:, t]).abs().max() <= 1e-5 * scale


@torch.no_grad()
def test_many_tokens_from_a_state_are_right_in_theirs_too(tmp_path):
    model = theirs(tmp_path)
    tokens = torch.randint(23, (1, 40), generator=torch.Generator().manual_seed(1))
    right = stepwise(model, tokens)
    out = model(tokens[:, :17], use_cache=True)
    rest = model(tokens[:, 17:], state=out.state, use_cache=True).logits
    ours = load_huggingface(tmp_path)
    _, state = ours(tokens[:, :17])
    scale = right.abs().max()
    assert (rest - right[:, 17:]).abs().max() <= 1e-5 * scale
    assert (ours(tokens[:, 17:], state)[0] - rest).abs().max() <= 1e-5 * scale


@torch.no_grad()
def test_their_rescaling_is_lost_in_the_last_norm(tmp_path):
    """Eight layers are rescaled once in evaluation mode; the only trace is the eps of LayerNorm."""
    model = theirs(tmp_path, num_hidden_layers=8)
    tokens = torch.randint(23, (1, 12), generator=torch.Generator().manual_seed(1))
    right = stepwise(model.train(), tokens)
    rescaled = stepwise(model.eval(), tokens)
    assert model.rwkv.layers_are_rescaled
    ours, _ = load_huggingface(tmp_path)(tokens)
    assert (ours - right).abs().max() <= 1e-5 * right.abs().max()
    assert (ours - rescaled).abs().max() <= 1e-3 * right.abs().max()


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"attention_hidden_size": 24}, "attention_hidden_size"), ({"layer_norm_epsilon": 1e-3}, "layer_norm_epsilon")],
)
def test_settings_that_ours_has_not(tmp_path, changes, message):
    theirs(tmp_path, **changes)
    with pytest.raises(CheckpointError, match=message):
        load_huggingface(tmp_path)
