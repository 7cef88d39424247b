"""What a value estimate is measured by, on a finite chain: VE, BE, PBE, TD's fixed point, and the weights of the states.

A policy on a finite MDP is a chain: P (S, S) probabilities to go on (rows sum to less than 1 where episodes end) and r (S,)
expected rewards; `agents.planning.chain` gives both. X (S, d) are features, one row a state; v = X w; mu (S,) weights the states.
Source: Sutton & Barto, sections 9.2, 9.4 and 11.4; S. Zhao, section 8.2; Tsitsiklis & Van Roy 1997.
"""

import numpy as np


class ObjectiveError(ValueError):
    """Arrays that do not fit, or a quantity that does not exist."""


def _check(P: np.ndarray, **vectors: np.ndarray) -> None:
    """Shapes that fit together, and probabilities."""
    if P.ndim != 2 or P.shape[0] != P.shape[1]:
        raise ObjectiveError(f"P must be a square matrix (S, S), got shape {P.shape}")
    if not (np.all(P >= 0) and np.all(P.sum(axis=1) <= 1 + 1e-9)):
        raise ObjectiveError("P must hold probabilities: no entry below 0 and no row above 1")
    for name, vector in vectors.items():
        if vector.shape[:1] != P.shape[:1]:
            raise ObjectiveError(f"{name} must have an entry for each of the {len(P)} states, got shape {vector.shape}")


def stationary_distribution(P: np.ndarray) -> np.ndarray:
    """mu with mu P = mu and sum 1, of a chain that goes on for ever.

    :param P: (S, S), each row sums to 1
    :return: (S,); 0 on transient states
    :raises ObjectiveError: rows that sum to less than 1 (see `on_policy_distribution`), or several closed classes
    """
    _check(P)
    if np.abs(P.sum(axis=1) - 1).max() > 1e-9:
        raise ObjectiveError("episodes end in this chain: it has no stationary distribution; use on_policy_distribution")
    n = len(P)
    system = np.vstack([P.T - np.eye(n), np.ones(n)])
    mu, _, rank, _ = np.linalg.lstsq(system, np.append(np.zeros(n), 1.0), rcond=1e-12)
    if rank < n:
        raise ObjectiveError("the stationary distribution is not unique: the chain has several closed classes")
    mu = np.clip(mu, 0.0, None)
    return mu / mu.sum()


def on_policy_distribution(P: np.ndarray, start: np.ndarray) -> np.ndarray:
    """Share of time in each state when episodes end: eta = start + P' eta, mu = eta / sum(eta)   (Sutton & Barto eq. 9.2, 9.3).

    :param P: (S, S) probabilities to go on
    :param start: (S,) law of the first state
    :return: (S,); sum(eta) is the mean length of an episode, see `mean_length`
    :raises ObjectiveError: episodes that may never end
    """
    eta = _visits(P, start)
    return eta / eta.sum()


def mean_length(P: np.ndarray, start: np.ndarray) -> float:
    """Expected steps of an episode, the sum of the expected visits."""
    return float(_visits(P, start).sum())


def _visits(P: np.ndarray, start: np.ndarray) -> np.ndarray:
    _check(P, start=start)
    seen = start > 0
    for _ in range(len(P)):  # only states that can be reached count
        further = seen | (P[seen] > 0).any(axis=0)
        if np.array_equal(further, seen):
            break
        seen = further
    inside = P[np.ix_(seen, seen)]
    eta = np.zeros(len(P))
    try:
        eta[seen] = np.linalg.solve(np.eye(seen.sum()) - inside.T, start[seen])
    except np.linalg.LinAlgError:
        eta[:] = np.inf
    if not np.all((eta >= -1e-9) & (eta < 1e12)):
        raise ObjectiveError("episodes may never end in this chain: use stationary_distribution")
    return eta


def value_error(v: np.ndarray, true: np.ndarray, mu: np.ndarray) -> float:
    """VE = sum_s mu(s) (v_pi(s) - v(s))^2   (Sutton & Barto eq. 9.1).

    :param v, true, mu: (S,) estimate, true values and weights
    """
    return float(mu @ (true - v) ** 2)


def root_value_error(v: np.ndarray, true: np.ndarray, mu: np.ndarray) -> float:
    """The root of `value_error`: the axis of the book's figures 9.5 and 9.10."""
    return float(np.sqrt(value_error(v, true, mu)))


def zhao_objective(v: np.ndarray, true: np.ndarray, P: np.ndarray) -> float:
    """J = E[(v_pi(S) - v(S))^2] with S from the chain's stationary distribution   (S. Zhao, eq. 8.3)."""
    return value_error(v, true, stationary_distribution(P))


def least_value_error(X: np.ndarray, true: np.ndarray, mu: np.ndarray) -> np.ndarray:
    """The weights of least VE: (X' D X) w = X' D v_pi, D = diag(mu); those of least norm where there are several.

    :return: (d,)
    """
    root = np.sqrt(mu)[:, None]
    return np.linalg.lstsq(root * X, root[:, 0] * true, rcond=None)[0]


def project(X: np.ndarray, v: np.ndarray, mu: np.ndarray) -> np.ndarray:
    """The nearest v that is linear in the features: Pi v = X (X' D X)^-1 X' D v   (Sutton & Barto eq. 11.14).

    :return: (S,)
    """
    return X @ least_value_error(X, v, mu)


def bellman_errors(v: np.ndarray, P: np.ndarray, r: np.ndarray, gamma: float) -> np.ndarray:
    """(S,) expected TD errors: r + gamma P v - v   (Sutton & Barto eq. 11.18)."""
    _check(P, v=v, r=r)
    return r + gamma * (P @ v) - v


def bellman_error(v: np.ndarray, P: np.ndarray, r: np.ndarray, gamma: float, mu: np.ndarray) -> float:
    """BE = sum_s mu(s) (r + gamma P v - v)(s)^2   (Sutton & Barto eq. 11.19)."""
    return float(mu @ bellman_errors(v, P, r, gamma) ** 2)


def projected_bellman_error(X: np.ndarray, w: np.ndarray, P: np.ndarray, r: np.ndarray, gamma: float, mu: np.ndarray) -> float:
    """PBE = || Pi (r + gamma P X w - X w) ||^2, in the norm weighted by mu   (Sutton & Barto eq. 11.22).

    :param X, w: (S, d) features and (d,) weights
    """
    return float(mu @ project(X, bellman_errors(X @ w, P, r, gamma), mu) ** 2)


def td_fixed_point(X: np.ndarray, P: np.ndarray, r: np.ndarray, gamma: float, mu: np.ndarray, lambda_: float = 0.0) -> np.ndarray:
    """Where linear TD(lambda) stands still: A w = b with

        A = X' D (I - gamma lambda P)^-1 (I - gamma P) X,    b = X' D (I - gamma lambda P)^-1 r

    (Tsitsiklis & Van Roy 1997; at lambda = 0 Sutton & Barto eq. 9.11 and 9.12).

    :return: (d,)
    :raises ObjectiveError: A is singular, as with features that depend on each other
    """
    _check(P, r=r, mu=mu, X=X)
    if not (0 <= gamma <= 1 and 0 <= lambda_ <= 1):
        raise ObjectiveError(f"gamma and lambda_ must be in [0, 1], got {gamma} and {lambda_}")
    identity = np.eye(len(P))
    weighted = X.T * mu
    if lambda_ > 0:
        used = mu > 0  # states that are never seen, as an end that stays where it is, may not have an inverse
        weighted = np.zeros_like(weighted)
        inner = identity[np.ix_(used, used)] - gamma * lambda_ * P[np.ix_(used, used)]
        weighted[:, used] = np.linalg.solve(inner.T, (X[used].T * mu[used]).T).T
    A, b = weighted @ (identity - gamma * P) @ X, weighted @ r
    if np.linalg.matrix_rank(A) < len(A):
        raise ObjectiveError("TD has no single fixed point here: the features depend on each other; drop some of them")
    return np.linalg.solve(A, b)
