"""Optimal values of Gymnasium's toy-text envs, exactly."""

from collections.abc import Sequence
from typing import Any

import gymnasium as gym

from tdraft.agents.planning import mdp, policy_iteration
from tdraft.scripts.reproduce.rows import Outcome, exact_row

ENVS: tuple[tuple[str, dict[str, Any], float], ...] = (
    ("CliffWalking-v1", {}, 1.0),
    ("FrozenLake-v1", {}, 1.0),
    ("FrozenLake-v1", {"map_name": "8x8"}, 1.0),
    ("FrozenLake-v1", {}, 0.99),
    ("Taxi-v4", {}, 1.0),
)


def optimal_values(seeds: Sequence[int]) -> Outcome:
    """By policy iteration, without time limits."""
    rows = []
    for env_id, keywords, gamma in ENVS:
        model = mdp(gym.make(env_id, **keywords))
        value = float(model.start @ policy_iteration(model, gamma).v)
        name = f"gym/{env_id}{keywords or ''}/gamma={gamma}"
        rows.append(exact_row(name, "optimal value averaged over the start distribution", "reward", value))
    return Outcome(rows, [])
