"""Eligibility traces over (feature, action) pairs, at a cost that does not depend on how many pairs have one.

All traces decay by the same factor, so what a pair gets between two visits is its trace times a sum that all pairs share
(Wiering & Schmidhuber 1998, *Fast online Q(lambda)*): with S the product of the decays and G the sum of S * alpha * delta,

    e[pair] = S * E[pair],    w[pair] now = w[pair] + E[pair] * (G - G at the pair's last visit)

and a step touches the T active pairs alone. Where S has become small, `rebase` carries everything out and starts again from S = 1
and G = 0, so that no precision is lost; it forgets the traces that have become negligible. It costs a few pair visits a step.
"""

from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from tdraft.kernels.jit import lean
from tdraft.value.targets import largest

from .linear_rules import LinearLearner, choose, remember, tick
from .settings import exploration, step_size

NEGLIGIBLE = 1e-12  # share of the changes of a weight that may be lost with the traces that are dropped
SMALLEST_SCALE = 2.0**-8  # of S: rounding errors grow with 1 / S, the cost of rebasing with 1 / log(1 / S)
TINY = 1e-300  # in place of a trace of exactly 0, which marks pairs without one

SCALE, SUM, INTEGRAL, Q_OLD = range(4)
TRACE, SEEN_SUM, SEEN_INTEGRAL = range(3)


class Traces(NamedTuple):
    """Sparse eligibility traces of F * A pairs, of which at most C have one at a time."""

    pairs: np.ndarray  # (F, A, 2) E, 0 where there is none, and G at the last visit; (F, A, 3) with its integral, for averages
    listed: np.ndarray  # (C,) int64 pairs f * A + a that have a trace, oldest first
    count: np.ndarray  # (1,) int64 how many
    sums: np.ndarray  # (4,) S, G, the integral of G over steps, and Sarsa's value of the next pair for dutch traces
    decay: float  # gamma * lambda
    threshold: float  # traces up to it are dropped


def new_traces(shape: tuple[int, int], n_active: int, decay: float, averaged: bool) -> Traces:
    """No traces yet.

    A trace is at most 1 / (1 - decay) and is dropped at NEGLIGIBLE * (1 - decay), below which all that it would still bring is
    NEGLIGIBLE of one step's greatest change. That and the steps between two rebasings bound the number of traces, for a fixed
    list; if more came all the same (features that collide in one observation), the oldest would go.

    :param shape: (F, A)
    :param n_active: T
    :param decay: gamma * lambda, in (0, 1]
    :param averaged: room for the integrals that Polyak averages need
    """
    n_pairs = shape[0] * shape[1]
    threshold = NEGLIGIBLE * (1.0 - decay)
    if decay < 1:
        steps = (np.log(threshold * (1.0 - decay)) + np.log(SMALLEST_SCALE)) / np.log(decay)
        n_pairs = int(min(n_pairs, n_active * (steps + 3)))
    return Traces(
        pairs=np.zeros((*shape, 3 if averaged else 2)),
        listed=np.zeros(n_pairs + n_active, np.int64),
        count=np.zeros(1, np.int64),
        sums=np.array([1.0, 0.0, 0.0, 0.0]),
        decay=float(decay),
        threshold=float(threshold),
    )


@lean
def settle(learner, f, a):
    """Carry out what w[f, a] got since its last visit, and bring its time integral up to now."""
    pair, sums, start = learner.traces.pairs[f, a], learner.traces.sums, learner.schedule.average_start
    now = learner.clock[0]
    if now >= start:
        held = now - max(learner.since[f, a], start)
        gained = sums[INTEGRAL] - pair[SEEN_INTEGRAL] - held * pair[SEEN_SUM]
        learner.total[f, a] += held * learner.w[f, a] + pair[TRACE] * gained
        learner.since[f, a] = now
        pair[SEEN_INTEGRAL] = sums[INTEGRAL]
    learner.w[f, a] += pair[TRACE] * (sums[SUM] - pair[SEEN_SUM])
    pair[SEEN_SUM] = sums[SUM]


@lean
def rebase(learner, scale):
    """Settle every pair, multiply the traces by `scale` and drop those that are negligible: all of them where it is 0."""
    traces, n_actions = learner.traces, learner.w.shape[1]
    count, kept, ahead = traces.count[0], 0, learner.clock[0] - learner.schedule.average_start
    if 0.0 <= ahead < 1.0:  # averages begin here: what G was before doesn't count
        traces.sums[INTEGRAL] = ahead * traces.sums[SUM]
    excess = count + learner.active.shape[1] - len(traces.listed)
    for i in range(count):
        place = traces.listed[i]
        f, a = place // n_actions, place % n_actions
        settle(learner, f, a)
        pair = traces.pairs[f, a]
        pair[TRACE] *= scale
        if abs(pair[TRACE]) > traces.threshold and i >= excess:
            pair[SEEN_SUM] = 0.0
            if ahead >= 0.0:
                pair[SEEN_INTEGRAL] = 0.0
            traces.listed[kept] = place
            kept += 1
        else:
            pair[TRACE] = 0.0
    traces.count[0] = kept
    traces.sums[SCALE], traces.sums[SUM], traces.sums[INTEGRAL] = 1.0, 0.0, 0.0


@lean
def decay_traces(learner):
    """S *= gamma * lambda, and a rebasing where S is small, the list is full or averages begin."""
    traces, ahead = learner.traces, learner.clock[0] - learner.schedule.average_start
    scale = traces.sums[SCALE] * traces.decay
    if scale < SMALLEST_SCALE or traces.count[0] + learner.active.shape[1] > len(traces.listed) or 0.0 <= ahead < 1.0:
        rebase(learner, scale)
    else:
        traces.sums[SCALE] = scale


@lean
def mark(learner, f, a, trace):
    """E[f, a] = trace, and the pair is listed; `settle` it first."""
    traces = learner.traces
    if traces.pairs[f, a, TRACE] == 0.0:
        traces.listed[traces.count[0]] = f * learner.w.shape[1] + a
        traces.count[0] += 1
    traces.pairs[f, a, TRACE] = TINY if trace == 0.0 else trace


@lean
def advance(learner, change):
    """G += S * change: every weight moves by its trace times the change."""
    sums = learner.traces.sums
    sums[SUM] += sums[SCALE] * change
    sums[INTEGRAL] += sums[SUM]


@lean
def traced_values(learner, features, out):
    """Action values of the active features (T,) into out (A,), with what the traces hold for them."""
    w, pairs, total = learner.w, learner.traces.pairs, learner.traces.sums[SUM]
    for a in range(len(out)):
        value = 0.0
        for t in range(len(features)):
            f = features[t]
            value += w[f, a] + pairs[f, a, TRACE] * (total - pairs[f, a, SEEN_SUM])
        out[a] = value


@lru_cache
def traced_rule(rule, td_error, trace: str, cut: bool):
    """begin and step with eligibility traces, z zero at the start of an episode; x is 1 at the pairs of the active features.

        accumulating   z = gamma lambda z + x;                         w += alpha / T * delta * z     (Sutton & Barto sec. 12.7)
        replacing      the same, but z = 1 at the active pairs         (Singh & Sutton 1996)
        dutch          z = gamma lambda z + alpha / T * (1 - gamma lambda z.x) x;
                       w += (delta + q - q_old) z - alpha / T * (q - q_old) x,  q_old from the step before   (van Seijen et al.
                       2016 with the step size within the trace; Sutton & Barto sec. 12.5, 12.7)

    Average reward: as in `one_step_rule`; z decays by lambda alone, as gamma is 1, and an episode's start zeroes it as well.

    :param rule: of the features
    :param td_error: one of the bootstraps of `linear_rules`
    :param trace: "accumulating", "replacing" or "dutch"; the last with Sarsa's error only
    :param cut: zero the traces after every action that isn't greedy: Watkins's Q(lambda) (Sutton & Barto sec. 12.10)
    """
    dutch, replacing = trace == "dutch", trace == "replacing"

    @lean
    def observe(learner, obs):
        for t in range(learner.active.shape[1]):
            learner.active[1, t] = rule(learner.features, obs, t)
        traced_values(learner, learner.active[1], learner.q[1])

    @lean
    def learn(learner, reward, discount, duration, action):
        decay_traces(learner)
        a, sums, pairs, n_active = learner.last[0], learner.traces.sums, learner.traces.pairs, learner.active.shape[1]
        q, overlap = 0.0, 0.0
        for t in range(n_active):
            f = learner.active[0, t]
            settle(learner, f, a)
            q += learner.w[f, a]
            overlap += pairs[f, a, TRACE]
        learner.q[0, a] = q
        epsilon = exploration(learner.schedule, learner.clock[0])
        relative = reward - learner.rate[0] * duration
        error = td_error(learner.q[0], a, relative, discount, learner.q[1], action, epsilon)
        alpha = step_size(learner.schedule, learner.clock[0])
        share = alpha / n_active
        gain = share * (1.0 / sums[SCALE] - overlap) if dutch else 1.0 / sums[SCALE]
        surprise = q - sums[Q_OLD] if dutch else 0.0
        for t in range(n_active):
            f = learner.active[0, t]
            mark(learner, f, a, gain if replacing else pairs[f, a, TRACE] + gain)
            if dutch:
                learner.w[f, a] -= share * surprise
        advance(learner, error + surprise if dutch else share * error)
        sums[Q_OLD] = learner.q[1, action]
        tick(learner, alpha, error)

    @lean
    def begin(learner, obs, rng):
        observe(learner, obs)
        action = choose(learner, rng)
        if learner.last[1] != 0:
            learner.last[1] = 0
            learn(learner, learner.rate[1], 1.0, learner.rate[2], action)
        rebase(learner, 0.0)
        learner.traces.sums[Q_OLD] = 0.0
        return remember(learner, action)

    @lean
    def step(learner, reward, discount, obs, duration, rng):
        observe(learner, obs)
        action = choose(learner, rng)
        if learner.average_reward and discount == 0.0:
            learner.last[1], learner.rate[1], learner.rate[2] = 1, reward, duration
            return action  # what is remembered stays: begin learns from it
        learn(learner, reward, discount, duration, action)
        if cut and learner.q[1, action] < largest(learner.q[1]):
            rebase(learner, 0.0)
        return remember(learner, action)

    return begin, step


def settled(learner: LinearLearner) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """w, total and since (F, A) as they would be with every pair settled; the learner stays as it is."""
    traces: Any = learner.traces
    _, total_sum, integral, _ = traces.sums
    trace, seen = traces.pairs[..., TRACE], traces.pairs[..., SEEN_SUM]
    w, now, start = learner.w + trace * (total_sum - seen), float(learner.clock[0]), learner.schedule.average_start
    if now <= start:
        return w, learner.total, learner.since
    held = now - learner.since.clip(min=start)
    integral = integral if now - start >= 1 else (now - start) * total_sum  # as `rebase` would have it
    gained = integral - traces.pairs[..., SEEN_INTEGRAL] - held * seen
    return w, learner.total + held * learner.w + trace * gained, np.full(w.shape, now)
