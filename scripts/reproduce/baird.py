"""Baird's counterexample: Sutton & Barto, figures 11.2, 11.5 and 11.6."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from gymnasium.wrappers import TimeLimit

from tdraft.agents.prediction import TD, TDC
from tdraft.agents.prediction.expected import (
    Model,
    expected_emphatic_td,
    expected_td,
    expected_tdc,
    model,
    projected_errors,
)
from tdraft.envs.textbook.walks import Baird
from tdraft.kernels.jit import lean
from tdraft.scripts.reproduce.many import curves
from tdraft.scripts.reproduce.rows import Outcome, Panel, estimate, exact_row, row

GAMMA, STEPS = 0.99, 1000
FIRST = np.array([1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 10.0, 1.0])


def known() -> Model:
    """The target policy's chain, every state updated equally often: that is how often the behaviour policy is there."""
    following = np.zeros((7, 7))
    following[:, 6] = 1.0
    return model(Baird.features, np.full(7, 1 / 7), following, np.zeros(7), GAMMA)


def root_ve(m: Model, w: np.ndarray) -> float:
    """The root of VE: all true values are 0."""
    return float(np.sqrt(m.weight @ (m.x @ w) ** 2))


def root_pbe(m: Model, w: np.ndarray) -> float:
    return float(np.sqrt(m.weight @ projected_errors(m, w) ** 2))


@lean
def norms(learner, data, reward, length, out):
    """|M w| for each matrix of data (K, rows, F), then w itself."""
    n, last = len(learner.w), data.shape[0]
    for k in range(last):
        total = 0.0
        for i in range(data.shape[1]):
            entry = 0.0
            for j in range(n):
                entry += data[k, i, j] * learner.w[j]
            total += entry * entry
        out[k] = np.sqrt(total)
    for j in range(n):
        out[last + j] = learner.w[j]


def sampled(kind: Any, seeds: Sequence[int], steps: int = STEPS, **settings: Any) -> np.ndarray:
    """(runs, 10) roots of VE and PBE and the weights, after steps of the behaviour policy from a uniform start."""
    m, env = known(), TimeLimit(Baird(), steps)
    root = np.sqrt(m.weight)[:, None]
    projected = np.stack([projected_errors(m, unit) for unit in np.eye(8)], axis=1)  # linear in w, as all rewards are 0

    def make() -> Any:
        agent = kind(env, policy=Baird.target, behaviour=Baird.behaviour, features=Baird.features, gamma=GAMMA, **settings)
        agent.learner.w[:] = FIRST
        return agent

    return curves(make, seeds, 1, norms, np.stack([root * m.x, root * projected]), width=10)[:, 0]


def history(kind: Any, seeds: Sequence[int], **settings: Any) -> tuple[list[int], np.ndarray]:
    """Steps, and (runs, steps, 10) what `sampled` gives after so many; a run with fewer steps is the start of one with more."""
    marks = [1, 50, 100, 200, 300, 400, 500, 600, 700, 800, 900, STEPS]
    return marks, np.stack([sampled(kind, seeds, steps, **settings) for steps in marks], axis=1)


def weight_lines(steps: Sequence[int], w: np.ndarray) -> dict[str, Any]:
    """Lines of weights (steps, 8): the first six are alike."""
    return {label: (steps, w[:, i], None) for label, i in (("w1 to w6", 0), ("w7", 6), ("w8", 7))}


def sweeps(update: Callable[[tuple[np.ndarray, ...]], tuple[np.ndarray, ...]], first: tuple[np.ndarray, ...]) -> list[Any]:
    """The states of an expected update after 0 to STEPS sweeps."""
    states = [first]
    for _ in range(STEPS):
        states.append(update(states[-1]))
    return states


def figure_11_2(seeds: Sequence[int]) -> Outcome:
    """Semi-gradient off-policy TD(0), sampled, and the same as dynamic programming: both diverge."""
    m = known()
    planned = sweeps(lambda s: (expected_td(m, s[0], 0.01),), (FIRST,))
    w = planned[-1][0]
    marks, found = history(TD, seeds, alpha=0.01)
    logs = np.log10(found[:, -1, [0, 9]])
    rows = [
        exact_row("fig11.2/dp", "exact weights after 1000 sweeps", "weight", w, exact={"sqrtVE": root_ve(m, w), "w": w}),
        row("fig11.2/td", "[log10 sqrtVE, log10 w_8] after 1000 steps", "log10", logs),
    ]
    middle = np.median(found[:, :, 2:], axis=0)
    panels = [
        Panel("Figure 11.2: off-policy TD(0), medians", "steps", "weights", weight_lines(marks, middle)),
        Panel("Figure 11.2: DP", "sweeps", "weights", weight_lines(range(STEPS + 1), np.array([s[0] for s in planned]))),
    ]
    return Outcome(rows, panels)


def quantities(m: Model, states: Sequence[Any], at: Sequence[int], second: str) -> dict[str, Any]:
    """What is known of an expected update after some sweeps; `second` names the array that it keeps beside w."""
    found = {}
    for sweep in at:
        w, beside = states[sweep]
        found[str(sweep)] = {"sqrtVE": root_ve(m, w), "sqrtPBE": root_pbe(m, w), "w": w, second: beside}
    return found


def figure_11_5(seeds: Sequence[int]) -> Outcome:
    """TDC, sampled and expected."""
    m = known()
    states = sweeps(lambda s: expected_tdc(m, s[0], s[1], 0.005, 0.05), (FIRST, np.zeros(8)))
    exact = quantities(m, states, (100, 500, 1000), "v")
    marks, found = history(TDC, seeds, alpha=0.005, beta=0.05)
    both, metric = found[:, -1, :2], "[sqrtVE, sqrtPBE] after 1000 steps; medians in note"
    rows = [
        exact_row("fig11.5/tdc_expected", "exact after sweeps", "root of VE", [e["sqrtVE"] for e in exact.values()], exact=exact),
        row("fig11.5/tdc", metric, "error", both, note={"median": np.median(both, axis=0)}),
    ]
    errors_found = {"root of VE": (marks, *estimate(found[:, :, 0])), "root of PBE": (marks, *estimate(found[:, :, 1]))}
    expected = {
        "root of VE": (range(STEPS + 1), [root_ve(m, s[0]) for s in states], None),
        **weight_lines(range(STEPS + 1), np.array([s[0] for s in states])),
    }
    panels = [
        Panel("Figure 11.5: TDC", "steps", "error", errors_found),
        Panel("Figure 11.5: expected TDC", "sweeps", "weights and error", expected),
    ]
    return Outcome(rows, panels)


def figure_11_6(seeds: Sequence[int]) -> Outcome:
    """Expected emphatic TD."""
    m = known()
    states = sweeps(lambda s: expected_emphatic_td(m, s[0], s[1], 0.03), (FIRST, np.zeros(7)))
    exact = quantities(m, states, (50, 100, 500, 1000), "M")
    value = [e["sqrtVE"] for e in exact.values()]
    lines = {
        "root of VE": (range(STEPS + 1), [root_ve(m, s[0]) for s in states], None),
        **weight_lines(range(STEPS + 1), np.array([s[0] for s in states])),
    }
    rows = [exact_row("fig11.6/etd_expected", "exact after sweeps", "root of VE", value, exact=exact)]
    return Outcome(rows, [Panel("Figure 11.6: expected emphatic TD", "sweeps", "weights and error", lines)])
