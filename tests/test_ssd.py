"""State-space duality: the compiled loops and the products of chunks are the naive recurrence."""

import os
import subprocess
import sys
import warnings
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tdraft.kernels.ssd import _chunked_op, _recurrence_op, ssd, ssd_last, ssd_outputs, ssd_reference

SIZES = [(2, 1, 4, 3, 2, 5), (2, 7, 4, 3, 2, 5), (1, 20, 3, 2, 3, 4), (1, 150, 2, 4, 1, 3)]  # B, T, H, P, G, N
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5}


def make(B, T, H, P, G, N, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shapes = (B, T, H, P), (B, T, H), (B, T, G, N), (B, T, G, N), (B, H, P, N)
    x, log_decay, b, c, state = (torch.randn(shape, dtype=torch.float64, generator=generator) for shape in shapes)
    return [v.to(dtype) for v in (x, -log_decay.exp(), b, c, state)]


def flows(B, T):
    generator = np.random.default_rng(T)
    return {
        "chain": {},
        "every": {"every": True},
        "reset": {"reset": torch.from_numpy(generator.random((B, T)) < 0.3)},
        "reset, every": {"reset": torch.from_numpy(generator.random((B, T)) < 0.3), "every": True},
        "tree": {"parents": np.array([generator.integers(-1, i) if i else -1 for i in range(T)])},
    }


def results(run, args):
    """Outputs, and the gradients of a sum of them by each of `args`."""
    made = run(*[v.requires_grad_() for v in args])
    generator = torch.Generator().manual_seed(1)
    loss = sum((y * torch.randn(y.shape, dtype=torch.float64, generator=generator).to(y.dtype)).sum() for y in made)
    return [*made, *torch.autograd.grad(loss, args, allow_unused=True, materialize_grads=True)]


def close(ours, expected, dtype):
    for mine, right in zip(ours, expected, strict=True):
        error = (mine.double() - right.double()).abs().max() / right.abs().max().clamp(min=1e-3)
        assert error <= TOLERANCE[dtype], f"off by {error:.1e} of the largest entry of {tuple(right.shape)}"


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize("kind", flows(1, 1))
def test_it_is_the_naive_loop(kind, sizes, dtype):
    how, args = flows(*sizes[:2])[kind], make(*sizes, dtype)
    exact = [v.double() for v in args]
    expected = results(partial(ssd_reference, **how), exact)
    close(results(partial(ssd, **how), args), expected, dtype)
    with torch.no_grad():  # other ways, without states for the backward pass
        close(ssd(*args, **how), expected[:2], dtype)
    how = {name: value for name, value in how.items() if name != "every"}
    expected = results(lambda *v: ssd_reference(*v, **how)[:1], exact)
    close(results(lambda *v: (ssd_outputs(*v, **how),), args), expected, dtype)
    with torch.no_grad():
        close([ssd_outputs(*args, **how)], expected[:1], dtype)
    if kind != "tree":
        expected = results(lambda x, a, b, s: ssd_reference(x, a, b, b, s, **how)[1:], exact[:3] + exact[4:])
        close(results(lambda *v: (ssd_last(*v, **how),), args[:3] + args[4:]), expected, dtype)
        with torch.no_grad():
            close([ssd_last(*args[:3], args[4], **how)], expected[:1], dtype)


@settings(deadline=None, max_examples=15)
@given(st.data())
def test_any_split_is_the_whole(data):
    T = data.draw(st.integers(2, 140))
    args = make(1, T, 2, 3, 1, 4, seed=data.draw(st.integers(0, 99)))
    cut = data.draw(st.integers(1, T - 1))
    with torch.no_grad():
        y, last = ssd(*args)
        first, state = ssd(*(v[:, :cut] for v in args[:4]), args[4])
        second, end = ssd(*(v[:, cut:] for v in args[:4]), state)
    close([torch.cat((first, second), 1), end], [y, last], torch.float64)


def test_decays_that_leave_nothing_or_all_are_no_nan():
    """-inf, -1e4 and 0 beside each other: a difference of sums of logarithms is NaN or 0 here."""
    x, log_decay, b, c, state = make(1, 70, 2, 3, 1, 4, torch.float32)
    log_decay[:, 3::7], log_decay[:, 4::7], log_decay[:, 5::7] = -torch.inf, -1e4, 0.0
    reset = torch.zeros(1, 70, dtype=torch.bool)
    reset[:, [0, 10, 69]] = True
    for how in ({}, {"reset": reset}):
        args = [x, log_decay, b, c, state]
        expected = results(partial(ssd_reference, **how), [v.double().detach() for v in args])
        close(results(partial(ssd, **how), [v.detach() for v in args]), expected, torch.float32)


def test_gradients_are_those_of_finite_differences():
    args = [v.requires_grad_() for v in make(1, 4, 2, 2, 1, 2)]
    reset, tree = torch.tensor([[False, False, True, False]]), np.array([-1, 0, 0, -1])
    for how in ({}, {"reset": reset}, {"every": True}, {"parents": tree}):
        assert torch.autograd.gradcheck(partial(ssd, **how), args)
    assert torch.autograd.gradcheck(lambda *v: ssd_outputs(*v, parents=tree), args)


@pytest.mark.parametrize("op", [_recurrence_op, _chunked_op])
def test_operators_are_proper(op):
    x, log_decay, b, c, state = [v.requires_grad_() for v in make(2, 5, 2, 3, 1, 4)]
    reset = torch.zeros(2, 5, dtype=torch.bool)
    torch.library.opcheck(op, (x, log_decay, b, c, state, reset, None))
    torch.library.opcheck(op, (x, log_decay, b, c, state, None, torch.tensor([-1, 0, 0, 2, -1])))


@pytest.mark.parametrize("every", [False, True])
def test_it_compiles_as_one_graph(every):
    args = [v.requires_grad_() for v in make(1, 70, 2, 3, 1, 4)]
    compiled = torch.compile(lambda *v: ssd(*v, every=every), fullgraph=True, backend="aot_eager")
    close(results(compiled, args), results(lambda *v: ssd(*v, every=every), args), torch.float64)


def test_bfloat16_is_stored_and_float32_computed():
    x, log_decay, b, c, state = make(1, 70, 2, 3, 1, 4, torch.float32)
    x, b, c = x.bfloat16(), b.bfloat16(), c.bfloat16()
    y, last = ssd(x, log_decay, b, c, state)
    right, right_last = ssd(x.float(), log_decay, b.float(), c.float(), state)
    assert y.dtype == torch.bfloat16 and last.dtype == torch.float32
    assert torch.equal(y, right.bfloat16()) and torch.equal(last, right_last)


def test_another_dtype_runs_the_reference_and_says_so_once():
    args = make(1, 3, 2, 3, 1, 4, torch.float16)
    with pytest.warns(UserWarning, match="ssd has no compiled kernel for torch.float16"):
        y, _ = ssd(*args)
    assert torch.equal(y, ssd_reference(*args)[0])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ssd(*args)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.zeros(1, 0, 2, 3)}, "x must be"),
        ({"log_decay": torch.zeros(1, 3, 1)}, "log_decay must be"),
        ({"b": torch.zeros(1, 3, 3, 4)}, "b must be .* a divisor of 2"),
        ({"c": torch.zeros(1, 3, 1, 5)}, "c must be"),
        ({"c": torch.zeros(1, 3, 1, 4).double()}, "c must be torch.float32"),
        ({"state": torch.zeros(2, 2, 3, 4)}, "state must be"),
        ({"reset": torch.zeros(1, 3)}, "reset must be torch.bool"),
        ({"parents": np.array([-1, 1, 0])}, r"parents\[1\] must be in -1..0"),
        ({"parents": np.array([-1, 0])}, "parents must be"),
        ({"backend": "tpu"}, 'backend must be "reference", "numba", "cuda" or None'),
        ({"backend": "cuda"}, 'backend "cuda" cannot take tensors on cpu'),
    ],
)
def test_bad_input_is_refused(change, message):
    args = dict(zip(("x", "log_decay", "b", "c", "state"), make(1, 3, 2, 3, 1, 4, torch.float32)))
    with pytest.raises(ValueError, match=message):
        ssd(**(args | change))


SIMULATED = """
import numpy as np, torch
from tdraft.kernels import ssd_cuda, ssd_numba

B, T, H, P, G, N = 2, 4, 2, 2, 1, 3
draw = lambda *shape: torch.randn(shape, dtype=torch.float64)
x, log_decay, b, c, state = draw(B, T, H, P), -draw(B, T, H).abs(), draw(B, T, G, N), draw(B, T, G, N), draw(B, H, P, N)
grad_y, grad_states = draw(B, T, H, P), draw(B, T, H, P, N)
decay, chain = log_decay.exp(), np.arange(-1, T - 1)
decay[0, 2] = 0  # a reset
for parents in chain, np.array([-1, 0, 0, -1]):
    arrays = [v.numpy() for v in (x, decay, b, c, state)] + [parents]
    y, states = np.empty((B, T, H, P)), np.empty((B, T, H, P, N))
    ssd_cuda.launch_recurrence(*arrays, y, states)
    inputs = x, decay.log(), b, c, state, None, parents
    right = ssd_numba.recurrence(*inputs)
    np.testing.assert_allclose(y, right[0], rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(states, right[1], rtol=1e-12, atol=1e-12)
    grads = [np.zeros(v.shape) for v in (x, decay, b, c, state)]
    ssd_cuda.launch_recurrence_backward(*arrays, states, grad_y.numpy(), grad_states.numpy().copy(), *grads)
    for mine, other in zip(grads, ssd_numba.recurrence_backward(*inputs, right[1], grad_y, grad_states)):
        np.testing.assert_allclose(mine, other, rtol=1e-12, atol=1e-12)
    L, p = np.zeros((B, H, T, T)), np.empty((B, T, H))
    ssd_cuda.launch_path_decays(decay.numpy(), parents, L, p)
    for mine, other in zip((L, p), ssd_numba.path_decays(decay, parents)):
        np.testing.assert_allclose(mine, other, rtol=1e-12, atol=1e-12)
print("agrees")
"""


def test_cuda_kernels_agree_in_the_simulator():
    run = subprocess.run(
        [sys.executable, "-c", SIMULATED], env=os.environ | {"NUMBA_ENABLE_CUDASIM": "1"}, capture_output=True, text=True
    )
    assert run.returncode == 0 and run.stdout.strip() == "agrees", run.stderr


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize("kind", flows(1, 1))
def test_cuda_is_the_naive_loop(kind, sizes):
    how, args = flows(*sizes[:2])[kind], make(*sizes, torch.float32)
    expected = results(partial(ssd_reference, **how), [v.double() for v in args])
    there = how | ({"reset": how["reset"].cuda()} if "reset" in how else {})
    close([v.cpu() for v in results(lambda *v: ssd(*v, **there), [v.cuda() for v in args])], expected, torch.float32)
