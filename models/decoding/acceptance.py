"""The predictor of acceptance: a hashed sparse logistic regression, fitted to what a target says of drafted tokens.

    w = -alpha z / (beta + root of the summed squared gradients + alpha lambda_2)

FTRL-proximal without L1 (McMahan et al. 2013, "Ad click prediction", algorithm 1), one sample at a time. Samples come from a
trace, whose texts are the target's own, and from a `Sweep` over text that is simply there: one reading of the target over it
judges far more drafts than a trace of the same cost, so the weights begin with those and end with the trace's. A probe of the
target's hidden states is then fitted to what they leave (`probe_training`).
"""

from typing import NamedTuple

import numpy as np
from numba import njit

from .observation import HASH_BITS, N_ACTIVE, Calibration, active_features, hashed_score, predict_acceptance
from .probe import Probe, Samples, no_probe, project
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
    hidden: np.ndarray  # (N, D) float16, the target's last hidden state after tokens[: i + 1]


def fit_acceptance(trace: Trace, sweep: Sweep | None, rng: np.random.Generator) -> tuple[np.ndarray, Probe, np.ndarray]:
    """The predictor, and its predictions for the trace's proposals by weights that have not seen their contexts (the probe, which
    is small, has seen most).

    Every proposal of the trace is a sample, its label the target's probability, its weight the true survival of the tokens before
    it. The number of epochs is the one that is best on held-out contexts.

    :param trace: of at least two contexts
    :param sweep: where the weights begin, None for zero
    :return: weights (2**HASH_BITS,) float32, the probe, predictions (C, N, K)
    """
    contexts, positions, depth = trace.shape
    active = _active(trace.prompts, trace.tokens, trace.proposals, trace.features, trace.target_entropy)
    labels = np.minimum(trace.target_prob, 1.0).ravel()
    weights = sample_weights(trace).ravel()
    learner = _new_learner()
    swept = None if sweep is None else _learn_sweep(sweep, depth, learner, rng)
    owner = np.repeat(rng.permutation(contexts) % min(FOLDS, contexts), positions * depth)
    epochs, scores = _cross_fit(active, labels, weights, owner, learner, rng)
    for _ in range(epochs):
        _epoch(active, labels, weights, rng.permutation(len(labels)), learner, np.empty(len(labels)))
    slope, offset = _platt(scores, labels, weights)
    fitted = learner[:, 0] * slope
    fitted[active[0, 0]] += offset  # the bias, active in every sample
    scores, probe = (slope * scores + offset).reshape(trace.shape), no_probe()
    if trace.hidden.shape[2]:
        from .probe_training import fit_probe  # brings torch, which predictions don't need

        probe = fit_probe(_samples(trace, scores, weights.reshape(trace.shape)), swept, trace.meta["vocab_size"], rng)
    return fitted.astype(np.float32), probe, _accept(probe, trace.hidden, _before(trace), trace.proposals, scores)


def _samples(trace: Trace, scores: np.ndarray, weights: np.ndarray) -> Samples:
    """Of a trace: every row a position, its K proposals in turn."""
    contexts, positions, depth = trace.shape
    previous = np.concatenate([_before(trace)[:, :, None], trace.proposals[:, :, :-1]], axis=2)
    depths = np.broadcast_to(np.arange(1, depth + 1), trace.shape)
    state = np.arange(contexts * positions).reshape(contexts, positions)
    label = np.minimum(trace.target_prob, 1.0)
    return Samples(trace.hidden.reshape(len(state.ravel()), -1), state, trace.proposals, previous, depths, scores, label, weights)


def _before(trace: Trace) -> np.ndarray:
    """(C, N) the token before each position."""
    return np.concatenate([trace.prompts[:, -1:], trace.tokens[:, :-1]], axis=1)


def _learn_sweep(sweep: Sweep, depth: int, learner: np.ndarray, rng: np.random.Generator) -> Samples:
    """One pass of the learner over a sweep's rounds; the samples' scores are those before it learned from them."""
    tokens, proposals, features, target_prob, target_entropy, hidden = sweep
    active, label, round_, k = _sweep_samples(tokens, proposals, features, target_prob, target_entropy, depth)
    weight, score = np.ones(len(label)), np.empty(len(label))
    order = rng.permutation(len(label))
    _epoch(active, label, weight, order, learner, score)
    place = round_ + k
    columns = (proposals[place - 1], tokens[place - 1], k + 1, score, label, weight)
    return Samples(hidden, round_ - 2, *(column[:, None] for column in columns))


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
                active_features(f[0], f[2], k + 1, target_entropy[c, n], text, place, active)
                out[row] = active
                row += 1
    return out


@njit
def _sweep_samples(tokens, proposals, features, target_prob, target_entropy, depth):
    """Active features (S, N_ACTIVE) int32, labels, i and k (S,) of the k-th draft (from 0) of a round begun after tokens[:i], for
    all i, up to the first that the text does not go on with. The verification before it saw the target after tokens[: i - 1].
    """
    last = len(tokens) - 1
    samples = 0
    for i in range(2, last):
        for k in range(min(depth, last - i)):
            samples += 1
            if proposals[i + k - 1] != tokens[i + k]:
                break
    out, labels = np.empty((samples, N_ACTIVE), np.int32), np.empty(samples)
    begun, drafted = np.empty(samples, np.int64), np.empty(samples, np.int64)
    text, active = tokens.copy(), np.empty(N_ACTIVE, np.int64)
    row = 0
    for i in range(2, last):
        for k in range(min(depth, last - i)):
            place = i + k
            f, token = features[place - 1], proposals[place - 1]
            text[place] = token
            active_features(f[0], f[2], k + 1, target_entropy[i - 2], text, place, active)
            text[place] = tokens[place]
            out[row], labels[row] = active, min(target_prob[place - 1], 1.0)
            begun[row], drafted[row] = i, k
            row += 1
            if token != tokens[place]:
                break
    return out, labels, begun, drafted


@njit
def _accept(probe, hidden, before, proposals, scores):
    """Predicted acceptance (C, N, K) of proposals with these hashed scores."""
    contexts, positions, depth = proposals.shape
    out, projected = np.empty(proposals.shape), np.empty(len(probe.out), np.float32)
    for c in range(contexts):
        for n in range(positions):
            project(probe, hidden[c, n, : len(probe.state)], projected)
            previous = before[c, n]
            for k in range(depth):
                token = proposals[c, n, k]
                out[c, n, k] = predict_acceptance(probe, projected, token, previous, k + 1, scores[c, n, k])
                previous = token
    return out


def predict(calibration: Calibration, trace: Trace) -> np.ndarray:
    """Predicted acceptance of every proposal of a trace, (C, N, K) float64.

    :raises ValueError: a trace without the hidden states that the calibration reads
    """
    width = len(calibration.probe.state)
    if width not in (0, trace.hidden.shape[2]):
        raise ValueError(
            f"the calibration reads hidden states of {width}, the trace holds {trace.hidden.shape[2]}: calibrate with its target"
        )
    active = _active(trace.prompts, trace.tokens, trace.proposals, trace.features, trace.target_entropy)
    scores = np.empty(len(active))
    _score_rows(active, np.arange(len(active)), calibration.weights, scores)
    return _accept(calibration.probe, trace.hidden, _before(trace), trace.proposals, scores.reshape(trace.shape))


def _new_learner():
    """State of FTRL-proximal, all zero: columns w, z and the root of the summed squared gradients, side by side for the cache."""
    return np.zeros((1 << HASH_BITS, 4), np.float32)


@njit(error_model="numpy")
def _epoch(active, labels, weights, order, learner, scores):
    """One pass of FTRL-proximal without L1: w = -alpha z / (beta + root + alpha lambda_2); `scores` are those before learning."""
    for i in order:
        score = 0.0
        for f in active[i]:
            score += learner[f, 0]
        scores[i] = score
        gradient = (1.0 / (1.0 + np.exp(-score)) - labels[i]) * weights[i]
        square = gradient * gradient
        for f in active[i]:
            w, z, root = learner[f, 0], learner[f, 1], learner[f, 2]
            new_root = np.sqrt(root * root + square)
            z += gradient - (new_root - root) * (1.0 / STEP) * w
            learner[f, 0] = -STEP * z / (SMOOTHING + new_root + STEP * RIDGE)
            learner[f, 1], learner[f, 2] = z, new_root


@njit
def _score_rows(active, rows, weights, out):
    for i in rows:
        out[i] = hashed_score(weights, active[i])


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
            _epoch(active, labels, weights, rng.permutation(inside[fold]), learners[fold], np.empty(len(labels)))
            _score_rows(active, outside[fold], learners[fold][:, 0], scores)
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
