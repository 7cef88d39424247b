"""Traces and cost models: round trips, and files that must be refused."""

import numpy as np
import pytest

from tdraft.models.decoding.cost import CostModel
from tdraft.models.decoding.proposals import draft_tree
from tdraft.models.decoding.record import count_accepted, draft_trie
from tdraft.models.decoding.trace import Trace, TraceError


def random_trace(contexts=3, positions=7, depth=4, seed=0, **meta) -> Trace:
    """A consistent trace of random texts over four letters."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(4, size=(contexts, positions)).astype(np.int32)
    proposals = rng.integers(4, size=(contexts, positions, depth)).astype(np.int32)
    return Trace(
        tokens,
        rng.integers(4, size=(contexts, 2)).astype(np.int32),
        proposals,
        rng.random((contexts, positions, depth, 4)).astype(np.float32),
        rng.random((contexts, positions, depth)),
        count_accepted(proposals, tokens),
        rng.random((contexts, positions)).astype(np.float32),
        np.zeros((contexts, positions, 0), np.float32),
        rng.random((contexts, positions)).astype(np.float32),
        {"drafter": "d", "target": "t", **meta},
    )


def test_round_trip(tmp_path):
    trace = random_trace(temperature=0.8)
    trace.save(tmp_path / "a.npz")
    loaded = Trace.load(tmp_path / "a.npz", drafter="d", target="t")
    assert loaded.meta == trace.meta
    assert np.array_equal(loaded.proposals, trace.proposals) and np.array_equal(loaded.target_prob, trace.target_prob)


@pytest.mark.parametrize("keep", [0, 10, 0.5, 0.99])
def test_truncated_files_are_refused(tmp_path, keep):
    path = tmp_path / "a.npz"
    random_trace().save(path)
    data = path.read_bytes()
    path.write_bytes(data[: int(keep * len(data)) if isinstance(keep, float) else keep])
    with pytest.raises(TraceError, match="record it again"):
        Trace.load(path)


def test_foreign_files_are_refused(tmp_path):
    np.savez(tmp_path / "b.npz", x=np.zeros(3))
    with pytest.raises(TraceError):
        Trace.load(tmp_path / "b.npz")
    random_trace().save(tmp_path / "a.npz")
    with pytest.raises(TraceError, match="recorded with drafter d, not e"):
        Trace.load(tmp_path / "a.npz", drafter="e")


def test_a_failed_save_leaves_the_former_file(tmp_path, monkeypatch):
    path = tmp_path / "a.npz"
    random_trace(seed=1).save(path)
    before = path.read_bytes()

    def full_disk(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez", full_disk)
    with pytest.raises(OSError):
        random_trace(seed=2).save(path)
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


def test_count_accepted_by_hand():
    tokens = np.array([[1, 2, 3]])
    proposals = np.array([[[1, 2, 9], [2, 3, 0], [0, 0, 0]]])
    assert count_accepted(proposals, tokens).tolist() == [[2, 2, 0]]


def test_draft_tree_hangs_every_draft_on_its_position():
    parents = draft_tree(3, 2)
    assert parents.tolist() == [-1, 0, 1, 0, 1, 2, 3, 4, 5]


def test_draft_trie_holds_every_beginning_once():
    rng = np.random.default_rng(0)
    text, proposals = rng.integers(2, size=9), rng.integers(2, size=(9, 4))
    nodes, parents, judge = draft_trie(text, proposals)
    assert nodes[:9].tolist() == text.tolist() and parents[:9].tolist() == list(range(-1, 8))
    assert len(set(zip(parents.tolist(), nodes.tolist()))) == len(nodes)
    for n, draft in enumerate(proposals.tolist()):
        for k in range(4):
            path, node = [], int(judge[n, k])
            while node >= 0:
                path.append(int(nodes[node]))
                node = int(parents[node])
            assert path[::-1] == [*text[: n + 1].tolist(), *draft[:k]]


def test_cost_model(tmp_path):
    cost = CostModel(np.array([0.0, 1.0, 1.4, 1.5]), 0.1, 1e-3)
    cost.save(tmp_path / "cost.json")
    loaded = CostModel.load(tmp_path / "cost.json")
    assert np.array_equal(loaded.verify, cost.verify) and loaded.draft == 0.1 and loaded.max_drafted == 2
    assert cost.scaled(1.5).verify.tolist() == [0.0, 1.0, pytest.approx(1.6), 1.75]
    with pytest.raises(ValueError, match="draft must be >= 0"):
        CostModel(np.array([0.0, 1.0, 1.2]), -1.0, 1e-3)
    (tmp_path / "cost.json").write_text("{}")
    with pytest.raises(ValueError, match="not a cost model"):
        CostModel.load(tmp_path / "cost.json")
