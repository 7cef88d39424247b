"""diagonal_ssm: each backend is the loop, forward and backward, along sequences, with resets and along trees."""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from tdraft.kernels.diagonal_ssm import _ssm, diagonal_ssm

TREE = np.array([-1, 0, 0, -1, 2, 1, 4])
EXACT = {torch.float32: 1e-5, torch.float64: 1e-12}


def inputs(dtype, B=2, T=7, H=3, N=5, seed=0):
    """(u, A, C, state, weights of y, weights of the last state) of which |A| < 1."""
    generator = torch.Generator().manual_seed(seed)
    u, dy = (torch.randn(B, T, H, dtype=torch.float64, generator=generator).to(dtype) for _ in range(2))
    size, angle = (torch.rand(H, N, dtype=torch.float64, generator=generator) for _ in range(2))
    A = torch.polar(0.5 + 0.5 * size, 3 * angle)
    C, state, dlast = (
        torch.randn(*shape, dtype=torch.complex128, generator=generator) for shape in [(H, N), (B, H, N), (B, H, N)]
    )
    return u, *(x.to(dtype.to_complex()) for x in (A, C, state)), dy, dlast.to(dtype.to_complex())


def results(u, A, C, state, dy, dlast, **how):
    """y, the last state or all, and the gradients of a loss of both by u, A, C and state."""
    leaves = [x.detach().clone().requires_grad_() for x in (u, A, C, state)]
    y, after = diagonal_ssm(*leaves, **how)
    loss = (y * dy).sum() + (after * (dlast if after.dim() == 3 else dlast.unsqueeze(1)).conj()).real.sum()
    return [y.detach(), after.detach(), *torch.autograd.grad(loss, leaves)]


def agree(found, expected, tolerance):
    for mine, right in zip(found, expected, strict=True):
        assert mine.shape == right.shape
        assert float((mine.to(right.dtype) - right).abs().max()) <= tolerance * float(right.abs().max())


@pytest.mark.parametrize("how", ["plain", "reset", "every", "every with reset", "tree"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("backend", ["reference", "numba", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_every_backend_is_the_loop(backend, dtype, how):
    if backend == "cuda" and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    for T, H, N in [(7, 3, 5), (6, 2, 34), (1, 1, 1), (3, 2, 70)]:  # 70: more than a tile of states
        tensors = inputs(dtype, T=T, H=H, N=N)
        options = {"parents": TREE[:T]} if how == "tree" else {"every": "every" in how}
        wide = [x.to(torch.complex128 if x.is_complex() else torch.float64) for x in tensors]
        reset = {"reset": torch.rand(2, T, generator=torch.Generator().manual_seed(T)) < 0.4} if "reset" in how else {}
        device = "cuda" if backend == "cuda" else "cpu"
        there = {name: x.to(device) for name, x in reset.items()}
        found = results(*(x.to(device) for x in tensors), backend=backend, **options, **there)
        agree([x.cpu() for x in found], results(*wide, backend="reference", **options, **reset), EXACT[dtype])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_long_sequences_whose_states_are_worked_out_anew(dtype):
    for T, rate in [(300, 0.0), (271, 0.02), (64, 0.5)]:
        tensors = inputs(dtype, T=T, H=2, N=18)
        reset = None if not rate else torch.rand(2, T, generator=torch.Generator().manual_seed(T)) < rate
        wide = [x.to(torch.complex128 if x.is_complex() else torch.float64) for x in tensors]
        agree(results(*tensors, reset=reset), results(*wide, reset=reset, backend="reference"), EXACT[dtype])


def test_a_number_by_hand():
    u, A, C = torch.tensor([[[1.0], [0.0], [1.0]]]), torch.tensor([[0.5j]]), torch.tensor([[1.0 + 1.0j]])
    y, last = diagonal_ssm(u, A, C)  # x = 1, 0.5i, 0.75
    assert y.flatten().tolist() == [2.0, -1.0, 1.5] and last.item() == 0.75
    y, last = diagonal_ssm(u, A, C, torch.tensor([[[2.0 + 0.0j]]]), reset=torch.tensor([[False, True, False]]))
    assert y.flatten().tolist() == [0.0, 0.0, 2.0] and last.item() == 1.0  # x = 1 + i, 0, 1
    y, after = diagonal_ssm(u, A, C, parents=[-1, 0, 0])
    assert y.flatten().tolist() == [2.0, -1.0, 1.0] and after.flatten().tolist() == [1.0, 0.5j, 1.0 + 0.5j]


def test_a_tree_is_its_paths():
    u, A, C, state, *_ = inputs(torch.float64)
    y, after = diagonal_ssm(u, A, C, state, parents=TREE)
    for node in range(len(TREE)):
        path, parent = [node], TREE[node]
        while parent >= 0:
            path, parent = [int(parent), *path], TREE[parent]
        alone, last = diagonal_ssm(u[:, path], A, C, state)
        torch.testing.assert_close(y[:, node], alone[:, -1], rtol=1e-13, atol=1e-13)
        torch.testing.assert_close(after[:, node], last, rtol=1e-13, atol=1e-13)


def test_tensors_that_are_not_contiguous():
    u, A, C, state, dy, dlast = inputs(torch.float64)
    u = u.transpose(1, 2).contiguous().transpose(1, 2)
    agree(
        results(u, A.conj().resolve_conj().conj(), C.mT.contiguous().mT, state, dy, dlast),
        results(u, A, C, state, dy, dlast, backend="reference"),
        1e-12,
    )


def test_gradcheck():
    leaves = [x.requires_grad_() for x in inputs(torch.float64, T=4, H=2, N=2)[:4]]
    reset = torch.tensor([[False, True, False, False], [True, False, False, True]])
    for options in ({}, {"every": True}, {"reset": reset}, {"parents": [-1, 0, 0, -1]}):
        assert torch.autograd.gradcheck(lambda *xs, o=options: diagonal_ssm(*xs, **o), leaves)


def test_opcheck():
    tensors = [x.requires_grad_() for x in inputs(torch.float64)[:4]]
    reset = torch.rand(2, 7) < 0.5
    for order in [(None, None, False), (reset, None, True), (None, torch.from_numpy(TREE), True)]:
        torch.library.opcheck(_ssm, (*tensors, *order, "numba"))


def test_compiles_to_one_graph():
    *tensors, dy, _ = inputs(torch.float32)
    for options in ({}, {"reset": torch.rand(2, 7) < 0.5}, {"parents": TREE}):

        def loss(u, A, C, state, options=options):
            y, after = diagonal_ssm(u, A, C, state, **options)
            return (y * dy).sum() + after.real.sum()

        leaves = [x.clone().requires_grad_() for x in tensors]
        compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
        agree(torch.autograd.grad(compiled(*leaves), leaves), torch.autograd.grad(loss(*leaves), leaves), 1e-6)


def test_bfloat16_is_computed_in_float32():
    u, A, C, state, *_ = inputs(torch.float32, T=200)
    u = u.bfloat16().requires_grad_()
    y, last = diagonal_ssm(u, A, C, state)
    exact, exact_last = diagonal_ssm(u.detach().float(), A, C, state)
    assert y.dtype == torch.bfloat16 and torch.equal(y, exact.bfloat16()) and torch.equal(last, exact_last)
    y.sum().backward()
    assert u.grad is not None and u.grad.dtype == torch.bfloat16


def test_another_dtype_runs_in_torch_and_says_so_once():
    u, A = torch.ones(1, 3, 1, dtype=torch.float16), torch.ones(1, 1, dtype=torch.complex64)
    with pytest.warns(UserWarning, match=r"diagonal_ssm of torch\.float16 on cpu runs as a slow loop") as seen:
        for _ in range(2):
            assert diagonal_ssm(u, A, A)[0].flatten().tolist() == [2.0, 4.0, 6.0]
    assert len(seen) == 1


def test_bad_input():
    u, A, C, state, *_ = inputs(torch.float64)
    for wrong, message in [
        (lambda: diagonal_ssm(u[:, :0], A, C), r"u must be real \(B, T, H\) with T >= 1, got torch\.float64 \(2, 0, 3\)"),
        (lambda: diagonal_ssm(u + 0j, A, C), r"u must be real .* got torch\.complex128 \(2, 7, 3\)"),
        (lambda: diagonal_ssm(u, A[:2], C), r"A must be torch\.complex128 \(3, N\) as u asks, got torch\.complex128 \(2, 5\)"),
        (lambda: diagonal_ssm(u.float(), A, C), r"A must be torch\.complex64 \(3, N\) as u asks, got torch\.complex128"),
        (lambda: diagonal_ssm(u, A, C[:, 1:]), r"C must be torch\.complex128 \(3, 5\) as A is"),
        (lambda: diagonal_ssm(u, A, C, state[:1]), r"state must be torch\.complex128 \(2, 3, 5\), got .* \(1, 3, 5\)"),
        (lambda: diagonal_ssm(u, A, C, state.real), r"state must be torch\.complex128 \(2, 3, 5\), got torch\.float64"),
        (lambda: diagonal_ssm(u, A, C, reset=torch.zeros(7) > 0), r"reset must be bool \(2, 7\), got torch\.bool \(7,\)"),
        (lambda: diagonal_ssm(u, A, C, parents=[-1, 1, 0, 0, 0, 0, 0]), r"parents\[1\] must be in -1\.\.0 .*, got 1"),
        (lambda: diagonal_ssm(u, A, C, parents=[-1, 0]), r"parents must be 7 integers, one for each input"),
        (lambda: diagonal_ssm(u, A, C, backend="triton"), r'backend must be "reference", "numba", "cuda" or None'),
        (lambda: diagonal_ssm(u, A, C, backend="cuda"), r'backend "cuda" cannot take tensors on cpu'),
    ]:
        with pytest.raises(ValueError, match=message):
            wrong()


SIMULATED = """
import numpy as np, torch
from tdraft.kernels.diagonal_ssm import diagonal_ssm
from tdraft.kernels.diagonal_ssm_cuda import launch_backward, launch_backward_every, launch_forward

B, T, H, N = 2, 5, 2, 3
chain, tree = np.arange(-1, T - 1), np.array([-1, 0, 0, -1, 2])
none, some = np.zeros((B, T), bool), np.array([[0, 0, 1, 0, 0], [1, 0, 0, 1, 1]], bool)
generator = torch.Generator().manual_seed(0)
for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 1e-5)):
    for every, reset, parents in ((False, none, chain), (False, some, chain), (True, some, chain), (True, none, tree)):
        draw = lambda shape, dtype: torch.randn(shape, dtype=dtype, generator=generator)
        wide, last = dtype.to_complex(), (B, T, H, N) if every else (B, H, N)
        u, A, C, state = draw((B, T, H), dtype), draw((H, N), wide), draw((H, N), wide), draw((B, H, N), wide)
        leaves = [x.requires_grad_() for x in (u, A, C, state)]
        order = {"reset": torch.from_numpy(reset), "parents": parents if every else None}
        right = diagonal_ssm(*leaves, **order, every=every, backend="reference")
        grads = draw((B, T, H), dtype), draw(last, wide)
        expected = [x.detach() for x in right] + list(torch.autograd.grad(right, leaves, grads))
        u, A, C, state, dy, g = (x.detach().numpy().copy() for x in (*leaves, *grads))
        y, after = np.zeros_like(u), np.empty((B, T if every else 1, H, N), A.dtype)
        launch_forward(u, A, C, state, reset, parents, y, after)
        du, dA, dC, dstate = np.zeros_like(u), np.zeros_like(state), np.zeros_like(state), np.zeros_like(state)
        if every:
            launch_backward_every(dy, A, C, state, after, reset, parents, g, du, dA, dC, dstate)
        else:
            marks, states = np.empty((B, H, 3), A.dtype), np.empty((B, H, 2), A.dtype)  # chunks of two inputs
            launch_backward(dy, u, A, C, state, reset, marks, states, du, dA, dC, g)
            after, dstate = after[:, 0], g
        for mine, right in zip((y, after, du, dA.sum(0), dC.sum(0), dstate), expected):
            assert mine.shape == right.shape
            assert abs(mine - right.numpy()).max() <= tolerance * abs(right.numpy()).max()
print("agrees")
"""


def test_cuda_kernels_agree_in_the_simulator():
    run = subprocess.run(
        [sys.executable, "-c", SIMULATED], env=os.environ | {"NUMBA_ENABLE_CUDASIM": "1"}, capture_output=True, text=True
    )
    assert run.returncode == 0 and run.stdout.strip() == "agrees", run.stderr
