"""Calibration: predictions against known acceptances, the chain against a known one, files, and the simulator's exact belief."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tdraft.envs.decoding.sources import Difficulty, trace_source
from tdraft.models.decoding import observation as ob
from tdraft.models.decoding.acceptance import Sweep, log_loss, predict, sample_weights
from tdraft.models.decoding.calibration import (
    CalibrationError,
    default_difficulty,
    difficulty,
    fit_calibration,
    fit_chain,
    load_calibration,
    save_calibration,
    simulator_calibration,
)
from tdraft.models.decoding.record import count_accepted
from tdraft.models.decoding.trace import Trace

LETTERS = 20


def token_trace(contexts=60, positions=40, depth=6, seed=0, hard=False) -> Trace:
    """A trace in which the probability of a proposal depends on its token alone; `hard` records outcomes in its place."""
    rng = np.random.default_rng(seed)
    known = np.random.default_rng(99).uniform(0.05, 0.95, LETTERS)
    proposals = rng.integers(LETTERS, size=(contexts, positions, depth)).astype(np.int32)
    probability = known[proposals]
    if hard:
        probability = (rng.random(proposals.shape) < probability).astype(float)
    tokens = rng.integers(LETTERS, size=(contexts, positions)).astype(np.int32)
    return Trace(
        tokens,
        rng.integers(LETTERS, size=(contexts, 2)).astype(np.int32),
        proposals,
        np.full((*proposals.shape, 4), 0.5, np.float32),
        probability,
        count_accepted(proposals, tokens),
        np.ones((contexts, positions), np.float32),
        np.zeros((contexts, positions, 0), np.float32),
        np.zeros((contexts, positions), np.float32),
    )


@pytest.fixture(scope="module")
def fitted():
    return fit_calibration(token_trace())


def test_predictions_reach_the_entropy(fitted):
    test = token_trace(seed=1)
    weights = sample_weights(test)
    loss = log_loss(predict(fitted, test), test.target_prob, weights)
    entropy = log_loss(test.target_prob, test.target_prob, weights)
    base = np.full_like(test.target_prob, np.average(test.target_prob, weights=weights))
    assert entropy < loss < entropy + 0.01
    assert loss < log_loss(base, test.target_prob, weights) - 0.05


def test_predictions_are_calibrated_in_every_bin(fitted):
    test = token_trace(seed=1)
    predicted = predict(fitted, test)
    bins = np.searchsorted(fitted.edges, predicted, side="right")
    assert len(np.unique(bins)) == len(fitted.edges) + 1
    for b in range(len(fitted.edges) + 1):
        assert predicted[bins == b].mean() == pytest.approx(test.target_prob[bins == b].mean(), abs=0.03)


def test_outcomes_do_as_labels_and_rare_features_do_not_overfit():
    calibration = fit_calibration(token_trace(hard=True, seed=2))
    test = token_trace(seed=1)
    weights = sample_weights(test)
    excess = log_loss(predict(calibration, test), test.target_prob, weights)
    assert excess < log_loss(test.target_prob, test.target_prob, weights) + 0.03


def test_noise_is_predicted_by_its_mean():
    """Nothing to learn, and thousands of token pairs to learn it from."""
    rng = np.random.default_rng(3)

    def noise():
        trace = token_trace(seed=int(rng.integers(99)))
        proposals = rng.integers(256, size=trace.proposals.shape).astype(np.int32)
        return replace(trace, proposals=proposals, target_prob=(rng.random(proposals.shape) < 0.7).astype(float))

    train, test = noise(), noise()
    predicted = predict(fit_calibration(train), test)
    loss = log_loss(predicted, np.full(predicted.shape, 0.7), np.ones(predicted.shape))
    assert loss < -(0.7 * np.log(0.7) + 0.3 * np.log(0.3)) + 0.01


def test_the_trace_source_predicts_the_same(fitted):
    trace = token_trace(contexts=3, seed=4)
    theirs = trace_source(trace, fitted, shuffle=False).acceptance
    assert np.array_equal(predict(fitted, trace), theirs)


def arrays(calibration) -> list[np.ndarray]:
    """All of them, the probe's at the end."""
    return [array for array in calibration if isinstance(array, np.ndarray)] + list(calibration.probe)


def test_the_seed_decides(fitted):
    again, other = fit_calibration(token_trace()), fit_calibration(token_trace(), seed=1)
    assert all(np.array_equal(a, b) for a, b in zip(arrays(fitted), arrays(again)))
    assert not np.array_equal(fitted.weights, other.weights)


def simulate_chain(initial, transition, emission, texts, rounds, seen, seed):
    rng = np.random.default_rng(seed)
    counts, first = np.zeros((texts * rounds, emission.shape[1])), np.zeros(texts * rounds, bool)
    for i in range(texts):
        state = int(rng.random() > initial[0])
        for r in range(rounds):
            counts[i * rounds + r] = rng.multinomial(seen, emission[state])
            state = int(rng.random() > transition[state, 0])
        first[i * rounds] = True
    return counts, first


def test_the_chain_is_recovered():
    initial, transition = np.array([0.8, 0.2]), np.array([[0.9, 0.1], [0.2, 0.8]])
    emission = np.array([[0.1, 0.1, 0.3, 0.5], [0.5, 0.25, 0.15, 0.1]])
    counts, first = simulate_chain(initial, transition, emission, 400, 40, 4, 0)
    acceptance = np.array([0.1, 0.4, 0.7, 0.95])
    found = fit_chain(counts, first, acceptance)
    for ours, truth, tolerance in zip(found, (initial, transition, emission), (0.08, 0.02, 0.02)):
        assert np.abs(ours - truth).max() < tolerance
        assert np.allclose(ours.sum(-1), 1.0)
    swapped = fit_chain(counts, first, acceptance[::-1].copy())  # state 0 is the easier one, whichever that is
    assert np.abs(swapped[1] - transition[::-1, ::-1]).max() < 0.02


def test_simulator_parameters_of_a_trace(fitted):
    trace = token_trace()
    found = Difficulty(**difficulty(trace, fitted))
    bins = len(fitted.edges) + 1
    assert found.acceptance.shape == (bins,) and found.features.shape == (bins, 4) and found.emission.shape == (2, bins)
    assert np.all(np.diff(found.acceptance) > 0)
    assert np.allclose(found.features, 0.5) and found.target_entropy == pytest.approx(1.0)
    assert np.allclose(simulator_calibration(found).emission, fitted.emission)


def test_the_belief_is_the_exact_posterior():
    """The observation's filter against Bayes' rule over all paths of the hidden state."""
    shuffled = np.array([2, 0, 5, 1, 4, 3])
    d = Difficulty(**default_difficulty())
    d = d._replace(acceptance=d.acceptance[shuffled], emission=d.emission[:, shuffled])
    calibration = simulator_calibration(d)
    rounds = [[0, 3, 1], [], [2], [5, 5, 4, 0]]  # bins drafted in each round
    obs = np.zeros(ob.SIZE)
    ob.begin_text(obs, calibration)
    for drafts in rounds:
        ob.begin_round(obs, 1.0, 10)
        for f in drafts:
            ob.add_token(obs, calibration, 0.5, 0.5, 1.0, 1.0, d.acceptance[f])
        last = obs[ob.BELIEF]
        ob.end_round(obs, calibration, len(drafts), 0)
    weight = np.zeros(2)
    for path in np.ndindex(2, 2, 2, 2):
        p = d.initial[path[0]] * np.prod([d.transition[i, j] for i, j in pairwise(path)])
        weight[path[-1]] += p * np.prod([d.emission[z, f] for z, drafts in zip(path, rounds) for f in drafts])
    assert last == pytest.approx(weight[0] / weight.sum(), abs=1e-12)


def test_equal_bins_are_refused():
    d = Difficulty(**default_difficulty())
    with pytest.raises(CalibrationError, match="merge equal bins"):
        simulator_calibration(d._replace(acceptance=np.full(6, 0.5)))


def test_round_trip(fitted, tmp_path):
    save_calibration(tmp_path / "c.npz", fitted)
    loaded = load_calibration(tmp_path / "c.npz")
    assert all(np.array_equal(a, b) and a.dtype == b.dtype for a, b in zip(arrays(fitted), arrays(loaded), strict=True))
    assert [p.name for p in tmp_path.iterdir()] == ["c.npz"]


@pytest.mark.parametrize("keep", [0, 10, 0.5, 0.99])
def test_truncated_files_are_refused(fitted, tmp_path, keep):
    path = tmp_path / "c.npz"
    save_calibration(path, fitted)
    data = path.read_bytes()
    path.write_bytes(data[: int(keep * len(data)) if isinstance(keep, float) else keep])
    with pytest.raises(CalibrationError, match="fit it again") as caught:
        load_calibration(path)
    assert "\n" not in str(caught.value)


def test_foreign_files_are_refused(fitted, tmp_path):
    np.savez(tmp_path / "a.npz", x=np.zeros(3))
    save_calibration(tmp_path / "whole.npz", fitted)
    whole = dict(np.load(tmp_path / "whole.npz"))
    np.savez(tmp_path / "b.npz", **whole | {"schema": np.array(99)})
    np.savez(tmp_path / "c.npz", **whole | {"edges": np.zeros(2)})
    np.save(tmp_path / "d.npy", np.zeros(3))
    for name in ("a.npz", "b.npz", "c.npz", "d.npy"):
        with pytest.raises(CalibrationError, match="fit it again"):
            load_calibration(tmp_path / name)
    with pytest.raises(FileNotFoundError):
        load_calibration(tmp_path / "none.npz")


def test_bad_traces_are_refused():
    trace = token_trace(contexts=2, positions=8)
    with pytest.raises(CalibrationError, match="at least 2 contexts"):
        fit_calibration(trace.select(slice(0, 1)))
    with pytest.raises(CalibrationError, match="bins must be at least 2, got 1"):
        fit_calibration(trace, bins=1)
    with pytest.raises(CalibrationError, match="record the trace again"):
        fit_calibration(replace(trace, target_prob=trace.target_prob + np.nan))
    assert np.isfinite(fit_calibration(trace).weights).all()


def test_a_trace_without_variety_has_one_bin():
    trace = token_trace(contexts=4, positions=5)
    flat = replace(trace, proposals=np.zeros_like(trace.proposals), target_prob=np.full(trace.target_prob.shape, 0.6))
    calibration = fit_calibration(flat)
    assert predict(calibration, flat).mean() == pytest.approx(0.6, abs=0.1)
    assert np.isfinite(calibration.emission).all()


def matches(text: list[int], place: int) -> tuple[int, int, int]:
    """`observation.earlier`, from its definition."""
    found = []
    for i in range(max(place - ob.WINDOW, 0) + 1, place - 1):
        length = 0
        while length < ob.LONGEST and i - length >= max(place - ob.WINDOW, 0) and text[i - length] == text[place - 1 - length]:
            length += 1
        if length:
            found.append((length, i, int(text[i + 1] == text[place])))
    if not found:
        return 0, 0, 0
    longest, _, followed = max(found)
    return longest, followed, max((length for length, _, agrees in found if agrees), default=0)


@given(st.lists(st.integers(0, 2), min_size=2, max_size=190))
def test_earlier_matches_are_found(text):
    place = len(text) - 1
    assert ob.earlier(np.array(text, np.int64), place) == matches(text, place)


def token_sweep(tokens=20_000, seed=5) -> Sweep:
    """Text on which proposals are judged by `token_trace`'s law, and agree with the text half of the time."""
    rng = np.random.default_rng(seed)
    text = rng.integers(LETTERS, size=tokens)
    proposals = np.where(rng.random(tokens) < 0.5, np.roll(text, -1), rng.integers(LETTERS, size=tokens)).astype(np.int32)
    known = np.random.default_rng(99).uniform(0.05, 0.95, LETTERS)
    features = np.full((tokens, ob.N_FEATURES), 0.5, np.float32)
    return Sweep(text, proposals, features, known[proposals], np.ones(tokens, np.float32), np.zeros((tokens, 0), np.float16))


def test_a_sweep_helps_a_small_trace():
    """Held-out loss after 4 contexts of trace, with and without a sweep: the sweep has seen every letter often."""
    small, held_out = token_trace(contexts=4, positions=6, seed=1), token_trace(seed=2)
    labels, weights = held_out.target_prob.ravel(), sample_weights(held_out).ravel()
    loss = {}
    for name, sweep in (("without", None), ("with", token_sweep())):
        fitted = fit_calibration(small, sweep=sweep, bins=2)
        loss[name] = log_loss(predict(fitted, held_out).ravel(), labels, weights)
    entropy = log_loss(labels, labels, weights)
    assert loss["with"] - entropy < 0.5 * (loss["without"] - entropy)
