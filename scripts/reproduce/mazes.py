"""Planning and average reward over tables: Sutton & Barto, figures 8.2, 8.4, 8.5, and example 10.2."""

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np

from tdraft.agents.base import Agent
from tdraft.agents.differential import DifferentialSarsa
from tdraft.agents.dyna import DynaQ, DynaQPlus
from tdraft.agents.experiments import episode_length
from tdraft.agents.loop import training_loop
from tdraft.agents.planning import average_reward, mdp
from tdraft.envs.textbook.changing import BlockingMaze, ShortcutMaze
from tdraft.envs.textbook.decisions import AccessControl
from tdraft.envs.textbook.grids import DynaMaze
from tdraft.scripts.reproduce.control import epsilon_soft, spans, steps_to_go
from tdraft.scripts.reproduce.many import curves, each
from tdraft.scripts.reproduce.rows import Outcome, Panel, estimate, row

SERVING_STEPS = 2_000_000


def figure_8_2(seeds: Sequence[int]) -> Outcome:
    """Dyna-Q on the maze with 0, 5 and 50 planning updates a step."""
    env, marks, rows, lines = DynaMaze(), [1, 2, 3, 5, 10, 25, 50], [], {}
    metric = "steps in episodes [1,2,3,5,10,25,50], then mean of episodes 2-50"
    exact = {"optimal_path": steps_to_go(mdp(env))}
    for n in (0, 5, 50):
        make = partial(DynaQ, env, alpha=0.1, epsilon=0.1, gamma=0.95, planning=n)
        lengths = curves(make, seeds, 50, episode_length)
        numbers = np.concatenate([lengths[:, [m - 1 for m in marks]], spans(lengths, (2, 50))], axis=1)
        rows.append(row(f"fig8.2/n={n}", metric, "steps", numbers, exact=exact))
        value, se = estimate(lengths[:, 1:])
        lines[f"{n} planning steps"] = (range(2, 51), value, se)
    return Outcome(rows, [Panel("Figure 8.2: Dyna maze", "episodes", "steps per episode", lines, (14.0, 800.0))])


def prepare(agent: Agent) -> None:
    """Make the training loop before threads ask for it."""
    assert agent.compiled is not None
    training_loop(agent.compiled.reset, agent.compiled.step, agent.begin_rule, agent.step_rule, False)


def goals_reached(make: Callable[[int], Agent], steps: int, every: int, seeds: Sequence[int]) -> np.ndarray:
    """(runs, steps / every + 1) episodes finished so far, which is the cumulative reward of a maze."""
    prepare(make(0))

    def work(seed: int) -> list[int]:
        agent, counts = make(seed), [0]
        for _ in range(steps // every):
            agent.learn(every, log_every=every)
            counts.append(int(agent.standing.counts[3]))
        return counts

    return np.array(each(work, seeds), float)


def changing(
    name: str, title: str, env: BlockingMaze | ShortcutMaze, steps: int, planning: int, kappa: float, seeds: Sequence[int]
) -> Outcome:
    """Cumulative reward of Dyna-Q and Dyna-Q+ on a maze that changes."""
    rows, lines = [], {}
    marks = [steps // 3, 2 * steps // 3, steps]
    for label, kind, own in (("Dyna-Q", DynaQ, {}), ("Dyna-Q+", DynaQPlus, {"kappa": kappa})):
        make = lambda seed, kind=kind, own=own: kind(  # noqa: E731
            env, seed=seed, alpha=1.0, epsilon=0.1, gamma=0.95, planning=planning, **own
        )
        reward = goals_reached(make, steps, steps // 60, seeds)
        rows.append(row(f"{name}/{label}", f"cumulative reward after steps {marks}", "reward", reward[:, [20, 40, 60]]))
        lines[label] = (np.linspace(0, steps, 61), *estimate(reward))
    return Outcome(rows, [Panel(title, "time steps", "cumulative reward", lines)])


def figure_8_4(seeds: Sequence[int]) -> Outcome:
    """The way that was best is blocked after 1000 steps (alpha 1, 10 planning updates, kappa 1e-4)."""
    return changing("fig8.4", "Figure 8.4: blocking maze", BlockingMaze(), 3000, 10, 1e-4, seeds)


def figure_8_5(seeds: Sequence[int]) -> Outcome:
    """A shorter way opens after 3000 steps (alpha 1, 50 planning updates, kappa 1e-3)."""
    return changing("fig8.5", "Figure 8.5: shortcut maze", ShortcutMaze(), 6000, 50, 1e-3, seeds)


def example_10_2(seeds: Sequence[int]) -> Outcome:
    """Differential Sarsa on the access-control queue, two million steps a run."""
    env, half = AccessControl(), SERVING_STEPS // 2
    make = lambda seed: DifferentialSarsa(env, seed=seed, alpha=0.01, beta=0.01, epsilon=0.1)  # noqa: E731
    prepare(make(0))

    def work(seed: int) -> tuple[float, float, np.ndarray]:
        agent = make(seed)
        earned = agent.learn(half).standing.score[0]
        agent.learn(half)
        return agent.rho, (agent.standing.score[0] - earned) / half, agent.q

    runs = each(work, seeds)
    model = mdp(env)
    exact = {
        "best_gain_eps_soft": average_reward(epsilon_soft(model, 0.1)).gain,
        "optimal_gain": average_reward(model).gain,
    }
    samples = np.array([run[:2] for run in runs])
    rows = [row("ex10.2/access_control", "[final Rbar, mean reward over 2nd half]", "reward per step", samples, exact=exact)]
    values = np.stack([run[2].max(axis=1) for run in runs]).reshape(len(runs), env.servers + 1, len(env.priorities))
    lines = {f"priority {p:g}": (range(env.servers + 1), *estimate(values[:, :, i])) for i, p in enumerate(env.priorities)}
    return Outcome(rows, [Panel("Example 10.2: access control", "free servers", "differential value of best action", lines)])
