"""S4: any way of feeding it is the loop of its equations, and convolution is that loop too."""

import pytest
import torch
from harness import REPEATABLE, check, close, gradients, plays
from hypothesis import given, settings

from tdraft.models.backbones import make_backbone
from tdraft.models.backbones.s4 import untruncated


def system(layer):
    """A_bar (D, N, N), B_bar and C (D, N) of all N states, by dense matrices."""
    Lambda = torch.complex(-layer.log_Lambda_real.exp(), layer.Lambda_imag)
    P, B, C = (torch.view_as_complex(v) for v in (layer.P, layer.B, layer.C))
    Lambda, P, B, C = (torch.cat((v, v.conj()), 1) for v in (Lambda, P, B, C))
    A, one = Lambda.diag_embed() - P.unsqueeze(2) * P.conj().unsqueeze(1), torch.eye(P.shape[1], dtype=P.dtype)
    dt = layer.log_step.exp()
    left = one - dt.unsqueeze(2) / 2 * A
    A_bar = torch.linalg.solve(left, one + dt.unsqueeze(2) / 2 * A)
    B_bar = torch.linalg.solve(left, dt * B)
    rest = one - torch.linalg.matrix_power(A_bar, layer.length)
    return A_bar, B_bar, torch.linalg.solve(rest.mT, C)


def naive(model, x):
    """(T, D) -> (T, D), one input at a time."""
    for layer in model.layers:
        A_bar, B_bar, C = system(layer)
        state, y = torch.zeros_like(B_bar), []
        for x_t in x:
            u = x_t / (x_t.square().mean() + 1e-5).sqrt() * layer.norm.gain
            state = (A_bar @ state.unsqueeze(2)).squeeze(2) + B_bar * u.unsqueeze(1)
            out = (C * state).sum(1).real + layer.D * u
            out = out * 0.5 * (1 + torch.erf(out / 2**0.5))
            value, gate = (layer.glu.weight @ out + layer.glu.bias).chunk(2)
            y.append(x_t + value * torch.sigmoid(gate))
        x = torch.stack(y)
    return x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt() * model.norm.gain


def make(**sizes):
    return make_backbone(
        "s4", **{"d_model": 3, "n_layers": 2, "d_state": 6, "generator": torch.Generator().manual_seed(0), **sizes}
    )


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@settings(REPEATABLE, max_examples=12)
@given(play=plays())
def test_any_way_is_the_naive_loop(play, dtype):
    check(make(length=9), naive, play, dtype)  # pieces are shorter and longer than half of it, so both ways are played


def relative(x, right):
    return float((x - right).detach().abs().max() / right.detach().abs().max())


@pytest.mark.parametrize("length", [200, 201, 150])  # even: a root is -1; and sequences longer than it
def test_both_forms_are_the_naive_loop(length):
    model = make(n_layers=1, length=length).double()
    x = torch.randn(1, 200, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    weights = torch.randn_like(x)
    right = naive(model, x[0])
    expected = gradients(model, x.requires_grad_(), naive(model, x[0]).unsqueeze(0), weights)
    for convolution in (True, False):
        model.layers[0].convolution = convolution
        y = model(x)[0]
        close("outputs", y[0], right, torch.float64)
        for (name, mine), exact in zip(gradients(model, x, y, weights).items(), expected.values()):
            close(name, mine, exact, torch.float64)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_convolution_and_recurrence_agree_from_a_state_on(dtype):
    """A real layer's states and smallest steps, whose memory is longest: outputs, last states, and gradients of both."""
    model = make(d_model=4, n_layers=1, d_state=64, length=512, dt_min=1e-3, dt_max=1e-2).to(dtype)
    layer, generator = model.layers[0], torch.Generator().manual_seed(1)
    x, tail = (torch.randn(2, T, 4, dtype=torch.float64, generator=generator).to(dtype).requires_grad_() for T in (512, 300))
    weights = [torch.randn(2, T, 4, dtype=torch.float64, generator=generator).to(dtype) for T in (512, 300)]
    by_state = torch.randn(2, 4, 32, dtype=torch.complex128, generator=generator)
    found = []
    for convolution in (True, False):
        layer.convolution = convolution
        y, state = model(x)
        z, after = model(tail, state)
        (memory,) = after.memories()[0]
        loss = (weights[0] * y).sum().double() + (weights[1] * z).sum().double() + (by_state * memory).real.sum()
        found.append([y, z, memory, *torch.autograd.grad(loss, [x, tail, *model.parameters()])])
    for ours, right in zip(*found):
        assert relative(ours, right) <= (1e-12 if dtype == torch.float64 else 1e-5)


def test_step_by_step_is_the_sequence_in_float32():
    model = make(d_model=4, n_layers=1, d_state=64, length=512, dt_min=1e-3, dt_max=1e-2)
    x = torch.randn(1, 512, 4, generator=torch.Generator().manual_seed(1))
    y, _ = model(x)
    state, steps = None, []
    with torch.no_grad():
        for t in range(512):
            out, state = model(x[:, t : t + 1], state)
            steps.append(out)
    assert relative(torch.cat(steps, 1), y) <= 1e-5


def test_C_solves_the_dense_equation():
    for length in (1, 2, 31, 64):
        layer = make(length=length).double().layers[0]
        assert relative(untruncated(layer.continuous(), length), system(layer)[2][:, :3]) < 1e-11


def test_channels_in_pieces_are_all_channels(monkeypatch):
    model = make(d_model=5, n_layers=1, length=16).double()
    x, weights = torch.randn(2, 2, 16, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    for convolution in (True, False):
        model.layers[0].convolution = convolution
        found = []
        for room in (1 << 20, 100):
            monkeypatch.setattr("tdraft.models.backbones.s4.ROOM", room)
            y, _ = model(x)
            found.append([y, *torch.autograd.grad((y * weights).sum(), list(model.parameters()))])
        for ours, right in zip(*found):
            assert relative(ours, right) <= 1e-13


def test_kept_constants_follow_the_parameters():
    model, x = make(), torch.randn(1, 3, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def train():
        model(torch.ones(1, 3, 3))[0].sum().backward()
        optimizer.step()

    for change in (
        train,
        lambda: model.load_state_dict(make(generator=torch.Generator().manual_seed(5)).state_dict()),
        lambda: model.double(),
    ):
        with torch.no_grad():
            before = model(x)[0]
        change()
        x = x.to(next(model.parameters()).dtype)
        with torch.no_grad():
            assert not torch.equal(model(x)[0], before)
            close("outputs", model(x)[0][0], naive(model, x[0]), torch.float32)


def test_it_compiles_whole():
    model, x = make(length=100).double(), torch.randn(2, 90, 3, dtype=torch.float64)
    for T in (5, 90):  # by the recurrence, by convolution
        compiled = torch.compile(lambda x: model(x)[0], fullgraph=True, backend="aot_eager")
        assert relative(compiled(x[:, :T]), model(x[:, :T])[0]) <= 1e-13


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"d_state": 5}, "d_state must be even and at least 2, .* got 5"),
        ({"length": 0}, "length must be at least 1, got 0"),
        ({"dt_min": 0.1, "dt_max": 0.01}, "dt_min and dt_max must be 0 < dt_min <= dt_max, got 0.1 and 0.01"),
    ],
)
def test_sizes_that_cannot_be(sizes, message):
    with pytest.raises(ValueError, match=message):
        make(**sizes)


def test_what_does_not_fit_is_named():
    model, x = make(), torch.zeros(2, 4, 3)
    for state, message in [
        (make_backbone("gru", d_model=3, n_layers=2).initial_state(2), "state must be of S4"),
        (make().double().initial_state(2), "state must be of S4.*float32"),
        (model.initial_state(3), "state has batch size 3 but x has 2"),
    ]:
        with pytest.raises(ValueError, match=message):
            model(x, state)
    with pytest.raises(ValueError, match="parents"):
        model(x, parents=[-1, 1, 0, 0])
