"""Recording traces, and measuring the clock that they are replayed on."""

from time import perf_counter

import numpy as np
import torch
from numba import njit
from tqdm import trange

from tdraft.kernels.ngram import draft as ngram_draft

from ..backbones.base import State
from ..language_model import LanguageModel, sweep_logits
from ..threads import one_thread
from . import observation as ob
from .acceptance import Sweep
from .cost import CostModel
from .drafters import Drafter, LMDrafter, NGramDrafter, distribution_entropy, greedy_features, read_target
from .sampling import Sampling
from .session import Session, position_noise
from .trace import Trace
from .verification import choose


def draft_tree(n_tokens: int, depth: int) -> np.ndarray:
    """Parents (N + N * K,) of the tree that holds a text and, at each of its N positions, a draft of K tokens.

    Node n < N is the token *before* position n, so that the logits there judge position n; node N + k * N + n is the k-th (from
    0) drafted token at position n.
    """
    return np.concatenate([np.arange(-1, n_tokens - 1)] + [np.arange(n_tokens) + k * n_tokens for k in range(depth)])


@njit
def _propose_ngram(tables, before, tokens, depth, proposals, features):
    length, n_tokens = len(before), len(tokens)
    buffer = np.empty(length + n_tokens + depth, np.int64)
    buffer[:length] = before
    for n in range(n_tokens):
        if n > 0:
            buffer[length + n - 1] = tokens[n - 1]
        for k in range(depth):
            token, confidence, entropy, order, count = ngram_draft(tables, buffer, length + n + k)
            buffer[length + n + k] = token
            proposals[n, k] = token
            features[n, k, 0], features[n, k, 1] = confidence, entropy
            features[n, k, 2], features[n, k, 3] = order, np.log1p(count)


def propose(
    target: LanguageModel, drafter: Drafter, prompts: np.ndarray, tokens: np.ndarray, depth: int
) -> tuple[np.ndarray, np.ndarray]:
    """The drafter's greedy continuation at every position of texts: proposals (B, N, K) and features (B, N, K, 4).

    :param target: whose hidden states a drafter may read
    :param prompts: (B, P) int64
    :param tokens: (B, N) int64, what follows them; position n is drafted after the prompt and tokens[:, :n]
    :param depth: K
    """
    batch, n_tokens = tokens.shape
    proposals = np.zeros((batch, n_tokens, depth), np.int32)
    features = np.zeros((batch, n_tokens, depth, ob.N_FEATURES), np.float32)
    if isinstance(drafter, LMDrafter):
        _propose_lm(drafter.model, prompts, tokens, proposals, features)
        return proposals, features
    for b in range(batch):
        if isinstance(drafter, NGramDrafter):
            _propose_ngram(drafter.tables, prompts[b], tokens[b], depth, proposals[b], features[b])
        else:
            text = np.concatenate([prompts[b], tokens[b, :-1]])
            _propose_literally(target, drafter, text, proposals[b], features[b])
    return proposals, features


def _propose_lm(model: LanguageModel, prompts, tokens, proposals, features) -> None:
    """All positions of all contexts beside each other, one call for each depth."""
    n_tokens, depth = proposals.shape[1:]
    _, state = model(torch.from_numpy(prompts[:, :-1]))
    nodes = np.concatenate([prompts[:, -1:], tokens[:, :-1]], axis=1)  # what position n has before it
    for k in range(depth):
        logits, _ = model(torch.from_numpy(nodes), state, parents=draft_tree(n_tokens, k))
        token, features[:, :, k, 0], features[:, :, k, 1] = greedy_features(logits[:, -n_tokens:].double().numpy())
        proposals[:, :, k] = token
        nodes = np.concatenate([nodes, token], axis=1)


def _propose_literally(target: LanguageModel | None, drafter: Drafter, text: np.ndarray, proposals, features) -> None:
    """Draft as a session would, after each of the last N beginnings of a text.

    :param text: (T,) the last position's context
    :param proposals, features: (N, K) and (N, K, 4), overwritten; position n is drafted after text[: T - N + 1 + n]
    """
    n_tokens, depth = proposals.shape
    first = len(text) - n_tokens + 1
    hidden = None
    if drafter.taps is not None:
        assert target is not None
        whole = torch.from_numpy(text[None, :-1])
        hidden = read_target(target, whole, target.initial_state(1), drafter.taps)[2]
    for n in range(n_tokens):
        old, new = (first + n - 1, first + n) if n else (0, first)
        if hidden is not None:
            drafter.watch(hidden[0, max(old - 1, 0) : new - 1])
        if n:
            drafter.extend(text[old:new])
        else:
            drafter.begin(text[:first], n_tokens + depth)
        for k in range(depth):
            proposals[n, k], *features[n, k] = drafter.propose()


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
    :return: logits (N, V) at the positions, probability (N, K) of each proposal after those before it
    """
    nodes, parents, judge = draft_trie(text, proposals)
    out, _ = target(torch.from_numpy(nodes[None]), state, parents=parents)
    logits = out[0].double().numpy()
    return logits[: len(text)], sampling(logits)[judge, proposals]


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
        parts = [slice(i, i + 64) for i in range(0, contexts, 64)]
        tokens = np.concatenate([plain_text(target, prompts[p], n_tokens, sampling, keys[p]) for p in parts])
    tokens = tokens.astype(np.int64)
    proposals = np.zeros((contexts, n_tokens, depth), np.int32)
    features = np.zeros((contexts, n_tokens, depth, ob.N_FEATURES), np.float32)
    target_prob = np.zeros((contexts, n_tokens, depth))
    entropy, margin = np.zeros((contexts, n_tokens), np.float32), np.zeros((contexts, n_tokens), np.float32)
    with torch.inference_mode():
        for i in trange(0, contexts, batch, desc="record", disable=not progress, leave=False):
            rows = slice(i, min(i + batch, contexts))
            proposals[rows], features[rows] = propose(target, drafter, prompts[rows], tokens[rows], depth)
            text = np.concatenate([prompts[rows, -1:], tokens[rows, :-1]], axis=1)
            before, state = target(torch.from_numpy(prompts[rows, :-1]))
            logits = np.empty((len(text), n_tokens, target.config.vocab_size))
            for row, c in enumerate(range(rows.start, rows.stop)):
                logits[row], target_prob[c] = _judge(target, state.select([row]), text[row], proposals[c], sampling)
            entropy[rows] = distribution_entropy(np.concatenate([before[:, -1:].double().numpy(), logits[:, :-1]], axis=1))
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
        margin,
        {
            "drafter": drafter.fingerprint,
            "target": target.fingerprint,
            "temperature": sampling.temperature,
            "top_k": sampling.top_k,
            "top_p": sampling.top_p,
            "prompt_length": prompts.shape[1],
            **(meta or {}),
        },
    )


def text_logits(target: LanguageModel, tokens: np.ndarray) -> np.ndarray:
    """(N, V) float16 logits of the token after each of tokens (N,), for `sweep`: read once, judged for every drafter."""
    out = np.empty((len(tokens), target.config.vocab_size), np.float16)
    for begin, logits in sweep_logits(target, tokens, overlap=0.25):
        out[begin : begin + len(logits)] = logits.half().numpy()
    return out


def sweep(
    logits: np.ndarray,
    tokens: np.ndarray,
    drafter: Drafter,
    sampling: Sampling,
    *,
    target: LanguageModel | None = None,
    window: int = 256,
) -> Sweep:
    """What the target with these `text_logits` says of a drafter's proposal at every position of a text.

    :param target: needed by a drafter that reads its hidden states
    :param window: tokens of the text that a drafter without a fast path sees at most, and a quarter of them at least: it drafts
        literally at every position, and what looks back should look as far as in a session
    """
    with torch.inference_mode():
        proposals, features = _propose_along(drafter, tokens, target, window)
    probability, entropy = np.empty(len(tokens)), np.empty(len(tokens), np.float32)
    for i in range(0, len(tokens), 1 << 15):
        rows = slice(i, i + (1 << 15))
        exact = logits[rows].astype(np.float64)
        entropy[rows] = distribution_entropy(exact)
        probability[rows] = np.take_along_axis(sampling(exact), proposals[rows, None].astype(np.int64), -1)[:, 0]
    return Sweep(tokens, proposals, features, probability, entropy)


def _propose_along(
    drafter: Drafter, tokens: np.ndarray, target: LanguageModel | None, window: int
) -> tuple[np.ndarray, np.ndarray]:
    """The drafter's greedy next token after each of tokens (N,): proposals (N,) and features (N, 4)."""
    proposals, features = np.zeros((len(tokens), 1), np.int32), np.zeros((len(tokens), 1, ob.N_FEATURES), np.float32)
    if isinstance(drafter, NGramDrafter):
        _propose_ngram(drafter.tables, tokens[:1], np.roll(tokens, -1), 1, proposals, features)
    elif isinstance(drafter, LMDrafter):
        for begin, logits in sweep_logits(drafter.model, tokens, overlap=0.25):
            rows = slice(begin, begin + len(logits))
            proposals[rows, 0], features[rows, 0, 0], features[rows, 0, 1] = greedy_features(logits.double().numpy())
    else:
        if drafter.taps is not None and target is None:
            raise TypeError(f"{type(drafter).__name__} reads the target's hidden states: sweep with target=")
        done = 1  # a text of one token, where no session begins, is left at 0
        while done < len(tokens):
            start = max(done - window // 4, 0)
            end = min(start + window, len(tokens))
            _propose_literally(target, drafter, tokens[start:end], proposals[done:end], features[done:end])
            done = end
    return proposals[:, 0], features[:, 0]


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
