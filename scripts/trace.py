"""`tdraft trace`: record what a drafter would propose at every position of the target's texts, and how it would be judged."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from tdraft.models.corpus import SPLITS, default_corpus, draw_prompts, load_corpus
from tdraft.models.decoding.drafters import Drafter
from tdraft.models.decoding.record import measure_cost, record
from tdraft.models.decoding.sampling import Sampling
from tdraft.models.language_model import LanguageModel
from tdraft.scripts.loading import at_least, check_context, load_drafter_of, load_target
from tdraft.scripts.main import UsageError

KEYS = 1_000_000  # of the noise that one seed owns in one split


@dataclass(frozen=True)
class RecordTrace:
    """Record a trace: the exact outcome of every decoding policy on the contexts of one split of a text.

    Policies are trained, tuned and compared on traces of their own: take the first from the validation split, the second from it
    with the same --seed and --skip the first one's --contexts, the third from the test split.
    """

    target: Path
    """A language model: .safetensors, or the name of one that comes with tdraft (transformer, mamba)."""
    drafter: str
    """An n-gram model (.npz), a one-layer language model or the target's heads (.safetensors), prompt-lookup, suffix, or
    suffix:FILE, which looks into a file as well."""
    out: Path
    """Where the trace goes, .npz."""
    cost: Path | None = None
    """Also measure what drafting and verifying cost on this machine, and write it here, .json."""
    corpus: Path | None = None
    """A text file or folder; by default the Python documentation and sources on this machine."""
    split: Literal["train", "validation", "test"] = "validation"
    """Part of the corpus; the models have seen "train"."""
    contexts: int = 224
    """Prompts, which do not overlap."""
    skip: int = 0
    """Leave out this many contexts of the draw: those of another trace with the same seed and prompt length."""
    prompt: int = 96
    """Bytes of a prompt."""
    tokens: int = 64
    """Bytes decoded after it."""
    depth: int = 10
    """K, the longest draft."""
    temperature: float = 0.0
    """Of the target; 0 is greedy."""
    top_k: int = 0
    """Keep the k likeliest bytes; 0 keeps all."""
    top_p: float = 1.0
    """Keep the likeliest bytes that make up this probability."""
    seed: int = 0
    """Of the draw of prompts and of the noise."""
    threads: int = 1
    """Threads torch may use: decoding so small a model is slower on two."""


def draw_contexts(options: RecordTrace, text: bytes) -> np.ndarray:
    """(contexts, prompt) int64 prompts; those of one seed with other --skip and --contexts are others."""
    room = len(text) // options.prompt
    if options.skip + options.contexts > room:
        raise UsageError(
            f"the {options.split} text of {len(text)} bytes has room for {room} prompts of {options.prompt} bytes, "
            f"{options.skip + options.contexts} are asked for: lower --contexts or --prompt, or give a longer --corpus"
        )
    return draw_prompts(text, room, options.prompt, options.seed)[options.skip : options.skip + options.contexts]


def check_length(options: RecordTrace, target: LanguageModel) -> int:
    """Longest text that recording, and measuring the clock, will feed to a model; refused where the target's context is less."""
    longest = options.prompt + options.tokens + options.depth
    if options.cost is not None:  # one verification of each length in one session
        longest = max(longest, options.prompt + (options.depth + 1) * (options.depth + 2) // 2)
    if longest > target.config.max_length:
        raise UsageError(
            f"the target's context holds {target.config.max_length} bytes, this takes {longest}: "
            "lower --prompt, --tokens or --depth"
        )
    return longest


def run(options: RecordTrace) -> None:
    """Run `tdraft trace`."""
    at_least(1, contexts=options.contexts, tokens=options.tokens, depth=options.depth, threads=options.threads)
    at_least(2, prompt=options.prompt)
    at_least(0, skip=options.skip, seed=options.seed)
    if options.out.suffix != ".npz":
        raise UsageError(f"--out must end in .npz, got {options.out}")
    sampling = Sampling(options.temperature, options.top_k, options.top_p)
    torch.set_num_threads(options.threads)
    target = load_target(options.target)
    drafter = load_drafter_of(options.drafter, target)
    check_context(drafter, check_length(options, target))
    corpus = default_corpus() if options.corpus is None else load_corpus(options.corpus)
    prompts = draw_contexts(options, getattr(corpus, options.split))
    first = KEYS * (len(SPLITS) * options.seed + SPLITS.index(options.split)) + options.skip
    meta = {"corpus": corpus.hash, "split": options.split, "seed": options.seed, "skip": options.skip}
    trace = record(
        target,
        drafter,
        prompts,
        options.tokens,
        options.depth,
        sampling,
        np.arange(first, first + len(prompts)),
        progress=sys.stderr.isatty(),
        meta=meta,
    )
    trace.save(options.out)
    print(
        f"{options.out}: {len(prompts)} contexts of {options.tokens} bytes from {corpus.name} ({options.split}), drafts of "
        f"{options.depth}, of which {trace.accepted.mean():.2f} are accepted"
    )
    if options.cost is not None:
        _measure(options.cost, target, drafter, prompts, options.depth, sampling)


def _measure(
    path: Path,
    target: LanguageModel,
    drafter: Drafter,
    prompts: np.ndarray,
    depth: int,
    sampling: Sampling,
) -> None:
    print("measuring the clock ...", file=sys.stderr)
    cost = measure_cost(target, drafter, prompts, depth, sampling)
    cost.save(path)
    curve = ", ".join(f"T({m}) = {cost.verify[m]:.2f}" for m in sorted({2, depth // 2 + 1, depth + 1}))
    print(f"{path}: plain step {1e3 * cost.unit_seconds:.3f} ms, a draft token {cost.draft:.4f} of it, {curve}")
