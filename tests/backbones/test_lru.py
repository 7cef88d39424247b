"""LRU: any way of feeding it is the loop of its equations."""

import math

import pytest
import torch
from harness import REPEATABLE, check, close, plays
from hypothesis import given, settings

from tdraft.models.backbones import make_backbone


def naive(model, x):
    """(T, D) -> (T, D), one input at a time, in real and imaginary parts."""
    for layer in model.layers:
        size, phase, gamma = torch.exp(-layer.nu_log.exp()), layer.theta_log.exp(), layer.gamma_log.exp()
        (B_re, B_im), (C_re, C_im) = layer.B.unbind(1), layer.C.unbind(2)
        re, im, y = torch.zeros_like(size), torch.zeros_like(size), []
        for x_t in x:
            u = x_t / (x_t.square().mean() + 1e-5).sqrt() * layer.norm.gain
            re, im = (
                size * (phase.cos() * re - phase.sin() * im) + gamma * (B_re @ u),
                size * (phase.cos() * im + phase.sin() * re) + gamma * (B_im @ u),
            )
            out = C_re @ re - C_im @ im + layer.D * u
            value, gate = (layer.glu.weight @ torch.nn.functional.gelu(out) + layer.glu.bias).chunk(2)
            y.append(x_t + value * torch.sigmoid(gate))
        x = torch.stack(y)
    return x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt() * model.norm.gain


def model(**sizes):
    return make_backbone("lru", d_model=6, n_layers=2, d_state=5, generator=torch.Generator().manual_seed(0), **sizes)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@settings(REPEATABLE, max_examples=20)
@given(play=plays())
def test_any_way_is_the_naive_loop(play, dtype):
    check(model(), naive, play, dtype)


def test_a_long_sequence_is_the_naive_loop_and_its_state_goes_back_to_any_input():
    lru = model().double()
    x = torch.randn(1, 200, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        y, state = lru(x)
        close("outputs", y[0], naive(lru, x[0]), torch.float64)
        for t in (0, 77, 200):
            rest, _ = lru(x[:, t:] if t < 200 else x[:, :1], state.at(t))
            expected = naive(lru, torch.cat((x[0, :t], x[0, t:] if t < 200 else x[0, :1])))[t:]
            close(f"outputs after {t}", rest[0], expected, torch.float64)


def test_the_ring_of_the_first_eigenvalues():
    layer = make_backbone("lru", d_model=4, n_layers=1, d_state=4096, r_min=0.5, r_max=0.8, max_phase=0.3).layers[0]
    size, phase = torch.exp(-layer.nu_log.exp()), layer.theta_log.exp()
    assert 0.5 <= size.min() < 0.51 and 0.79 < size.max() <= 0.8 and 0 <= phase.min() and 0.29 < phase.max() <= 0.3
    area = (size.square().mean() - 0.25) / (0.64 - 0.25)  # uniform on the ring: |lambda|^2 is uniform
    assert abs(area - 0.5) < 4 / math.sqrt(12 * 4096)  # four standard errors
    torch.testing.assert_close(layer.gamma_log.exp(), (1 - size.square()).sqrt())


def test_the_same_generator_gives_the_same_weights():
    for mine, again in zip(model().parameters(), model().parameters(), strict=True):
        assert torch.equal(mine, again)


def test_compiles_to_one_graph():
    lru = model()
    x = torch.randn(2, 9, 6)
    compiled = torch.compile(lambda x: lru(x)[0], fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), lru(x)[0])


def test_bad_input():
    lru, x = model(), torch.zeros(2, 3, 6)
    with pytest.raises(ValueError, match=r"state must be of LRU\(.*, got GRU\("):
        lru(x, make_backbone("gru", d_model=6, n_layers=2).initial_state(2))
    with pytest.raises(ValueError, match=r"state must be of LRU\(.*float32\), got LRU\(.*float64\)"):
        lru(x, model().double().initial_state(2))
    with pytest.raises(ValueError, match="state has batch size 1 but x has 2"):
        lru(x, lru.initial_state(1))
    with pytest.raises(ValueError, match=r"r_min and r_max must be 0 <= r_min < r_max <= 1, got 0\.9 and 0\.5"):
        model(r_min=0.9, r_max=0.5)
    with pytest.raises(ValueError, match=r"max_phase must be in \(0, 2 pi\] radians, got 0"):
        model(max_phase=0)
    with pytest.raises(ValueError, match=r"lru: .*unexpected keyword argument 'd_conv'"):
        model(d_conv=4)
