"""Pictures of grid worlds with NumPy alone: cells, walls, the agent, values as colours and numbers, a policy as arrows; GIFs."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from .grids import FOUR, Cell

FINE = 3  # everything but text is drawn so many times larger and averaged
PAPER, LINE, WALL, FORBIDDEN, GOAL, AGENT, INK = (
    np.array(colour, float)
    for colour in ((252, 252, 250), (205, 205, 200), (70, 74, 82), (246, 196, 132), (140, 205, 150), (38, 84, 170), (40, 40, 44))
)
LOW, HIGH = np.array([236, 120, 100.0]), np.array([92, 160, 214.0])  # colours of the least and the greatest value
# Digits of 3 x 5 points, a row of bits each.
FONT = {
    "0": (7, 5, 5, 5, 7), "1": (2, 6, 2, 2, 7), "2": (7, 1, 7, 4, 7), "3": (7, 1, 7, 1, 7), "4": (5, 5, 7, 1, 1),
    "5": (7, 4, 7, 1, 7), "6": (7, 4, 7, 5, 7), "7": (7, 1, 1, 2, 2), "8": (7, 5, 7, 5, 7), "9": (7, 5, 7, 1, 7),
    "-": (0, 0, 7, 0, 0), ".": (0, 0, 0, 0, 2), "e": (0, 7, 5, 6, 3), "+": (0, 2, 7, 2, 0),
}  # fmt: skip


class Layout(NamedTuple):
    """What there is to draw of an env."""

    shape: Cell
    goals: frozenset[Cell]
    walls: frozenset[Cell]
    marks: frozenset[Cell]
    moves: tuple[Cell, ...]
    agent: Cell | None


def layout(env: Any) -> Layout:
    """The layout of a grid of ours, of FrozenLake or of CliffWalking.

    :raises ValueError: an env that is no grid
    """
    env = getattr(env, "unwrapped", env)
    if hasattr(env, "moves") and hasattr(env, "marks"):
        return Layout(env.shape, env.goals, env.walls, env.marks, env.moves, env.agent)
    state = getattr(env, "s", None)
    if hasattr(env, "desc") and hasattr(env, "nrow"):
        shape = (int(env.nrow), int(env.ncol))
        where = {letter: frozenset(zip(*map(np.ndarray.tolist, np.nonzero(env.desc == letter)))) for letter in (b"G", b"H")}
        moves = ((0, -1), (1, 0), (0, 1), (-1, 0))
        return Layout(shape, where[b"G"], frozenset(), where[b"H"], moves, _cell(state, shape))
    if type(env).__name__ == "CliffWalkingEnv":
        cliff = frozenset(zip(*map(np.ndarray.tolist, np.nonzero(env._cliff))))
        return Layout(env.shape, frozenset([(3, 11)]), frozenset(), cliff, FOUR, _cell(state, env.shape))
    raise ValueError(f"expected a grid world, got {type(env).__name__}: draw_grid knows GridEnv, FrozenLake and CliffWalking")


def _cell(state: Any, shape: Cell) -> Cell | None:
    return None if state is None else divmod(int(state), shape[1])


def draw_grid(
    env: Any, values: np.ndarray | None = None, policy: np.ndarray | None = None, *, size: int = 48, numbers: bool = True
) -> np.ndarray:
    """A grid world as an image: walls dark, forbidden cells orange, goals green, the agent a blue disc.

    :param env: a `GridEnv`, FrozenLake or CliffWalking, wrapped or not
    :param values: (S,) colours of the cells from red, the least, to blue, the greatest
    :param policy: (S,) actions, or (S, A) probabilities: an arrow for each action that is taken, the longer the likelier; a dot
        stands for staying. None at a goal, except where staying is an action
    :param size: pixels a cell
    :param numbers: write the values into the cells too, where there is room
    :return: (rows * size, columns * size, 3) uint8
    :raises ValueError: an env that is no grid, or values or a policy of another size
    """
    plan = layout(env)
    rows, columns = plan.shape
    n_states = rows * columns
    if values is not None:
        values = np.asarray(values, float)
        _check("values", values, n_states)
    chances = None if policy is None else _chances(np.asarray(policy), n_states, len(plan.moves))
    shade = None if values is None else _shades(values, plan)
    image = np.empty((rows * size, columns * size, 3))
    for state in range(n_states):
        r, c = divmod(state, columns)
        tile = image[r * size : (r + 1) * size, c * size : (c + 1) * size]
        colour, arrows = None if shade is None else shade[state], None if chances is None else chances[state]
        tile[:] = _tile(plan, (r, c), size, colour, arrows)
        if values is not None and numbers and (r, c) not in plan.walls:
            _write(tile, values[state], chances is not None, over=(r, c) == plan.agent)
    return image.round().astype(np.uint8)


def _tile(plan: Layout, cell: Cell, size: int, colour: np.ndarray | None, arrows: np.ndarray | None) -> np.ndarray:
    """One cell, (size, size, 3): its colour, or its kind as a frame around it; the agent and the arrows."""
    ys, xs = (np.mgrid[: size * FINE, : size * FINE] + 0.5) / (size * FINE)  # 0..1 within the cell
    margin = np.minimum(np.minimum(ys, 1 - ys), np.minimum(xs, 1 - xs))
    tile = np.empty((size * FINE, size * FINE, 3))
    tile[:] = WALL if cell in plan.walls else PAPER if colour is None else colour
    kind = GOAL if cell in plan.goals else FORBIDDEN if cell in plan.marks else None
    if kind is not None:
        tile[margin < (0.5 if colour is None else 0.09)] = kind
    tile[margin < 0.5 / size] = LINE
    if cell == plan.agent:
        tile[np.hypot(ys - 0.5, xs - 0.5) < 0.3] = AGENT
    if arrows is not None and cell not in plan.walls and (cell not in plan.goals or (0, 0) in plan.moves):
        for action in np.flatnonzero(arrows > 0.02):
            tile[_arrow(plan.moves[action], arrows[action], ys, xs)] = PAPER if cell == plan.agent else INK
    return tile.reshape(size, FINE, size, FINE, 3).mean(axis=(1, 3))


def _check(what: str, array: np.ndarray, n_states: int) -> None:
    if array.shape[:1] != (n_states,):
        raise ValueError(f"{what} must have an entry for each of the {n_states} cells, got shape {array.shape}")


def _chances(policy: np.ndarray, n_states: int, n_actions: int) -> np.ndarray:
    """(S, A) probabilities of a policy given as actions (S,) or as probabilities."""
    _check("policy", policy, n_states)
    if policy.ndim == 1:
        if not (policy.dtype.kind in "iu" and 0 <= policy.min() and policy.max() < n_actions):
            raise ValueError(f"policy must hold actions in 0..{n_actions - 1}, got {policy.min()} to {policy.max()}")
        return np.eye(n_actions)[policy]
    if policy.shape != (n_states, n_actions) or policy.min() < 0 or np.abs(policy.sum(axis=1) - 1).max() > 1e-6:
        raise ValueError(f"policy must hold actions (S,) or probabilities of shape {(n_states, n_actions)}, got {policy.shape}")
    return policy


def _shades(values: np.ndarray, plan: Layout) -> np.ndarray:
    """(S, 3) colours: the range of the values of all cells but walls, pale in its middle."""
    free = np.array([divmod(s, plan.shape[1]) not in plan.walls for s in range(len(values))])
    low, high = values[free].min(), values[free].max()
    t = np.clip((values - low) / (high - low if high > low else 1.0), 0, 1)[:, None] * 2 - 1
    return PAPER + np.clip(t, 0, 1) * (HIGH - PAPER) + np.clip(-t, 0, 1) * (LOW - PAPER)


def _arrow(move: Cell, chance: float, ys: np.ndarray, xs: np.ndarray) -> np.ndarray:
    """Mask of an arrow from the middle of the cell, or of a dot for staying."""
    y, x = ys - 0.5, xs - 0.5
    if move == (0, 0):
        return np.hypot(y, x) < 0.04 + 0.08 * chance
    direction = np.array(move) / np.hypot(*move)
    along, across = y * direction[0] + x * direction[1], np.abs(x * direction[0] - y * direction[1])
    tip, head = 0.12 + 0.26 * chance, 0.1
    shaft = (along > 0) & (along < tip - head) & (across < 0.022)
    return shaft | ((along >= tip - head) & (along <= tip) & (across < 0.75 * (tip - along)))


def _write(tile: np.ndarray, value: float, low: bool, *, over: bool) -> None:
    """Write a number of about three digits into a cell, in its middle or low on the left; bright over the agent."""
    digits = 0 if abs(value) >= 99.95 or float(value).is_integer() else 1 if abs(value) >= 9.995 else 2
    text = f"{value:.{digits}f}"
    scale = max(1, tile.shape[0] // (48 if low else 24))
    width, height = 4 * len(text) * scale - scale, 5 * scale
    if width + 4 > tile.shape[1]:
        return
    top = tile.shape[0] - height - 2 - scale if low else (tile.shape[0] - height) // 2
    left = 2 + scale if low else (tile.shape[1] - width) // 2
    for k, letter in enumerate(text):
        points = np.array([[row >> (2 - i) & 1 for i in range(3)] for row in FONT.get(letter, (0,) * 5)], bool)
        points = points.repeat(scale, 0).repeat(scale, 1)
        part = tile[top : top + height, left + 4 * k * scale : left + 4 * k * scale + 3 * scale]
        part[points[:, : part.shape[1]]] = PAPER if over and not low else INK


def save_gif(frames: Iterable[np.ndarray], path: str | Path, *, fps: float = 8) -> None:
    """Write frames, (H, W, 3) uint8 of one size, as an animation that repeats.

    :param fps: frames a second
    :raises ValueError: no frame
    """
    from PIL import Image

    images = [Image.fromarray(np.asarray(frame, np.uint8)) for frame in frames]
    if not images:
        raise ValueError("a GIF needs at least one frame, got none")
    images[0].save(path, format="GIF", save_all=True, append_images=images[1:], duration=round(1000 / fps), loop=0)
