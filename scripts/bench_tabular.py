"""`tdraft bench tabular`: tabular agents through `learn`, beside plain Python and a loop written by hand for Numba.

All of a comparison runs in one process on one thread, in turn. An agent goes on learning from run to run, as its peers do.
"""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np

import tdraft.agents as agents
from tdraft.scripts.bench import Measurement, heading, interleaved, speed_row
from tdraft.scripts.bench_peers import ALPHA, EPSILON, GAMMA, numba_loop, python_loop
from tdraft.scripts.results import write_rows

PEERS = ("plain Python", "numba, random ties", "numba, first of ties")
COMPARED = ("q-learning", "sarsa", "expected-sarsa")
ONE_STEP = ("double-q", "double-expected-sarsa", "average-reward", "differential-sarsa", "r-learning", "rvi-q")
N_STEP = ("n-step-sarsa", "n-step-expected-sarsa", "off-policy-n-step-sarsa", "tree-backup", "q-sigma")
# On the slippery lake, where a model of what each pair last brought is never finished: elsewhere sweeping comes to rest.
PLANNING = ("dyna-q", "dyna-q-plus", "prioritised-sweeping")
TRACES = ("sarsa-lambda", "q-lambda")
EPISODES = ("monte-carlo", "off-policy-monte-carlo")


@dataclass(frozen=True)
class TabularBench:
    """Measure tabular agents beside plain Python and hand-written Numba loops: one thread, interleaved runs, medians."""

    repeats: int = 5
    """runs of each measurement, after one that compiles and warms up"""
    steps: int = 10_000_000
    """env steps of a run; agents without peers take half of them and plain Python a thousandth"""
    json: Path | None = None
    """also write the rows to this file"""


def make(name: str, env_id: str, **settings: Any) -> agents.Agent:
    """An agent by the command line's name, with seed 0."""
    return getattr(agents, agents.AGENTS[name])(gym.make(env_id), seed=0, **settings)


def compared(env_id: str, name: str, bench: TabularBench) -> list[dict]:
    """Rows of an agent, its peers and its ratios to them: medians of the ratios within a round."""
    agent = make(name, env_id, alpha=ALPHA, epsilon=EPSILON, gamma=GAMMA)
    title = f"{env_id}, {name}"
    works = (
        python_loop(gym.make(env_id), name),
        numba_loop(gym.make(env_id), name, True),
        numba_loop(gym.make(env_id), name, False),
    )
    lengths = (max(bench.steps // 1000, 1), bench.steps, bench.steps)
    ours = Measurement(title, bench.steps, agent.learn)
    peers = [Measurement(f"{title}, {peer}", n, work) for peer, n, work in zip(PEERS, lengths, works)]
    speeds = interleaved([ours, *peers], bench.repeats)
    row = speed_row(ours, speeds[0])
    rows = [speed_row(peer, s) for peer, s in zip(peers, speeds[1:])]
    ratios = [float(np.median(speeds[0] / s)) for s in speeds[1:]]
    print(f"{'':4}times {PEERS[0]}: {ratios[0]:.0f}; {PEERS[1]}: {ratios[1]:.2f}; {PEERS[2]}: {ratios[2]:.2f}", flush=True)
    return [row | {"peer": peer, "ratio": ratio} for peer, ratio in zip(PEERS, ratios)] + rows


def measured(name: str, agent: Any, bench: TabularBench) -> list[dict]:
    """Rows of an agent without peers: steps, and where it writes other than once a step also table writes."""
    title = f"{agent.env_id}, {name}"
    clock = agent.table.clock
    if name in N_STEP:  # each tick of the clock is an update of the table
        m = Measurement(title, bench.steps // 2, agent.learn, lambda: int(clock[0]))
    elif hasattr(agent, "updates"):
        m = Measurement(title, bench.steps // 8, agent.learn, lambda: agent.updates)
    else:
        m = Measurement(title, bench.steps // 2, agent.learn)
    row = speed_row(m, interleaved([m], bench.repeats)[0])
    if name not in TRACES:
        return [row]
    traces = traces_a_step(agent)
    print(f"{'':4}about {traces:.2f} writes a step, {traces * row['value'] / 1e6:.1f} million a second", flush=True)
    return [row, {"name": title, "metric": "table writes, estimated", "value": traces * row["value"], "unit": "writes/s"}]


def traces_a_step(agent: Any, steps: int = 10_000) -> float:
    """Pairs that have a trace after a step, on average over more steps: a low estimate of the writes of a step.

    Each was written in it, and so were those that it dropped or that an exploring action cut, which are not counted.
    """
    total = 0
    for _ in range(steps):
        agent.learn(1)
        total += int(agent.learner.count[0])
    return total / steps


def tabular(bench: TabularBench) -> None:
    """Speeds of all tabular agents; those of Q-learning, Sarsa and Expected Sarsa beside two peers."""
    logging.getLogger("tdraft.agents").setLevel(logging.WARNING)  # a line for each call of `learn`
    heading()
    rows = [row for env_id in ("CliffWalking-v1", "Taxi-v4") for name in COMPARED for row in compared(env_id, name, bench)]
    for name in (*ONE_STEP, *EPISODES, *N_STEP, *TRACES):
        rows += measured(name, make(name, "CliffWalking-v1"), bench)
    for name in PLANNING:
        rows += measured(name, make(name, "FrozenLake8x8-v1", gamma=0.95), bench)
    if bench.json is not None:
        write_rows(bench.json, rows)
