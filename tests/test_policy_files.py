"""Policy files: what was saved decides the same, and what was made for something else is refused."""

import hashlib
import json
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tdraft.agents import policy_files
from tdraft.agents.belief_planning import Tables
from tdraft.agents.decoding_baselines import candidates
from tdraft.agents.policy_files import RULES, PolicyFileError, load_policy, save_policy
from tdraft.envs.decoding.tabular import Grid
from tdraft.kernels.jit import lean
from tdraft.models.decoding import observation as ob
from tdraft.models.decoding.cost import CostError, CostModel
from tdraft.models.decoding.policy import DraftPolicy
from tdraft.models.decoding.probe import DEPTHS, Probe, project

DEPTH = 5
COST = CostModel(np.array([0.0, 1.0, 1.3, 1.35, 1.4, 1.5, 1.6]), 0.07, 1.5e-3)


def some_calibration() -> ob.Calibration:
    weights = (np.random.default_rng(0).random(1 << ob.HASH_BITS) - 0.5).astype(np.float32)
    weights[1000:] = np.resize(weights[:1000], len(weights) - 1000)  # so that files are small
    emission = np.array([[0.1, 0.2, 0.3, 0.4], [0.4, 0.3, 0.2, 0.1]])
    transition = np.array([[0.9, 0.1], [0.3, 0.7]])
    return ob.Calibration(weights, some_probe(), np.array([0.2, 0.5, 0.8]), np.array([0.6, 0.4]), transition, emission)


def some_probe() -> Probe:
    """Of a target of width 4 and 3 tokens, with 2 units."""
    rng = np.random.default_rng(1)
    shapes = ((4, 2), (3, 2), (3, 2), (DEPTHS, 2), (2,), (2,), (2,))
    return Probe(*(rng.standard_normal(shape).astype(np.float32) for shape in shapes))


def same(calibration: ob.Calibration) -> bool:
    """Whether it is `some_calibration`, to the bit."""
    pairs = [*zip(calibration, some_calibration()), *zip(calibration.probe, some_probe())]
    return all(a.dtype == b.dtype and np.array_equal(a, b) for a, b in pairs if isinstance(a, np.ndarray))


MADE_FOR = {"calibration": some_calibration(), "cost": COST, "drafter": "d" * 16, "target": "a" * 16, "temperature": 0.8}


def policies() -> list[DraftPolicy]:
    """Every rule that can be saved, at the last point of its grid, and the rules whose parameters are nested."""
    found = []
    for name, (rule, memory, grid) in candidates(COST).items():
        found.append(DraftPolicy(name, rule, np.array(list(grid)[-1], np.float64), np.zeros(memory)))
    rng = np.random.default_rng(1)
    grid = Grid(np.array([0.3, 0.7]), np.array([0.1, 0.5, 0.9]), np.array([0.5]), DEPTH)
    found.append(DraftPolicy("Q-learning", RULES["tabular"][0], (grid, rng.normal(size=(grid.n_states, 3)))))
    tables = Tables(rng.normal(size=(DEPTH, 5, 7)), rng.random(DEPTH + 2))
    found.append(DraftPolicy("belief optimum", RULES["belief optimum"][0], tables))
    return found


def rollout(policy: DraftPolicy, rounds: int = 60) -> list[int]:
    """What a policy decides in rounds of random features, from a fresh memory."""
    rng, calibration, decisions = np.random.default_rng(2), MADE_FOR["calibration"], []
    policy, obs = policy.fresh(), np.zeros(ob.SIZE)
    for r in range(rounds):
        if r % 20 == 0:
            ob.begin_text(obs, calibration)
        ob.begin_round(obs, rng.random() * 3, 40.0)
        action = policy(obs)
        decisions.append(action)
        while action == ob.DRAFT and obs[ob.DRAFTED] < DEPTH:
            ob.add_token(obs, calibration, rng.random(), rng.random() * 3, float(rng.integers(6)), 1.5, rng.random() ** 0.3)
            action = policy(obs)
            decisions.append(action)
        verified = int(obs[ob.DRAFTED])
        ob.end_round(obs, calibration, verified, int(rng.integers(verified + 1)))
    return decisions


def test_every_rule_has_a_name():
    saved = {id(decide) for decide, _ in RULES.values()}
    assert all(id(rule) in saved for rule, _, _ in candidates(COST).values())


@pytest.mark.parametrize("policy", policies(), ids=lambda policy: policy.name)
def test_a_loaded_policy_decides_identically(tmp_path, policy):
    path = tmp_path / "folder" / "policy.npz"
    save_policy(path, policy, **MADE_FOR)
    saved = load_policy(path, drafter="d" * 16, target="a" * 16, cost=COST)
    assert saved.policy.name == policy.name and saved.policy.decide is policy.decide
    assert rollout(saved.policy) == rollout(policy)
    assert type(saved.policy.params) is type(policy.params)
    assert saved.temperature == 0.8 and saved.cost.to_dict() == COST.to_dict()
    assert same(saved.calibration)
    assert not list(path.parent.glob(".*"))


class Inner(NamedTuple):
    table: np.ndarray
    flag: bool


class Outer(NamedTuple):
    inner: Inner
    several: tuple
    step: float
    count: int


@lean
def nested(params, memory, obs):
    return int(params.inner.table[0])


def test_nested_parameters_keep_types_and_bits(tmp_path, monkeypatch):
    monkeypatch.setitem(RULES, "nested", (nested, (Inner, Outer)))
    table = np.array([1, 2, 3], np.uint16)
    params = Outer(Inner(table, True), (np.float32(0.1), (), np.full((2, 0), 1.5)), float("inf"), -7)
    save_policy(tmp_path / "p.npz", DraftPolicy("n", nested, params, np.array([3.0, 4.0])), **MADE_FOR)
    policy = load_policy(tmp_path / "p.npz").policy
    found = policy.params
    assert isinstance(found, Outer) and isinstance(found.inner, Inner)
    assert found.inner.table.dtype == np.uint16 and found.inner.table.tolist() == [1, 2, 3] and found.inner.flag is True
    assert found.several[0] == np.float32(0.1) and found.several[0].dtype == np.float32 and found.several[1] == ()
    assert found.several[2].shape == (2, 0) and found.step == float("inf") and found.count == -7
    assert policy.memory.tolist() == [3.0, 4.0] and policy(np.zeros(ob.SIZE)) == 1


def test_what_no_file_holds_is_refused(tmp_path, monkeypatch):
    with pytest.raises(PolicyFileError, match='the rule of the policy "mine" cannot be saved: add it to RULES'):
        save_policy(tmp_path / "p.npz", DraftPolicy("mine", nested, ()), **MADE_FOR)
    monkeypatch.setitem(RULES, "nested", (nested, ()))
    for params, kind in (("text", "str"), (np.array([None]), "ndarray"), ({"a": 1}, "dict")):
        with pytest.raises(PolicyFileError, match=f"a file holds no {kind}"):
            save_policy(tmp_path / "p.npz", DraftPolicy("mine", nested, params), **MADE_FOR)
    assert not list(tmp_path.iterdir())


@pytest.fixture
def path(tmp_path):
    save_policy(tmp_path / "p.npz", DraftPolicy("static k=3", RULES["static"][0], np.array([3.0])), **MADE_FOR)
    return tmp_path / "p.npz"


def rewrite(path, **changes):
    """Change entries of the description; None drops one."""
    with np.load(path) as file:
        arrays = {name: file[name] for name in file.files}
    meta = json.loads(arrays.pop("meta").tobytes()) | changes
    text = json.dumps({key: value for key, value in meta.items() if value is not None})
    np.savez(path, meta=np.frombuffer(text.encode(), np.uint8), **arrays)


AGAIN = "make it again with tdraft policies trace --save"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": "tdraft agent"}, f'PATH is no policy but a file of format "tdraft agent": {AGAIN}'),
        ({"schema": 2}, f"PATH has schema 2, this version reads 1: {AGAIN}"),
        ({"features": 0}, f"PATH decides on version 0 of the observation, this tdraft builds {ob.FEATURE_VERSION}: {AGAIN}"),
        ({"rule": "magic"}, f'PATH holds the rule "magic", which this version does not have: {AGAIN}'),
        ({"memory": None}, f"PATH is damaged (KeyError: 'memory'): {AGAIN}"),
        ({"params": {"array": "array99"}}, f"PATH is damaged (KeyError: 'array99'): {AGAIN}"),
        ({"params": {"class": "Grid", "fields": {}}}, f"PATH is damaged (KeyError: 'Grid'): {AGAIN}"),
        ({"cost_fingerprint": "0"}, f"PATH is damaged (ValueError: its cost model is not the one of its fingerprint): {AGAIN}"),
        ({"calibration": {"array": "array0"}}, f"PATH is damaged (CalibrationError: its calibration has other shapes): {AGAIN}"),
    ],
)
def test_files_of_another_version_are_refused(path, changes, message):
    rewrite(path, **changes)
    with pytest.raises(PolicyFileError) as error:
        load_policy(path)
    assert str(error.value) == message.replace("PATH", str(path))


def test_a_class_with_other_fields_is_refused(tmp_path, monkeypatch):
    grid = Grid(np.array([0.5]), np.array([0.5]), np.array([0.5]), 2)
    save_policy(tmp_path / "p.npz", DraftPolicy("q", RULES["tabular"][0], (grid, np.zeros((24, 3)))), **MADE_FOR)
    monkeypatch.setitem(RULES, "tabular", (RULES["tabular"][0], (NamedTuple("Grid", [("acceptance", np.ndarray)]),)))
    with pytest.raises(PolicyFileError, match="Grid has the fields"):
        load_policy(tmp_path / "p.npz")


def test_other_models_and_clocks_are_refused(path):
    other = COST.with_draft(0.08)
    assert load_policy(path, drafter="d" * 16).policy.params.tolist() == [3.0]
    for given_, message in (
        ({"drafter": "e"}, f"{path} was made for the drafter {'d' * 16}, not e: give that drafter, or {AGAIN}"),
        ({"target": "b"}, f"{path} was made for the target {'a' * 16}, not b: give that target, or {AGAIN}"),
        (
            {"cost": other},
            f"{path} was made for the cost model {COST.fingerprint}, not {other.fingerprint}: give that one, or {AGAIN}",
        ),
    ):
        with pytest.raises(PolicyFileError) as error:
            load_policy(path, **given_)
        assert str(error.value) == message


def test_foreign_files_are_refused(tmp_path):
    np.savez(tmp_path / "a.npz", x=np.zeros(3))
    np.save(tmp_path / "b.npy", np.zeros(3))
    (tmp_path / "c.npz").write_text("text\n")
    (tmp_path / "d.npz").write_bytes(b"")
    np.savez(tmp_path / "e.npz", meta=np.array([None]))
    np.savez(tmp_path / "f.npz", meta=np.frombuffer(b"[1, 2]", np.uint8))
    for name in ("a.npz", "b.npy", "c.npz", "d.npz", "e.npz", "f.npz"):
        with pytest.raises(PolicyFileError, match=f"{name} is no policy, or it is damaged"):
            load_policy(tmp_path / name)
    with pytest.raises(FileNotFoundError, match="no policy"):
        load_policy(tmp_path / "none.npz")


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damage_is_refused_or_harmless(tmp_path, data):
    path = tmp_path / "p.npz"
    save_policy(path, DraftPolicy("static k=3", RULES["static"][0], np.array([3.0])), **MADE_FOR)
    content = bytearray(path.read_bytes())
    if data.draw(st.booleans()):
        content = content[: data.draw(st.integers(0, len(content) - 1))]
    else:
        place = data.draw(st.integers(0, len(content) - 1))
        content[place] ^= data.draw(st.integers(1, 255))
    path.write_bytes(content)
    try:
        saved = load_policy(path)
    except PolicyFileError as error:
        assert AGAIN in str(error)
    else:
        assert saved.policy.params.tolist() == [3.0] and saved.drafter == "d" * 16
        assert same(saved.calibration)


def test_a_failed_save_leaves_the_former_file(path, monkeypatch):
    before = path.read_bytes()

    def full(file, **arrays):
        file.write(b"half")
        raise OSError("No space left on device")

    monkeypatch.setattr(policy_files.np, "savez_compressed", full)
    with pytest.raises(OSError, match="No space"):
        save_policy(path, DraftPolicy("static k=1", RULES["static"][0], np.array([1.0])), **MADE_FOR)
    assert path.read_bytes() == before and [p.name for p in path.parent.iterdir()] == ["p.npz"]


def test_the_fingerprint_of_a_cost_model_covers_every_price(tmp_path):
    COST.save(tmp_path / "c.json")
    assert CostModel.load(tmp_path / "c.json").fingerprint == COST.fingerprint
    assert len(COST.fingerprint) == 16 and int(COST.fingerprint, 16) >= 0
    others = [
        COST.with_draft(0.08),
        COST.scaled(1.1),
        CostModel(COST.verify, COST.draft, 2e-3),
        CostModel(COST.verify[:-1], 0.07, 1.5e-3),
    ]
    assert len({COST.fingerprint, *(other.fingerprint for other in others)}) == 5


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\xff\x00", "not a cost model written by tdraft"),
        (b"[1]", "not a cost model written by tdraft"),
        (b'{"schema": 1, "verify": {"1": 1.0}, "draft": "x", "unit_seconds": 1}', "not a cost model written by tdraft"),
        (b'{"schema": 9, "verify": {"1": 1.0}, "draft": 0, "unit_seconds": 1}', "schema 9, expected 1: calibrate again"),
        (b'{"schema": 1, "verify": {"1": 2.0}, "draft": 0, "unit_seconds": 1}', "verify must be"),
    ],
)
def test_damaged_cost_models_are_refused(tmp_path, content, message):
    (tmp_path / "c.json").write_bytes(content)
    with pytest.raises(CostError, match=message) as error:
        CostModel.load(tmp_path / "c.json")
    assert str(tmp_path / "c.json") in str(error.value) and "\n" not in str(error.value)


def test_the_feature_version_is_raised_with_the_features():
    """The digest of observations and active features over a fixed course of rounds: where it changes, policies made before see
    something else, so FEATURE_VERSION must be raised, and the new digest written here."""
    rng, calibration = np.random.default_rng(3), some_calibration()
    digest = hashlib.sha256(repr((ob.FIELDS, ob.HASH_BITS, ob.N_ACTIVE, ob.N_ACTIONS)).encode())
    obs, active, projected = np.zeros(ob.SIZE), np.empty(ob.N_ACTIVE, np.int64), np.empty(2, np.float32)
    ob.begin_text(obs, calibration)
    for _ in range(30):
        ob.begin_round(obs, rng.random() * 5, 40.0)
        project(calibration.probe, rng.random(4).astype(np.float32), projected)
        for depth in range(1, 1 + int(rng.integers(6))):
            confidence, entropy, order, count = rng.random(), rng.random() * 5, float(rng.integers(6)), rng.random() * 9
            text = rng.integers(3, size=200)
            ob.active_features(confidence, order, depth, obs[ob.TARGET_ENTROPY], text, 180 + depth, active)
            digest.update(active.tobytes())
            score = ob.hashed_score(calibration.weights, active)
            token, previous = text[180 + depth], text[179 + depth]
            acceptance = ob.predict_acceptance(calibration.probe, projected, token, previous, depth, score)
            ob.add_token(obs, calibration, confidence, entropy, order, count, acceptance)
            digest.update(np.round(obs, 9).tobytes())
        verified = int(obs[ob.DRAFTED])
        ob.end_round(obs, calibration, verified, int(rng.integers(verified + 1)))
        digest.update(np.round(obs, 9).tobytes())
    assert (ob.FEATURE_VERSION, digest.hexdigest()[:16]) == (3, "7548fce418083a68")
