"""WKV of RWKV-4 on a CUDA device, forward and backward: a thread for each channel of each sequence, plain loops over the inputs.

The functions take tensors, or NumPy's arrays in Numba's simulator, and fill the outputs among them, as those of wkv4_numba do;
`reset` (B, T) and `parents` (T,) are always there.
"""

import math

from numba import cuda

from .dispatch import device_scratch, device_stream

THREADS = 128
LOWEST = -1e38  # as in wkv4.py


def forward(w, u, k, v, state, y, after, saved, reset, parents, chunk):
    """Fill y (B, T, D), after (B, T or 1, 3, D), and saved (B, chunks or 0, 3, D), the states before inputs 0, chunk, ..."""
    B, T, D = k.shape
    turns = device_scratch(k, (B, T if after.shape[1] == T else 2, 3, D))
    launch = _forward[-(-B * D // THREADS), THREADS, device_stream(k)]  # pyright: ignore[reportIndexIssue]
    launch(w, u, k, v, state, y, after, saved, reset, parents, chunk, turns)


def backward(w, u, k, v, saved, gy, gafter, gwu, gk, gv, gstate, reset, parents, chunk):
    """Fill gwu (B, 2, D), gk and gv (B, T, D) and gstate (B, 3, D) from gy and gafter."""
    B, T, D = k.shape
    states, grads = (device_scratch(k, (B, min(chunk, T) + 1, 3, D)) for _ in range(2))
    launch = _backward[-(-B * D // THREADS), THREADS, device_stream(k)]  # pyright: ignore[reportIndexIssue]
    launch(w, u, k, v, saved, gy, gafter, gwu, gk, gv, gstate, reset, parents, chunk, states, grads)


@cuda.jit(device=True)
def _step(w, u, k, v, aa, bb, pp):
    """(y, aa, bb, pp) after one input."""
    o = max(pp, u + k)
    e1, e2 = math.exp(pp - o), math.exp(u + k - o)
    y = (e1 * aa + e2 * v) / (e1 * bb + e2)
    p = max(pp + w, k)
    e1, e2 = math.exp(pp + w - p), math.exp(k - p)
    return y, e1 * aa + e2 * v, e1 * bb + e2, p


@cuda.jit
def _forward(w, u, k, v, state, y, after, saved, reset, parents, chunk, turns):
    B, T, D = k.shape
    thread = cuda.grid(1)  # pyright: ignore[reportCallIssue]
    if thread >= B * D:
        return
    b, d = thread // D, thread % D
    slots = turns.shape[1]  # all states, or those of the last two inputs
    for t in range(T):
        aa, bb, pp = state[b, 0, d], state[b, 1, d], state[b, 2, d]
        if parents[t] >= 0:
            slot = parents[t] % slots
            aa, bb, pp = turns[b, slot, 0, d], turns[b, slot, 1, d], turns[b, slot, 2, d]
        if t % chunk == 0 and saved.shape[1] > 0:
            saved[b, t // chunk, 0, d] = aa
            saved[b, t // chunk, 1, d] = bb
            saved[b, t // chunk, 2, d] = pp
        if reset[b, t]:
            aa, bb, pp = 0.0, 0.0, LOWEST
        y[b, t, d], aa, bb, pp = _step(w[d], u[d], k[b, t, d], v[b, t, d], aa, bb, pp)
        turns[b, t % slots, 0, d] = aa
        turns[b, t % slots, 1, d] = bb
        turns[b, t % slots, 2, d] = pp
        if after.shape[1] == T or t == T - 1:
            after[b, t % after.shape[1], 0, d] = aa
            after[b, t % after.shape[1], 1, d] = bb
            after[b, t % after.shape[1], 2, d] = pp


@cuda.jit
def _backward(w, u, k, v, saved, gy, gafter, gwu, gk, gv, gstate, reset, parents, chunk, states, grads):
    """The equations are those of `wkv4_numba._step_back`, where they are explained."""
    B, T, D = k.shape
    thread = cuda.grid(1)  # pyright: ignore[reportCallIssue]
    if thread >= B * D:
        return
    b, d = thread // D, thread % D
    gw, gu = 0.0, 0.0
    for j in range(3):
        grads[b, 0, j, d] = 0.0
    for c in range(saved.shape[1] - 1, -1, -1):
        begin = c * chunk
        m = min(chunk, T - begin)
        for j in range(3):
            states[b, 0, j, d] = saved[b, c, j, d]
            grads[b, m, j, d] = grads[b, 0, j, d]  # by the state before the following chunk
            for i in range(m):
                grads[b, i, j, d] = 0.0
        for i in range(m):
            t = begin + i
            source = parents[t] - begin + 1
            aa, bb, pp = states[b, source, 0, d], states[b, source, 1, d], states[b, source, 2, d]
            if reset[b, t]:
                aa, bb, pp = 0.0, 0.0, LOWEST
            _, aa, bb, pp = _step(w[d], u[d], k[b, t, d], v[b, t, d], aa, bb, pp)
            states[b, i + 1, 0, d] = aa
            states[b, i + 1, 1, d] = bb
            states[b, i + 1, 2, d] = pp
        for i in range(m - 1, -1, -1):
            t = begin + i
            source = parents[t] - begin + 1
            aa, bb, pp = states[b, source, 0, d], states[b, source, 1, d], states[b, source, 2, d]
            if reset[b, t]:
                aa, bb, pp = 0.0, 0.0, LOWEST
            ga, gb, excess = grads[b, i + 1, 0, d], grads[b, i + 1, 1, d], grads[b, i + 1, 2, d]
            if gafter.shape[1] == T or t == T - 1:
                place = t % gafter.shape[1]
                ga += gafter[b, place, 0, d]
                gb += gafter[b, place, 1, d]
                excess += gafter[b, place, 2, d]
                excess -= states[b, i + 1, 0, d] * gafter[b, place, 0, d] + states[b, i + 1, 1, d] * gafter[b, place, 1, d]
            k_t, v_t = k[b, t, d], v[b, t, d]
            kept = pp + w[d]
            p = max(kept, k_t)
            e1, e2 = math.exp(kept - p), math.exp(k_t - p)
            excess_old = excess if kept >= k_t else 0.0
            gw += e1 * (aa * ga + bb * gb) + excess_old
            gk_t, gv_t = e2 * (v_t * ga + gb) + (excess - excess_old), e2 * ga
            ga, gb = e1 * ga, e1 * gb

            o = max(pp, u[d] + k_t)
            e1, e2 = math.exp(pp - o), math.exp(u[d] + k_t - o)
            share = gy[b, t, d] / (e1 * bb + e2)
            y = (e1 * aa + e2 * v_t) / (e1 * bb + e2)
            gu_t = e2 * (v_t - y) * share
            gu += gu_t
            gk[b, t, d] = gk_t + gu_t
            gv[b, t, d] = gv_t + e2 * share
            if not reset[b, t]:
                grads[b, source, 0, d] += ga + e1 * share
                grads[b, source, 1, d] += gb - e1 * y * share
                grads[b, source, 2, d] += excess_old
    gwu[b, 0, d] = gw
    gwu[b, 1, d] = gu
    ga, gb = grads[b, 0, 0, d], grads[b, 0, 1, d]
    gstate[b, 0, d] = ga
    gstate[b, 1, d] = gb
    gstate[b, 2, d] = saved[b, 0, 0, d] * ga + saved[b, 0, 1, d] * gb + grads[b, 0, 2, d]
