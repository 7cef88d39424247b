"""The probe of hidden states: compiled as trained, and what it finds."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from tdraft.models.decoding.acceptance import log_loss, predict, sample_weights
from tdraft.models.decoding.calibration import CalibrationError, fit_calibration, load_calibration, save_calibration
from tdraft.models.decoding.probe import DEPTHS, Samples, corrected, no_probe, project, shapes_fit
from tdraft.models.decoding.probe_training import _Net
from tdraft.models.decoding.record import count_accepted
from tdraft.models.decoding.trace import Trace

WIDTH, V = 6, 4


def planted(contexts: int, seed: int) -> Trace:
    """A trace whose proposals the target accepts by the sign of one entry of its hidden state, whatever they are."""
    rng, (positions, depth) = np.random.default_rng(seed), (30, 5)
    hidden = rng.standard_normal((contexts, positions, WIDTH)).astype(np.float32)
    proposals = rng.integers(V, size=(contexts, positions, depth)).astype(np.int32)
    tokens = rng.integers(V, size=(contexts, positions)).astype(np.int32)
    probability = np.where(hidden[:, :, :1] > 0, 0.9, 0.3) * np.ones(depth)
    return Trace(
        tokens,
        rng.integers(V, size=(contexts, 3)).astype(np.int32),
        proposals,
        np.full((*proposals.shape, 4), 0.5, np.float32),
        probability,
        count_accepted(proposals, tokens),
        np.ones((contexts, positions), np.float32),
        hidden,
        np.ones((contexts, positions), np.float32),
        {"vocab_size": V},
    )


def excess(calibration, trace: Trace) -> float:
    """Log loss above that of the true probabilities, nats a token."""
    weights = sample_weights(trace)
    labels = trace.target_prob
    return log_loss(predict(calibration, trace), labels, weights) - log_loss(labels, labels, weights)


def test_it_finds_what_only_the_hidden_state_knows():
    train, test = planted(60, 0), planted(40, 1)
    calibration = fit_calibration(train)
    blind = excess(fit_calibration(replace(train, hidden=train.hidden[:, :, :0])), replace(test, hidden=test.hidden[:, :, :0]))
    assert blind > 0.1 and excess(calibration, test) < 0.25 * blind


def test_there_is_none_where_the_hidden_state_knows_nothing():
    """Held-out contexts decide: a probe that has only learned noise is left out."""
    trace = planted(30, 0)
    noise = np.random.default_rng(5).standard_normal(trace.hidden.shape).astype(np.float32)
    known = replace(trace, hidden=noise, target_prob=np.full(trace.target_prob.shape, 0.6))
    fresh = replace(known, hidden=noise[::-1].copy())
    assert excess(fit_calibration(known), fresh) < 0.005


def test_compiled_as_trained():
    torch.manual_seed(0)
    rng, net = np.random.default_rng(0), _Net(WIDTH, V)
    with torch.no_grad():
        for weight in net.parameters():
            weight.copy_(torch.randn(weight.shape))
    shape = (7, 3)
    hidden = rng.standard_normal((5, WIDTH)).astype(np.float32)
    tokens = [rng.integers(V, size=shape) for _ in range(2)]
    depth, state = rng.integers(1, 20, size=shape), rng.integers(5, size=7)
    score, ones = rng.standard_normal(shape), np.ones(shape)
    with torch.no_grad():
        trained = net(Samples(hidden, state, *tokens, depth, score, ones, ones), np.arange(7)).numpy()
    probe, projected = net.probe(), np.empty(len(net.out), np.float32)
    assert shapes_fit(probe) and probe.depth.shape[0] == DEPTHS
    for i in range(7):
        project(probe, hidden[state[i]], projected)
        for k in range(3):
            found = corrected(probe, projected, tokens[0][i, k], tokens[1][i, k], depth[i, k], score[i, k])
            assert found == pytest.approx(trained[i, k], rel=1e-4, abs=1e-4)


def test_no_probe_leaves_scores_alone():
    assert corrected(no_probe(), np.zeros(0, np.float32), 3, 1, 2, 0.7) == 0.7 and shapes_fit(no_probe())


def test_files(tmp_path):
    calibration = fit_calibration(planted(10, 0))
    assert len(calibration.probe.state) == WIDTH
    save_calibration(tmp_path / "c.npz", calibration)
    loaded = load_calibration(tmp_path / "c.npz")
    assert all(np.array_equal(a, b) for a, b in zip(loaded.probe, calibration.probe))
    torn = calibration._replace(probe=calibration.probe._replace(out=calibration.probe.out[:3]))
    save_calibration(tmp_path / "torn.npz", torn)
    with pytest.raises(CalibrationError, match="fit it again"):
        load_calibration(tmp_path / "torn.npz")


def test_a_trace_without_hidden_states_is_refused():
    trace = planted(10, 0)
    with pytest.raises(ValueError, match="reads hidden states of 6, the trace holds 0"):
        predict(fit_calibration(trace), replace(trace, hidden=trace.hidden[:, :, :0]))
