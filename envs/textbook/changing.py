"""Mazes that change at a step: the blocking maze and the shortcut maze (Sutton & Barto, ex 8.2 and 8.3).

How a changing env is compiled: the parameters hold both tables and an array with the number of steps taken. The step function
counts in that array, across episodes, and reads the table that is in force. The array is named in `mutable`, so that an agent
gets a count of its own and `save` stores it. A reset with a seed starts the count again.
"""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from tdraft.envs.compiled import CompiledEnv, Reason, Table, table_env, table_reset, table_step
from tdraft.kernels.jit import lean

from .base import table_to_dict
from .grids import Cell, GridEnv, maze_table

ROW = 3  # of the wall, of 6 rows and 9 columns
START, GOAL, SHAPE = (5, 3), (0, 8), (6, 9)


class Changing(NamedTuple):
    """Two tables and the step at which the second comes into force."""

    before: Table
    after: Table
    count: np.ndarray  # (1,) int64 steps taken, over all episodes
    change_at: int


@lean
def changing_reset(params, rng):
    return table_reset(params.before, rng)


@lean
def changing_step(params, obs, action, rng):
    changed = params.count[0] >= params.change_at
    params.count[0] += 1
    if changed:
        return table_step(params.after, obs, action, rng)
    return table_step(params.before, obs, action, rng)


class ChangingMaze(GridEnv):
    """A maze whose walls change once.

    :param before, after: wall cells
    :param change_at: steps taken before the change, over all episodes since the last reset with a seed
    """

    reset_rule = staticmethod(changing_reset)
    step_rule = staticmethod(changing_step)
    mutable = ("count",)

    def __init__(self, before: Iterable[Cell], after: Iterable[Cell], change_at: int, *, render_mode: str | None = None):
        if change_at < 0:
            raise ValueError(f"change_at must be a number of steps >= 0, got {change_at}")
        self._layouts = frozenset(before), frozenset(after)
        first, second = (maze_table(SHAPE, walls, GOAL) for walls in self._layouts)
        super().__init__(SHAPE, first, START, goals=[GOAL], walls=self._layouts[0], render_mode=render_mode)
        del self.__dict__["P"]
        both = (table_env(table, self.initial_state_distrib).params for table in (first, second))
        self.params = Changing(*both, count=np.zeros(1, np.int64), change_at=change_at)

    @property
    def changed(self) -> bool:
        """Whether the next step meets the second layout."""
        return bool(self.params.count[0] >= self.params.change_at)

    @property
    def P(self):  # pyright: ignore[reportIncompatibleVariableOverride]
        """The toy-text table that is in force."""
        return table_to_dict(self.params.after if self.changed else self.params.before)

    @property
    def walls(self) -> frozenset[Cell]:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self._layouts[self.changed] if isinstance(self.params, Changing) else self._layouts[0]

    @walls.setter
    def walls(self, walls: frozenset[Cell]) -> None:
        """Set by the base class; the layouts say it all."""

    def restart(self) -> None:
        super().restart()
        self.params.count[0] = 0

    def compiled(self) -> CompiledEnv | Reason:
        made = super().compiled()
        if isinstance(made, Reason):
            return made
        return made._replace(params=self.params._replace(count=np.zeros(1, np.int64)))


class BlockingMaze(ChangingMaze):
    """A wall with a gap on the right; after 1000 steps the gap closes and another opens on the left."""

    def __init__(self, *, change_at: int = 1000, render_mode: str | None = None):
        right, left = [(ROW, c) for c in range(8)], [(ROW, c) for c in range(1, 9)]
        super().__init__(right, left, change_at, render_mode=render_mode)


class ShortcutMaze(ChangingMaze):
    """A wall with a gap on the left; after 3000 steps a shorter way opens on the right, and the old one stays."""

    def __init__(self, *, change_at: int = 3000, render_mode: str | None = None):
        closed, opened = [(ROW, c) for c in range(1, 9)], [(ROW, c) for c in range(1, 8)]
        super().__init__(closed, opened, change_at, render_mode=render_mode)
