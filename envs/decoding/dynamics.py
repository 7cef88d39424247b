"""The decision process "draft one more token, or verify now?" as compiled functions over any source of drafts.

A source is a NamedTuple with two functions beside it:

    start(source, cursor, rng) -> target_entropy                  a round begins at the cursor
    propose(source, cursor, k, rng) -> (confidence, entropy, order, log_count, acceptance, probability, hit)

`propose` gives the k-th (from 0) drafted token of the round: its features and predicted acceptance, which the policy may see, the
target's true probability of it, and whether the target accepts it given that those before it are accepted, which it may not see.
`begin(source, cursor, rng)` puts the cursor at the start of a text and `finish(source, cursor, accepted, tokens, rng)` moves it
past a round.

    reward = tokens / rho - time,    time = draft a token, or T(m) to verify m - 1 of them    (docs/decoding.md)
"""

from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numba import njit

from tdraft.kernels.jit import lean
from tdraft.models.decoding import observation as ob
from tdraft.models.decoding.cost import CostModel

# The cursor: where a text stands, and what the round in progress hides from the policy.
TEXT, POSITION, DIFFICULTY, ACCEPTED, ALIVE, TRUE_SURVIVAL, TRUE_EXPECTED, TRUE_BEFORE = range(8)
CURSOR_SIZE = 8
# What a rollout counts for a text.
TOKENS, TIME, CALLS, DRAFTED, ACCEPTED_TOKENS, DECISIONS = range(6)
N_COUNTS = 6


class DraftParams(NamedTuple):
    """Everything a compiled Draft env is: source, prices and the mutable state of one text."""

    source: Any
    calibration: ob.Calibration
    verify: np.ndarray  # (K + 2,) T(m) / T(1)
    draft: float  # time of a drafted token, in plain steps
    max_drafted: int  # K
    n_tokens: int  # N, tokens in an episode
    rho: float  # reference rate, tokens per unit of time
    expected: bool  # reward the expected number of tokens in place of the sampled one
    shaped: bool  # pay predicted tokens when they are drafted, and settle the difference when they are verified
    obs: np.ndarray  # (SIZE,)
    cursor: np.ndarray  # (CURSOR_SIZE,)
    outcome: np.ndarray  # (2,) tokens and accepted of the last verification


def draft_params(
    source, calibration, cost: CostModel, n_tokens: int, rho: float, expected: bool = False, shaped: bool = False
) -> DraftParams:
    return DraftParams(
        source,
        calibration,
        cost.verify,
        float(cost.draft),
        cost.max_drafted,
        n_tokens,
        float(rho),
        expected,
        shaped,
        np.zeros(ob.SIZE),
        np.zeros(CURSOR_SIZE),
        np.zeros(2),
    )


class Dynamics(NamedTuple):
    """The compiled functions of an env. The observation is `params.obs`; `reset` and `step` return it as `CompiledEnv` asks."""

    begin: Any  # (params, rng): a text begins
    act: Any  # (params, action, rng) -> (reward, terminated, duration)
    reset: Any  # (params, rng) -> obs
    step: Any  # (params, obs, action, rng) -> (obs, reward, terminated, duration)


@lru_cache
def make_dynamics(begin_text, start, propose, finish) -> Dynamics:
    """The compiled reset and step of Draft-v0 over one kind of source."""

    @lean
    def begin_round(params, rng):
        cursor = params.cursor
        cursor[ACCEPTED], cursor[ALIVE], cursor[TRUE_SURVIVAL] = 0.0, 1.0, 1.0
        cursor[TRUE_EXPECTED], cursor[TRUE_BEFORE] = 0.0, 0.0
        ob.begin_round(params.obs, start(params.source, cursor, rng), params.n_tokens - cursor[POSITION])

    @lean
    def begin(params, rng):
        begin_text(params.source, params.cursor, rng)
        params.cursor[POSITION] = 0.0
        ob.begin_text(params.obs, params.calibration)
        begin_round(params, rng)

    @lean
    def draft_token(params, k, rng):
        cursor = params.cursor
        confidence, entropy, order, log_count, acceptance, probability, hit = propose(params.source, cursor, k, rng)
        ob.add_token(params.obs, params.calibration, confidence, entropy, order, log_count, acceptance)
        if hit and cursor[ALIVE] > 0.0:
            cursor[ACCEPTED] += 1.0
        else:
            cursor[ALIVE] = 0.0
        cursor[TRUE_SURVIVAL] *= probability
        cursor[TRUE_BEFORE] = cursor[TRUE_EXPECTED]
        if k + 1 < params.n_tokens - cursor[POSITION]:
            cursor[TRUE_EXPECTED] += cursor[TRUE_SURVIVAL]

    @lean
    def act(params, action, rng):
        cursor, obs = params.cursor, params.obs
        drafted = int(obs[ob.DRAFTED])
        if action == ob.DRAFT and drafted < params.max_drafted:
            draft_token(params, drafted, rng)
            advance = obs[ob.SURVIVAL] / params.rho if params.shaped else 0.0
            return advance - params.draft, False, params.draft
        dropped = action == ob.DROP and drafted > 0
        verified = drafted - 1 if dropped else drafted
        remaining = params.n_tokens - int(cursor[POSITION])
        accepted = min(int(cursor[ACCEPTED]), verified)
        tokens = min(accepted + 1, remaining)
        gained = float(tokens)
        if params.expected:
            gained = 1.0 + (cursor[TRUE_BEFORE] if dropped else cursor[TRUE_EXPECTED])
        if params.shaped:
            gained -= obs[ob.EXPECTED]
        time = params.verify[verified + 1]
        params.outcome[0], params.outcome[1] = tokens, accepted
        ob.end_round(obs, params.calibration, verified, accepted)
        finish(params.source, cursor, accepted, tokens, rng)
        cursor[POSITION] += tokens
        begin_round(params, rng)
        return gained / params.rho - time, cursor[POSITION] >= params.n_tokens, time

    @njit
    def reset(params, rng):
        begin(params, rng)
        return params.obs

    @njit
    def step(params, obs, action, rng):
        reward, terminated, duration = act(params, action, rng)
        return params.obs, reward, terminated, duration

    return Dynamics(begin, act, reset, step)


@lru_cache
def make_rollout(dynamics: Dynamics, decide):
    """Compiled evaluation: play the texts in order, one a row of counts, under a policy.

    :return: `rollout(params, policy_params, start, memory, counts, rng)`, which fills counts (n_texts, N_COUNTS); `start` is the
        policy's memory at the start of a text, `memory` room for it
    """
    begin, act = dynamics.begin, dynamics.act

    @lean
    def rollout(params, policy_params, start, memory, counts, rng):
        obs = params.obs
        for row in range(len(counts)):
            params.cursor[TEXT] = row - 1
            for i in range(len(start)):
                memory[i] = start[i]
            begin(params, rng)
            done = False
            while not done:
                action = decide(policy_params, memory, obs)
                drafted = obs[ob.DRAFTED]
                _, done, time = act(params, action, rng)
                counts[row, DECISIONS] += 1
                counts[row, TIME] += time
                if obs[ob.DRAFTED] > drafted:
                    counts[row, DRAFTED] += 1
                else:
                    counts[row, CALLS] += 1
                    counts[row, TOKENS] += params.outcome[0]
                    counts[row, ACCEPTED_TOKENS] += params.outcome[1]

    return rollout
