"""The racetrack (Sutton & Barto, exercise 5.12): around a bend as fast as one can without leaving the track."""

from collections.abc import Sequence

import numpy as np

from .base import merge
from .grids import Cell, GridEnv

SPEEDS = 5  # components of the velocity are 0 to 4 cells a step
# The left track of the book's figure 5.5: # beyond the track, S start, F finish.
BEND = (
    "###.............F",
    *("##..............F",) * 2,
    "#...............F",
    *("................F",) * 2,
    "..........#######",
    *(".........########",) * 7,
    *("#........########",) * 8,
    *("##.......########",) * 7,
    *("###......########",) * 2,
    "###SSSSSS########",
)


def path(cell: Cell, velocity: Cell) -> list[Cell]:
    """Cells on the straight way from `cell`, without it, with (up, right) velocity."""
    n = max(velocity)
    return [
        (cell[0] - (2 * k * velocity[0] + n) // (2 * n), cell[1] + (2 * k * velocity[1] + n) // (2 * n)) for k in range(1, n + 1)
    ]


class Racetrack(GridEnv):
    """States are (cell, velocity up, velocity right): state = (index in `cells` * 5 + up) * 5 + right.

    Action a changes the velocity by (a // 3 - 1, a % 3 - 1); with probability `slip` it changes nothing. Components stay in
    0..4, and both are 0 on the starting line only: elsewhere such a change is ignored. Reward -1 a step. A way that leaves the
    track leads to a random start cell with velocity 0; one that meets the finish line ends the episode.

    :param track: rows of the characters # S F and . (track); by default the left one of the book's figure 5.5
    """

    def __init__(self, track: Sequence[str] = BEND, *, slip: float = 0.1, render_mode: str | None = None):
        if not 0 <= slip <= 1:
            raise ValueError(f"slip must be a probability in [0, 1], got {slip}")
        shape = (len(track), len(track[0]))
        if any(len(row) != shape[1] for row in track) or not set("SF") <= set("".join(track)) <= set("#SF."):
            raise ValueError(f"track must be rows of one length of #, ., S and F, with an S and an F, got {list(track)}")
        cells = {(r, c): track[r][c] for r in range(shape[0]) for c in range(shape[1])}
        starts = [cell for cell, letter in cells.items() if letter == "S"]
        self.cells = [cell for cell, letter in cells.items() if letter != "#"]
        index = {cell: i for i, cell in enumerate(self.cells)}
        n_states = len(self.cells) * SPEEDS**2

        def number(cell: Cell, velocity: Cell = (0, 0)) -> int:
            return (index[cell] * SPEEDS + velocity[0]) * SPEEDS + velocity[1]

        crash = [(1 / len(starts), number(cell), -1.0, False) for cell in starts]

        def drive(cell: Cell, velocity: Cell) -> list[tuple[float, int, float, bool]]:
            """Outcomes of going from `cell` with the new velocity."""
            for passed in path(cell, velocity) if any(velocity) else []:
                if cells.get(passed, "#") == "F":
                    return [(1.0, number(passed), -1.0, True)]
                if cells.get(passed, "#") == "#":
                    return crash
            return [(1.0, number((cell[0] - velocity[0], cell[1] + velocity[1]), velocity), -1.0, False)]

        def change(cell: Cell, velocity: Cell, action: int) -> Cell:
            up, right = (min(max(v + d - 1, 0), SPEEDS - 1) for v, d in zip(velocity, divmod(action, 3)))
            return (up, right) if up or right or cells[cell] == "S" else velocity

        transitions = {}
        for cell in self.cells:
            for velocity in ((u, r) for u in range(SPEEDS) for r in range(SPEEDS)):
                here = number(cell, velocity)
                if cells[cell] == "F":
                    transitions[here] = {a: [(1.0, here, 0.0, True)] for a in range(9)}
                    continue
                kept = drive(cell, change(cell, velocity, 4))
                transitions[here] = {
                    a: merge(
                        [((1 - slip) * p, *rest) for p, *rest in drive(cell, change(cell, velocity, a))]  # pyright: ignore
                        + [(slip * p, *rest) for p, *rest in kept]
                    )
                    for a in range(9)
                }
        start = np.zeros(n_states)
        start[[number(cell) for cell in starts]] = 1 / len(starts)
        super().__init__(
            shape,
            transitions,
            start,
            goals=[cell for cell, letter in cells.items() if letter == "F"],
            walls=[cell for cell, letter in cells.items() if letter == "#"],
            marks=(),
            moves=tuple((-u, r) for u in (-1, 0, 1) for r in (-1, 0, 1)),
            render_mode=render_mode,
        )

    @property
    def agent(self) -> Cell | None:
        return None if self._obs is None else self.cells[int(self._obs) // SPEEDS**2]
