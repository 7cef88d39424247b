"""Fitting what a decoding policy is told: predicted acceptances (`acceptance.py`), their bins and the chain of hidden difficulty.

The bins and the chain come from predictions for contexts that the predicting weights have not seen (cross-fitting). The chain has
two hidden states that change once a round; it is fitted by Baum-Welch (Rabiner 1989).
"""

from pathlib import Path
from typing import Any

import numpy as np
from numba import njit

from ..files import DAMAGED, atomic_write
from .acceptance import Sweep, fit_acceptance, predict, sample_weights
from .observation import HASH_BITS, Calibration, acceptance_bin
from .probe import Probe, no_probe
from .probe import shapes_fit as probe_fits
from .trace import Trace

SCHEMA = 2
SEEN = 4  # drafted tokens of a round that the chain is fitted to
STRIDES = (1, 2, 4, 8)  # static lengths whose rounds the chain is fitted to
EM_ITERATIONS, EM_TOLERANCE = 300, 1e-7


class CalibrationError(ValueError):
    """A file that is no calibration of this version, or data that none can be fitted to."""


def fit_calibration(trace: Trace, *, sweep: Sweep | None = None, bins: int = 8, seed: int = 0) -> Calibration:
    """Fit a calibration to a training trace.

    :param trace: of at least two contexts, none of which should be used to compare policies later
    :param sweep: more text for the predictor to begin with, of the same drafter, target and temperature
    :param bins: B, bins of predicted acceptance p that share the outcomes' variance p (1 - p) equally (quantiles of the tokens
        would crowd above 0.98 where most tokens are sure); fewer where the predictions take fewer values
    :param seed: of the folds and of the order of samples; the same seed gives the same bits
    :raises CalibrationError: if the trace is too small or holds probabilities outside [0, 1]
    """
    contexts, positions, depth = trace.shape
    if bins < 2:
        raise CalibrationError(f"bins must be at least 2, got {bins}")
    if contexts < 2 or positions < 1 or depth < 1:
        raise CalibrationError(f"a calibration needs at least 2 contexts with proposals, got a trace of shape {trace.shape}")
    if not (np.all(trace.target_prob >= 0) and np.all(trace.target_prob <= 1 + 1e-6)):
        raise CalibrationError("target_prob of the trace must lie in [0, 1]: record the trace again")
    labels = np.minimum(trace.target_prob, 1.0).ravel()
    weights = sample_weights(trace).ravel()
    fitted, probe, predicted = fit_acceptance(trace, sweep, np.random.default_rng(np.random.SeedSequence(seed)))
    predicted = predicted.ravel()
    edges = _weighted_quantiles(predicted, weights * predicted * (1.0 - predicted), np.arange(1, bins) / bins)
    binned = _bin_all(edges, predicted).reshape(trace.shape)
    acceptance = np.bincount(binned.ravel(), weights * labels, len(edges) + 1)
    acceptance /= np.maximum(np.bincount(binned.ravel(), weights, len(edges) + 1), 1e-12)
    initial, transition, emission = fit_chain(*round_counts(binned, trace.accepted, len(edges) + 1), acceptance)
    return Calibration(fitted, probe, edges, initial, transition, emission)


@njit
def _bin_all(edges, predicted):
    out = np.empty(len(predicted), np.int64)
    for i in range(len(predicted)):
        out[i] = acceptance_bin(edges, predicted[i])
    return out


def _weighted_quantiles(values, weights, levels):
    """Distinct weighted quantiles above the smallest value, so that no bin is empty."""
    order = np.argsort(values, kind="stable")
    mass = np.cumsum(weights[order])
    quantiles = np.unique(values[order][np.minimum(np.searchsorted(mass, levels * mass[-1]), len(values) - 1)])
    return quantiles[quantiles > values[order[0]]]


# The chain.


@njit
def _collect_rounds(binned, accepted, n_bins, strides, seen):
    contexts, positions, depth = binned.shape
    counts = np.zeros((contexts * len(strides) * positions, n_bins))
    first = np.zeros(len(counts), np.bool_)
    rounds = 0
    for stride in strides:
        for c in range(contexts):
            n = 0
            while n < positions:
                first[rounds] = n == 0
                for k in range(min(seen, depth)):
                    counts[rounds, binned[c, n, k]] += 1.0
                n += min(accepted[c, n], stride) + 1
                rounds += 1
    return counts[:rounds], first[:rounds]


def round_counts(binned: np.ndarray, accepted: np.ndarray, n_bins: int) -> tuple[np.ndarray, np.ndarray]:
    """The rounds of a text under several static lengths.

    :param binned: (C, N, K) bin of each proposal
    :param accepted: (C, N) how many leading proposals the target accepts
    :return: (R, B) how many of a round's first SEEN proposals fell into each bin; (R,) whether the round is its text's first
    """
    strides = np.array([s for s in STRIDES if s <= binned.shape[2]])
    return _collect_rounds(binned, accepted, n_bins, strides, SEEN)


@njit
def _expect(counts, first, initial, transition, emission, n_initial, n_transition, n_emission):
    """One E step: adds expected counts of first states, transitions and emissions; returns the log likelihood."""
    rounds, n_bins = counts.shape
    likelihood = np.ones((rounds, 2))
    forward = np.empty((rounds, 2))
    scale = np.empty(rounds)
    total = 0.0
    for r in range(rounds):
        for b in range(n_bins):
            if counts[r, b] > 0.0:
                likelihood[r, 0] *= emission[0, b] ** counts[r, b]
                likelihood[r, 1] *= emission[1, b] ** counts[r, b]
        p = initial[0] if first[r] else forward[r - 1, 0] * transition[0, 0] + forward[r - 1, 1] * transition[1, 0]
        forward[r, 0], forward[r, 1] = p * likelihood[r, 0], (1.0 - p) * likelihood[r, 1]
        scale[r] = forward[r, 0] + forward[r, 1]
        forward[r] /= scale[r]
        total += np.log(scale[r])
    backward = np.ones(2)
    for r in range(rounds - 1, -1, -1):
        posterior = forward[r] * backward
        posterior /= posterior.sum()
        for z in range(2):
            for b in range(n_bins):
                n_emission[z, b] += posterior[z] * counts[r, b]
        if first[r]:
            n_initial += posterior
            backward[:] = 1.0
        else:
            message = likelihood[r] * backward / scale[r]
            for i in range(2):
                for j in range(2):
                    n_transition[i, j] += forward[r - 1, i] * transition[i, j] * message[j]
            backward[0] = transition[0, 0] * message[0] + transition[0, 1] * message[1]
            backward[1] = transition[1, 0] * message[0] + transition[1, 1] * message[1]
    return total


def fit_chain(counts: np.ndarray, first: np.ndarray, acceptance: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Baum-Welch for a two-state chain whose rounds emit bins independently; half a pseudo-count everywhere keeps it proper.

    :param counts, first: from `round_counts`
    :param acceptance: (B,) mean acceptance of each bin; state 0 becomes the one with the higher mean
    :return: initial (2,), transition (2, 2), emission (2, B)
    """
    pooled = counts.sum(0) + 0.5
    tilt = np.exp(acceptance - (pooled @ acceptance) / pooled.sum())
    emission = np.stack([pooled * tilt, pooled / tilt])
    emission /= emission.sum(1, keepdims=True)
    initial, transition = np.full(2, 0.5), np.array([[0.8, 0.2], [0.2, 0.8]])
    before = -np.inf
    for _ in range(EM_ITERATIONS):
        expected = np.full(2, 0.5), np.full((2, 2), 0.5), np.full(emission.shape, 0.5)
        now = _expect(counts, first, initial, transition, emission, *expected)
        initial, transition, emission = (n / n.sum(-1, keepdims=True) for n in expected)
        if now - before < EM_TOLERANCE * len(counts):
            break
        before = now
    order = np.argsort(-(emission @ acceptance), kind="stable")
    return initial[order], transition[np.ix_(order, order)], emission[order]


# The simulator's parameters, as a dict of arrays that `envs.decoding.sources.Difficulty(**...)` takes.


def difficulty(trace: Trace, calibration: Calibration) -> dict[str, Any]:
    """The simulator that resembles a trace: the fitted chain, with the mean acceptance and features of each bin.

    :raises CalibrationError: if a bin holds none of the trace's proposals
    """
    weights = sample_weights(trace).ravel()
    n_bins = len(calibration.edges) + 1
    binned = _bin_all(calibration.edges, predict(calibration, trace).ravel())
    mass = np.bincount(binned, weights, n_bins)
    if np.any(mass == 0.0):
        empty = np.flatnonzero(mass == 0.0).tolist()
        raise CalibrationError(
            f"no proposal of the trace falls into bins {empty} of {n_bins}: use the trace of the fit, or fewer bins"
        )
    mean = lambda values: np.bincount(binned, weights * values.ravel(), n_bins) / mass  # noqa: E731
    return {
        "initial": calibration.initial.copy(),
        "transition": calibration.transition.copy(),
        "emission": calibration.emission.copy(),
        "acceptance": np.clip(mean(trace.target_prob), 0.001, 0.999),
        "features": np.stack([mean(trace.features[..., i]) for i in range(trace.features.shape[-1])], axis=1),
        "target_entropy": float(trace.target_entropy.mean()),
    }


def default_difficulty() -> dict[str, Any]:
    """A text that is easy for about ten rounds, then hard for about seven; six kinds of drafted token."""
    acceptance = np.array([0.04, 0.2, 0.45, 0.7, 0.88, 0.98])
    confidence = np.array([0.2, 0.3, 0.45, 0.65, 0.82, 0.95])
    order, count = np.array([1.0, 2.0, 3.0, 4.0, 5.0, 5.0]), np.array([60.0, 30.0, 20.0, 15.0, 12.0, 10.0])
    return {
        "initial": np.array([0.6, 0.4]),
        "transition": np.array([[0.9, 0.1], [0.15, 0.85]]),
        "emission": np.array([[0.02, 0.03, 0.07, 0.15, 0.28, 0.45], [0.38, 0.24, 0.17, 0.11, 0.06, 0.04]]),
        "acceptance": acceptance,
        "features": np.stack([confidence, 2.5 * (1.0 - confidence), order, np.log1p(count)], axis=1),
        "target_entropy": 1.0,
    }


def simulator_calibration(difficulty: Any) -> Calibration:
    """The calibration under which the observation's belief is the simulator's exact posterior.

    :param difficulty: `envs.decoding.sources.Difficulty`, or anything with its fields
    :raises CalibrationError: if two bins have the same acceptance, which would hide from the observation which of them it was
    """
    order = np.argsort(difficulty.acceptance, kind="stable")
    acceptance = np.asarray(difficulty.acceptance, np.float64)[order]
    if np.any(np.diff(acceptance) < 1e-9):
        raise CalibrationError(f"the simulator's bins need distinct acceptances, got {acceptance.tolist()}: merge equal bins")
    return Calibration(
        np.zeros(1 << HASH_BITS, np.float32),
        no_probe(),
        (acceptance[1:] + acceptance[:-1]) / 2.0,
        np.array(difficulty.initial, np.float64),
        np.array(difficulty.transition, np.float64),
        np.ascontiguousarray(np.asarray(difficulty.emission, np.float64)[:, order]),
    )


# Files.


def save_calibration(path: str | Path, calibration: Calibration) -> None:
    """Write one npz file, through a temporary one."""
    with atomic_write(path) as temporary, open(temporary, "wb") as file:
        arrays = calibration._asdict() | {f"probe_{name}": array for name, array in calibration.probe._asdict().items()}
        del arrays["probe"]
        np.savez_compressed(file, schema=np.array(SCHEMA), **arrays)


def shapes_fit(calibration: Calibration) -> bool:
    """Whether compiled code, which checks no bounds, may read these arrays."""
    bins = len(calibration.edges) + 1 if calibration.edges.ndim == 1 else -1
    shapes = [array.shape for array in calibration if isinstance(array, np.ndarray)]
    return probe_fits(calibration.probe) and shapes == [(1 << HASH_BITS,), (bins - 1,), (2,), (2, 2), (2, bins)]


def load_calibration(path: str | Path) -> Calibration:
    """Read a calibration.

    :raises CalibrationError: if the file is truncated, foreign or of another schema
    """
    try:
        with np.load(path, allow_pickle=False) as data:
            schema = int(data["schema"])
            probe = Probe(*(data[f"probe_{name}"] for name in Probe._fields))
            others = {name: data[name] for name in Calibration._fields if name != "probe"}
            arrays = Calibration(probe=probe, **others)
    except FileNotFoundError:
        raise
    except DAMAGED as error:
        raise CalibrationError(
            f"{path} is no complete tdraft calibration ({type(error).__name__}: {error}); fit it again"
        ) from error
    if schema != SCHEMA or not shapes_fit(arrays):
        shapes = [array.shape for array in others.values()]
        raise CalibrationError(
            f"{path}: calibration of schema {schema} and shapes {shapes}, expected schema {SCHEMA}; fit it again"
        )
    return arrays
