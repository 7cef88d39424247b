"""Acceptance rules of speculative sampling, exact and lossy, as numbers in and numbers out.

A rule accepts a drafted token x ~ q with probability b(x), else it emits a token from a residual s. The token emitted
at that position then has the law

    e = q b + R s,    R = 1 - sum_x q(x) b(x)    (the rejection rate),

and what the rule loses is KL(p || e). p is the target's distribution and q the drafter's, both (V,) float64 that sum
to one, after the logits processors. Sources: Leviathan et al. 2211.17192 and Chen et al. 2302.01318 (exact), Medusa
2401.10774 (typical), the mentored rule and the total-variation front as in the project's formulas; the marginal-price
form of the mentored rule is derived here.
"""

import numpy as np
from numba import njit


@njit
def overlap(p, q):
    """beta = sum_x min(p, q) = 1 - TV(p, q): the acceptance rate of the exact test."""
    total = 0.0
    for x in range(p.size):
        total += min(p[x], q[x])
    return total


@njit
def entropy(p):
    """H(p) = -sum_x p log p, in nats."""
    total = 0.0
    for x in range(p.size):
        if p[x] > 0.0:
            total -= p[x] * np.log(p[x])
    return total


@njit
def divergence(p, e):
    """KL(p || e) = sum_x p log(p / e) in nats; infinite where e is zero and p isn't."""
    total = 0.0
    for x in range(p.size):
        if p[x] > 0.0:
            if e[x] <= 0.0:
                return np.inf
            total += p[x] * np.log(p[x] / e[x])
    return max(total, 0.0)


@njit
def accept_probability(p, q, lenience):
    """min(1, p / (l q)) for one token: the exact test at l = 1, more accepting as the lenience l falls towards 0,
    which accepts all.

    :param p: target's probability of the drafted token
    :param q: drafter's probability of it; zero only if it could not have been drafted, and then 1 is returned where p
        > 0
    :param lenience: l in [0, 1]
    """
    if p >= lenience * q:
        return 1.0
    return p / (lenience * q)


@njit
def accept_with_lenience(p, q, lenience):
    """(V,) acceptance probabilities min(1, p / (l q)); l = 1 is exact, l = 0 accepts everything."""
    b = np.empty(p.size)
    for x in range(p.size):
        b[x] = accept_probability(p[x], q[x], lenience)
    return b


@njit
def accept_typical(p, epsilon, delta):
    """(V,) of 0 and 1: accept x iff p(x) > min(epsilon, delta exp(-H)), H = -sum p log(p + 1e-5)   (Medusa, section
    2.3.1).
    """
    h = 0.0
    for x in range(p.size):
        h -= p[x] * np.log(p[x] + 1e-5)
    threshold = min(epsilon, delta * np.exp(-h))
    b = np.zeros(p.size)
    for x in range(p.size):
        if p[x] > threshold:
            b[x] = 1.0
    return b


@njit
def residual(p, q, b):
    """norm((p - q b)_+), the residual that keeps rejection + TV(e, p) at its smallest for this b; p itself where
    nothing is left.

    With b >= min(1, p/q) pointwise (exact, every lenience, accept all) it is norm((p - q)_+), whatever b is. The sum
    is zero only if q b covers p, that is, when no rejection can happen; the guard then keeps the answer a
    distribution.
    """
    s = np.empty(p.size)
    total = 0.0
    for x in range(p.size):
        s[x] = max(p[x] - q[x] * b[x], 0.0)
        total += s[x]
    if total <= 0.0:
        return p.copy()
    return s / total


@njit
def rejection(q, b):
    """R = 1 - sum_x q b, never below 0."""
    total = 0.0
    for x in range(q.size):
        total += q[x] * b[x]
    return max(1.0 - total, 0.0)


@njit
def emitted(q, b, s):
    """e = q b + R s, the law of the token that a rule emits at one position."""
    return q * b + rejection(q, b) * s


@njit
def accept_tv_optimal(p, q, rate):
    """(V,) acceptance of a rule on the front TV(e, p) = TV(p, q) - R for a given rejection rate R.

    b = m + theta (1 - m) with m = min(1, p/q): every token that the exact test would reject is let through with the
    same probability theta = 1 - R / TV(p, q). With the residual norm((p - q)_+) what is emitted is the mixture (1 -
    theta) p + theta q. (Every lenience lies on this front too; among its rules this is the one with a closed form.)

    :param rate: R; clipped to [0, TV(p, q)], outside of which no rule on the front exists
    """
    distance = 1.0 - overlap(p, q)
    theta = 0.0 if distance <= 0.0 else 1.0 - min(max(rate / distance, 0.0), 1.0)
    b = accept_with_lenience(p, q, 1.0)
    return b + theta * (1.0 - b)


@njit
def _upper_level(p, q, mass):
    """c >= 1 with sum (p/c - q)_+ = mass, found on the sorted ratios p/q (the sum is piecewise linear in 1/c); infinite for
    no mass where q misses a token that p has.
    """
    ratio = np.empty(p.size)
    for x in range(p.size):
        ratio[x] = np.inf if q[x] <= 0.0 else p[x] / q[x]
    order = np.argsort(-ratio)
    sum_p, sum_q = 0.0, 0.0
    level = np.inf  # tokens with p/q above c share p/c - q
    for i in range(p.size):
        x = order[i]
        if p[x] <= 0.0:
            break
        if sum_p > 0.0 and ratio[x] <= level:
            break
        sum_p += p[x]
        sum_q += q[x]
        level = np.inf if mass + sum_q <= 0.0 else sum_p / (mass + sum_q)
    return max(level, 1.0)


@njit
def _mentored_rejection(p, q, a, through):
    """sum (q - p/a)_+, at a = 0 what is left of q where p is zero."""
    mass = 0.0
    for x in range(p.size):
        if a > 0.0:
            mass += max(q[x] - p[x] / a, 0.0)
        elif p[x] <= 0.0:
            mass += (1.0 - through) * q[x]
    return mass


@njit
def mentored(p, q, a, through=0.0):
    """The mentored rule at the lenience a: b = min(1, p/(a q)), s proportional to (p/c - q)_+ with c >= 1 fixed by a.

    Of all rules with this rejection rate it emits the law nearest to p: e = max(min(q, p/a), p/c), the drafter's law
    clipped to a band around p. At a = 0 only tokens that p hasn't are rejected, and only a share of them.

    :param a: in [0, 1]; 1 is the exact rule
    :param through: at a = 0, the share in [0, 1] of tokens with p = 0 that are accepted all the same; 1 accepts everything
    :return: b (V,), s (V,), c
    """
    b = accept_with_lenience(p, q, a)
    if a <= 0.0:
        for x in range(p.size):
            if p[x] <= 0.0:
                b[x] = through
    c = _upper_level(p, q, _mentored_rejection(p, q, a, through))
    s = np.empty(p.size)
    total = 0.0
    for x in range(p.size):
        s[x] = max(p[x] / c - q[x], 0.0)
        total += s[x]
    if total <= 0.0:
        return b, p.copy(), c
    return b, s / total, c


@njit
def mentored_budget(p, q, budget):
    """The mentored rule that spends a KL budget: the smallest a, and at a = 0 the largest `through`, whose KL(p || e) is at
    most the budget, by bisection.

    :param budget: D in nats; 0 is the exact rule, D >= KL(p || q) accepts everything
    :return: b (V,), s (V,), a
    """
    if divergence(p, q) <= budget:
        return np.ones(p.size), p.copy(), 0.0
    b, s, _ = mentored(p, q, 0.0)
    inside = divergence(p, emitted(q, b, s)) <= budget  # then all that p has is accepted, and `through` is looked for
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = 0.5 * (low + high)
        b, s, _ = mentored(p, q, 0.0, middle) if inside else mentored(p, q, middle)
        if (divergence(p, emitted(q, b, s)) <= budget) != inside:
            high = middle
        else:
            low = middle
    b, s, _ = mentored(p, q, 0.0, low) if inside else mentored(p, q, high)
    return b, s, 0.0 if inside else high


@njit
def mentored_price(p, q, price):
    """The rule that maximises acceptance - price * KL(p || e) over all rules: the mentored rule with c - a = 1 /
    price.

    Moving emitted mass from a token at the lower edge of the band (e = p/c) to one at the upper edge (e = p/a) raises
    acceptance by that mass and KL by (c - a) times it; c - a falls from infinity to 0 as a rises to 1, so the
    multiplier fixes a. One multiplier shared by all positions solves the budget of a whole sequence where an accepted
    token has the same worth everywhere. (Where p is zero nothing is lost by emitting but what others then lack: at a = 0
    such tokens are let through until c is 1 / price.)

    :param price: acceptances per nat, > 0
    :return: b (V,), s (V,), a
    """
    gap = 1.0 / price
    foreign = _mentored_rejection(p, q, 0.0, 0.0)
    if _upper_level(p, q, foreign) <= gap:
        lacking = 0.0
        for x in range(p.size):
            lacking += max(p[x] / gap - q[x], 0.0)
        b, s, _ = mentored(p, q, 0.0, 1.0 if foreign <= 0.0 else max(1.0 - lacking / foreign, 0.0))
        return b, s, 0.0
    low, high = 0.0, 1.0
    for _ in range(60):
        a = 0.5 * (low + high)
        if _upper_level(p, q, _mentored_rejection(p, q, a, 0.0)) - a <= gap:
            high = a
        else:
            low = a
    b, s, _ = mentored(p, q, high)
    return b, s, high


@njit
def excess_divergence(p, q, keep):
    """phi(c) = sum_{p > q} p log(p / (q + c (p - q))): what tokens above q lose when a share c of the exact residual
    reaches them.

    :param keep: c in [0, 1]; phi(1) = 0, and phi is convex
    :return: nats; infinite if c = 0 and q misses a token that p has
    """
    total = 0.0
    for x in range(p.size):
        if p[x] > q[x]:
            e = q[x] + keep * (p[x] - q[x])
            if e <= 0.0:
                return np.inf
            total += p[x] * np.log(p[x] / e)
    return total


@njit
def token_charge(p, q, token, accept):
    """What accepting this drafted token with probability `accept` costs, in nats: the KL of a position, shared out
    over its tokens.

    A policy that looks at the token chooses one b(x) for each, and KL(p || e) belongs to all of them together. With
    the residual norm((p - q)_+), m = min(1, p/q), b >= m and theta(x) = (b - m) / (1 - m), the share let through of
    what the exact test rejects, Jensen's inequality on the convex phi of `excess_divergence` gives a sum over tokens,

        KL(p || e) <= sum_x q(x) charge(x),   charge = (1 - m) / TV * phi(1 - theta) - (p/q) log(b q / p),   0 where p
        >= q,

    with equality where theta is the same for all tokens (exact, accept all, `accept_tv_optimal`). So the expected
    charge is never less than what the policy loses, whatever it looks at. It can be negative for one token, never in
    the mean. (Charging each token the KL that its action would have if taken for every token is not a bound: exact
    where p >= q and accept elsewhere accepts everything and pays for part.)

    :param accept: b(token), at least min(1, p/q)
    """
    pt, qt = p[token], q[token]
    if pt >= qt:
        return 0.0
    exact = pt / qt
    if accept <= exact:
        return 0.0
    theta = (accept - exact) / (1.0 - exact)
    total = (1.0 - exact) / (1.0 - overlap(p, q)) * excess_divergence(p, q, 1.0 - theta)
    if pt > 0.0:
        total -= exact * np.log(accept / exact)
    return total


@njit
def discard_charge(p, q, token):
    """The charge, as in `token_charge`, of discarding this token and emitting a draw from p in its place.

    Discarding conditions on the drafted value, so it isn't lossless: e(x) falls to about q(x) p(x). With R1 the mass
    of all discarded tokens, e >= R1 p >= q(x) p(x) where p < q, and e >= q(x) p(x) where p >= q against q(x) before;
    what they withhold from the residual counts as let through:

        charge = (1 - m) / TV * phi(0) + (p/q) log(1 / max(p, q)).
    """
    pt, qt = p[token], q[token]
    total = pt / qt * -np.log(max(pt, qt)) if pt > 0.0 else 0.0
    if pt < qt:
        total += (1.0 - pt / qt) / (1.0 - overlap(p, q)) * excess_divergence(p, q, 0.0)
    return total
