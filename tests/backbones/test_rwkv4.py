"""RWKV-4: any way of feeding it is the loop of its equations."""

import pytest
import torch
from harness import REPEATABLE, check, check_bfloat16, check_compiles, check_gradients_through_a_state, check_long_sequence, plays
from hypothesis import given, settings

from tdraft.models.backbones import make_backbone


def layer_norm(norm, x):
    centred = x - x.mean()
    return centred / (centred.square().mean() + 1e-5).sqrt() * norm.weight + norm.bias


def mix(mu, x, before):
    return mu * x + (1 - mu) * before


def naive(model, x):
    """(T, D) -> (T, D), one input at a time, with the sums A and B themselves."""
    for layer in model.layers:
        att, ffn, y = layer.att, layer.ffn, []
        before_att = before_ffn = A = B = x.new_zeros(x.shape[1])
        for x_t in x:
            x_t = x_t if layer.ln0 is None else layer_norm(layer.ln0, x_t)
            u = layer_norm(layer.ln1, x_t)
            r = torch.sigmoid(att.receptance.weight @ mix(att.time_mix_r, u, before_att))
            k = att.key.weight @ mix(att.time_mix_k, u, before_att)
            v = att.value.weight @ mix(att.time_mix_v, u, before_att)
            now = torch.exp(att.time_first + k)
            x_t = x_t + att.output.weight @ (r * (A + now * v) / (B + now))
            decay = torch.exp(-torch.exp(att.time_decay))
            A, B, before_att = decay * A + torch.exp(k) * v, decay * B + torch.exp(k), u
            z = layer_norm(layer.ln2, x_t)
            r = torch.sigmoid(ffn.receptance.weight @ mix(ffn.time_mix_r, z, before_ffn))
            k = (ffn.key.weight @ mix(ffn.time_mix_k, z, before_ffn)).clamp_min(0).square()
            y.append(x_t + r * (ffn.value.weight @ k))
            before_ffn = z
        x = torch.stack(y)
    return torch.stack([layer_norm(model.norm, x_t) for x_t in x])


def stirred(model, seed=0):
    """With weights away from the initial zeros, whose gradients would hide mistakes."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in model.parameters():
            scale = weight.shape[-1] ** -0.5 if weight.dim() > 1 else 0.1
            weight.add_(torch.randn(weight.shape, generator=generator) * scale)
    return model


def made(**sizes):
    return stirred(make_backbone("rwkv-4", **({"d_model": 8, "n_layers": 2, "d_hidden": 12} | sizes)))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@settings(REPEATABLE, max_examples=8)
@given(play=plays())
def test_any_way_is_the_naive_loop(play, dtype):
    check(made(), naive, play, dtype)


@pytest.mark.parametrize("recording", [True, False])
def test_long_sequences_and_the_states_within(recording):
    check_long_sequence(made(), naive, recording)


def test_gradients_pass_from_the_state_to_the_call_before():
    check_gradients_through_a_state(made())


def test_begins_as_the_identity_between_its_norms_and_from_its_generator():
    model, again = (make_backbone("rwkv-4", d_model=8, n_layers=2, generator=torch.Generator().manual_seed(3)) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters()))
    x = torch.randn(1, 3, 8)
    ln = torch.nn.functional.layer_norm
    torch.testing.assert_close(model(x)[0], ln(ln(x, (8,)), (8,)))


def test_bfloat16_keeps_its_sums_in_float32():
    check_bfloat16(made(), place=2)


def test_compiles():
    check_compiles(made())


def test_bad_input():
    model, x = made(), torch.randn(2, 3, 8)
    with pytest.raises(ValueError, match="state has batch size 1 but x has 2"):
        model(x, model.initial_state(1))
    with pytest.raises(ValueError, match=r"state must be of RWKV4\(d_model=8, n_layers=2"):
        model(x, make_backbone("gru", d_model=8, n_layers=2).initial_state(2))
    with pytest.raises(ValueError, match="state must be of"):
        model(x, made().double().initial_state(2))
    with pytest.raises(ValueError, match=r"x must be \(B, T, 8\)"):
        model(x[:, :0])
    with pytest.raises(ValueError, match="finite"):
        model(x / 0)
    with pytest.raises(ValueError, match="positive"):
        made(d_hidden=0)
