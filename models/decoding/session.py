"""One text being decoded speculatively (`Session`): draft a token, verify, emit, with every second and token accounted for.

Greedy drafts with position-keyed noise (the default) emit the text of plain decoding whatever is drafted. With
`noise="independent"` and sampled drafts the text differs from run to run and its law is the target's (Leviathan et al. 2023).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any

import numpy as np
import torch

from tdraft.kernels.jit import Box, entry
from tdraft.kernels.rng import keyed_uniform

from ..backbones.base import State
from ..language_model import LanguageModel
from . import observation as ob
from .drafters import Drafter, NGramDrafter, Proposal, distribution_entropy, read_target
from .fast_path import Scene, begin_text, draft_ahead, make_decisions, make_ngram_round, next_round, observe_token
from .policy import DraftPolicy
from .sampling import Sampling
from .trees import Tree, depths
from .verification import choose, verify_greedy_drafts, verify_sampled_drafts, verify_tree

NONE_ENDED = (-1.0, 0.0, 0.0, 0.0)


def position_noise(key: int, position: int, count: int) -> np.ndarray:
    """(count,) uniforms of the positions from `position` on, the same whoever asks."""
    return np.array([keyed_uniform(key, position + i) for i in range(count)])


@dataclass
class Accounting:
    """What a text has cost so far."""

    target_calls: int = 0
    drafted: int = 0
    verified: int = 0
    accepted: int = 0
    bonus: int = 0
    tokens: int = 0
    draft_seconds: float = 0.0
    verify_seconds: float = 0.0
    policy_seconds: float = 0.0
    rounds: list[tuple[int, int]] = field(default_factory=list)  # (verified, accepted)

    @property
    def seconds(self) -> float:
        return self.draft_seconds + self.verify_seconds + self.policy_seconds


class ContextTooLong(ValueError):
    """A prompt or a text that does not fit the target's context."""


class Session:
    """One text being decoded.

    :param target: the model whose text is emitted
    :param drafter: None for plain decoding
    :param calibration: what the observation's predictions are made of
    :param sampling: temperature, top-k, top-p
    :param prompt: (P,) token ids, at least 2
    :param max_new_tokens: tokens to emit
    :param max_drafted: K
    :param key: seed of the position-keyed noise
    :param noise: "keyed" by position: the text is that of plain decoding with the same key; or "independent", drawn from `rng`
    :param sampled_drafts: sample the drafts from the drafter's distribution; needs independent noise
    """

    def __init__(
        self,
        target: LanguageModel,
        drafter: Drafter | None,
        prompt: Sequence[int] | np.ndarray,
        max_new_tokens: int,
        *,
        calibration: ob.Calibration | None = None,
        sampling: Sampling | None = None,
        max_drafted: int = 8,
        key: int = 0,
        noise: str = "keyed",
        sampled_drafts: bool = False,
        rng: np.random.Generator | None = None,
    ):
        if noise not in ("keyed", "independent"):
            raise ValueError(f'noise must be "keyed" or "independent", got "{noise}"')
        if sampled_drafts and noise == "keyed":
            raise ValueError('sampled drafts need noise="independent": with keyed noise their law would not be the target\'s')
        prompt = np.asarray(prompt, np.int64)
        if prompt.ndim != 1 or len(prompt) < 2:
            raise ValueError(f"prompt must hold at least 2 tokens, got shape {prompt.shape}")
        if len(prompt) + 1 > target.config.max_length:
            raise ContextTooLong(
                f"the prompt has {len(prompt)} tokens, the target's context holds {target.config.max_length}: shorten the prompt"
            )
        self.target, self.drafter, self.key = target, drafter, key
        self.sampling = Sampling() if sampling is None else sampling
        self.calibration = ob.empty_calibration() if calibration is None else calibration
        self.max_drafted = max_drafted if drafter is not None else 0
        self.noise, self.sampled_drafts = noise, sampled_drafts
        self.rng = np.random.default_rng(key) if rng is None else rng
        self._space = target.config.max_length - len(prompt)  # tokens that may follow the prompt
        self.limit = min(max_new_tokens, self._space)
        self.account = Accounting()
        self.emitted: list[int] = []
        self._last = int(prompt[-1])
        self._taps = None if drafter is None else drafter.taps
        self._hidden = np.zeros(len(self.calibration.probe.state), np.float32)
        if len(self._hidden):
            self._check_probe()
            self._taps = self._taps or ()
        with torch.inference_mode():
            logits, self._state, hidden = read_target(
                target, torch.from_numpy(prompt[None, :-1]), target.initial_state(1), self._taps
            )
        self._entropy = float(distribution_entropy(logits[0, -1].double().numpy()))
        if drafter is not None:
            if drafter.taps is not None and hidden is not None:
                drafter.watch(hidden[0])
            drafter.begin(prompt, self.limit + max_drafted + 1)
        self.drafts: list[int] = []
        self._draft_probs: list[np.ndarray] = []
        self._obs = np.zeros(ob.SIZE)
        self._ended = NONE_ENDED
        text = np.zeros(1, np.int64) if drafter is None else drafter.buffer
        if hidden is not None:
            self._hidden[:] = hidden[0, -1].numpy()[: len(self._hidden)]
        projected = np.zeros(len(self.calibration.probe.out), np.float32)
        active = np.empty(ob.N_ACTIVE, np.int64)
        self._scene = Box(Scene(self._obs, self.calibration, text, active, self._hidden, projected))
        self._served: tuple[Any, Any, Any] = (None, None, None)
        begin_text(self._scene, self._entropy, float(self.limit))

    def _check_probe(self) -> None:
        config, probe = self.target.config, self.calibration.probe
        if (config.d_model, config.vocab_size) != (len(probe.state), len(probe.token)):
            raise ValueError(
                f"the calibration reads hidden states of {len(probe.state)} and {len(probe.token)} tokens, the target has "
                f"{config.d_model} and {config.vocab_size}: calibrate with this target"
            )

    @property
    def obs(self) -> np.ndarray:
        """(SIZE,) what a policy sees now, an array that the session goes on changing."""
        self._catch_up()
        return self._obs

    def _catch_up(self) -> None:
        """Show the observation the round that has ended, if that is still to be done."""
        if self._ended[0] >= 0.0:
            next_round(self._scene, *self._ended)
            self._ended = NONE_ENDED

    @property
    def done(self) -> bool:
        return len(self.emitted) >= self.limit

    @property
    def room(self) -> int:
        """How many more tokens may be drafted: K, and what the target's context can verify."""
        return min(self.max_drafted, self._space - len(self.emitted)) - len(self.drafts)

    def draft(self) -> None:
        """Draft one more token and show it to the observation."""
        proposal = self._propose()
        start = perf_counter()
        self._catch_up()
        observe_token(self._scene, *proposal)
        self.account.policy_seconds += perf_counter() - start

    def _propose(self) -> tuple[float, float, float, float, int]:
        """Draft one more token; its features and its place in the drafter's text."""
        assert self.drafter is not None
        start = perf_counter()
        if self.sampled_drafts:
            q = self.sampling(np.log(np.maximum(self.drafter.distribution(), 1e-300)))
            token = choose(q, self.rng.random())
            self.drafter.draw(token)
            self._draft_probs.append(q)
            positive = q[q > 0]
            proposal = Proposal(token, float(q[token]), float(-(positive * np.log(positive)).sum()), 0.0, 0.0)
        else:
            proposal = self.drafter.propose()
            token = proposal.token
        self.drafts.append(token)
        self.account.drafted += 1
        self.account.draft_seconds += perf_counter() - start
        _, confidence, entropy, order, log_count = proposal
        return confidence, entropy, order, log_count, self.drafter.length + self.drafter.drafted - 1

    def time_drafting(self, count: int) -> float:
        """Seconds that a compiled round takes to draft `count` tokens and look at none; 0 for drafters without such rounds. The
        drafts are forgotten.
        """
        if not isinstance(self.drafter, NGramDrafter):
            return 0.0
        start = perf_counter()
        draft_ahead(self._scene, self.drafter.boxed_tables, self.drafter.length, count)
        return perf_counter() - start

    def verify(self, count: int) -> list[int]:
        """Let the target verify the first `count` drafts; emit the accepted ones and one token of the target's own."""
        start = perf_counter()
        drafts = self.drafts[:count]
        rows, state, hidden = self._read(drafts, None)
        p, noise = self.sampling(rows), self._noise(len(drafts) + 1)
        if self.sampled_drafts:
            accepted, token = verify_sampled_drafts(p, self._draft_probs, drafts, noise)
        else:
            accepted, token = verify_greedy_drafts(p, drafts, noise)
        new = [*drafts[:accepted], token][: self.limit - len(self.emitted)]
        self._emit(new, state.at(len(new)), rows, hidden, range(len(new)))
        return self._end_round(start, new, count, accepted, count, accepted == count)

    def draft_tree(self, nodes: int, depth: int) -> Tree:
        """The drafter's best tree of at most `nodes` tokens, no deeper than `depth`, K and the target's context allow."""
        assert self.drafter is not None
        start = perf_counter()
        tree = self.drafter.tree(nodes, min(depth, self.room))
        self.account.drafted += len(tree.tokens)
        self.account.draft_seconds += perf_counter() - start
        return tree

    def verify_tree(self, tokens: np.ndarray, parents: np.ndarray) -> list[int]:
        """Let the target verify a tree of drafts in one call; emit the longest path that it agrees with and one token of its own.

        The target's choice at every position is settled by the position's noise, so the text is that of plain decoding. In the
        observation the round counts as one of a draft as long as the tree is deep.

        :param tokens: (M,) drafted tokens
        :param parents: (M,) the node, before it, that each one follows; -1 for the text
        :raises ValueError: sampled drafts, or a tree deeper than the target's context
        """
        start = perf_counter()
        if self.sampled_drafts:
            raise ValueError("a tree of sampled drafts is not verified: use greedy drafts")
        levels = depths(parents)
        depth = int(levels.max(initial=0))
        if depth > self._space - len(self.emitted):
            raise ValueError(
                f"a tree {depth} deep does not fit: the target's context has room for {self._space - len(self.emitted)}"
            )
        rows, state, hidden = self._read(list(tokens), np.concatenate([[-1], np.asarray(parents, np.int64) + 1]))
        path, token = verify_tree(self.sampling(rows), tokens, parents, self._noise(depth + 1))
        new = [*(int(tokens[node]) for node in path), token][: self.limit - len(self.emitted)]
        kept = [0, *(node + 1 for node in path)][: len(new)]
        self._emit(new, state.path(kept), rows, hidden, kept)
        leaf = (path[-1] if path else -1) not in parents
        return self._end_round(start, new, len(tokens), len(path), depth, leaf)

    def _read(self, drafts: list[int], parents: np.ndarray | None) -> tuple[np.ndarray, State, torch.Tensor | None]:
        """The target at the last token and at M drafts: logits (M + 1, V), state, and hidden states if the drafter asks."""
        with torch.inference_mode():
            logits, state, hidden = read_target(
                self.target, torch.tensor([[self._last, *drafts]]), self._state, self._taps, parents
            )
            hidden = None if hidden is None else hidden[0]
            self._states = None if hidden is None else hidden.numpy()
            return logits[0].double().numpy(), state, hidden

    def _noise(self, count: int) -> np.ndarray:
        if self.noise == "independent":
            return self.rng.random(count)
        return position_noise(self.key, len(self.emitted), count)

    def _emit(self, new: list[int], state: State, rows: np.ndarray, hidden: torch.Tensor | None, kept: Sequence[int]) -> None:
        """The text grows by `new`; the target stands at `state`, before the last of them.

        :param rows, hidden: what `_read` gave
        :param kept: the row that chose each of `new`
        """
        self._state, self._last = state, new[-1]
        self._entropy = float(distribution_entropy(rows[kept[-1]]))
        self._row = kept[-1]
        self.emitted.extend(new)
        if self.drafter is not None:
            if self.drafter.taps is not None and hidden is not None:
                self.drafter.watch(hidden[list(kept)])
            self.drafter.extend(new)

    def _end_round(self, start: float, new: list[int], count: int, accepted: int, depth: int, bonus: bool) -> list[int]:
        """Account for a verification of `count` drafts, `depth` of them on the longest path, that emitted `new`."""
        verified = perf_counter()
        account = self.account
        account.verify_seconds += verified - start
        account.target_calls += 1
        account.verified += count
        account.accepted += accepted
        account.bonus += bonus
        account.tokens += len(new)
        account.rounds.append((count, accepted))
        self.drafts, self._draft_probs = [], []
        if self._states is not None:  # the probe's view of the last verified position; taps stand behind it
            self._hidden[:] = self._states[self._row, : len(self._hidden)]
        self._ended = (float(depth), float(accepted), self._entropy, float(self.limit - len(self.emitted)))
        account.policy_seconds += perf_counter() - verified
        return new

    def decide(self, policy: Callable) -> int:
        """Draft as the policy wishes; its last action, VERIFY or DROP (or DRAFT where there is no room for more)."""
        start = perf_counter()
        if isinstance(policy, DraftPolicy):
            if self._served[0] is not policy:
                self._serve(policy)
            _, served, compiled = self._served
            if self._drafts_ngrams:
                return self._decide_ngram(served, compiled, start)
            return self._decide_served(served, compiled, start)
        while True:
            action = int(policy(self.obs))
            self.account.policy_seconds += perf_counter() - start
            if action != ob.DRAFT or self.room <= 0:
                return action
            self.draft()
            start = perf_counter()

    @property
    def _drafts_ngrams(self) -> bool:
        return isinstance(self.drafter, NGramDrafter) and not self.sampled_drafts

    def _serve(self, policy: DraftPolicy) -> None:
        """Box the policy's parameters and memory, once a text."""
        served = Box((policy.params, policy.memory))
        if self._drafts_ngrams:
            drafter: Any = self.drafter
            compiled = entry(make_ngram_round(policy.decide), self._scene, drafter.boxed_tables, served, 0, 0, NONE_ENDED)
        else:
            first, after_token = make_decisions(policy.decide)
            compiled = (
                entry(first, self._scene, served, NONE_ENDED),
                entry(after_token, self._scene, served, 0.0, 0.0, 0.0, 0.0, 0),
            )
        self._served = policy, served, compiled

    def _decide_served(self, served: Box, compiled: tuple[Callable, Callable], start: float) -> int:
        first, after_token = compiled
        action, self._ended = first(self._scene, served, self._ended), NONE_ENDED
        while action == ob.DRAFT and self.room > 0:
            self.account.policy_seconds += perf_counter() - start
            proposal = self._propose()
            start = perf_counter()
            action = after_token(self._scene, served, *proposal)
        self.account.policy_seconds += perf_counter() - start
        return action

    def _decide_ngram(self, served: Box, compiled: Callable, start: float) -> int:
        drafter: Any = self.drafter
        length = drafter.length
        action, drafted = compiled(self._scene, drafter.boxed_tables, served, length, self.room, self._ended)
        decided = perf_counter()
        drafting = min(drafted * drafter.token_seconds, decided - start)
        self._ended = NONE_ENDED
        self.drafts = drafter.buffer[length : length + drafted].tolist()
        self.account.drafted += drafted
        self.account.policy_seconds += decided - start - drafting
        self.account.draft_seconds += drafting + perf_counter() - decided
        return action

    def act(self, action: int) -> list[int]:
        """Carry out one decision of Draft-v0; the tokens it emitted."""
        drafted = len(self.drafts)
        if action == ob.DRAFT and self.room > 0:
            self.draft()
            return []
        if action == ob.DROP and drafted and self.sampled_drafts:
            raise ValueError("dropping a sampled draft is not lossless: use greedy drafts, or a policy without action 2")
        return self.verify(drafted - 1 if action == ob.DROP and drafted else drafted)
