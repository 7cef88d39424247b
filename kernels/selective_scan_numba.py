"""`selective_scan` on a CPU: one tile of 64 channels at a time, its states and inputs side by side in a few kilobytes.

The inner loops run over the channels of a tile, always 64 (what a last tile lacks is zero), so they become whole vectors. Rows
that one loop reads and writes lie at fixed distances in one array: then the compiler sees that they don't overlap.

B batch   T inputs   W channels   N states a channel
"""

from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numba import njit
from torch import Tensor

from .elementary import LOG2_E, exp2_of, lean, scratch, sums
from .selective_scan import CHUNK

TILE = 64

_part: Any = njit(_nrt=False, error_model="numpy", nogil=True, fastmath={"contract"})  # pyright: ignore[reportCallIssue]


def forward(
    u: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, state: Tensor,
    reset: Tensor | None, parents: Tensor | None, marked: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """(y, after, marks) as the custom op of `selective_scan` gives them; no marks unless `marked`."""
    (batch, T, W), N = u.shape, A.shape[1]
    run, run_each, _, _ = kernels(str(u.dtype)[6:])
    arrays = [_array(x) for x in (u, dt, A.mT * LOG2_E, B, C, D, state)]
    y, resets = torch.empty(u.shape, dtype=u.dtype), _resets(reset, batch, T)
    marks = torch.empty(batch, -(-T // CHUNK) if marked and parents is None else 0, N, W, dtype=u.dtype)
    if parents is None:
        after = torch.empty(batch, N, W, dtype=u.dtype)
        run(*arrays, resets, y.numpy(), after.numpy(), marks.numpy())
    else:
        after = torch.empty(batch, T, N, W, dtype=u.dtype)
        run_each(*arrays, resets, parents.numpy(), y.numpy(), after.numpy())
    return y, after, marks


def backward(
    gy: Tensor, gafter: Tensor, u: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, state: Tensor,
    reset: Tensor | None, parents: Tensor | None, after: Tensor, marks: Tensor,
) -> tuple[Tensor, ...]:  # fmt: skip
    """Gradients of u, dt, A, B, C, D and state from those of y and after."""
    _, _, run, run_each = kernels(str(u.dtype)[6:])
    u_, dt_, A_, B_, C_, D_, state_, after_, marks_, gy_ = (
        _array(x) for x in (u, dt, A.mT * LOG2_E, B, C, D, state, after, marks, gy)
    )
    resets = _resets(reset, *u.shape[:2])
    gu, gdt, gstate = np.empty_like(u_), np.empty_like(dt_), np.empty_like(state_)
    gA, gB, gC, gD = np.zeros_like(A_), np.zeros_like(B_), np.zeros_like(C_), np.zeros_like(D_)
    made = (gu, gdt, gA, gB, gC, gD, gstate)
    if parents is None:
        run(u_, dt_, A_, B_, C_, D_, resets, marks_, gy_, _array(gafter), *made)
    else:
        run_each(u_, dt_, A_, B_, C_, D_, state_, resets, parents.numpy(), after_, gy_, _array(gafter).copy(), *made)
    gA = np.ascontiguousarray(gA.T)
    return tuple(torch.from_numpy(x) for x in (gu, gdt, gA, gB, gC, gD, gstate))


def _array(x: Tensor) -> np.ndarray:
    return x.detach().contiguous().numpy()


def _resets(reset: Tensor | None, batch: int, T: int) -> np.ndarray:
    return np.zeros((batch, T), np.bool_) if reset is None else _array(reset)


@lru_cache
def kernels(name: str) -> tuple[Any, Any, Any, Any]:
    """(forward, forward_each, backward, backward_each) for "float32" or "float64".

    All take A (N, W) times log2(e) and states (B, N, W); `_each` is given parents (T,) and keeps the state after each input.
    """
    exp2 = exp2_of(name)
    real = np.float32 if name == "float32" else np.float64
    zero = real(0.0)
    ln2 = real(1.0 / LOG2_E)

    @lean
    def advance(inputs, channels, b, c):
        """One state of the tile's channels: inputs = (dt, dt u, y), channels = (A, h)."""
        for d in range(TILE):
            h = exp2(inputs[d] * channels[d]) * channels[TILE + d] + inputs[TILE + d] * b
            channels[TILE + d] = h
            inputs[2 * TILE + d] += c * h

    @_part
    def scan(inputs, channels, B, C, reset):
        """All inputs of a chunk (K, 3 * TILE) and all states of a tile (N, 2 * TILE)."""
        for t in range(inputs.shape[0]):
            if reset[t]:
                for n in range(channels.shape[0]):
                    channels[n, TILE:] = zero
            for n in range(channels.shape[0]):
                advance(inputs[t], channels[n], B[t, n], C[t, n])

    @_part
    def load(inputs, u, dt, D, start, d0):
        """dt, dt u and D u of a chunk's inputs from `start` on and a tile's channels from d0 on; the rest of the rows stays 0."""
        D = D[d0 : d0 + TILE]
        for t in range(inputs.shape[0]):
            row, u_t, dt_t = inputs[t], u[start + t, d0 : d0 + TILE], dt[start + t, d0 : d0 + TILE]
            for d in range(len(D)):
                row[d] = dt_t[d]
                row[TILE + d] = dt_t[d] * u_t[d]
                row[2 * TILE + d] = D[d] * u_t[d]

    @_part
    def copy_in(rows, place, matrix, d0):
        for n in range(matrix.shape[0]):
            row, source = rows[n, place : place + TILE], matrix[n, d0 : d0 + TILE]
            for d in range(len(source)):
                row[d] = source[d]

    @_part
    def copy_out(matrix, d0, rows, place):
        for n in range(matrix.shape[0]):
            row, target = rows[n, place : place + TILE], matrix[n, d0 : d0 + TILE]
            for d in range(len(target)):
                target[d] = row[d]

    @njit(nogil=True, error_model="numpy")
    def forward(u, dt, A, B, C, D, state, reset, y, after, marks):
        """Fill y (B, T, W), after (B, N, W) and marks, the states before each chunk, (B, T / CHUNK or 0, N, W)."""
        batch, T, W = u.shape
        tile, channels = scratch(CHUNK, 3 * TILE, u), scratch(A.shape[0], 2 * TILE, u)
        for i in range(batch):
            after[i] = state[i]
            for start in range(0, T, CHUNK):
                if marks.shape[1]:
                    marks[i, start // CHUNK] = after[i]
                inputs = tile[: min(CHUNK, T - start)]
                stop = start + len(inputs)
                for d0 in range(0, W, TILE):
                    if W - d0 < TILE:
                        tile[:], channels[:] = zero, zero
                    load(inputs, u[i], dt[i], D, start, d0)
                    copy_in(channels, 0, A, d0)
                    copy_in(channels, TILE, after[i], d0)
                    scan(inputs, channels, B[i, start:stop], C[i, start:stop], reset[i, start:stop])
                    copy_out(y[i, start:stop], d0, inputs, 2 * TILE)
                    copy_out(after[i], d0, channels, TILE)

    @njit(nogil=True, error_model="numpy")
    def forward_each(u, dt, A, B, C, D, state, reset, parents, y, after):
        """Fill y (B, T, W) and after (B, T, N, W)."""
        batch, T, W = u.shape
        inputs, channels = scratch(1, 3 * TILE, u), scratch(A.shape[0], 2 * TILE, u)
        for i in range(batch):
            for d0 in range(0, W, TILE):
                if W - d0 < TILE:
                    inputs[:], channels[:] = zero, zero
                copy_in(channels, 0, A, d0)
                for t in range(T):
                    load(inputs, u[i], dt[i], D, t, d0)
                    copy_in(channels, TILE, state[i] if parents[t] < 0 else after[i, parents[t]], d0)
                    scan(inputs, channels, B[i, t : t + 1], C[i, t : t + 1], reset[i, t : t + 1])
                    copy_out(y[i, t : t + 1], d0, inputs, 2 * TILE)
                    copy_out(after[i, t], d0, channels, TILE)

    @lean
    def remember(inputs, channels, before, now, b):
        """As `advance` without y, from the state in `before` into now = (decay, h, ...)."""
        for d in range(TILE):
            decay = exp2(inputs[d] * channels[d])
            now[d] = decay
            now[TILE + d] = decay * before[TILE + d] + inputs[TILE + d] * b

    @_part
    def replay(inputs, channels, history, B, reset):
        """The decays and states of a chunk into history (K + 1, N, ...), of whose first row the state is given."""
        for t in range(inputs.shape[0]):
            for n in range(channels.shape[0]):
                remember(inputs[t], channels[n], history[t, n], history[t + 1, n], B[t, n])
                if reset[t]:
                    now = history[t + 1, n]
                    for d in range(TILE):
                        now[d] = zero
                        now[TILE + d] = inputs[t, TILE + d] * B[t, n]

    @sums
    def retreat(inputs, channels, before, now, b, c):
        """The step of `advance` backwards: (sum over channels of gh dt u, of gy h).

        inputs = (dt, dt u, gy, gradient of dt through the decay, sum of gh B), channels = (A, gradient of A, gh),
        now = (decay, h).
        """
        to_b, to_c = zero, zero
        for d in range(TILE):
            gy = inputs[2 * TILE + d]
            gh = channels[2 * TILE + d] + c * gy
            to_b += gh * inputs[TILE + d]
            to_c += gy * now[TILE + d]
            gh_before = gh * now[d]
            g_exponent = gh_before * before[TILE + d]
            channels[TILE + d] += g_exponent * inputs[d]
            inputs[3 * TILE + d] += g_exponent * channels[d]
            inputs[4 * TILE + d] += gh * b
            channels[2 * TILE + d] = gh_before
        return to_b, to_c

    @_part
    def rewind(inputs, channels, history, B, C, gB, gC):
        for t in range(inputs.shape[0] - 1, -1, -1):
            for n in range(channels.shape[0]):
                to_b, to_c = retreat(inputs[t], channels[n], history[t, n], history[t + 1, n], B[t, n], C[t, n])
                gB[t, n] += to_b
                gC[t, n] += to_c

    @_part
    def load_back(inputs, u, dt, gy, start, d0):
        for t in range(inputs.shape[0]):
            row, u_t, dt_t, gy_t = (
                inputs[t],
                *(u[start + t, d0 : d0 + TILE], dt[start + t, d0 : d0 + TILE], gy[start + t, d0 : d0 + TILE]),
            )
            for d in range(len(u_t)):
                row[d] = dt_t[d]
                row[TILE + d] = dt_t[d] * u_t[d]
                row[2 * TILE + d] = gy_t[d]
            row[3 * TILE :] = zero

    @_part
    def store_back(inputs, u, dt, D, gu, gdt, gD, start, d0):
        D, gD = D[d0 : d0 + TILE], gD[d0 : d0 + TILE]
        for t in range(inputs.shape[0]):
            row, u_t, dt_t = inputs[t], u[start + t, d0 : d0 + TILE], dt[start + t, d0 : d0 + TILE]
            gu_t, gdt_t = gu[start + t, d0 : d0 + TILE], gdt[start + t, d0 : d0 + TILE]
            for d in range(len(D)):
                gu_t[d] = dt_t[d] * row[4 * TILE + d] + D[d] * row[2 * TILE + d]
                gdt_t[d] = u_t[d] * row[4 * TILE + d] + ln2 * row[3 * TILE + d]
                gD[d] += row[2 * TILE + d] * u_t[d]

    @njit(nogil=True, error_model="numpy")
    def backward(u, dt, A, B, C, D, reset, marks, gy, gafter, gu, gdt, gA, gB, gC, gD, gstate):
        """Fill gu, gdt (B, T, W) and gstate (B, N, W), add to gA (N, W), gB, gC (B, T, N) and gD (W,)."""
        batch, T, W = u.shape
        N = A.shape[0]
        tile, channels = scratch(CHUNK, 5 * TILE, u), scratch(N, 3 * TILE, u)
        past = scratch((CHUNK + 1) * N, 2 * TILE, u).reshape(CHUNK + 1, N, 2 * TILE)
        for i in range(batch):
            gstate[i] = gafter[i]
            for start in range((T - 1) // CHUNK * CHUNK, -1, -CHUNK):
                K = min(CHUNK, T - start)
                stop = start + K
                inputs = tile[:K]
                for d0 in range(0, W, TILE):
                    if W - d0 < TILE:
                        tile[:], channels[:], past[:] = zero, zero, zero
                    load_back(inputs, u[i], dt[i], gy[i], start, d0)
                    copy_in(channels, 0, A, d0)
                    copy_in(channels, TILE, gA, d0)
                    copy_in(channels, 2 * TILE, gstate[i], d0)
                    copy_in(past[0], TILE, marks[i, start // CHUNK], d0)
                    replay(inputs, channels, past, B[i, start:stop], reset[i, start:stop])
                    rewind(inputs, channels, past, *(B[i, start:stop], C[i, start:stop], gB[i, start:stop], gC[i, start:stop]))
                    store_back(inputs, u[i], dt[i], D, gu[i], gdt[i], gD, start, d0)
                    copy_out(gA, d0, channels, TILE)
                    copy_out(gstate[i], d0, channels, 2 * TILE)

    @njit(nogil=True, error_model="numpy")
    def backward_each(u, dt, A, B, C, D, state, reset, parents, after, gy, gafter, gu, gdt, gA, gB, gC, gD, gstate):
        """As `backward`, from the states after each input; gafter (B, T, N, W) is overwritten."""
        batch, T, W = u.shape
        N = A.shape[0]
        inputs, channels = scratch(1, 5 * TILE, u), scratch(N, 3 * TILE, u)
        past = scratch(2 * N, 2 * TILE, u).reshape(2, N, 2 * TILE)
        for i in range(batch):
            gstate[i] = zero
            for t in range(T - 1, -1, -1):
                before = state[i] if parents[t] < 0 else after[i, parents[t]]
                gbefore = gstate[i] if parents[t] < 0 else gafter[i, parents[t]]
                for d0 in range(0, W, TILE):
                    if W - d0 < TILE:
                        inputs[:], channels[:], past[:] = zero, zero, zero
                    load_back(inputs, u[i], dt[i], gy[i], t, d0)
                    copy_in(channels, 0, A, d0)
                    copy_in(channels, TILE, gA, d0)
                    copy_in(channels, 2 * TILE, gafter[i, t], d0)
                    copy_in(past[0], TILE, before, d0)
                    replay(inputs, channels, past, B[i, t : t + 1], reset[i, t : t + 1])
                    rewind(inputs, channels, past, *(B[i, t : t + 1], C[i, t : t + 1], gB[i, t : t + 1], gC[i, t : t + 1]))
                    store_back(inputs, u[i], dt[i], D, gu[i], gdt[i], gD, t, d0)
                    copy_out(gA, d0, channels, TILE)
                    for n in range(N):
                        for d in range(min(TILE, W - d0)):
                            gbefore[n, d0 + d] += channels[n, 2 * TILE + d]

    return forward, forward_each, backward, backward_each
