"""The Transformer: any way of feeding it is the loop of its equations; its cache grows in place, and no state sees another."""

import copy
import gc
import pickle
import threading
from typing import Any

import pytest
import torch
from harness import REPEATABLE, check, plays
from hypothesis import given, settings

from tdraft.models.backbones import ContextOverflow, Transformer, make_backbone
from tdraft.models.backbones.gpt2 import GPT2
from tdraft.models.backbones.transformer import default_heads

KINDS = {
    "plain": {},
    "grouped": {"n_kv_heads": 1},
    "window": {"window": 3, "max_length": 4},
    "grouped, window, Llama's norm": {"n_kv_heads": 2, "n_heads": 4, "window": 4, "norm_eps": 1e-3, "rope_base": 30.0},
}


def make(kind, **sizes) -> Any:
    torch.manual_seed(0)
    return make_backbone("transformer", **{"d_model": 16, "n_layers": 2, "n_heads": 2, "d_hidden": 24, **KINDS[kind], **sizes})


def norm(x, eps):
    rms = x.square().mean().sqrt()
    return x / (rms + 1e-6) if eps is None else x / (rms.square() + eps).sqrt()


def turn(heads, t, base):
    """RoPE (Su et al. 2021, eq. 34) of heads (..., C): the pair (2i, 2i + 1) turned by t * base^(-2i / C)."""
    even, odd = heads[..., 0::2], heads[..., 1::2]
    angle = t * base ** (-torch.arange(even.shape[-1], dtype=heads.dtype) * 2 / heads.shape[-1])
    return torch.stack((even * angle.cos() - odd * angle.sin(), even * angle.sin() + odd * angle.cos()), dim=-1).flatten(-2)


def naive(model, x):
    """(T, D) -> (T, D), one input at a time; the query head (g, k) looks at the keys of head k."""
    for block in model.blocks:
        keys, values, y = [], [], []
        for t, x_t in enumerate(x):
            rows = (block.qkv @ norm(x_t, model.norm_eps)).view(model.groups + 2, model.n_kv_heads, model.d_head)
            q = turn(rows[:-2], t, model.rope_base)  # (G, K, C)
            keys.append(turn(rows[-2], t, model.rope_base))
            values.append(rows[-1])
            first = 0 if model.window is None else max(t + 1 - model.window, 0)
            k, v = torch.stack(keys[first:]), torch.stack(values[first:])  # (S, K, C)
            weights = (torch.einsum("gkc,skc->gks", q, k) / model.d_head**0.5).softmax(-1)
            x_t = x_t + block.out @ torch.einsum("gks,skc->gkc", weights, v).flatten()
            gate, up = (block.gate_up @ norm(x_t, model.norm_eps)).chunk(2)
            y.append(x_t + block.down @ (gate * torch.sigmoid(gate) * up))
        x = torch.stack(y)
    return torch.stack([norm(x_t, model.norm_eps) for x_t in x]) * model.gain


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("kind", KINDS)
@settings(REPEATABLE, max_examples=6)
@given(play=plays())
def test_any_way_is_the_naive_loop(kind, dtype, play):
    check(make(kind, **({} if "window" in KINDS[kind] else {"max_length": 40})), naive, play, dtype)


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
def test_the_parallel_form_of_a_long_sequence(kind):
    model = make(kind, max_length=60).double()
    x = torch.randn(1, 60, 16, dtype=torch.float64)
    y, _ = model(x)
    torch.testing.assert_close(y[0], naive(model, x[0]), rtol=0, atol=1e-12)


@torch.no_grad()
def test_a_window_keeps_no_more_than_it_needs_and_goes_on_for_ever():
    model = make("window").double()
    x = torch.randn(1, 300, 16, dtype=torch.float64)
    y, state = model(x[:, :100])
    for t in range(100, 300):
        last, state = model(x[:, t : t + 1], state)
        y = torch.cat((y, last), dim=1)
    torch.testing.assert_close(y[0], naive(model, x[0]), rtol=0, atol=1e-12)
    assert state.length == 300 and state.kv[0].shape[1] == 3
    assert state.claim.room.data.shape[2] <= 64  # what nobody sees any more is given back


def room(state):
    return state.kv[0].untyped_storage().data_ptr()


@torch.no_grad()
def test_a_text_and_its_rejected_drafts_grow_in_place():
    model, x = make("plain"), torch.randn(1, 30, 16)
    _, state = model(x[:, :4])
    _, state = model(x[:, 4:5], state)
    place = room(state)
    for t in range(5, 25):
        _, drafted = model(torch.randn(1, 4, 16), state)
        assert room(drafted) == place
        state = drafted.at(0)
        del drafted
        y, state = model(x[:, t : t + 1], state)
        assert room(state) == place
    torch.testing.assert_close(y, model(x[:, :25])[0][:, -1:], rtol=0, atol=1e-5)


@torch.no_grad()
def test_branches_do_not_see_each_other():
    model, x = make("plain").double(), torch.randn(3, 1, 8, 16, dtype=torch.float64)
    prompt = torch.randn(1, 6, 16, dtype=torch.float64)
    _, root = model(prompt[:, :5])
    _, root = model(prompt[:, 5:], root)
    states, outputs = [root] * 3, [[], [], []]
    for t in range(8):  # in turn, so that each writes while the others' states live
        for b in range(3):
            y, states[b] = model(x[b, :, t : t + 1], states[b])
            outputs[b].append(y)
    for b in range(3):
        expected = model(torch.cat((prompt, x[b]), dim=1))[0][:, 6:]
        torch.testing.assert_close(torch.cat(outputs[b], dim=1), expected, rtol=0, atol=1e-12)
    assert len({room(state) for state in states}) == 3


@torch.no_grad()
def test_threads_may_go_on_from_one_state():
    model, x = make("plain").double(), torch.randn(4, 1, 20, 16, dtype=torch.float64)
    _, root = model(x[0, :, :2])
    _, root = model(x[0, :, 2:3], root)
    found = {}

    @torch.no_grad()
    def go(b):
        state, y = root, []
        for t in range(20):
            last, state = model(x[b, :, t : t + 1], state)
            y.append(last)
        found[b] = torch.cat(y, dim=1)

    threads = [threading.Thread(target=go, args=(b,)) for b in range(4)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    for b in range(4):
        expected = model(torch.cat((x[0, :, :3], x[b]), dim=1))[0][:, 3:]
        torch.testing.assert_close(found[b], expected, rtol=0, atol=1e-12)


def test_a_state_of_inference_mode_serves_without_it():
    model, x = make("plain"), torch.randn(1, 6, 16)
    with torch.inference_mode():
        _, state = model(x[:, :3])
        _, state = model(x[:, 3:4], state)
    with torch.no_grad():
        y, _ = model(x[:, 4:], state)
    with torch.inference_mode():
        again, _ = model(x[:, 4:], state)
    torch.testing.assert_close(y, model(x)[0][:, 4:], rtol=0, atol=1e-5)
    assert torch.equal(y, again)


@torch.no_grad()
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda state: pickle.loads(pickle.dumps(state))])
def test_a_copied_state_is_on_its_own(copied):
    model, x = make("plain"), torch.randn(1, 6, 16)
    _, state = model(x[:, :3])
    _, state = model(x[:, 3:4], state)
    twin = copied(state)
    y, _ = model(x[:, 4:], state)
    assert torch.equal(model(x[:, 4:], twin)[0], y)


@torch.no_grad()
def test_dead_states_hold_no_room():
    model, x = make("plain"), torch.randn(1, 1, 16)
    _, state = model(torch.randn(1, 3, 16))
    for _ in range(50):
        _, state = model(x, state)
        state.at(0)
    gc.collect()
    assert len(state.claim.room._claims) <= 34


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
def test_the_fused_step(kind):
    """Beside the naive loop in float64; drafts that are dropped between the steps go the ordinary way, into the same cache."""
    model, exact = make(kind, max_length=64), make(kind, max_length=64).double()
    x, state, y = torch.randn(1, 60, 16), None, []
    model.fused = True
    for t in range(60):
        last, state = model(x[:, t : t + 1], state)
        y.append(last)
        _, drafted = model(torch.randn(1, 3, 16), state)
        state = drafted.at(0)
    expected = naive(exact, x[0].double())
    scale = float(expected.abs().max())
    torch.testing.assert_close(torch.cat(y, dim=1)[0].double(), expected, rtol=0, atol=1e-5 * scale)
    assert state is not None and state.length == 60


@torch.no_grad()
def test_the_fused_step_follows_the_weights():
    model, x = make("plain"), torch.randn(1, 1, 16)
    model.fused = True
    _, state = model(x)
    model.double().float()  # elsewhere in memory
    model.blocks[0].down.mul_(3.0)
    model.blocks[1].out = torch.nn.Parameter(torch.randn(16, 16))
    y, _ = model(x, state)
    model.fused = False
    torch.testing.assert_close(y, model(x, state)[0], rtol=0, atol=1e-5)
    model.fused = True
    model.blocks[1].out = torch.nn.Parameter(torch.randn(16, 16).T)
    with pytest.raises(ValueError, match="contiguous float32 weights"):
        model(x, state)


def test_the_fused_step_is_for_plain_steps_alone():
    model, x = make("plain"), torch.randn(1, 1, 16, requires_grad=True)
    model.fused = True
    y, _ = model(x)
    assert y.requires_grad
    with torch.no_grad():
        _, state = model(x)
        model.fused = False
        assert torch.equal(y, model(x)[0])
        model.fused = True
        with pytest.raises(ValueError, match="state must be of"):
            model(x, make("grouped").initial_state(1))
        with pytest.raises(ValueError, match="x must be finite"):
            model(x * float("inf"), state)
        with pytest.raises(ContextOverflow):
            short = make("plain", max_length=1)
            short.fused = True
            short(x, short(x)[1])
        model(x, state, reset=torch.ones(1, 1, dtype=torch.bool))
    assert model.double()(x.double())[0].dtype == torch.float64


def test_compiles_whole():
    model, x = make("grouped"), torch.randn(2, 5, 16)
    _, state = model(x[:, :2])
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    y, _ = compiled(x[:, 2:], state)
    torch.testing.assert_close(y, model(x)[0][:, 2:], rtol=0, atol=1e-5)


def test_sizes_that_nobody_gave():
    assert [default_heads(d) for d in (8, 32, 64, 96, 100, 256)] == [1, 1, 2, 3, 2, 8]
    model = make_backbone("transformer", d_model=24, n_layers=1)
    assert isinstance(model, Transformer) and model(torch.randn(1, 2, 24))[0].shape == (1, 2, 24)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda m, x: m(x, make_backbone("gru", d_model=16, n_layers=2).initial_state(1)),
            "state must be of Transformer.*got GRU",
        ),
        (lambda m, x: m(x, GPT2(16, 2, 2).initial_state(1)), "got GPT2"),
        (lambda m, x: m(x, make("plain", n_layers=1).initial_state(1)), r"2 layers.*got Transformer\(1 layers"),
        (lambda m, x: m(x, make("grouped").initial_state(1)), "2 heads of 8.*got .*1 heads of 8"),
        (lambda m, x: m(x, make("plain").double().initial_state(1)), "float32.*got .*float64"),
        (lambda m, x: m(x, 3), "got a int"),
        (lambda m, x: m(x, m.initial_state(2)), "batch size 2"),
        (lambda m, x: m(x * float("nan")), "x must be finite"),
        (lambda m, x: make("plain", n_kv_heads=3), "n_kv_heads must divide n_heads=2, got 3"),
        (lambda m, x: make("plain", window=0), "window must be positive, got 0"),
        (lambda m, x: make("plain", n_heads=3), "n_heads=3"),
    ],
)
def test_errors_name_the_argument(call, message):
    with pytest.raises(ValueError, match=message):
        call(make("plain"), torch.randn(1, 1, 16))


def test_only_a_window_frees_the_context():
    with pytest.raises(ContextOverflow):
        make("plain", max_length=4)(torch.randn(1, 5, 16))
    make("window")(torch.randn(1, 5, 16))
