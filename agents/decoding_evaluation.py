"""Measuring decoding policies: compiled replay, live decoding, and what can be said of the difference."""

from dataclasses import dataclass

import numpy as np

from tdraft.envs.decoding.draft import Replay, Source
from tdraft.envs.decoding.dynamics import N_COUNTS, TEXT, TIME, TOKENS, draft_params, make_rollout
from tdraft.kernels.rng import seed_state
from tdraft.models.decoding import observation as ob
from tdraft.models.decoding.cost import CostModel
from tdraft.models.decoding.decoder import Accounting, SpeculativeDecoder
from tdraft.models.decoding.policy import DraftPolicy


def play(source: Source, policy: DraftPolicy, *, texts: int, cost: CostModel | None = None, seed: int = 0) -> np.ndarray:
    """Play `texts` texts of a source in order under a policy, each once.

    :param cost: prices, by default the source's
    :return: (texts, N_COUNTS) tokens, time (plain steps), target calls, drafted, accepted, decisions
    """
    params = draft_params(source.arrays, source.calibration, cost or source.cost, source.n_tokens, 1.0, False)
    counts = np.zeros((texts, N_COUNTS))
    rollout = make_rollout(source.dynamics, policy.decide)
    rollout(params, policy.params, policy.memory, policy.memory.copy(), counts, seed_state(seed))
    return counts


def replayed_rounds(source: Replay, policy: DraftPolicy, *, texts: int) -> list[list[tuple[int, int]]]:
    """(verified, accepted) of every round of each of `texts` texts of a trace, in order, under a policy."""
    params = draft_params(source.arrays, source.calibration, source.cost, source.n_tokens, 1.0)
    begin, act, rng, texts_rounds = source.dynamics.begin, source.dynamics.act, seed_state(0), []
    for text in range(texts):
        params.cursor[TEXT] = text - 1
        begin(params, rng)
        serving, rounds, done = policy.fresh(), [], False
        while not done:
            drafted = params.obs[ob.DRAFTED]
            _, done, _ = act(params, serving(params.obs), rng)
            if params.obs[ob.DRAFTED] <= drafted:
                rounds.append((int(params.obs[ob.LAST_DRAFTED]), int(params.obs[ob.LAST_ACCEPTED])))
        texts_rounds.append(rounds)
    return texts_rounds


def speedup(counts: np.ndarray) -> float:
    """Tokens per plain step over all texts: a ratio of sums."""
    return float(counts[:, TOKENS].sum() / counts[:, TIME].sum())


@dataclass(frozen=True)
class Bootstrap:
    """Resamples of contexts that every policy of a table shares, so that differences between policies are paired.

    :param weights: (B, C) how often each context is drawn in each resample
    """

    weights: np.ndarray

    @classmethod
    def draw(cls, contexts: int, resamples: int = 2000, seed: int = 0) -> "Bootstrap":
        rng = np.random.default_rng(seed)
        return cls(rng.multinomial(contexts, np.full(contexts, 1.0 / contexts), size=resamples).astype(np.float64))

    def speedups(self, counts: np.ndarray) -> np.ndarray:
        """(B,) the speed-up in each resample."""
        return (self.weights @ counts[:, TOKENS]) / (self.weights @ counts[:, TIME])

    def interval(self, counts: np.ndarray) -> tuple[float, float]:
        """95% interval of the speed-up."""
        low, high = np.percentile(self.speedups(counts), [2.5, 97.5])
        return float(low), float(high)

    def difference(self, counts: np.ndarray, other: np.ndarray) -> tuple[float, float, float]:
        """(estimate, low, high) of the relative difference of two policies' speed-ups, in percent."""
        ratio = self.speedups(counts) / self.speedups(other)
        low, high = np.percentile(ratio, [2.5, 97.5])
        return 100 * (speedup(counts) / speedup(other) - 1), 100 * (float(low) - 1), 100 * (float(high) - 1)


@dataclass(frozen=True)
class LiveRun:
    """Live decoding of several contexts under one policy."""

    tokens: list[list[int]]
    accounts: list[Accounting]

    @property
    def seconds(self) -> float:
        return sum(account.seconds for account in self.accounts)

    @property
    def own_cost(self) -> float:
        """The policy's share of the time: building observations, predicting, deciding."""
        return sum(account.policy_seconds for account in self.accounts) / self.seconds


def play_live(
    decoders: dict[str, SpeculativeDecoder], prompts: np.ndarray, keys: np.ndarray, n_tokens: int
) -> dict[str, LiveRun]:
    """Decode every context under every policy, in turn on each context, so that the machine's drift hits all alike."""
    runs = {name: LiveRun([], []) for name in decoders}
    names = list(decoders)
    for i, prompt in enumerate(prompts):
        for name in names[i % len(names) :] + names[: i % len(names)]:
            generation = decoders[name].generate(prompt, n_tokens, key=int(keys[i]))
            runs[name].tokens.append(generation.tokens)
            runs[name].accounts.append(generation.account)
    return runs


def first_difference(tokens: list[int], reference: np.ndarray) -> int | None:
    """The first position at which two texts differ, None if they are the same."""
    length = min(len(tokens), len(reference))
    different = np.flatnonzero(np.array(tokens[:length]) != reference[:length])
    if different.size:
        return int(different[0])
    return None if len(tokens) == len(reference) else length
