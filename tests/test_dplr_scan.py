"""`dplr_scan`: the compiled kernels are the reference, on chains, resets and trees, forward and backward."""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from tdraft.kernels.dplr_scan import _dplr_scan, dplr_scan

TREE = np.array([-1, 0, 0, -1, 2, 1, 4])


def drawn(B=2, T=7, D=3, M=3, stored=torch.float64, exact=torch.complex128, seed=0):
    """u, a, p, w, b, c and state, with |a| < 0.9 and a small low rank, so that states stay of the order of one."""
    rng = np.random.default_rng(seed)
    complex_normal = lambda *shape: torch.from_numpy(rng.normal(size=shape) + 1j * rng.normal(size=shape))  # noqa: E731
    a = torch.polar(torch.from_numpy(0.9 * rng.random((D, M))), torch.from_numpy(6 * rng.random((D, M))))
    p, w, b, c = (scale * complex_normal(D, M) for scale in (0.1 / M, 0.3, 0.5, 0.5))
    u = torch.from_numpy(rng.normal(size=(B, T, D)))
    return [x.requires_grad_() for x in (u.to(stored), *(z.to(exact) for z in (a, p, w, b, c, complex_normal(B, D, M))))]


def resets(B, T):
    return torch.from_numpy(np.random.default_rng(1).random((B, T)) < 0.3)


def results(inputs, weights, **flow):
    """y, the states, and the gradients of a random weighting of both by all inputs."""
    y, after = dplr_scan(*inputs, **flow)
    by_y, by_after = (w.reshape(x.shape) for w, x in zip(weights, (y, after)))
    loss = (y * by_y).double().sum() + (after * by_after.conj()).real.sum()
    return [y, after, *torch.autograd.grad(loss, inputs)]


def agree(ours, right, tolerance):
    names = ("y", "after", "u", "a", "p", "w", "b", "c", "state")
    for name, x, z in zip(names, ours, right):
        error, largest = float((x - z).detach().abs().max()), float(z.detach().abs().max())
        assert x.dtype == z.dtype and x.shape == z.shape and error <= tolerance * largest, (name, error, largest)


@pytest.mark.parametrize(
    ("stored", "exact", "tolerance"),
    [(torch.float64, torch.complex128, 1e-12), (torch.float32, torch.complex64, 1e-5), (torch.float32, torch.complex128, 1e-7)],
)
@pytest.mark.parametrize(
    ("T", "M", "flow"),
    [
        (70, 3, {}),  # more than two chunks of the backward pass
        (64, 17, {"reset": resets(2, 64)}),  # more than a vector of lanes
        (1, 4, {}),
        (40, 4, {"every": True, "reset": resets(2, 40)}),
        (7, 3, {"parents": TREE}),
        (7, 3, {"parents": TREE, "reset": resets(2, 7)}),
    ],
)
def test_numba_is_the_reference(T, M, flow, stored, exact, tolerance):
    inputs = drawn(T=T, M=M, stored=stored, exact=exact)
    many = flow.get("every", False) or "parents" in flow
    generator = torch.Generator().manual_seed(2)
    weights = torch.randn(2, T, 3, generator=generator), torch.randn(2, T if many else 1, 3, M, dtype=exact, generator=generator)
    right = results(inputs, weights, backend="reference", **flow)
    agree(results(inputs, weights, backend="numba", **flow), right, tolerance)
    with torch.no_grad():
        agree(dplr_scan(*inputs, **flow), right, tolerance)


def test_the_matrix_is_a_diagonal_and_a_rank_of_one():
    """One step in all 2M numbers, by a dense matrix."""
    u, a, p, w, b, c, state = (x.detach() for x in drawn(B=1, T=1, D=1))
    a, p, w, b, c = (torch.cat((x[0], x[0].conj())) for x in (a, p, w, b, c))
    after = (torch.diag(a) + torch.outer(p, w)) @ torch.cat((state[0, 0], state[0, 0].conj())) + b * u[0, 0, 0]
    y, found = dplr_scan(u, *(x[None, :3] for x in (a, p, w, b, c)), state)
    torch.testing.assert_close(found[0, 0], after[:3], rtol=1e-13, atol=0)
    torch.testing.assert_close(y[0, 0, 0], (c @ after).real, rtol=1e-13, atol=1e-13)


def test_every_state_is_that_of_a_shorter_call():
    inputs = [x.detach() for x in drawn()]
    _, states = dplr_scan(*inputs, reset=resets(2, 7), every=True)
    for t in range(1, 8):
        _, after = dplr_scan(inputs[0][:, :t], *inputs[1:], reset=resets(2, 7)[:, :t])
        torch.testing.assert_close(states[:, t - 1], after, rtol=1e-14, atol=1e-14)


def test_a_reset_forgets_nan():
    u, *rest, state = (x.detach() for x in drawn())
    for backend in ("numba", "reference"):
        y, _ = dplr_scan(u, *rest, state * torch.nan, reset=torch.ones(2, 7, dtype=torch.bool), backend=backend)
        assert y.isfinite().all()


def test_bfloat16_is_stored_and_float32_is_computed():
    inputs = [x.detach() for x in drawn(stored=torch.bfloat16, exact=torch.complex64)]
    y, after = dplr_scan(*inputs)
    right, state = dplr_scan(inputs[0].float(), *inputs[1:])
    assert y.dtype == torch.bfloat16 and torch.equal(y, right.bfloat16()) and torch.equal(after, state)


def test_an_unknown_dtype_runs_the_reference_and_says_so_once():
    inputs = [x.detach() for x in drawn(stored=torch.float16, exact=torch.complex64)]
    with pytest.warns(UserWarning, match=r"dplr_scan has no compiled kernel for torch\.float16"):
        y, _ = dplr_scan(*inputs)
    right, _ = dplr_scan(inputs[0].float(), *inputs[1:])
    assert y.dtype == torch.float16 and float((y - right).abs().max()) < 1e-2


@pytest.mark.parametrize("flow", [{"reset": resets(1, 4)}, {"parents": TREE[:4]}])
def test_gradcheck(flow):
    inputs = drawn(B=1, T=4, D=2, M=2)
    assert torch.autograd.gradcheck(lambda *x: dplr_scan(*x, **flow), inputs)


@pytest.mark.parametrize(("reset", "tree", "every"), [(None, None, False), (resets(2, 7), None, False), (None, TREE, True)])
def test_opcheck(reset, tree, every):
    u, *rest = drawn()
    tree = None if tree is None else torch.from_numpy(tree)
    torch.library.opcheck(_dplr_scan, (u.detach().mT.contiguous().requires_grad_(), *rest, reset, tree, every))


def test_it_compiles_whole():
    inputs = drawn()
    flow = {"reset": resets(2, 7)}
    compiled = torch.compile(lambda *x: dplr_scan(*x, **flow), fullgraph=True, backend="aot_eager")
    weights = torch.ones(2, 7, 3), torch.ones(2, 1, 3, 3, dtype=torch.complex128)
    right = results(inputs, weights, **flow)
    y, after = compiled(*inputs)
    agree([y, after, *torch.autograd.grad(y.sum() + after.real.sum(), inputs)], right, 1e-13)


def test_what_does_not_fit_is_named():
    u, a, p, w, b, c, state = (x.detach() for x in drawn())
    rest = (p, w, b, c)
    for wrong, message in [
        (lambda: dplr_scan(u[:, :0], a, *rest), r"u must be \(B, T, D\) with T >= 1, got \(2, 0, 3\)"),
        (lambda: dplr_scan(u, a.real, *rest), r"a must be \(D, M\) complex64 or complex128, got \(3, 3\) torch\.float64"),
        (lambda: dplr_scan(u, a, p[:2], w, b, c), r"p must be \(3, 3\) torch\.complex128, got \(2, 3\)"),
        (lambda: dplr_scan(u, a, *rest, state[:1]), r"state must be \(2, 3, 3\) torch\.complex128, got \(1, 3, 3\)"),
        (lambda: dplr_scan(u, *(x.to(torch.complex64) for x in (a, *rest))), r"u must be .* for a of torch\.complex64, got"),
        (lambda: dplr_scan(u, a, *rest, reset=torch.zeros(2, 6) > 0), r"reset must be \(2, 7\) torch\.bool"),
        (lambda: dplr_scan(u, a, *rest, parents=np.array([-1, 1, 0, 0, 0, 0, 0])), r"parents\[1\] must be in -1\.\.0 .*, got 1"),
        (lambda: dplr_scan(u, a, *rest, backend="triton"), r"backend must be .*, got \'triton\'"),
        (lambda: dplr_scan(u, a, *rest, backend="cuda"), r'backend "cuda" cannot take tensors on cpu'),
    ]:
        with pytest.raises(ValueError, match=message):
            wrong()


SIMULATED = """
import sys
import numpy as np, torch
sys.path.insert(0, {folder!r})
from test_dplr_scan import TREE, drawn, resets, results
from tdraft.kernels.dplr_scan_cuda import launch_backward, launch_forward

chain, none = np.arange(-1, 6), np.zeros((2, 7), bool)
for exact in (torch.complex128, torch.complex64):
    for reset, parents in ((none, chain), (resets(2, 7).numpy(), chain), (none, TREE)):
        inputs = drawn(exact=exact, stored=exact.to_real())
        weights = torch.randn(2, 7, 3, dtype=exact.to_real()), torch.randn(2, 7, 3, 3, dtype=exact)
        expected = results(inputs, weights, reset=torch.from_numpy(reset), parents=parents, backend="reference")
        expected = [x.detach().resolve_conj().numpy() for x in expected]
        u, *rest = (x.detach().numpy() for x in inputs)
        u, gy = (np.ascontiguousarray(x.swapaxes(1, 2)) for x in (u, weights[0].numpy()))
        y, after, last = np.empty_like(u), np.empty((2, 7, 3, 3), rest[0].dtype), np.empty((2, 1, 3, 3), rest[0].dtype)
        launch_forward(u, *rest, y, after, reset, parents)
        h, gu = weights[1].numpy().copy(), np.empty_like(u)
        each, gstate = np.zeros((2, 5, 3, 3), after.dtype), np.zeros_like(rest[-1])
        launch_backward(u, *rest, after, gy, h, gu, each, gstate, reset, parents)
        found = [y.swapaxes(1, 2), after, gu.swapaxes(1, 2), *each.sum(0), gstate]
        if parents is chain:
            launch_forward(u, *rest, y, last, reset, parents)
            found, expected = [*found, last[:, 0], y.swapaxes(1, 2)], [*expected, expected[1][:, -1], expected[0]]
        for mine, right in zip(found, expected):
            assert mine.shape == right.shape
            assert abs(mine - right).max() <= (1e-12 if exact == torch.complex128 else 1e-5) * abs(right).max()
print("agrees")
"""


def test_cuda_kernels_agree_in_the_simulator():
    script = SIMULATED.format(folder=os.path.dirname(__file__))
    run = subprocess.run(
        [sys.executable, "-c", script], env=os.environ | {"NUMBA_ENABLE_CUDASIM": "1"}, capture_output=True, text=True
    )
    assert run.returncode == 0 and run.stdout.strip() == "agrees", run.stderr


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("flow", [{}, {"reset": resets(2, 7)}, {"parents": TREE}])
def test_cuda_is_the_reference(flow):
    inputs = [x.detach().cuda().requires_grad_() for x in drawn()]
    flow = {name: x.cuda() if isinstance(x, torch.Tensor) else x for name, x in flow.items()}
    weights = torch.randn(2, 7, 3).cuda(), torch.randn(2, 7 if "parents" in flow else 1, 3, 3, dtype=torch.complex128).cuda()
    right = results(inputs, weights, backend="reference", **flow)
    agree(results(inputs, weights, backend="cuda", **flow), right, 1e-12)
