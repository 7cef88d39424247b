"""The compiled loops of `ssd`: the plain recurrence forward and backward, and the decays along paths.

B batch   T inputs   H heads   G groups   P head width   N state size
"""

import math
from typing import Any

import numpy as np
import torch
from numba import njit
from torch import Tensor

_compiled: Any = njit(nogil=True, error_model="numpy")
# sums in any order, so that they vectorise; NaN and infinity stay what they are
_summing: Any = njit(nogil=True, error_model="numpy", fastmath={"reassoc", "contract", "nsz"})
_CHAIN = np.empty(0, np.int64)
_NO_RESET = np.empty((0, 0), np.bool_)


def recurrence(
    x: Tensor, log_decay: Tensor, b: Tensor, c: Tensor, state: Tensor, reset: Tensor | None, parents: np.ndarray | None
) -> tuple[Tensor, Tensor]:
    """(y (B, T, H, P), the state after every input (B, T, H, P, N))."""
    B, T, H, P = x.shape
    y, states = x.new_empty(x.shape), x.new_empty((B, T, H, P, b.shape[3]))
    _recurrence(*_arrays(x, log_decay, b, c, state), *_order(reset, parents), y.numpy(), states.numpy())
    return y, states


def recurrence_backward(
    x: Tensor,
    log_decay: Tensor,
    b: Tensor,
    c: Tensor,
    state: Tensor,
    reset: Tensor | None,
    parents: np.ndarray | None,
    states: Tensor,
    grad_y: Tensor,
    grad_states: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients by x, log_decay, b, c and the first state."""
    grads = torch.empty_like(x), torch.empty_like(log_decay), torch.zeros_like(b), torch.zeros_like(c), torch.zeros_like(state)
    grads = tuple(grad.contiguous() for grad in grads)
    running = grad_states.clone(memory_format=torch.contiguous_format)
    _recurrence_backward(
        *_arrays(x, log_decay, b, c, state),
        *_order(reset, parents),
        *_arrays(states, grad_y),
        running.numpy(),
        *(grad.numpy() for grad in grads),
    )
    return grads  # pyright: ignore[reportReturnType]


def short_outputs(x: Tensor, decay: Tensor, b: Tensor, c: Tensor, state: Tensor, parents: np.ndarray | None) -> Tensor:
    """(B, T, H, P), the outputs of `ssd_chunk.forward` for a few inputs, without its twenty calls of torch."""
    B, T = x.shape[:2]
    G = b.shape[2]
    read = c.transpose(1, 2) @ state.view(B, G, -1, state.shape[3]).mT  # (B, G, T, R P): a product that is worth torch's call
    y = x.new_empty(x.shape)
    x_, decay_, b_, c_, read_ = _arrays(x, decay, b, c, read)
    _short_outputs(x_, decay_, b_, c_, read_, _CHAIN if parents is None else parents, y.numpy(), *_work(T, x_.dtype))
    return y


def short_last(x: Tensor, decay: Tensor, b: Tensor, state: Tensor) -> Tensor:
    """(B, H, P, N), `ssd_chunk.last_state` of a few inputs."""
    B, T, H, _ = x.shape
    G, N = b.shape[2:]
    reached, total = x.new_empty((B, G, T, x.shape[3] * H // G)), x.new_empty((B, H, 1, 1))
    _reach(*_arrays(x, decay), reached.numpy(), total.numpy())
    last = state * total
    last.view(B * G, -1, N).baddbmm_(reached.view(B * G, T, -1).mT, b.transpose(1, 2).reshape(B * G, T, N))
    return last


def _work(T: int, dtype: np.dtype) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """The scores, L, p and the weights of a row."""
    return np.empty((T, T), dtype), np.empty((T, T), dtype), np.empty(T, dtype), np.empty(T, dtype)


def path_decays(decay: Tensor, parents: np.ndarray | None) -> tuple[Tensor, Tensor]:
    """(L (B, H, T, T), p (B, T, H)) of `ssd_chunk` from the decays (B, T, H)."""
    B, T, H = decay.shape
    L, p = decay.new_empty((B, H, T, T)), decay.new_empty(decay.shape)
    _path_decays(decay.contiguous().numpy(), _CHAIN if parents is None else parents, L.numpy(), p.numpy())
    return L, p


def _arrays(*tensors: Tensor):
    return [tensor.detach().contiguous().numpy() for tensor in tensors]


def _order(reset: Tensor | None, parents: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    return _NO_RESET if reset is None else reset.contiguous().numpy(), _CHAIN if parents is None else parents


@_summing
def advance_row(before, after, a, x, b, c):
    """A row of the state after an input: a * before + x * b. Its product with c."""
    y = b.dtype.type(0)
    for n in range(before.shape[0]):
        s = a * before[n] + x * b[n]
        after[n] = s
        y += s * c[n]
    return y


@_compiled
def _recurrence(x, log_decay, b, c, state, reset, parents, y, states):
    B, T, H, P = x.shape
    heads = H // b.shape[2]
    for i in range(B):
        for t in range(T):
            parent = parents[t] if parents.shape[0] else t - 1
            forget = reset.shape[0] and reset[i, t]
            before = state[i] if parent < 0 else states[i, parent]
            for h in range(H):
                a = x.dtype.type(0) if forget else math.exp(log_decay[i, t, h])
                b_t, c_t = b[i, t, h // heads], c[i, t, h // heads]
                for p in range(P):
                    y[i, t, h, p] = advance_row(before[h, p], states[i, t, h, p], a, x[i, t, h, p], b_t, c_t)


@_summing
def _row_backward(before, after, a, x, b, c, dy, grad, grad_before, grad_b, grad_c):
    """Adds to the gradients by b, c and the row before; those by x and by a are returned."""
    by_x, by_a = b.dtype.type(0), b.dtype.type(0)
    for n in range(before.shape[0]):
        g = grad[n] + dy * c[n]
        grad_c[n] += dy * after[n]
        grad_b[n] += x * g
        by_x += b[n] * g
        by_a += before[n] * g
        grad_before[n] += a * g
    return by_x, by_a


@_compiled
def _recurrence_backward(
    x, log_decay, b, c, state, reset, parents, states, grad_y, running, grad_x, grad_log, grad_b, grad_c, grad_state
):
    """`running` (B, T, H, P, N) begins as the gradient by the states and ends as garbage."""
    B, T, H, P = x.shape
    heads = H // b.shape[2]
    for i in range(B):
        for t in range(T - 1, -1, -1):
            parent = parents[t] if parents.shape[0] else t - 1
            forget = reset.shape[0] and reset[i, t]
            before = state[i] if parent < 0 else states[i, parent]
            below = grad_state[i] if parent < 0 else running[i, parent]
            for h in range(H):
                a = x.dtype.type(0) if forget else math.exp(log_decay[i, t, h])
                g = h // heads
                by_decay = x.dtype.type(0)
                for p in range(P):
                    by_x, by_a = _row_backward(
                        before[h, p],
                        states[i, t, h, p],
                        a,
                        x[i, t, h, p],
                        b[i, t, g],
                        c[i, t, g],
                        grad_y[i, t, h, p],
                        running[i, t, h, p],
                        below[h, p],
                        grad_b[i, t, g],
                        grad_c[i, t, g],
                    )
                    grad_x[i, t, h, p] = by_x
                    by_decay += by_a
                grad_log[i, t, h] = a * by_decay


@_compiled
def _short_outputs(x, decay, b, c, read, parents, y, scores, L, p, weights):
    B, T, H, P = x.shape
    G = b.shape[2]
    for i in range(B):
        for g in range(G):
            for t in range(T):
                for j in range(t + 1):
                    scores[t, j] = _dot(c[i, t, g], b[i, j, g])
            for r in range(H // G):
                h = g * (H // G) + r
                for t in range(T):
                    _extend(L, p, t, parents[t] if parents.shape[0] else t - 1, decay[i, t, h])
                    _scale(weights, L[t], scores[t], t + 1)
                    _set(y[i, t, h], p[t], read[i, g, t, r * P : (r + 1) * P])
                    _add_all(y[i, t, h], weights[: t + 1], x, i, h)


@_compiled
def _reach(x, decay, reached, total):
    """What the end of the chain sees of each input, grouped as (B, G, T, R P), and of the state before it."""
    B, T, H, P = x.shape
    heads = H // reached.shape[1]
    for i in range(B):
        for h in range(H):
            left, start = x.dtype.type(1), h % heads * P
            for t in range(T - 1, -1, -1):
                _set(reached[i, h // heads, t, start : start + P], left, x[i, t, h])
                left *= decay[i, t, h]
            total[i, h, 0, 0] = left


@_compiled
def _path_decays(decay, parents, L, p):
    B, T, H = decay.shape
    for i in range(B):
        for h in range(H):
            for t in range(T):
                _extend(L[i, h], p[i, :, h], t, parents[t] if parents.shape[0] else t - 1, decay[i, t, h])


@_compiled
def _extend(L, p, t, parent, a):
    """Row t of L and entry t of p from those of its parent and the decay between them."""
    row = L[t]
    p[t] = a if parent < 0 else a * p[parent]
    if parent >= 0:
        _set(row[: parent + 1], a, L[parent])
    row[parent + 1 :] = 0
    row[t] = 1


@_summing
def _dot(a, b):
    total = a.dtype.type(0)
    for n in range(a.shape[0]):
        total += a[n] * b[n]
    return total


@_compiled
def _scale(out, a, b, length):
    for n in range(length):
        out[n] = a[n] * b[n]


@_compiled
def _set(out, a, x):
    for n in range(out.shape[0]):
        out[n] = a * x[n]


@_compiled
def _add_all(out, weights, rows, i, g):
    """out += weights @ rows[i, :, g], four rows at a time: a pass over `out` costs as much as its sums.

    Numba knows that rows[i, j, g] is contiguous, not that rows[i, :, g][j] is.
    """
    T = weights.shape[0]
    fours = T // 4 * 4
    for j in range(0, fours, 4):
        _add_four(out, weights[j : j + 4], rows[i, j, g], rows[i, j + 1, g], rows[i, j + 2, g], rows[i, j + 3, g])
    for j in range(fours, T):
        _add(out, weights[j], rows[i, j, g])


@_summing
def _add(out, a, x):
    for n in range(out.shape[0]):
        out[n] += a * x[n]


@_summing
def _add_four(out, a, x0, x1, x2, x3):
    a0, a1, a2, a3 = a[0], a[1], a[2], a[3]
    for n in range(out.shape[0]):
        out[n] += a0 * x0[n] + a1 * x1[n] + a2 * x2[n] + a3 * x3[n]
