"""Published rules for when to stop drafting, as compiled policies, each tuned on the same validation contexts.

Every rule sees the observation of Draft-v0 and nothing else, and carries what it needs from round to round in its memory. Where a
paper's rule reads the drafter's full distribution, the observation has its confidence and entropy. None drafts past the last
token of a text: engines clip there, and learned policies find it out by themselves.
"""

from collections.abc import Callable, Collection, Iterable
from itertools import product
from typing import Any

import numpy as np

from tdraft.envs.decoding.draft import Replay
from tdraft.kernels.jit import lean
from tdraft.models.decoding import observation as ob
from tdraft.models.decoding.cost import CostModel
from tdraft.models.decoding.policy import DraftPolicy

from .decoding_evaluation import play, speedup


def rule(decide: Callable) -> Any:
    """A compiled rule that verifies where one more draft could not be emitted any more."""
    inner = lean(decide)

    @lean
    def clipped(params, memory, obs):
        action = inner(params, memory, obs)
        return ob.VERIFY if action == ob.DRAFT and obs[ob.DRAFTED] + 1.0 >= obs[ob.REMAINING] else action

    return clipped


@rule
def static(params, memory, obs):
    """Always draft k tokens."""
    return ob.DRAFT if obs[ob.DRAFTED] < params[0] else ob.VERIFY


@rule
def two_thresholds(params, memory, obs):
    """No draft if the first token's acceptance is below x; stop when the survival falls below y, dropping that token."""
    if obs[ob.DRAFTED] == 1 and obs[ob.ACCEPTANCE] < params[0]:
        return ob.DROP
    if obs[ob.SURVIVAL] < params[1]:
        return ob.DROP
    return ob.DRAFT


@rule
def survival_cost(params, memory, obs):
    """One-step rule on calibrated survival and the profiled cost: params = (rate, look-ahead acceptance, t_d, T...).

    The newest token is dropped if verifying it costs more than it is expected to bring; one more is drafted iff
    survival * max(a, newest acceptance * a') > rate * (t_d + dT).
    """
    rate, ahead, draft = params[0], params[1], params[2]
    k = int(obs[ob.DRAFTED])
    if k > 0 and obs[ob.SURVIVAL] < rate * (params[3 + k + 1] - params[3 + k]):
        return ob.DROP
    if 3 + k + 2 >= len(params):
        return ob.VERIFY
    worth = obs[ob.SURVIVAL] * ahead
    return ob.DRAFT if worth > rate * (draft + params[3 + k + 2] - params[3 + k + 1]) else ob.VERIFY


@rule
def hf_heuristic(params, memory, obs):
    """All accepted: k += 2, else k = max(1, k - 1)   (Hugging Face's heuristic schedule); memory = (k,)."""
    if obs[ob.DRAFTED] == 0:
        if obs[ob.LAST_DRAFTED] < 0:
            memory[0] = params[0]
        elif obs[ob.LAST_ACCEPTED] >= obs[ob.LAST_DRAFTED]:
            memory[0] = min(memory[0] + 2.0, params[1])
        else:
            memory[0] = max(1.0, memory[0] - 1.0)
    return ob.DRAFT if obs[ob.DRAFTED] < memory[0] else ob.VERIFY


@rule
def confidence_stop(params, memory, obs):
    """Stop after a token whose drafter probability is below a threshold (Hugging Face's default, with the threshold tuned)."""
    return ob.DRAFT if obs[ob.CONFIDENCE] >= params[0] and obs[ob.DRAFTED] < params[1] else ob.VERIFY


@rule
def svip(params, memory, obs):
    """Stop after a token with sqrt(c * entropy) > h   (SVIP, arXiv 2411.18462)."""
    return ob.VERIFY if np.sqrt(params[0] * obs[ob.ENTROPY]) > params[1] else ob.DRAFT


@rule
def ada_edl(params, memory, obs):
    """Stop if 1 - sqrt(g * entropy) < l, with l adapted to the acceptance rate (AdaEDL, 2410.18351); memory = (l, rate, seen)."""
    g, start, goal, step = params[0], params[1], params[2], params[3]
    if obs[ob.DRAFTED] == 0:
        if obs[ob.LAST_DRAFTED] < 0:
            memory[0], memory[1] = start, goal
        elif obs[ob.LAST_DRAFTED] > 0:
            memory[1] = 0.5 * memory[1] + 0.5 * obs[ob.LAST_ACCEPTED] / obs[ob.LAST_DRAFTED]
            target = memory[0]
            if memory[1] < goal:
                target += step
            elif obs[ob.LAST_ACCEPTED] != obs[ob.LAST_DRAFTED]:
                target -= step
            memory[0] = 0.9 * memory[0] + 0.1 * target
        return ob.DRAFT
    return ob.VERIFY if 1.0 - np.sqrt(g * obs[ob.ENTROPY]) < memory[0] else ob.DRAFT


@rule
def gamma_tune(params, memory, obs):
    """All accepted: k += 2, else k' = (1 - eta) k' + eta * accepted, k = ceil(k')   (GammaTune, arXiv 2504.00030)."""
    if obs[ob.DRAFTED] == 0:
        if obs[ob.LAST_DRAFTED] < 0:
            memory[0] = params[0]
        elif obs[ob.LAST_ACCEPTED] >= obs[ob.LAST_DRAFTED]:
            memory[0] = min(memory[0] + 2.0, params[2])
        else:
            memory[0] = max((1.0 - params[1]) * memory[0] + params[1] * obs[ob.LAST_ACCEPTED], params[3])
    return ob.DRAFT if obs[ob.DRAFTED] < np.ceil(memory[0]) else ob.VERIFY


@rule
def sglang_ema(params, memory, obs):
    """e <- .8 e + .2 accepted; move among candidate lengths 1, 3, 5, 7 with hysteresis (SGLang); memory = (e, index)."""
    if obs[ob.DRAFTED] == 0:
        if obs[ob.LAST_DRAFTED] < 0:
            memory[0], memory[1] = 2.0 * params[0] + 1.0, params[0]
        else:
            memory[0] = 0.8 * memory[0] + 0.2 * obs[ob.LAST_ACCEPTED]
            length = 2.0 * memory[1] + 1.0
            if memory[0] < length - 2.0 + params[1] and memory[1] > 0:
                memory[1] -= 1.0
            elif memory[0] > length - 1.0 + params[2] and memory[1] < 3:
                memory[1] += 1.0
    return ob.DRAFT if obs[ob.DRAFTED] < 2.0 * memory[1] + 1.0 else ob.VERIFY


@rule
def spec_dec_pp(params, memory, obs):
    """Stop if the predicted probability that a draft is rejected, 1 - survival, exceeds h   (SpecDec++, arXiv 2405.19715)."""
    return ob.VERIFY if 1.0 - obs[ob.SURVIVAL] > params[0] else ob.DRAFT


@rule
def bandit_ucb(params, memory, obs):
    """BanditSpec's UCB over k in 0..4 with loss (L + 1 - tokens) / L (2505.15141); memory = (k, rounds, count[5], sum[5])."""
    if obs[ob.DRAFTED] == 0:
        if obs[ob.LAST_DRAFTED] < 0:
            memory[:] = 0.0
        else:
            arm = int(memory[0])
            memory[2 + arm] += 1.0
            memory[7 + arm] += (5.0 - obs[ob.LAST_ACCEPTED] - 1.0) / 4.0
            memory[1] += 1.0
        best, arm = np.inf, 0
        for k in range(5):
            n = memory[2 + k]
            index = -np.inf if n == 0.0 else memory[7 + k] / n - params[0] * np.sqrt(np.log(memory[1] + 1.0) / n)
            if index < best:
                best, arm = index, k
        memory[0] = arm
    return ob.DRAFT if obs[ob.DRAFTED] < memory[0] else ob.VERIFY


Grid = Iterable[tuple[float, ...]]


def candidates(cost: CostModel) -> dict[str, tuple[Callable, int, Grid]]:
    """Every rule with the size of its memory and the grid that it is tuned over."""
    k = cost.max_drafted
    unit = np.linspace(0.02, 0.98, 25)
    prices = (cost.draft, *cost.verify)
    rates = np.linspace(0.4, 3.2, 29)
    return {
        "no speculation": (static, 1, [(0.0,)]),
        "static": (static, 1, [(float(n),) for n in range(k + 1)]),
        "two thresholds": (two_thresholds, 1, product(np.linspace(0.0, 0.9, 19), np.geomspace(0.005, 0.9, 24))),
        "survival x cost": (survival_cost, 1, ((r, a, *prices) for r, a in product(rates, np.linspace(0.1, 1.0, 19)))),
        "HF heuristic": (hf_heuristic, 1, product(np.arange(1.0, k + 1), np.arange(1.0, k + 1))),
        "HF confidence": (confidence_stop, 1, product(unit, np.arange(1.0, k + 1))),
        "SVIP": (svip, 1, product([0.15], np.linspace(0.02, 1.2, 60))),
        "AdaEDL": (ada_edl, 2, product([0.2], np.linspace(-0.4, 0.98, 24), [0.3, 0.5, 0.7, 0.9], [0.01, 0.1])),
        "GammaTune": (gamma_tune, 1, product(np.arange(1.0, k + 1), [0.2, 0.5, 0.8, 1.0], np.arange(1.0, k + 1), [0.0, 1.0])),
        "SGLang EMA": (sglang_ema, 2, product([0.0, 1.0, 2.0, 3.0], np.linspace(-1.5, 0.5, 5), np.linspace(-0.5, 1.0, 4))),
        "SpecDec++": (spec_dec_pp, 1, product(np.linspace(0.02, 0.995, 60))),
        "BanditSpec UCB": (bandit_ucb, 12, product([0.1, 0.3, 0.6, 1.0])),
    }


def tune_all(validation: Replay, names: Collection[str] | None = None) -> list[DraftPolicy]:
    """Every rule at its best setting on the validation contexts, by exhaustive search over its grid.

    :param names: of `candidates`, by default all
    :return: policies, best on the validation contexts first; the best static length is called "static k=..."
    """
    tuned: list[tuple[float, DraftPolicy]] = []
    texts = len(validation.trace.tokens)
    for name, (rule, memory, grid) in candidates(validation.cost).items():
        if names is not None and name not in names:
            continue
        found = [DraftPolicy(name, rule, np.array(point, np.float64), np.zeros(memory)) for point in grid]
        scores = [speedup(play(validation, policy, texts=texts)) for policy in found]
        best = found[int(np.argmax(scores))]
        label = f"static k={best.params[0]:.0f}" if name == "static" else name
        tuned.append((max(scores), DraftPolicy(label, best.decide, best.params, best.memory)))
    return [policy for _, policy in sorted(tuned, key=lambda pair: -pair[0])]
