"""A round's decisions in compiled code, with the functions that the simulator and the traces call.

What a session's calls have in common stands in boxes (`kernels.jit.Box`): a decoding step may take less than a millisecond, and a
policy is to cost less than a hundredth of it. With an n-gram drafter a whole round of drafting is one call.
"""

from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numba import njit

from tdraft.kernels.jit import lean
from tdraft.kernels.ngram import draft as ngram_draft

from . import observation as ob
from .probe import project


class Scene(NamedTuple):
    """A text as its observation is made of; box it."""

    obs: np.ndarray  # (SIZE,)
    calibration: ob.Calibration
    text: np.ndarray  # int64, prompt, emitted tokens and drafts
    active: np.ndarray  # (N_ACTIVE,) int64, room for the predictor's features
    hidden: np.ndarray  # (D,) float32, the target's at the last verified position; D = 0 without a probe
    projected: np.ndarray  # (H,) float32, room for what the probe makes of it


@njit
def begin_text(scene, target_entropy, remaining):
    """A text begins, and its first round."""
    obs, calibration = scene.value.obs, scene.value.calibration
    ob.begin_text(obs, calibration)
    ob.begin_round(obs, target_entropy, remaining)


@lean
def _next_round(scene, verified, accepted, target_entropy, remaining):
    ob.end_round(scene.obs, scene.calibration, verified, accepted)
    ob.begin_round(scene.obs, target_entropy, remaining)


@njit
def next_round(scene, verified, accepted, target_entropy, remaining):
    """A verification has ended a round, and the next begins."""
    _next_round(scene.value, verified, accepted, target_entropy, remaining)


@lean
def _observe(scene, confidence, entropy, order, log_count, place):
    obs, calibration, text, active, hidden, projected = scene
    confidence, entropy = np.float64(np.float32(confidence)), np.float64(np.float32(entropy))
    log_count = np.float64(np.float32(log_count))
    depth = int(obs[ob.DRAFTED]) + 1
    ob.active_features(confidence, order, depth, obs[ob.TARGET_ENTROPY], text, place, active)
    if depth == 1:
        project(calibration.probe, hidden, projected)
    score = ob.hashed_score(calibration.weights, active)
    acceptance = ob.predict_acceptance(calibration.probe, projected, text[place], text[place - 1], depth, score)
    ob.add_token(obs, calibration, confidence, entropy, order, log_count, acceptance)


@njit
def observe_token(scene, confidence, entropy, order, log_count, place):
    """Predict the acceptance of the drafted token text[place] and add it to the observation; features are rounded as a trace
    stores them.
    """
    _observe(scene.value, confidence, entropy, order, log_count, place)


@lru_cache
def make_decisions(decide):
    """The decisions of one rule; `served` boxes a policy's params and memory, `ended` is as in `make_ngram_round`.

    :return: `first(scene, served, ended) -> action` of a round, and `after_token(scene, served, confidence, entropy, order,
        log_count, place) -> action`, which is `observe_token` and then the decision
    """

    @njit
    def first(scene, served, ended):
        here, (params, memory) = scene.value, served.value
        if ended[0] >= 0.0:
            _next_round(here, ended[0], ended[1], ended[2], ended[3])
        return decide(params, memory, here.obs)

    @njit
    def after_token(scene, served, confidence, entropy, order, log_count, place):
        here, (params, memory) = scene.value, served.value
        _observe(here, confidence, entropy, order, log_count, place)
        return decide(params, memory, here.obs)

    return first, after_token


@lru_cache
def make_ngram_round(decide):
    """Compiled round of drafting from n-gram tables under one rule.

    :return: `round(scene, tables, served, length, room, ended) -> (action, drafted)`; the drafts are text[length : length +
        drafted]; `ended` holds the arguments of `next_round` where that is still to be done, (-1, ...) where not
    """

    @njit
    def ngram_round(scene, tables, served, length, room, ended):
        here, grams, (params, memory) = scene.value, tables.value, served.value
        if ended[0] >= 0.0:
            _next_round(here, ended[0], ended[1], ended[2], ended[3])
        drafted = 0
        action = decide(params, memory, here.obs)
        while action == ob.DRAFT and drafted < room:
            place = length + drafted
            here.text[place], confidence, entropy, order, count = ngram_draft(grams, here.text, place)
            _observe(here, confidence, entropy, order, np.log1p(count), place)
            drafted += 1
            action = decide(params, memory, here.obs)
        return action, drafted

    return ngram_round


@njit
def draft_ahead(scene, tables, length, count):
    """Draft `count` tokens from n-gram tables and look at none of them: what drafting alone takes."""
    text, grams = scene.value.text, tables.value
    for place in range(length, length + count):
        text[place] = ngram_draft(grams, text, place)[0]
