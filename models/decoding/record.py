"""Recording traces, and measuring the clock that they are replayed on."""

from time import perf_counter
from typing import NamedTuple

import numpy as np
import torch
from tqdm import trange

from ..backbones.base import State
from ..language_model import LanguageModel, sweep_hidden
from ..threads import one_thread
from . import observation as ob
from .acceptance import Sweep
from .cost import CostModel
from .drafters import Drafter, NGramDrafter, distribution_entropy
from .proposals import propose, propose_along
from .sampling import Sampling
from .session import Session, position_noise
from .trace import Trace
from .verification import choose


def plain_text(target: LanguageModel, prompts: np.ndarray, n_tokens: int, sampling: Sampling, keys: np.ndarray) -> np.ndarray:
    """What plain decoding emits, (C, N) int64: one call a token, all contexts beside each other."""
    with torch.inference_mode():
        _, state = target(torch.from_numpy(prompts[:, :-1]))
        last, out = prompts[:, -1:], []
        for n in range(n_tokens):
            logits, state = target(torch.from_numpy(last), state)
            p = sampling(logits[:, -1].double().numpy())
            last = np.array([[choose(p[c], position_noise(int(keys[c]), n, 1)[0])] for c in range(len(p))])
            out.append(last)
    return np.concatenate(out, axis=1)


def draft_trie(text: np.ndarray, proposals: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The tree of a text and all its drafts, in which what begins alike is there once.

    Where a draft goes on as the text does, the next position's draft is mostly the rest of it: a trie has half the nodes.

    :param text: (N,) the token before each position
    :param proposals: (N, K)
    :return: tokens (M,), the text's first; parents (M,); (N, K) the node whose logits judge each proposal
    """
    N, K = proposals.shape
    tokens, parents = text.tolist(), list(range(-1, N - 1))
    child = {(n, token): n + 1 for n, token in enumerate(tokens[1:])}
    judge = np.empty((N, K), np.int64)
    for n, draft in enumerate(proposals.tolist()):
        node = n
        for k, token in enumerate(draft):
            judge[n, k] = node
            if k + 1 < K:
                parent, node = node, child.setdefault((node, token), len(tokens))
                if node == len(tokens):
                    tokens.append(token)
                    parents.append(parent)
    return np.array(tokens), np.array(parents), judge


def _judge(target: LanguageModel, state: State, text: np.ndarray, proposals: np.ndarray, sampling: Sampling):
    """The target's word on a text and its drafts.

    :param state: of one sequence, before the text
    :param text: (N,) the token before each position
    :param proposals: (N, K)
    :return: hidden states (N, D) and logits (N, V) at the positions, probability (N, K) of each proposal after those before it
    """
    nodes, parents, judge = draft_trie(text, proposals)
    out, _ = target.hidden(torch.from_numpy(nodes[None]), state, parents=parents)
    logits = target.logits(out[0]).double().numpy()
    return out[0, : len(text)].numpy(), logits[: len(text)], sampling(logits)[judge, proposals]


def _margin(logits: np.ndarray, p: np.ndarray, noise: float, sampling: Sampling) -> float:
    """How far the choice of a token is from falling to another: in logits when greedy, in probability when sampled."""
    if sampling.temperature == 0:
        best = np.partition(logits, -2)
        return float(best[-1] - best[-2])
    return float(np.abs(np.cumsum(p) - noise).min())


def record(
    target: LanguageModel,
    drafter: Drafter,
    prompts: np.ndarray,
    n_tokens: int,
    depth: int,
    sampling: Sampling,
    keys: np.ndarray,
    *,
    tokens: np.ndarray | None = None,
    batch: int = 16,
    progress: bool = False,
    meta: dict | None = None,
) -> Trace:
    """The trace of the target's continuation of each prompt; a text and its drafts are verified as one tree.

    :param prompts: (C, P) int64
    :param keys: (C,) seeds of the position-keyed noise
    :param depth: K, tokens proposed at every position
    :param tokens: (C, N) the text that the target goes on with, where another drafter's trace has it already
    """
    contexts = len(prompts)
    if prompts.shape[1] + n_tokens + depth > target.config.max_length:
        raise ValueError(
            f"prompt {prompts.shape[1]} + {n_tokens} tokens + drafts of {depth} exceed the context of {target.config.max_length}"
        )
    if tokens is None:
        parts = [slice(i, i + 256) for i in range(0, contexts, 256)]
        tokens = np.concatenate([plain_text(target, prompts[p], n_tokens, sampling, keys[p]) for p in parts])
    tokens = tokens.astype(np.int64)
    proposals = np.zeros((contexts, n_tokens, depth), np.int32)
    features = np.zeros((contexts, n_tokens, depth, ob.N_FEATURES), np.float32)
    target_prob = np.zeros((contexts, n_tokens, depth))
    hidden = np.zeros((contexts, n_tokens, target.config.d_model), np.float32)
    entropy, margin = np.zeros((contexts, n_tokens), np.float32), np.zeros((contexts, n_tokens), np.float32)
    with torch.inference_mode():
        for i in trange(0, contexts, batch, desc="record", disable=not progress, leave=False):
            rows = slice(i, min(i + batch, contexts))
            proposals[rows], features[rows] = propose(target, drafter, prompts[rows], tokens[rows], depth)
            text = np.concatenate([prompts[rows, -1:], tokens[rows, :-1]], axis=1)
            before, state = target.hidden(torch.from_numpy(prompts[rows, :-1]))
            states = before[:, -1:].expand(-1, n_tokens, -1).numpy().copy()  # of the first position; the others follow
            logits = np.empty((len(text), n_tokens, target.config.vocab_size))
            for row, c in enumerate(range(rows.start, rows.stop)):
                here, logits[row], target_prob[c] = _judge(target, state.select([row]), text[row], proposals[c], sampling)
                states[row, 1:] = here[:-1]
            hidden[rows] = states
            first = target.logits(before[:, -1:]).double().numpy()
            entropy[rows] = distribution_entropy(np.concatenate([first, logits[:, :-1]], axis=1))
            p = sampling(logits)
            for c in range(rows.start, rows.stop):
                noise = position_noise(int(keys[c]), 0, n_tokens)
                for n in range(n_tokens):
                    margin[c, n] = _margin(logits[c - i, n], p[c - i, n], noise[n], sampling)
    return Trace(
        tokens.astype(np.int32),
        prompts.astype(np.int32),
        proposals,
        features,
        target_prob,
        count_accepted(proposals, tokens),
        entropy,
        hidden,
        margin,
        {
            "drafter": drafter.fingerprint,
            "target": target.fingerprint,
            "vocab_size": target.config.vocab_size,
            "temperature": sampling.temperature,
            "top_k": sampling.top_k,
            "top_p": sampling.top_p,
            "prompt_length": prompts.shape[1],
            **(meta or {}),
        },
    )


class Reading(NamedTuple):
    """What a target makes of a text of N tokens, in float16: read once, judged for every drafter."""

    tokens: np.ndarray  # (N,) int64
    hidden: np.ndarray  # (N, D) after each of them
    logits: np.ndarray  # (N, V) of the token after it


def read_text(target: LanguageModel, tokens: np.ndarray) -> Reading:
    """Read a text (N,) in windows, so that each token is seen after at least a quarter of the target's context."""
    hidden = np.empty((len(tokens), target.config.d_model), np.float16)
    logits = np.empty((len(tokens), target.config.vocab_size), np.float16)
    for begin, part in sweep_hidden(target, tokens, overlap=0.25):
        rows = slice(begin, begin + len(part))
        hidden[rows], logits[rows] = part.half().numpy(), target.logits(part).half().numpy()
    return Reading(tokens, hidden, logits)


def sweep(
    text: Reading,
    drafter: Drafter,
    sampling: Sampling,
    *,
    target: LanguageModel | None = None,
    window: int = 256,
) -> Sweep:
    """What the target that has read a text says of a drafter's proposal at every position of it.

    :param target: needed by a drafter that reads its hidden states
    :param window: tokens of the text that a drafter without a fast path sees at most, and a quarter of them at least: it drafts
        literally at every position, and what looks back should look as far as in a session
    """
    tokens, hidden, logits = text
    with torch.inference_mode():
        proposals, features = propose_along(drafter, tokens, target, window)
    probability, entropy = np.empty(len(tokens)), np.empty(len(tokens), np.float32)
    for i in range(0, len(tokens), 1 << 15):
        rows = slice(i, i + (1 << 15))
        exact = logits[rows].astype(np.float64)
        entropy[rows] = distribution_entropy(exact)
        probability[rows] = np.take_along_axis(sampling(exact), proposals[rows, None].astype(np.int64), -1)[:, 0]
    return Sweep(tokens, proposals, features, probability, entropy, hidden)


def count_accepted(proposals: np.ndarray, tokens: np.ndarray) -> np.ndarray:
    """How many leading proposals (C, N, K) are what the text (C, N) goes on with, (C, N) int32; none past its end."""
    contexts, n_tokens, depth = proposals.shape
    accepted = np.zeros((contexts, n_tokens), np.int32)
    alive = np.ones((contexts, n_tokens), bool)
    for k in range(min(depth, n_tokens)):
        following = np.full((contexts, n_tokens), -1, np.int64)
        following[:, : n_tokens - k] = tokens[:, k:]
        alive &= proposals[:, :, k] == following
        accepted += alive
    return accepted


def measure_cost(
    target: LanguageModel,
    drafter: Drafter,
    prompts: np.ndarray,
    max_drafted: int,
    sampling: Sampling,
    *,
    calibration: ob.Calibration | None = None,
    repeats: int = 40,
) -> CostModel:
    """T(m) and the price of a drafted token on this machine: medians over `repeats` interleaved rounds of a real session.

    A verification is timed whole, with what the decoder does around the target's call, so that units add up to the wall clock.
    Drafts are timed between verifications, as they come in decoding, with the caches that those leave. All on one thread, as
    decoding should run.
    """
    with one_thread():
        return _measure(target, drafter, prompts, max_drafted, sampling, calibration, repeats)


def _measure(target, drafter, prompts, max_drafted, sampling, calibration, repeats) -> CostModel:
    verify, ahead = np.zeros((2, repeats, max_drafted + 1))
    draft: list[float] = []
    rng = np.random.default_rng(0)
    for i in range(-2, repeats):  # two rounds to warm up
        prompt = prompts[int(rng.integers(len(prompts)))]
        options = {"calibration": calibration, "sampling": sampling, "max_drafted": max_drafted, "key": i + 2}
        session = Session(target, drafter, prompt, 1 << 20, **options)
        for count in rng.permutation(max_drafted + 1):
            ngrams = session.time_drafting(count)
            before = session.account.draft_seconds
            for _ in range(count):
                session.draft()
            drafted = session.account.draft_seconds - before
            start = perf_counter()
            session.verify(int(count))
            if i >= 0:
                verify[i, count], ahead[i, count] = perf_counter() - start, ngrams
                draft += [drafted / count] if count else []
    seconds = np.median(verify, axis=0)
    ratio = np.concatenate([[0.0, 1.0], np.maximum.accumulate(seconds / seconds[0])[1:]])
    token = float(np.median(draft))
    if isinstance(drafter, NGramDrafter):  # its rounds are compiled: what a call takes beside its tokens is the policy's
        extra = np.median(ahead, axis=0)
        token = drafter.token_seconds = max(float((extra - extra[0]).sum() / np.arange(max_drafted + 1).sum()), 0.0)
    return CostModel(ratio, float(token / seconds[0]), float(seconds[0]))
