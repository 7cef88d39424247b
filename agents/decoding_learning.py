"""Learning when to stop drafting: TD agents trained by `learn()` from the rewards of Draft-v0, chosen on validation contexts."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tdraft.envs.decoding.draft import DraftEnv, Replay
from tdraft.envs.decoding.tabular import Grid, TabularDraft, discretise
from tdraft.kernels.jit import lean
from tdraft.models.decoding.policy import DraftPolicy
from tdraft.value.tables import first_greedy

from .average_reward import SemiMarkovQ
from .decoding_evaluation import play, speedup
from .tabular import QLearning, Sarsa


@dataclass(frozen=True)
class LearnedPolicies:
    """The policies that training gave.

    :param policies: of each agent the seed that is best on the validation contexts
    :param validation: agent -> speed-up on the validation contexts, one a seed
    """

    policies: list[DraftPolicy]
    validation: dict[str, list[float]]

    @property
    def names(self) -> list[str]:
        """Best on validation first."""
        return sorted(self.validation, key=lambda name: -max(self.validation[name]))


# The best stopping point is a threshold on the survival that moves with depth: fine, logarithmic bins of it. The newest token's
# acceptance decides what to drop; the belief in the hidden difficulty adds nothing on traces.
GRID = {
    "acceptance_edges": (0.1, 0.25, 0.4, 0.55, 0.7, 0.85, 0.95),
    "survival_edges": tuple(np.geomspace(0.01, 0.97, 24)),
    "belief_edges": (0.5,),
}
AGENTS = {
    "Q-learning": (QLearning, {"gamma": 1.0}),
    "Sarsa": (Sarsa, {"gamma": 1.0}),
    "average-reward Q-learning": (SemiMarkovQ, {"eta": 0.01}),
}


@lean
def tabular_decide(params, memory, obs):
    """The best action of a table's row: params = (grid, q)."""
    return first_greedy(params[1][discretise(params[0], obs)])


def tabular_policy(name: str, agent, grid: Grid) -> DraftPolicy:
    """A tabular agent's greedy policy with the discretiser that it was trained behind."""
    return DraftPolicy(name, tabular_decide, (grid, np.ascontiguousarray(agent.policy().params[0])))


def train_policies(
    train: Replay,
    validation: Replay,
    *,
    rate: float,
    seeds: Iterable[int],
    timesteps: int,
    log_dir: Path | None = None,
) -> LearnedPolicies:
    """Train every agent with every seed on the training contexts.

    :param rate: the best static length's rate, rho of the rewards
    :param timesteps: steps of each training
    """
    policies, scores = [], {}
    schedule = {"alpha": 0.2, "alpha_final": 0.001, "epsilon": 0.1, "epsilon_final": 0.01, "horizon": timesteps, "average": 0.3}
    env = TabularDraft(DraftEnv(train, reference_rate=rate, expected_reward=True), **GRID)
    texts = len(validation.trace.tokens)
    for name, (kind, options) in AGENTS.items():
        found = []
        for seed in seeds:
            agent = kind(env, seed=seed, **options, **schedule)
            agent.learn(timesteps, log_dir=None if log_dir is None else log_dir / name / f"seed{seed}")
            found.append(tabular_policy(name, agent, env.grid))
        scores[name] = [speedup(play(validation, policy, texts=texts)) for policy in found]
        policies.append(found[int(np.argmax(scores[name]))])
    return LearnedPolicies(policies, scores)
