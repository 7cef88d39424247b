"""What a decoding policy sees, built here and nowhere else: simulator, traces, live env and decoder all call these functions.

A text begins with `begin_text`, each round with `begin_round`; `add_token` follows every drafted token and `end_round` every
verification. The observation is one float64 vector; FIELDS names its entries.

The predicted acceptance of a drafted token comes from `hashed_score`, a hashed sparse logistic regression (McMahan et al.
2013 describe the practice) on the drafter's confidence and n-gram order, the depth, the target's entropy at the last verified
position, the identities of the last five tokens, and whether the text has gone on like this before (`earlier`). A probe of the
target's hidden state there (`probe.py`) corrects its score. Neither sees what the policy did, so that predictions can be made for
a whole trace at once.
"""

from typing import NamedTuple

import numpy as np
from numba import njit

from tdraft.kernels.jit import lean

from .probe import Probe, corrected, no_probe

FIELDS = (
    "drafted",  # tokens drafted in this round
    "confidence",  # the drafter's probability of the newest token, 1 when nothing is drafted
    "entropy",  # of the drafter's distribution there, nats
    "order",  # length of the n-gram context that proposed it (0 for other drafters)
    "log_count",  # log(1 + how often that context was seen), 0 for other drafters
    "acceptance",  # predicted acceptance of the newest token, 1 when nothing is drafted
    "survival",  # product of the predicted acceptances of all drafted tokens
    "survival_before",  # the same without the newest token
    "expected",  # predicted number of accepted tokens if all are verified: the sum of survivals
    "last_drafted",  # tokens verified in the round before, -1 in the first round
    "last_accepted",  # of which the target accepted
    "accept_ema",  # exponential average (0.8) of accepted tokens a round
    "target_entropy",  # of the target at the last verified position, nats
    "belief",  # filtered probability of the easiest hidden state of the difficulty chain
    "remaining",  # tokens still to emit
)
(
    DRAFTED,
    CONFIDENCE,
    ENTROPY,
    ORDER,
    LOG_COUNT,
    ACCEPTANCE,
    SURVIVAL,
    SURVIVAL_BEFORE,
    EXPECTED,
    LAST_DRAFTED,
    LAST_ACCEPTED,
    ACCEPT_EMA,
    TARGET_ENTROPY,
    BELIEF,
    REMAINING,
) = range(len(FIELDS))
SIZE = len(FIELDS)
VERIFY, DRAFT, DROP = 0, 1, 2
N_ACTIONS = 3
N_FEATURES = 4  # of a drafted token: confidence, entropy, order, log_count
EMA = 0.8

# Of everything that an observation is made of: FIELDS, their updates, the templates of `active_features` and the hash. A policy
# serves only under the version it was made with, so a change of any of them raises it (tests/test_policy_files.py pins them).
FEATURE_VERSION = 3

HASH_BITS = 18
N_ACTIVE = 11
WINDOW, LONGEST = 160, 12  # tokens that `earlier` looks back, and the longest match that it tells apart
_MASK = (1 << HASH_BITS) - 1


class Calibration(NamedTuple):
    """What turns raw features into predictions; fitted to training traces, saved with them, the same wherever it is used.

    Two hidden states, 0 easy and 1 hard, change once a round; each drafted token's predicted acceptance falls into one of B bins.
    """

    weights: np.ndarray  # (2**HASH_BITS,) float32, of the logistic regression
    probe: Probe
    edges: np.ndarray  # (B - 1,) bin edges on the predicted acceptance
    initial: np.ndarray  # (2,) probability of each hidden state at the start of a text
    transition: np.ndarray  # (2, 2) from a round to the next
    emission: np.ndarray  # (2, B) probability of each bin


def empty_calibration() -> Calibration:
    """A calibration that knows nothing: every acceptance is predicted as 1/2, both hidden states stay equally likely."""
    return Calibration(
        np.zeros(1 << HASH_BITS, np.float32),
        no_probe(),
        np.array([0.5]),
        np.full(2, 0.5),
        np.full((2, 2), 0.5),
        np.full((2, 2), 0.5),
    )


@lean
def _hash(template, value):
    z = (np.uint64(template + 1) * np.uint64(0x9E3779B97F4A7C15)) ^ (np.uint64(value) * np.uint64(0xD6E8FEB86659FD93))
    z = (z ^ (z >> np.uint64(32))) * np.uint64(0xD6E8FEB86659FD93)
    return np.int64((z ^ (z >> np.uint64(29))) & np.uint64(_MASK))


@lean
def earlier(text, place):
    """How the last WINDOW tokens have gone on after what now stands before `place`.

    :return: length of the longest earlier match, whether the token at `place` followed there (the latest match counts among
        equals), and length of the longest match that it followed; lengths up to LONGEST
    """
    first = max(place - WINDOW, 0)
    token, last = text[place], text[place - 1]
    longest, followed, agreeing = 0, 0, 0
    for i in range(place - 2, first, -1):
        if text[i] != last:
            continue
        length = 1
        while length < LONGEST and i - length >= first and text[i - length] == text[place - 1 - length]:
            length += 1
        agrees = text[i + 1] == token
        if length > longest:
            longest, followed = length, 1 if agrees else 0
        if agrees and length > agreeing:
            agreeing = length
    return longest, followed, agreeing


@lean
def _before(text, place, distance):
    return text[place - distance] if place >= distance else np.int64(0)


@lean
def active_features(confidence, order, depth, target_entropy, text, place, out):
    """Indices of the predictor's active features for one drafted token.

    :param depth: 1 for the first drafted token of a round
    :param text: int64 tokens of the text and its drafts; the drafted token is text[place], place >= 1
    :param out: (N_ACTIVE,) int64, overwritten
    """
    c = np.int64(confidence * 19.999)
    t = min(np.int64(target_entropy * 3.0), 11)
    token, previous, before = text[place], text[place - 1], _before(text, place, 2)
    three = (token * 65536 + previous) * 65536 + before
    four = three * 65536 + _before(text, place, 3)
    longest, followed, agreeing = earlier(text, place)
    cache = (longest * 2 + followed) * 16 + agreeing
    out[0] = _hash(0, 0)
    out[1] = _hash(1, c * 16 + np.int64(order))
    out[2] = _hash(2, t * 16 + min(depth, 15))
    out[3] = _hash(3, t * 32 + c)
    out[4] = _hash(4, token * 65536 + previous)
    out[5] = _hash(5, three)
    out[6] = _hash(6, four)
    out[7] = _hash(7, four * 65537 + _before(text, place, 4))  # wraps around, which a hash may
    out[8] = _hash(8, cache)
    out[9] = _hash(9, cache * 32 + c)
    out[10] = _hash(10, token)


@njit
def hashed_score(weights, active):
    """The logistic regression's: the sum of the active features' weights."""
    score = 0.0
    for index in active:
        score += weights[index]
    return score


@njit
def predict_acceptance(probe, projected, token, previous, depth, score):
    """1 / (1 + exp(-score)) of the score that the probe has corrected, clipped to [0.001, 0.999].

    :param projected: (H,) by `project`, of the target's hidden state at the last verified position
    :param previous: the token before the drafted one
    :param depth: 1 for the first drafted token of a round
    :param score: by `hashed_score`
    """
    score = corrected(probe, projected, token, previous, depth, score)
    return min(max(1.0 / (1.0 + np.exp(-score)), 0.001), 0.999)


@lean
def acceptance_bin(edges, acceptance):
    """The number of edges at or below the predicted acceptance."""
    b = 0
    for edge in edges:
        b += acceptance >= edge
    return b


@lean
def begin_text(obs, calibration):
    """Forget the history: the next round is the first of its text."""
    obs[LAST_DRAFTED] = -1.0
    obs[LAST_ACCEPTED] = 0.0
    obs[ACCEPT_EMA] = 2.0
    obs[BELIEF] = calibration.initial[0]


@lean
def begin_round(obs, target_entropy, remaining):
    """Nothing is drafted yet."""
    obs[DRAFTED] = 0.0
    obs[CONFIDENCE] = 1.0
    obs[ENTROPY] = 0.0
    obs[ORDER] = 0.0
    obs[LOG_COUNT] = 0.0
    obs[ACCEPTANCE] = 1.0
    obs[SURVIVAL] = 1.0
    obs[SURVIVAL_BEFORE] = 1.0
    obs[EXPECTED] = 0.0
    obs[TARGET_ENTROPY] = target_entropy
    obs[REMAINING] = remaining


@lean
def add_token(obs, calibration, confidence, entropy, order, log_count, acceptance):
    """One more token is drafted; `acceptance` is its predicted acceptance given that those before it are accepted."""
    obs[DRAFTED] += 1.0
    obs[CONFIDENCE] = confidence
    obs[ENTROPY] = entropy
    obs[ORDER] = order
    obs[LOG_COUNT] = log_count
    obs[ACCEPTANCE] = acceptance
    obs[SURVIVAL_BEFORE] = obs[SURVIVAL]
    obs[SURVIVAL] *= acceptance
    obs[EXPECTED] += obs[SURVIVAL]
    b = acceptance_bin(calibration.edges, acceptance)
    easy = obs[BELIEF] * calibration.emission[0, b]
    hard = (1.0 - obs[BELIEF]) * calibration.emission[1, b]
    if easy + hard > 0.0:
        obs[BELIEF] = easy / (easy + hard)


@lean
def end_round(obs, calibration, verified, accepted):
    """The target has verified `verified` drafted tokens and accepted the first `accepted` of them."""
    obs[LAST_DRAFTED] = verified
    obs[LAST_ACCEPTED] = accepted
    obs[ACCEPT_EMA] = EMA * obs[ACCEPT_EMA] + (1.0 - EMA) * accepted
    easy = obs[BELIEF]
    obs[BELIEF] = easy * calibration.transition[0, 0] + (1.0 - easy) * calibration.transition[1, 0]
