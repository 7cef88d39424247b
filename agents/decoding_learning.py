"""Learning when to stop drafting: TD agents trained by `learn()` from the rewards of Draft-v0, chosen on validation contexts."""

import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tdraft.envs.decoding.draft import DraftEnv, Replay
from tdraft.envs.decoding.tabular import Grid, TabularDraft, discretise
from tdraft.kernels.jit import lean
from tdraft.models.decoding.policy import DraftPolicy
from tdraft.value.tables import first_greedy

from .actor_critic import ActorCritic
from .average_reward import SemiMarkovQ
from .cross_entropy import CrossEntropy
from .decoding_evaluation import play, speedup
from .stopping import STOPPING_MEAN, STOPPING_STD, stopping_features, stopping_scores
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
        """Best on validation first, by the mean over seeds: the luckiest of many seeds says less of an agent."""
        return sorted(self.validation, key=lambda name: -np.mean(self.validation[name]))


GRID = {
    "acceptance_edges": (0.1, 0.25, 0.4, 0.55, 0.7, 0.85, 0.95),
    "survival_edges": tuple(np.geomspace(0.01, 0.97, 24)),
    "belief_edges": (),
}
WITH_ENTROPY = "actor-critic, entropy"
SEARCH = "cross-entropy"
TABLES = {"Q-learning": (QLearning, {"gamma": 1.0}), "average-reward Q-learning": (SemiMarkovQ, {"eta": 0.01})}
TABLE_SCHEDULE = {"alpha": 0.2, "alpha_final": 0.001, "epsilon": 0.1, "epsilon_final": 0.01, "average": 0.3}
POLICY_GRADIENT = {
    **{"alpha": 0.2, "alpha_final": 0.005, "alpha_w": 0.1, "alpha_w_final": 0.002, "beta": 0.2, "beta_final": 0.0},
    **{"gamma": 1.0, "lambda_": 0.9, "n_steps": 16, "average_reward": True, "eta": 0.01},
}


@lean
def tabular_decide(params, memory, obs):
    """The best action of a table's row: params = (grid, q)."""
    return first_greedy(params[1][discretise(params[0], obs)])


def tabular_policy(name: str, agent, grid: Grid) -> DraftPolicy:
    """A tabular agent's greedy policy with the discretiser that it was trained behind."""
    return DraftPolicy(name, tabular_decide, (grid, np.ascontiguousarray(agent.policy().params[0])))


def training_env(train: Replay, rate: float) -> DraftEnv:
    """The env that decoding policies learn on: expected rewards, paid when a token is drafted."""
    return DraftEnv(train, reference_rate=rate, expected_reward=True, shaped=True)


def actor_critic_policy(
    train: Replay,
    *,
    rate: float,
    seed: int,
    timesteps: int,
    name: str = "actor-critic",
    entropy: bool = False,
    log_dir: Path | None = None,
) -> DraftPolicy:
    """One actor-critic, trained on the training contexts; `rate` and `timesteps` as in `train_policies`."""
    env = training_env(train, rate)
    features = stopping_features(env.params.max_drafted, entropy=entropy)
    agent = ActorCritic(env, seed=seed, features=features, horizon=timesteps, **POLICY_GRADIENT)
    return DraftPolicy(name, *agent.learn(timesteps, log_dir=log_dir).policy())


def search_policy(
    train: Replay, *, rate: float, seed: int, timesteps: int, name: str = SEARCH, log_dir: Path | None = None
) -> DraftPolicy:
    """One cross-entropy search among `StoppingScores`, each candidate judged by all training contexts."""
    env = DraftEnv(train.in_order(), reference_rate=rate, expected_reward=True)
    first = {"mean": STOPPING_MEAN, "std": STOPPING_STD, "scores": stopping_scores(train.cost)}
    agent = CrossEntropy(env, seed=seed, episodes=len(train.trace.tokens), **first)
    return DraftPolicy(name, *agent.learn(timesteps, log_dir=log_dir).policy())


def train_policies(
    train: Replay,
    validation: Replay,
    *,
    rate: float,
    seeds: Iterable[int],
    timesteps: int,
    log_dir: Path | None = None,
) -> LearnedPolicies:
    """Train every agent with every seed on the training contexts, from shaped, expected rewards; as many at once as there are
    cores.

    :param rate: the best static length's rate, rho of the rewards
    :param timesteps: steps of each training
    """
    table_env = TabularDraft(training_env(train, rate), **GRID)
    texts = len(validation.trace.tokens)

    def folder(name: str, seed: int) -> Path | None:
        return None if log_dir is None else log_dir / name / f"seed{seed}"

    def actor_critic(name: str, seed: int) -> DraftPolicy:
        options = {"name": name, "entropy": name == WITH_ENTROPY, "log_dir": folder(name, seed)}
        return actor_critic_policy(train, rate=rate, seed=seed, timesteps=timesteps, **options)

    def table(name: str, seed: int) -> DraftPolicy:
        kind, options = TABLES[name]
        agent = kind(table_env, seed=seed, horizon=timesteps, **options, **TABLE_SCHEDULE)
        return tabular_policy(name, agent.learn(timesteps, log_dir=folder(name, seed)), table_env.grid)

    def search(name: str, seed: int) -> DraftPolicy:
        return search_policy(train, rate=rate, seed=seed, timesteps=timesteps, name=name, log_dir=folder(name, seed))

    makers = {SEARCH: search, "actor-critic": actor_critic, WITH_ENTROPY: actor_critic} | dict.fromkeys(TABLES, table)
    jobs = [(name, seed) for name in makers for seed in seeds]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        found = list(pool.map(lambda job: makers[job[0]](*job), jobs))
    policies, scores = [], {}
    for name in makers:
        tried = [policy for (job, _), policy in zip(jobs, found) if job == name]
        scores[name] = [speedup(play(validation, policy, texts=texts)) for policy in tried]
        policies.append(tried[int(np.argmax(scores[name]))])
    return LearnedPolicies(policies, scores)
