"""`tdraft demo`: from raw text to a learned decoding policy on the wall clock, in minutes on two cores."""

import json
import logging
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch

from tdraft.agents import decoding_evaluation as ev
from tdraft.agents.decoding_baselines import tune_all
from tdraft.agents.decoding_bounds import clairvoyant, informed
from tdraft.agents.decoding_learning import LearnedPolicies, train_policies
from tdraft.envs.decoding.draft import Replay
from tdraft.envs.decoding.dynamics import ACCEPTED_TOKENS, CALLS, DECISIONS, DRAFTED, TOKENS
from tdraft.models.corpus import Corpus, default_corpus, load_corpus
from tdraft.models.decoding import observation as ob
from tdraft.models.decoding.calibration import fit_calibration
from tdraft.models.decoding.cost import CostModel
from tdraft.models.decoding.decoder import SpeculativeDecoder
from tdraft.models.decoding.drafters import Drafter, LMDrafter, NGramDrafter
from tdraft.models.decoding.policy import DraftPolicy
from tdraft.models.decoding.record import measure_cost, record
from tdraft.models.decoding.sampling import Sampling
from tdraft.models.decoding.trace import Trace
from tdraft.models.files import atomic_write
from tdraft.models.language_model import LanguageModel, LMConfig
from tdraft.models.ngram import NGram
from tdraft.models.training import TrainConfig, bits_per_byte, has_fast_bf16, predict_argmax, train_language_model
from tdraft.scripts.report import write_report
from tdraft.scripts.results import machine, write_rows


@dataclass(frozen=True)
class Demo:
    """Train a target, build drafters, record traces, learn when to stop drafting, and decode with it."""

    out: Path = Path("runs/demo")
    """folder of models, traces, report.md, report.json, plots and TensorBoard events"""
    corpus: Path | None = None
    """a file or folder of your own text; by default Python's own documentation and sources"""
    resume: bool = False
    """reuse the models and traces that a former run left in --out"""
    target_seconds: float = 130.0
    """training time of the target"""
    drafter_seconds: float = 25.0
    """training time of the one-layer drafter"""
    contexts: int = 304
    """held-out test contexts"""
    train_contexts: int = 224
    """contexts that agents train on"""
    validation_contexts: int = 96
    """contexts that baselines are tuned and agents chosen on"""
    live_contexts: int = 12
    """test contexts decoded live, on the wall clock"""
    prompt: int = 96
    """bytes of a prompt"""
    tokens: int = 64
    """bytes decoded after it"""
    depth: int = 10
    """K, the longest draft"""
    seeds: int = 5
    """seeds of each agent"""
    timesteps: int = 20_000_000
    """environment steps of each training"""
    temperatures: tuple[float, ...] = (0.0, 0.8)
    seed: int = 0
    json: Path | None = None
    """also write the rows to this file"""


@dataclass
class Stage:
    """Says what is going on and how long it took."""

    seconds: dict[str, float] = field(default_factory=dict)

    def __call__(self, name: str, work: Callable):
        print(f"{name} ...", flush=True)
        start = time.perf_counter()
        result = work()
        self.seconds[name] = time.perf_counter() - start
        print(f"{name}: {self.seconds[name]:.1f} s", flush=True)
        return result


@dataclass(frozen=True)
class Models:
    target: LanguageModel
    drafters: dict[str, Drafter]
    bits: dict[str, float]  # bits per byte on the test split


def build_models(demo: Demo, corpus: Corpus, stage: Stage) -> Models:
    """Train (or load) the target and its drafters."""
    folder = demo.out / "models"
    train, validation, test = (
        np.frombuffer(text, np.uint8).astype(np.int64) for text in (corpus.train, corpus.validation, corpus.test)
    )

    def language_model(name: str, config: LMConfig, seconds: float) -> LanguageModel:
        path = folder / f"{name}.safetensors"
        if demo.resume and path.exists():
            return LanguageModel.load(path)
        model = LanguageModel(config, seed=demo.seed)
        recipe = TrainConfig(seconds=seconds, batch=4, length=config.max_length, seed=demo.seed, bf16=has_fast_bf16())
        train_language_model(model, train, validation, recipe, folder / name, resume=demo.resume)
        model.save(path)
        return model

    def counted(name: str, make: Callable[[], NGram]) -> NGram:
        path = folder / f"{name}.npz"
        if demo.resume and path.exists():
            return NGram.load(path)
        model = make()
        model.save(path)
        return model

    longest = demo.prompt + demo.tokens + demo.depth + 2
    config = LMConfig(d_model=128, n_layers=4, n_heads=4, max_length=max(longest, 256))
    target = stage("train the target", lambda: language_model("target", config, demo.target_seconds))
    ngram = stage("count n-grams", lambda: counted("ngram", lambda: NGram.fit(train, order=6)))
    sample = train[:1_500_000]
    distilled = stage(
        "distil n-grams",
        lambda: counted("distilled", lambda: ngram.distill(sample, predict_argmax(target, sample))),
    )
    small = LMConfig(d_model=64, n_layers=1, n_heads=2, max_length=max(longest, 256))
    drafter = stage("train the drafter", lambda: language_model("drafter", small, demo.drafter_seconds))
    probe = test[:100_000]
    bits = stage(
        "score on the test split",
        lambda: {
            "target": bits_per_byte(target, probe),
            "drafter": bits_per_byte(drafter, probe),
            "ngram": float(ngram.bits_per_token(probe)),
        },
    )
    return Models(target, {"distilled 6-gram": NGramDrafter(distilled), "one-layer LM": LMDrafter(drafter)}, bits)


def draw_prompts(text: bytes, count: int, length: int, seed: int) -> np.ndarray:
    """(count, length) int64 windows of a text, at random places that don't overlap where there is room."""
    tokens = np.frombuffer(text, np.uint8).astype(np.int64)
    places = max(len(tokens) // length, 1)
    rng = np.random.default_rng(seed)
    starts = rng.choice(places, size=count, replace=count > places) * length
    return np.stack([tokens[s : s + length] for s in np.minimum(starts, len(tokens) - length)])


@dataclass(frozen=True)
class Traces:
    train: Trace
    validation: Trace
    test: Trace
    calibration: ob.Calibration
    cost: CostModel


def record_traces(demo: Demo, corpus: Corpus, models: Models, name: str, temperature: float) -> Traces:
    """Traces of the three splits, the predictor fitted to the first, and the clock. Training and tuning use the validation text,
    which neither model nor n-gram has seen; tests use the test text and noise of their own."""
    sampling, drafter = Sampling(temperature=temperature), models.drafters[name]
    held_out = draw_prompts(corpus.validation, demo.train_contexts + demo.validation_contexts, demo.prompt, demo.seed)
    prompts = {
        "train": held_out[: demo.train_contexts],
        "validation": held_out[demo.train_contexts :],
        "test": draw_prompts(corpus.test, demo.contexts, demo.prompt, demo.seed + 1),
    }
    traces = {}
    for i, (split, texts) in enumerate(prompts.items()):
        path = demo.out / "traces" / f"{slug(name)}-T{temperature:g}-{split}.npz"
        if demo.resume and path.exists():
            traces[split] = Trace.load(path, drafter=drafter.fingerprint, target=models.target.fingerprint)
            continue
        keys = np.arange(len(texts)) + 1_000_000 * i
        meta = {"corpus": corpus.hash, "split": split}
        traces[split] = record(
            models.target,
            drafter,
            texts,
            demo.tokens,
            demo.depth,
            sampling,
            keys,
            progress=sys.stderr.isatty(),
            meta=meta,
        )
        traces[split].save(path)
    calibration = fit_calibration(traces["train"])
    path = demo.out / "traces" / f"{slug(name)}-T{temperature:g}-cost.json"
    if demo.resume and path.exists():
        cost = CostModel.load(path)
    else:
        cost = measure_cost(models.target, drafter, prompts["validation"], demo.depth, sampling, calibration=calibration)
        cost.save(path)
    if isinstance(drafter, NGramDrafter):
        drafter.token_seconds = cost.draft * cost.unit_seconds
    return Traces(traces["train"], traces["validation"], traces["test"], calibration, cost)


def slug(name: str) -> str:
    return name.replace(" ", "-")


def regimes(name: str, cost: CostModel) -> dict[str, CostModel]:
    """The measured costs, and draft tokens at a tenth and three tenths of a step for the drafter that costs nothing."""
    found = {"measured": cost}
    if name == "distilled 6-gram":
        found |= {f"draft={price:g}": cost.with_draft(price) for price in (0.1, 0.3)}
    return found


@dataclass
class Section:
    """One drafter, temperature and cost regime: every policy on the test contexts."""

    entry: dict
    counts: dict[str, np.ndarray]
    policies: dict[str, DraftPolicy]
    learned: LearnedPolicies
    cost: CostModel


def compare(demo: Demo, models: Models, name: str, temperature: float, regime: str, cost: CostModel, traces: Traces) -> Section:
    """Tune, train and evaluate every policy in one regime."""
    validation = Replay(traces.validation, traces.calibration, cost, shuffle=False)
    test = Replay(traces.test, traces.calibration, cost, shuffle=False)
    baselines = tune_all(validation)
    static = next(p for p in baselines if p.name.startswith("static"))
    rate = ev.speedup(ev.play(validation, static, texts=len(traces.validation.tokens)))
    learned = train_policies(
        Replay(traces.train, traces.calibration, cost),
        validation,
        rate=rate,
        seeds=range(demo.seed, demo.seed + demo.seeds),
        timesteps=demo.timesteps,
        log_dir=demo.out / "tensorboard" / f"{slug(name)}-T{temperature:g}-{regime}",
    )
    texts = len(traces.test.tokens)
    counts = {p.name: ev.play(test, p, texts=texts) for p in [*baselines, *learned.policies]}
    bounds = {"clairvoyant": clairvoyant(traces.test, cost), "informed": informed(traces.test, cost)}
    bootstrap = ev.Bootstrap.draw(texts, seed=demo.seed)
    speed = {key: ev.speedup(value) for key, value in (counts | bounds).items()}

    def gap(key: str, bound: str) -> float | None:
        width = speed[bound] - speed[static.name]
        return None if width < 0.01 * speed[static.name] else (speed[key] - speed[static.name]) / width

    rows = []
    for key, value in (counts | bounds).items():
        kind = "bound" if key in bounds else "learned" if key in learned.names else "baseline"
        difference = ev_difference(bootstrap, value, counts[baselines[0].name])
        rows.append(
            {
                "name": key,
                "kind": kind,
                "speedup": speed[key],
                "ci95": bootstrap.interval(value),
                "tokens_per_call": float(value[:, TOKENS].sum() / value[:, CALLS].sum()),
                "accepted_length": float(value[:, ACCEPTED_TOKENS].sum() / value[:, CALLS].sum()),
                "drafted_per_call": float(value[:, DRAFTED].sum() / value[:, CALLS].sum()),
                "decisions": float(value[:, DECISIONS].sum()),
                "vs_best_baseline_percent": difference,
                "gap_closed_informed": gap(key, "informed"),
                "gap_closed_clairvoyant": gap(key, "clairvoyant"),
                "wall_speedup": None,
                "own_cost": None,
                "identical": None,
            }
        )
    entry = {
        "drafter": name,
        "temperature": temperature,
        "regime": regime,
        "target": {
            "params": models.target.n_parameters,
            "bits_per_byte": models.bits["target"],
            "ngram_bits_per_byte": models.bits["ngram"],
        },
        "cost": cost.to_dict(),
        "contexts": texts,
        "repetition_rate": repetition_rate(traces.test.tokens),
        "near_ties": int((traces.test.margin < NEAR_TIE).sum()),
        "best_static": static.name,
        "best_baseline": baselines[0].name,
        "best_learned": learned.names[0],
        "learned_seeds": learned.validation,
        "policies": rows,
    }
    return Section(entry, counts, {p.name: p for p in [*baselines, *learned.policies]}, learned, cost)


NEAR_TIE = 1e-4


def ev_difference(bootstrap: ev.Bootstrap, counts: np.ndarray, other: np.ndarray) -> dict:
    estimate, low, high = bootstrap.difference(counts, other)
    return {"estimate": estimate, "ci95": [low, high]}


def repetition_rate(tokens: np.ndarray, n: int = 8) -> float:
    """Share of the emitted n-grams that their own text held before."""
    repeated = total = 0
    for text in tokens.tolist():
        seen = set()
        for i in range(len(text) - n + 1):
            gram = tuple(text[i : i + n])
            repeated += gram in seen
            total += 1
            seen.add(gram)
    return repeated / max(total, 1)


def decode_live(demo: Demo, corpus: Corpus, models: Models, section: Section, traces: Traces) -> None:
    """Decode test contexts live with plain decoding, the best static length, the best baseline and the learned policies, and
    compare texts, rounds and times with the replayed trace. Fills the section's rows in place."""
    entry, count = section.entry, demo.live_contexts
    drafter = models.drafters[entry["drafter"]]
    prompts = draw_prompts(corpus.test, demo.contexts, demo.prompt, demo.seed + 1)[:count]
    keys = np.arange(count) + 2_000_000
    ranked = sorted((r for r in entry["policies"] if r["kind"] != "bound"), key=lambda r: -r["speedup"])
    chosen = dict.fromkeys(["no speculation", entry["best_static"], *section.learned.names[:1], *[r["name"] for r in ranked[:3]]])
    options = {
        "calibration": traces.calibration,
        "sampling": Sampling(temperature=entry["temperature"]),
        "max_drafted": demo.depth,
    }
    decoders = {key: SpeculativeDecoder(models.target, drafter, section.policies[key], **options) for key in chosen}
    decoders["plain"] = SpeculativeDecoder(models.target, None, None, **options)
    for decoder in decoders.values():
        decoder.generate(prompts[0], 16, key=0)  # compile and warm up
    runs = ev.play_live(decoders, prompts, keys, demo.tokens)
    plain = runs.pop("plain")
    near = traces.test.margin[:count] < NEAR_TIE
    test = Replay(traces.test.select(slice(0, count)), traces.calibration, section.cost, shuffle=False)
    for row in entry["policies"]:
        if row["name"] not in runs:
            continue
        run = runs[row["name"]]
        row["wall_speedup"] = plain.seconds / run.seconds
        row["own_cost"] = run.own_cost
        differences = []
        for c in range(count):
            for reference in (np.array(plain.tokens[c]), traces.test.tokens[c]):
                place = ev.first_difference(run.tokens[c], reference)
                if place is not None:
                    differences.append(
                        {"context": c, "position": place, "near_tie": bool(near[c, min(place, near.shape[1] - 1)])}
                    )
        row["identical"] = not any(not d["near_tie"] for d in differences)
        row["differences"] = differences
        replayed = ev.play(test, section.policies[row["name"]], texts=count)
        live_rounds = np.array([[a.target_calls, a.drafted, accepted_inside(a.rounds, demo.tokens)] for a in run.accounts], float)
        row["rounds_equal"] = bool(np.array_equal(live_rounds, replayed[:, [CALLS, DRAFTED, ACCEPTED_TOKENS]]))


def accepted_inside(rounds: list[tuple[int, int]], n_tokens: int) -> int:
    """Accepted drafts of (verified, accepted) rounds up to the end of the text, past which a trace knows nothing."""
    total = position = 0
    for _, accepted in rounds:
        total += min(accepted, n_tokens - position)
        position += accepted + 1
    return total


def run(demo: Demo) -> None:
    """The whole demonstration."""
    logging.getLogger("tdraft").setLevel(logging.WARNING)
    stage = Stage()
    corpus = stage("read the corpus", lambda: default_corpus() if demo.corpus is None else load_corpus(demo.corpus))
    models = build_models(demo, corpus, stage)
    print("bits/byte on the test split: " + ", ".join(f"{k} {v:.3f}" for k, v in models.bits.items()))
    torch.set_num_threads(1)  # decoding steps of so small a model are slower on two
    sections: list[Section] = []
    for name in models.drafters:
        for temperature in demo.temperatures:
            label = f"{name}, T = {temperature:g}"
            traces = stage(f"record {label}", lambda n=name, t=temperature: record_traces(demo, corpus, models, n, t))
            for regime, cost in regimes(name, traces.cost).items():
                section = stage(
                    f"learn and compare: {label}, {regime}",
                    lambda n=name, t=temperature, r=regime, c=cost, tr=traces: compare(demo, models, n, t, r, c, tr),
                )
                if regime == "measured":
                    stage(f"decode live: {label}", lambda s=section, tr=traces: decode_live(demo, corpus, models, s, tr))
                sections.append(section)
    report = {
        "machine": machine(),
        "demo": {k: str(v) if isinstance(v, Path) else v for k, v in asdict(demo).items()},
        "corpus": {"name": corpus.name, "hash": corpus.hash},
        "seconds": stage.seconds,
        "sections": [s.entry for s in sections],
    }
    with atomic_write(demo.out / "report.json") as temporary:
        temporary.write_text(json.dumps(report, indent=1))
    write_report(report, demo.out)
    if demo.json is not None:
        write_rows(demo.json, rows_of(report))


def rows_of(report: dict) -> list[dict]:
    """The report as flat rows, one a policy and section."""
    return [
        {
            "name": f"{s['drafter']}/T={s['temperature']:g}/{s['regime']}/{p['name']}",
            "metric": "speedup",
            "value": p["speedup"],
            "unit": "tokens per plain step",
            "runs": s["contexts"],
            "se": (p["ci95"][1] - p["ci95"][0]) / 3.92,
        }
        for s in report["sections"]
        for p in s["policies"]
    ]
