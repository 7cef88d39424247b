"""WKV of RWKV-4 on a CPU, forward and backward: 64 channels at a time, so that all that a step reads stays in the first cache.

A step's rows of 64 numbers lie in one array at constant offsets. The compiler then knows without a check that they don't
overlap, and turns the loop over channels into vector instructions, the exponential included.
"""

import math
from typing import Any

import numpy as np
from llvmlite import ir  # pyright: ignore[reportMissingModuleSource]
from numba import njit, types
from numba.extending import intrinsic, overload

TILE = 64
STATE = 3 * TILE
ROWS = 17
W, U, K, V, AA, BB, PP, Y = (TILE * i for i in range(8))
GA, GB, GP, EA, EB, EP, GK, GW, GU = (TILE * i for i in range(8, ROWS))  # GV takes the place of V
LOWEST = -1e38  # as in wkv4.py

jit: Any = njit(nogil=True, error_model="numpy", fastmath={"contract"})
# without reference counts, as in jit.py, but not inlined everywhere: that takes long to compile and runs no faster
lean: Any = njit(_nrt=False, error_model="numpy", nogil=True, fastmath={"contract"})  # pyright: ignore[reportCallIssue]


@intrinsic
def _as_float(typingctx, bits):
    """The float with these bits."""
    to = types.float32 if bits == types.int32 else types.float64

    def codegen(context, builder, signature, args):
        return builder.bitcast(args[0], ir.FloatType() if to == types.float32 else ir.DoubleType())

    return to(bits), codegen


def exp(x):
    """e^x of x <= 0, as 2^n times a polynomial of the rest; no smaller than 1e-26 in single precision, which 1 does not feel."""
    return math.exp(x)


@overload(exp)
def _exp(x):
    if x == types.float32:
        magic, log2e = np.float32(1.5 * 2**23), np.float32(1 / math.log(2))
        high, low = np.float32(0.693359375), np.float32(-2.12194440e-4)  # of log(2), the high part with few digits
        c2, c3, c4, c5, c6, c7 = (np.float32(1 / math.factorial(i)) for i in range(2, 8))
        one, lowest = np.float32(1), np.float32(-60)

        def exp32(x):
            x = max(x, lowest)
            n = x * log2e + magic - magic  # the nearest integer
            r = x - n * high - n * low
            p = ((((((c7 * r + c6) * r + c5) * r + c4) * r + c3) * r + c2) * r + one) * r + one
            return p * _as_float(np.int32((np.int32(n) + 127) << 23))  # pyright: ignore[reportCallIssue]

        return exp32
    magic, log2e, high, low = 1.5 * 2**52, 1 / math.log(2), 6.93147180369123816490e-01, 1.90821492927058770002e-10
    d2, d3, d4, d5, d6, d7, d8, d9, d10, d11, d12 = (1 / math.factorial(i) for i in range(2, 13))

    def exp64(x):
        x = max(x, -700.0)
        n = x * log2e + magic - magic
        r = x - n * high - n * low
        p = (((((d12 * r + d11) * r + d10) * r + d9) * r + d8) * r + d7) * r + d6
        p = ((((((p * r + d5) * r + d4) * r + d3) * r + d2) * r + 1.0) * r) + 1.0
        return p * _as_float(np.int64((np.int64(n) + 1023) << 52))  # pyright: ignore[reportCallIssue]

    return exp64


@lean
def _load(z, row, x):
    for i in range(x.size):
        z[row + i] = x[i]


@lean
def _store(z, row, x):
    for i in range(x.size):
        x[i] = z[row + i]


@lean
def _move(x, at, y, to):
    """A state, three rows, of x to y."""
    x, y = x[at : at + STATE], y[to : to + STATE]
    for i in range(STATE):
        y[i] = x[i]


@lean
def _add(x, at, y, to):
    x, y = x[at : at + STATE], y[to : to + STATE]
    for i in range(STATE):
        y[i] += x[i]


@lean
def _fill(z, row, value):
    for i in range(TILE):
        z[row + i] = value


@lean
def _load_state(z, row, x, d, n):
    """Three rows from x (3, D)."""
    for j in range(3):
        _load(z, row + j * TILE, x[j, d : d + n])


@lean
def _store_state(z, row, x, d, n):
    for j in range(3):
        _store(z, row + j * TILE, x[j, d : d + n])


@lean
def _forget(z):
    _fill(z, AA, 0.0)
    _fill(z, BB, 0.0)
    _fill(z, PP, LOWEST)


@lean
def _step(z):
    """Y from AA, BB and PP, which move on by one input."""
    one = z.dtype.type(1)
    for i in range(TILE):
        k, v, aa, bb, pp = z[K + i], z[V + i], z[AA + i], z[BB + i], z[PP + i]
        far = pp - (z[U + i] + k)
        e = exp(-abs(far))
        e1, e2 = (one if far >= 0 else e), (e if far >= 0 else one)
        z[Y + i] = (e1 * aa + e2 * v) / (e1 * bb + e2)
        kept = pp + z[W + i]
        far = kept - k
        e = exp(-abs(far))
        e1, e2 = (one if far >= 0 else e), (e if far >= 0 else one)
        z[AA + i] = e1 * aa + e2 * v
        z[BB + i] = e1 * bb + e2
        z[PP + i] = max(kept, k)


@lean
def _step_back(z):
    """Gradients through one input whose state before it is in AA, BB, PP and whose output's gradient is in Y.

    What A and B stand for doesn't change with pp, if aa and bb change against it. So a gradient by pp is aa GA + bb GB, and
    beyond that only what a caller asks of pp itself: GP holds this excess, which passes to whichever of pp + w and k was the
    maximum. (EA, EB, EP) is the caller's gradient by the state after the input.
    """
    one, zero = z.dtype.type(1), z.dtype.type(0)
    for i in range(TILE):
        k, v, aa, bb, pp, gy = z[K + i], z[V + i], z[AA + i], z[BB + i], z[PP + i], z[Y + i]
        far = pp + z[W + i] - k
        e = exp(-abs(far))
        e1, e2 = (one if far >= 0 else e), (e if far >= 0 else one)
        excess = z[GP + i] + z[EP + i] - (e1 * aa + e2 * v) * z[EA + i] - (e1 * bb + e2) * z[EB + i]
        excess_old, excess_new = (excess if far >= 0 else zero), (zero if far >= 0 else excess)
        ga, gb = z[GA + i] + z[EA + i], z[GB + i] + z[EB + i]
        gk, gv = e2 * (v * ga + gb) + excess_new, e2 * ga
        z[GW + i] += e1 * (aa * ga + bb * gb) + excess_old
        ga, gb = e1 * ga, e1 * gb

        far = pp - (z[U + i] + k)
        e = exp(-abs(far))
        e1, e2 = (one if far >= 0 else e), (e if far >= 0 else one)
        share = gy / (e1 * bb + e2)
        y = (e1 * aa + e2 * v) / (e1 * bb + e2)
        gu = e2 * (v - y) * share
        z[GU + i] += gu
        z[GK + i] = gk + gu
        z[V + i] = gv + e2 * share
        z[GA + i] = ga + e1 * share
        z[GB + i] = gb - e1 * y * share
        z[GP + i] = excess_old
        z[EA + i] = z[EB + i] = z[EP + i] = zero


@jit
def forward(w, u, k, v, state, y, after, saved, reset, parents, chunk):
    """Fill y (B, T, D), after (B, T or 1, 3, D), and saved (B, chunks or 0, 3, D), the states before inputs 0, chunk, ..."""
    _forward(np.zeros(ROWS * TILE, k.dtype), w, u, k, v, state, y, after, saved, reset, parents, chunk)


@lean
def _forward(z, w, u, k, v, state, y, after, saved, reset, parents, chunk):
    B, T, D = k.shape
    every = after.shape[1] == T
    for b in range(B):
        for d in range(0, D, TILE):
            n = min(TILE, D - d)
            _load(z, W, w[d : d + n])
            _load(z, U, u[d : d + n])
            _load_state(z, AA, state[b], d, n)
            for t in range(T):
                if parents.size:
                    _load_state(z, AA, state[b] if parents[t] < 0 else after[b, parents[t]], d, n)
                if saved.shape[1] and t % chunk == 0:
                    _store_state(z, AA, saved[b, t // chunk], d, n)
                if reset.size and reset[b, t]:
                    _forget(z)
                _load(z, K, k[b, t, d : d + n])
                _load(z, V, v[b, t, d : d + n])
                _step(z)
                _store(z, Y, y[b, t, d : d + n])
                if every:
                    _store_state(z, AA, after[b, t], d, n)
            if not every:
                _store_state(z, AA, after[b, 0], d, n)


@jit
def backward(w, u, k, v, saved, gy, gafter, gwu, gk, gv, gstate, reset, parents, chunk):
    """Fill gwu (B, 2, D), gk and gv (B, T, D) and gstate (B, 3, D) from gy and gafter; the states are worked out anew from
    saved, a chunk at a time. A tree is one chunk."""
    size = (min(chunk, k.shape[1]) + 1) * STATE
    z, states, grads = np.zeros(ROWS * TILE, k.dtype), np.zeros(size, k.dtype), np.zeros(size, k.dtype)
    _backward(z, states, grads, w, u, k, v, saved, gy, gafter, gwu, gk, gv, gstate, reset, parents, chunk)


@lean
def _backward(z, states, grads, w, u, k, v, saved, gy, gafter, gwu, gk, gv, gstate, reset, parents, chunk):
    """states and grads (chunk + 1) of three rows: [0] before the chunk, [i + 1] after its input i."""
    B, T, D = k.shape
    every = gafter.shape[1] == T
    for b in range(B):
        for d in range(0, D, TILE):
            n = min(TILE, D - d)
            _load(z, W, w[d : d + n])
            _load(z, U, u[d : d + n])
            _fill(z, GW, 0.0)
            _fill(z, GU, 0.0)
            grads[:] = 0
            if not every:
                _load_state(z, EA, gafter[b, 0], d, n)
            for begin in range((T - 1) // chunk * chunk, -1, -chunk):
                m = min(chunk, T - begin)
                _load_state(z, AA, saved[b, begin // chunk], d, n)
                _move(z, AA, states, 0)
                for i in range(m):
                    t = begin + i
                    if parents.size:
                        _move(states, (parents[t] + 1) * STATE, z, AA)
                    if reset.size and reset[b, t]:
                        _forget(z)
                    _load(z, K, k[b, t, d : d + n])
                    _load(z, V, v[b, t, d : d + n])
                    _step(z)
                    _move(z, AA, states, (i + 1) * STATE)
                _move(grads, 0, grads, m * STATE)  # by the state before the following chunk
                grads[: m * STATE] = 0
                for i in range(m - 1, -1, -1):
                    t = begin + i
                    parent = parents[t] + 1 if parents.size else i
                    _move(states, parent * STATE, z, AA)
                    if reset.size and reset[b, t]:
                        _forget(z)
                    _load(z, K, k[b, t, d : d + n])
                    _load(z, V, v[b, t, d : d + n])
                    _load(z, Y, gy[b, t, d : d + n])
                    _move(grads, (i + 1) * STATE, z, GA)
                    if every:
                        _load_state(z, EA, gafter[b, t], d, n)
                    _step_back(z)
                    _store(z, GK, gk[b, t, d : d + n])
                    _store(z, V, gv[b, t, d : d + n])
                    if not (reset.size and reset[b, t]):
                        _add(z, GA, grads, parent * STATE)
            _store(z, GW, gwu[b, 0, d : d + n])
            _store(z, GU, gwu[b, 1, d : d + n])
            for i in range(n):
                ga, gb, excess = grads[i], grads[TILE + i], grads[2 * TILE + i]
                gstate[b, 0, d + i] = ga
                gstate[b, 1, d + i] = gb
                gstate[b, 2, d + i] = saved[b, 0, 0, d + i] * ga + saved[b, 0, 1, d + i] * gb + excess
