"""The random walk of 1000 states: Sutton & Barto, figures 9.1, 9.2, 9.5 and 9.10."""

from collections.abc import Sequence
from functools import lru_cache, partial
from typing import NamedTuple

import numpy as np

from tdraft.agents.experiments import rms_error, value_error, weights
from tdraft.agents.planning import chain, exact_values, mdp
from tdraft.agents.prediction import TD, MonteCarlo, NStepTD
from tdraft.envs.textbook.walks import RandomWalk
from tdraft.kernels.jit import lean
from tdraft.scripts.reproduce.many import curves, sweep
from tdraft.scripts.reproduce.rows import Outcome, Panel, alpha_panel, curve_row, estimate, exact_row, row
from tdraft.scripts.reproduce.walks import multiples
from tdraft.value.features import StateFeatures, active_features, aggregation, fourier, polynomial, state_features
from tdraft.value.objectives import (
    least_value_error,
    mean_length,
    on_policy_distribution,
    root_value_error,
    td_fixed_point,
)
from tdraft.value.tiles import tile_coding

STATES = 1000
MARKS = [100, 1000, 5000]
ERRORS = "[sqrtVE(mu), RMSE(unweighted)] after episodes [100,1000,5000] (flattened)"


class Walk(NamedTuple):
    """The env and what is known of it; the arrays are of the 1000 states and the end."""

    env: RandomWalk
    v: np.ndarray  # (1001,) true values, 0 at the end
    mu: np.ndarray  # (1001,) share of time in each state
    P: np.ndarray  # (1001, 1001)
    r: np.ndarray  # (1001,)
    length: float  # mean steps of an episode

    @property
    def data(self) -> np.ndarray:
        """(2, 1001) what the metrics read: true values, NaN at the end, and mu."""
        return np.stack([np.append(self.v[:STATES], np.nan), self.mu])


@lru_cache
def walk() -> Walk:
    env = RandomWalk(STATES, jump=100)
    model = mdp(env)
    policy = np.zeros(STATES + 1, np.int64)
    P, r = chain(model, policy)
    mu = on_policy_distribution(P, model.start)
    return Walk(env, exact_values(model, policy, 1.0), mu, P, r, mean_length(P, model.start))


def least_root_error(X: np.ndarray) -> float:
    """The smallest root of VE over all weights, for X (1000, F)."""
    w = walk()
    return root_value_error(X @ least_value_error(X, w.v[:STATES], w.mu[:STATES]), w.v[:STATES], w.mu[:STATES])


def staircase(title: str, samples: np.ndarray, method: str) -> Panel:
    """Learned values of groups beside the true ones."""
    w, states = walk(), np.arange(1, STATES + 1)
    value, se = (np.repeat(part, STATES // len(part)) for part in estimate(samples))
    return Panel(title, "state", "value", {method: (states, value, se), "true": (states, w.v[:STATES], None)})


def figure_9_1(seeds: Sequence[int]) -> Outcome:
    """Gradient Monte Carlo over 10 groups of states, and the exact quantities of the walk."""
    w, X = walk(), np.vstack([aggregation(STATES, 10).matrix(), np.zeros(10)])
    fixed, least = td_fixed_point(X, w.P, w.r, 1.0, w.mu), least_value_error(X, w.v, w.mu)
    exact = {
        "mean_episode_length": w.length,
        "min_sqrtVE_10groups": least_root_error(X[:STATES]),
        "mu_1": w.mu[0],
        "mu_500": w.mu[499],
        "sqrtVE_TD_fixed_point": root_value_error(X @ fixed, w.v, w.mu),
        "v_1": w.v[0],
        "v_1000": w.v[999],
        "v_250": w.v[249],
        "v_500": w.v[499],
        "w_TD_fixed_point": fixed,
        "w_minVE": least,
    }
    make = lambda: MonteCarlo(w.env, features=aggregation(STATES, 10), alpha=2e-5)  # noqa: E731
    learned = curves(make, seeds, 100_000, weights, at=[100_000], width=10)[:, 0]
    rows = [
        exact_row("fig9.1/exact", "exact", "value", exact, exact=exact),
        row("fig9.1/gradient_mc", "weights of the 10 groups after 100000 episodes", "value", learned),
    ]
    return Outcome(rows, [staircase("Figure 9.1: state aggregation", learned, "gradient Monte Carlo")])


def figure_9_2(seeds: Sequence[int]) -> Outcome:
    """Semi-gradient TD(0) over 10 groups (a third of the runs), and n-step TD over 20."""
    w = walk()
    make = lambda: TD(w.env, features=aggregation(STATES, 10), alpha=2e-4)  # noqa: E731
    learned = curves(make, seeds[: max(1, len(seeds) // 3)], 100_000, weights, at=[100_000], width=10)[:, 0]
    rows = [row("fig9.2/td0", "weights of the 10 groups after 100000 episodes", "value", learned)]
    alphas, groups = multiples(0.05), aggregation(STATES, 20)
    metric = "unweighted RMSE over 1000 states averaged over first 10 episodes"
    for n in (2**k for k in range(10)):
        make_n = lambda alpha, n=n: NStepTD(w.env, n=n, alpha=alpha, features=groups)  # noqa: E731
        samples = sweep(make_n, alphas, seeds, 10, rms_error, w.data[0])
        rows.append(curve_row(f"fig9.2/nstep/{n}", metric, "RMS error", alphas, samples))
    right = alpha_panel("Figure 9.2, right: n-step TD", rows[1:], "n = ", (0.25, 0.55))
    return Outcome(rows, [staircase("Figure 9.2, left: TD(0)", learned, "semi-gradient TD(0)"), right])


@lean
def both_errors(learner, data, reward, length, out):
    """Root of VE, and the RMS error over all states alike."""
    value_error(learner, data, reward, length, out)
    rms_error(learner, data[0], reward, length, out[1:])


def gradient_monte_carlo(features: StateFeatures, alpha: float, seeds: Sequence[int]) -> np.ndarray:
    """(runs, len(MARKS), 2) errors of gradient Monte Carlo."""
    w = walk()
    make = partial(MonteCarlo, w.env, features=features, alpha=alpha)
    return curves(make, seeds, MARKS[-1], both_errors, w.data, at=MARKS, width=2)


def figure_9_5(seeds: Sequence[int]) -> Outcome:
    """Gradient Monte Carlo with polynomials and with the Fourier basis."""
    rows, lines, points = [], {}, np.arange(1, STATES + 1) / STATES
    for order in (5, 10, 20):
        well_conditioned = np.polynomial.chebyshev.chebvander(2 * points - 1, order)  # the same span as the powers
        for basis, alpha, X, span in (
            ("polynomial", 1e-4, polynomial(points, order), well_conditioned),
            ("fourier", 5e-5, fourier(points, order), fourier(points, order)),
        ):
            errors = gradient_monte_carlo(state_features(X), alpha, seeds)
            exact = {"min_sqrtVE": least_root_error(span)}
            name = f"fig9.5/{basis}/order={order}"
            rows.append(row(name, ERRORS, "RMS error", errors.reshape(len(errors), -1), exact=exact))
            lines[f"{basis}, order {order}"] = (MARKS, *estimate(errors[:, :, 0]))
    return Outcome(rows, [Panel("Figure 9.5: polynomials and Fourier", "episodes", "root of VE", lines, log_x=True)])


def tilings(count: int) -> StateFeatures:
    """Tilings 200 states wide, each offset by 4 states from the one before."""
    edges = [range(200 - 4 * t, STATES, 200) for t in range(count)]
    return active_features(np.arange(STATES), tile_coding([{0: np.array(e)} for e in edges]))


def figure_9_10(seeds: Sequence[int]) -> Outcome:
    """Gradient Monte Carlo with 50 tilings and with one."""
    rows, lines = [], {}
    for name, count in (("50 tilings", 50), ("1 tiling", 1)):
        errors = gradient_monte_carlo(tilings(count), 1e-4 / count, seeds)
        rows.append(row(f"fig9.10/{name}", ERRORS, "RMS error", errors.reshape(len(errors), -1)))
        lines[name] = (MARKS, *estimate(errors[:, :, 0]))
    return Outcome(rows, [Panel("Figure 9.10: tile coding", "episodes", "root of VE", lines, log_x=True)])
