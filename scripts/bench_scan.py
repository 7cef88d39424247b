"""`tdraft bench scan`: the scan kernels beside other ways to the same numbers, one thread, CPU time, in one run."""

import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from tdraft.kernels.diagonal_ssm import diagonal_ssm
from tdraft.kernels.linear_scan import linear_scan
from tdraft.kernels.selective_scan import selective_scan
from tdraft.kernels.ssd import ssd
from tdraft.kernels.wkv4 import wkv4
from tdraft.kernels.wkv7 import wkv7
from tdraft.models.threads import one_thread
from tdraft.scripts.results import write_rows

SHAPE = (1, 1024, 512, 16)  # of the selective scan: B, T, D, N
TURN = 0.1  # seconds of a run, or one call if that takes longer; a processor needs some 20 ms to come to speed
DIAGONAL = (1, 16384, 256)  # of the complex diagonal recurrence: B, T, D


@dataclass(frozen=True)
class ScanBench:
    """Measure the scan kernels beside torch loops and other libraries: one thread, interleaved runs, medians of CPU time."""

    repeats: int = 7
    """runs of each measurement, after one that compiles and warms up; slow peers take three"""
    peers: bool = True
    """also measure what is slow: torch loops, Hugging Face's ways, torch.compile"""
    json: Path | None = None
    """also write the rows to this file"""


@dataclass(frozen=True)
class Job:
    name: str
    work: Callable[[], Any]
    slow: bool = False


def seconds(jobs: Sequence[Job], repeats: int) -> list[np.ndarray]:
    """CPU seconds a call in each job's runs, taken in turn. A run is as many calls as take TURN, after one for the caches, which
    the job before it has filled.
    """
    for job in jobs:
        job.work()
    found: list[list[float]] = [[] for _ in jobs]
    for r in range(repeats):
        for times, job in zip(found, jobs):
            if not job.slow or r < 3:
                job.work()
                start, calls = time.process_time(), 0
                while not calls or time.process_time() - start < TURN:
                    job.work()
                    calls += 1
                times.append((time.process_time() - start) / calls)
    return [np.array(times) for times in found]


def compare(title: str, jobs: Sequence[Job], repeats: int, size: float = 0.0, unit: str = "") -> list[dict]:
    """Rows of the first job and its peers, printed.

    :param size: units of work in a run, 0 where only times are of interest
    """
    times = seconds(jobs, repeats)
    ours = float(np.median(times[0]))
    rows = []
    for job, t in zip(jobs, times):
        median, error = float(np.median(t)), float(t.std(ddof=1) / len(t) ** 0.5) if len(t) > 1 else None
        rate = f"  {size / median / 1e9:7.2f} G {unit}/s" if size else ""
        ratio = "" if job is jobs[0] else f"  {median / ours:7.1f} x ours"
        print(
            f"{title:44} {job.name:38} {1e3 * median:9.3f} ms  [{1e3 * t.min():.3f}, {1e3 * t.max():.3f}]{rate}{ratio}",
            flush=True,
        )
        row = {"name": f"{title}: {job.name}", "metric": "CPU time", "value": median, "unit": "s", "runs": len(t), "se": error}
        rows.append(row if job is jobs[0] else row | {"peer": jobs[0].name, "ratio": median / ours})
    return rows


def with_gradients(function: Callable[..., Any], inputs: Sequence[Tensor]) -> Callable[[], None]:
    """Forward and backward of the sum of the function's first output, by all inputs."""
    leaves = [x.clone().requires_grad_() for x in inputs]

    def work() -> None:
        found = function(*leaves)
        torch.autograd.grad((found[0] if isinstance(found, tuple) else found).sum(), leaves, allow_unused=True)

    return work


def without_gradients(function: Callable[..., Any], inputs: Sequence[Tensor]) -> Callable[[], None]:
    def work() -> None:
        with torch.no_grad():
            function(*inputs)

    return work


def selective_jobs(peers: bool) -> tuple[list[Tensor], list[tuple[str, Callable[..., Any], bool]]]:
    """Inputs of the selective scan and the ways to compute it: (name, function, is it slow)."""
    B, T, D, N = SHAPE
    generator = torch.Generator().manual_seed(0)
    u, b, c = (torch.randn(*shape, generator=generator) for shape in ((B, T, D), (B, T, N), (B, T, N)))
    dt = F.softplus(torch.randn(B, T, D, generator=generator) - 4)
    inputs = [u, dt, -torch.arange(1.0, N + 1).repeat(D, 1), b, c, torch.ones(D)]
    ways: list[tuple[str, Callable[..., Any], bool]] = [("tdraft", selective_scan, False)]
    if not peers:
        return inputs, ways
    ways.append(("torch loop (unbind)", partial(selective_scan, backend="reference"), True))
    try:
        from transformers.models.mamba.modeling_mamba import mamba_selective_scan as hf  # pyright: ignore[reportMissingImports]
    except ImportError:
        print("Hugging Face's ways are left out: pip install 'tdraft[hf]'")
        return inputs, ways

    def hugging_face(**options: Any) -> Callable[..., Tensor]:
        # its arrays are channels first
        return lambda u, dt, A, B, C, D: hf(
            *(x.transpose(1, 2) for x in (u, dt)), A, B.transpose(1, 2), C.transpose(1, 2), D, **options
        )

    ways.append(("Hugging Face's loop", hugging_face(), True))
    try:
        import mambapy.pscan  # noqa: F401  # pyright: ignore[reportMissingImports]

        ways.append(("mambapy's parallel scan", hugging_face(use_mambapy=True), True))
    except ImportError:
        print("mambapy's scan is left out: pip install mambapy")
    ways.append(("associative scan, torch.compile", torch.compile(hugging_face(use_associative_scan=True)), True))
    return inputs, ways


def selective(bench: ScanBench) -> list[dict]:
    B, T, D, N = SHAPE
    inputs, ways = selective_jobs(bench.peers)
    rows = []
    for title, make in (("selective scan, forward", without_gradients), ("selective scan, forward + backward", with_gradients)):
        jobs = [Job(name, make(function, inputs), slow) for name, function, slow in ways]
        rows += compare(title, jobs, bench.repeats, B * T * D * N, "state updates")
    return rows


def diagonal(bench: ScanBench) -> list[dict]:
    """The complex diagonal recurrence against a copy of its input; both make new memory, which takes most of the time."""
    B, T, D = DIAGONAL
    generator = torch.Generator().manual_seed(0)
    a = torch.polar(torch.rand(D, generator=generator), torch.rand(D, generator=generator))
    b = torch.randn(B, T, D, dtype=torch.complex64, generator=generator)
    jobs = [Job("tdraft", without_gradients(linear_scan, (a, b))), Job("copy", b.clone)]
    if bench.peers:
        jobs.append(Job("torch loop (unbind)", without_gradients(partial(linear_scan, backend="reference"), (a, b)), True))
    return compare("complex diagonal recurrence, forward", jobs, bench.repeats, 2 * b.numel() * b.element_size(), "bytes")


def others(bench: ScanBench) -> list[dict]:
    """The other kernels beside their references, at sizes of a small model."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    B, T, H, P, N = 1, 512, 8, 64, 64
    decay = -F.softplus(normal(B, T, H) - 2)
    turn = torch.polar(0.9 + 0.1 * torch.rand(256, 32, generator=generator), normal(256, 32))
    w, k, v = -torch.rand(256, generator=generator), normal(B, T, 256), normal(B, T, 256)
    heads = [normal(B, T, H, P) for _ in range(4)]
    kap = F.normalize(heads[2], dim=-1)
    seven = (heads[0], torch.exp(-0.6 * torch.sigmoid(heads[3])), heads[1], heads[2], kap, torch.sigmoid(heads[3]))
    cases: list[tuple[str, Callable[..., Any], tuple[Tensor, ...]]] = [
        ("SSD (1, 512, 8 x 64, 64)", ssd, (normal(B, T, H, P), decay, normal(B, T, 1, N), normal(B, T, 1, N))),
        (
            "diagonal SSM (1, 512, 256 x 32)",
            diagonal_ssm,
            (normal(B, T, 256), turn, normal(256, 32) + 0j),
        ),
        ("WKV-4 (1, 512, 256)", wkv4, (w, normal(256), k, v)),
        ("WKV-7 (1, 512, 8 x 64)", wkv7, seven),
    ]
    rows = []
    for title, function, inputs in cases:
        for way, make in (("forward", without_gradients), ("forward + backward", with_gradients)):
            jobs = [Job("tdraft", make(function, inputs))]
            if bench.peers:
                jobs.append(Job("torch loop", make(partial(function, backend="reference"), inputs), True))
            rows += compare(f"{title}, {way}", jobs, bench.repeats)
    return rows


def run(bench: ScanBench) -> None:
    """Print all comparisons."""
    with one_thread(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        rows = [*selective(bench), *diagonal(bench), *others(bench)]
    if bench.json is not None:
        write_rows(bench.json, rows)
