"""Training of language models: random windows, AdamW, warm-up and cosine, checkpoints from which a run goes on bit by bit.

B batch   T window length   V vocabulary   N tokens in a text
"""

import csv
import hashlib
import json
import math
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from .files import atomic_write
from .language_model import CheckpointError, LanguageModel, bits_per_byte, predict_argmax

__all__ = [
    "TrainConfig",
    "TrainResult",
    "TrainingDiverged",
    "bits_per_byte",
    "data_hash",
    "has_fast_bf16",
    "predict_argmax",
    "train_language_model",
]

SCHEMA = 1
COLUMNS = (
    "step", "seconds", "tokens", "train/loss", "train/bits_per_byte", "train/lr", "train/grad_norm",
    "time/tokens_per_second", "eval/bits_per_byte",
)  # fmt: skip


class TrainingDiverged(RuntimeError):
    """The loss or its gradient is no longer a finite number."""


@dataclass(frozen=True)
class TrainConfig:
    """How to train a language model."""

    steps: int = 2500
    """Updates; the schedule spans them."""
    seconds: float | None = None
    """A time budget instead of `steps`. The schedule then follows the clock, so that two runs are not bit-identical."""
    batch: int = 4
    """Windows in an update, B."""
    length: int = 256
    """Tokens in a window, T. A model is at home in contexts no longer than this."""
    lr: float = 3e-3
    """Peak learning rate."""
    warmup: float = 0.05
    """Part of the run in which the learning rate rises from 0."""
    final_lr: float = 0.02
    """Learning rate at the end, as a part of the peak."""
    beta1: float = 0.9
    """AdamW's decay of the mean gradient."""
    beta2: float = 0.95
    """AdamW's decay of the squared gradient."""
    weight_decay: float = 0.1
    """Of matrices; gains have none."""
    clip: float = 1.0
    """Largest norm of the gradient."""
    bf16: bool = False
    """Multiply matrices in bfloat16, with the weights in float32: faster where `has_fast_bf16()`, slower elsewhere."""
    seed: int = 0
    """Of the windows drawn (the initial weights are the model's affair)."""
    log_every: int = 20
    """Steps between rows of progress.csv."""
    eval_every: int = 500
    """Steps between evaluations; there is one at the end too."""
    eval_tokens: int = 16384
    """Validation tokens in an evaluation."""
    checkpoint_every: int = 500
    """Steps between checkpoints; there is one at the end too."""


@dataclass(frozen=True)
class TrainResult:
    """What a call of `train_language_model` reached."""

    step: int  # updates done since the very beginning
    seconds: float  # spent on them
    bits_per_byte: float  # on the validation tokens
    finished: bool  # False when stopped by `stop`


def train_language_model(
    model: LanguageModel,
    train: np.ndarray,
    validation: np.ndarray,
    config: TrainConfig,
    run_dir: str | Path | None = None,
    *,
    resume: bool = False,
    stop: int | None = None,
) -> TrainResult:
    """Train `model` in place.

    With a `run_dir` it writes config.json, progress.csv, TensorBoard events, checkpoint.pt (all that a run needs to go on) and,
    at the end, model.safetensors. On a CPU, with `steps`, a run that was stopped or killed and resumed ends with the very bits
    of one that wasn't, given the same number of threads.

    :param train: (N,) token ids to learn from
    :param validation: (M,) token ids to evaluate on
    :param resume: go on from run_dir/checkpoint.pt where there is one, else begin
    :param stop: leave after this step, with a checkpoint: a run in two parts
    :raises ValueError: too little text, or a run_dir in use without `resume`
    :raises CheckpointError: the checkpoint is damaged, or of another configuration, model or text
    :raises TrainingDiverged: the loss is NaN or infinite; the last checkpoint is kept
    """
    _check(config, train, validation, model)
    started = time.perf_counter()
    rng = np.random.default_rng(np.random.SeedSequence(config.seed))
    optimizer = make_optimizer(model, config)
    checkpoint = None if run_dir is None else Path(run_dir) / "checkpoint.pt"
    identity = {"config": asdict(config), "model": asdict(model.config), "data": data_hash(train, validation)}
    step, elapsed = 0, 0.0
    if checkpoint is not None and checkpoint.exists():
        if not resume:
            raise ValueError(f"{checkpoint} is there already; resume it (resume=True, --resume) or choose another run_dir")
        saved = _load_checkpoint(checkpoint, identity)
        step, elapsed = saved["step"], saved["seconds"]
    with torch.random.fork_rng(devices=[]), Log(run_dir, identity, step) as log:
        torch.manual_seed(config.seed)
        if step:
            model.load_state_dict(saved["weights"])
            optimizer.load_state_dict(saved["optimizer"])
            rng.bit_generator.state = json.loads(saved["numpy_rng"])
            torch.set_rng_state(saved["torch_rng"])

        def save() -> None:
            if checkpoint is not None:
                rngs = {"numpy_rng": json.dumps(rng.bit_generator.state), "torch_rng": torch.get_rng_state()}
                weights = {"weights": model.state_dict(), "optimizer": optimizer.state_dict()}
                with atomic_write(checkpoint) as temporary:
                    torch.save({"schema": SCHEMA, "step": step, "seconds": clock(), **identity, **weights, **rngs}, temporary)

        def clock() -> float:
            return elapsed + time.perf_counter() - started

        def fraction() -> float:
            return step / config.steps if config.seconds is None else min(clock() / config.seconds, 1.0)

        def evaluate() -> float:
            return bits_per_byte(model, validation[: config.eval_tokens], length=config.length)

        score, scored = math.nan, -1
        since, tick = step, clock()
        total = config.steps if config.seconds is None else round(config.seconds)
        with tqdm(total=total, unit="step" if config.seconds is None else "s", disable=not sys.stderr.isatty()) as bar:
            while fraction() < 1.0 and (stop is None or step < stop):
                lr = config.lr * schedule(fraction(), config.warmup, config.final_lr)
                window = draw(train, rng, config.batch, config.length)
                loss, norm = update(model, optimizer, window, lr, config.clip, config.bf16)
                if not (math.isfinite(loss) and math.isfinite(norm)):
                    kept = (
                        f"the last good checkpoint is {checkpoint}" if checkpoint and checkpoint.exists() else "nothing was saved"
                    )
                    raise TrainingDiverged(
                        f"loss {loss}, gradient norm {norm} at step {step + 1}; lower lr ({config.lr:g}); {kept}"
                    )
                step += 1
                if step % config.eval_every == 0:
                    score, scored = evaluate(), step
                if step % config.log_every == 0 or scored == step:
                    now = clock()
                    speed = (step - since) * config.batch * config.length / max(now - tick, 1e-9)
                    since, tick = step, now
                    tokens = step * config.batch * config.length
                    log.row(
                        step,
                        (step, now, tokens, loss, loss / math.log(2), lr, norm, speed, score if scored == step else math.nan),
                    )
                if step % config.checkpoint_every == 0:
                    save()
                bar.n = step if config.seconds is None else round(clock())
                bar.set_postfix_str(f"{loss / math.log(2):.3f} bits/byte", refresh=False)
                bar.update(0)
        save()
        if scored != step:
            score = evaluate()
        finished = fraction() >= 1.0
        if run_dir is not None and finished:
            model.save(Path(run_dir) / "model.safetensors")
    return TrainResult(step, clock(), score, finished)


def make_optimizer(model: LanguageModel, config: TrainConfig) -> torch.optim.Optimizer:
    """AdamW (Loshchilov & Hutter 2019, arXiv 1711.05101), with decay on the matrices alone."""
    named = [(module, name, p) for module in model.modules() for name, p in module.named_parameters(recurse=False)]
    matrices = [p for module, name, p in named if p.dim() >= 2 and name not in getattr(module, "undecayed", ())]
    gains = [p for module, name, p in named if p.dim() < 2 or name in getattr(module, "undecayed", ())]
    groups = [{"params": matrices, "weight_decay": config.weight_decay}, {"params": gains, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=config.lr, betas=(config.beta1, config.beta2), fused=True)


def schedule(fraction: float, warmup: float, final: float) -> float:
    """Learning rate as a part of the peak: linear from 0 over `warmup`, then a half cosine down to `final`.

    :param fraction: part of the run done, in [0, 1]
    """
    if fraction < warmup:
        return (fraction + 1e-3) / (warmup + 1e-3)  # not 0 at the first step
    return final + (1 - final) * 0.5 * (1 + math.cos(math.pi * (fraction - warmup) / max(1 - warmup, 1e-9)))


def draw(tokens: np.ndarray, rng: np.random.Generator, batch: int, length: int) -> Tensor:
    """(B, T + 1) int64: windows of the text that start anywhere."""
    starts = rng.integers(0, len(tokens) - length, size=batch)
    return torch.from_numpy(tokens[starts[:, None] + np.arange(length + 1)].astype(np.int64))


def update(
    model: LanguageModel, optimizer: torch.optim.Optimizer, window: Tensor, lr: float, clip: float, bf16: bool = False
) -> tuple[float, float]:
    """One step down the mean cross-entropy of (B, T + 1) tokens; the weights stay when loss or gradient isn't finite.

    :return: loss in nats a token, norm of the gradient before it is clipped
    """
    for group in optimizer.param_groups:
        group["lr"] = lr
    optimizer.zero_grad(set_to_none=True)
    with torch.autocast(window.device.type, torch.bfloat16, enabled=bf16):
        logits, _ = model(window[:, :-1])
    loss = F.cross_entropy(logits.flatten(0, 1).float(), window[:, 1:].flatten())
    loss.backward()
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), clip).item()
    if math.isfinite(loss.item()) and math.isfinite(norm):
        optimizer.step()
    return loss.item(), norm


def has_fast_bf16() -> bool:
    """Whether this CPU multiplies bfloat16 in hardware (avx512_bf16 or AMX)."""
    return any(getattr(torch.cpu, name, bool)() for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"))


def data_hash(*texts: np.ndarray) -> str:
    """16 hex digits of the sha256 of token arrays, whatever integers hold them."""
    digest = hashlib.sha256()
    for text in texts:
        digest.update(f"{len(text)}:".encode())
        digest.update(np.ascontiguousarray(text, dtype=np.uint32).data)
    return digest.hexdigest()[:16]


class Log:
    """progress.csv, config.json and TensorBoard events of a run; nothing at all without a folder."""

    def __init__(self, run_dir: str | Path | None, identity: dict[str, Any], step: int):
        self.file = self.events = None
        if run_dir is None:
            return
        from torch.utils.tensorboard import SummaryWriter  # takes a second to import

        run_dir = Path(run_dir)
        with atomic_write(run_dir / "config.json") as temporary:
            temporary.write_text(json.dumps(identity, indent=2) + "\n")
        path = run_dir / "progress.csv"
        rows = list(csv.reader(path.read_text().splitlines()))[1:] if step and path.exists() else []
        rows = [row for row in rows if len(row) == len(COLUMNS) and int(row[0]) <= step]  # a kill leaves later ones
        with atomic_write(path) as temporary, open(temporary, "w", newline="") as file:
            csv.writer(file).writerows([COLUMNS, *rows])
        self.file = open(path, "a", newline="")
        self.events = SummaryWriter(str(run_dir), purge_step=step + 1)

    def row(self, step: int, values: tuple[float, ...]) -> None:
        """Write one value a column; NaN is left out."""
        if self.file is not None and self.events is not None:
            csv.writer(self.file).writerow(["" if v != v else f"{v:.7g}" if isinstance(v, float) else v for v in values])
            self.file.flush()
            for tag, value in zip(COLUMNS[3:], values[3:]):
                if value == value:
                    self.events.add_scalar(tag, value, step)

    def __enter__(self) -> "Log":
        return self

    def __exit__(self, *error: object) -> None:
        if self.file is not None and self.events is not None:
            self.file.close()
            self.events.close()


def _check(config: TrainConfig, train: np.ndarray, validation: np.ndarray, model: LanguageModel) -> None:
    for name in ("steps", "batch", "length", "log_every", "eval_every", "checkpoint_every"):
        if getattr(config, name) < 1:
            raise ValueError(f"{name} must be positive, got {getattr(config, name)}")
    if config.lr <= 0 or (config.seconds is not None and config.seconds <= 0):
        raise ValueError(f"lr and seconds must be positive, got lr={config.lr}, seconds={config.seconds}")
    if config.length > model.config.max_length:
        raise ValueError(f"length {config.length} exceeds the model's max_length {model.config.max_length}; make one of them fit")
    if len(train) <= config.length or len(validation) < 2:
        raise ValueError(
            f"train must hold more than length={config.length} tokens and validation 2, got {len(train)} and {len(validation)}"
        )


def _load_checkpoint(path: Path, identity: dict[str, Any]) -> dict[str, Any]:
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle fails in any way it likes
        raise CheckpointError(f"cannot read checkpoint {path}: {(str(error) or type(error).__name__).splitlines()[0]}") from None
    if not isinstance(saved, dict) or saved.get("schema") != SCHEMA:
        raise CheckpointError(f"{path} is not a training checkpoint of schema {SCHEMA}")
    if saved["data"] != identity["data"]:
        raise CheckpointError(f"{path} was trained on text {saved['data']}, this is {identity['data']}; choose another run_dir")
    for part in ("config", "model"):
        for name, value in identity[part].items():
            if saved[part].get(name) != value:
                raise CheckpointError(
                    f"{path} was made with {part} {name}={saved[part].get(name)}, not {value}; use that or another run_dir"
                )
    return saved
