"""linear_scan: each backend is the loop, forward and backward, along sequences, with resets and along trees."""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from tdraft.kernels.linear_scan import _scan, linear_scan

TREE = np.array([-1, 0, 0, -1, 2, 1, 4])
DTYPES = [torch.float32, torch.float64, torch.complex64, torch.complex128]
EXACT = {torch.float32: 1e-5, torch.float64: 1e-12, torch.complex64: 1e-5, torch.complex128: 1e-12}
WIDE = {torch.float32: torch.float64, torch.complex64: torch.complex128}


def inputs(dtype, varying=False, B=2, T=7, D=5, seed=0):
    """(a, b, state, weights of the states in a loss)."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, dtype=WIDE.get(dtype, dtype), generator=generator).to(dtype)

    return normal(*((B, T, D) if varying else (D,))) * 0.9, normal(B, T, D), normal(B, D), normal(B, T, D)


def results(a, b, state, weights, **how):
    """States, last state and the gradients of a loss of both by a, b and state."""
    leaves = [x.detach().clone().requires_grad_() for x in (a, b, state)]
    h, last = linear_scan(*leaves, **how)
    loss = (h * weights.conj()).real.sum() + 2 * (last * weights[:, 0].conj()).real.sum()
    return [h.detach(), last.detach(), *torch.autograd.grad(loss, leaves)]


def agree(found, expected, tolerance):
    for mine, right in zip(found, expected, strict=True):
        assert mine.shape == right.shape
        assert float((mine.to(right.dtype) - right).abs().max()) <= tolerance * float(right.abs().max())


@pytest.mark.parametrize("how", ["plain", "reset", "tree"])
@pytest.mark.parametrize("varying", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("backend", ["reference", "numba", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_every_backend_is_the_loop(backend, dtype, varying, how):
    if backend == "cuda" and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    for T, D in [(7, 5), (7, 37), (1, 3)]:
        tensors = inputs(dtype, varying, T=T, D=D)
        options = {"plain": {}, "reset": {"reset": torch.rand(2, T) < 0.4}, "tree": {"parents": TREE[:T]}}[how]
        wide = [x.to(WIDE.get(dtype, dtype)) for x in tensors]
        device = "cuda" if backend == "cuda" else "cpu"
        there = {name: x.to(device) if isinstance(x, torch.Tensor) else x for name, x in options.items()}
        found = results(*(x.to(device) for x in tensors), backend=backend, **there)
        agree([x.cpu() for x in found], results(*wide, backend="reference", **options), EXACT[dtype])


def test_a_number_by_hand():
    h, last = linear_scan(torch.tensor([2.0]), torch.tensor([[[1.0], [1.0], [5.0]]]), torch.tensor([[10.0]]))
    assert h.flatten().tolist() == [21.0, 43.0, 91.0] and last.item() == 91.0
    h, _ = linear_scan(torch.tensor([2.0]), torch.tensor([[[1.0], [1.0], [5.0]]]), reset=torch.tensor([[False, False, True]]))
    assert h.flatten().tolist() == [1.0, 3.0, 5.0]
    h, _ = linear_scan(torch.tensor([2.0]), torch.tensor([[[1.0], [1.0], [5.0]]]), parents=[-1, -1, 0])
    assert h.flatten().tolist() == [1.0, 1.0, 7.0]


def test_a_tree_is_its_paths():
    a, b, state, _ = inputs(torch.complex128)
    h, _ = linear_scan(a, b, state, parents=TREE)
    for node in range(len(TREE)):
        path, parent = [node], TREE[node]
        while parent >= 0:
            path, parent = [int(parent), *path], TREE[parent]
        torch.testing.assert_close(h[:, node], linear_scan(a, b[:, path], state)[1], rtol=1e-13, atol=1e-13)


def test_a_long_sequence_and_tensors_that_are_not_contiguous():
    a, b, state, weights = inputs(torch.complex128, T=300, D=6)
    options = {"reset": torch.rand(2, 300) < 0.02}
    shuffled = b.transpose(1, 2).contiguous().transpose(1, 2)
    agree(
        results(a.conj().resolve_conj().conj(), shuffled, state, weights, **options),
        results(a, b, state, weights, backend="reference", **options),
        1e-12,
    )


@pytest.mark.parametrize("varying", [False, True])
def test_gradcheck(varying):
    for dtype in (torch.float64, torch.complex128):
        leaves = [x.requires_grad_() for x in inputs(dtype, varying, T=4, D=2)[:3]]
        assert torch.autograd.gradcheck(linear_scan, leaves)
        assert torch.autograd.gradcheck(lambda a, b, s: linear_scan(a, b, s, parents=[-1, 0, 0, -1]), leaves)
        reset = torch.tensor([[False, True, False, False], [True, False, False, True]])
        assert torch.autograd.gradcheck(lambda a, b, s, r=reset: linear_scan(a, b, s, reset=r), leaves)


def test_opcheck():
    a, b, state, _ = (x.requires_grad_() for x in inputs(torch.complex128))
    reset = torch.rand(2, 7) < 0.5
    for order in [(None, None), (reset, None), (None, torch.from_numpy(TREE))]:
        torch.library.opcheck(_scan, (a, b, state, *order, "numba"))


def test_compiles_to_one_graph():
    a, b, state, weights = inputs(torch.complex64)
    for options in ({}, {"reset": torch.rand(2, 7) < 0.5}, {"parents": TREE}):

        def loss(a, b, state, options=options):
            h, last = linear_scan(a, b, state, **options)
            return (h * weights.conj()).real.sum() + last.real.sum()

        leaves = [x.clone().requires_grad_() for x in (a, b, state)]
        compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
        agree(
            torch.autograd.grad(compiled(*leaves), leaves),
            torch.autograd.grad(loss(*leaves), leaves),
            1e-6,
        )


def test_bfloat16_is_computed_in_float32():
    a, b, state, _ = (x.bfloat16() for x in inputs(torch.float32, T=200))
    h, last = linear_scan(a, b, state.float())
    assert h.dtype == last.dtype == torch.float32
    torch.testing.assert_close(h, linear_scan(a.double(), b.double(), state.double())[0].float(), rtol=1e-5, atol=1e-5)
    b.requires_grad_()
    linear_scan(a, b, state.float())[0].sum().backward()
    assert b.grad is not None and b.grad.dtype == torch.bfloat16


def test_another_dtype_runs_in_torch_and_says_so_once():
    a, b = torch.ones(2, dtype=torch.float16), torch.ones(1, 3, 2, dtype=torch.float16)
    with pytest.warns(UserWarning, match=r"linear_scan of torch\.float16 on cpu runs as a slow loop") as seen:
        for _ in range(2):
            assert linear_scan(a, b)[1].tolist() == [[3.0, 3.0]]
    assert len(seen) == 1


def test_bad_input():
    a, b, state, _ = inputs(torch.float64)
    for wrong, message in [
        (lambda: linear_scan(a, b[:, :0]), r"b must be \(B, T, D\) with T >= 1, got \(2, 0, 5\)"),
        (lambda: linear_scan(a[:4], b), r"a must be \(5,\) or \(2, 7, 5\) as b asks, got \(4,\)"),
        (lambda: linear_scan(a.float(), b), r"a must be torch\.float64 as b is, got torch\.float32"),
        (lambda: linear_scan(a, b, state[:1]), r"state must be torch\.float64 \(2, 5\), got torch\.float64 \(1, 5\)"),
        (lambda: linear_scan(a, b, state.float()), r"state must be torch\.float64 \(2, 5\), got torch\.float32 \(2, 5\)"),
        (lambda: linear_scan(a, b, reset=torch.zeros(2, 6) > 0), r"reset must be bool \(2, 7\), got torch\.bool \(2, 6\)"),
        (lambda: linear_scan(a, b, parents=[-1, 1, 0, 0, 0, 0, 0]), r"parents\[1\] must be in -1\.\.0 .*, got 1"),
        (lambda: linear_scan(a, b, parents=[-1, 0]), r"parents must be 7 integers, one for each input"),
        (lambda: linear_scan(a, b, backend="triton"), r'backend must be "reference", "numba", "cuda" or None'),
        (lambda: linear_scan(a, b, backend="cuda"), r'backend "cuda" cannot take tensors on cpu'),
    ]:
        with pytest.raises(ValueError, match=message):
            wrong()


SIMULATED = """
import numpy as np, torch
from tdraft.kernels.linear_scan import linear_scan
from tdraft.kernels.linear_scan_cuda import launch_backward, launch_forward

chain, tree = np.arange(-1, 4), np.array([-1, 0, 0, -1, 2])
none, some = np.zeros((2, 5), bool), np.array([[0, 0, 1, 0, 0], [1, 0, 0, 1, 1]], bool)
generator = torch.Generator().manual_seed(0)
for dtype in (torch.float64, torch.complex64):
    tolerance = 1e-12 if dtype == torch.float64 else 1e-5
    for shape in ((3,), (2, 5, 3)):
        for reset, parents in ((none, chain), (some, chain), (none, tree)):
            a, b, state, grad = (torch.randn(s, dtype=dtype, generator=generator) for s in (shape, (2, 5, 3), (2, 3), (2, 5, 3)))
            leaves = [x.requires_grad_() for x in (a, b, state)]
            right = linear_scan(*leaves, reset=torch.from_numpy(reset), parents=parents, backend="reference")[0]
            expected = [right.detach(), *torch.autograd.grad(right, leaves, grad)]
            a, b, state = (x.detach().numpy() for x in leaves)
            a, h = a.reshape((1, 1, 3) if a.ndim == 1 else a.shape), np.empty_like(b)
            launch_forward(a, b, state, reset, parents, h)
            da, db, dstate = np.zeros((2, 1 if len(shape) == 1 else 5, 3), a.dtype), grad.numpy().copy(), np.zeros_like(state)
            launch_backward(a, h, state, reset, parents, da, db, dstate)
            da = da.sum((0, 1)) if len(shape) == 1 else da
            for mine, right in zip((h, da, db, dstate), expected):
                assert abs(mine - right.numpy()).max() <= tolerance * abs(right.numpy()).max()
print("agrees")
"""


def test_cuda_kernels_agree_in_the_simulator():
    run = subprocess.run(
        [sys.executable, "-c", SIMULATED], env=os.environ | {"NUMBA_ENABLE_CUDASIM": "1"}, capture_output=True, text=True
    )
    assert run.returncode == 0 and run.stdout.strip() == "agrees", run.stderr
