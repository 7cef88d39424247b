"""The predictor of acceptance: a hashed sparse logistic regression, fitted to what a target says of drafted tokens.

    w = -alpha z / (beta + root of the summed squared gradients + alpha lambda_2)

FTRL-proximal without L1 (McMahan et al. 2013, "Ad click prediction", algorithm 1), one sample at a time. Samples come from a
trace, whose texts are the target's own, and from a `Sweep` over text that is simply there: one reading of the target over it
judges far more drafts than a trace of the same cost, so the weights begin with those and end with the trace's.
"""

from typing import NamedTuple

import numpy as np
from numba import njit

from .observation import HASH_BITS, N_ACTIVE, active_features, predict_acceptance
from .trace import Trace

FOLDS = 4
MAX_EPOCHS = 12
STEP, SMOOTHING, RIDGE = 0.1, 1.0, 2.0  # alpha, beta and lambda_2 of FTRL-proximal
LEAST_WEIGHT = 0.02  # of a token that the text hardly ever reaches


class Sweep(NamedTuple):
    """What a target says of a drafter's next token at every position of a text of N tokens (`record.sweep` makes one).

    Where a drafter goes on as the text does, its next proposals after the text and after its own drafts are the same; so the
    rounds of every length that the text would accept are here too.
    """

    tokens: np.ndarray  # (N,) int64
    proposals: np.ndarray  # (N,) int32 after tokens[: i + 1]
    features: np.ndarray  # (N, 4) float32 of each proposal, as in a trace
    target_prob: np.ndarray  # (N,) float64 of each proposal
    target_entropy: np.ndarray  # (N,) float32 of the target after tokens[: i + 1], nats


def fit_acceptance(trace: Trace, sweep: Sweep | None, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Weights of the predictor, and its predictions for the trace's proposals by weights that have not seen their contexts.

    Every proposal of the trace is a sample, its label the target's probability, its weight the true survival of the tokens before
    it. The number of epochs is the one that is best on held-out contexts.

    :param trace: of at least two contexts
    :param sweep: where the weights begin, None for zero
    :return: (2**HASH_BITS,) float32, and (C * N * K,) float64
    """
    contexts, positions, depth = trace.shape
    active = _active(trace.prompts, trace.tokens, trace.proposals, trace.features, trace.target_entropy)
    labels = np.minimum(trace.target_prob, 1.0).ravel()
    weights = sample_weights(trace).ravel()
    learner = _new_learner()
    if sweep is not None:
        rounds, probability = _sweep_samples(*sweep, depth)
        _epoch(rounds, probability, np.ones(len(probability)), rng.permutation(len(probability)), learner)
    owner = np.repeat(rng.permutation(contexts) % min(FOLDS, contexts), positions * depth)
    epochs, scores = _cross_fit(active, labels, weights, owner, learner, rng)
    for _ in range(epochs):
        _epoch(active, labels, weights, rng.permutation(len(labels)), learner)
    slope, offset = _platt(scores, labels, weights)
    fitted = learner[:, 0] * slope
    fitted[active[0, 0]] += offset  # the bias, active in every sample
    return fitted.astype(np.float32), _sigmoid(slope * scores + offset)


def sample_weights(trace: Trace) -> np.ndarray:
    """True probability that a text reaches each proposal, at least LEAST_WEIGHT: (C, N, K) float64."""
    survival = np.cumprod(np.minimum(trace.target_prob, 1.0), axis=2)
    before = np.concatenate([np.ones_like(survival[:, :, :1]), survival[:, :, :-1]], axis=2)
    return np.maximum(before, LEAST_WEIGHT)


def log_loss(predicted: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> float:
    """Weighted mean of -y log p - (1 - y) log(1 - p), nats a token; any one shape."""
    p = np.clip(predicted, 1e-6, 1.0 - 1e-6)
    return float(-(weights * (labels * np.log(p) + (1.0 - labels) * np.log1p(-p))).sum() / weights.sum())


@njit
def _active(prompts, tokens, proposals, features, target_entropy):
    """Active features of every proposal of a trace in order, (C * N * K, N_ACTIVE) int32."""
    contexts, positions, depth = proposals.shape
    length = prompts.shape[1]
    out = np.empty((contexts * positions * depth, N_ACTIVE), np.int32)
    active = np.empty(N_ACTIVE, np.int64)
    text = np.empty(length + positions + depth, np.int64)
    row = 0
    for c in range(contexts):
        text[:length] = prompts[c]
        for n in range(positions):
            if n > 0:
                text[length + n - 1] = tokens[c, n - 1]
            for k in range(depth):
                f, place = features[c, n, k], length + n + k
                text[place] = proposals[c, n, k]
                active_features(f[0], f[1], f[2], f[3], k + 1, target_entropy[c, n], text, place, active)
                out[row] = active
                row += 1
    return out


@njit
def _sweep_samples(tokens, proposals, features, target_prob, target_entropy, depth):
    """Active features (S, N_ACTIVE) int32 and labels (S,) of the drafts of a round begun at every position, up to the first that
    the text does not go on with. A round begun after tokens[:i] follows a verification that saw the target after tokens[: i - 1].
    """
    last = len(tokens) - 1
    samples = 0
    for i in range(2, last):
        for k in range(min(depth, last - i)):
            samples += 1
            if proposals[i + k - 1] != tokens[i + k]:
                break
    out, labels = np.empty((samples, N_ACTIVE), np.int32), np.empty(samples)
    text, active = tokens.copy(), np.empty(N_ACTIVE, np.int64)
    row = 0
    for i in range(2, last):
        for k in range(min(depth, last - i)):
            place = i + k
            f, token = features[place - 1], proposals[place - 1]
            text[place] = token
            active_features(f[0], f[1], f[2], f[3], k + 1, target_entropy[i - 2], text, place, active)
            text[place] = tokens[place]
            out[row], labels[row] = active, min(target_prob[place - 1], 1.0)
            row += 1
            if token != tokens[place]:
                break
    return out, labels


@njit
def _predict(active, weights):
    out = np.empty(len(active))
    for i in range(len(active)):
        out[i] = predict_acceptance(weights, active[i])
    return out


def predict(weights: np.ndarray, trace: Trace) -> np.ndarray:
    """Predicted acceptance of every proposal of a trace, (C, N, K) float64."""
    active = _active(trace.prompts, trace.tokens, trace.proposals, trace.features, trace.target_entropy)
    return _predict(active, weights).reshape(trace.shape)


def _new_learner():
    """State of FTRL-proximal, all zero: columns w, z and the root of the summed squared gradients, side by side for the cache."""
    return np.zeros((1 << HASH_BITS, 4), np.float32)


@njit(error_model="numpy")
def _epoch(active, labels, weights, order, learner):
    """One pass of FTRL-proximal without L1: w = -alpha z / (beta + root + alpha lambda_2)."""
    for i in order:
        score = 0.0
        for f in active[i]:
            score += learner[f, 0]
        gradient = (1.0 / (1.0 + np.exp(-score)) - labels[i]) * weights[i]
        square = gradient * gradient
        for f in active[i]:
            w, z, root = learner[f, 0], learner[f, 1], learner[f, 2]
            new_root = np.sqrt(root * root + square)
            z += gradient - (new_root - root) * (1.0 / STEP) * w
            learner[f, 0] = -STEP * z / (SMOOTHING + new_root + STEP * RIDGE)
            learner[f, 1], learner[f, 2] = z, new_root


@njit
def _score_rows(active, rows, learner, out):
    for i in rows:
        score = 0.0
        for f in active[i]:
            score += learner[f, 0]
        out[i] = score


def _cross_fit(active, labels, weights, owner, start, rng):
    """Best number of epochs from `start` by held-out log loss, and held-out scores of all samples after that many."""
    folds = range(int(owner.max()) + 1)
    inside = [np.flatnonzero(owner != fold) for fold in folds]
    outside = [np.flatnonzero(owner == fold) for fold in folds]
    learners = [start.copy() for _ in folds]
    best, best_loss, best_scores = 1, np.inf, np.zeros(len(labels))
    scores = np.zeros(len(labels))
    for epoch in range(1, MAX_EPOCHS + 1):
        for fold in folds:
            _epoch(active, labels, weights, rng.permutation(inside[fold]), learners[fold])
            _score_rows(active, outside[fold], learners[fold], scores)
        loss = log_loss(_sigmoid(scores), labels, weights)
        if loss >= best_loss - 1e-5:
            break
        best, best_loss, best_scores = epoch, loss, scores.copy()
    return best, best_scores


def _sigmoid(score):
    return np.clip(1.0 / (1.0 + np.exp(-score)), 0.001, 0.999)


def _platt(scores, labels, weights):
    """(slope, offset) of the logistic regression of the labels on held-out scores (Platt 1999), by Newton's method.

    The slope takes back what over-fitting added to the scores' spread; a weak prior holds it at 1.
    """
    x = np.stack([scores, np.ones_like(scores)])
    theta = np.array([1.0, 0.0])
    for _ in range(20):
        p = 1.0 / (1.0 + np.exp(-(theta @ x)))
        gradient = x @ (weights * (p - labels)) + (theta - [1.0, 0.0])
        hessian = (x * (weights * p * (1.0 - p))) @ x.T + np.eye(2)
        step = np.linalg.solve(hessian, gradient)
        theta = theta - step
        if np.abs(step).max() < 1e-9:
            break
    return max(float(theta[0]), 0.05), float(theta[1])
