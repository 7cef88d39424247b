"""Fitting a `Probe` to what a target says of drafted tokens."""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..optimizers import schedule
from .probe import DEPTHS, Probe, Samples, no_probe

UNITS = 64
LR, WARMUP, WEIGHT_DECAY = 8e-3, 0.2, 0.1
SWEEP_PASSES, TRACE_PASSES = 2, 12
SWEEP_BATCH, TRACE_BATCH = 2048, 16  # samples; contexts
LEAST_UPDATES = 32
HELD_OUT = 5  # one context of so many says when to stop


class _Net(nn.Module):
    def __init__(self, width: int, vocab_size: int):
        super().__init__()
        self.state = nn.Linear(width, UNITS, bias=False)
        self.token, self.previous = (nn.Parameter(0.1 * torch.randn(vocab_size, UNITS)) for _ in range(2))
        self.depth, self.score = nn.Parameter(0.1 * torch.randn(DEPTHS, UNITS)), nn.Parameter(torch.randn(UNITS))
        self.out, self.line = nn.Parameter(torch.zeros(UNITS)), nn.Parameter(torch.tensor([1.0, 0.0]))

    def forward(self, samples: Samples, rows: np.ndarray) -> Tensor:
        """Corrected scores (..., K) of some rows of the samples."""
        read = [torch.from_numpy(array[rows]) for array in (samples.token, samples.previous, samples.depth, samples.score)]
        token, previous, depth, score = read[0].long(), read[1].long(), read[2].clamp(max=DEPTHS) - 1, read[3].float()
        hidden = torch.from_numpy(samples.hidden[samples.state[rows]]).float()
        units = self.state(hidden).unsqueeze(-2) + self.token[token] + self.previous[previous] + self.depth[depth]
        units = torch.relu(units + score.unsqueeze(-1) * self.score)
        return self.line[0] * score + self.line[1] + units @ self.out

    def loss(self, samples: Samples, rows: np.ndarray) -> Tensor:
        """Weighted mean cross-entropy, nats a token."""
        label, weight = (torch.from_numpy(array[rows]).float() for array in (samples.label, samples.weight))
        return F.binary_cross_entropy_with_logits(self(samples, rows), label, weight, reduction="sum") / weight.sum()

    def probe(self) -> Probe:
        weights = (self.state.weight.T, self.token, self.previous, self.depth, self.score, self.out, self.line)
        return Probe(*(weight.detach().contiguous().numpy().copy() for weight in weights))


def fit_probe(trace: Samples, sweep: Samples | None, vocab_size: int, rng: np.random.Generator) -> Probe:
    """The probe that is best on held-out contexts of the trace after any of the passes over the others; none if none is better
    than the scores themselves.

    :param trace: (C, N, K) samples
    :param sweep: (S, 1) samples to begin with
    """
    held_out, rest = np.split(rng.permutation(len(trace.token)), [max(len(trace.token) // HELD_OUT, 1)])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(rng.integers(2**31)))
        net = _Net(trace.hidden.shape[1], vocab_size)
        batches = [] if sweep is None else _batches(sweep, np.arange(len(sweep.token)), SWEEP_BATCH, SWEEP_PASSES, rng)
        first = len(batches)
        batches += _batches(trace, rest, TRACE_BATCH, TRACE_PASSES, rng)
        ends = {first + (len(batches) - first) * i // TRACE_PASSES for i in range(1, TRACE_PASSES + 1)} | {first}
        optimizer = torch.optim.AdamW(net.parameters(), lr=LR, weight_decay=WEIGHT_DECAY, fused=True)
        best, found = _loss(net, trace, held_out), no_probe()
        for step, (samples, rows) in enumerate(batches, 1):
            optimizer.param_groups[0]["lr"] = LR * schedule(step / len(batches), WARMUP, 0.0)
            optimizer.zero_grad()
            net.loss(samples, rows).backward()
            optimizer.step()
            if step in ends and (loss := _loss(net, trace, held_out)) < best:
                best, found = loss, net.probe()
    return found


def _batches(samples: Samples, rows: np.ndarray, size: int, passes: int, rng: np.random.Generator):
    """(samples, rows) of every update; a small trace is cut more finely, so that a pass takes LEAST_UPDATES."""
    parts = max(len(rows) // size, min(LEAST_UPDATES, len(rows)))
    return [(samples, part) for _ in range(passes) for part in np.array_split(rng.permutation(rows), parts)]


def _loss(net: _Net, samples: Samples, rows: np.ndarray) -> float:
    with torch.no_grad():
        return float(net.loss(samples, rows))
