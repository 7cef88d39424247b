"""Grid worlds: one base class, windy gridworld, Zhao's grid world and the mazes of Dyna."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from .base import TableEnv, merge, one_hot

Cell = tuple[int, int]  # (row, column) from the top left
# Clockwise from up, as in CliffWalking-v1; then the diagonals, then staying.
MOVES: tuple[Cell, ...] = ((-1, 0), (0, 1), (1, 0), (0, -1), (-1, 1), (1, 1), (1, -1), (-1, -1), (0, 0))
FOUR, KING, KING_AND_STAY = MOVES[:4], MOVES[:8], MOVES
FOUR_AND_STAY = (*MOVES[:4], MOVES[8])


class GridEnv(TableEnv):
    """A grid of cells; state = row * columns + column. Rendering: "ansi", and "rgb_array" drawn with NumPy.

    :param shape: rows and columns
    :param transitions: `P` or a Table over rows * columns states
    :param start: (S,) probabilities, or one cell
    :param goals, walls, marks: cells to draw as goals, walls and forbidden ones
    :param moves: (row, column) change of each action, for the arrows of a policy
    """

    metadata: dict[str, Any] = {"render_modes": ["ansi", "rgb_array"], "render_fps": 8}  # noqa: RUF012

    def __init__(
        self,
        shape: Cell,
        transitions: Any,
        start: np.ndarray | Cell,
        *,
        goals: Iterable[Cell] = (),
        walls: Iterable[Cell] = (),
        marks: Iterable[Cell] = (),
        moves: Sequence[Cell] = FOUR,
        render_mode: str | None = None,
    ):
        self.shape, self.moves = shape, tuple(moves)
        self.goals, self.walls, self.marks = frozenset(goals), frozenset(walls), frozenset(marks)
        if not isinstance(start, np.ndarray):
            inside(shape, start, "start")
            start = one_hot(shape[0] * shape[1], start[0] * shape[1] + start[1])
        super().__init__(transitions, start, render_mode=render_mode)

    @property
    def agent(self) -> Cell | None:
        """Where the agent is; None before the first episode."""
        return None if self._obs is None else divmod(int(self._obs), self.shape[1])

    def render(self):
        """Text ("ansi": # wall, x forbidden, G goal, o agent) or an image, (H, W, 3) uint8."""
        if self.render_mode == "ansi":
            return grid_text(self)
        if self.render_mode == "rgb_array":
            from .drawing import draw_grid

            return draw_grid(self, size=max(8, min(48, 768 // max(self.shape))))
        return None


def grid_text(env: GridEnv) -> str:
    """The grid as text, a line a row."""

    def letter(cell: Cell) -> str:
        if cell == env.agent:
            return "o"
        return "#" if cell in env.walls else "G" if cell in env.goals else "x" if cell in env.marks else "."

    return "".join("".join(letter((r, c)) for c in range(env.shape[1])) + "\n" for r in range(env.shape[0]))


def inside(shape: Cell, cell: Cell, what: str) -> None:
    """:raises ValueError: a cell outside the grid"""
    if not (0 <= cell[0] < shape[0] and 0 <= cell[1] < shape[1]):
        raise ValueError(f"{what} must lie in the grid of {shape[0]} x {shape[1]}, got {tuple(cell)}")


Outcome = tuple[float, Cell, float, bool]


def grid_table(shape: Cell, n_actions: int, outcomes: Callable[[Cell, int], list[Outcome]]) -> dict:
    """`P` over a grid from `outcomes(cell, action)` = list of (probability, next cell, reward, terminated)."""
    rows, columns = shape
    return {
        r * columns + c: {
            a: merge([(p, cell[0] * columns + cell[1], reward, end) for p, cell, reward, end in outcomes((r, c), a)])
            for a in range(n_actions)
        }
        for r in range(rows)
        for c in range(columns)
    }


class WindyGridworld(GridEnv):
    """A crosswind pushes upwards through the middle of the grid (Sutton & Barto, ex 6.5, exercises 6.9 and 6.10).

    The reward is -1 a step until the goal; a move off the grid stops at its edge. The way takes 15 steps, 7 with king's moves.

    :param moves: 4, 8 (king's moves) or 9 (king's moves and staying)
    :param stochastic: where there is wind, it is one less, as given or one more, with probability 1/3 each
    :param wind: strength in each column
    """

    def __init__(
        self,
        *,
        moves: int = 4,
        stochastic: bool = False,
        wind: Sequence[int] = (0, 0, 0, 1, 1, 1, 2, 2, 1, 0),
        rows: int = 7,
        start: Cell = (3, 0),
        goal: Cell = (3, 7),
        render_mode: str | None = None,
    ):
        if moves not in (4, 8, 9):
            raise ValueError(f"moves must be 4, 8 or 9, got {moves}")
        shape, steps = (rows, len(wind)), MOVES[:moves]
        inside(shape, goal, "goal")

        def outcomes(cell: Cell, action: int) -> list[Outcome]:
            if cell == goal:
                return [(1.0, goal, 0.0, True)]
            strength, (down, right) = wind[cell[1]], steps[action]
            gusts = (-1, 0, 1) if stochastic and strength else (0,)
            column = min(max(cell[1] + right, 0), shape[1] - 1)
            reached = [(min(max(cell[0] + down - strength - gust, 0), rows - 1), column) for gust in gusts]
            return [(1 / len(gusts), to, -1.0, to == goal) for to in reached]

        self.wind = tuple(wind)
        transitions = grid_table(shape, moves, outcomes)
        super().__init__(shape, transitions, start, goals=[goal], moves=steps, render_mode=render_mode)


class ZhaoGrid(GridEnv):
    """The grid world of S. Zhao, *Mathematical Foundations of Reinforcement Learning*; by default the book's of 5 x 5.

    Actions: up, right, down, left, stay. A move off the grid stays where it is and pays `r_boundary`; entering (or staying in) a
    forbidden cell pays `r_forbidden`, the target `r_target`, any other cell `r_other`. The task is continuing: at the target the
    agent goes on collecting. gamma is .9 in the book.

    :param terminal: end the episode at the target (chapter 7's episodes)
    :param start: a cell, or None for all cells alike
    """

    def __init__(
        self,
        *,
        shape: Cell = (5, 5),
        forbidden: Iterable[Cell] = ((1, 1), (1, 2), (2, 2), (3, 1), (3, 3), (4, 1)),
        target: Cell = (3, 2),
        r_boundary: float = -1.0,
        r_forbidden: float = -1.0,
        r_target: float = 1.0,
        r_other: float = 0.0,
        terminal: bool = False,
        start: Cell | None = (0, 0),
        render_mode: str | None = None,
    ):
        forbidden = frozenset((int(r), int(c)) for r, c in forbidden)
        for cell in forbidden:
            inside(shape, cell, "a forbidden cell")
        inside(shape, target, "target")

        def outcomes(cell: Cell, action: int) -> list[Outcome]:
            if terminal and cell == target:
                return [(1.0, cell, 0.0, True)]
            to = (cell[0] + FOUR_AND_STAY[action][0], cell[1] + FOUR_AND_STAY[action][1])
            if not (0 <= to[0] < shape[0] and 0 <= to[1] < shape[1]):
                return [(1.0, cell, r_boundary, False)]
            reward = r_target if to == target else r_forbidden if to in forbidden else r_other
            return [(1.0, to, reward, terminal and to == target)]

        size = shape[0] * shape[1]
        super().__init__(
            shape,
            grid_table(shape, 5, outcomes),
            np.full(size, 1 / size) if start is None else start,
            goals=[target],
            marks=forbidden,
            moves=FOUR_AND_STAY,
            render_mode=render_mode,
        )


def maze_table(shape: Cell, walls: Iterable[Cell], goal: Cell) -> dict:
    """`P` of a maze: +1 for reaching the goal, which ends the episode; a move into a wall or off the grid goes nowhere."""
    walls = frozenset(walls)

    def outcomes(cell: Cell, action: int) -> list[Outcome]:
        if cell == goal:
            return [(1.0, goal, 0.0, True)]
        to = (cell[0] + FOUR[action][0], cell[1] + FOUR[action][1])
        if not (0 <= to[0] < shape[0] and 0 <= to[1] < shape[1]) or to in walls:
            to = cell
        return [(1.0, to, float(to == goal), to == goal)]

    return grid_table(shape, 4, outcomes)


class DynaMaze(GridEnv):
    """The maze of Dyna-Q (Sutton & Barto, ex 8.1): +1 at the goal, else 0; gamma is .95 in the book. The way takes 14 steps."""

    def __init__(
        self,
        *,
        shape: Cell = (6, 9),
        walls: Iterable[Cell] = ((1, 2), (2, 2), (3, 2), (4, 5), (0, 7), (1, 7), (2, 7)),
        start: Cell = (2, 0),
        goal: Cell = (0, 8),
        render_mode: str | None = None,
    ):
        walls = frozenset((int(r), int(c)) for r, c in walls)
        transitions = maze_table(shape, walls, goal)
        super().__init__(shape, transitions, start, goals=[goal], walls=walls, render_mode=render_mode)
