"""Comparing acceptance rules at equal loss: the front of a rule, and what is below or above it, paired over texts.

Two rules can be mixed, one for this text and one for the next; expected time and expected KL then mix linearly. So what a rule
reaches at a given KL is the lower convex hull of its points (KL, time), with the exact rule among them. This is never slower than
the rule itself at no more KL, at parameters chosen on the test texts: the harder of the comparisons that one could make.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from .acceptance import Outcome


@dataclass(frozen=True)
class Gap:
    """How much faster a rule is than a front at the same KL.

    :param rate: the front's tokens per plain step there
    :param percent: of the rule's rate above the front's (below: negative)
    :param se: standard error of `percent` over texts, paired (bootstrap)
    """

    rate: float
    percent: float
    se: float


def hull(points: Iterable[Outcome]) -> list[Outcome]:
    """Vertices of the lower convex hull of (KL, time): KL rises and time falls from each to the next; points of infinite KL are
    left out."""
    finite = [point for point in points if np.isfinite(point.kl.sum())]
    vertices: list[Outcome] = []
    for point in sorted(finite, key=lambda point: (point.kl.mean(), point.time.mean())):
        if vertices and point.time.mean() >= vertices[-1].time.mean():
            continue
        while len(vertices) > 1 and _above(vertices[-2], vertices[-1], point):
            vertices.pop()
        vertices.append(point)
    return vertices


def _above(a: Outcome, b: Outcome, c: Outcome) -> bool:
    """Whether b lies on or above the line from a to c."""
    (x, y), (u, v) = ((p.kl.mean() - a.kl.mean(), p.time.mean() - a.time.mean()) for p in (b, c))
    return y * u >= v * x


def gap(rule: Outcome, vertices: list[Outcome], *, resamples: int = 1000, seed: int = 0) -> Gap:
    """Compare a rule with a front at the rule's own KL; beyond the front's last point, with that point.

    :param vertices: of `hull`, on the same texts
    :param resamples: of the texts, drawn with replacement; the front's vertices are kept, their KL and time resampled
    """
    texts = len(rule.time)
    if any(len(vertex.time) != texts for vertex in vertices):
        raise ValueError(f"the rule was judged on {texts} texts, the front on {len(vertices[0].time)}: use the same texts")
    weights = np.random.default_rng(seed).multinomial(texts, np.full(texts, 1.0 / texts), size=resamples)
    kl, time = (np.stack([getattr(v, name) for v in vertices], 1) for name in ("kl", "time"))  # (C, n)
    mean_time = float(np.interp(rule.kl.mean(), kl.mean(0), time.mean(0)))
    drawn_kl, drawn_time = np.maximum.accumulate(weights @ kl, 1), weights @ time  # (B, n); np.interp wants the KL to rise
    own_kl, own_time = weights @ rule.kl, weights @ rule.time
    ratios = [np.interp(x, *front) / t for x, t, front in zip(own_kl, own_time, zip(drawn_kl, drawn_time))]
    percent = 100 * (mean_time / rule.time.mean() - 1)
    return Gap(rule.tokens / mean_time, float(percent), float(100 * np.std(ratios, ddof=1)))
