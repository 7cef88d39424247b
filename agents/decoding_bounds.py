"""What no policy can beat on a trace: the clairvoyant bound, and the informed reference.

T(m) is the price of verifying m - 1 drafts, t_d that of a drafted token; a round with k verified drafts at position t takes
k t_d + T(k + 1) and emits min(k, accepted[t]) + 1 tokens, clipped to what remains.
"""

import numpy as np
from numba import njit

from tdraft.envs.decoding.dynamics import ACCEPTED_TOKENS, CALLS, DRAFTED, N_COUNTS, TIME, TOKENS
from tdraft.models.decoding.cost import CostModel
from tdraft.models.decoding.trace import Trace


@njit
def _clairvoyant(accepted, verify, draft, longest, counts):
    texts, n = accepted.shape
    value, choice = np.empty(n + 1), np.empty(n, np.int64)
    for c in range(texts):
        value[n] = 0.0
        for t in range(n - 1, -1, -1):
            value[t] = np.inf
            for k in range(min(accepted[c, t], longest, n - t - 1) + 1):
                time = k * draft + verify[k + 1] + value[t + k + 1]
                if time < value[t]:
                    value[t], choice[t] = time, k
        counts[c, TIME], counts[c, TOKENS] = value[0], n
        t = 0
        while t < n:
            counts[c, CALLS] += 1
            counts[c, DRAFTED] += choice[t]
            counts[c, ACCEPTED_TOKENS] += choice[t]
            t += choice[t] + 1


def clairvoyant(trace: Trace, cost: CostModel) -> np.ndarray:
    """Least time in which each text can be emitted by anyone who knows the outcome of every draft: dynamic programming from its
    end.

    V(t) = min over k <= accepted[t] of k t_d + T(k + 1) + V(t + k + 1)

    :return: (C, N_COUNTS) counts as `play` gives them
    """
    counts = np.zeros((len(trace.tokens), N_COUNTS))
    _clairvoyant(trace.accepted, cost.verify, cost.draft, cost.max_drafted, counts)
    return counts


@njit
def _informed(accepted, probability, verify, draft, longest, rate, counts):
    texts, n = accepted.shape
    counts[:] = 0.0
    for c in range(texts):
        t = 0
        while t < n:
            best, chosen, gain, survival = -rate * verify[1], 0, 0.0, 1.0
            for k in range(1, min(longest, n - t - 1) + 1):
                survival *= probability[c, t, k - 1]
                gain += survival
                value = gain - rate * (k * draft + verify[k + 1])
                if value > best:
                    best, chosen = value, k
            hit = min(chosen, accepted[c, t])
            counts[c, TIME] += chosen * draft + verify[chosen + 1]
            counts[c, TOKENS] += hit + 1
            counts[c, CALLS] += 1
            counts[c, DRAFTED] += chosen
            counts[c, ACCEPTED_TOKENS] += hit
            t += hit + 1


def informed(trace: Trace, cost: CostModel, *, tolerance: float = 1e-9) -> np.ndarray:
    """A policy that knows the target's probability of every drafted token, not the coin flips, and drafts nothing that it drops.

    It verifies the k that maximises sum_{i<=k} S_i - rate (k t_d + T(k + 1)); the rate is its own, found by Dinkelbach's
    iteration. Rounds are treated as alike, so it is a bound only where proposals depend on the text alone.

    :return: (C, N_COUNTS) counts as `play` gives them
    """
    counts = np.zeros((len(trace.tokens), N_COUNTS))
    rate, best, kept = 1.0, 0.0, counts.copy()
    for _ in range(50):
        _informed(trace.accepted, trace.target_prob, cost.verify, cost.draft, cost.max_drafted, rate, counts)
        new = counts[:, TOKENS].sum() / counts[:, TIME].sum()
        if new > best:
            best, kept = new, counts.copy()
        if abs(new - rate) < tolerance:
            break
        rate = new
    return kept
