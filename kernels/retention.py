"""Retention, the scan of RetNet (Sun et al. 2023, arXiv 2307.08621): state-space duality with a constant decay a head.

    S_t = gamma S_{t-1} + v_t k_t^T,    y_t = S_t q_t        for each head

B batch   T inputs   H heads   V value width   K key width
"""

from typing import Any

from torch import Tensor

from .ssd import ssd


def retention(
    q: Tensor, k: Tensor, v: Tensor, log_gamma: Tensor, state: Tensor | None = None, **how: Any
) -> tuple[Tensor, Tensor]:
    """Outputs y (B, T, H, V) and the state after the last input (B, H, V, K), or after every one (B, T, H, V, K).

    :param q: (B, T, H, K) queries
    :param k: (B, T, H, K) keys
    :param v: (B, T, H, V) values
    :param log_gamma: (H,) logarithms of the decays
    :param state: (B, H, V, K) before the first input, None for zeros
    :param how: `reset`, `parents`, `every` and `backend` of `ssd`
    :raises ValueError: shapes or dtypes that do not fit
    """
    return ssd(*as_ssd(q, k, v, log_gamma), state, **how)


def as_ssd(q: Tensor, k: Tensor, v: Tensor, log_gamma: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The arguments x, log_decay, b and c of `ssd` that make it a retention; every head is a group of its own."""
    if v.dim() != 4 or k.shape[:3] != v.shape[:3] or log_gamma.shape != v.shape[2:3]:
        shapes = ", ".join(str(tuple(given.shape)) for given in (q, k, v, log_gamma))
        raise ValueError(f"q and k must be (B, T, H, K), v (B, T, H, V) and log_gamma (H,), got {shapes}")
    return v, log_gamma.expand(v.shape[:3]), k, q
