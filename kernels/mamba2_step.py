"""A Mamba-2 layer between its two projections, for one input of each sequence in float32 without gradients: one call, not thirty.

The equations are those of `models/backbones/mamba2.py`.

B batch   E inner width   H heads of width P   G groups of heads   N state size   W conv width   K = E + 2 G N conv channels
"""

import math
from typing import Any

import numpy as np
from numba import njit

from .elementary import lean, sigmoid, softplus, sums
from .mamba_step import convolve
from .ssd_numba import advance_row

_ZERO, _ONE = np.float32(0), np.float32(1)


@lean
def _gate(y, z):
    for e in range(len(y)):
        y[e] *= z[e] * sigmoid(z[e])


@sums
def _normalise(y, eps):
    total = _ZERO
    for e in range(len(y)):
        total += y[e] * y[e]
    scale = _ONE / np.sqrt(total / np.float32(len(y)) + eps)
    for e in range(len(y)):
        y[e] *= scale


@lean
def _multiply(y, gain):
    for e in range(len(y)):
        y[e] *= gain[e]


@njit(nogil=True, error_model="numpy")
def mamba2_step(
    zxbcdt: Any, window: Any, state: Any, conv: Any, conv_bias: Any, dt_bias: Any, A_log: Any, D: Any, gain: Any,
    groups: int, eps: float, y: Any, window_after: Any, state_after: Any,
) -> None:  # fmt: skip
    """Fill y (B, E), window_after and state_after.

    :param zxbcdt: (B, E + K + H) what `in_proj` gives
    :param window: (B, W - 1, K), W >= 2, the last inputs of the convolution
    :param state: (B, H, P, N)
    :param conv: (K, W)
    :param conv_bias: (K,)
    :param dt_bias: (H,)
    :param A_log: (H,)
    :param D: (H,)
    :param gain: (E,) of the gated norm
    :param groups: G
    :param eps: of the gated norm
    """
    B, H, P, N = state.shape
    E, K = H * P, window.shape[2]
    mixed, b, c = np.empty(K, np.float32), E, E + groups * N
    for i in range(B):
        row, out = zxbcdt[i], y[i]
        convolve(row[E : E + K], window[i], window_after[i], conv, conv_bias, mixed)
        for h in range(H):
            dt = softplus(row[E + K + h] + dt_bias[h])
            a, start = math.exp(-dt * math.exp(A_log[h])), h // (H // groups) * N
            b_h, c_h = mixed[b + start : b + start + N], mixed[c + start : c + start + N]
            for p in range(P):
                x = mixed[h * P + p]
                out[h * P + p] = advance_row(state[i, h, p], state_after[i, h, p], a, dt * x, b_h, c_h) + D[h] * x
        _gate(out, row[:E])
        for g in range(groups):
            _normalise(out[g * E // groups : (g + 1) * E // groups], np.float32(eps))
        _multiply(out, gain)
