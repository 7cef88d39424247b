"""The backbone contract, on the Transformer: every way of feeding a sequence gives the same numbers."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tdraft.models.backbones import ContextOverflow, Transformer
from tdraft.models.backbones.transformer import ancestors

D, LONGEST = 16, 24


@pytest.fixture(scope="module")
def backbone() -> Transformer:
    return make()


def make(**sizes) -> Transformer:
    model = Transformer(**{"d_model": D, "n_layers": 2, "n_heads": 2, "max_length": LONGEST, **sizes}).double()
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(2.0)  # attention far from uniform, so that a wrong mask or position shows
    return model


MODEL = make()


def inputs(B: int, T: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(B, T, D, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def close(a, b):
    torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


def same_state(a, b):
    assert a.length == b.length and a.batch_size == b.batch_size
    for x, y in zip(a.kv, b.kv):
        close(x, y)


@settings(deadline=None, max_examples=30)
@given(st.lists(st.integers(1, 6), min_size=1, max_size=4), st.integers(0, 1000))
def test_any_split_equals_the_parallel_form(pieces, seed):
    x = inputs(2, sum(pieces), seed)
    whole, last = MODEL(x)
    state, outputs = None, []
    for part in x.split(pieces, dim=1):
        y, state = MODEL(part, state)
        outputs.append(y)
    close(torch.cat(outputs, 1), whole)
    same_state(state, last)


def test_one_token_at_a_time_equals_the_parallel_form(backbone):
    x = inputs(3, 12)
    whole, _ = backbone(x)
    state = backbone.initial_state(3)
    for t in range(12):
        y, state = backbone(x[:, t : t + 1], state)
        close(y[:, 0], whole[:, t])
        assert state.length == t + 1


def test_no_output_depends_on_the_future(backbone):
    x = inputs(1, 10)
    changed = x.clone()
    changed[:, 6:] += 1.0
    close(backbone(x)[0][:, :6], backbone(changed)[0][:, :6])


def test_state_at_t_is_the_state_of_a_call_that_stopped_there(backbone):
    x = inputs(2, 9)
    _, before = backbone(x[:, :3])
    _, after = backbone(x[:, 3:], before)
    for t in range(7):
        stopped = before if t == 0 else backbone(x[:, 3 : 3 + t], before)[1]
        same_state(after.at(t), stopped)
        close(backbone(x[:, :2], after.at(t))[0], backbone(x[:, :2], stopped)[0])
    assert after.at(6) is after
    same_state(after.at(5).at(2), after.at(2))


def test_a_state_is_never_changed(backbone):
    x = inputs(1, 12)
    _, state = backbone(x[:, :4])
    kept = [kv.clone() for kv in state.kv]
    first, _ = backbone(x[:, 4:8], state)
    _, rolled = backbone(x[:, 4:8], state)
    backbone(x[:, 8:], rolled.at(1))
    backbone(x[:, 8:9], state)
    assert all(torch.equal(a, b) for a, b in zip(kept, state.kv))
    close(backbone(x[:, 4:8], state)[0], first)


@settings(deadline=None, max_examples=40)
@given(st.data())
def test_reset_equals_separate_sequences(data):
    B, T = 2, data.draw(st.integers(1, 10))
    reset = torch.tensor(data.draw(st.lists(st.lists(st.booleans(), min_size=T, max_size=T), min_size=B, max_size=B)))
    cut = data.draw(st.integers(0, T))
    x = inputs(B, T, data.draw(st.integers(0, 1000)))
    parts, state = [], None
    for lo, hi in ((0, cut), (cut, T)):
        if lo < hi:
            y, state = MODEL(x[:, lo:hi], state, reset=reset[:, lo:hi])
            parts.append(y)
    tail = inputs(B, 2, 5)
    after, _ = MODEL(tail, state)  # no more resets: the state remembers where each row began
    for b in range(B):
        edges = [0, *[t for t in range(1, T) if reset[b, t]], T]
        for lo, hi in pairwise(edges):
            alone, end = MODEL(x[b : b + 1, lo:hi])
            close(torch.cat(parts, 1)[b : b + 1, lo:hi], alone)
        close(after[b : b + 1], MODEL(tail[b : b + 1], end)[0])


def test_state_at_t_of_a_call_with_resets(backbone):
    x, tail = inputs(2, 8), inputs(2, 3, 1)
    reset = torch.zeros(2, 8, dtype=torch.bool)
    reset[0, 2] = reset[1, 5] = reset[0, 6] = True
    _, before = backbone(x[:, :4], reset=reset[:, :4])
    _, after = backbone(x[:, 4:], before, reset=reset[:, 4:])
    for t in range(1, 5):
        _, stopped = backbone(x[:, 4 : 4 + t], before, reset=reset[:, 4 : 4 + t])
        assert after.at(t).length == stopped.length
        close(backbone(tail, after.at(t))[0], backbone(tail, stopped)[0])
    close(backbone(tail, after.at(0))[0], backbone(tail, before)[0])


def test_resets_free_the_context(backbone):
    """Episodes shorter than max_length go on for ever, and what nobody sees any more is dropped."""
    state = None
    for t in range(10 * LONGEST):
        _, state = backbone(inputs(2, 1, t), state, reset=torch.tensor([[t % 7 == 0], [t % 11 == 0]]))
    assert state is not None
    assert state.kv[0].shape[1] <= LONGEST and state.length <= 11


@st.composite
def trees(draw, largest=12):
    T = draw(st.integers(1, largest))
    return [draw(st.integers(-1, i - 1)) for i in range(T)]


@settings(deadline=None, max_examples=60)
@given(trees(), st.integers(0, 4), st.integers(0, 1000), st.booleans())
def test_a_tree_equals_each_of_its_paths(parents, S, seed, with_reset):
    prefix, x, tail = inputs(2, S + 1, seed), inputs(2, len(parents), seed + 1), inputs(2, 2, seed + 2)
    reset = torch.zeros(2, S + 1, dtype=torch.bool)
    reset[1, S // 2] = with_reset  # rows whose contexts differ in length
    _, state = MODEL(prefix, reset=reset)
    y, after = MODEL(x, state, parents=np.array(parents))
    for i in range(len(parents)):
        path = [i]
        while parents[path[-1]] >= 0:
            path.append(parents[path[-1]])
        path = path[::-1]
        alone, end = MODEL(x[:, path], state)
        close(y[:, i], alone[:, -1])
        same_state(after.path(path), end)
        same_state(after.at(i + 1), end)
        close(MODEL(tail, after.path(path))[0], MODEL(tail, end)[0])
        same_state(after.path(path).at(len(path) - 1), end.at(len(path) - 1))
    same_state(after.at(0), state)
    same_state(after.path([]), state)


def test_a_tree_from_no_state(backbone):
    x = inputs(1, 3)
    y, _ = backbone(x, parents=[-1, -1, 0])
    close(y[:, 1:2], backbone(x[:, 1:2])[0])
    close(y[:, 2:], backbone(x[:, [0, 2]])[0][:, 1:])


def test_ancestors():
    assert ancestors(np.array([-1, 0, 0, 2])).astype(int).tolist() == [[1, 0, 0, 0], [1, 1, 0, 0], [1, 0, 1, 0], [1, 0, 1, 1]]


def test_select_repeats_and_reorders_rows(backbone):
    x = inputs(2, 5)
    _, state = backbone(x, reset=torch.tensor([[False] * 5, [False, False, True, False, False]]))
    y, _ = backbone(inputs(2, 3, 1), state)
    wide = state.select([1, 0, 1])
    assert wide.batch_size == 3
    close(backbone(inputs(2, 3, 1)[[1, 0, 1]], wide)[0], y[[1, 0, 1]])


def test_gradients_flow_through_the_state(backbone):
    x = inputs(1, 6).requires_grad_()
    whole, _ = backbone(x)
    (expected,) = torch.autograd.grad(whole.square().sum(), x)
    first, state = backbone(x[:, :2])
    second, _ = backbone(x[:, 2:], state)
    (split,) = torch.autograd.grad(first.square().sum() + second.square().sum(), x)
    torch.testing.assert_close(split, expected, rtol=1e-10, atol=1e-10)


def test_training_after_inference_mode():
    """Tables made under inference_mode must serve in training."""
    model = make()
    with torch.inference_mode():
        _, state = model(inputs(1, 3))
        model(inputs(1, 3), state, parents=[-1, 0, 0])
    model(inputs(1, 3))[0].sum().backward()
    assert model.gain.grad is not None


def test_float32_follows_the_weights():
    model = make().float()
    y, state = model(inputs(1, 4).float())
    assert y.dtype == state.kv[0].dtype == torch.float32
    assert torch.isfinite(model(torch.zeros(1, 4, D))[0]).all()  # a zero input has no rms to divide by


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m, s: m(torch.zeros(1, 3, D + 1)), "x must be"),
        (lambda m, s: m(torch.zeros(1, 0, D)), "x must be"),
        (lambda m, s: m(inputs(2, 1), s), "state has batch size 1"),
        (lambda m, s: m(inputs(1, 2), reset=torch.zeros(1, 3, dtype=torch.bool)), "reset must be"),
        (lambda m, s: m(inputs(1, 2), reset=torch.zeros(1, 2)), "reset must be"),
        (lambda m, s: m(inputs(1, 2), parents=[-1]), "parents must be 2 integers"),
        (lambda m, s: m(inputs(1, 2), parents=[-1.0, 0.0]), "parents must be 2 integers"),
        (lambda m, s: m(inputs(1, 2), parents=[-1, 1]), r"parents\[1\] must be in -1..0"),
        (lambda m, s: m(inputs(1, 2), parents=[-2, 0]), r"parents\[0\]"),
        (lambda m, s: m(inputs(1, 2), parents=[-1, 0], reset=torch.zeros(1, 2, dtype=torch.bool)), "reset and parents"),
        (lambda m, s: m(inputs(1, 1), m(inputs(1, 2), s, parents=[-1, -1])[1]), "pick a branch"),
        (lambda m, s: s.at(5), "t must be in 0..4"),
        (lambda m, s: s.at(-1), "t must be in 0..4"),
        (lambda m, s: m(inputs(1, 3), s, parents=[-1, 0, 0])[1].path([1, 2]), "not a path"),
        (lambda m, s: m(inputs(1, 3), s, parents=[-1, 0, 0])[1].path([0, 3]), "nodes must be"),
        (lambda m, s: Transformer(D, 1, 3, 8), "n_heads=3"),
    ],
)
def test_errors_name_the_argument(backbone, call, message):
    _, state = backbone(inputs(1, 4))
    with pytest.raises(ValueError, match=message):
        call(backbone, state)


def test_context_overflow_tells_the_lengths(backbone):
    _, state = backbone(inputs(1, LONGEST - 2))
    with pytest.raises(
        ContextOverflow, match=f"{LONGEST - 2} inputs in the state and 3 new ones exceed the context of {LONGEST}"
    ):
        backbone(inputs(1, 3), state)
    backbone(inputs(1, 6), state, parents=[-1, -1, -1, 0, 1, 2])  # six nodes, two levels: they fit
    with pytest.raises(ContextOverflow):
        backbone(inputs(1, 3), state, parents=[-1, 0, 1])
    backbone(inputs(1, 3), state, reset=torch.tensor([[False, True, False]]))
