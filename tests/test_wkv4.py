"""RWKV-4's WKV: every backend is the reference, and the reference's gradients are those of A and B themselves."""

import os
import subprocess
import sys
import warnings

import numpy as np
import pytest
import torch

from tdraft.kernels.wkv4 import _wkv4, _wkv4_backward, wkv4, wkv4_initial

TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5}
MODES = ["last", "every", "reset", "tree"]


def inputs(B, T, D, dtype=torch.float64, seed=0, spread=3.0):
    """w, u, k, v and a state that has seen something."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, dtype=torch.float64, generator=generator)

    state = torch.stack((normal(B, D), normal(B, D).abs() + 0.1, normal(B, D)), dim=1)
    drawn = -torch.exp(normal(D)), normal(D), spread * normal(B, T, D), normal(B, T, D), state
    return [x.to(dtype).requires_grad_() for x in drawn]


def options(mode, B, T, seed=0):
    rng = np.random.default_rng(seed)
    if mode == "reset":
        return {"reset": torch.from_numpy(rng.random((B, T)) < 0.25)}
    if mode == "tree":
        return {"parents": np.array([rng.integers(-1, i) if i else -1 for i in range(T)])}
    return {"every": mode == "every"}


def results(tensors, seed=1, **how):
    """Outputs, states and the gradients of a random sum of them."""
    y, after = wkv4(*tensors, **how)
    generator = torch.Generator().manual_seed(seed)
    loss = sum((torch.randn(x.shape, dtype=torch.float64, generator=generator).to(x.dtype) * x).sum() for x in (y, after))
    return [y, after, *torch.autograd.grad(loss, tensors)]


def close(ours, expected, tolerance):
    for mine, right in zip(ours, expected, strict=True):
        assert (mine.double() - right.double()).abs().max() <= tolerance * right.abs().max().clamp_min(1e-3)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("shape", [(2, 1, 3), (2, 9, 65), (1, 75, 130)])
def test_numba_is_the_reference(shape, mode, dtype):
    how = options(mode, *shape[:2])
    expected = results(inputs(*shape), backend="reference", **how)
    tensors = inputs(*shape, dtype=dtype)
    close(results(tensors, backend="numba", **how), expected, TOLERANCE[dtype])
    with torch.no_grad():
        close(wkv4(*tensors, **how), expected[:2], TOLERANCE[dtype])


def represented(w, u, k, v, A, B):
    """y and A, B of the sums themselves, as the paper has them: no maximum is taken out."""
    y = []
    for k_t, v_t in zip(k.unbind(1), v.unbind(1)):
        e = torch.exp(u + k_t)
        y.append((A + e * v_t) / (B + e))
        A, B = torch.exp(w) * A + torch.exp(k_t) * v_t, torch.exp(w) * B + torch.exp(k_t)
    return torch.stack(y, dim=1), A, B


@pytest.mark.parametrize("backend", ["reference", "numba"])
def test_gradients_are_those_of_the_numbers_represented(backend):
    w, u, k, v, _ = inputs(2, 40, 5, spread=1.0)
    A, B = torch.randn(2, 5, dtype=torch.float64), torch.rand(2, 5, dtype=torch.float64) + 0.1
    tensors = [w, u, k, v, A.requires_grad_(), B.requires_grad_()]
    found = []
    for ours in (False, True):
        if ours:
            m = torch.log(B) + A.square()  # a representation that itself depends on the numbers
            y, after = wkv4(w, u, k, v, torch.stack((A * torch.exp(-m), B * torch.exp(-m), m), 1), backend=backend)
            last_A, last_B = after[:, 0] * torch.exp(after[:, 2]), after[:, 1] * torch.exp(after[:, 2])
        else:
            y, last_A, last_B = represented(*tensors)
        loss = y.sin().sum() + (last_A / (1 + last_B)).sum() + last_B.log().sum()
        found.append([y, last_A, last_B, *torch.autograd.grad(loss, tensors)])
    close(found[1], found[0], 1e-12)


def test_gradcheck():
    for mode in MODES:
        how = options(mode, 2, 6)
        assert torch.autograd.gradcheck(lambda *x, how=how: wkv4(*x, backend="numba", **how), inputs(2, 6, 3))


def test_opcheck():
    w, u, k, v, state = inputs(2, 5, 3)
    tree = torch.tensor([-1, 0, 0, 1, -1])
    for reset, parents, every in ((None, None, False), (torch.rand(2, 5) < 0.5, None, True), (None, tree, True)):
        torch.library.opcheck(_wkv4, (w, u, k, v, state, reset, parents, every))
    detached = [x.detach() for x in (w, u, k, v)]
    saved, gy, gafter = torch.randn(2, 1, 3, 3).double(), torch.randn(2, 5, 3).double(), torch.randn(2, 1, 3, 3).double()
    torch.library.opcheck(_wkv4_backward, (*detached, saved, None, None, False, gy, gafter))


def test_compiles():
    tensors = inputs(1, 40, 3)
    close(torch.compile(wkv4, fullgraph=True, backend="aot_eager")(*tensors), wkv4(*tensors), 1e-12)


def test_exponents_never_overflow():
    k = torch.tensor([800.0, -800.0, 700.0, 1e4, 0.0]).double().view(1, 5, 1)
    v = torch.arange(5.0).double().view(1, 5, 1)
    w, u = torch.tensor([-1.0]).double(), torch.zeros(1).double()
    y, after = wkv4(w, u, k, v)
    torch.testing.assert_close(y.flatten(), torch.tensor([0.0, 0.0, 0.0, 3.0, 3.0]).double())
    assert after.isfinite().all()


def test_bfloat16_is_stored_and_float32_computed():
    w, u, k, v, state = inputs(2, 9, 5, torch.float32)
    k, v = k.bfloat16(), v.bfloat16()
    y, after = wkv4(w, u, k, v, state)
    right, right_after = wkv4(w, u, k.float(), v.float(), state, backend="reference")
    assert y.dtype == torch.bfloat16 and after.dtype == torch.float32
    close([after], [right_after], 1e-5)
    torch.testing.assert_close(y, right.bfloat16(), rtol=2**-7, atol=0.0)


def test_half_precision_falls_back_and_says_so_once():
    w, u, k, v, _ = inputs(1, 3, 2, torch.float16)
    with pytest.warns(UserWarning, match="wkv4 has no compiled kernel for torch.float16"):
        assert wkv4(w, u, k, v)[0].dtype == torch.float16
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        wkv4(w, u, k, v)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"k": torch.zeros(1, 0, 3)}, r"k must be \(B, T, D\) with T >= 1"),
        ({"v": torch.zeros(1, 2, 4)}, r"v must be \(1, 2, 3\)"),
        ({"w": torch.zeros(3).double()}, r"w must be \(3,\) torch.float32"),
        ({"state": torch.zeros(2, 3, 3)}, r"state must be \(1, 3, 3\)"),
        ({"reset": torch.zeros(1, 2)}, r"reset must be \(1, 2\) torch.bool"),
        ({"parents": np.array([-1, 1])}, r"parents\[1\] must be in -1..0"),
        ({"parents": np.array([-1])}, r"parents must be \(2,\) int64"),
        ({"backend": "triton"}, "backend must be"),
        ({"backend": "cuda"}, 'use "numba"'),
    ],
)
def test_bad_input(change, message):
    good = {"w": torch.zeros(3), "u": torch.zeros(3), "k": torch.zeros(1, 2, 3), "v": torch.zeros(1, 2, 3)}
    with pytest.raises(ValueError, match=message):
        wkv4(**(good | change))


SIMULATE = """
import numpy as np, torch
from tdraft.kernels import wkv4_cuda
from test_wkv4 import MODES, close, inputs, options, results
B, T, D = 2, 5, 3
for mode in MODES:
    tensors, how = inputs(B, T, D), options(mode, B, T)
    expected = results(tensors, backend="reference", **how)
    w, u, k, v, state = (x.detach().numpy() for x in tensors)
    every = mode in ("every", "tree")
    reset = how["reset"].numpy() if "reset" in how else np.zeros((B, T), bool)
    parents = how.get("parents", np.arange(-1, T - 1))
    chunk = T if every else 2
    y, after, saved = np.empty((B, T, D)), np.empty((B, T if every else 1, 3, D)), np.empty((B, -(-T // chunk), 3, D))
    wkv4_cuda.forward(w, u, k, v, state, y, after, saved, reset, parents, chunk)
    generator = torch.Generator().manual_seed(1)
    gy = torch.randn(B, T, D, dtype=torch.float64, generator=generator).numpy()
    gafter = torch.randn(expected[1].shape, dtype=torch.float64, generator=generator).numpy().reshape(after.shape)
    gwu, gk, gv, gstate = np.empty((B, 2, D)), np.empty_like(k), np.empty_like(k), np.empty_like(state)
    wkv4_cuda.backward(w, u, k, v, saved, gy, gafter, gwu, gk, gv, gstate, reset, parents, chunk)
    gw, gu = gwu.sum(0)
    found = y, after.reshape(expected[1].shape), gw, gu, gk, gv, gstate
    close([torch.from_numpy(x) for x in found], expected, 1e-12)
print("agree")
"""


def test_cuda_kernels_in_the_simulator():
    folder = os.path.dirname(__file__)
    environment = os.environ | {"NUMBA_ENABLE_CUDASIM": "1", "PYTHONPATH": folder}
    done = subprocess.run([sys.executable, "-c", SIMULATE], env=environment, capture_output=True, text=True)
    assert done.stdout == "agree\n", done.stderr


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("mode", MODES)
def test_cuda_kernels_on_a_device(mode):
    how = options(mode, 2, 70)
    expected = results(inputs(2, 70, 33), backend="reference", **how)
    on_device = {name: x.cuda() if isinstance(x, torch.Tensor) else x for name, x in how.items()}
    tensors = [x.detach().cuda().requires_grad_() for x in inputs(2, 70, 33)]
    y, after = wkv4(*tensors, backend="cuda", **on_device)
    generator = torch.Generator().manual_seed(1)
    loss = sum((torch.randn(x.shape, dtype=torch.float64, generator=generator).cuda() * x).sum() for x in (y, after))
    close([x.cpu() for x in (y, after, *torch.autograd.grad(loss, tensors))], expected, 1e-12)


def test_initial_state_is_that_of_no_input():
    w, u, k, v, _ = inputs(2, 4, 3)
    close(wkv4(w, u, k, v), wkv4(w, u, k, v, wkv4_initial(2, k[0, 0])), 0.0)
