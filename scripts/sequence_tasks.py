"""Four tasks that tell sequence models apart; each draws a batch of (inputs, targets, where to answer).

B batch   T inputs   V vocabulary
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

Batch = tuple[Tensor, Tensor, Tensor]  # inputs (B, T) int64 or (B, T, F) float32; targets (B, T) or (B,); (B, T) bool answers


@dataclass(frozen=True, kw_only=True)
class Task:
    """A task, the lengths that it is trained and tested at, and what training it gets."""

    name: str
    vocabulary: int = 0  # of the inputs; 0: real vectors
    n_inputs: int = 0  # width of a real input vector; 0 for tokens
    n_outputs: int  # classes; 1: a number, whose squared error counts
    first_length: int  # of the first training sequences
    length: int  # of the last
    test_lengths: tuple[int, ...]
    steps: int
    batch: int  # sequences a step
    draw: Callable[[np.random.Generator, int, int, bool], Batch]  # (rng, batch size, length, test)

    def length_at(self, progress: float) -> int:
        """How long the sequences are after a share of the training: they grow by a constant factor for four fifths of it."""
        return round(self.first_length * (self.length / self.first_length) ** min(progress / 0.8, 1.0))


COPIED, NOISE, QUERY, SYMBOLS = 8, 0, 1, 14  # symbols are the tokens from 2 on


def selective_copying(rng: np.random.Generator, size: int, length: int, test: bool) -> Batch:
    """Repeat the 8 symbols, in their order, that were strewn over noise (Gu & Dao 2023, sec. 4.1.1, after Jing et al. 2019).

    Where they stand changes from sequence to sequence: what to remember depends on the input, not on the time.
    """
    symbols = rng.integers(2, 2 + SYMBOLS, (size, COPIED))
    places = np.sort(rng.random((size, length)).argsort(1)[:, :COPIED], axis=1)
    text = np.full((size, length), NOISE)
    np.put_along_axis(text, places, symbols, axis=1)
    inputs = np.concatenate([text, np.full((size, COPIED), QUERY)], axis=1)
    targets = np.concatenate([np.zeros_like(text), symbols], axis=1)
    return _tensors(inputs, targets, np.arange(inputs.shape[1]) >= length)


MARK = 0  # the special token of the induction heads


def induction_heads(rng: np.random.Generator, size: int, length: int, test: bool) -> Batch:
    """Recall what followed a special token at its first appearance, when it comes again at the end (Olsson et al. 2022)."""
    text = rng.integers(1, 16, (size, length))
    first = rng.integers(0, length - 2, size)
    text[np.arange(size), first] = MARK
    text[:, -1] = MARK
    targets = np.zeros_like(text)
    targets[:, -1] = text[np.arange(size), first + 1]
    return _tensors(text, targets, np.arange(length) == length - 1)


def adding(rng: np.random.Generator, size: int, length: int, test: bool) -> Batch:
    """The sum of the two numbers that are marked, one in each half (Hochreiter & Schmidhuber 1997); variance 1/6."""
    numbers, marks = rng.random((size, length)), np.zeros((size, length))
    half = length // 2
    marks[np.arange(size), rng.integers(0, half, size)] = 1
    marks[np.arange(size), rng.integers(half, length, size)] = 1
    targets = np.zeros((size, length))
    targets[:, -1] = (numbers * marks).sum(1)
    inputs, targets, places = _tensors(np.stack([numbers, marks], axis=2), targets, np.arange(length) == length - 1)
    return inputs.float(), targets.float(), places


@lru_cache
def _digits() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Images (1797, 64) in 0..1, classes, and which are for training: four fifths, by a fixed shuffle."""
    try:
        from sklearn.datasets import load_digits
    except ModuleNotFoundError:
        raise ImportError("the digits come with scikit-learn: pip install scikit-learn, or choose other --tasks") from None
    data, target = load_digits(return_X_y=True)
    train = np.random.default_rng(0).permutation(len(target)) < len(target) * 4 // 5
    return np.asarray(data) / 16, np.asarray(target), train


def digits(rng: np.random.Generator, size: int, length: int, test: bool) -> Batch:
    """scikit-learn's handwritten digits, 8 x 8 grey values as a sequence of 64; tests are all of the held-out fifth."""
    images, classes, train = _digits()
    rows = np.flatnonzero(~train) if test else rng.choice(np.flatnonzero(train), size)
    targets = np.repeat(classes[rows][:, None], length, axis=1)
    inputs, targets, places = _tensors(images[rows][..., None], targets, np.arange(length) == length - 1)
    return inputs.float(), targets, places


def _tensors(inputs: np.ndarray, targets: np.ndarray, places: np.ndarray) -> Batch:
    return torch.from_numpy(inputs), torch.from_numpy(targets), torch.from_numpy(np.broadcast_to(places, targets.shape).copy())


TASKS = {
    task.name: task
    for task in (
        Task(
            name="selective-copying",
            vocabulary=2 + SYMBOLS,
            n_outputs=2 + SYMBOLS,
            first_length=16,
            length=128,
            test_lengths=(128, 256),
            steps=1600,
            batch=32,
            draw=selective_copying,
        ),
        Task(
            name="induction-heads",
            vocabulary=16,
            n_outputs=16,
            first_length=64,
            length=64,
            test_lengths=(64, 128, 256),
            steps=500,
            batch=32,
            draw=induction_heads,
        ),
        Task(
            name="adding",
            n_inputs=2,
            n_outputs=1,
            first_length=64,
            length=64,
            test_lengths=(64,),
            steps=400,
            batch=32,
            draw=adding,
        ),
        Task(
            name="digits",
            n_inputs=1,
            n_outputs=10,
            first_length=64,
            length=64,
            test_lengths=(64,),
            steps=500,
            batch=32,
            draw=digits,
        ),
    )
}
