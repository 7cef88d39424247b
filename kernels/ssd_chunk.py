"""State-space duality: what a scan over a chunk of inputs gives, by matrix products (Dao & Gu 2024, arXiv 2405.21060, section 6).

    y_i = sum_j L_ij (c_i . b_j) x_j + p_i S c_i          L_ij = product of the decays after j up to i on the path to i, else 0
    S'  = p_T S + sum_j l_j x_j b_j^T                      p_i the same product from the state before the chunk, l = last row of L

The same holds for a tree, whose L is zero where j is not an ancestor of i: drafts are verified without a state for each node.
L and p are products of decays, each found from its parent's row by one multiplication: no difference of sums, and a reset is a
decay of 0, so nothing overflows and nothing is NaN.

B batch   Q inputs of a chunk   H heads   G groups of R = H / G heads   P head width   N state size
"""

import numpy as np
import torch
from torch import Tensor

CHUNK = 64  # inputs: the fastest of 32, 64, 128 and 256 on a CPU with H = 16, P = 64, N = 128


def forward(
    x: Tensor, decay: Tensor, b: Tensor, c: Tensor, state: Tensor, parents: np.ndarray | None, paths, keep: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """(y (B, T, H, P), the last state (B, H, P, N), the states before each chunk (B, C, H, P, N) if `keep`).

    A tree is one chunk and has no last state.

    :param decay: (B, T, H), 0 at a reset
    :param paths: (decay, parents) to (L (B, H, Q, Q), p (B, Q, H))
    """
    y, starts = x.new_empty(x.shape), []
    for part in _chunks(x.shape[1], parents):
        L, p = paths(decay[:, part], parents)
        y[:, part] = outputs(x[:, part], b[:, part], c[:, part], state, L, p)
        starts.append(state)
        if parents is None:
            state = after(x[:, part], b[:, part], state, L, p)
    empty = x.new_empty(0)
    return y, state if parents is None else empty, torch.stack(starts, dim=1) if keep else empty


def last_state(x: Tensor, decay: Tensor, b: Tensor, state: Tensor, paths) -> Tensor:
    """(B, H, P, N) after the last input of a chain: `forward` without its outputs."""
    for part in _chunks(x.shape[1], None):
        L, p = paths(decay[:, part], None)
        state = after(x[:, part], b[:, part], state, L, p)
    return state


def outputs(x: Tensor, b: Tensor, c: Tensor, state: Tensor, L: Tensor, p: Tensor) -> Tensor:
    """(B, Q, H, P) of one chunk from the state before it."""
    b, c = b.transpose(1, 2), c.transpose(1, 2)  # (B, G, Q, N)
    weights = _weights(L, c @ b.mT)
    return torch.addcmul((weights @ x.transpose(1, 2)).transpose(1, 2), _read(state, c, x), p.unsqueeze(-1))


def after(x: Tensor, b: Tensor, state: Tensor, L: Tensor, p: Tensor) -> Tensor:
    """(B, H, P, N) after one chunk."""
    reach = L[:, :, -1].transpose(1, 2).unsqueeze(-1)  # (B, Q, H, 1), of each input to the end
    written = _grouped(x * reach, b.shape[2]).mT @ b.transpose(1, 2)  # (B, G, R P, N)
    return torch.addcmul(written.view(state.shape), state, p[:, -1, :, None, None])


def backward(
    x: Tensor,
    decay: Tensor,
    b: Tensor,
    c: Tensor,
    starts: Tensor,
    parents: np.ndarray | None,
    paths,
    grad_y: Tensor,
    grad_last: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients by x, the logarithm of the decay, b, c and the first state."""
    made, grad_state = [], grad_last if grad_last is not None else torch.zeros_like(starts[:, 0])
    for k, part in reversed(list(enumerate(_chunks(x.shape[1], parents)))):
        L, p = paths(decay[:, part], parents)
        *grads, grad_state = _chunk_backward(
            x[:, part], b[:, part], c[:, part], starts[:, k], L, p, parents, grad_y[:, part], grad_state
        )
        made.append(grads)
    x_, log_decay_, b_, c_ = (torch.cat(parts[::-1], dim=1) for parts in zip(*made))
    return x_, log_decay_.masked_fill_(decay == 0, 0.0), b_, c_, grad_state


def _chunk_backward(x, b, c, state, L, p, parents, grad_y, grad_after):
    """With E_ij = L_ij (c_i . b_j) (x_j . dy_i), the gradient by the logarithm of decay k is the sum of E_ij over i after and j
    before k: sums over rows minus sums over columns, of all nodes below k, and the same for what comes from and goes to states.
    """
    G = b.shape[2]
    b, c, xh, dyh = (v.transpose(1, 2) for v in (b, c, x, grad_y))  # (B, G, Q, N) and (B, H, Q, P)
    weights = _weights(L, c @ b.mT)
    by_weight = dyh @ xh.mT  # (B, H, Q, Q)
    by_score = _split(L * by_weight, G).sum(2)  # (B, G, Q, Q)
    moved = by_weight.mul_(weights)
    moved.diagonal(dim1=-2, dim2=-1).zero_()  # input i itself passes through no decay

    grad_read = grad_y * p.unsqueeze(-1)  # (B, Q, H, P) of S c_i
    to_state = _grouped(grad_read, G)  # (B, G, Q, R P)
    flat = state.reshape(len(x), G, -1, state.shape[-1])  # (B, G, R P, N)
    flow = moved.sum(-1) - moved.sum(-2) + (grad_read * _read(state, c, x)).sum(-1).transpose(1, 2)  # (B, H, Q)
    grad_c = by_score @ b + to_state @ flat
    grad_b = by_score.mT @ c
    grad_x = (weights.mT @ dyh).transpose(1, 2)
    grad_state = (to_state.mT @ c).view(state.shape)
    if parents is not None:
        below = torch.from_numpy(_below(parents)).to(flow)  # (Q, Q)
        return grad_x, (flow @ below.mT).transpose(1, 2), grad_b.transpose(1, 2), grad_c.transpose(1, 2), grad_state

    grad_log = flow.flip(-1).cumsum(-1).flip(-1).transpose(1, 2)  # (B, Q, H)
    reach = L[:, :, -1].transpose(1, 2).unsqueeze(-1)  # (B, Q, H, 1)
    from_state = _read(grad_after, b, x) * reach  # (B, Q, H, P)
    written = (x * from_state).sum(-1)  # (B, Q, H)
    kept = p[:, -1] * (state * grad_after).sum((-2, -1))  # (B, H)
    grad_log = grad_log + written.cumsum(1) - written + kept.unsqueeze(1)
    grad_b = grad_b + _grouped(x * reach, G) @ grad_after.reshape(flat.shape)
    grad_state = torch.addcmul(grad_state, grad_after, p[:, -1, :, None, None])
    return grad_x + from_state, grad_log, grad_b.transpose(1, 2), grad_c.transpose(1, 2), grad_state


def _chunks(T: int, parents: np.ndarray | None) -> list[slice]:
    size = T if parents is not None else CHUNK
    return [slice(start, min(start + size, T)) for start in range(0, T, size)]


def _split(x: Tensor, G: int) -> Tensor:
    """(B, H, ...) -> (B, G, R, ...)"""
    return x.view(x.shape[0], G, -1, *x.shape[2:])


def _weights(L: Tensor, scores: Tensor) -> Tensor:
    """(B, H, Q, Q) from (B, H, Q, Q) and each group's (B, G, Q, Q)."""
    return (_split(L, scores.shape[1]) * scores.unsqueeze(2)).view(L.shape)


def _grouped(x: Tensor, G: int) -> Tensor:
    """(B, Q, H, P) -> (B, G, Q, R P)"""
    return x.reshape(*x.shape[:2], G, -1).transpose(1, 2)


def _read(state: Tensor, c: Tensor, x: Tensor) -> Tensor:
    """(B, Q, H, P) S c_i, from (B, H, P, N) and (B, G, Q, N)."""
    read = c @ state.reshape(c.shape[0], c.shape[1], -1, c.shape[3]).mT  # (B, G, Q, R P)
    return read.transpose(1, 2).reshape(x.shape)


def _below(parents: np.ndarray) -> np.ndarray:
    """(T, T) whether node i is k or below it, for each k and i."""
    below = np.eye(len(parents), dtype=bool)
    for i, parent in enumerate(parents.tolist()):
        if parent >= 0:
            below[:, i] |= below[:, parent]
    return below
