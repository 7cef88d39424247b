"""`tdraft policies simulator`: how close agents that learn from rewards alone come to the provable optimum."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tdraft.agents.average_reward import SemiMarkovQ
from tdraft.agents.belief_planning import BeliefPlan, plan_belief, static_rates
from tdraft.agents.decoding_evaluation import play, speedup
from tdraft.agents.decoding_learning import tabular_policy
from tdraft.agents.tabular import QLearning
from tdraft.envs.decoding.draft import DraftEnv, Simulator
from tdraft.envs.decoding.dynamics import TIME, TOKENS
from tdraft.envs.decoding.tabular import TabularDraft
from tdraft.models.decoding.policy import DraftPolicy
from tdraft.scripts.loading import at_least
from tdraft.scripts.report import markdown_table
from tdraft.scripts.results import write_rows
from tdraft.scripts.train import parse_seeds

EPISODE = 2048  # tokens of a training episode: long, since the optimum is that of an endless text
DINKELBACH = 4  # short trainings of Q-learning that find rho, each with the rate that the one before achieved
GRID = {
    "acceptance_edges": (),  # (drafted, survival, belief) is all there is to know
    "survival_edges": tuple(np.geomspace(0.02, 0.95, 24)),
    "belief_edges": tuple(np.arange(1, 16) / 16),
}
SCHEDULE = {"alpha": 0.1, "alpha_final": 0.0005, "epsilon": 0.3, "epsilon_final": 0.1, "average": 0.5}
Learn = Callable[[int, int, float], DraftPolicy]  # (seed, timesteps, the best static length's rate)


@dataclass(frozen=True)
class SimulatorTable:
    """Q-learning and the average-reward agent beside the best static length and the belief-state optimum."""

    seeds: str = "0:20"
    """seeds of each agent: "3", "0,3,5" or "0:20" (0 to 19)"""
    timesteps: int = 32_000_000
    """env steps of each training"""
    tokens: int = 65_536
    """tokens of an evaluation text; the optimum is that of an endless one"""
    texts: int = 128
    """evaluation texts"""
    json: Path | None = None
    """also write the rows to this file"""


@dataclass(frozen=True)
class Rate:
    """Tokens per plain step on the evaluation texts, a ratio of sums, and its standard error over texts."""

    value: float
    se: float


def measure(policy: DraftPolicy, *, tokens: int, texts: int, seed: int) -> Rate:
    """Play texts of the default simulator. Every policy starts from the same noise, but draws part of it at other moments than
    another policy would: the errors of two policies add as if independent."""
    source = Simulator()
    source.n_tokens = tokens
    counts = play(source, policy, texts=texts, seed=seed)
    rate = speedup(counts)
    spread = (counts[:, TOKENS] - rate * counts[:, TIME]).std(ddof=1)
    return Rate(rate, float(spread / np.sqrt(texts) / counts[:, TIME].mean()))


def draft_env(rho: float, shaped: bool = True) -> TabularDraft:
    """Draft-v0 in bins. They don't hold the sum of survivals that a verification will pay, and one-step bootstrapping through
    them would mix rounds with different sums: `shaped` pays each drafted token at once."""
    env = DraftEnv(Simulator(), n_tokens=EPISODE, reference_rate=rho, expected_reward=True, shaped=shaped)
    return TabularDraft(env, **GRID)


def learn_q(seed: int, timesteps: int, rho: float, shaped: bool = True) -> DraftPolicy:
    """Q-learning; rho climbs from the best static length's rate to that of what was learned, on training texts (Dinkelbach)."""
    short = max(timesteps // 8, 1)
    for i in range(DINKELBACH):
        env = draft_env(rho, shaped)
        agent = QLearning(env, seed=seed + 1000 * (i + 1), gamma=1.0, horizon=short, **SCHEDULE).learn(short)
        rho = measure(tabular_policy("Q-learning", agent, env.grid), tokens=EPISODE, texts=512, seed=seed + 1000).value
    env = draft_env(rho, shaped)
    agent = QLearning(env, seed=seed, gamma=1.0, horizon=timesteps, **SCHEDULE).learn(timesteps)
    return tabular_policy("Q-learning", agent, env.grid)


def learn_average_reward(seed: int, timesteps: int, rho: float) -> DraftPolicy:
    """Semi-Markov average-reward Q-learning, which finds the rate by itself."""
    env = draft_env(rho)
    agent = SemiMarkovQ(env, seed=seed, eta=0.01, horizon=timesteps, **SCHEDULE).learn(timesteps)
    return tabular_policy("average-reward Q-learning", agent, env.grid)


def learn_unshaped(seed: int, timesteps: int, rho: float) -> DraftPolicy:
    """Q-learning whose rewards for drafted tokens come at the verification: what shaping is worth."""
    return learn_q(seed, timesteps, rho, shaped=False)


AGENTS = {"Q-learning": learn_q, "average-reward Q-learning": learn_average_reward}
WITHOUT = {"Q-learning without shaping": learn_unshaped}


@dataclass(frozen=True)
class Comparison:
    """The optimum and what was learned, all measured on texts from the same seed.

    :param plan: of `plan_belief`
    :param static: closed-form rate of the best static length, and the length
    :param optimum: measured rate of the plan's policy
    :param learned: agent -> rates, one a seed
    """

    plan: BeliefPlan
    static: tuple[float, int]
    optimum: Rate
    learned: dict[str, list[Rate]]

    def below(self, name: str) -> np.ndarray:
        """(seeds,) percent by which each seed's rate is below the optimum's measured rate."""
        return 100 * (1 - np.array([rate.value for rate in self.learned[name]]) / self.optimum.value)

    def below_se(self, name: str) -> float:
        """Standard error of the mean of `below`: over seeds, and the optimum's own error, which all seeds share."""
        below = self.below(name)
        own = below.std(ddof=1) / np.sqrt(len(below)) if len(below) > 1 else 100 * self.learned[name][0].se / self.optimum.value
        return float(np.hypot(own, 100 * self.optimum.se / self.optimum.value))


def compare(seeds: list[int], timesteps: int, *, tokens: int, texts: int, agents: dict[str, Learn] | None = None) -> Comparison:
    """Plan, train every agent with every seed, and measure all of them.

    :param seeds: of the agents; the evaluation texts have a seed of their own
    :param agents: by default `AGENTS`
    """
    source = Simulator()
    plan = plan_belief(source.arrays, source.cost)
    rates = static_rates(source.arrays, source.cost)
    measured = {"tokens": tokens, "texts": texts, "seed": 10**6}
    optimum = measure(plan.policy, **measured)
    learned = {}
    for name, learn in (AGENTS if agents is None else agents).items():
        learned[name] = [measure(learn(seed, timesteps, float(rates.max())), **measured) for seed in seeds]
    return Comparison(plan, (float(rates.max()), int(rates.argmax())), optimum, learned)


def simulator(options: SimulatorTable) -> None:
    """Print the table, and write its rows."""
    seeds = parse_seeds(options.seeds)
    at_least(1, timesteps=options.timesteps, tokens=options.tokens)
    at_least(2, texts=options.texts)
    logging.getLogger("tdraft").setLevel(logging.WARNING)
    c = compare(seeds, options.timesteps, tokens=options.tokens, texts=options.texts, agents=AGENTS | WITHOUT)
    print(f"{options.texts} texts of {options.tokens} tokens, {len(seeds)} seeds, {options.timesteps:,} steps each\n")
    cells, rows = [], []

    def add(name: str, rate: float, runs: int = 1, se: float | None = None, below: np.ndarray | None = None) -> None:
        """A line of the table and its rows; `below` in percent, one a seed."""
        rows.append(_row(name, "rate", rate, "tokens/plain step", runs, se))
        line = [name, f"{rate:.4f}", "" if se is None else f"{se:.4f}"]
        if below is None:
            line += [f"{100 * (1 - rate / c.plan.rate):.2f}", "", ""]
        else:
            error = c.below_se(name)
            line += [f"{below.mean():.2f}", f"{error:.2f}", f"{below.max():.2f}"]
            rows.append(_row(name, "below the optimum", below.mean(), "%", runs, error))
            rows.append(_row(name, "below the optimum, worst seed", below.max(), "%", runs))
        cells.append(line)

    add(f"best static length, k = {c.static[1]}, closed form", c.static[0])
    add("belief optimum, planned", c.plan.rate)
    add("belief optimum, measured", c.optimum.value, options.texts, c.optimum.se)
    for name, found in c.learned.items():
        values = np.array([rate.value for rate in found])
        se = float(values.std(ddof=1) / np.sqrt(len(values))) if len(values) > 1 else found[0].se
        add(name, float(values.mean()), len(values), se, c.below(name))
    rows.append(_row("belief optimum, planned", "error", c.plan.error, "tokens/plain step", 1))
    print(markdown_table(("policy", "tokens per plain step", "SE", "% below the optimum", "SE", "worst seed"), cells))
    print(f"\nthe planned rate is known to {c.plan.error:.0e}; learned policies are compared with the measured one")
    if options.json is not None:
        write_rows(options.json, rows)


def _row(name: str, metric: str, value: float, unit: str, runs: int, se: float | None = None) -> dict:
    row = {"name": name, "metric": metric, "value": float(value), "unit": unit, "runs": runs}
    return row if se is None else row | {"se": se}
