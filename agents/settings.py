"""Hyper-parameters as frozen dataclasses that check themselves, and schedules of them over time."""

import difflib
from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Any, ClassVar, NamedTuple

import numpy as np

from tdraft.kernels.jit import lean


class SettingsError(ValueError):
    """A hyper-parameter that does not exist, or a value that it cannot take."""


def closest(word: str, known: Iterable[str]) -> str:
    """`; did you mean "..."?` for the known word nearest to `word`, or nothing."""
    near = difflib.get_close_matches(word.lower(), {k.lower(): k for k in known}, 1, 0.5)
    return f'; did you mean "{next(k for k in known if k.lower() == near[0])}"?' if near else ""


def check(name: str, value: Any, low: float, high: float, *, open_low: bool = False, open_high: bool = False) -> None:
    """Raise SettingsError unless value is a number between low and high."""
    interval = f"{'(' if open_low else '['}{low:g}, {high:g}{')' if open_high else ']'}"
    number = isinstance(value, int | float) and not isinstance(value, bool)
    inside = number and low <= value <= high and not (open_low and value == low) and not (open_high and value == high)
    if not inside:
        raise SettingsError(f"{name} must be {'' if number else 'a number '}in {interval}, got {value!r}")


def make_settings(cls: type, agent: str, given: dict[str, Any]) -> Any:
    """An instance of the settings dataclass `cls`; an unknown name is an error that says which exist. NumPy's numbers become
    Python's, which files can hold."""
    known = [f.name for f in fields(cls)]
    for name in given:
        if name not in known:
            raise SettingsError(f'{agent} has no hyper-parameter "{name}"{closest(name, known)} (it has {", ".join(known)})')
    return cls(**{name: value.item() if isinstance(value, np.generic) else value for name, value in given.items()})


@dataclass(frozen=True)
class StepSettings:
    """What every agent here has: step size and exploration, constant or falling linearly over `horizon` steps, and averaging."""

    largest_alpha: ClassVar[float] = 1.0

    alpha: float = 0.5
    """Step size, in (0, 1]."""
    alpha_final: float | None = None
    """Step size from step `horizon` on; by default alpha."""
    epsilon: float = 0.1
    """Exploration probability, in [0, 1]."""
    epsilon_final: float | None = None
    """Exploration probability from step `horizon` on; by default epsilon."""
    horizon: int | None = None
    """Steps over which alpha and epsilon fall, and whose last part `average` covers."""
    average: float = 0.0
    """Serve the mean of the values over this last share of the horizon (Polyak-Ruppert); 0 serves the last values."""

    def __post_init__(self):
        check("alpha", self.alpha, 0, self.largest_alpha, open_low=True)
        check("epsilon", self.epsilon, 0, 1)
        check("average", self.average, 0, 1)
        if self.alpha_final is not None:
            check("alpha_final", self.alpha_final, 0, self.largest_alpha)
        if self.epsilon_final is not None:
            check("epsilon_final", self.epsilon_final, 0, 1)
        if self.horizon is not None:
            check("horizon", self.horizon, 1, 1e15)
        for name, unset in (("alpha_final", None), ("epsilon_final", None), ("average", 0)):
            if self.horizon is None and getattr(self, name) != unset:
                raise SettingsError(f"{name}={getattr(self, name)} needs horizon, the number of steps you mean to train for")

    def schedule(self) -> "Schedule":
        rate = 1.0 / self.horizon if self.horizon else 0.0
        alpha_change = 0.0 if self.alpha_final is None else self.alpha_final - self.alpha
        epsilon_change = 0.0 if self.epsilon_final is None else self.epsilon_final - self.epsilon
        start = (1.0 - self.average) * self.horizon if self.average and self.horizon else float("inf")
        return Schedule(float(self.alpha), float(alpha_change), float(self.epsilon), float(epsilon_change), rate, start)


class Schedule(NamedTuple):
    """Numbers from which the compiled loops work out the step size and the exploration of each step."""

    alpha: float
    alpha_change: float  # from first to last
    epsilon: float
    epsilon_change: float
    rate: float  # 1 / horizon, 0 for none
    average_start: float  # step from which the values are averaged, inf for never


@lean
def step_size(schedule, now):
    """alpha at step `now`."""
    return schedule.alpha + schedule.alpha_change * min(1.0, now * schedule.rate)


@lean
def exploration(schedule, now):
    """epsilon at step `now`."""
    return schedule.epsilon + schedule.epsilon_change * min(1.0, now * schedule.rate)
