"""RWKV-7's delta rule: every backend is the reference, and the reference is the equation."""

import os
import subprocess
import sys
import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from tdraft.kernels.wkv7 import _wkv7, _wkv7_backward, wkv7

TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5}
MODES = ["last", "every", "reset", "tree"]


def inputs(B, T, H, N, dtype=torch.float64, seed=0):
    """r, w, k, v, kap, a and a state that has seen something."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, dtype=torch.float64, generator=generator)

    r, w, k, v, kap, a = (normal(B, T, H, N) for _ in range(6))
    drawn = r, torch.exp(-0.6 * torch.sigmoid(w)), k, v, F.normalize(kap, dim=-1), torch.sigmoid(a), normal(B, H, N, N)
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
    y, after = wkv7(*tensors, **how)
    generator = torch.Generator().manual_seed(seed)
    loss = sum((torch.randn(x.shape, dtype=torch.float64, generator=generator).to(x.dtype) * x).sum() for x in (y, after))
    return [y, after, *torch.autograd.grad(loss, tensors)]


def close(ours, expected, tolerance):
    for mine, right in zip(ours, expected, strict=True):
        assert (mine.double() - right.double()).abs().max() <= tolerance * right.abs().max().clamp_min(1e-3)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("shape", [(2, 1, 1, 3), (2, 9, 2, 8), (1, 75, 1, 20)])
def test_numba_is_the_reference(shape, mode, dtype):
    how = options(mode, *shape[:2])
    expected = results(inputs(*shape), backend="reference", **how)
    tensors = inputs(*shape, dtype=dtype)
    close(results(tensors, backend="numba", **how), expected, TOLERANCE[dtype])
    with torch.no_grad():
        close(wkv7(*tensors, **how), expected[:2], TOLERANCE[dtype])


def test_reference_is_the_equation():
    r, w, k, v, kap, a, S = inputs(1, 4, 1, 3)
    y, after = wkv7(r, w, k, v, kap, a, S, backend="reference")
    S = S[0, 0].detach().numpy()
    for t in range(4):
        r_t, w_t, k_t, v_t, kap_t, a_t = (x[0, t, 0].detach().numpy() for x in (r, w, k, v, kap, a))
        S = S @ np.diag(w_t) - np.outer(S @ kap_t, kap_t * a_t) + np.outer(v_t, k_t)
        np.testing.assert_allclose(y[0, t, 0].detach().numpy(), S @ r_t, rtol=0, atol=1e-13)
    np.testing.assert_allclose(after[0, 0].detach().numpy(), S, rtol=0, atol=1e-13)


def test_gradcheck():
    for mode in MODES:
        how = options(mode, 2, 4)
        assert torch.autograd.gradcheck(lambda *x, how=how: wkv7(*x, backend="numba", **how), inputs(2, 4, 1, 2))


def test_opcheck():
    *tensors, state = inputs(2, 5, 2, 3)
    tree = torch.tensor([-1, 0, 0, 1, -1])
    for reset, parents, every in ((None, None, False), (torch.rand(2, 5) < 0.5, None, True), (None, tree, True)):
        torch.library.opcheck(_wkv7, (*tensors, state, reset, parents, every))
    detached = [x.detach() for x in tensors]
    saved, gy, gafter = (torch.randn(shape).double() for shape in ((2, 1, 2, 3, 3), (2, 5, 2, 3), (2, 1, 2, 3, 3)))
    torch.library.opcheck(_wkv7_backward, (*detached, saved, None, None, False, gy, gafter))


def test_compiles():
    tensors = inputs(1, 40, 1, 3)
    close(torch.compile(wkv7, fullgraph=True, backend="aot_eager")(*tensors), wkv7(*tensors), 1e-12)


def test_what_is_stored_is_read_and_what_is_replaced_is_gone():
    """With orthonormal keys, w = a = 1 and kap = k, a new value takes the old one's place and leaves the others."""
    k = torch.eye(3)[[0, 1, 2, 1, 0]].double().view(1, 5, 1, 3)
    v = torch.arange(15.0).double().view(1, 5, 1, 3)
    one = torch.ones_like(k)
    _, S = wkv7(one, one, k, v, k, one)
    torch.testing.assert_close(S[0, 0].T, v[0, [4, 3, 2], 0])


def test_bfloat16_is_stored_and_float32_computed():
    *tensors, state = inputs(2, 9, 1, 5, torch.float32)
    half = [x.bfloat16() for x in tensors]
    y, after = wkv7(*half, state)
    right, right_after = wkv7(*(x.float() for x in half), state, backend="reference")
    assert y.dtype == torch.bfloat16 and after.dtype == torch.float32
    close([after], [right_after], 1e-5)
    torch.testing.assert_close(y, right.bfloat16(), rtol=2**-7, atol=1e-5)


def test_half_precision_falls_back_and_says_so_once():
    *tensors, _ = inputs(1, 3, 1, 2, torch.float16)
    with pytest.warns(UserWarning, match="wkv7 has no compiled kernel for torch.float16"):
        assert wkv7(*tensors)[0].dtype == torch.float16
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        wkv7(*tensors)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"r": torch.zeros(1, 0, 1, 3)}, r"r must be \(B, T, H, N\) with T >= 1"),
        ({"kap": torch.zeros(1, 2, 1, 4)}, r"kap must be \(1, 2, 1, 3\)"),
        ({"w": torch.zeros(1, 2, 1, 3).double()}, "w must be .* torch.float32, got"),
        ({"state": torch.zeros(2, 1, 3, 3)}, r"state must be \(1, 1, 3, 3\)"),
        ({"reset": torch.zeros(1, 2)}, r"reset must be \(1, 2\) torch.bool"),
        ({"parents": np.array([0, 0])}, r"parents\[0\] must be in -1..-1"),
        ({"backend": "cuda"}, 'use "numba"'),
    ],
)
def test_bad_input(change, message):
    good = {name: torch.zeros(1, 2, 1, 3) for name in ("r", "w", "k", "v", "kap", "a")}
    with pytest.raises(ValueError, match=message):
        wkv7(**(good | change))


SIMULATE = """
import numpy as np, torch
from tdraft.kernels import wkv7_cuda
from test_wkv7 import MODES, close, inputs, options, results
B, T, H, N = 1, 5, 2, 2
for mode in MODES:
    tensors, how = inputs(B, T, H, N), options(mode, B, T)
    expected = results(tensors, backend="reference", **how)
    *given, state = (x.detach().numpy() for x in tensors)
    every = mode in ("every", "tree")
    reset = how["reset"].numpy() if "reset" in how else np.zeros((B, T), bool)
    parents = how.get("parents", np.arange(-1, T - 1))
    chunk = T if every else 2
    y, after = np.empty((B, T, H, N)), np.empty((B, T if every else 1, H, N, N))
    saved = np.empty((B, -(-T // chunk), H, N, N))
    wkv7_cuda.forward(*given, state, y, after, saved, reset, parents, chunk)
    generator = torch.Generator().manual_seed(1)
    gy = torch.randn(B, T, H, N, dtype=torch.float64, generator=generator).numpy()
    gafter = torch.randn(expected[1].shape, dtype=torch.float64, generator=generator).numpy().reshape(after.shape)
    grads, gstate = [np.zeros((B, T, H, N)) for _ in range(6)], np.empty_like(state)
    wkv7_cuda.backward(*given, saved, gy, gafter, *grads, gstate, reset, parents, chunk)
    found = y, after.reshape(expected[1].shape), *grads, gstate
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
    expected = results(inputs(2, 70, 2, 16), backend="reference", **how)
    on_device = {name: x.cuda() if isinstance(x, torch.Tensor) else x for name, x in how.items()}
    tensors = [x.detach().cuda().requires_grad_() for x in inputs(2, 70, 2, 16)]
    y, after = wkv7(*tensors, backend="cuda", **on_device)
    generator = torch.Generator().manual_seed(1)
    loss = sum((torch.randn(x.shape, dtype=torch.float64, generator=generator).cuda() * x).sum() for x in (y, after))
    close([x.cpu() for x in (y, after, *torch.autograd.grad(loss, tensors))], expected, 1e-12)
