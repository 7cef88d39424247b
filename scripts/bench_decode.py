"""`tdraft bench decode`: what a step, a verification and a dropped draft take, for every backbone, beside Hugging Face's models.

All runs are on one thread, in turn, from a state after `context` inputs. A figure is the median over the rounds; a ratio is the
median of the ratios within a round.
"""

import statistics
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from tdraft.models.backbones import BACKBONES, Backbone, make_backbone
from tdraft.models.threads import one_thread
from tdraft.scripts.results import write_rows

VERIFIED = (1, 2, 4, 8, 16)
FUSED = "transformer, fused"
SIZES: dict[str, dict[str, Any]] = {name: {"n_heads": 4} for name in ("transformer", FUSED)}  # as the peer's

Work = Callable[[], float]  # does it and says how many seconds a step of it took


@dataclass(frozen=True)
class DecodeBench:
    """Measure decoding with every backbone: one thread, batch 1, interleaved runs, medians."""

    families: tuple[str, ...] = ()
    """backbones to measure, by default all"""
    d_model: int = 256
    """width"""
    n_layers: int = 4
    """layers"""
    large: bool = False
    """at a width of 512 and as many layers as make about 25 million parameters, in place of d_model and n_layers; no peers"""
    context: int = 128
    """inputs before the measurement"""
    steps: int = 24
    """steps of a run"""
    repeats: int = 15
    """rounds of measurement, after one that warms up"""
    json: Path | None = None
    """also write the rows to this file"""


@contextmanager
def quiet() -> Iterator[None]:
    """One thread, no gradients, no advice of Hugging Face's about its faster paths."""
    with one_thread(), torch.inference_mode(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def make(name: str, d_model: int, n_layers: int) -> Any:
    model: Any = make_backbone(name.removesuffix(", fused"), d_model=d_model, n_layers=n_layers, **SIZES.get(name, {}))
    if name == FUSED:
        model.fused = True
    return model


def parameters(model: torch.nn.Module) -> int:
    return sum(weight.numel() for weight in model.parameters())


def layers_for(name: str, d_model: int, wanted: float) -> int:
    """How many layers bring a backbone's parameters nearest to `wanted`."""
    one, two = (parameters(make(name, d_model, layers)) for layers in (1, 2))
    return max(1, round((wanted - one) / (two - one)) + 1)


def timed(steps: int, step: Callable[[], object]) -> float:
    """Seconds of each of so many calls."""
    start = time.perf_counter()
    for _ in range(steps):
        step()
    return (time.perf_counter() - start) / steps


def stepper(model: Backbone, bench: DecodeBench) -> Work:
    """A step: one input after the other from the context on."""
    x = torch.randn(1, bench.context, model.d_model)
    _, begin = model(x)

    def work() -> float:
        state = begin

        def step() -> None:
            nonlocal state
            _, state = model(x[:, :1], state)

        return timed(bench.steps, step)

    return work


def peers(bench: DecodeBench) -> dict[str, Work]:
    """Steps of Hugging Face's LlamaModel and MambaModel of the same width and layers; none where transformers is not there."""
    try:
        from transformers import DynamicCache, LlamaConfig, LlamaModel, MambaConfig, MambaModel
        from transformers.utils import logging
    except ImportError:
        print("transformers is not installed: no peers (pip install 'tdraft[hf]')")
        return {}
    logging.set_verbosity_error()
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=bench.d_model,
        intermediate_size=make("transformer", bench.d_model, 1).d_hidden,
        num_hidden_layers=bench.n_layers,
        num_attention_heads=SIZES["transformer"]["n_heads"],
        max_position_embeddings=4096,
    )
    llama = LlamaModel(config).eval()
    mamba = MambaModel(MambaConfig(vocab_size=64, hidden_size=bench.d_model, num_hidden_layers=bench.n_layers)).eval()
    x = torch.randn(1, bench.context, bench.d_model)

    def llama_work() -> float:
        cache = DynamicCache(config=config)
        llama(inputs_embeds=x, past_key_values=cache, use_cache=True)
        return timed(bench.steps, lambda: llama(inputs_embeds=x[:, :1], past_key_values=cache, use_cache=True))

    def mamba_work() -> float:
        cache = mamba(inputs_embeds=x, use_cache=True).cache_params
        return timed(bench.steps, lambda: mamba(inputs_embeds=x[:, :1], cache_params=cache, use_cache=True))

    return {"transformers LlamaModel": llama_work, "transformers MambaModel": mamba_work}


def rounds(works: dict[str, Work], repeats: int) -> dict[str, np.ndarray]:
    """(repeats,) seconds of each work, measured in turn."""
    for work in works.values():
        work()
    taken = {name: np.empty(repeats) for name in works}
    for r in tqdm(range(repeats), disable=None, leave=False):
        for name, work in works.items():
            taken[name][r] = work()
    return taken


def row(name: str, metric: str, values: np.ndarray, unit: str) -> dict:
    error = float(values.std(ddof=1) / len(values) ** 0.5) if len(values) > 1 else 0.0
    value = statistics.median(values.tolist())
    return {"name": name, "metric": metric, "value": value, "unit": unit, "runs": len(values), "se": error}


def steps(models: dict[str, Any], bench: DecodeBench) -> list[dict]:
    """A decoding step of every backbone and peer."""
    others = {} if bench.large else peers(bench)
    works = {name: stepper(model, bench) for name, model in models.items()}
    taken = {name: t * 1e3 for name, t in rounds(works | others, bench.repeats).items()}
    print(f"{'ms a step':28}  median     min     max" + "".join(f"   {other.split()[1]}/ours" for other in others))
    rows = []
    for name, ms in taken.items():
        ratios = {other: statistics.median((taken[other] / ms).tolist()) for other in others}
        beside = "".join(f"{ratio:>{len(other.split()[1]) + 8}.2f}" for other, ratio in ratios.items())
        print(f"{name:28} {np.median(ms):7.3f} {ms.min():7.3f} {ms.max():7.3f}{beside}", flush=True)
        measured = row(name, "step", ms, "ms")
        rows += [measured | {"peer": other, "ratio": ratio} for other, ratio in ratios.items() if other != name] or [measured]
    return rows


def next_step(model: Any, x: torch.Tensor, state: Any, dropped: bool, steps: int, kept: int = 2) -> Work:
    """`at` and a step from the state after `kept` inputs: of a draft of 8 the rest of which is dropped, or of a call of no more.

    Both calls precede both ways, so that they find the processor's caches alike.
    """

    def work() -> float:
        taken = 0.0
        for _ in range(steps):
            plain = model(x[:, :kept], state)[1]
            drafted = model(x[:, :8], state)[1]
            start = time.perf_counter()
            after = (drafted if dropped else plain).at(kept)
            del plain, drafted  # else an attention cache would branch: others see its place
            model(x[:, :1], after)
            taken += time.perf_counter() - start
        return taken / steps

    return work


def verification(name: str, model: Any, bench: DecodeBench) -> list[dict]:
    """T(k) / T(1) from a state, and by how much a step is longer that follows a dropped draft."""
    x = torch.randn(1, bench.context, model.d_model)
    _, state = model(x)
    _, state = model(x[:, :1], state)  # as in the middle of a text: an attention cache with room
    works = {k: (lambda k=k: timed(bench.steps, lambda: model(x[:, :k], state))) for k in VERIFIED}
    taken = rounds({f"{k}": work for k, work in works.items()}, bench.repeats)
    ends = rounds({f"{d}": next_step(model, x, state, d, bench.steps) for d in (True, False)}, bench.repeats)
    ratios = {f"T({k})/T(1)": taken[f"{k}"] / taken["1"] for k in VERIFIED[1:]}
    drop = ends["True"] / ends["False"] - 1
    figures = "".join(f"{np.median(ratio):11.2f}" for ratio in ratios.values())
    dropped = f"{100 * np.median(drop):9.1f} ({100 * drop.min():.1f} to {100 * drop.max():.1f})"
    print(f"{name:28} {parameters(model) / 1e6:6.1f}{figures}{dropped}", flush=True)
    return [row(name, metric, ratio, "steps") for metric, ratio in ratios.items()] + [row(name, "drop", drop, "steps")]


def decode(bench: DecodeBench) -> None:
    """A step, T(k) / T(1) and the cost of a dropped draft, for every backbone."""
    names = bench.families or tuple(name for family in BACKBONES for name in (family, FUSED)[: 1 + (family == "transformer")])
    D = 512 if bench.large else bench.d_model
    torch.manual_seed(0)
    layers = {name: layers_for(name, D, 25e6) if bench.large else bench.n_layers for name in names}
    models = {name: make(name, D, layers[name]).eval() for name in names}  # not in inference mode: no model is made there
    with quiet():
        rows = steps(models, bench)
        heading = "".join(f"T({k})/T(1)".rjust(11) for k in VERIFIED[1:])
        print(f"\n{'verification':28}      M{heading}  drop, % of a step")
        for name, model in models.items():
            rows += verification(name, model, bench)
    if bench.json is not None:
        write_rows(bench.json, rows)
