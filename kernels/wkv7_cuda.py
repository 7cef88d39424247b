"""RWKV-7's delta rule on a CUDA device, forward and backward: a thread for each row of each head's state, which needs nothing
of the other rows; what all rows give to a gradient is added by atomics.

The functions take tensors, or NumPy's arrays in Numba's simulator, and fill the outputs among them, as those of wkv7_numba do;
`reset` (B, T) and `parents` (T,) are always there.
"""

from numba import cuda

from .dispatch import device_scratch, device_stream

THREADS = 64


def forward(r, w, k, v, kap, a, state, y, after, saved, reset, parents, chunk):
    """Fill y (B, T, H, N), after (B, T or 1, H, N, N), and saved (B, chunks or 0, H, N, N), the states before every chunk."""
    B, T, H, N = r.shape
    turns = device_scratch(r, (B, T if after.shape[1] == T else 2, H, N, N))
    launch = _forward[-(-B * H * N // THREADS), THREADS, device_stream(r)]  # pyright: ignore[reportIndexIssue]
    launch(r, w, k, v, kap, a, state, y, after, saved, reset, parents, chunk, turns)


def backward(r, w, k, v, kap, a, saved, gy, gafter, gr, gw, gk, gv, gkap, ga, gstate, reset, parents, chunk):
    """Fill gr, gw, gk, gv, gkap and ga (B, T, H, N), which come as zeros, and gstate (B, H, N, N) from gy and gafter."""
    B, T, H, N = r.shape
    states, grads = (device_scratch(r, (B, min(chunk, T) + 1, H, N, N)) for _ in range(2))
    launch = _backward[-(-B * H * N // THREADS), THREADS, device_stream(r)]  # pyright: ignore[reportIndexIssue]
    launch(r, w, k, v, kap, a, saved, gy, gafter, gr, gw, gk, gv, gkap, ga, gstate, reset, parents, chunk, states, grads)


@cuda.jit
def _forward(r, w, k, v, kap, a, state, y, after, saved, reset, parents, chunk, turns):
    B, T, H, N = r.shape
    thread = cuda.grid(1)  # pyright: ignore[reportCallIssue]
    if thread >= B * H * N:
        return
    n, h, i = thread // (H * N), thread // N % H, thread % N
    slots = turns.shape[1]  # all states, or those of the last two inputs
    for t in range(T):
        here, source = t % slots, parents[t] % slots
        removed = 0.0
        for j in range(N):
            S = turns[n, source, h, i, j] if parents[t] >= 0 else state[n, h, i, j]
            if t % chunk == 0 and saved.shape[1] > 0:
                saved[n, t // chunk, h, i, j] = S
            if reset[n, t]:
                S = 0.0
            removed += S * kap[n, t, h, j]
        total = 0.0
        for j in range(N):
            S = turns[n, source, h, i, j] if parents[t] >= 0 else state[n, h, i, j]
            if reset[n, t]:
                S = 0.0
            S = S * w[n, t, h, j] - removed * kap[n, t, h, j] * a[n, t, h, j] + v[n, t, h, i] * k[n, t, h, j]
            total += S * r[n, t, h, j]
            turns[n, here, h, i, j] = S
            if after.shape[1] == T or t == T - 1:
                after[n, t % after.shape[1], h, i, j] = S
        y[n, t, h, i] = total


@cuda.jit
def _backward(r, w, k, v, kap, a, saved, gy, gafter, gr, gw, gk, gv, gkap, ga, gstate, reset, parents, chunk, states, grads):
    B, T, H, N = r.shape
    thread = cuda.grid(1)  # pyright: ignore[reportCallIssue]
    if thread >= B * H * N:
        return
    n, h, i = thread // (H * N), thread // N % H, thread % N
    for j in range(N):
        grads[n, 0, h, i, j] = 0.0
    for c in range(saved.shape[1] - 1, -1, -1):
        begin = c * chunk
        m = min(chunk, T - begin)
        for j in range(N):
            states[n, 0, h, i, j] = saved[n, c, h, i, j]
            grads[n, m, h, i, j] = grads[n, 0, h, i, j]  # by the state before the following chunk
            for p in range(m):
                grads[n, p, h, i, j] = 0.0
        for p in range(m):
            t = begin + p
            source = parents[t] - begin + 1
            removed = 0.0
            if not reset[n, t]:
                for j in range(N):
                    removed += states[n, source, h, i, j] * kap[n, t, h, j]
            for j in range(N):
                S = 0.0 if reset[n, t] else states[n, source, h, i, j]
                S = S * w[n, t, h, j] - removed * kap[n, t, h, j] * a[n, t, h, j] + v[n, t, h, i] * k[n, t, h, j]
                states[n, p + 1, h, i, j] = S
        for p in range(m - 1, -1, -1):
            t = begin + p
            source = parents[t] - begin + 1
            removed, gremoved, gvalue = 0.0, 0.0, 0.0
            for j in range(N):
                if gafter.shape[1] == T or t == T - 1:
                    grads[n, p + 1, h, i, j] += gafter[n, t % gafter.shape[1], h, i, j]
                g = grads[n, p + 1, h, i, j] + gy[n, t, h, i] * r[n, t, h, j]
                grads[n, p + 1, h, i, j] = g
                gvalue += g * k[n, t, h, j]
                gremoved -= g * kap[n, t, h, j] * a[n, t, h, j]
                if not reset[n, t]:
                    removed += states[n, source, h, i, j] * kap[n, t, h, j]
            gv[n, t, h, i] = gvalue
            for j in range(N):
                g, S = grads[n, p + 1, h, i, j], 0.0
                if not reset[n, t]:
                    S = states[n, source, h, i, j]
                    grads[n, source, h, i, j] += g * w[n, t, h, j] + gremoved * kap[n, t, h, j]
                place = (n, t, h, j)
                cuda.atomic.add(gr, place, gy[n, t, h, i] * states[n, p + 1, h, i, j])
                cuda.atomic.add(gw, place, g * S)
                cuda.atomic.add(gk, place, g * v[n, t, h, i])
                cuda.atomic.add(gkap, place, gremoved * S - g * removed * a[n, t, h, j])
                cuda.atomic.add(ga, place, -g * removed * kap[n, t, h, j])
    for j in range(N):
        gstate[n, h, i, j] = grads[n, 0, h, i, j]
