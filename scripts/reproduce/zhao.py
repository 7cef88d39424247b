"""S. Zhao's grid world: control with one-step methods (chapter 7), TD-Linear with polynomials (chapter 8)."""

from collections.abc import Sequence
from functools import partial

import numpy as np
from gymnasium.wrappers import TimeLimit

from tdraft.agents.experiments import rms_error
from tdraft.agents.planning import chain, exact_values, mdp, policy_iteration
from tdraft.agents.prediction import TD
from tdraft.envs.textbook.grids import ZhaoGrid
from tdraft.kernels.jit import lean
from tdraft.scripts.reproduce.control import METHODS, spans
from tdraft.scripts.reproduce.many import curves
from tdraft.scripts.reproduce.rows import Outcome, Panel, estimate, row
from tdraft.value.features import state_features
from tdraft.value.objectives import root_value_error, stationary_distribution, td_fixed_point

GAMMA = 0.9


@lean
def reward_and_length(learner, data, reward, length, out):
    out[0] = reward
    out[1] = length


def chapter_7(seeds: Sequence[int]) -> Outcome:
    """Sarsa, Expected Sarsa and Q-learning find the way to the target (sec. 7.2 to 7.4): alpha = epsilon = .1, a step costs 1."""
    env = ZhaoGrid(terminal=True, r_target=0.0, r_forbidden=-10.0, r_boundary=-10.0, r_other=-1.0)
    best = policy_iteration(mdp(env), GAMMA)
    rows, lengths, rewards = [], {}, {}
    for name, kind in METHODS.items():
        make = partial(kind, env, alpha=0.1, epsilon=0.1, gamma=GAMMA)
        history = curves(make, seeds, 500, reward_and_length, width=2)
        parts = np.concatenate([spans(history[:, :, k], (1, 10), (401, 500)) for k in range(2)], axis=1)
        metric = "[reward of episodes 1-10, 401-500, length of episodes 1-10, 401-500]"
        rows.append(row(f"zhao7/{name}", metric, "reward, steps", parts, exact={"optimal_v_start": best.v[0]}))
        rewards[name] = (range(1, 501), *estimate(history[:, :, 0]))
        lengths[name] = (range(1, 501), *estimate(history[:, :, 1]))
    panels = [
        Panel("Zhao's grid world: total reward", "episodes", "reward", rewards, (-400.0, 0.0)),
        Panel("Zhao's grid world: length", "episodes", "steps", lengths, (0.0, 200.0)),
    ]
    return Outcome(rows, panels)


def monomials(shape: tuple[int, int], degree: int) -> np.ndarray:
    """(S, F) of all x^i y^j with i + j <= degree, x and y from -1 to 1 across the grid (Zhao, eq. 8.16 to 8.18)."""
    y, x = (part.ravel() for part in np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij"))
    return np.stack([x ** (total - j) * y**j for total in range(degree + 1) for j in range(total + 1)], axis=1)


def chapter_8(seeds: Sequence[int]) -> Outcome:
    """TD-Linear on the uniform policy (sec. 8.2.4): alpha = .0005, episodes of 500 steps from any state."""
    env = ZhaoGrid(start=None)
    model = mdp(env)
    uniform = np.full(model.R.shape, 1 / model.R.shape[1])
    P, r = chain(model, uniform)
    true, mu = exact_values(model, uniform, GAMMA), stationary_distribution(P)
    marks, rows, lines = [1, 10, 100, 500], [], {}
    for degree in (1, 2, 3):
        X = monomials(env.shape, degree)
        make = partial(TD, TimeLimit(env, 500), features=state_features(X), alpha=5e-4, gamma=GAMMA)
        history = curves(make, seeds, 500, rms_error, true)
        fixed = X @ td_fixed_point(X, P, r, GAMMA, mu)
        exact = {"rmse_TD_fixed_point": float(np.sqrt(np.mean((fixed - true) ** 2))),
                 "sqrtVE_TD_fixed_point": root_value_error(fixed, true, mu)}  # fmt: skip
        metric = f"RMS error over 25 states after episodes {marks}"
        at_marks = history[:, [m - 1 for m in marks]]
        rows.append(row(f"zhao8/td-linear/features={X.shape[1]}", metric, "RMS error", at_marks, exact=exact))
        lines[f"{X.shape[1]} features"] = (range(1, 501), *estimate(history))
    return Outcome(rows, [Panel("Zhao's grid world: TD-Linear", "episodes", "RMS error", lines)])
