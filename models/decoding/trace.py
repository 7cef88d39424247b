"""Recorded traces: what the drafter would propose at every position of a text, and how the target would judge it.

With greedy (one-hot) drafts and position-keyed noise the emitted text does not depend on the policy, so a trace gives the exact
outcome of every policy, at temperature 0 and above (../shared/FORMULAS.md has the argument; docs/decoding.md repeats it).
"""

import json
from dataclasses import dataclass, field, fields, replace
from pathlib import Path

import numpy as np

from ..files import DAMAGED, atomic_write
from .observation import N_FEATURES

SCHEMA = 3


class TraceError(ValueError):
    """A file that is no trace, or a trace of another drafter, target or schema."""


@dataclass(frozen=True)
class Trace:
    """C contexts, N emitted positions in each, K proposed tokens at each position.

    :param tokens: (C, N) int32, what the target emits
    :param prompts: (C, P) int32, P >= 2
    :param proposals: (C, N, K) int32, the drafter's greedy continuation of the text before the position
    :param features: (C, N, K, 4) float32: confidence, entropy (nats), order, log(1 + count) of each proposed token
    :param target_prob: (C, N, K) float64, the target's probability of each proposed token given the ones before it
    :param accepted: (C, N) int32, how many leading proposals the target accepts, 0..K
    :param target_entropy: (C, N) float32, of the target at the last verified position when a round starts there, nats
    :param hidden: (C, N, D) float32, the target's last hidden state there; D may be 0 where nobody asks for it
    :param margin: (C, N) float32, distance of the choice of each emitted token from a tie between the two best candidates
    :param meta: drafter, target (fingerprints), temperature, text, corpus hash, ...
    """

    tokens: np.ndarray
    prompts: np.ndarray
    proposals: np.ndarray
    features: np.ndarray
    target_prob: np.ndarray
    accepted: np.ndarray
    target_entropy: np.ndarray
    hidden: np.ndarray
    margin: np.ndarray
    meta: dict = field(default_factory=dict)

    def __post_init__(self):
        c, n, k = self.proposals.shape
        expected = {
            "tokens": (c, n),
            "prompts": (c, *self.prompts.shape[1:2]),
            "features": (c, n, k, N_FEATURES),
            "target_prob": (c, n, k),
            "accepted": (c, n),
            "target_entropy": (c, n),
            "hidden": (c, n, *self.hidden.shape[2:3]),
            "margin": (c, n),
        }
        for name, shape in expected.items():
            if getattr(self, name).shape != shape:
                raise TraceError(f"trace: {name} has shape {getattr(self, name).shape}, expected {shape}")
        if self.prompts.ndim != 2 or self.prompts.shape[1] < 2:
            raise TraceError(f"trace: prompts must be (C, P) with P >= 2, got shape {self.prompts.shape}")

    @property
    def shape(self) -> tuple[int, int, int]:
        """(contexts C, positions N, proposals K)."""
        c, n, k = self.proposals.shape
        return c, n, k

    def select(self, contexts) -> "Trace":
        """The trace of some of the contexts (an index array or slice)."""
        arrays = {f.name: getattr(self, f.name)[contexts] for f in fields(self) if f.name != "meta"}
        return replace(self, **arrays)

    def save(self, path: str | Path) -> None:
        """Write one `.npz`, through a temporary file."""
        arrays = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "meta"}
        with atomic_write(Path(path).with_suffix(".npz")) as temporary, open(temporary, "wb") as file:
            np.savez(file, meta=np.array(json.dumps({"schema": SCHEMA, **self.meta})), **arrays)

    @classmethod
    def load(cls, path: str | Path, *, drafter: str | None = None, target: str | None = None) -> "Trace":
        """Read a trace; with fingerprints given, refuse one of another drafter or target.

        :raises TraceError: if the file is truncated, foreign, of another schema or of another model
        """
        try:
            with np.load(path, allow_pickle=False) as data:
                meta = json.loads(str(data["meta"]))
                arrays = {f.name: data[f.name] for f in fields(cls) if f.name != "meta"}
        except FileNotFoundError:
            raise
        except DAMAGED as error:
            raise TraceError(f"{path} is no complete tdraft trace ({type(error).__name__}: {error}); record it again") from error
        if meta.pop("schema", None) != SCHEMA:
            raise TraceError(f"{path}: trace of another schema than {SCHEMA}; record it again")
        for role, wanted in (("drafter", drafter), ("target", target)):
            if wanted is not None and meta.get(role) != wanted:
                raise TraceError(f"{path} was recorded with {role} {meta.get(role)}, not {wanted}; record it again")
        return cls(**arrays, meta=meta)
