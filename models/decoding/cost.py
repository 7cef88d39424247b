"""The clock of a decoder, in units of one plain decoding step of the target."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..files import atomic_write

SCHEMA = 1


class CostError(ValueError):
    """Prices that are none, or a file that is no cost model of this version."""


@dataclass(frozen=True)
class CostModel:
    """What drafting and verifying cost.

    :param verify: (K + 2,) verify[m] = T(m) / T(1), the time of a target call on m tokens; verify[0] is 0 and verify[1] is 1
    :param draft: time of one drafted token
    :param unit_seconds: T(1) in seconds, what one unit of time is on the wall clock
    """

    verify: np.ndarray
    draft: float
    unit_seconds: float

    def __post_init__(self):
        verify = np.asarray(self.verify, np.float64)
        if verify.ndim != 1 or len(verify) < 2 or verify[1] != 1.0 or not np.all(verify[1:] > 0):
            raise CostError(f"verify must be [0, 1, T(2)/T(1), ...] with positive entries, got {self.verify}")
        if not self.draft >= 0:
            raise CostError(f"draft must be >= 0 units of a target step, got {self.draft}")
        if not self.unit_seconds > 0:
            raise CostError(f"unit_seconds must be > 0, got {self.unit_seconds}")
        object.__setattr__(self, "verify", verify)

    @property
    def max_drafted(self) -> int:
        """K, the longest draft whose verification has a price."""
        return len(self.verify) - 2

    @property
    def fingerprint(self) -> str:
        """16 hex digits of the sha256 of all prices; the same after `save` and `load`."""
        prices = np.array([self.unit_seconds, self.draft, *self.verify], np.float64)
        return hashlib.sha256(f"{SCHEMA} ".encode() + prices.tobytes()).hexdigest()[:16]

    def with_draft(self, draft: float) -> "CostModel":
        """The same target with a drafter of another price."""
        return CostModel(self.verify, draft, self.unit_seconds)

    def scaled(self, factor: float) -> "CostModel":
        """Every cost beyond a plain step wrong by `factor`: T(m)/T(1) - 1 and the draft cost are multiplied by it."""
        verify = self.verify.copy()
        verify[1:] = 1.0 + (verify[1:] - 1.0) * factor
        return CostModel(verify, self.draft * factor, self.unit_seconds)

    def to_dict(self) -> dict:
        return {
            "schema": SCHEMA,
            "unit_seconds": self.unit_seconds,
            "draft": self.draft,
            "verify": {str(m): float(self.verify[m]) for m in range(1, len(self.verify))},
        }

    def save(self, path: str | Path) -> None:
        with atomic_write(path) as temporary:
            temporary.write_text(json.dumps(self.to_dict(), indent=1))

    @classmethod
    def from_dict(cls, data: dict) -> "CostModel":
        """The cost model that `to_dict` described.

        :raises CostError: another schema, or no description of a cost model
        """
        try:
            schema, verify = data["schema"], data["verify"]
            prices = [0.0] + [float(verify[str(m)]) for m in range(1, len(verify) + 1)]
            draft, unit_seconds = float(data["draft"]), float(data["unit_seconds"])
        except (KeyError, TypeError, ValueError) as error:
            raise CostError(f"not a cost model written by tdraft ({type(error).__name__}: {error})") from error
        if schema != SCHEMA:
            raise CostError(f"cost model of schema {schema}, expected {SCHEMA}: calibrate again")
        return cls(np.array(prices), draft, unit_seconds)

    @classmethod
    def load(cls, path: str | Path) -> "CostModel":
        """:raises CostError: a file that `save` of this version didn't write"""
        text = Path(path).read_bytes()
        try:
            data = json.loads(text)
        except ValueError as error:  # neither JSON nor UTF-8
            raise CostError(f"{path} is not a cost model written by tdraft ({error})") from error
        try:
            return cls.from_dict(data)
        except CostError as error:
            raise CostError(f"{path}: {error}") from error
