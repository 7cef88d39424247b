"""What the kernels of a CPU share: ways to compile a loop into vector instructions, and functions that such loops can hold.

Each states its `fastmath`: one that states none takes over its caller's, and a rounding trick does not survive reassociation.
"""

from functools import lru_cache
from typing import Any

import numpy as np
from numba import njit

LOG2_E = 1.4426950408889634

lean: Any = njit(_nrt=False, forceinline=True, error_model="numpy", nogil=True, fastmath={"contract"})  # pyright: ignore
"""As `jit.lean`, with products and sums fused."""
sums: Any = njit(_nrt=False, forceinline=True, error_model="numpy", nogil=True, fastmath={"contract", "reassoc", "nsz"})  # pyright: ignore
"""As `lean`, for sums over vectors: they may be added in any order."""


@njit(nogil=True)
def scratch(rows, width, like):
    """Zeros (rows, width) of an array's dtype that begin on a line of the cache: vectors that cross two lines are slow."""
    flat = np.zeros(rows * width + 64, like.dtype)
    skip = -flat.ctypes.data % 64 // flat.itemsize
    return flat[skip : skip + rows * width].reshape(rows, width)


@lru_cache
def exp2_of(name: str) -> Any:
    """A compiled 2^x for "float32" or "float64", right to about one unit in the last place, which loops can be vectorised over.

    2^x = 2^i 2^r with i the nearest integer to x and r in [-1/2, 1/2], where a polynomial does; x is held within the exponents of
    normal numbers. The C library's exp is a call for each number.
    """
    real, integer = (np.float32, np.int32) if name == "float32" else (np.float64, np.int64)
    bits, degree = (23, 5) if name == "float32" else (52, 10)
    near = np.polynomial.Chebyshev.interpolate(np.exp2, degree, domain=[-0.5, 0.5])
    c = tuple(real(x) for x in near.convert(kind=np.polynomial.Polynomial).coef)
    rounder = real(1.5 * 2.0**bits)  # x + rounder has the nearest integer to x in its last bits
    shift, most = integer(bits), real(126.0 if name == "float32" else 1022.0)
    c0, c1, c2, c3, c4, c5 = c[:6]
    c6, c7, c8, c9, c10 = c[6:] if degree == 10 else (real(0.0),) * 5
    long = degree == 10

    @lean
    def exp2(x):
        x = -most if x < -most else x
        x = most if x > most else x
        moved = x + rounder
        r = x - (moved - rounder)
        p = c5
        if long:
            p = c5 + r * (c6 + r * (c7 + r * (c8 + r * (c9 + r * c10))))
        p = c0 + r * (c1 + r * (c2 + r * (c3 + r * (c4 + r * p))))
        return integer((real(moved).view(integer) << shift) + real(p).view(integer)).view(real)

    return exp2


_exp2 = exp2_of("float32")
_F = np.float32
_ZERO, _ONE, _TWO, _LOG2_E = _F(0.0), _F(1.0), _F(2.0), _F(LOG2_E)
_S1, _S2, _S3, _S4, _S5, _S6, _S7, _S8 = (_F(1 / (2 * k + 1)) for k in range(1, 9))


@lean
def sigmoid(x):
    return _ONE / (_ONE + _exp2(-_LOG2_E * x))


@lean
def softplus(x):
    """log(1 + e^x) = max(x, 0) + 2 artanh(s), s = e / (2 + e), e = e^-|x|: nine terms of the series, as s <= 1/3."""
    e = _exp2(-_LOG2_E * abs(x))
    s = e / (_TWO + e)
    q = s * s
    series = _ONE + q * (_S1 + q * (_S2 + q * (_S3 + q * (_S4 + q * (_S5 + q * (_S6 + q * (_S7 + q * _S8)))))))
    return max(x, _ZERO) + _TWO * s * series
