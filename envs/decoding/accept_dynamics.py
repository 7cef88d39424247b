"""The acceptance process as compiled functions: tables of a text's positions, observations, one decision, one rule's
exact totals.

C texts   N positions a text   V vocabulary   K drafted tokens a round   A actions   L leniences
"""

from typing import NamedTuple

import numpy as np
from numba import njit

from tdraft.kernels import acceptance as rule
from tdraft.kernels.jit import lean
from tdraft.kernels.rng import randint, uniform

FIELDS = (
    "ratio",
    "p",
    "q",
    "entropy_p",
    "entropy_q",
    "overlap",
    "kl",
    "excess",
    "next_overlap",
    "index",
    "left",
    "remaining",
    "budget",
)
EXACT = 0
TEXT, POSITION, INDEX, DRAFTED = range(4)
# Edges of the discrete observation's bins.
_RATIO = np.array([0.05, 0.12, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.78, 0.85, 0.91, 0.96, 1.0])
_EXCESS = np.array([1.15, 1.3, 1.5, 1.8, 2.2, 2.7, 3.4])
_NEXT = np.array([0.45, 0.65, 0.85])
_LEFT = 4
_PACE = np.array([0.3, 0.7, 1.0, 1.5])  # share of the budget left over share of the text left
# Features of a position that a policy may see before it decides there.
OVERLAP, KL, EXCESS, ENTROPY_P, ENTROPY_Q = range(5)
N_FEATURES = 5
KL_CEILING = 25.0  # observations are finite; no charge is clipped


class AcceptParams(NamedTuple):
    """Everything the compiled env is: texts, tables, prices and the mutable state of an episode."""

    p: np.ndarray  # (C, N, V)
    q: np.ndarray  # (C, N, V)
    features: np.ndarray  # (C, N, 5)
    accept: np.ndarray  # (C, N, V, A) acceptance probability
    charge: np.ndarray  # (C, N, V, A) nats
    verify: np.ndarray  # (K + 2,) T(m) / T(1)
    draft: float  # t_d
    rho: float  # reference rate, tokens per unit of time
    price: float  # per nat
    budget: float  # nats an episode; infinite without one
    drafts: np.ndarray  # (K,) tokens of the round
    cursor: np.ndarray  # (4,) int64: text, position, index in the round, tokens drafted in it
    spent: np.ndarray  # (2,) nats charged in this episode, and by the last decision
    obs: np.ndarray  # (D,)


@lean
def observe(params):
    """Write the observation of the drafted token at the cursor. Nothing of a later drafted token enters: its
    distribution may, its value may not.
    """
    c, t, j, k = params.cursor
    x = params.drafts[j]
    p, q, f, obs = params.p[c, t, x], params.q[c, t, x], params.features[c, t], params.obs
    obs[0], obs[1], obs[2] = min(p / q, 1.0), p, q
    obs[3], obs[4], obs[5], obs[6] = f[ENTROPY_P], f[ENTROPY_Q], f[OVERLAP], f[KL]
    obs[7] = f[EXCESS]
    obs[8] = params.features[c, t + 1, OVERLAP] if j + 1 < k else 1.0
    obs[9], obs[10] = j, k - 1 - j
    obs[11] = (params.p.shape[1] - t) / params.p.shape[1]
    obs[12] = 1.0 if np.isinf(params.budget) else 0.0
    if 0.0 < params.budget < np.inf:
        obs[12] = min(max(1.0 - params.spent[0] / params.budget, 0.0), 1.0)


@lean
def table_index(obs):
    """The discrete observation: bins of ratio, excess, next overlap, and drafted tokens left in the round."""
    index = np.searchsorted(_RATIO, obs[0], side="right")
    index = index * (_EXCESS.size + 1) + np.searchsorted(_EXCESS, obs[7], side="right")
    index = index * (_NEXT.size + 1) + np.searchsorted(_NEXT, obs[8], side="right")
    return index * _LEFT + min(int(obs[10]), _LEFT - 1)


@lean
def table(params):
    """`table_index`, and with a budget also a bin of how its spending keeps pace with the text."""
    index = table_index(params.obs)
    if np.isinf(params.budget):
        return index
    return index + N_TABLE * np.searchsorted(_PACE, params.obs[12] / params.obs[11], side="right")


N_TABLE = (_RATIO.size + 1) * (_EXCESS.size + 1) * (_NEXT.size + 1) * _LEFT
N_PACE = _PACE.size + 1


@lean
def decide(params, action, rng):
    """Decide the token at the cursor.

    :return: stays (bool), action performed, time: the round's, paid by its first decision
    """
    c, t, j, k = params.cursor
    x = params.drafts[j]
    charge = params.charge[c, t, x, action]
    if not params.spent[0] + charge <= params.budget or np.isinf(charge):  # not affordable: the exact test, which is free
        action, charge = EXACT, 0.0
    params.spent[0] += charge
    params.spent[1] = charge
    stays = uniform(rng) < params.accept[c, t, x, action]
    return stays, action, params.verify[k + 1] + k * params.draft if j == 0 else 0.0


@lean
def move(params, stays):
    """Past the decided token. :return: whether the round is over, tokens emitted, time of a last plain step, whether
    the text is complete.
    """
    cursor, length = params.cursor, params.p.shape[1]
    cursor[POSITION] += 1
    tokens, time, over = 1, 0.0, not stays
    if stays:
        cursor[INDEX] += 1
        if cursor[INDEX] == cursor[DRAFTED]:
            cursor[POSITION] += 1  # the bonus token
            tokens, over = 2, True
    if over and cursor[POSITION] == length - 1:  # one token left: a plain step, nothing to decide
        cursor[POSITION] += 1
        tokens += 1
        time = params.verify[1]
    if over:
        cursor[INDEX], cursor[DRAFTED] = 0, min(params.drafts.size, length - cursor[POSITION] - 1)
    return over, tokens, time, cursor[POSITION] >= length


@lean
def draft(params, rng):
    """Draw the round's tokens, each from its position's q."""
    c, t, _, k = params.cursor
    for j in range(k):
        u, x, q = uniform(rng), 0, params.q[c, t + j]
        total = q[0]
        while u >= total and x + 1 < q.size:
            x += 1
            total += q[x]
        while q[x] <= 0.0:  # u beyond the rounded sum
            x -= 1
        params.drafts[j] = x


@lean
def start(params, text):
    """Put the cursor at the beginning of a text."""
    params.cursor[TEXT], params.cursor[POSITION], params.cursor[INDEX] = text, 0, 0
    params.cursor[DRAFTED] = min(params.drafts.size, params.p.shape[1] - 1)
    params.spent[:] = 0.0


@lean
def begin(params, rng):
    """A text begins, drawn at random."""
    start(params, randint(rng, params.p.shape[0]))
    draft(params, rng)
    observe(params)


@njit
def reset_vector(params, rng):
    begin(params, rng)
    return params.obs


@lean
def advance(params, action, rng):
    """One step of the simulated process. :return: reward, terminated, duration in plain steps."""
    stays, _, time = decide(params, action, rng)
    over, tokens, last, terminated = move(params, stays)
    if not terminated:
        if over:
            draft(params, rng)
        observe(params)
    time += last
    return tokens / params.rho - time - params.price * params.spent[1], terminated, time


@njit
def step_vector(params, obs, action, rng):
    reward, terminated, duration = advance(params, action, rng)
    return params.obs, reward, terminated, duration


@lean
def reset_table(params, rng):
    begin(params, rng)
    return table(params)


@lean
def step_table(params, obs, action, rng):
    reward, terminated, duration = advance(params, action, rng)
    return table(params), reward, terminated, duration


@njit
def fill_position(p, q, leniences, features, accept, charge):
    """Tables of one position: its features, and for each token and action the acceptance probability and the charge.

    Actions: 0 exact, 1..L lenience, L + 1 accept, L + 2 discard (acceptance 0).

    :param p, q: (V,)
    :param leniences: (L,)
    :param features: (5,) out
    :param accept, charge: (V, A) out; a token that q cannot draft gets zeros
    """
    features[OVERLAP] = min(rule.overlap(p, q), 1.0)
    features[KL] = min(rule.divergence(p, q), KL_CEILING)
    distance = 1.0 - features[OVERLAP]
    features[EXCESS] = 1.0 if distance < 1e-9 else min(max(rule.excess_divergence(p, q, 0.0) / distance, 1.0), KL_CEILING)
    features[ENTROPY_P], features[ENTROPY_Q] = rule.entropy(p), rule.entropy(q)
    n = leniences.size
    accept[:], charge[:] = 0.0, 0.0
    for x in range(p.size):
        if q[x] <= 0.0:
            continue
        accept[x, 0] = rule.accept_probability(p[x], q[x], 1.0)
        for i in range(n):
            accept[x, 1 + i] = rule.accept_probability(p[x], q[x], leniences[i])
        accept[x, 1 + n] = 1.0
        for a in range(1, n + 2):
            charge[x, a] = rule.token_charge(p, q, x, accept[x, a])
        charge[x, n + 2] = rule.discard_charge(p, q, x)


@njit
def fill_tables(p, q, leniences):
    """`fill_position` for all texts: features (C, N, 5), accept and charge (C, N, V, A)."""
    texts, length, vocabulary = p.shape
    features = np.empty((texts, length, N_FEATURES))
    accept = np.empty((texts, length, vocabulary, leniences.size + 3))
    charge = np.empty_like(accept)
    for c in range(texts):
        for t in range(length):
            fill_position(p[c, t], q[c, t], leniences, features[c, t], accept[c, t], charge[c, t])
    return features, accept, charge


@njit
def place_in_round(t, j, length, depth):
    """Drafted tokens left after position t, the j-th of its round: the round began at t - j and drafted min(K, N - (t
    - j) - 1).
    """
    return min(depth, length - (t - j) - 1) - 1 - j


@njit
def episode_totals(accept, loss, verify, draft):
    """Expected time and loss of emitting each text, exactly, for a rule that may depend on the place in the round.

    W(t) = cost(k) + sum_{j<k} S_j [loss(t+j, j) + (1 - A(t+j, j)) W(t+j+1)] + S_k W(t+k+1),
    k = min(K, N - t - 1),  S_j the product of the first j acceptances; a plain step (k = 0) where one token is left.

    :param accept: (C, N, K) acceptance rate of the rule at a position that is the j-th (from 0) of its round
    :param loss: (C, N, K) expected loss there
    :param verify: (K + 2,) time of a target call on m tokens
    :param draft: time of a drafted token
    :return: (2, C) time and loss
    """
    texts, length, depth = accept.shape
    totals = np.zeros((2, texts))
    time, lost = np.zeros(length + 1), np.zeros(length + 1)
    for c in range(texts):
        for t in range(length - 1, -1, -1):
            k = min(depth, length - t - 1)
            time[t], lost[t], survival = verify[k + 1] + draft * k, 0.0, 1.0
            for j in range(k):
                a = accept[c, t + j, j]
                lost[t] += survival * (loss[c, t + j, j] + (1.0 - a) * lost[t + j + 1])
                time[t] += survival * (1.0 - a) * time[t + j + 1]
                survival *= a
            time[t] += survival * time[t + k + 1]
            lost[t] += survival * lost[t + k + 1]
        totals[0, c], totals[1, c] = time[0], lost[0]
    return totals
