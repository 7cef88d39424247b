"""A round's decisions in compiled code, with the functions that the simulator and the traces call.

With an n-gram drafter a whole round of drafting is one compiled call; with any other drafter each token's observation is. A
policy that is no `DraftPolicy` takes the plain path of `Session`, which decides the same.
"""

from functools import lru_cache

import numpy as np
from numba import njit

from tdraft.kernels.ngram import draft as ngram_draft

from . import observation as ob


@njit
def observe_token(obs, calibration, confidence, entropy, order, log_count, token, previous, before, active):
    """Predict the drafted token's acceptance and add it to the observation; features are rounded as a trace stores them."""
    confidence, entropy = np.float64(np.float32(confidence)), np.float64(np.float32(entropy))
    log_count = np.float64(np.float32(log_count))
    depth = int(obs[ob.DRAFTED]) + 1
    ob.active_features(confidence, entropy, order, log_count, depth, obs[ob.TARGET_ENTROPY], token, previous, before, active)
    acceptance = ob.predict_acceptance(calibration.weights, active)
    ob.add_token(obs, calibration, confidence, entropy, order, log_count, acceptance)


@lru_cache
def make_ngram_round(decide):
    """Compiled round of drafting from n-gram tables under one rule.

    :return: `round(tables, buffer, length, room, obs, calibration, active, params, memory) -> (action, drafted)`; the drafts are
        buffer[length : length + drafted]
    """

    @njit
    def ngram_round(tables, buffer, length, room, obs, calibration, active, params, memory):
        drafted = 0
        action = decide(params, memory, obs)
        while action == ob.DRAFT and drafted < room:
            end = length + drafted
            token, confidence, entropy, order, count = ngram_draft(tables, buffer, end)
            log_count = np.log1p(count)
            observe_token(
                obs, calibration, confidence, entropy, order, log_count, token, buffer[end - 1], buffer[end - 2], active
            )
            buffer[end] = token
            drafted += 1
            action = decide(params, memory, obs)
        return action, drafted

    return ngram_round
