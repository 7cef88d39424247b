"""What every family must show: whatever way its inputs are fed, it is a loop over one sequence.

A family's test gives `naive(model, x)`, the paper's equations one input at a time for one sequence x (T, D), written without the
family's kernels. Here its resets, splits, rejected drafts and trees are played on the model and reduced to such sequences.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from hypothesis import settings
from hypothesis import strategies as st
from torch import Tensor

from tdraft.models.backbones import Backbone

Naive = Callable[[Backbone, Tensor], Tensor]
REPEATABLE = settings(deadline=None, derandomize=True)
"""The same plays in every run. In float32 some in a hundred have a gradient that nearly cancels, and rounding above 1e-5 of it:
RWKV-7's naive loop in float32 as often as ours, 3 and 2 in 150.
"""
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5}  # of outputs and gradients, relative to the largest entry


@dataclass(frozen=True)
class Play:
    """Pieces of a sequence as they are fed, one after the other."""

    seed: int
    batch: int
    pieces: tuple[tuple[int, int, bool], ...]  # inputs fed, of which the first so many are kept, with resets
    tree: tuple[int, ...]  # parents of a tree of drafts after them
    leaf: int  # the node where its accepted branch ends, -1: nothing is accepted
    suffix: int  # inputs after that


@st.composite
def plays(draw, longest: int = 5) -> Play:
    pieces = []
    for _ in range(draw(st.integers(1, 3))):
        fed = draw(st.integers(1, longest))
        pieces.append((fed, draw(st.integers(0, fed)), draw(st.booleans())))
    tree = tuple(draw(st.integers(-1, i - 1)) for i in range(draw(st.integers(1, 5))))
    return Play(
        draw(st.integers(0, 10**6)),
        draw(st.integers(1, 2)),
        tuple(pieces),
        tree,
        draw(st.integers(-1, len(tree) - 1)),
        draw(st.integers(1, 3)),
    )


def check(model: Backbone, naive: Naive, play: Play, dtype: torch.dtype = torch.float64) -> None:
    """Outputs and gradients of a play on `model` are those of `naive`, of inputs and of all parameters."""
    model = model.to(dtype)
    fed = sum(piece[0] for piece in play.pieces) + len(play.tree) + play.suffix
    generator = torch.Generator().manual_seed(play.seed)
    x = torch.randn(play.batch, fed, model.d_model, dtype=torch.float64, generator=generator).to(dtype)
    weights = torch.randn(play.batch, fed, model.d_model, dtype=torch.float64, generator=generator).to(dtype)
    resets = torch.rand(play.batch, fed, generator=generator) < 0.3

    ours, paths = played(model, x.requires_grad_(), resets, play)
    found = gradients(model, x, ours, weights)
    with torch.no_grad():
        unwatched, _ = played(model, x, resets, play)  # the ways without gradients may differ: kept states, fused steps
    model = model.double()
    exact = x.detach().double().requires_grad_()
    expected = torch.zeros_like(exact)
    for (b, place), path in paths.items():
        expected[b, place] = naive(model, exact[b, path])[-1]
    close("outputs", ours, expected, dtype)
    close("outputs without gradients", unwatched, expected, dtype)
    for (name, mine), right in zip(found.items(), gradients(model, exact, expected, weights.double()).values()):
        close(f"gradient of {name}", mine, right, dtype)


def played(model: Backbone, x: Tensor, resets: Tensor, play: Play) -> tuple[Tensor, dict[tuple[int, int], list[int]]]:
    """(outputs (B, fed, D), for each row and input the places of the inputs that it follows, its own last)."""
    state, place, outputs, paths = model.initial_state(len(x)), 0, [], {}
    past: list[list[int]] = [[] for _ in x]
    for fed, kept, with_resets in play.pieces:
        reset = resets[:, place : place + fed] if with_resets else None
        y, state = model(x[:, place : place + fed], state, reset=reset)
        for b in range(len(x)):
            path = past[b]
            for t in range(fed):
                path = [place + t] if reset is not None and reset[b, t] else [*path, place + t]
                paths[b, place + t] = path
            past[b] = paths[b, place + kept - 1] if kept else past[b]
        state = state.at(kept)
        outputs.append(y)
        place += fed
    y, state = model(x[:, place : place + len(play.tree)], state, parents=np.array(play.tree))
    for b in range(len(x)):
        for node, parent in enumerate(play.tree):
            paths[b, place + node] = [*(paths[b, place + parent] if parent >= 0 else past[b]), place + node]
    state = state.at(play.leaf + 1)
    outputs.append(y)
    for b in range(len(x)):
        past[b] = paths[b, place + play.leaf] if play.leaf >= 0 else past[b]
    place += len(play.tree)
    y, state = model(x[:, place : place + play.suffix], state)
    for b in range(len(x)):
        for t in range(play.suffix):
            past[b] = [*past[b], place + t]
            paths[b, place + t] = past[b]
    outputs.append(y)
    assert state.length == max(map(len, past))
    return torch.cat(outputs, dim=1), paths


def gradients(model: Backbone, x: Tensor, y: Tensor, weights: Tensor) -> dict[str, Tensor]:
    """Of sum(weights * y), by the inputs and by each parameter."""
    named = {"x": x, **dict(model.named_parameters())}
    found = torch.autograd.grad((weights * y).sum(), list(named.values()), allow_unused=True)
    return {name: torch.zeros_like(named[name]) if g is None else g for name, g in zip(named, found)}


def close(what: str, ours: Tensor, expected: Tensor, dtype: torch.dtype) -> None:
    scale = max(float(expected.detach().abs().max()), 1e-3)
    error = float((ours.detach().double() - expected.detach()).abs().max()) / scale
    assert error <= TOLERANCE[dtype], f"{what}: off by {error:.1e} of the largest entry, {scale:.1e}"


def check_long_sequence(model: Backbone, naive: Naive, recording: bool) -> None:
    """200 inputs in one call are the naive loop, and the state goes back to the 77th of them."""
    model = model.double()
    x = torch.randn(1, 200, model.d_model, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    with torch.set_grad_enabled(recording):
        y, state = model(x)
        torch.testing.assert_close(y[0], naive(model, x[0]), rtol=0, atol=1e-12)
        again, _ = model(x[:, 77:], state.at(77))
    torch.testing.assert_close(again, y[:, 77:], rtol=0, atol=1e-12)


def check_gradients_through_a_state(model: Backbone) -> None:
    """Of a loss that is no sum, by inputs of the call before."""
    model = model.double()
    x = torch.randn(2, 9, model.d_model, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).requires_grad_()
    y, state = model(x[:, :4])
    later, _ = model(x[:, 4:], state)
    (split,) = torch.autograd.grad(torch.cat((y, later), 1).sin().sum(), x)
    (whole,) = torch.autograd.grad(model(x)[0].sin().sum(), x)
    torch.testing.assert_close(split, whole, rtol=0, atol=1e-12)


def check_bfloat16(model: Backbone, place: int) -> None:
    """Outputs are bfloat16, and the memory at `place` float32; a call goes on from it."""
    model, d = model.bfloat16(), model.d_model
    y, state = model(torch.randn(1, 3, d).bfloat16())
    assert y.dtype == torch.bfloat16 and state.at(2).memories()[0][place].dtype == torch.float32
    assert model(torch.randn(1, 1, d).bfloat16(), state)[0].isfinite().all()


def check_compiles(model: Backbone, T: int = 6) -> None:
    """torch.compile makes one graph of a call, with the same outputs."""
    x = torch.randn(1, T, model.d_model)
    compiled = torch.compile(lambda x: model(x)[0], fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), model(x)[0])
