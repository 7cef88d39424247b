"""`tdraft bench drafters`: how many drafts each drafter has accepted a round on held-out text, and what drafting costs.

Not free-running: every position of the target's continuation of a held-out context begins a round, whatever would have been
accepted before it. So all drafters are asked the same.
"""

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tqdm import trange

from tdraft.models.checkpoints import CheckpointError, metadata_of
from tdraft.models.corpus import Corpus, default_corpus, draw_prompts, load_corpus
from tdraft.models.decoding.cost import CostModel
from tdraft.models.decoding.drafters import Drafter, LMDrafter, NGramDrafter
from tdraft.models.decoding.lookup_drafters import SuffixDrafter
from tdraft.models.decoding.record import count_accepted, measure_cost, plain_text, propose
from tdraft.models.decoding.sampling import Sampling
from tdraft.models.language_model import LanguageModel, predict_argmax
from tdraft.models.ngram import NGram
from tdraft.models.pretrained import HEADS, PRETRAINED, load_pretrained
from tdraft.models.threads import one_thread
from tdraft.scripts.loading import at_least, check_context, load_drafter_of
from tdraft.scripts.results import write_rows

LENGTHS = (4, 8)  # drafts a round
BATCH = 16  # contexts beside each other


@dataclass(frozen=True)
class DraftersBench:
    """Measure drafters: drafts accepted a round, at every position of targets' continuations of held-out contexts, and costs."""

    targets: tuple[str, ...] = ("transformer", "mamba")
    """Language models: names of those that come with tdraft, or files (.safetensors)."""
    drafters: tuple[str, ...] = ("6-gram", "distilled", "prompt-lookup", "suffix", "drafter", "medusa", "mtp")
    """6-gram, distilled (the 6-gram with the target's labels), prompt-lookup, suffix (with training text), names of language
    models or heads that come with tdraft, or files; heads are measured with their own target only."""
    corpus: Path | None = None
    """A text file or folder; by default the Python documentation and sources on this machine."""
    contexts: int = 64
    """Held-out contexts, of the test split."""
    prompt: int = 96
    """Bytes of a context."""
    tokens: int = 64
    """Bytes that the target goes on with."""
    temperatures: tuple[float, ...] = (0.0, 0.8)
    """Of the target; drafts are greedy."""
    distil_bytes: int = 1_200_000
    """Training text that the 6-gram is relabelled on."""
    suffix_bytes: int = 1_000_000
    """Training text that the suffix automaton looks into, 120 bytes of memory each."""
    repeats: int = 40
    """Rounds that the clock is measured in."""
    seed: int = 0
    """Of the contexts and of the noise."""
    json: Path | None = None
    """Also write the rows to this file."""


def run(bench: DraftersBench) -> None:
    """One table a target."""
    at_least(2, contexts=bench.contexts, prompt=bench.prompt)
    at_least(max(LENGTHS), tokens=bench.tokens)
    at_least(1, repeats=bench.repeats, distil_bytes=bench.distil_bytes, suffix_bytes=bench.suffix_bytes)
    corpus = default_corpus() if bench.corpus is None else load_corpus(bench.corpus)
    prompts = draw_prompts(corpus.test, bench.contexts, bench.prompt, bench.seed)
    ngram = NGram.fit(_tokens(corpus.train), order=6)
    rows = []
    with one_thread():
        for name in bench.targets:
            rows += measure(name, bench, corpus, prompts, ngram)
    if bench.json is not None:
        write_rows(bench.json, rows)


def measure(name: str, bench: DraftersBench, corpus: Corpus, prompts: np.ndarray, ngram: NGram) -> list[dict]:
    """All drafters of one target, a line each; the rows."""
    target = load_pretrained(name)
    texts = {}
    for temperature in bench.temperatures:
        keys = 1_000_000 * bench.seed + np.arange(len(prompts))
        texts[temperature] = plain_text(target, prompts, bench.tokens, Sampling(temperature), keys)
    print(f"\n{Path(name).stem}, {target.n_parameters / 1e6:.1f} M parameters: {len(prompts)} contexts of {bench.tokens} bytes")
    heads = "".join(f"  T = {t:<4g}   1st  2nd" + "".join(f"       k = {k}" for k in LENGTHS) for t in bench.temperatures)
    print(f"{'accepted drafts a round':24}{heads}  t_draft" + "".join(f"  T({k + 1})/T(1)" for k in LENGTHS), flush=True)
    rows = []
    for label, drafter in make_drafters(bench, target, corpus, ngram):
        check_context(drafter, bench.prompt + bench.tokens + max(LENGTHS))
        found = {t: accepted(target, drafter, prompts, text, max(LENGTHS), label) for t, text in texts.items()}
        cost = measure_cost(target, drafter, prompts, max(LENGTHS), Sampling(bench.temperatures[0]), repeats=bench.repeats)
        print(line(label, found, cost), flush=True)
        rows += rows_of(f"{Path(name).stem}/{label}", found, cost)
    return rows


def make_drafters(bench: DraftersBench, target: LanguageModel, corpus: Corpus, ngram: NGram) -> Iterator[tuple[str, Drafter]]:
    """(label, drafter) in the order asked for, without heads of other targets."""
    for name in bench.drafters:
        if name == "6-gram":
            yield name, NGramDrafter(ngram)
        elif name == "distilled":
            sample = _tokens(corpus.train)[: bench.distil_bytes]
            yield "distilled 6-gram", NGramDrafter(ngram.distill(sample, predict_argmax(target, sample)))
        elif name == "suffix":
            yield f"suffix, {bench.suffix_bytes / 1e6:g} MB", SuffixDrafter(_tokens(corpus.train)[: bench.suffix_bytes])
        elif name in PRETRAINED:
            yield f"{name}, one layer" if name == "drafter" else name, LMDrafter(load_pretrained(name))
        elif name in HEADS:
            try:
                heads = load_drafter_of(name, target)
            except CheckpointError as error:
                print(f"left out: {error}", file=sys.stderr)
                continue
            yield name, heads
        elif metadata_of(name).get("target", target.fingerprint) == target.fingerprint:
            yield Path(name).stem, load_drafter_of(name, target)


def accepted(
    target: LanguageModel, drafter: Drafter, prompts: np.ndarray, tokens: np.ndarray, depth: int, label: str
) -> np.ndarray:
    """(C, N - K + 1) how many of K drafts at each position are what the text goes on with."""
    parts = []
    with torch.inference_mode():
        for i in trange(0, len(prompts), BATCH, desc=label, disable=not sys.stderr.isatty(), leave=False):
            rows = slice(i, i + BATCH)
            proposals, _ = propose(target, drafter, prompts[rows], tokens[rows], depth)
            parts.append(count_accepted(proposals, tokens[rows])[:, : tokens.shape[1] - depth + 1])
    return np.concatenate(parts)


def mean(values: np.ndarray) -> tuple[float, float]:
    """Mean of (C, ...) and its standard error over the C contexts."""
    each = values.reshape(len(values), -1).mean(1)
    return float(each.mean()), float(each.std(ddof=1) / np.sqrt(len(each)))


def shares(found: np.ndarray) -> tuple[float, float]:
    """Of first drafts that are accepted, and of second ones where the first is."""
    first = (found >= 1).sum()
    return float(first / found.size), float((found >= 2).sum() / max(first, 1))


def line(label: str, found: dict[float, np.ndarray], cost: CostModel) -> str:
    """A line of the table."""
    text = f"{label:24}"
    for values in found.values():
        first, second = shares(values)
        text += f"  {'':8}  {first:4.2f} {second:4.2f}"
        text += "".join("  {:4.2f} ±{:4.2f}".format(*mean(np.minimum(values, k))) for k in LENGTHS)
    return text + f"  {cost.draft:7.4f}" + "".join(f"  {cost.verify[k + 1]:9.2f}" for k in LENGTHS)


def rows_of(name: str, found: dict[float, np.ndarray], cost: CostModel) -> list[dict]:
    """The same as machine-readable rows."""
    rows = []
    for temperature, values in found.items():
        at, runs = f"T={temperature:g}", len(values)
        for k in LENGTHS:
            value, error = mean(np.minimum(values, k))
            metric = f"accepted, k={k}, {at}"
            rows.append({"name": name, "metric": metric, "value": value, "unit": "drafts a round", "runs": runs, "se": error})
        for metric, value in zip(("first accepted", "second accepted after the first"), shares(values)):
            rows.append({"name": name, "metric": f"{metric}, {at}", "value": value, "unit": "share", "runs": runs})
    rows.append({"name": name, "metric": "t_draft", "value": cost.draft, "unit": "plain steps"})
    for k in LENGTHS:
        rows.append({"name": name, "metric": f"T({k + 1})/T(1)", "value": float(cost.verify[k + 1]), "unit": "plain steps"})
    return rows


def _tokens(text: bytes) -> np.ndarray:
    return np.frombuffer(text, np.uint8).astype(np.int64)
