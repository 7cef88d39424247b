"""A few inputs of one sequence through a stack of Mamba layers in float32, in little more time than its weights take to read.

The equations are those of `models/backbones/mamba.py`. Weights are read where they lie, by address, so that an update is
seen at the next step.

D model width   W channels   N states a channel   K width of the convolution   R rank of dt   L layers
"""

from typing import Any

import numba
import numpy as np
from numba import njit, types
from numba.extending import intrinsic

from .elementary import LOG2_E, exp2_of, lean, scratch, sigmoid, softplus, sums
from .few_products import few_products

WEIGHTS = ("norm", "in_proj", "conv", "conv_bias", "x_proj", "dt_proj", "dt_bias", "A_log", "D", "out_proj")
"""A layer's arrays in the order of its addresses: (D), (2 W, D), (W, K), (W), (R + 2 N, W), (W, R), (W), (N, W), (W), (D, W)."""

_carray: Any = numba.carray  # pyright: ignore[reportPrivateImportUsage]
_exp2 = exp2_of("float32")
_F = np.float32
_ZERO, _ONE, _LOG2_E = _F(0.0), _F(1.0), _F(LOG2_E)


@intrinsic
def _pointer(typing_context, address):
    def codegen(context, builder, signature, args):
        return builder.inttoptr(args[0], context.get_value_type(signature.return_type))

    return types.CPointer(types.float32)(address), codegen


@njit(nogil=True)
def _array(address, shape):
    return _carray(_pointer(address), shape)  # pyright: ignore[reportCallIssue]


@sums
def _rms_norm(x, gain, eps, out):
    total = _ZERO
    for d in range(len(x)):
        total += x[d] * x[d]
    scale = _ONE / np.sqrt(total / _F(len(x)) + eps)
    for d in range(len(x)):
        out[d] = x[d] * scale * gain[d]


@lean
def _add(x, y):
    for d in range(len(x)):
        x[d] += y[d]


@lean
def convolve(x, before, after, weight, bias, out):
    """silu of the causal convolution; before and after (K - 1, W) are the last inputs."""
    K = weight.shape[1]
    for d in range(len(x)):
        out[d] = bias[d] + weight[d, K - 1] * x[d]
    for k in range(K - 1):
        past = before[k]
        for d in range(len(x)):
            out[d] += weight[d, k] * past[d]
    for k in range(K - 2):
        row, past = after[k], before[k + 1]
        for d in range(len(x)):
            row[d] = past[d]
    row = after[K - 2]
    for d in range(len(x)):
        row[d] = x[d]
        out[d] = out[d] * sigmoid(out[d])


@lean
def _rates(A_log, out):
    """A log2(e) = -exp(A_log) log2(e)."""
    for n in range(A_log.shape[0]):
        row, rates = A_log[n], out[n]
        for d in range(len(row)):
            rates[d] = -_LOG2_E * _exp2(_LOG2_E * row[d])


@lean
def _advance(dt, u, rates, before, after, b, c, y):
    """One state of all channels."""
    for d in range(len(dt)):
        h = _exp2(dt[d] * rates[d]) * before[d] + dt[d] * u[d] * b
        after[d] = h
        y[d] += c * h


@lean
def _scan_and_gate(dt, dt_bias, u, z, rates, D, BC, before, after, y):
    """y = (C h + D u) silu(z)."""
    N = rates.shape[0]
    for d in range(len(dt)):
        dt[d] = softplus(dt[d] + dt_bias[d])
        y[d] = D[d] * u[d]
    for n in range(N):
        _advance(dt, u, rates[n], before[n], after[n], BC[n], BC[N + n], y)
    for d in range(len(dt)):
        y[d] *= z[d] * sigmoid(z[d])


@njit(nogil=True, error_model="numpy")
def mamba_step(
    x: Any, before: Any, parents: Any, addresses: Any, gain: Any, eps: Any, K: int, R: int, out: Any, after: Any
) -> None:
    """Fill out (T, D), the last norm included, and after (T, L, K - 1 + N, W): the convolution's last inputs above the states.

    :param x: (T, D) the inputs
    :param before: (L, K - 1 + N, W)
    :param parents: (T,) input t follows input parents[t] < t, or `before` at -1
    :param addresses: (L, len(WEIGHTS)) int64, of contiguous float32 arrays
    :param gain: (D,) of the last norm
    :param eps: of all norms
    """
    (T, D), (L, rows, W) = x.shape, before.shape
    N = rows - K + 1
    stream, u, mixed, low = x.copy(), scratch(T, D, x), scratch(T, D, x), scratch(T, R + 2 * N, x)
    xz, v, dt, y = scratch(T, 2 * W, x), scratch(T, W, x), scratch(T, W, x), scratch(T, W, x)
    rank, rates = scratch(T, R, x), scratch(N, W, x)
    for layer in range(L):
        address = addresses[layer]
        for t in range(T):
            _rms_norm(stream[t], _array(address[0], (D,)), _F(eps), u[t])
        few_products(_array(address[1], (2 * W, D)), u, xz)
        conv, bias = _array(address[2], (W, K)), _array(address[3], (W,))
        for t in range(T):
            past = before[layer] if parents[t] < 0 else after[parents[t], layer]
            convolve(xz[t, :W], past, after[t, layer, : K - 1], conv, bias, v[t])
        few_products(_array(address[4], (R + 2 * N, W)), v, low)
        rank[:] = low[:, :R]
        few_products(_array(address[5], (W, R)), rank, dt)
        _rates(_array(address[7], (N, W)), rates)
        dt_bias, skip = _array(address[6], (W,)), _array(address[8], (W,))
        for t in range(T):
            past = before[layer] if parents[t] < 0 else after[parents[t], layer]
            now = after[t, layer, K - 1 :]
            _scan_and_gate(dt[t], dt_bias, v[t], xz[t, W:], rates, skip, low[t, R:], past[K - 1 :], now, y[t])
        few_products(_array(address[9], (D, W)), y, mixed)
        for t in range(T):
            _add(stream[t], mixed[t])
    for t in range(T):
        _rms_norm(stream[t], gain, _F(eps), out[t])
