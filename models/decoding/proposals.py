"""What a drafter proposes at every position of a text, by the drafter's fast path where it has one."""

import numpy as np
import torch
from numba import njit

from tdraft.kernels.ngram import draft as ngram_draft

from ..language_model import LanguageModel, sweep_logits
from . import observation as ob
from .drafters import Drafter, LMDrafter, NGramDrafter, greedy_features, read_target


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


def propose_along(
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
