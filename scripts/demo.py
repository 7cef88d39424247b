"""`tdraft demo`: from raw text to a learned decoding policy on the wall clock, in minutes on two cores."""

import json
import logging
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np

from tdraft.agents.policy_files import save_policy
from tdraft.models.corpus import Corpus, default_corpus, draw_prompts, load_corpus
from tdraft.models.decoding import observation as ob
from tdraft.models.decoding.calibration import fit_calibration
from tdraft.models.decoding.cost import CostModel
from tdraft.models.decoding.drafters import Drafter, LMDrafter, NGramDrafter
from tdraft.models.decoding.record import Reading, measure_cost, read_text, record, sweep
from tdraft.models.decoding.sampling import Sampling
from tdraft.models.decoding.trace import Trace
from tdraft.models.files import atomic_write
from tdraft.models.language_model import LanguageModel, LMConfig
from tdraft.models.ngram import NGram
from tdraft.models.precision import autocast, resolve
from tdraft.models.pretrained import load_pretrained
from tdraft.models.training import TrainConfig, bits_per_byte, predict_argmax, train_language_model
from tdraft.scripts.comparison import Comparison, compare
from tdraft.scripts.live import NEAR_TIE, decode_live
from tdraft.scripts.report import BEST, best_cells, write_report
from tdraft.scripts.results import machine, write_rows
from tdraft.scripts.robustness import Material, robustness

DISTILLED, ONE_LAYER = "distilled 6-gram", "one-layer LM"


@dataclass(frozen=True)
class Demo:
    """Take the target that comes with tdraft, build drafters, record traces, learn when to stop drafting, and decode with it."""

    out: Path = Path("runs/demo")
    """folder of models, traces, policies, report.md, report.json, plots and TensorBoard events"""
    corpus: Path | None = None
    """a file or folder of your own text; by default Python's own documentation and sources"""
    resume: bool = False
    """reuse the models and traces that a former run left in --out"""
    train: bool = False
    """train a small target and one-layer drafter from scratch; by default they are those that come with tdraft"""
    sb3: bool = False
    """train Stable-Baselines3's PPO and DQN too, at the measured costs"""
    target_seconds: float = 115.0
    """training time of the target, with --train"""
    drafter_seconds: float = 20.0
    """training time of the one-layer drafter, with --train"""
    distil_bytes: int = 700_000
    """training text that the n-gram is relabelled on with the target's choices"""
    sweep_bytes: int = 300_000
    """training text behind it that the predictor of acceptance reads first"""
    contexts: int = 304
    """held-out test contexts"""
    train_contexts: int = 300
    """contexts that agents train on"""
    validation_contexts: int = 96
    """contexts that baselines are tuned and agents chosen on"""
    live_contexts: int = 4
    """test contexts decoded live, on the wall clock"""
    prompt: int = 96
    """bytes of a prompt"""
    tokens: int = 64
    """bytes decoded after it"""
    depth: int = 10
    """K, the longest draft"""
    seeds: int = 5
    """seeds of each agent"""
    timesteps: int = 10_000_000
    """environment steps of each training"""
    sb3_timesteps: int = 100_000
    """environment steps of each training of Stable-Baselines3's agents"""
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
    swept: Reading  # of text that the n-gram's labels have not seen


def build_models(demo: Demo, corpus: Corpus, stage: Stage) -> Models:
    """Train (or load) the target and its drafters."""
    folder = demo.out / "models"
    train, validation, test = (
        np.frombuffer(text, np.uint8).astype(np.int64) for text in (corpus.train, corpus.validation, corpus.test)
    )

    def language_model(name: str, config: LMConfig, seconds: float) -> LanguageModel:
        if not demo.train:
            return load_pretrained("transformer" if name == "target" else name)
        path = folder / f"{name}.safetensors"
        if demo.resume and path.exists():
            return LanguageModel.load(path)
        model = LanguageModel(config, seed=demo.seed)
        recipe = TrainConfig(seconds=seconds, batch=4, length=config.max_length, seed=demo.seed, precision="auto")
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

    verb = "train" if demo.train else "read"
    length = max(demo.prompt + demo.tokens + demo.depth + 2, 256)
    config = LMConfig(d_model=128, n_layers=4, n_heads=4, max_length=length)
    target = stage(f"{verb} the target", lambda: language_model("target", config, demo.target_seconds))
    ngram = stage("count n-grams", lambda: counted("ngram", lambda: NGram.fit(train, order=6)))
    sample, rest = np.split(train[: demo.distil_bytes + demo.sweep_bytes], [min(demo.distil_bytes, len(train) * 3 // 4)])
    fast = autocast(resolve("auto"), "cpu")  # for what need not be exact: labels of a drafter, a predictor's first weights
    distilled = stage(
        "distil n-grams",
        lambda: counted("distilled", lambda: ngram.distill(sample, fast(predict_argmax)(target, sample))),
    )
    small = LMConfig(d_model=64, n_layers=1, n_heads=2, max_length=length)
    drafter = stage(f"{verb} the drafter", lambda: language_model("drafter", small, demo.drafter_seconds))
    probe = test[:25_000]
    bits = stage(
        "score on the test split",
        lambda: {
            "target": bits_per_byte(target, probe),
            "drafter": bits_per_byte(drafter, probe),
            "ngram": float(ngram.bits_per_token(probe)),
        },
    )
    swept = stage("sweep more text", lambda: fast(read_text)(target, rest))
    return Models(target, {DISTILLED: NGramDrafter(distilled), ONE_LAYER: LMDrafter(drafter)}, bits, swept)


@dataclass(frozen=True)
class Traces:
    """Of one drafter and temperature. The training and validation contexts are of the validation text, which neither model nor
    n-gram has seen; test contexts are of the test text, with noise of their own."""

    train: Trace
    validation: Trace
    test: Trace
    test_keys: np.ndarray
    calibration: ob.Calibration
    cost: CostModel

    @property
    def material(self) -> Material:
        return Material(self.train, self.validation, self.calibration, self.cost)


def record_traces(
    demo: Demo, corpus: Corpus, models: Models, name: str, temperature: float, texts: dict[tuple[float, str], np.ndarray]
) -> Traces:
    """Traces of the three splits, the calibration fitted to the first, and the clock.

    :param texts: (temperature, split) -> what the target goes on with, which no drafter changes; filled in
    """
    sampling, drafter = Sampling(temperature=temperature), models.drafters[name]
    held_out = draw_prompts(corpus.validation, demo.train_contexts + demo.validation_contexts, demo.prompt, demo.seed)
    prompts = {
        "train": held_out[: demo.train_contexts],
        "validation": held_out[demo.train_contexts :],
        "test": draw_prompts(corpus.test, demo.contexts, demo.prompt, demo.seed + 1),
    }
    traces, keys = {}, np.zeros(0)
    for i, (split, begins) in enumerate(prompts.items()):
        path = demo.out / "traces" / f"{slug(name)}-T{temperature:g}-{split}.npz"
        keys = np.arange(len(begins)) + 1_000_000 * i
        if demo.resume and path.exists():
            traces[split] = Trace.load(path, drafter=drafter.fingerprint, target=models.target.fingerprint)
            continue
        options = {"progress": sys.stderr.isatty(), "meta": {"corpus": corpus.hash, "split": split}}
        known = texts.get((temperature, split))
        traces[split] = record(models.target, drafter, begins, demo.tokens, demo.depth, sampling, keys, tokens=known, **options)
        texts[temperature, split] = traces[split].tokens
        traces[split].save(path)
    calibration = fit_calibration(traces["train"], sweep=sweep(models.swept, drafter, sampling))
    path = demo.out / "traces" / f"{slug(name)}-T{temperature:g}-cost.json"
    if demo.resume and path.exists():
        cost = CostModel.load(path)
    else:
        cost = measure_cost(models.target, drafter, prompts["validation"], demo.depth, sampling, calibration=calibration)
        cost.save(path)
    if isinstance(drafter, NGramDrafter):
        drafter.token_seconds = cost.draft * cost.unit_seconds
    return Traces(traces["train"], traces["validation"], traces["test"], keys, calibration, cost)


def slug(name: str) -> str:
    return name.replace(" ", "-")


def regimes(name: str, cost: CostModel) -> dict[str, CostModel]:
    """The measured costs, and draft tokens at a tenth and three tenths of a step for the drafter that costs nothing."""
    found = {"measured": cost}
    if name == DISTILLED:
        found |= {f"draft={price:g}": cost.with_draft(price) for price in (0.1, 0.3)}
    return found


def section_of(demo: Demo, models: Models, name: str, temperature: float, regime: str, traces: Traces, found: Comparison) -> dict:
    """The report's entry of one drafter, temperature and regime."""
    return {
        "drafter": name,
        "temperature": temperature,
        "regime": regime,
        "target": {
            "params": models.target.n_parameters,
            "bits_per_byte": models.bits["target"],
            "ngram_bits_per_byte": models.bits["ngram"],
        },
        "cost": found.cost.to_dict(),
        "contexts": len(traces.test.tokens),
        "repetition_rate": repetition_rate(traces.test.tokens),
        "near_ties": int((traces.test.margin < NEAR_TIE).sum()),
        "best_static": found.best["static"],
        "best_baseline": found.best["baseline"],
        "best_learned": found.best["learned"],
        "learned_seeds": found.learned.validation,
        "policies": [row | {"wall_speedup": None, "own_cost": None, "identical": None} for row in found.rows],
    }


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


def run(demo: Demo) -> None:
    """The whole demonstration."""
    logging.getLogger("tdraft").setLevel(logging.WARNING)
    stage = Stage()
    corpus = stage("read the corpus", lambda: default_corpus() if demo.corpus is None else load_corpus(demo.corpus))
    models = build_models(demo, corpus, stage)
    print("bits/byte on the test split: " + ", ".join(f"{k} {v:.3f}" for k, v in models.bits.items()))
    sections, materials, texts = [], {}, {}
    for name, drafter in models.drafters.items():
        for temperature in demo.temperatures:
            label = f"{name}, T = {temperature:g}"
            traces: Traces = stage(
                f"record {label}", lambda n=name, t=temperature: record_traces(demo, corpus, models, n, t, texts)
            )
            materials[name, temperature] = traces
            for regime, cost in regimes(name, traces.cost).items():
                log_dir = demo.out / "tensorboard" / f"{slug(name)}-T{temperature:g}-{regime}"
                options = {"seeds": range(demo.seed, demo.seed + demo.seeds), "timesteps": demo.timesteps, "log_dir": log_dir}
                if demo.sb3 and regime == "measured":
                    options["sb3_timesteps"] = demo.sb3_timesteps
                given = (traces.train, traces.validation, traces.test, traces.calibration, cost)
                found: Comparison = stage(f"learn and compare: {label}, {regime}", lambda g=given, o=options: compare(*g, **o))
                section = section_of(demo, models, name, temperature, regime, traces, found)
                if regime == "measured":
                    live = (models.target, drafter, traces.test, traces.test_keys, traces.calibration, found, section)
                    stage(f"decode live: {label}", lambda a=live: decode_live(*a, contexts=demo.live_contexts))
                    save_best(demo.out / "policies" / f"{slug(name)}-T{temperature:g}.npz", found, traces)
                print("; ".join(f"{head} {cell}" for head, cell in zip(BEST, best_cells(section)) if cell), flush=True)
                sections.append(section)
    report = {
        "machine": machine(),
        "demo": {k: str(v) if isinstance(v, Path) else v for k, v in asdict(demo).items()},
        "corpus": {"name": corpus.name, "hash": corpus.hash},
        "sections": sections,
    }
    first, last = demo.temperatures[0], demo.temperatures[-1]
    if first != last:
        here, elsewhere = materials[DISTILLED, last], materials[DISTILLED, first]
        work = lambda: robustness(here.material, elsewhere.material, here.test, demo.timesteps)  # noqa: E731
        report["robustness"] = stage("change the clock, the temperature and the text", work)
    report["seconds"] = stage.seconds
    with atomic_write(demo.out / "report.json") as temporary:
        temporary.write_text(json.dumps(report, indent=1))
    write_report(report, demo.out)
    if demo.json is not None:
        write_rows(demo.json, rows_of(report))


def save_best(path: Path, found: Comparison, traces: Traces) -> None:
    """The learned policy that is best on validation, as a file that `tdraft decode` takes."""
    meta = traces.test.meta
    made_for = {"drafter": meta["drafter"], "target": meta["target"], "temperature": meta["temperature"]}
    save_policy(path, found.policies[found.best["learned"]], calibration=traces.calibration, cost=traces.cost, **made_for)


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
