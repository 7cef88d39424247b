"""A model of Stable-Baselines3's, trained on Draft-v0, in the decoder and on traces. Needs nothing of it but `predict`."""

from collections.abc import Callable
from typing import Any

import numpy as np

from tdraft.envs.decoding.draft import Source
from tdraft.envs.decoding.dynamics import ACCEPTED_TOKENS, CALLS, DECISIONS, DRAFTED, N_COUNTS, TEXT, TIME, TOKENS, draft_params
from tdraft.kernels.rng import seed_state
from tdraft.models.decoding import observation as ob
from tdraft.models.decoding.cost import CostModel


def sb3_policy(model: Any) -> Callable[[np.ndarray], int]:
    """A model trained on Draft-v0 as a policy for `SpeculativeDecoder`: obs (SIZE,) -> VERIFY, DRAFT or DROP, greedy.

    :param model: PPO or DQN, ours or Stable-Baselines3's, or anything with its `predict`
    """

    def decide(obs: np.ndarray) -> int:
        return int(model.predict(obs, deterministic=True)[0])

    return decide


def play_sb3(source: Source, model: Any, *, texts: int, cost: CostModel | None = None, seed: int = 0) -> np.ndarray:
    """`decoding_evaluation.play` for a model of Stable-Baselines3's: all texts side by side, one `predict` a step.

    :param source: a `Replay(..., shuffle=False)` gives exactly the counts of `play`; a `Simulator` draws other texts
    :param model: as in `sb3_policy`
    :param texts: texts to play, from the first one on
    :return: (texts, N_COUNTS) tokens, time (plain steps), target calls, drafted, accepted, decisions
    """
    counts = np.zeros((texts, N_COUNTS))
    begin, act = source.dynamics.begin, source.dynamics.act
    running = []
    for row, child in zip(counts, np.random.SeedSequence(seed).spawn(texts)):
        params = draft_params(source.arrays, source.calibration, cost or source.cost, source.n_tokens, 1.0, False)
        params.cursor[TEXT] = len(running) - 1
        rng = seed_state(child)
        begin(params, rng)
        running.append((params, rng, row))
    while running:
        actions = model.predict(np.stack([params.obs for params, _, _ in running]), deterministic=True)[0]
        going_on = []
        for (params, rng, row), action in zip(running, actions):
            drafted = params.obs[ob.DRAFTED]
            _, done, passed = act(params, int(action), rng)
            row[DECISIONS] += 1
            row[TIME] += passed
            if params.obs[ob.DRAFTED] > drafted:
                row[DRAFTED] += 1
            else:
                row[CALLS] += 1
                row[TOKENS] += params.outcome[0]
                row[ACCEPTED_TOKENS] += params.outcome[1]
            if not done:
                going_on.append((params, rng, row))
        running = going_on
    return counts
