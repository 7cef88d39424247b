"""RWKV-7: any way of feeding it is the loop of its equations."""

import pytest
import torch
from harness import REPEATABLE, check, check_bfloat16, check_compiles, check_gradients_through_a_state, check_long_sequence, plays
from hypothesis import given, settings

from tdraft.models.backbones import make_backbone

RANKS = {"d_decay": 3, "d_rate": 2, "d_value": 2, "d_gate": 4}


def layer_norm(norm, x):
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt() * norm.weight + norm.bias


def mix(mu, x, before):
    return x + mu * (before - x)


def naive(model, x):
    """(T, D) -> (T, D), one input at a time."""
    firsts = []
    for layer in model.layers:
        att, ffn, y = layer.att, layer.ffn, []
        H, N = att.r_k.shape
        before_att = before_ffn = x.new_zeros(x.shape[1])
        S = [x.new_zeros(N, N)] * H
        for t, x_t in enumerate(x):
            x_t = x_t if layer.ln0 is None else layer_norm(layer.ln0, x_t)
            u = layer_norm(layer.ln1, x_t)
            r = att.receptance.weight @ mix(att.x_r, u, before_att)
            k = att.key.weight @ mix(att.x_k, u, before_att)
            v = att.value.weight @ mix(att.x_v, u, before_att)
            g = torch.sigmoid(mix(att.x_g, u, before_att) @ att.g1) @ att.g2
            w = torch.exp(-torch.sigmoid(att.w0 + torch.tanh(mix(att.x_w, u, before_att) @ att.w1) @ att.w2) / torch.e**0.5)
            a = torch.sigmoid(att.a0 + mix(att.x_a, u, before_att) @ att.a1 @ att.a2)
            if att.v0 is None:
                firsts.append(v)
            else:
                v = v + (firsts[t] - v) * torch.sigmoid(att.v0 + mix(att.x_v, u, before_att) @ att.v1 @ att.v2)
            kap, k = k * att.k_k, k * (1 + (a - 1) * att.k_a)
            heads = []
            for h in range(H):
                r_h, w_h, k_h, v_h, kap_h, a_h = (z.view(H, N)[h] for z in (r, w, k, v, kap, a))
                kap_h = kap_h / kap_h.square().sum().sqrt()
                S[h] = S[h] @ torch.diag(w_h) - torch.outer(S[h] @ kap_h, kap_h * a_h) + torch.outer(v_h, k_h)
                heads.append(S[h] @ r_h)
            read = torch.stack(heads)
            centred = read - read.mean(1, keepdim=True)
            read = centred / (centred.square().mean(1, keepdim=True) + 64e-5).sqrt()
            read = read * att.ln_x.weight.view(H, N) + att.ln_x.bias.view(H, N)
            read = read + (r.view(H, N) * k.view(H, N) * att.r_k).sum(1, keepdim=True) * v.view(H, N)
            x_t, before_att = x_t + att.output.weight @ (g * read.flatten()), u
            z = layer_norm(layer.ln2, x_t)
            y.append(x_t + ffn.value.weight @ (ffn.key.weight @ mix(ffn.x_k, z, before_ffn)).clamp_min(0).square())
            before_ffn = z
        x = torch.stack(y)
    return layer_norm(model.norm, x)


def stirred(model, seed=0):
    """With weights away from the initial zeros, whose gradients would hide mistakes; only half as far as RWKV-4's, for the norms
    of heads of four numbers make rounding larger: at the full way the naive loop in float32 is itself off by 8e-6."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in model.parameters():
            scale = 0.5 * weight.shape[-1] ** -0.5 if weight.dim() > 1 else 0.05
            weight.add_(torch.randn(weight.shape, generator=generator) * scale)
        for layer in model.layers:  # from where decays hardly move, and float32 leaves of their gradients little but rounding
            layer.att.w0.add_(3.0)
    return model


def made(**sizes):
    return stirred(make_backbone("rwkv-7", **({"d_model": 8, "n_layers": 2, "d_head": 4, "d_hidden": 12, **RANKS} | sizes)))


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
    model, again = (make_backbone("rwkv-7", d_model=8, n_layers=2, generator=torch.Generator().manual_seed(3)) for _ in range(2))
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
    with pytest.raises(ValueError, match=r"state must be of RWKV7\(d_model=8, n_layers=2"):
        model(x, make_backbone("gru", d_model=8, n_layers=2).initial_state(2))
    with pytest.raises(ValueError, match="state must be of"):
        model(x, made().double().initial_state(2))
    with pytest.raises(ValueError, match=r"x must be \(B, T, 8\)"):
        model(x[:, :0])
    with pytest.raises(ValueError, match="finite"):
        model(x / 0)
    with pytest.raises(ValueError, match="positive"):
        made(d_gate=0)
    with pytest.raises(ValueError, match="d_head must divide d_model"):
        made(d_head=3)
