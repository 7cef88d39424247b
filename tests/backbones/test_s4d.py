"""S4D: any way of feeding it is the loop of its equations, by recurrence or by FFT."""

import math

import numpy as np
import pytest
import torch
from harness import REPEATABLE, check, close, plays
from hypothesis import given, settings

from tdraft.models.backbones import make_backbone
from tdraft.models.backbones.recurrent import Flow
from tdraft.models.backbones.s4d import INITS, METHODS, expm1, initial_A


def naive(model, x):
    """(T, D) -> (T, D), one input at a time, with the states as the paper has them: x_t = A_bar x_{t-1} + B_bar u_t."""
    for layer in model.layers:
        dt, A = layer.log_dt.exp(), torch.complex(-layer.log_A_real.exp(), layer.A_imag)
        C, y = torch.view_as_complex(layer.C), []
        if layer.bilinear:
            A_bar, B_bar = (1 + dt * A / 2) / (1 - dt * A / 2), dt / (1 - dt * A / 2)
        else:
            A_bar, B_bar = torch.exp(dt * A), (torch.exp(dt * A) - 1) / A
        state = torch.zeros_like(A)
        for x_t in x:
            u = x_t / (x_t.square().mean() + 1e-5).sqrt() * layer.norm.gain
            state = A_bar * state + B_bar * u[:, None]
            out = 2 * (C * state).sum(1).real + layer.D * u
            value, gate = (layer.glu.weight @ torch.nn.functional.gelu(out) + layer.glu.bias).chunk(2)
            y.append(x_t + value * torch.sigmoid(gate))
        x = torch.stack(y)
    return x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt() * model.norm.gain


def model(**sizes):
    sizes = {"d_model": 4, "n_layers": 2, "d_state": 4, "generator": torch.Generator().manual_seed(0)} | sizes
    return make_backbone("s4d", **sizes)


@pytest.mark.parametrize("convolution", [None, True])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@settings(REPEATABLE, max_examples=10)
@given(play=plays())
def test_any_way_is_the_naive_loop(play, dtype, convolution):
    check(model(convolution=convolution), naive, play, dtype)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("init", INITS)
def test_every_init_and_method(init, method):
    s4d = model(init=init, method=method, dt_max=0.5).double()
    x = torch.randn(1, 9, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    close("outputs", s4d(x)[0][0], naive(s4d, x[0]), torch.float64)


@pytest.mark.parametrize("convolution", [False, True])
def test_a_long_sequence_is_the_naive_loop_and_its_state_goes_back_to_any_input(convolution):
    s4d = model(convolution=convolution).double()
    x = torch.randn(1, 200, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        y, state = s4d(x)
        close("outputs", y[0], naive(s4d, x[0]), torch.float64)
        for t in (0, 77, 200):  # what follows is longer than the states that are kept, so that it goes by FFT too
            rest, _ = s4d(x[:, :100], state.at(t))
            expected = naive(s4d, torch.cat((x[0, :t], x[0, :100])))[t:]
            close(f"outputs after {t}", rest[0], expected, torch.float64)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_by_fft_is_by_recurrence_with_gradients_of_a_first_state(dtype):
    layers = [model(convolution=way, n_layers=1).to(dtype).layers[0] for way in (False, True)]
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(2, 150, 4, dtype=torch.float64, generator=generator).to(dtype)
    first = torch.randn(2, 4, 2, dtype=torch.complex128, generator=generator).to(dtype.to_complex())
    found = []
    for layer in layers:
        assert layer.convolves(x, Flow(150)) is layer.convolution
        leaves = [x.clone().requires_grad_(), first.clone().requires_grad_()]
        y, (part,) = layer(leaves[0], (leaves[1],), Flow(150))
        loss = y.square().sum() + part.after(150, 150).abs().square().sum()
        grads = torch.autograd.grad(loss, [*leaves, layer.log_dt, layer.log_A_real, layer.A_imag, layer.C])
        found.append([y.detach(), part.after(150, 150).detach(), *grads])
    for right, mine in zip(*found, strict=True):
        assert float((mine - right).abs().max()) <= (1e-11 if dtype == torch.float64 else 1e-4) * float(right.abs().max())


def test_which_way_is_chosen():
    for N, B, T, way in [(64, 4, 1024, True), (64, 3, 4096, False), (64, 16, 128, False), (62, 16, 1024, False)]:
        layer, u = model(d_state=N, n_layers=1).layers[0], torch.zeros(B, T, 4)
        assert layer.convolves(u.requires_grad_(), Flow(T)) is way
        assert not layer.convolves(u.detach(), Flow(T))
        assert not layer.convolves(u, Flow(T, torch.zeros(B, T) > 0))
        assert not layer.convolves(u, Flow(T, parents=np.zeros(T, int) - 1))


def test_the_first_eigenvalues():
    assert np.allclose(initial_A("lin", 6), ([0.5] * 3, [0, math.pi, 2 * math.pi]))
    assert np.allclose(initial_A("inv", 4), ([0.5] * 2, [4 / math.pi * 3, 4 / math.pi / 3]))
    assert np.allclose(initial_A("real", 6), ([1, 2, 3], [0, 0, 0]))
    real, imag = initial_A("legs", 16)
    root = np.sqrt(np.arange(16) + 0.5)  # A + P P^T of LegS has the eigenvalues -1/2 +- i imag
    A = -np.tril(2 * np.outer(root, root), -1) - np.diag(np.arange(16) + 1.0) + np.outer(root, root)
    found = np.linalg.eigvals(A)
    assert np.allclose(found.real, -0.5) and np.allclose(real, 0.5)
    assert np.allclose(np.sort(found.imag[found.imag > 0]), np.sort(imag))


def test_real_stays_real_and_steps_begin_in_their_range():
    layer = model(init="real", dt_min=0.01, dt_max=0.02).layers[0]
    assert not layer.A_imag.any() and "A_imag" not in dict(layer.named_parameters())
    assert 0.01 <= layer.log_dt.exp().min() and layer.log_dt.exp().max() <= 0.02


def test_expm1_of_small_numbers():
    z = 1e-9 * (1 + 2j)
    found = expm1(torch.tensor(z.real, dtype=torch.float64), torch.tensor(z.imag, dtype=torch.float64)).item()
    assert abs(found - (z + z * z / 2)) < 1e-15 * abs(z)


def test_the_same_generator_gives_the_same_weights():
    for mine, again in zip(model().parameters(), model().parameters(), strict=True):
        assert torch.equal(mine, again)


@pytest.mark.parametrize("convolution", [False, True])
def test_compiles_to_one_graph(convolution):
    s4d, x = model(convolution=convolution), torch.randn(2, 9, 4)
    compiled = torch.compile(lambda x: s4d(x)[0], fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), s4d(x)[0], rtol=1e-5, atol=1e-5)


def test_bad_input():
    s4d, x = model(), torch.zeros(2, 3, 4)
    with pytest.raises(ValueError, match=r"state must be of S4D\(.*, got GRU\("):
        s4d(x, make_backbone("gru", d_model=4, n_layers=2).initial_state(2))
    with pytest.raises(ValueError, match=r"state must be of S4D\(.*float32\), got S4D\(.*float64\)"):
        s4d(x, model().double().initial_state(2))
    with pytest.raises(ValueError, match="state has batch size 1 but x has 2"):
        s4d(x, s4d.initial_state(1))
    for wrong, message in [
        ({"init": "legt"}, "init must be one of lin, inv, real, legs, got 'legt'"),
        ({"method": "euler"}, "method must be one of zoh, bilinear, got 'euler'"),
        ({"d_state": 5}, "d_state must be even and at least 2, .* got 5"),
        ({"dt_min": 0.2}, r"dt_min and dt_max must be 0 < dt_min <= dt_max, got 0\.2 and 0\.1"),
    ]:
        with pytest.raises(ValueError, match=message):
            model(**wrong)
