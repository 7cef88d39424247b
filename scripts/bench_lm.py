"""`tdraft bench lm`: training throughput of our language models beside Hugging Face's of the same size."""

import contextlib
import io
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tdraft.models.language_model import LanguageModel, LMConfig
from tdraft.models.precision import autocast, resolve
from tdraft.models.threads import one_thread
from tdraft.scripts.results import write_rows

VOCABULARY = 256


@dataclass(frozen=True)
class LMBench:
    """Forward, backward and AdamW's update, tokens a second: medians of interleaved runs on one thread."""

    d_model: int = 256
    """width"""
    n_layers: int = 4
    """blocks of the Transformers; the Mambas have as many"""
    batch: int = 2
    """windows in an update"""
    length: int = 256
    """tokens in a window"""
    precisions: tuple[str, ...] = ("32-true", "bf16-mixed")
    """at which to train"""
    repeats: int = 5
    """runs of each, after one that compiles and warms up; Hugging Face's Mamba has a third of them"""
    json: Path | None = None
    """also write the rows to this file"""


def ours(bench: LMBench) -> dict[str, nn.Module]:
    """Our models."""
    sizes: dict[str, Any] = {
        "vocab_size": VOCABULARY,
        "d_model": bench.d_model,
        "n_layers": bench.n_layers,
        "max_length": bench.length,
    }
    return {
        "Transformer": LanguageModel(LMConfig(**sizes, n_heads=bench.d_model // 64)),
        "Mamba": LanguageModel(LMConfig(**sizes, backbone="mamba")),
    }


def theirs(bench: LMBench) -> dict[str, nn.Module]:
    """Hugging Face's, as wide and deep; a Llama's hidden layer is as wide as our Transformer's."""
    with contextlib.redirect_stderr(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import transformers as hf

        d, n, heads = bench.d_model, bench.n_layers, bench.d_model // 64
        transformer: Any = ours(bench)["Transformer"]
        sizes: dict[str, Any] = {"vocab_size": VOCABULARY, "bos_token_id": 0, "eos_token_id": 0, "use_cache": False}
        gpt2 = hf.GPT2Config(n_embd=d, n_layer=n, n_head=heads, n_positions=bench.length, **sizes)
        llama = hf.LlamaConfig(
            hidden_size=d,
            num_hidden_layers=n,
            num_attention_heads=heads,
            intermediate_size=transformer.backbone.d_hidden,
            max_position_embeddings=bench.length,
            tie_word_embeddings=True,
            **sizes,
        )
        mamba = hf.MambaConfig(hidden_size=d, num_hidden_layers=n, state_size=16, **sizes)
        return {
            "GPT-2": hf.GPT2LMHeadModel(gpt2),
            "Llama": hf.LlamaForCausalLM(llama),
            "HF's Mamba": hf.MambaForCausalLM(mamba),
        }


def updater(model: nn.Module, precision: str, bench: LMBench) -> Callable[[], float]:
    """A function that does one update and says how many tokens a second it took."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    rng = torch.Generator().manual_seed(0)
    window = torch.randint(VOCABULARY, (bench.batch, bench.length + 1), generator=rng)
    context = autocast(resolve(precision), "cpu")

    def update() -> float:
        start = time.perf_counter()
        with context:
            out: Any = model(window[:, :-1])
        logits: Tensor = out[0] if isinstance(out, tuple) else out.logits
        loss = F.cross_entropy(logits.flatten(0, 1).float(), window[:, 1:].flatten())
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return window[:, 1:].numel() / (time.perf_counter() - start)

    return update


PEERS = {"Transformer": ("GPT-2", "Llama"), "Mamba": ("HF's Mamba",)}


def run(bench: LMBench) -> None:
    """Measure, print and write."""
    rows: list[dict] = []
    with one_thread():
        for precision in bench.precisions:
            models = ours(bench) | theirs(bench)
            updates = {name: updater(model, precision, bench) for name, model in models.items()}
            found: dict[str, list[float]] = {name: [] for name in models}
            for i in range(-1, bench.repeats):
                for name, update in updates.items():
                    if name == "HF's Mamba" and i > max(bench.repeats // 3 - 1, 0):
                        continue
                    speed = update()
                    if i >= 0:
                        found[name].append(speed)
            for name, speeds in found.items():
                rows.append(row(f"{name}, {precision}", models[name], np.array(speeds)))
            for name, peers in PEERS.items():
                for peer in peers:
                    ratio = float(np.median(found[name]) / np.median(found[peer]))
                    rows.append(
                        {"name": f"{name}, {precision}", "metric": "throughput", "value": ratio, "unit": "ratio"}
                        | {"peer": peer, "ratio": ratio, "runs": len(found[peer])}
                    )
                    print(f"{'':24} {name} is {ratio:.2f} times as fast as {peer}", flush=True)
    if bench.json is not None:
        write_rows(bench.json, rows)


def row(name: str, model: nn.Module, speeds: np.ndarray) -> dict:
    """A row of the results, printed too."""
    size = sum(p.numel() for p in {id(p): p for p in model.parameters()}.values())
    spread = f"[{speeds.min():.0f}, {speeds.max():.0f}]"
    print(f"{name:24} {size / 1e6:6.2f} M parameters {np.median(speeds):9.0f} tokens/s {spread}, {len(speeds)} runs", flush=True)
    error = float(speeds.std(ddof=1) / len(speeds) ** 0.5) if len(speeds) > 1 else None
    return {"name": name, "metric": "throughput", "value": float(np.median(speeds)), "unit": "tokens/s"} | {
        "runs": len(speeds),
        "se": error,
    }
