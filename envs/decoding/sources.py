"""Where drafts come from: a recorded trace, or a simulator of texts of varying difficulty."""

from typing import NamedTuple

import numpy as np

from tdraft.kernels.jit import lean
from tdraft.kernels.rng import randint, uniform
from tdraft.models.decoding.acceptance import predict
from tdraft.models.decoding.observation import Calibration
from tdraft.models.decoding.trace import Trace

from .dynamics import DIFFICULTY, POSITION, TEXT, Dynamics, make_dynamics


class TraceSource(NamedTuple):
    """A trace as the compiled loop reads it; C contexts, N positions, K proposals."""

    features: np.ndarray  # (C, N, K, 4) float32
    acceptance: np.ndarray  # (C, N, K) predicted
    target_prob: np.ndarray  # (C, N, K) float64
    accepted: np.ndarray  # (C, N) int32
    target_entropy: np.ndarray  # (C, N) float32
    shuffle: bool  # draw the next context at random, or take them in order


def trace_source(trace: Trace, calibration: Calibration, *, shuffle: bool) -> TraceSource:
    """A trace with its predicted acceptances filled in."""
    acceptance = predict(calibration, trace)
    return TraceSource(trace.features, acceptance, trace.target_prob, trace.accepted, trace.target_entropy, shuffle)


@lean
def _begin_trace(source, cursor, rng):
    contexts = source.accepted.shape[0]
    if source.shuffle:
        cursor[TEXT] = randint(rng, contexts)
    else:
        cursor[TEXT] = (int(cursor[TEXT]) + 1) % contexts


@lean
def _start_trace(source, cursor, rng):
    last = source.accepted.shape[1] - 1
    return source.target_entropy[int(cursor[TEXT]), min(int(cursor[POSITION]), last)]


@lean
def _propose_trace(source, cursor, k, rng):
    c, n = int(cursor[TEXT]), int(cursor[POSITION])
    f = source.features[c, n, k]
    hit = k < source.accepted[c, n]
    return f[0], f[1], f[2], f[3], source.acceptance[c, n, k], source.target_prob[c, n, k], hit


@lean
def _finish_trace(source, cursor, accepted, tokens, rng):
    pass


class Difficulty(NamedTuple):
    """A text whose hidden difficulty (0 easy, 1 hard) changes from round to round.

    In a round of difficulty z every drafted token independently falls into bin b with probability emission[z, b]; the target then
    accepts it with probability acceptance[b]. Given the bin the outcome says nothing more about z, so (tokens drafted, survival,
    probability of z) is a sufficient statistic, and the observation holds all three.
    """

    initial: np.ndarray  # (2,)
    transition: np.ndarray  # (2, 2) from a round to the next
    emission: np.ndarray  # (2, B)
    acceptance: np.ndarray  # (B,)
    features: np.ndarray  # (B, 4) what the drafter shows in each bin
    target_entropy: float


@lean
def _draw(distribution, rng):
    u = uniform(rng)
    last = len(distribution) - 1
    for i in range(last):
        u -= distribution[i]
        if u < 0.0:
            return i
    return last


@lean
def _begin_simulator(source, cursor, rng):
    cursor[DIFFICULTY] = _draw(source.initial, rng)


@lean
def _start_simulator(source, cursor, rng):
    return source.target_entropy


@lean
def _propose_simulator(source, cursor, k, rng):
    b = _draw(source.emission[int(cursor[DIFFICULTY])], rng)
    f = source.features[b]
    a = source.acceptance[b]
    return f[0], f[1], f[2], f[3], a, a, uniform(rng) < a


@lean
def _finish_simulator(source, cursor, accepted, tokens, rng):
    cursor[DIFFICULTY] = _draw(source.transition[int(cursor[DIFFICULTY])], rng)


def trace_dynamics() -> Dynamics:
    return make_dynamics(_begin_trace, _start_trace, _propose_trace, _finish_trace)


def simulator_dynamics() -> Dynamics:
    return make_dynamics(_begin_simulator, _start_simulator, _propose_simulator, _finish_simulator)
