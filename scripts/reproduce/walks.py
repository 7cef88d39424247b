"""Random walks of 5 and 19 states: Sutton & Barto, example 6.2 and figures 6.2, 7.2, 12.3, 12.6 and 12.8."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from tdraft.agents.base import Agent
from tdraft.agents.experiments import rms_error
from tdraft.agents.planning import exact_values, mdp
from tdraft.agents.prediction import LSTD, TD, LambdaReturn, MonteCarlo, NStepTD, TDLambda, TrueOnlineTD
from tdraft.envs.textbook.walks import RandomWalk
from tdraft.kernels.jit import lean
from tdraft.scripts.reproduce.many import curves, sweep
from tdraft.scripts.reproduce.rows import Outcome, Panel, alpha_panel, curve_row, estimate, row

EPISODES_SHOWN = [0, 1, 10, 25, 50, 75, 100]
BATCHES = [1, 2, 5, 10, 25, 50, 75, 100]
LAMBDAS = ("0", "0.4", "0.8", "0.9", "0.95", "0.975", "0.99", "1")


def truth(env: RandomWalk) -> np.ndarray:
    """(S,) true values; NaN at the end, which has none."""
    model = mdp(env)
    v = exact_values(model, np.zeros(len(model.R), np.int64), 1.0)
    v[env.n_walk] = np.nan
    return v


def multiples(step: float, count: int = 20) -> list[float]:
    return [round(step * k, 6) for k in range(1, count + 1)]


def example_6_2(seeds: Sequence[int]) -> Outcome:
    """RMS error of TD(0) and constant-alpha Monte Carlo over 100 episodes."""
    env = RandomWalk(5, left_reward=0.0)
    true, rows, lines = truth(env), [], {}
    metric = f"RMS error over 5 states after episodes {EPISODES_SHOWN}"
    for method, kind, alphas in (("TD", TD, (0.15, 0.1, 0.05)), ("MC", MonteCarlo, (0.01, 0.02, 0.03, 0.04))):
        for alpha in alphas:
            make = partial(kind, env, alpha=alpha, v_init=0.5)
            history = curves(make, seeds, 100, rms_error, true, at=range(101))
            rows.append(row(f"ex6.2/{method}/alpha={alpha}", metric, "RMS error", history[:, EPISODES_SHOWN]))
            lines[f"{method}, alpha = {alpha}"] = (range(101), *estimate(history))
    return Outcome(rows, [Panel("Example 6.2: random walk", "episodes", "RMS error, mean over states", lines)])


@lean
def system(learner, data, reward, length, out):
    """Least squares' A, row by row, and b."""
    memory, n = learner.memory, len(learner.w)
    for i in range(n):
        out[n * n + i] = memory.b[i]
        for j in range(n):
            out[n * i + j] = memory.a[i, j]


def figure_6_2(seeds: Sequence[int]) -> Outcome:
    """Batch TD and batch Monte Carlo, at their fixed points, on the same episodes."""
    env = RandomWalk(5, left_reward=0.0)
    true, n = truth(env), 6
    agent = LSTD(env, v_init=0.5)
    systems = curves(lambda: LSTD(env, v_init=0.5), seeds, 100, system, at=BATCHES, width=n * n + n)
    td = np.zeros((len(systems), len(BATCHES)))
    for run in range(len(systems)):
        for k in range(len(BATCHES)):
            memory = agent.learner.memory
            memory.a[:], memory.b[:] = systems[run, k, : n * n].reshape(n, n), systems[run, k, n * n :]
            td[run, k] = np.sqrt(np.nanmean((agent.w - true) ** 2))
    mc = curves(lambda: MonteCarlo(env, v_init=0.5), seeds, 100, rms_error, true, at=BATCHES)
    lines = {"batch TD": (BATCHES, *estimate(td)), "batch MC": (BATCHES, *estimate(mc))}
    last = np.stack([td[:, -1], mc[:, -1]], axis=1)
    return Outcome(
        [row("fig6.2/batch/100ep", "RMS error over 5 states [TD, MC]", "RMS error", last)],
        [Panel("Figure 6.2: batch training", "episodes", "RMS error, mean over states", lines)],
    )


def over_alphas(
    name: str, make: Callable[[str, float], Agent], settings: Mapping[str, Sequence[float]], seeds: Sequence[int]
) -> list[dict[str, Any]]:
    """A row for each setting: the RMS error over 19 states, averaged over the first ten episodes.

    :param make: an agent from the setting's name and alpha
    """
    true = truth(RandomWalk(19))
    metric = "RMS error over 19 states averaged over first 10 episodes"
    return [
        curve_row(f"{name}/{key}", metric, "RMS error", alphas, sweep(partial(make, key), alphas, seeds, 10, rms_error, true))
        for key, alphas in settings.items()
    ]


def figure_7_2(seeds: Sequence[int]) -> Outcome:
    """n-step TD on the walk of 19 states."""
    env = RandomWalk(19)
    settings = {str(2**k): multiples(0.05) for k in range(10)}
    rows = over_alphas("fig7.2/nstep_td", lambda n, alpha: NStepTD(env, n=int(n), alpha=alpha), settings, seeds)
    return Outcome(rows, [alpha_panel("Figure 7.2: n-step TD", rows, "n = ", (0.25, 0.55))])


def figure_12_3(seeds: Sequence[int]) -> Outcome:
    """The off-line lambda-return algorithm: each return from the newest values, or all from those before the first update."""
    env = RandomWalk(19)
    steps = (0.05, 0.05, 0.05, 0.04, 0.03, 0.015, 0.0075, 0.005)
    settings = {key: multiples(step) for key, step in zip(LAMBDAS, steps)}
    rows, panels = [], []
    for name, frozen in (("offline_lambda_return", "nothing"), ("offline_lambda_return_frozen", "returns")):

        def make(key: str, alpha: float, frozen: Any = frozen) -> Agent:
            return LambdaReturn(env, lambda_=float(key), alpha=alpha, frozen=frozen)

        some = over_alphas(f"fig12.3/{name}", make, settings, seeds)
        rows += some
        panels.append(alpha_panel(f"Figure 12.3: off-line lambda-return, frozen: {frozen}", some, "lambda = ", (0.25, 0.55)))
    return Outcome(rows, panels)


def traced(name: str, title: str, make: Callable[[float, float], Agent], steps: Sequence[float], seeds: Sequence[int]) -> Outcome:
    """Rows and figure of a method with traces, for all lambdas; the steps are the grids' finest alphas."""
    settings = {key: multiples(step) for key, step in zip(LAMBDAS, steps)}
    rows = over_alphas(name, lambda key, alpha: make(float(key), alpha), settings, seeds)
    return Outcome(rows, [alpha_panel(title, rows, "lambda = ", (0.25, 0.55))])


WIDE = (0.05, 0.05, 0.05, 0.05, 0.05, 0.045, 0.025, 0.006)


def figure_12_6(seeds: Sequence[int]) -> Outcome:
    """TD(lambda) with accumulating traces."""
    env = RandomWalk(19)
    make = lambda lambda_, alpha: TDLambda(env, lambda_=lambda_, alpha=alpha)  # noqa: E731
    steps = (0.05, 0.05, 0.05, 0.03, 0.02, 0.0125, 0.006, 0.0025)
    return traced("fig12.6/td_lambda_accumulating", "Figure 12.6: TD(lambda)", make, steps, seeds)


def replacing(seeds: Sequence[int]) -> Outcome:
    """TD(lambda) with replacing traces."""
    env = RandomWalk(19)
    make = lambda lambda_, alpha: TDLambda(env, lambda_=lambda_, alpha=alpha, trace="replacing")  # noqa: E731
    return traced("fig12.6x/td_lambda_replacing", "TD(lambda), replacing traces", make, WIDE, seeds)


def figure_12_8(seeds: Sequence[int]) -> Outcome:
    """True online TD(lambda)."""
    env = RandomWalk(19)
    make = lambda lambda_, alpha: TrueOnlineTD(env, lambda_=lambda_, alpha=alpha)  # noqa: E731
    return traced("fig12.8/true_online_td", "Figure 12.8: true online TD(lambda)", make, WIDE, seeds)
