"""Every policy on the same test contexts: tuned, trained, bounded, and compared by one paired bootstrap."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tdraft.agents import decoding_evaluation as ev
from tdraft.agents.decoding_baselines import tune_all
from tdraft.agents.decoding_bounds import clairvoyant, informed
from tdraft.agents.decoding_learning import LearnedPolicies, train_policies, training_env
from tdraft.envs.decoding.draft import Replay
from tdraft.envs.decoding.dynamics import ACCEPTED_TOKENS, CALLS, DECISIONS, DRAFTED, TOKENS
from tdraft.models.decoding.cost import CostModel
from tdraft.models.decoding.observation import Calibration
from tdraft.models.decoding.policy import DraftPolicy
from tdraft.models.decoding.trace import Trace

LEAST_GAP = 0.01  # of the best static length's speed-up; what closes a narrower gap is not said


@dataclass(frozen=True)
class Comparison:
    """What every policy is worth.

    :param rows: of JSON, one a policy or bound: name, kind ("bound", "learned" or "baseline"), speedup (tokens a plain step),
        ci95, tokens_per_call, accepted_length, drafted_per_call, decisions, vs_best_baseline_percent, gap_closed_informed and
        gap_closed_clairvoyant (from the best static length; None where the gap is under 1%)
    :param cost: the clock
    :param counts: name -> (C, N_COUNTS) as `play` gives them
    :param best: "static", "baseline", "learned" -> name of the policy that is best on the validation contexts
    """

    rows: list[dict[str, Any]]
    cost: CostModel
    counts: dict[str, np.ndarray]
    policies: dict[str, DraftPolicy]
    learned: LearnedPolicies
    best: dict[str, str]


def compare(
    train: Trace,
    validation: Trace,
    test: Trace,
    calibration: Calibration,
    cost: CostModel,
    *,
    seeds: Iterable[int],
    timesteps: int,
    log_dir: Path | None = None,
    seed: int = 0,
    sb3_timesteps: int = 0,
) -> Comparison:
    """Train the learned policies on one trace, tune rules and choose among seeds on the second, and play all on the third.

    :param calibration: fitted to the training trace
    :param timesteps: env steps of each training
    :param seed: of the bootstrap
    :param sb3_timesteps: env steps of each training of Stable-Baselines3's PPO and DQN, which are left out at 0
    """
    seeds = list(seeds)
    tuning, testing = (Replay(trace, calibration, cost, shuffle=False) for trace in (validation, test))
    baselines = tune_all(tuning)
    static = next(policy for policy in baselines if policy.name.startswith("static"))
    rate = ev.speedup(ev.play(tuning, static, texts=len(validation.tokens)))
    learned = train_policies(
        Replay(train, calibration, cost), tuning, rate=rate, seeds=seeds, timesteps=timesteps, log_dir=log_dir
    )
    policies = {policy.name: policy for policy in [*baselines, *learned.policies]}
    counts = {name: ev.play(testing, policy, texts=len(test.tokens)) for name, policy in policies.items()}
    kinds = {name: "learned" if name in learned.names else "baseline" for name in policies}
    if sb3_timesteps:
        material = (Replay(train, calibration, cost), tuning, testing)
        found = sb3_counts(*material, rate=rate, seeds=seeds, timesteps=sb3_timesteps)
        counts |= found
        kinds |= dict.fromkeys(found, "learned")
    counts |= {"clairvoyant": clairvoyant(test, cost), "informed": informed(test, cost)}
    best = {"static": static.name, "baseline": baselines[0].name, "learned": learned.names[0]}
    bootstrap = ev.Bootstrap.draw(len(test.tokens), seed=seed)
    rows = []
    for name, count in counts.items():
        rows.append({"name": name, "kind": kinds.get(name, "bound"), **_row(name, count, counts, best, bootstrap)})
    return Comparison(rows, cost, counts, policies, learned, best)


def sb3_counts(
    train: Replay, validation: Replay, test: Replay, *, rate: float, seeds: list[int], timesteps: int
) -> dict[str, np.ndarray]:
    """Counts on the test contexts of Stable-Baselines3's PPO and DQN, each the seed that is best on the validation contexts."""
    from stable_baselines3.common.vec_env import DummyVecEnv

    from tdraft.agents import sb3
    from tdraft.agents.sb3_decoding import play_sb3

    options = {
        "SB3 PPO": (sb3.PPO, 8, {"n_steps": 256, "batch_size": 256}),
        "SB3 DQN": (sb3.DQN, 1, {}),
    }
    counts = {}
    for name, (kind, lanes, settings) in options.items():
        models = []
        for seed in seeds:
            env = DummyVecEnv([lambda: training_env(train, rate)] * lanes)
            models.append(kind(env, seed=seed, **settings).learn(timesteps))
        scores = [ev.speedup(play_sb3(validation, model, texts=len(validation.trace.tokens))) for model in models]
        counts[name] = play_sb3(test, models[int(np.argmax(scores))], texts=len(test.trace.tokens))
    return counts


def _row(name: str, count: np.ndarray, counts: dict[str, np.ndarray], best: dict[str, str], bootstrap: ev.Bootstrap) -> dict:
    calls = count[:, CALLS].sum()
    estimate, low, high = bootstrap.difference(count, counts[best["baseline"]])
    static = ev.speedup(counts[best["static"]])

    def gap(bound: str) -> float | None:
        width = ev.speedup(counts[bound]) - static
        return None if width < LEAST_GAP * static else (ev.speedup(count) - static) / width

    return {
        "speedup": ev.speedup(count),
        "ci95": bootstrap.interval(count),
        "tokens_per_call": float(count[:, TOKENS].sum() / calls),
        "accepted_length": float(count[:, ACCEPTED_TOKENS].sum() / calls),
        "drafted_per_call": float(count[:, DRAFTED].sum() / calls),
        "decisions": float(count[:, DECISIONS].sum()),
        "vs_best_baseline_percent": {"estimate": estimate, "ci95": [low, high]},
        "gap_closed_informed": gap("informed"),
        "gap_closed_clairvoyant": gap("clairvoyant"),
    }
