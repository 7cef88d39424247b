"""The selective scan: reference, Numba and CUDA agree in outputs, states and all gradients, along sequences and trees."""

import os
import subprocess
import sys
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tdraft.kernels.selective_scan import _scan, selective_scan, selective_scan_reference

TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5}


def inputs(B, T, W, N, dtype=torch.float64, seed=0):
    """u, dt, A, B, C, D and the initial state."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    dt = torch.nn.functional.softplus(normal(B, T, W) - 1)
    return [normal(B, T, W), dt, -torch.exp(0.5 * normal(W, N)), normal(B, T, N), normal(B, T, N), normal(W), normal(B, N, W)]


def tree(T, seed):
    draw = np.random.default_rng(seed)
    return np.array([draw.integers(-1, i) for i in range(T)])


def outcome(tensors, weights_of, **options):
    """y, after, and the gradients of all inputs of a weighted sum of both."""
    tensors = [x.detach().requires_grad_() for x in tensors]
    y, after = selective_scan(*tensors, **options)
    generator = torch.Generator().manual_seed(weights_of)
    loss = sum((x * torch.randn(x.shape, generator=generator, dtype=torch.float64).to(x.dtype)).sum() for x in (y, after))
    return [y.detach(), after.detach(), *torch.autograd.grad(loss, tensors)]


def assert_close(ours, expected, tolerance):
    """Relative to the largest entry of all that is compared: a gradient of one entry can be terms a hundred times larger that
    cancel, and the reference in float32 is then as far off.
    """
    largest = max(float(right.abs().max()) for right in expected)
    for x, right in zip(ours, expected):
        assert (x.double() - right).abs().max() <= tolerance * largest


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@settings(deadline=None, max_examples=20)
@given(data=st.data())
def test_numba_is_the_reference(dtype, data):
    B, T = data.draw(st.integers(1, 2)), data.draw(st.integers(1, 40))
    W, N = data.draw(st.sampled_from([1, 3, 64, 70])), data.draw(st.integers(1, 5))
    seed, kind = data.draw(st.integers(0, 10**6)), data.draw(st.sampled_from(["plain", "reset", "every", "tree"]))
    tensors = inputs(B, T, W, N, dtype, seed)
    options = {}
    if kind in ("reset", "every"):
        options["reset"] = torch.rand(B, T, generator=torch.Generator().manual_seed(seed)) < 0.2
    if kind == "every":
        options["every"] = True
    if kind == "tree":
        options["parents"] = tree(T, seed)
    ours = outcome(tensors, seed, **options)
    assert_close(ours, outcome([x.double() for x in tensors], seed, **options, backend="reference"), TOLERANCE[dtype])
    with torch.no_grad():
        assert all(torch.equal(x, y) for x, y in zip(ours, selective_scan(*tensors, **options)))


@pytest.mark.parametrize("output", ["y", "after"])
@pytest.mark.parametrize("parents", [None, tree(20, 0)])
def test_gradients_of_one_output_alone(output, parents):
    found = []
    for backend in ("numba", "reference"):
        tensors = [x.requires_grad_() for x in inputs(2, 20, 3, 4)]
        y, after = selective_scan(*tensors, parents=parents, backend=backend)
        loss = (y if output == "y" else after).square().sum()
        grads = torch.autograd.grad(loss, tensors, allow_unused=True)
        found.append([torch.zeros_like(x) if grad is None else grad for x, grad in zip(tensors, grads)])
    assert_close(*found, 1e-12)


def test_a_long_sequence_with_strong_decays():
    """Decays that vanish, and more inputs than one chunk."""
    tensors = inputs(1, 300, 20, 4, torch.float32)
    tensors[1] = tensors[1] * 30
    assert_close(outcome(tensors, 0), outcome([x.double() for x in tensors], 0, backend="reference"), 1e-5)


def test_the_reference_by_hand():
    """dt A = log(1/2) halves the state; u = 2, B = 3, C = 5, D = 7."""
    u, B, C = (torch.full((1, 2, 1), x) for x in (2.0, 3.0, 5.0))
    dt, A = torch.ones(1, 2, 1), torch.full((1, 1), -np.log(2.0))
    y, states = selective_scan_reference(u, dt, A.float(), B, C, torch.tensor([7.0]), torch.full((1, 1, 1), 8.0))
    assert torch.allclose(states.flatten(), torch.tensor([4.0 + 6, 5.0 + 6]))
    assert torch.allclose(y.flatten(), torch.tensor([5 * 10.0 + 14, 5 * 11.0 + 14]))


def test_a_reset_forgets_even_infinite_states():
    tensors = inputs(1, 3, 5, 2)
    reset = torch.tensor([[True, False, False]])
    fresh, _ = selective_scan(*tensors[:-1])
    y, _ = selective_scan(*tensors[:-1], torch.full((1, 2, 5), torch.inf, dtype=torch.float64), reset=reset)
    assert torch.equal(y, fresh)


def test_half_precisions_are_computed_in_float32():
    tensors = [x.bfloat16() for x in inputs(2, 9, 6, 3)[:-1]]
    y, after = selective_scan(*tensors)
    expected, state = selective_scan(*(x.float() for x in tensors))
    assert y.dtype == torch.bfloat16 and torch.equal(y, expected.bfloat16()) and torch.equal(after, state)
    half = [x.half() for x in tensors]
    with pytest.warns(UserWarning, match="selective_scan of torch.float16 on cpu runs as a slow loop"):
        y, after = selective_scan(*half)
    assert y.dtype == torch.float16 and after.dtype == torch.float32
    with warnings.catch_warnings():  # and says so once
        warnings.simplefilter("error")
        selective_scan(*half)


def test_gradcheck_opcheck_and_compile():
    tensors = [x.requires_grad_() for x in inputs(2, 5, 3, 2)]
    reset = torch.tensor([[False, True, False, False, False], [False] * 5])
    assert torch.autograd.gradcheck(lambda *x: selective_scan(*x, reset=reset), tensors)
    assert torch.autograd.gradcheck(lambda *x: selective_scan(*x, parents=tree(5, 1)), tensors)
    torch.library.opcheck(_scan, (*tensors, reset, None, "numba"))
    torch.library.opcheck(_scan, (*tensors, None, torch.tensor([-1, 0, 0, 2, -1]), "numba"))

    def both(*x):
        y, after = selective_scan(*x, reset=reset)
        return y.sum() + after.sum()

    compiled = torch.compile(both, fullgraph=True, backend="aot_eager")
    assert_close(torch.autograd.grad(compiled(*tensors), tensors), torch.autograd.grad(both(*tensors), tensors), 1e-12)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({0: torch.zeros(2, 0, 3)}, r"u must be \(B, T, W\) of floats with T >= 1"),
        ({1: torch.zeros(2, 4, 3)}, r"dt must be torch.float32 \(2, 5, 3\), got torch.float32 \(2, 4, 3\)"),
        ({1: torch.zeros(2, 5, 3).double()}, "dt must be torch.float32"),
        ({2: torch.zeros(4, 2)}, r"A must be \(3, N\)"),
        ({3: torch.zeros(2, 5, 3)}, r"B must be torch.float32 \(2, 5, 2\)"),
        ({4: torch.zeros(1, 5, 2)}, r"C must be torch.float32 \(2, 5, 2\)"),
        ({5: torch.zeros(2)}, r"D must be \(3,\)"),
        ({6: torch.zeros(2, 3, 2)}, r"state must be torch.float32 \(2, 2, 3\)"),
        ({"reset": torch.zeros(2, 5)}, "reset must be bool"),
        ({"parents": np.array([-1, 0, 1, 3, 0])}, r"parents\[3\] must be in -1..2"),
        ({"parents": np.array([-1, 0])}, "parents must be 5 integers"),
        ({"backend": "triton"}, 'backend must be "reference"'),
        ({"backend": "cuda"}, 'backend "cuda" cannot take tensors on cpu'),
    ],
)
def test_bad_input_is_named(change, message):
    tensors = inputs(2, 5, 3, 2, torch.float32)
    for place in [key for key in change if isinstance(key, int)]:
        tensors[place] = change[place]
    with pytest.raises(ValueError, match=message):
        selective_scan(*tensors, **{key: value for key, value in change.items() if isinstance(key, str)})


SIMULATED = """
import numpy as np, torch
from tdraft.kernels import selective_scan_cuda as cuda
from test_selective_scan import inputs, outcome, tree
B, T, W, N = 2, 18, 2, 1
for parents in (None, tree(T, 3)):
    tensors = inputs(B, T, W, N)
    u, dt, A, *rest = (x.numpy() for x in tensors)
    arrays = (u, dt, np.ascontiguousarray(A.T), *rest)
    reset = None if parents is not None else torch.rand(B, T, generator=torch.Generator().manual_seed(0)) < 0.2
    y, after, *gradients = outcome(tensors, 0, reset=reset, parents=parents, every=True, backend="reference")
    order = (np.zeros((B, T), bool) if reset is None else reset.numpy(), np.arange(-1, T - 1) if parents is None else parents)
    found, states, no_marks = np.zeros(y.shape), np.zeros(after.shape), np.zeros((B, 0, N, W))
    cuda.launch_forward(*arrays, *order, found, states, no_marks)
    assert np.allclose(found, y, rtol=1e-12, atol=1e-12) and np.allclose(states, after, rtol=1e-12, atol=1e-12)
    if parents is None:
        last, marks = np.zeros((B, 1, N, W)), np.zeros((B, 2, N, W))
        cuda.launch_forward(*arrays, *order, found, last, marks)
        assert np.array_equal(last[:, 0], states[:, -1]) and np.array_equal(marks[:, 1], states[:, 15])
        assert np.array_equal(marks[:, 0], arrays[-1])
    generator = torch.Generator().manual_seed(0)
    gy, gafter = (torch.randn(x.shape, generator=generator, dtype=torch.float64).numpy() for x in (y, after))
    made = [np.zeros(x.shape) for x in arrays]
    cuda.launch_backward(gy, gafter, *arrays, *order, states, *made)
    made[2] = made[2].T
    for ours, right in zip(made, gradients):
        assert np.allclose(ours, right, rtol=1e-10, atol=1e-11)
print("agree")
"""


def test_cuda_in_the_simulator():
    paths = os.pathsep.join([os.path.dirname(__file__), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "NUMBA_ENABLE_CUDASIM": "1", "PYTHONPATH": paths}
    run = subprocess.run([sys.executable, "-c", SIMULATED], env=environment, capture_output=True, text=True)
    assert run.stdout == "agree\n", run.stderr[-2000:]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("parents", [None, tree(40, 0)])
def test_cuda_on_a_device(parents):
    tensors = inputs(2, 40, 70, 5, torch.float32)
    expected = outcome([x.double() for x in tensors], 0, parents=parents, backend="reference")
    ours = outcome([x.cuda() for x in tensors], 0, parents=parents)
    assert_close([x.cpu() for x in ours], expected, 1e-5)
