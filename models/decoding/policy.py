"""A compiled decoding policy: the same function decides in the simulator, on traces, in the live env and in the decoder."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np


@dataclass(frozen=True)
class DraftPolicy:
    """A rule that maps an observation to VERIFY, DRAFT or DROP.

    :param name: shown in reports
    :param decide: `@njit decide(params, memory, obs) -> int`, see `observation.py` for obs
    :param params: whatever arrays and numbers the rule needs, as a (named) tuple that Numba takes
    :param memory: (M,) float64, what the rule carries from round to round inside one text; `decide` changes it in place. A round
        begins where obs[DRAFTED] is 0, a text where obs[LAST_DRAFTED] is -1 as well.
    """

    name: str
    decide: Callable
    params: Any = ()
    memory: np.ndarray = field(default_factory=lambda: np.zeros(1))

    def fresh(self) -> "DraftPolicy":
        """The same rule with a memory of its own, as it is at the start of a text."""
        return DraftPolicy(self.name, self.decide, self.params, self.memory.copy())

    def __call__(self, obs: np.ndarray) -> int:
        return self.decide(self.params, self.memory, obs)
