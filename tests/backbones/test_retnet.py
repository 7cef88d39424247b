"""RetNet: any way of feeding it is the loop of its equations."""

import math

import pytest
import torch
import torch.nn.functional as F
from harness import REPEATABLE, check, close, plays
from hypothesis import given, settings

from tdraft.models.backbones import make_backbone


def rms(x, gain=1.0):
    return x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt() * gain


def turned(x, n):
    """(d,) -> (d,), pair i by the angle n * 10000^(-i / (d / 2 - 1))."""
    pairs = len(x) // 2
    turned = []
    for i in range(pairs):
        angle = n * 10000.0 ** (-i / max(pairs - 1, 1))
        a, b = x[2 * i], x[2 * i + 1]
        turned += [a * math.cos(angle) - b * math.sin(angle), a * math.sin(angle) + b * math.cos(angle)]
    return torch.stack(turned)


def naive(model, x):
    """(T, D) -> (T, D), one input at a time."""
    for layer in model.layers:
        H, d, out = layer.n_heads, x.shape[1] // layer.n_heads, []
        S = [0.0] * H
        for n, u in enumerate(x):
            v_in, heads = rms(u, layer.norm.gain), []
            q, k, v = ((W.weight @ v_in).chunk(H) for W in (layer.W_Q, layer.W_K, layer.W_V))
            for h in range(H):
                S[h] = (1 - 2 ** (-5 - h)) * S[h] + torch.outer(v[h], turned(k[h] / math.sqrt(d), n))
                heads.append(rms(S[h] @ turned(q[h], n)))
            u = u + layer.W_O.weight @ (F.silu(layer.W_G.weight @ v_in) * torch.cat(heads))
            out.append(u + layer.W_2.weight @ F.gelu(layer.W_1.weight @ rms(u, layer.ffn_norm.gain)))
        x = torch.stack(out)
    return rms(x, model.norm.gain)


def small(**sizes):
    return make_backbone("retnet", d_model=8, n_layers=2, n_heads=2, generator=torch.Generator().manual_seed(0), **sizes)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@settings(REPEATABLE, max_examples=10)
@given(play=plays())
def test_any_way_is_the_naive_loop(play, dtype):
    check(small(), naive, play, dtype)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_parallel_chunked_and_recurrent_forms_agree(dtype):
    model = small().to(dtype)
    x = torch.randn(1, 200, 8, dtype=dtype, generator=torch.Generator().manual_seed(1))
    chunked, _ = model(x)  # chunks of 64
    tree, _ = model(x, parents=torch.arange(-1, 199).numpy())
    with torch.no_grad():
        state, steps = None, []
        for u in x.split(1, dim=1):
            y, state = model(u, state)
            steps.append(y)
        expected = naive(model.double(), x[0].double())
    for what, y in {"chunked": chunked, "tree": tree, "recurrent": torch.cat(steps, dim=1)}.items():
        close(what, y[0], expected, dtype)


def test_far_positions_keep_their_angle():
    """Only differences of positions count, so a million inputs of the past that retention has forgotten change nothing."""
    model, x = small(), torch.randn(1, 6, 8)
    state = model.initial_state(1)
    (_, count), *_ = state.layers
    far = type(count)(count.first + 10**6)
    moved = type(state)(state.family, tuple((part, far) for part, _ in state.layers))
    torch.testing.assert_close(model(x, moved)[0], model(x)[0], rtol=1e-5, atol=1e-5)


def test_bad_sizes_and_states_are_refused():
    with pytest.raises(ValueError, match="d_model must be a multiple of 2"):
        make_backbone("retnet", d_model=8, n_layers=1, n_heads=3)
    with pytest.raises(ValueError, match="state must be of RetNet"):
        small()(torch.zeros(1, 1, 8), small().double().initial_state(1))
    with pytest.raises(ValueError, match="batch size 2"):
        small()(torch.zeros(1, 1, 8), small().initial_state(2))


@pytest.mark.parametrize("T", [1, 5])
def test_it_compiles_as_one_graph(T):
    model, x = small(), torch.randn(2, T, 8)
    ours = torch.compile(lambda x: model(x)[0], fullgraph=True, backend="aot_eager")(x)
    torch.testing.assert_close(ours, model(x)[0])
    ours.sum().backward()
