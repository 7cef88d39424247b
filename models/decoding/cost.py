"""The clock of a decoder, in units of one plain decoding step of the target."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..files import atomic_write

SCHEMA = 1


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
            raise ValueError(f"verify must be [0, 1, T(2)/T(1), ...] with positive entries, got {self.verify}")
        if not self.draft >= 0:
            raise ValueError(f"draft must be >= 0 units of a target step, got {self.draft}")
        if not self.unit_seconds > 0:
            raise ValueError(f"unit_seconds must be > 0, got {self.unit_seconds}")
        object.__setattr__(self, "verify", verify)

    @property
    def max_drafted(self) -> int:
        """K, the longest draft whose verification has a price."""
        return len(self.verify) - 2

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
    def load(cls, path: str | Path) -> "CostModel":
        try:
            data = json.loads(Path(path).read_text())
            if data["schema"] != SCHEMA:
                raise ValueError(f"{path}: cost model of schema {data['schema']}, expected {SCHEMA}: calibrate again")
            verify = [0.0] + [data["verify"][str(m)] for m in range(1, len(data["verify"]) + 1)]
            return cls(np.array(verify), data["draft"], data["unit_seconds"])
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise ValueError(f"{path} is not a cost model written by tdraft ({error})") from error
