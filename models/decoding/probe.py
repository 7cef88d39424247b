"""What the target's own last hidden state says of a draft.

The target computes it anyway. Where it has just chosen a token, the state knows a good deal of what will follow.

    score' = slope score + offset + v . relu(W h + a[token] + b[previous] + c[depth] + s score)

`score` is the hashed regression's (`observation.hashed_score`), h the state at the last verified position. `probe_training`
fits one; a probe of no units leaves scores as they are.

D the target's width   H units   V vocabulary
"""

from typing import NamedTuple

import numpy as np
from numba import njit

from tdraft.kernels.jit import lean

DEPTHS = 16  # deeper tokens count as the 16th


class Probe(NamedTuple):
    """Weights of the probe, float32."""

    state: np.ndarray  # W (D, H)
    token: np.ndarray  # a (V, H)
    previous: np.ndarray  # b (V, H)
    depth: np.ndarray  # c (DEPTHS, H)
    score: np.ndarray  # s (H,)
    out: np.ndarray  # v (H,)
    line: np.ndarray  # (2,) slope and offset


class Samples(NamedTuple):
    """Drafted tokens (..., K): of a trace, or of a sweep with K = 1."""

    hidden: np.ndarray  # (M, D) of the target
    state: np.ndarray  # (...,) which of them the target was at when the round began
    token: np.ndarray  # (..., K) int
    previous: np.ndarray  # (..., K) int, the token before it
    depth: np.ndarray  # (..., K) int, from 1
    score: np.ndarray  # (..., K) of the hashed regression, by weights that have not seen the sample
    label: np.ndarray  # (..., K) the target's probability of the token
    weight: np.ndarray  # (..., K)


def no_probe() -> Probe:
    """The probe that leaves every score as it is."""
    table, units = np.zeros((0, 0), np.float32), np.zeros(0, np.float32)
    return Probe(table, table, table, table, units, units, np.array([1.0, 0.0], np.float32))


def shapes_fit(probe: Probe) -> bool:
    """Whether compiled code, which checks no bounds, may read these arrays."""
    D, H = probe.state.shape if probe.state.ndim == 2 else (-1, -1)
    V = len(probe.token)
    shapes = [(D, H), (V, H), (V, H), (DEPTHS if H else 0, H), (H,), (H,), (2,)]
    return [array.shape for array in probe] == shapes and all(array.dtype == np.float32 for array in probe)


@lean
def project(probe, hidden, out):
    """W h, once a round.

    :param hidden: (D,) float32
    :param out: (H,) float32, overwritten
    """
    for j in range(len(out)):
        out[j] = np.float32(0.0)
    for i in range(len(hidden)):
        for j in range(len(out)):
            out[j] += hidden[i] * probe.state[i, j]


@njit
def corrected(probe, projected, token, previous, depth, score):
    """The score of a drafted token by the probe.

    :param projected: (H,) by `project`
    :param depth: 1 for the first drafted token of a round
    """
    found = probe.line[0] * score + probe.line[1]
    d = min(depth, DEPTHS) - 1
    for j in range(len(projected)):
        unit = projected[j] + probe.token[token, j] + probe.previous[previous, j] + probe.depth[d, j] + score * probe.score[j]
        found += max(unit, 0.0) * probe.out[j]
    return found
