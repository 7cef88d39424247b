"""Acceptance rules on Accept-v0's texts: what each costs in time and in KL, exactly, and how far a learned policy is from the
best.

On simulated texts nothing has to be sampled to judge a policy: at every position the acceptance rate and KL(p || emitted) are
sums over the vocabulary, and the expected time and KL of a text follow by dynamic programming
(`envs.decoding.accept_dynamics.episode_totals`). What varies is the text, and every policy sees the same ones; standard errors
are over texts.

The KL of a position is that of the law emitted there given that the position is decided; summed over the positions of a text it
bounds the KL of the whole text's law from above, since the places of the rounds are not seen in the text.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numba import njit

from tdraft.envs.decoding import accept_dynamics as dynamics
from tdraft.envs.decoding.accept import DEFAULT_COST, AcceptEnv, Simulator
from tdraft.kernels import acceptance as kernel
from tdraft.models.decoding.cost import CostModel


@dataclass(frozen=True)
class Outcome:
    """A rule on C texts of N tokens: expected time (plain steps), KL (nats) and rejections of each, (C,) each."""

    rule: str
    parameter: float
    tokens: int
    time: np.ndarray
    kl: np.ndarray
    rejections: np.ndarray

    @property
    def rate(self) -> float:
        """Tokens per plain step: a ratio of sums, the speed-up over plain decoding."""
        return self.tokens * len(self.time) / self.time.sum()

    @property
    def rate_se(self) -> float:
        """Standard error of the rate over texts (delta method)."""
        return self.rate * self.time.std(ddof=1) / self.time.mean() / np.sqrt(len(self.time))

    @property
    def kl_per_token(self) -> float:
        """Nats a token, mean over texts."""
        return self.kl.mean() / self.tokens

    @property
    def kl_se(self) -> float:
        """Standard error of the KL a token over texts."""
        return self.kl.std(ddof=1) / self.tokens / np.sqrt(len(self.kl))

    @property
    def rejections_per_token(self) -> float:
        return self.rejections.mean() / self.tokens


# --- rules that need the whole of p and q: (p, q, parameter (2,)) -> b (V,), s (V,)


@njit
def lenience(p, q, parameter):
    """min(1, p / (l q)); l = 1 is exact, l = 0 accepts everything."""
    b = kernel.accept_with_lenience(p, q, parameter[0])
    return b, kernel.residual(p, q, b)


@njit
def typical(p, q, parameter):
    """Typical acceptance with (epsilon, delta); a rejection emits from p, as published."""
    return kernel.accept_typical(p, parameter[0], parameter[1]), p


@njit
def typical_residual(p, q, parameter):
    """Typical acceptance with the residual norm((p - q b)_+), which loses less."""
    b = kernel.accept_typical(p, parameter[0], parameter[1])
    return b, kernel.residual(p, q, b)


@njit
def tv_optimal(p, q, parameter):
    """TV(e, p) = TV(p, q) - R at the rejection rate R."""
    b = kernel.accept_tv_optimal(p, q, parameter[0])
    return b, kernel.residual(p, q, b)


@njit
def mentored(p, q, parameter):
    """Mentored decoding with a KL budget D at every position."""
    b, s, _ = kernel.mentored_budget(p, q, parameter[0])
    return b, s


@njit
def mentored_price(p, q, parameter):
    """Mentored decoding with one price on KL shared by all positions (acceptances per nat)."""
    b, s, _ = kernel.mentored_price(p, q, parameter[0])
    return b, s


_EPSILONS = (0.001, 0.003, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3)
RULES: dict[str, tuple[Any, list[tuple[float, float]]]] = {
    "lenience": (lenience, [(x, 0.0) for x in (*np.linspace(1.0, 0.5, 26), *np.geomspace(0.45, 0.001, 24), 0.0)]),
    "typical": (typical, [(e, d) for e in _EPSILONS for d in (0.03, 0.09, 0.3, 1.0)]),
    "typical-residual": (typical_residual, [(e, d) for e in _EPSILONS for d in (0.03, 0.09, 0.3, 1.0)]),
    "tv-optimal": (tv_optimal, [(x, 0.0) for x in np.linspace(0.0, 1.0, 41)]),
    "mentored": (mentored, [(x, 0.0) for x in (0.0, *np.geomspace(1e-4, 3.0, 32))]),
    "mentored-price": (mentored_price, [(x, 0.0) for x in np.geomspace(1000.0, 0.03, 45)]),
}
"""Baselines: rule and the parameters of its front."""


@lru_cache
def _position_tables(rule):
    @njit
    def tables(p, q, parameter):
        texts, length, _ = p.shape
        accept, kl = np.empty((texts, length)), np.empty((texts, length))
        for c in range(texts):
            for t in range(length):
                b, s = rule(p[c, t], q[c, t], parameter)
                accept[c, t] = 1.0 - kernel.rejection(q[c, t], b)
                kl[c, t] = kernel.divergence(p[c, t], kernel.emitted(q[c, t], b, s))
        return accept, kl

    return tables


@njit
def _policy_tables(p, q, accept, actions):
    """Acceptance rate and KL(p || emitted), (C, N, K), of a policy, from its action for every token that may be drafted."""
    texts, length, depth, vocabulary = actions.shape
    rate, kl = np.zeros((texts, length, depth)), np.zeros((texts, length, depth))
    discard = accept.shape[-1] - 1
    for c in range(texts):
        for t in range(length):
            exact = kernel.residual(p[c, t], q[c, t], kernel.accept_with_lenience(p[c, t], q[c, t], 1.0))
            for j in range(min(depth, t + 1)):
                if dynamics.place_in_round(t, j, length, depth) < 0:
                    continue
                e, rejected, discarded = np.zeros(vocabulary), 0.0, 0.0
                for x in range(vocabulary):
                    a = actions[c, t, j, x]
                    e[x] = q[c, t, x] * accept[c, t, x, a]
                    if a == discard:
                        discarded += q[c, t, x]
                    else:
                        rejected += q[c, t, x] - e[x]
                rate[c, t, j] = e.sum()
                kl[c, t, j] = kernel.divergence(p[c, t], e + rejected * exact + discarded * p[c, t])
    return rate, kl


@njit
def _observations(params, table):
    """What the policy sees at every (text, position, index in the round, token): (C, N, K, V, D), or bins (C, N, K, V, 1)."""
    texts, length, vocabulary = params.p.shape
    depth = params.drafts.size
    seen = np.zeros((texts, length, depth, vocabulary, 1 if table else params.obs.size))
    for c in range(texts):
        for t in range(length):
            for j in range(min(depth, t + 1)):
                left = dynamics.place_in_round(t, j, length, depth)
                if left < 0:
                    continue
                params.cursor[:] = (c, t, j, j + 1 + left)
                for x in range(vocabulary):
                    params.drafts[j] = x
                    dynamics.observe(params)
                    if table:
                        seen[c, t, j, x, 0] = dynamics.table_index(params.obs)
                    else:
                        seen[c, t, j, x] = params.obs
    return seen


@njit
def _informed(accept, kl, verify, draft, price, depth):
    """Best choice among G rules at every (text, position, index): minimises the expected time + price * KL of the text, all of p
    and q known.

    J(t0, j) = min_g [price kl_g + A_g J(t0, j + 1) + (1 - A_g) W(t0 + j + 1)],  J(t0, k) = W(t0 + k + 1),  W(t0) = cost(k) +
    J(t0, 0).

    :param accept, kl: (C, N, G)
    :return: accept and kl of the choices, (C, N, K)
    """
    texts, length, rules = accept.shape
    chosen_accept, chosen_kl = np.zeros((texts, length, depth)), np.zeros((texts, length, depth))
    w = np.zeros(length + 1)
    for c in range(texts):
        for t in range(length - 1, -1, -1):
            k = min(depth, length - t - 1)
            value = w[t + k + 1]
            for j in range(k - 1, -1, -1):
                best = np.inf
                for g in range(rules):
                    a = accept[c, t + j, g]
                    total = price * kl[c, t + j, g] + a * value + (1.0 - a) * w[t + j + 1]
                    if total < best:
                        best = total
                        chosen_accept[c, t + j, j], chosen_kl[c, t + j, j] = a, kl[c, t + j, g]
                value = best
            w[t] = verify[k + 1] + draft * k + value
    return chosen_accept, chosen_kl


def totals(rule: str, parameter: float, accept: np.ndarray, kl: np.ndarray, cost: CostModel) -> Outcome:
    """The outcome of tables (C, N) or (C, N, K)."""
    if accept.ndim == 2:
        accept, kl = (np.repeat(x[..., None], cost.max_drafted, -1) for x in (accept, kl))
    time, lost = dynamics.episode_totals(accept, kl, cost.verify, cost.draft)
    _, rejections = dynamics.episode_totals(accept, 1.0 - accept, cost.verify, cost.draft)
    return Outcome(rule, float(parameter), accept.shape[1], time, lost, rejections)


def front(name: str, p: np.ndarray, q: np.ndarray, cost: CostModel = DEFAULT_COST) -> list[Outcome]:
    """The outcomes of a baseline at each of its parameters (`RULES`) on texts p, q (C, N, V)."""
    rule, parameters = RULES[name]
    tables = _position_tables(rule)
    return [totals(name, x[0], *tables(p, q, np.array(x)), cost) for x in parameters]


def informed_front(
    p: np.ndarray, q: np.ndarray, prices: Sequence[float], cost: CostModel = DEFAULT_COST, grid: int = 64
) -> list[Outcome]:
    """The best that any rule can do that knows p and q of the whole text beforehand, but not the draws: mentored rules chosen by
    dynamic programming.

    No policy on Accept-v0 can lie above this front, up to the grid: at each position the mentored rule is looked for among `grid`
    values of a from 1e-4 to .999 (1/a - 1 geometric), the exact rule and accept all.
    """
    values = np.concatenate([1.0 / (1.0 + np.geomspace(1e-3, 1e4, grid)), [1.0, 0.0]])

    @njit
    def at_lenience(p, q, parameter):
        if parameter[0] <= 0.0:
            return np.ones(p.size), p
        b, s, _ = kernel.mentored(p, q, parameter[0])
        return b, s

    tables = _position_tables(at_lenience)
    pairs = [tables(p, q, np.array([a, 0.0])) for a in values]
    accept, kl = (np.stack([pair[i] for pair in pairs], -1) for i in range(2))
    choose = (cost.verify, cost.draft)
    return [totals("informed", x, *_informed(accept, kl, *choose, float(x), cost.max_drafted), cost) for x in prices]


def evaluate(env: AcceptEnv, actions: Callable[[np.ndarray], np.ndarray], rule: str, parameter: float = 0.0) -> Outcome:
    """The exact outcome of a deterministic policy on all texts of a simulated env without budget.

    :param actions: maps a batch of observations ((B,) bins or (B, 13)) to (B,) actions; `lambda o: agent.predict(o)[0]`
    """
    if env.live is not None or np.isfinite(env.params.budget):
        raise ValueError("exact evaluation needs a simulated env without budget; play episodes instead")
    table = env.observe == "table"
    params = env.params._replace(drafts=env.params.drafts.copy(), cursor=env.params.cursor.copy(), obs=env.params.obs.copy())
    seen = _observations(params, table)
    flat = seen.reshape(-1).astype(np.int64) if table else seen.reshape(-1, seen.shape[-1])
    chosen = np.asarray(actions(flat), np.int64).reshape(seen.shape[:-1])
    return totals(rule, parameter, *_policy_tables(params.p, params.q, params.accept, chosen), env.cost)


def learn_policy(
    source: Simulator,
    price: float,
    *,
    steps: int = 24_000_000,
    seed: int = 0,
    rounds: int = 3,
    cost: CostModel = DEFAULT_COST,
    **settings,
):
    """Train tabular Q-learning on Accept-v0 at a price of KL, from rewards alone, and return the agent.

    rho is the reference rate net of the price, tokens / (time + price * KL): first of the best lenience on the training texts,
    then of the policy learned so far (Dinkelbach), so that values stay centred. gamma is 1.

    :param steps: env steps in all; the last half on the last value of rho
    """
    from . import QLearning

    p, q = source.draw()
    rate = max(_net_rate(outcome, price) for outcome in front("lenience", p, q, cost))
    agent: Any = None
    for i in range(rounds):
        env = AcceptEnv(source, price=price, cost=cost, observe="table", reference_rate=rate, **settings)
        share = steps // 2 if i == rounds - 1 else steps // (2 * max(rounds - 1, 1))
        last = i == rounds - 1
        following = QLearning(
            env,
            seed=seed + 1000 * i,
            gamma=1.0,
            alpha=0.1 if i == 0 else 0.02,
            alpha_final=0.002 if last else 0.02,
            epsilon=0.3,
            epsilon_final=0.05,
            horizon=max(share, 1),
            average=0.5,
        )
        if agent is not None:
            following.q[:] = agent.values()
        agent = following.learn(share)
        rate = _net_rate(evaluate(env, agent.values().argmax(-1).__getitem__, "learned", price), price)
    return agent


def _net_rate(outcome: Outcome, price: float) -> float:
    return outcome.tokens * len(outcome.time) / (outcome.time + price * outcome.kl).sum()
