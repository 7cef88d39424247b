"""GRU: any way of feeding it is the loop of its equations."""

import pytest
import torch
from harness import REPEATABLE, check, plays
from hypothesis import given, settings

from tdraft.models.backbones import make_backbone


def naive(model, x):
    """(T, D) -> (T, D), one input at a time."""
    for layer in model.layers:
        gru, h, y = layer.gru, x.new_zeros(x.shape[1]), []
        for x_t in x:
            u = x_t / (x_t.square().mean() + 1e-5).sqrt() * layer.norm.gain
            xr, xz, xn = (gru.weight_ih_l0 @ u + gru.bias_ih_l0).chunk(3)
            hr, hz, hn = (gru.weight_hh_l0 @ h + gru.bias_hh_l0).chunk(3)
            r, z = torch.sigmoid(xr + hr), torch.sigmoid(xz + hz)
            h = (1 - z) * torch.tanh(xn + r * hn) + z * h
            y.append(x_t + h)
        x = torch.stack(y)
    return x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt() * model.norm.gain


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@settings(REPEATABLE, max_examples=20)
@given(play=plays())
def test_any_way_is_the_naive_loop(play, dtype):
    torch.manual_seed(0)
    check(make_backbone("gru", d_model=8, n_layers=2), naive, play, dtype)
