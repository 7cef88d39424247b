"""The loops of `ssd` on a CUDA device: the recurrence forward and backward, one thread a row of a head's state, and the decays
along paths, one thread a column.

Each `launch_` function takes device arrays (or NumPy's, in Numba's simulator), which is all that a test without a device can
reach; a sequence is given as the tree in which each input follows the one before. The products of `ssd_chunk` are torch's.
"""

from typing import Any

import numpy as np
import torch
from numba import cuda as numba_cuda
from torch import Tensor

cuda: Any = numba_cuda  # its decorator and intrinsics puzzle type checkers

THREADS = 64


def recurrence(
    x: Tensor, log_decay: Tensor, b: Tensor, c: Tensor, state: Tensor, reset: Tensor | None, parents: np.ndarray | None
) -> tuple[Tensor, Tensor]:
    """(y (B, T, H, P), the state after every input (B, T, H, P, N))."""
    B, T, H, P = x.shape
    y, states = x.new_empty(x.shape), x.new_empty((B, T, H, P, b.shape[3]))
    arrays = [*_arrays(x, _decay(log_decay, reset), b, c, state), _tree(x, parents), y, states, _stream(x)]
    launch_recurrence(*arrays)
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
    grads = tuple(v.new_zeros(v.shape) for v in (x, log_decay, b, c, state))
    running = grad_states.clone(memory_format=torch.contiguous_format)
    arrays = _arrays(x, _decay(log_decay, reset), b, c, state)
    arrays += [_tree(x, parents), *_arrays(states, grad_y), running, *grads, _stream(x)]
    launch_recurrence_backward(*arrays)
    return grads  # pyright: ignore[reportReturnType]


def path_decays(decay: Tensor, parents: np.ndarray | None) -> tuple[Tensor, Tensor]:
    """(L (B, H, T, T), p (B, T, H)) of `ssd_chunk` from the decays (B, T, H)."""
    B, T, H = decay.shape
    L, p = decay.new_zeros((B, H, T, T)), decay.new_empty(decay.shape)
    launch_path_decays(decay.contiguous(), _tree(decay, parents), L, p, _stream(decay))
    return L, p


def launch_recurrence(x, decay, b, c, state, parents, y, states, stream=0):
    """Fills y and states; decay (B, T, H) is 0 at a reset."""
    rows = x.shape[0] * x.shape[2] * x.shape[3]
    _recurrence[-(-rows // THREADS), THREADS, stream](x, decay, b, c, state, parents, y, states)


def launch_recurrence_backward(
    x, decay, b, c, state, parents, states, grad_y, running, grad_x, grad_log, grad_b, grad_c, grad_state, stream=0
):
    """Adds to the gradients; `running` begins as the gradient by the states and ends as garbage."""
    rows = x.shape[0] * x.shape[2] * x.shape[3]
    _recurrence_backward[-(-rows // THREADS), THREADS, stream](
        x, decay, b, c, state, parents, states, grad_y, running, grad_x, grad_log, grad_b, grad_c, grad_state
    )


def launch_path_decays(decay, parents, L, p, stream=0):
    """Fills p and, where j is i or an ancestor, L; L is zero elsewhere and begins so."""
    columns = decay.shape[0] * decay.shape[2] * (decay.shape[1] + 1)
    _path_decays[-(-columns // THREADS), THREADS, stream](decay, parents, L, p)


def _decay(log_decay: Tensor, reset: Tensor | None) -> Tensor:
    decay = log_decay.detach().exp()
    return decay if reset is None else decay.masked_fill(reset.unsqueeze(-1), 0.0)


def _arrays(*tensors: Tensor) -> Any:
    return [tensor.detach().contiguous() for tensor in tensors]


def _tree(x: Tensor, parents: np.ndarray | None) -> Tensor:
    tree = torch.arange(-1, x.shape[1] - 1) if parents is None else torch.from_numpy(parents)
    return tree.to(x.device)


def _stream(x: Tensor):
    return cuda.external_stream(torch.cuda.current_stream(x.device).cuda_stream)


@cuda.jit
def _recurrence(x, decay, b, c, state, parents, y, states):
    row, P = cuda.grid(1), x.shape[3]
    i, h, p = row // (x.shape[2] * P), row // P % x.shape[2], row % P
    if i >= x.shape[0]:
        return
    g = h // (x.shape[2] // b.shape[2])
    for t in range(x.shape[1]):
        parent, a, x_t = parents[t], decay[i, t, h], x[i, t, h, p]
        total = x.dtype.type(0)
        for n in range(b.shape[3]):
            before = states[i, parent, h, p, n] if parent >= 0 else state[i, h, p, n]
            s = a * before + x_t * b[i, t, g, n]
            states[i, t, h, p, n] = s
            total += s * c[i, t, g, n]
        y[i, t, h, p] = total


@cuda.jit
def _recurrence_backward(x, decay, b, c, state, parents, states, grad_y, running, grad_x, grad_log, grad_b, grad_c, grad_state):
    row, P = cuda.grid(1), x.shape[3]
    i, h, p = row // (x.shape[2] * P), row // P % x.shape[2], row % P
    if i >= x.shape[0]:
        return
    g = h // (x.shape[2] // b.shape[2])
    for t in range(x.shape[1] - 1, -1, -1):
        parent, a, x_t, dy = parents[t], decay[i, t, h], x[i, t, h, p], grad_y[i, t, h, p]
        by_x, by_a = x.dtype.type(0), x.dtype.type(0)
        for n in range(b.shape[3]):
            before = states[i, parent, h, p, n] if parent >= 0 else state[i, h, p, n]
            grad = running[i, t, h, p, n] + dy * c[i, t, g, n]
            by_x += grad * b[i, t, g, n]
            by_a += grad * before
            cuda.atomic.add(grad_c, (i, t, g, n), dy * states[i, t, h, p, n])
            cuda.atomic.add(grad_b, (i, t, g, n), grad * x_t)
            if parent >= 0:
                running[i, parent, h, p, n] += a * grad
            else:
                grad_state[i, h, p, n] += a * grad
        grad_x[i, t, h, p] = by_x
        cuda.atomic.add(grad_log, (i, t, h), a * by_a)


@cuda.jit
def _path_decays(decay, parents, L, p):
    """The last column is p."""
    T, H = decay.shape[1], decay.shape[2]
    column = cuda.grid(1)
    i, h, j = column // (H * (T + 1)), column // (T + 1) % H, column % (T + 1)
    if i >= decay.shape[0]:
        return
    if j == T:
        for t in range(T):
            p[i, t, h] = decay[i, t, h] * (p[i, parents[t], h] if parents[t] >= 0 else 1)
        return
    L[i, h, j, j] = 1
    for t in range(j + 1, T):
        if parents[t] >= j:
            L[i, h, t, j] = decay[i, t, h] * L[i, h, parents[t], j]
