"""A decoding policy as one file: rule, parameters and memory, what its observation is made of, and what it was made for.

NumPy's npz of arrays and a JSON description, no pickles, so that loading a file runs no code. A rule is saved by its name in
RULES; parameters are tuples, NamedTuples, arrays and numbers, nested as they like.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tdraft.envs.decoding.tabular import Grid
from tdraft.models.decoding.calibration import CalibrationError, shapes_fit
from tdraft.models.decoding.cost import CostModel
from tdraft.models.decoding.observation import FEATURE_VERSION, Calibration
from tdraft.models.decoding.policy import DraftPolicy
from tdraft.models.decoding.probe import Probe
from tdraft.models.files import DAMAGED, atomic_write
from tdraft.value.tiles import TileCoding, tile_index

from . import belief_planning, decoding_learning
from . import decoding_baselines as rules
from .cross_entropy import score_readers
from .linear import readers
from .stopping import StoppingScores, stopping_score

FORMAT, SCHEMA = "tdraft policy", 1
AGAIN = "make it again with tdraft policies trace --save"

# Name in a file -> (compiled rule, NamedTuple classes among its parameters). A name stands for what the rule decides: one that
# comes to decide otherwise, or to read other parameters, takes another name.
RULES: dict[str, tuple[Callable, tuple[type, ...]]] = {
    "static": (rules.static, ()),
    "two thresholds": (rules.two_thresholds, ()),
    "survival x cost": (rules.survival_cost, ()),
    "HF heuristic": (rules.hf_heuristic, ()),
    "HF confidence": (rules.confidence_stop, ()),
    "SVIP": (rules.svip, ()),
    "AdaEDL": (rules.ada_edl, ()),
    "GammaTune": (rules.gamma_tune, ()),
    "SGLang EMA": (rules.sglang_ema, ()),
    "SpecDec++": (rules.spec_dec_pp, ()),
    "BanditSpec UCB": (rules.bandit_ucb, ()),
    "belief optimum": (belief_planning.decide_on_belief, (belief_planning.Tables,)),
    "tabular": (decoding_learning.tabular_decide, (Grid,)),
    "tiles": (readers(tile_index)[0], (TileCoding,)),
    "stopping": (score_readers(stopping_score)[0], (StoppingScores,)),
}


class PolicyFileError(ValueError):
    """A file that is no policy of this version, is damaged, or was made for another drafter, target or clock."""


@dataclass(frozen=True)
class SavedPolicy:
    """A policy with all that it needs to serve.

    :param policy: decides on observations made with `calibration`
    :param cost: the clock it was tuned to; K, the longest draft it knows, is `cost.max_drafted`
    :param drafter, target: fingerprints of the models it was made for
    :param temperature: of the texts it was made on
    """

    policy: DraftPolicy
    calibration: Calibration
    cost: CostModel
    drafter: str
    target: str
    temperature: float


def save_policy(
    path: str | Path,
    policy: DraftPolicy,
    *,
    calibration: Calibration,
    cost: CostModel,
    drafter: str,
    target: str,
    temperature: float,
) -> None:
    """Write a policy atomically; the parameters are those of `SavedPolicy`.

    :raises PolicyFileError: a rule that is not in RULES, or parameters that no file holds
    """
    rule = next((name for name, (decide, _) in RULES.items() if decide is policy.decide), None)
    if rule is None:
        raise PolicyFileError(
            f'the rule of the policy "{policy.name}" cannot be saved: add it to RULES in agents/policy_files.py'
        )
    arrays: dict[str, np.ndarray] = {}
    meta = {
        "format": FORMAT,
        "schema": SCHEMA,
        "features": FEATURE_VERSION,
        "name": policy.name,
        "rule": rule,
        "params": _pack(policy.params, arrays),
        "memory": _pack(policy.memory, arrays),
        "calibration": _pack(calibration, arrays),
        "cost": cost.to_dict(),
        "cost_fingerprint": cost.fingerprint,
        "drafter": drafter,
        "target": target,
        "temperature": float(temperature),
    }
    arrays["meta"] = np.frombuffer(json.dumps(meta).encode(), np.uint8)
    with atomic_write(path) as temporary, open(temporary, "wb") as file:
        np.savez_compressed(file, allow_pickle=False, **arrays)


def load_policy(
    path: str | Path, *, drafter: str | None = None, target: str | None = None, cost: CostModel | None = None
) -> SavedPolicy:
    """Read a policy; what is given of drafter, target (fingerprints) and cost must be what it was made for.

    :raises FileNotFoundError: no such file
    :raises PolicyFileError: a foreign or damaged file, another schema or version of the observation, or another model or clock
    """
    meta, arrays = _read(Path(path))
    if meta.get("schema") != SCHEMA:
        raise PolicyFileError(f"{path} has schema {meta.get('schema')}, this version reads {SCHEMA}: {AGAIN}")
    if meta.get("features") != FEATURE_VERSION:
        raise PolicyFileError(
            f"{path} decides on version {meta.get('features')} of the observation, this tdraft builds {FEATURE_VERSION}: {AGAIN}"
        )
    if meta.get("rule") not in RULES:
        raise PolicyFileError(f'{path} holds the rule "{meta.get("rule")}", which this version does not have: {AGAIN}')
    try:
        saved = _unpack_policy(meta, arrays)
    except (KeyError, TypeError, ValueError) as error:
        raise PolicyFileError(f"{path} is damaged ({type(error).__name__}: {error}): {AGAIN}") from error
    for role, made_for, given in (("drafter", saved.drafter, drafter), ("target", saved.target, target)):
        if given is not None and given != made_for:
            raise PolicyFileError(f"{path} was made for the {role} {made_for}, not {given}: give that {role}, or {AGAIN}")
    if cost is not None and cost.fingerprint != saved.cost.fingerprint:
        raise PolicyFileError(
            f"{path} was made for the cost model {saved.cost.fingerprint}, not {cost.fingerprint}: give that one, or {AGAIN}"
        )
    return saved


def _read(path: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The description and the arrays of a file."""
    if not path.is_file():
        raise FileNotFoundError(f"no policy {path}")
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        meta = json.loads(arrays.pop("meta").tobytes())
        format = meta["format"]
    except PermissionError:
        raise
    except DAMAGED as error:
        raise PolicyFileError(f"{path} is no policy, or it is damaged ({type(error).__name__}: {error}): {AGAIN}") from error
    if format != FORMAT:
        raise PolicyFileError(f'{path} is no policy but a file of format "{format}": {AGAIN}')
    return meta, arrays


def _unpack_policy(meta: dict[str, Any], arrays: dict[str, np.ndarray]) -> SavedPolicy:
    decide, classes = RULES[meta["rule"]]
    calibration = _unpack(meta["calibration"], arrays, (Calibration, Probe))
    if not isinstance(calibration, Calibration) or not shapes_fit(calibration):
        raise CalibrationError("its calibration has other shapes")
    cost = CostModel.from_dict(meta["cost"])
    if cost.fingerprint != meta["cost_fingerprint"]:
        raise ValueError("its cost model is not the one of its fingerprint")
    memory = np.atleast_1d(_unpack(meta["memory"], arrays, ()))
    policy = DraftPolicy(str(meta["name"]), decide, _unpack(meta["params"], arrays, classes), memory)
    return SavedPolicy(policy, calibration, cost, str(meta["drafter"]), str(meta["target"]), float(meta["temperature"]))


def _pack(value: Any, arrays: dict[str, np.ndarray]) -> Any:
    """The value as JSON, its arrays put into `arrays` and referred to by name; a NumPy number is an array of no dimension."""
    if isinstance(value, np.ndarray | np.generic) and not value.dtype.hasobject:
        name = f"array{len(arrays)}"
        arrays[name] = np.asarray(value)
        return {"array": name}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        fields = zip(value._fields, value)  # pyright: ignore[reportAttributeAccessIssue]
        return {"class": type(value).__name__, "fields": {name: _pack(field, arrays) for name, field in fields}}
    if isinstance(value, tuple):
        return [_pack(item, arrays) for item in value]
    if isinstance(value, bool | int | float):
        return value
    raise PolicyFileError(f"parameters are tuples, arrays and numbers; a file holds no {type(value).__name__}")


def _unpack(tree: Any, arrays: dict[str, np.ndarray], classes: tuple[type, ...]) -> Any:
    """What `_pack` packed; only NamedTuples of these classes, with the very fields that they have."""
    if isinstance(tree, list):
        return tuple(_unpack(item, arrays, classes) for item in tree)
    if isinstance(tree, bool | int | float):
        return tree
    if "array" in tree:
        array = arrays[tree["array"]]
        return array if array.ndim else array[()]
    kind: Any = {kind.__name__: kind for kind in classes}[tree["class"]]
    if tuple(tree["fields"]) != kind._fields:
        raise TypeError(f"{tree['class']} has the fields {list(kind._fields)}, the file {list(tree['fields'])}")
    return kind(*(_unpack(field, arrays, classes) for field in tree["fields"].values()))
