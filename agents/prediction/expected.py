"""Expected updates of linear prediction on a known model: deterministic, and what the sampled rules do on average.

All states are updated at once, each as often as the behaviour policy is there. Used for Baird's counterexample (Sutton & Barto
fig. 11.2, 11.5, 11.6), and its averages A = X' D (I - gamma P) X and b = X' D r give TD's fixed point.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike


class Model(NamedTuple):
    """A policy's Markov reward process with features; make one with `model`."""

    x: np.ndarray  # (S, F) features
    weight: np.ndarray  # (S,) how often each state is updated, sums to 1
    following: np.ndarray  # (S, S) probabilities of the next state under the target policy, 0 from an end
    reward: np.ndarray  # (S,) expected reward
    gamma: float


def model(x: ArrayLike, weight: ArrayLike, following: ArrayLike, reward: ArrayLike, gamma: float) -> Model:
    """Check shapes and probabilities.

    :raises ValueError: they do not fit together, or rows of `following` or `weight` that exceed 1
    """
    x, weight, following, reward = (np.asarray(a, np.float64) for a in (x, weight, following, reward))
    n = len(x)
    if x.ndim != 2 or weight.shape != (n,) or following.shape != (n, n) or reward.shape != (n,):
        raise ValueError(f"expected x (S, F), weight (S,), following (S, S), reward (S,), got {x.shape}, {weight.shape}, "
                         f"{following.shape}, {reward.shape}")  # fmt: skip
    if (weight < 0).any() or abs(weight.sum() - 1) > 1e-9 or (following < 0).any() or following.sum(axis=1).max() > 1 + 1e-9:
        raise ValueError("weight must sum to 1, and each row of following to at most 1, without negative entries")
    return Model(x, weight, following, reward, float(gamma))


def errors(m: Model, w: np.ndarray) -> np.ndarray:
    """(S,) expected TD errors r + gamma P v - v, for v = X w: the Bellman errors (Sutton & Barto eq. 11.17)."""
    v = m.x @ w
    return m.reward + m.gamma * m.following @ v - v


def expected_td(m: Model, w: np.ndarray, alpha: float) -> np.ndarray:
    """w + alpha * sum_s weight(s) delta(s) x(s): semi-gradient DP (Sutton & Barto eq. 11.9).

    :param w: (F,)
    :return: (F,) the new weights
    """
    return w + alpha * m.x.T @ (m.weight * errors(m, w))


def expected_gtd2(m: Model, w: np.ndarray, u: np.ndarray, alpha: float, beta: float) -> tuple[np.ndarray, np.ndarray]:
    """Both estimates of GTD2, updated at once from the old ones (Sutton & Barto sec. 11.7).

    :return: w and u (F,)
    """
    seen = m.weight * (m.x @ u)
    change = m.x.T @ seen - m.gamma * (m.following @ m.x).T @ seen
    return w + alpha * change, _second(m, w, u, beta)


def expected_tdc(m: Model, w: np.ndarray, u: np.ndarray, alpha: float, beta: float) -> tuple[np.ndarray, np.ndarray]:
    """Both estimates of TDC, updated at once from the old ones (Sutton & Barto sec. 11.7, fig. 11.5).

    :return: w and u (F,)
    """
    change = m.x.T @ (m.weight * errors(m, w)) - m.gamma * (m.following @ m.x).T @ (m.weight * (m.x @ u))
    return w + alpha * change, _second(m, w, u, beta)


def _second(m: Model, w: np.ndarray, u: np.ndarray, beta: float) -> np.ndarray:
    return u + beta * m.x.T @ (m.weight * (errors(m, w) - m.x @ u))


def expected_emphatic_td(m: Model, w: np.ndarray, emphasis: np.ndarray, alpha: float) -> tuple[np.ndarray, np.ndarray]:
    """Emphatic TD(0) with the expected follow-on trace, first updated (Sutton & Barto sec. 11.8, fig. 11.6):

        M(s') = 1 + gamma / weight(s') * sum_s weight(s) M(s) p(s' | s);   w += alpha * sum_s weight(s) M(s) delta(s) x(s)

    :param emphasis: (S,) M, 0 at first
    :return: w (F,) and M (S,)
    """
    flow = m.gamma * m.following.T @ (m.weight * emphasis)
    emphasis = 1.0 + np.divide(flow, m.weight, out=np.zeros_like(flow), where=m.weight > 0)
    return w + alpha * m.x.T @ (m.weight * emphasis * errors(m, w)), emphasis


def td_system(m: Model, lambda_: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """A (F, F) and b (F,) whose solution A w = b is the fixed point of TD(lambda) (S&B eq. 9.11; Tsitsiklis & Van Roy 1997).

    A = X' D (I - gamma lambda P)^-1 (I - gamma P) X,    b = X' D (I - gamma lambda P)^-1 r
    """
    n = len(m.x)
    traced = m.x.T @ (m.weight[:, None] * np.linalg.inv(np.eye(n) - m.gamma * lambda_ * m.following))
    return traced @ (np.eye(n) - m.gamma * m.following) @ m.x, traced @ m.reward


def td_fixed_point(m: Model, lambda_: float = 0.0) -> np.ndarray:
    """(F,) weights to which TD(lambda) converges on-policy; the least ones where they are not unique."""
    return np.linalg.lstsq(*td_system(m, lambda_), rcond=None)[0]


def projected_errors(m: Model, w: np.ndarray) -> np.ndarray:
    """(S,) the Bellman errors' projection onto the span of the features, weighted by D (Sutton & Barto sec. 11.4).

    Its weighted mean square is the projected Bellman error PBE.
    """
    root = np.sqrt(m.weight)
    fit = np.linalg.lstsq(root[:, None] * m.x, root * errors(m, w), rcond=None)[0]
    return m.x @ fit
