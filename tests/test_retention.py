"""Retention is attention whose weights decay with distance, and one formula with `ssd`."""

import numpy as np
import pytest
import torch

from tdraft.kernels.retention import retention


def make(B, T, H, K, V):
    generator = torch.Generator().manual_seed(0)
    shapes = (B, T, H, K), (B, T, H, K), (B, T, H, V)
    q, k, v = (torch.randn(shape, dtype=torch.float64, generator=generator) for shape in shapes)
    return q, k, v, torch.log1p(-torch.exp2(-5.0 - torch.arange(H, dtype=torch.float64)))


def parallel(q, k, v, log_gamma):
    """The paper's equation 5: (Q K^T * D) V with D_nm = gamma^(n - m) for n >= m."""
    n = torch.arange(q.shape[1])
    distance = (n[:, None] - n).clamp(min=0)
    D = torch.where(n[:, None] >= n, (distance * log_gamma[:, None, None]).exp(), 0.0)
    return (torch.einsum("bnhk,bmhk->bhnm", q, k) * D @ v.transpose(1, 2)).transpose(1, 2)


@pytest.mark.parametrize("T", [1, 9, 150])
def test_parallel_chunked_and_recurrent_forms_agree(T):
    q, k, v, log_gamma = make(2, T, 3, 4, 5)
    right = parallel(q, k, v, log_gamma)
    chunked, last = retention(q, k, v, log_gamma)
    recurrent, states = retention(q, k, v, log_gamma, every=True)
    tree, _ = retention(q, k, v, log_gamma, parents=np.arange(-1, T - 1))
    for y in chunked, recurrent, tree:
        torch.testing.assert_close(y, right, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(last, states[:, -1], rtol=1e-12, atol=1e-12)
    gamma = log_gamma.exp()
    expected = sum(gamma[:, None, None] ** (T - 1 - t) * v[0, t, :, :, None] * k[0, t, :, None] for t in range(T))
    torch.testing.assert_close(last[0], expected, rtol=1e-12, atol=1e-12)


def test_a_reset_begins_anew():
    q, k, v, log_gamma = make(1, 9, 3, 4, 5)
    reset = torch.zeros(1, 9, dtype=torch.bool)
    reset[0, 4] = True
    y, _ = retention(q, k, v, log_gamma, torch.randn(1, 3, 5, 4, dtype=torch.float64), reset=reset)
    torch.testing.assert_close(y[:, 4:], parallel(*(x[:, 4:] for x in (q, k, v)), log_gamma), rtol=1e-12, atol=1e-12)


def test_shapes_that_do_not_fit_are_refused():
    q, k, v, log_gamma = make(1, 9, 3, 4, 5)
    with pytest.raises(ValueError, match="log_gamma"):
        retention(q, k, v, log_gamma[:2])
    with pytest.raises(ValueError, match="c must be"):
        retention(q[..., :3], k, v, log_gamma)
