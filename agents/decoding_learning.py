"""Learning when to stop drafting: TD agents trained by `learn()` from the rewards of Draft-v0, chosen on validation contexts."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tdraft.envs.decoding.draft import DraftEnv, Replay
from tdraft.envs.decoding.tabular import Grid, TabularDraft, discretise
from tdraft.kernels.jit import lean
from tdraft.models.decoding import observation as ob
from tdraft.models.decoding.policy import DraftPolicy
from tdraft.value.tables import first_greedy
from tdraft.value.tiles import TileCoding, tile_coding

from .decoding_evaluation import play, speedup
from .linear import LinearExpectedSarsa
from .tabular import QLearning


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


def draft_tiles(max_drafted: int) -> TileCoding:
    """Tilings over what the decision depends on. Survival is cut finely and logarithmically: the best stopping point is a
    threshold on it that moves with depth, the newest token's acceptance, the target's entropy and the text's recent history."""
    survival = np.geomspace(0.005, 0.97, 22)
    coarse = np.geomspace(0.02, 0.95, 11)
    acceptance = [0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.96]
    depth = np.arange(max_drafted) + 0.5
    return tile_coding(
        [
            {ob.DRAFTED: depth, ob.SURVIVAL: survival},
            {ob.DRAFTED: depth, ob.SURVIVAL_BEFORE: survival},
            {ob.SURVIVAL: coarse, ob.ACCEPTANCE: acceptance},
            {ob.DRAFTED: depth, ob.ACCEPTANCE: acceptance},
            {ob.SURVIVAL: coarse, ob.TARGET_ENTROPY: [0.3, 0.8, 1.4, 2.0, 2.8]},
            {ob.SURVIVAL: coarse, ob.ACCEPT_EMA: [0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0]},
            {ob.SURVIVAL: coarse, ob.CONFIDENCE: [0.2, 0.35, 0.5, 0.65, 0.8, 0.9, 0.97]},
            {ob.DRAFTED: depth, ob.REMAINING: [1.5, 2.5, 3.5, 4.5, 6.5, 9.5, 14.5]},
        ]
    )


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
    schedule = {"epsilon": 0.1, "epsilon_final": 0.01, "horizon": timesteps, "average": 0.3}

    def keep(name: str, found: list[DraftPolicy]) -> None:
        scores[name] = [speedup(play(validation, p, texts=len(validation.trace.tokens))) for p in found]
        policies.append(found[int(np.argmax(scores[name]))])

    def folder(name: str, seed: int) -> Path | None:
        return None if log_dir is None else log_dir / name / f"seed{seed}"

    env = DraftEnv(train, reference_rate=rate, expected_reward=True)
    tiles = draft_tiles(train.cost.max_drafted)
    found, tabular = [], []
    for seed in seeds:
        agent = LinearExpectedSarsa(env, seed=seed, features=tiles, alpha=0.1, alpha_final=0.005, **schedule)
        agent.learn(timesteps, log_dir=folder("linear Expected Sarsa", seed))
        found.append(DraftPolicy("linear Expected Sarsa", *agent.policy()))
        table = TabularDraft(env)
        q = QLearning(table, seed=seed, alpha=0.05, alpha_final=0.002, gamma=1.0, **schedule)
        q.learn(timesteps, log_dir=folder("tabular Q-learning", seed))
        tabular.append(tabular_policy("tabular Q-learning", q, table.grid))
    keep("linear Expected Sarsa", found)
    keep("tabular Q-learning", tabular)
    return LearnedPolicies(policies, scores)
