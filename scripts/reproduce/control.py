"""Tabular control: Sutton & Barto, examples 6.5 and 6.6, figures 6.3 and 6.5."""

from collections.abc import Sequence
from functools import lru_cache, partial
from typing import Any

import gymnasium as gym
import numpy as np

from tdraft.agents.base import Agent
from tdraft.agents.double import DoubleQ
from tdraft.agents.experiments import episode_length, episode_reward
from tdraft.agents.planning import MDP, exact_values, mdp, policy_iteration, value_iteration
from tdraft.agents.tabular import ExpectedSarsa, QLearning, Sarsa
from tdraft.envs.textbook.decisions import MaximizationBias
from tdraft.envs.textbook.grids import WindyGridworld
from tdraft.kernels.jit import lean
from tdraft.scripts.reproduce.many import curves
from tdraft.scripts.reproduce.rows import Outcome, Panel, estimate, exact_row, row
from tdraft.value.targets import largest

METHODS = {"Sarsa": Sarsa, "Q-learning": QLearning, "Expected Sarsa": ExpectedSarsa}
CLIFF_START = 36


def spans(history: np.ndarray, *ends: tuple[int, int]) -> np.ndarray:
    """(runs, len(ends)) means of (runs, episodes) over episodes first to last, counted from 1, both included."""
    return np.stack([history[:, first - 1 : last].mean(axis=1) for first, last in ends], axis=1)


def steps_to_go(model: MDP) -> float:
    """Steps of the shortest way to the end from the start, where no action is left to chance."""
    return -float(model.start @ value_iteration(model._replace(R=np.full_like(model.R, -1.0)), 1.0).v)


def example_6_5(seeds: Sequence[int]) -> Outcome:
    """Sarsa on the windy gridworld."""
    env = WindyGridworld()
    lengths = curves(lambda: Sarsa(env, alpha=0.5, epsilon=0.1), seeds, 500, episode_length)
    four = np.stack([lengths[:, :170].sum(axis=1), lengths[:, 0], *spans(lengths, (151, 200), (451, 500)).T], axis=1)
    metric = "[total steps in 170 episodes, steps in episode 1, mean length eps 151-200, mean length eps 451-500]"
    steps = estimate(lengths.cumsum(axis=1))[0]
    panel = Panel("Example 6.5: windy gridworld, Sarsa", "time steps", "episodes", {"Sarsa": (steps, range(1, 501), None)})
    exact = {"optimal_path": steps_to_go(mdp(env))}
    return Outcome([row("ex6.5/windy_sarsa", metric, "steps", four, exact=exact)], [panel])


@lean
def reward_and_best(learner, data, reward, length, out):
    """The episode's rewards, and max_a q(s, a) of the state data[0]."""
    out[0] = reward
    out[1] = largest(learner.q[int(data[0])])


def epsilon_soft(model: MDP, epsilon: float) -> MDP:
    """The MDP in which each action is replaced by a random one with probability epsilon: its best policy is the best soft one."""
    mix = lambda x: (1 - epsilon) * x + epsilon * x.mean(axis=1, keepdims=True)  # noqa: E731
    return MDP(mix(model.P), mix(model.R), model.start)


def epsilon_greedy(q: np.ndarray, epsilon: float) -> np.ndarray:
    """(S, A) probabilities of the epsilon-greedy policy; ties share."""
    best = q >= q.max(axis=1, keepdims=True) - 1e-9
    return epsilon / q.shape[1] + (1 - epsilon) * best / best.sum(axis=1, keepdims=True)


def example_6_6(seeds: Sequence[int]) -> Outcome:
    """Sarsa, Q-learning and Expected Sarsa on the cliff: the rewards while they learn, and what they think of the start."""
    env = gym.make("CliffWalking-v1")
    rows, lines = [], {}
    metric = "mean sum of rewards per episode over episodes [1-10, 1-100, 91-100, 401-500, 491-500]"
    for name, kind in METHODS.items():
        make = partial(kind, env, alpha=0.5, epsilon=0.1)
        history = curves(make, seeds, 500, reward_and_best, [CLIFF_START], width=2)
        rewards = history[:, :, 0]
        parts = spans(rewards, (1, 10), (1, 100), (91, 100), (401, 500), (491, 500))
        best = history[:, -1, 1]
        rows.append(row(f"ex6.6/{name}", metric, "reward", parts))
        rows.append(row(f"ex6.6/{name}/maxQ_start", "max_a Q(start,a) after 500 episodes", "reward", best))
        lines[name] = (range(1, 501), *estimate(rewards))
    model = mdp(env)
    optimal = policy_iteration(model, 1.0)
    exact = {
        "best_eps_soft": policy_iteration(epsilon_soft(model, 0.1), 1.0).v[CLIFF_START],
        "eps_greedy_wrt_qstar": exact_values(model, epsilon_greedy(optimal.q, 0.1), 1.0)[CLIFF_START],
        "v_star": optimal.v[CLIFF_START],
    }
    rows.append(exact_row("ex6.6/exact", "exact start values", "reward", exact, exact=exact))
    return Outcome(rows, [Panel("Example 6.6: cliff walking", "episodes", "sum of rewards", lines, (-100.0, 0.0))])


def figure_6_3(seeds: Sequence[int]) -> Outcome:
    """Interim (100 episodes) and asymptotic (100 000 episodes, a tenth of the runs) performance on the cliff by step size."""
    env = gym.make("CliffWalking-v1")
    few = seeds[: max(1, len(seeds) // 10)]
    rows, lines = [], {}
    for tenth in range(1, 11):
        alpha = tenth / 10
        for name, kind in METHODS.items():
            make = partial(kind, env, alpha=alpha, epsilon=0.1)
            for phase in ("interim", "asymptotic") if tenth in (1, 2, 5, 8, 10) else ("interim",):
                if phase == "interim":
                    runs, episodes, metric = seeds, 100, "mean sum of rewards per episode, first 100 episodes"
                else:
                    unstable = name == "Sarsa" and alpha == 1.0  # its episodes become long
                    runs, episodes = few, 20_000 if unstable else 100_000
                    metric = "mean sum of rewards per episode over all episodes"
                score = curves(make, runs, episodes, episode_reward).mean(axis=1)
                rows.append(row(f"fig6.3/{phase}/{name}/alpha={alpha}", metric, "reward", score))
                lines.setdefault(f"{name}, {phase}", []).append((alpha, *estimate(score)))
    drawn = {label: (points[:, 0], points[:, 1], points[:, 2]) for label, points in ((k, np.array(v)) for k, v in lines.items())}
    panel = Panel("Figure 6.3: cliff walking", "step size alpha", "sum of rewards per episode", drawn, (-160.0, 0.0))
    return Outcome(rows, [panel])


@lean
def keep_two(learner, obs, action):
    """The book's state A has two actions: those beyond stand for them."""
    if obs == 0:
        action = action % 2
        learner.last[1] = action
    return action


@lean
def keep_two_of_double(learner, obs, action):
    return keep_two(learner.table, obs, action)


@lru_cache
def restricted(begin, step, keep):
    """begin and step of a rule that draws its actions from those there are."""

    @lean
    def first(learner, obs, rng):
        return keep(learner, obs, begin(learner, obs, rng))

    @lean
    def then(learner, reward, discount, obs, duration, rng):
        return keep(learner, obs, step(learner, reward, discount, obs, duration, rng))

    return first, then


def two_actions_in_a(kind: type[Agent]) -> Agent:
    """An agent for the book's MDP: of A's actions only the first two have values that can be greedy, the others are those two."""
    agent: Any = kind(MaximizationBias(10), alpha=0.1, epsilon=0.1)
    double = kind is DoubleQ
    agent.q[0, 2:] = -np.inf
    if double:
        agent.learner.pair[:, 0, 2:] = -np.inf
    agent.begin_rule, agent.step_rule = restricted(agent.begin_rule, agent.step_rule, keep_two_of_double if double else keep_two)
    return agent


@lean
def went_left(learner, data, reward, length, out):
    """100 where the episode passed through B, which takes two steps."""
    out[0] = 100.0 if length == 2 else 0.0


def figure_6_5(seeds: Sequence[int]) -> Outcome:
    """Maximisation bias: how often Q-learning and Double Q-learning go left."""
    marks, rows, lines = [1, 5, 10, 25, 50, 100, 200, 300], [], {}
    for name, kind in (("Q-learning", QLearning), ("Double Q-learning", DoubleQ)):
        left = curves(partial(two_actions_in_a, kind), seeds, 300, went_left)
        at_marks = left[:, [m - 1 for m in marks]]
        rows.append(row(f"fig6.5/{name}/actionsB=10", f"% left from A in episodes {marks}", "%", at_marks))
        lines[name] = (range(1, 301), *estimate(left))
    lines["the least there can be"] = ([1, 300], [5.0, 5.0], None)
    return Outcome(rows, [Panel("Figure 6.5: maximisation bias", "episodes", "% left actions from A", lines, (0.0, 100.0))])
