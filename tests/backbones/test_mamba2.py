"""Mamba-2: any way of feeding it is the loop of its equations."""

import pytest
import torch
import torch.nn.functional as F
from harness import REPEATABLE, check, close, plays
from hypothesis import given, settings

from tdraft.models.backbones import make_backbone

SIZES = {"d_state": 3, "headdim": 4, "ngroups": 2}


def rms(x, gain, groups=1):
    parts = x.reshape(*x.shape[:-1], groups, -1)
    return (parts / (parts.square().mean(-1, keepdim=True) + 1e-5).sqrt()).reshape(x.shape) * gain


def naive(model, x):
    """(T, D) -> (T, D), one input at a time."""
    for layer in model.layers:
        E, G, N, P = layer.d_inner, layer.ngroups, layer.d_state, layer.headdim
        H, K, W = E // P, E + 2 * G * N, layer.conv1d.weight.shape[2]
        past, S, out = [x.new_zeros(K)] * (W - 1), [x.new_zeros(P, N)] * H, []
        for u in x:
            z, xbc, dt = (layer.in_proj.weight @ rms(u, layer.norm.gain)).split([E, K, H])
            past = [*past, xbc]
            conv = sum(layer.conv1d.weight[:, 0, k] * past[k - W] for k in range(W)) + layer.conv1d.bias
            v, B, C = F.silu(conv).split([E, G * N, G * N])
            dt = torch.log1p(torch.exp(dt + layer.dt_bias))
            y, states = [], []
            for h in range(H):
                g, v_h = h // (H // G), v[h * P : (h + 1) * P]
                B_h, C_h = B[g * N : (g + 1) * N], C[g * N : (g + 1) * N]
                states.append(torch.exp(-torch.exp(layer.A_log[h]) * dt[h]) * S[h] + dt[h] * torch.outer(v_h, B_h))
                y.append(states[h] @ C_h + layer.D[h] * v_h)
            S = states
            out.append(u + layer.out_proj.weight @ rms(torch.cat(y) * F.silu(z), layer.gate_norm.gain, G))
        x = torch.stack(out)
    return rms(x, model.norm.gain)


def small(seed=0, **sizes):
    return make_backbone("mamba-2", d_model=8, n_layers=2, generator=torch.Generator().manual_seed(seed), **(SIZES | sizes))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@settings(REPEATABLE, max_examples=10)
@given(play=plays())
def test_any_way_is_the_naive_loop(play, dtype):
    check(small(), naive, play, dtype)


@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_long_call_is_the_naive_loop(dtype, grad):
    model = small().to(dtype)
    x = torch.randn(1, 200, 8, dtype=dtype, generator=torch.Generator().manual_seed(1))
    with torch.set_grad_enabled(grad):
        y, state = model(x)
        rest, _ = model(x[:, :5], state.at(150))
    with torch.no_grad():
        expected = naive(model.double(), torch.cat((x[0, :150], x[0, :5])).double())
        close("parallel", y[0], naive(model, x[0].double()), dtype)
        close("from the 150th", rest[0], expected[150:], dtype)


@pytest.mark.parametrize("sizes", [{}, {"ngroups": 1, "d_conv": 2}, {"conv_bias": False}], ids=str)
@torch.no_grad()
def test_single_steps_are_the_long_call(sizes):
    """Most of them go through the compiled step."""
    model, x = small(**sizes), torch.randn(3, 9, 8, generator=torch.Generator().manual_seed(1))
    state, steps = None, []
    for u in x.split(1, dim=1):
        y, state = model(u, state)
        steps.append(y)
    close("steps", torch.cat(steps, dim=1), model.double()(x.double())[0], torch.float32)


def test_a_state_of_other_sizes_is_refused():
    model = small()
    for other in (make_backbone("gru", d_model=8, n_layers=2), small().double()):
        with pytest.raises(ValueError, match="state must be of Mamba2"):
            model(torch.zeros(1, 1, 8), other.initial_state(1))
    with pytest.raises(ValueError, match="batch size 2"):
        model(torch.zeros(1, 1, 8), model.initial_state(2))
    with pytest.raises(ValueError, match="headdim must divide"):
        small(headdim=5)
    with pytest.raises(ValueError, match="d_sate"):
        small(d_sate=5)


@pytest.mark.parametrize("T", [1, 5])
def test_it_compiles_as_one_graph(T):
    model, x = small(), torch.randn(2, T, 8)
    compiled = torch.compile(lambda x: model(x)[0], fullgraph=True, backend="aot_eager")
    ours = compiled(x)
    torch.testing.assert_close(ours, model(x)[0])
    ours.sum().backward()
