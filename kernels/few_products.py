"""A matrix times a few vectors, in little more time than it takes to read the matrix: what verifying a few drafted tokens needs.

BLAS is made for many vectors or one. Here four rows are multiplied with four vectors at a time, sixteen sums in registers, and
while they are, rows to come are asked for. Written in LLVM's vectors: its loop vectoriser leaves no place for the asking.
"""

from functools import lru_cache
from typing import Any

import numpy as np
from llvmlite import binding, ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic

from .elementary import sums

LANES = 16 if binding.get_host_cpu_features().get("avx512f") else 8
_ZERO = np.float32(0.0)
_REAL, _BYTE, _INT, _LONG = ir.FloatType(), ir.IntType(8).as_pointer(), ir.IntType(32), ir.IntType(64)
_VECTOR = ir.VectorType(_REAL, LANES)


def _sixteen_sums(builder: Any, matrix: Any, row: Any, x: Any, t: Any, columns: Any, ahead: Any, lines: int) -> list[Any]:
    """matrix[row + r] . x[t + s] for r, s in 0..3, over the columns that fill whole vectors, at place 4 r + s."""
    module = builder.module
    fma = cgutils.get_or_insert_function(module, ir.FunctionType(_VECTOR, [_VECTOR] * 3), f"llvm.fma.v{LANES}f32")
    kind = ir.FunctionType(ir.VoidType(), [_BYTE, _INT, _INT, _INT])
    prefetch = cgutils.get_or_insert_function(module, kind, "llvm.prefetch.p0")
    kind = ir.FunctionType(_REAL, [_REAL, _VECTOR])
    add_up = cgutils.get_or_insert_function(module, kind, f"llvm.vector.reduce.fadd.v{LANES}f32")

    def begin(data, place):
        return builder.gep(data, [builder.mul(builder.add(place[0], _LONG(place[1])), columns)])

    rows, inputs = [begin(matrix, (row, k)) for k in range(4)], [begin(x, (t, k)) for k in range(4)]
    coming = builder.gep(matrix, [ahead])
    start, body, end = builder.block, builder.append_basic_block("products"), builder.append_basic_block("sums")
    count = builder.sub(columns, builder.srem(columns, _LONG(LANES)))
    builder.cbranch(builder.icmp_signed(">", count, _LONG(0)), body, end)
    zero = ir.Constant(_VECTOR, [0.0] * LANES)
    with builder.goto_block(body):
        j = builder.phi(_LONG)
        sums = [builder.phi(_VECTOR) for _ in range(16)]

        def load(pointer):
            return builder.load(builder.bitcast(builder.gep(pointer, [j]), _VECTOR.as_pointer()), align=4)

        a, b = [load(pointer) for pointer in rows], [load(pointer) for pointer in inputs]
        for k in range(lines):
            place = builder.add(builder.mul(j, _LONG(lines)), _LONG(LANES * k))
            address = builder.bitcast(builder.gep(coming, [place]), _BYTE)
            builder.call(prefetch, [address, _INT(0), _INT(3), _INT(1)])  # to read, into the nearest cache, data
        new = [builder.call(fma, [a[k // 4], b[k % 4], sums[k]]) for k in range(16)]
        following = builder.add(j, _LONG(LANES))
        builder.cbranch(builder.icmp_signed("<", following, count), body, end)
        j.add_incoming(_LONG(0), start)
        j.add_incoming(following, body)
        for old, value in zip(sums, new):
            old.add_incoming(zero, start)
            old.add_incoming(value, body)
    builder.position_at_end(end)
    totals = [builder.phi(_VECTOR) for _ in range(16)]
    for total, value in zip(totals, new):
        total.add_incoming(zero, start)
        total.add_incoming(value, body)
    return [builder.call(add_up, [_REAL(0.0), total], fastmath=("reassoc",)) for total in totals]


@lru_cache
def _four_by_four(lines: int) -> Any:
    """A compiled (matrix, row, x, t, ahead) -> sixteen sums, which asks for `lines` lines from `ahead` on at each step."""

    @intrinsic
    def sums(typing_context, matrix, row, x, t, ahead):
        def codegen(context, builder, signature, args):
            kinds = signature.args
            matrix, x = (context.make_array(kinds[k])(context, builder, args[k]) for k in (0, 2))
            columns = builder.extract_value(matrix.shape, 1)
            found = _sixteen_sums(builder, matrix.data, args[1], x.data, args[3], columns, args[4], lines)
            return context.make_tuple(builder, signature.return_type, found)

        return types.UniTuple(types.float32, 16)(matrix, types.int64, x, types.int64, types.int64), codegen

    return sums


_four_lines, _two_lines, _one_line = _four_by_four(4), _four_by_four(2), _four_by_four(1)


@sums
def _dot(row, x, first):
    y = _ZERO
    for j in range(first, len(row)):
        y += row[j] * x[j]
    return y


@sums
def _four_rows(row0, row1, row2, row3, x, out):
    y0, y1, y2, y3 = _ZERO, _ZERO, _ZERO, _ZERO
    for j in range(len(x)):
        y0 += row0[j] * x[j]
        y1 += row1[j] * x[j]
        y2 += row2[j] * x[j]
        y3 += row3[j] * x[j]
    out[0], out[1], out[2], out[3] = y0, y1, y2, y3


@njit(nogil=True, error_model="numpy")
def few_products(matrix, x, out):
    """out = x @ matrix^T; matrix (rows, columns), x (T, columns) and out (T, rows), contiguous and float32.

    It is fastest for T = 1 and multiples of 4.
    """
    (T, rows), columns = out.shape, matrix.shape[1]
    fours = T // 4
    whole = columns // LANES * LANES
    for i in range(0, rows - 3, 4):
        ahead = (i + 8) * columns  # one block further than the next arrives in time (measured: 4 and 16 are slower)
        for group in range(fours):
            t = 4 * group
            if fours == 1:
                sums = _four_lines(matrix, i, x, t, ahead)
            elif fours == 2:
                sums = _two_lines(matrix, i, x, t, ahead + 2 * group * columns)
            else:
                sums = _one_line(matrix, i, x, t, ahead + group * columns)
            for k in range(16):
                out[t + k % 4, i + k // 4] = sums[k]
            if whole < columns:
                for k in range(16):
                    out[t + k % 4, i + k // 4] += _dot(matrix[i + k // 4], x[t + k % 4], whole)
        for t in range(4 * fours, T):
            _four_rows(matrix[i], matrix[i + 1], matrix[i + 2], matrix[i + 3], x[t], out[t, i : i + 4])
    for i in range(rows // 4 * 4, rows):
        for t in range(T):
            out[t, i] = _dot(matrix[i], x[t], 0)
