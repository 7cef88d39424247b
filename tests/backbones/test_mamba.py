"""Mamba: any way of feeding it is the loop of its equations, and one compiled step is one of the module's."""

import copy
import math
import pickle

import pytest
import torch
import torch.nn.functional as F
from harness import REPEATABLE, check, close, plays
from hypothesis import given, settings
from torch import nn

from tdraft.models.backbones import Mamba, make_backbone
from tdraft.models.backbones.recurrent import Part


def norm(x, gain):
    return x / (x.square().mean() + 1e-5).sqrt() * gain


def naive(model, x):
    """(T, D) -> (T, D), one input at a time."""
    for layer in model.layers:
        N, R, W = layer.d_state, layer.dt_rank, len(layer.D)
        window, h, y = [x.new_zeros(W)] * layer.conv1d.weight.shape[2], x.new_zeros(W, N), []
        for x_t in x:
            new, z = (layer.in_proj.weight @ norm(x_t, layer.norm.gain)).split(W)
            window = [*window[1:], new]
            u = F.silu((torch.stack(window, 1) * layer.conv1d.weight[:, 0]).sum(1) + layer.conv1d.bias)
            low, B, C = (layer.x_proj.weight @ u).split((R, N, N))
            dt = torch.log1p(torch.exp(layer.dt_proj.weight @ low + layer.dt_proj.bias))
            h = torch.exp(-dt[:, None] * layer.A_log.exp()) * h + (dt * u)[:, None] * B
            y.append(x_t + layer.out_proj.weight @ ((h @ C + layer.D * u) * z * torch.sigmoid(z)))
        x = torch.stack(y)
    return torch.stack([norm(x_t, model.norm.gain) for x_t in x])


def small(seed=0, **sizes):
    generator = torch.Generator().manual_seed(seed)
    model = Mamba(**{"d_model": 8, "n_layers": 2, "d_state": 3, "generator": generator, **sizes})
    with torch.no_grad():  # away from gains of 1, biases of 0 and equal rates
        for name, parameter in model.named_parameters():
            if name.endswith(("gain", "conv1d.bias", "A_log", "D")):
                parameter += 0.3 * torch.randn(parameter.shape, generator=generator)
    return model


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@settings(REPEATABLE, max_examples=12)
@given(play=plays())
def test_any_way_is_the_naive_loop(play, dtype):
    check(small(), naive, play, dtype)


def test_a_long_sequence_is_the_naive_loop():
    model = small().double()
    x = torch.randn(1, 200, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = naive(model, x[0])
        y, state = model(x)
        close("outputs", y[0], expected, torch.float64)
        rest, _ = model(x[:, 77:], state.at(77))  # too long to keep the state after each input: it is worked out anew
        close("from the 77th", rest[0], expected[77:], torch.float64)


def test_compiled_steps_are_the_modules():
    """Calls of one to four inputs, compiled (c) and by the module (m) in any order: their states are interchangeable."""
    model = small(d_model=24, n_layers=3, d_state=5, dt_rank=3, expand=3, d_conv=3)
    x = torch.randn(1, 6, 24, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        expected = naive(model.double(), x[0].double())
        model.float()
    for kinds in ("c1c1c1m1m1c1", "m1c4m1", "c2m1c3", "c1m2c1c2", "m6", "c6", "c4m2"):
        state, place = None, 0
        for kind, size in zip(kinds[::2], map(int, kinds[1::2])):
            with torch.set_grad_enabled(kind == "m"):
                y, state = model(x[:, place : place + size], state)
            assert isinstance(state.layers[0][0], Part) and len(state.layers) == (3 if kind == "m" else 1)
            close(f"{kinds} at {place}", y[0], expected[place : place + size], torch.float32)
            place += size
            assert state.length == place


def test_a_step_leaves_its_state_as_it_was():
    model = small()
    x = torch.randn(1, 3, 8, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        _, state = model(x[:, :1])
        kept = [tensor.clone() for memory in state.memories() for tensor in memory]
        first, after = model(x[:, 1:2], state)
        again, _ = model(x[:, 1:2], after.at(0))
        assert torch.equal(first, again)
        assert all(torch.equal(a, b) for a, b in zip(kept, (t for memory in state.memories() for t in memory)))
        wide, _ = model(x[:, 2:].expand(3, 1, 8), after.select([0, 0, 0]))
        narrow, _ = model(x[:, 2:], after.path([0]))
        close("selected rows", wide[1], narrow[0].double(), torch.float32)


def test_a_step_sees_changed_weights():
    """In place, by `data`, by another dtype and back, and of a copy; a layer of another kind runs as a module."""
    model, x = small(), torch.randn(1, 1, 8, generator=torch.Generator().manual_seed(4))

    def right(model):
        y, _ = model(x)
        close("after the change", y[0], naive(model, x[0]).double(), torch.float32)

    with torch.no_grad():
        right(model)
        for parameter in model.parameters():
            parameter.mul_(1.1)
        right(model)
        model.layers[0].D.data = torch.full_like(model.layers[0].D, 3.0)
        right(model)
        model.layers[1].A_log = nn.Parameter(model.layers[1].A_log.detach().contiguous() * 1.5)  # laid out otherwise
        right(model)
        model.double().float()
        right(model)
        other = copy.deepcopy(model)
        for parameter in other.parameters():
            parameter.mul_(0.9)
        right(other)
        right(pickle.loads(pickle.dumps(model)))
        right(model)
        nn.utils.parametrize.register_parametrization(other.layers[0].in_proj, "weight", nn.Identity())
        right(other)


def test_initial_weights_are_the_papers():
    model = make_backbone("mamba", d_model=64, n_layers=2, generator=torch.Generator().manual_seed(5))
    again = make_backbone("mamba", d_model=64, n_layers=2, generator=torch.Generator().manual_seed(5))
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters()))
    layer = model.layers[0]
    assert torch.allclose(layer.A_log.exp(), torch.arange(1.0, 17.0).expand(128, 16))
    dt = F.softplus(layer.dt_proj.bias.detach())
    assert 0.99e-3 < dt.min() < 2e-3 and 0.05 < dt.max() < 0.101
    assert layer.dt_proj.weight.abs().max() <= 4**-0.5 and layer.dt_rank == 4
    assert 0.8 < layer.out_proj.weight.abs().max() * math.sqrt(2 * 128) <= 1.0  # divided by the root of the number of layers


def test_bad_input_is_refused():
    model = small()
    x = torch.zeros(1, 1, 8)
    with torch.no_grad():
        _, state = model(x)
        with pytest.raises(ValueError, match=r"state must be of Mamba.*d_state=3"):
            model(x, small(d_state=4)(x)[1])
        with pytest.raises(ValueError, match="state must be of Mamba"):
            model(x, make_backbone("gru", d_model=8, n_layers=2).initial_state(1))
        with pytest.raises(ValueError, match=r"x must be \(B, T, 8\)"):
            model(torch.zeros(1, 1, 9), state)
        with pytest.raises(ValueError, match="finite"):
            model(torch.full((1, 1, 8), math.nan), state)
        with pytest.raises(ValueError, match="batch size 1"):
            model(torch.zeros(2, 1, 8), state)
    with pytest.raises(ValueError, match="d_conv must be at least 2"):
        small(d_conv=1)


def test_it_compiles_as_one_graph():
    model = small()
    x = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(6))
    compiled = torch.compile(lambda x: model(x)[0], fullgraph=True, backend="aot_eager")
    assert torch.allclose(compiled(x), model(x)[0], atol=1e-6)


def test_bfloat16_weights_keep_float32_states():
    model = small().bfloat16()
    x = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(7)).bfloat16()
    with torch.no_grad():
        y, state = model(x[:, :4])
        last, _ = model(x[:, 4:], state)
        whole, _ = model(x)
    assert y.dtype == torch.bfloat16 and [tensor.dtype for tensor in state.memories()[0]] == [torch.bfloat16, torch.float32]
    assert (last[:, 0] - whole[:, 4]).abs().max() < 0.05
