"""One decoding step of a Transformer for one text, fused: norms, matrices, RoPE, attention over the cache, SwiGLU.

    x <- x + W_out Attention(W_qkv norm(x)),   x <- x + W_down (silu(g) * u),  (g, u) = W_gate_up norm(x)

A step reads every weight once and does two operations with it, so that it can be as fast as memory is; torch spends longer than
that on its thirty calls a block. The sums are added in another order than torch's: the results differ in the last digits.

L blocks   D model width   H heads   K heads of keys and values   G queries of each, H / K   C width of a head   F hidden width
"""

import numpy as np
from llvmlite import ir  # pyright: ignore[reportMissingModuleSource]
from numba import carray, njit, types  # pyright: ignore[reportPrivateImportUsage]
from numba.core import cgutils
from numba.extending import intrinsic

from .elementary import LOG2_E, exp2_of, lean, sigmoid, sums

AHEAD = 4096  # bytes that are asked for before they are needed: a tenth less time than without

ZERO, ONE, LOG2E = np.float32(0), np.float32(1), np.float32(LOG2_E)
_exp2 = exp2_of("float32")


@intrinsic
def _pointer(typingctx, address):
    """The place in memory at an int64."""

    def codegen(context, builder, signature, args):
        return builder.inttoptr(args[0], cgutils.voidptr_t)

    return types.voidptr(types.int64), codegen


@intrinsic
def _prefetch(typingctx, address):
    """Ask for the cache line at an int64, which need not be one's own."""

    def codegen(context, builder, signature, args):
        number = ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [cgutils.voidptr_t, number, number, number])
        prefetch = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
        builder.call(prefetch, [builder.inttoptr(args[0], cgutils.voidptr_t), number(0), number(3), number(1)])
        return context.get_dummy_value()

    return types.void(types.int64), codegen


@sums
def _dot(a, b):
    total = ZERO
    for i in range(b.size):
        total += a[i] * b[i]
    return total


@sums
def _norm(x, floor, eps, y):
    """y = x / (sqrt(mean(x^2) + eps) + floor)."""
    scale = ONE / (np.sqrt(_dot(x, x) / np.float32(x.size) + eps) + floor)
    for i in range(x.size):
        y[i] = x[i] * scale


@lean
def _add(a, x):
    for i in range(x.size):
        x[i] += a[i]


@lean
def _turn(x, turn):
    """x (C,) as C / 2 complex numbers times those of `turn`."""
    for i in range(0, x.size, 2):
        real, imaginary = x[i] * turn[i] - x[i + 1] * turn[i + 1], x[i] * turn[i + 1] + x[i + 1] * turn[i]
        x[i], x[i + 1] = real, imaginary


@sums
def _softmax(scores):
    best = scores[0]
    for s in range(scores.size):
        best = max(best, scores[s])
    total = ZERO
    for s in range(scores.size):
        scores[s] = _exp2(LOG2E * (scores[s] - best))
        total += scores[s]
    for s in range(scores.size):
        scores[s] /= total


@sums
def _attend(q, cache, k, scores, y):
    """y (C,) = softmax(q . keys / sqrt(C)) values, of head k of the cache (S, 2, K, C)."""
    scale = ONE / np.sqrt(np.float32(q.size))
    for s in range(scores.size):
        scores[s] = _dot(cache[s, 0, k], q) * scale
    _softmax(scores)
    y[:] = ZERO
    for s in range(scores.size):
        p, value = scores[s], cache[s, 1, k]
        for c in range(y.size):
            y[c] += p * value[c]


@njit(nogil=True, error_model="numpy", forceinline=True)
def _multiply(place, x, y):
    """y = W x, of the float32 matrix (len(y), len(x)) at an address."""
    weights = carray(_pointer(place), (y.size, x.size), np.float32)  # pyright: ignore[reportCallIssue]
    for r in range(y.size):
        row = place + 4 * r * x.size
        for line in range(row + AHEAD, row + AHEAD + 4 * x.size, 64):
            _prefetch(line)  # pyright: ignore[reportCallIssue]
        y[r] = _dot(weights[r], x)


@njit(nogil=True, error_model="numpy")
def _block(places, cache, first, last, turn, floor, eps, d_hidden, x, scratch):
    """Put one more input through a block: x (D,) and cache[last - 1] are changed in place."""
    K, C, D, F = cache.shape[2], cache.shape[3], x.size, d_hidden
    H = D // C
    normed, branch, rest = scratch[:D], scratch[D : 2 * D], scratch[2 * D :]
    rows = (H + 2 * K) * C
    projected, mixed, scores = rest[:rows], rest[rows : rows + D], rest[rows + D : rows + D + last - first]
    _norm(x, floor, eps, normed)
    _multiply(places[0], normed, projected)
    for h in range(H + K):
        _turn(projected[h * C : h * C + C], turn)
    for h in range(2 * K):
        cache[last - 1, h // K, h % K] = projected[(H + h) * C : (H + h) * C + C]
    for h in range(H):
        _attend(projected[h * C : h * C + C], cache[first:last], h % K, scores, mixed[h * C : h * C + C])
    _multiply(places[1], mixed, branch)
    _add(branch, x)
    gate_up, hidden = rest[: 2 * F], rest[2 * F : 3 * F]
    _norm(x, floor, eps, normed)
    _multiply(places[2], normed, gate_up)
    for i in range(F):
        hidden[i] = gate_up[i] * sigmoid(gate_up[i]) * gate_up[F + i]
    _multiply(places[3], hidden, branch)
    _add(branch, x)


@njit(nogil=True, error_model="numpy")
def transformer_step(places, cache, first, last, turn, gain, floor, eps, d_hidden, x, scratch):
    """Put one more input through all blocks and the last norm.

    :param places: (L, 4) int64 addresses of contiguous float32 matrices, which the caller keeps alive: qkv ((H + 2 K) C, D) with
        rows (G + 2, K, C), out (D, D), gate_up (2 F, D), down (D, F)
    :param cache: (L, 1, capacity, 2, K, C) keys and values; the last - first entries from `first` are in sight, and the last of
        them is written
    :param turn: (C,) cos and sin of the angles of this position, in turn
    :param gain: (D,) of the last norm
    :param floor: added to the root in the norms
    :param eps: added under the root
    :param d_hidden: F
    :param x: (D,) the input, changed to the output
    :param scratch: of at least 2 D + max(2 (H + K) C + last - first, 3 F) numbers
    """
    for layer in range(cache.shape[0]):
        _block(places[layer], cache[layer, 0], first, last, turn, floor, eps, d_hidden, x, scratch)
    _norm(x, floor, eps, x)
    for i in range(x.size):
        x[i] *= gain[i]
