"""Training of language models: random windows, warm-up and cosine, checkpoints from which a run goes on bit by bit.

In several processes (torchrun) each takes its part of a step's windows and the gradients are averaged.

B batch   T window length   V vocabulary   N tokens in a text
"""

import hashlib
import math
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from tqdm import tqdm

from .checkpoints import CheckpointError
from .files import atomic_write
from .language_model import LanguageModel, bits_per_byte, predict_argmax
from .training_log import Log
from .training_run import Run, TrainConfig, TrainingDiverged, TrainingError

__all__ = [
    "TrainConfig",
    "TrainResult",
    "TrainingDiverged",
    "TrainingError",
    "bits_per_byte",
    "data_hash",
    "predict_argmax",
    "train_language_model",
]

SCHEMA = 3
SAMPLE = 240  # tokens of the text that TensorBoard shows at each evaluation


@dataclass(frozen=True)
class TrainResult:
    """What a call of `train_language_model` reached."""

    step: int  # updates done since the very beginning
    seconds: float  # spent on them
    bits_per_byte: float  # on the validation tokens; of the best evaluation where there is a `patience`
    finished: bool  # False when stopped by `stop`


def train_language_model(
    model: LanguageModel,
    train: np.ndarray,
    validation: np.ndarray,
    config: TrainConfig,
    run_dir: str | Path | None = None,
    *,
    teacher: LanguageModel | None = None,
    resume: bool = False,
    stop: int | None = None,
    changed_text: bool = False,
) -> TrainResult:
    """Train `model` in place.

    With a `run_dir` it writes config.json, progress.csv, TensorBoard events, checkpoint.pt (all that a run needs to go on) and,
    at the end, model.safetensors. On a CPU, with `steps`, a run that was stopped or killed and resumed ends with the very bits
    of one that wasn't, given the same number of threads. In a process group the first process writes.

    :param train: (N,) token ids to learn from
    :param validation: (M,) token ids to evaluate on
    :param teacher: a model of the same tokens, whose probabilities are learned beside the text; it stays as it is
    :param resume: go on from run_dir/checkpoint.pt where there is one, else begin
    :param stop: leave after this step, with a checkpoint: a run in two parts
    :param changed_text: go on although the text is not that of the checkpoint
    :raises TrainingError: impossible settings, too little text, or a run_dir in use without `resume`
    :raises CheckpointError: the checkpoint is damaged, or of another configuration, model or text
    :raises TrainingDiverged: the loss is NaN or infinite; the last checkpoint is kept
    """
    _check(config, train, validation, model, teacher)
    checkpoint = None if run_dir is None else Path(run_dir) / "checkpoint.pt"
    identity = {"config": asdict(config), "model": asdict(model.config), "data": data_hash(train, validation)}
    identity["teacher"] = None if teacher is None else teacher.fingerprint
    saved = None
    if checkpoint is not None and checkpoint.exists():
        if not resume:
            raise TrainingError(f"{checkpoint} is there already; resume it (resume=True, --resume) or choose another run_dir")
        saved = _load_checkpoint(checkpoint, identity, changed_text)
    run = Run(model, config, teacher, model.count_bytes(train[:100_000]) / len(train[:100_000]))
    if saved is not None:
        run.load_state_dict(saved)
    writes = not dist.is_initialized() or dist.get_rank() == 0
    with _torch_rng(config.seed, saved), Log(run_dir if writes else None, identity, run.step) as log:

        def save() -> None:
            if checkpoint is not None and writes:
                with atomic_write(checkpoint) as temporary:
                    torch.save({"schema": SCHEMA, **identity, **run.state_dict()}, temporary)

        def evaluate() -> float:
            score = bits_per_byte(model, validation[: config.eval_tokens], length=config.length)
            if log.events is not None:
                log.text(run.step, sample(model, validation))
            if score < run.best:
                run.best, run.worse = score, 0
                if config.patience is not None and run_dir is not None and writes:
                    model.save(Path(run_dir) / "model.safetensors")
            else:
                run.worse += 1
            return score

        score, scored = math.nan, -1
        silent, unit = not (writes and sys.stderr.isatty()), "step" if config.seconds is None else "s"
        with tqdm(total=round(config.seconds or config.steps), unit=unit, disable=silent) as bar:
            while not run.finished and (stop is None or run.step < stop):
                lr = run.lr
                loss, norm = run.update(train, lr)
                if math.isnan(loss) or not (math.isfinite(norm) or run.scaler.enabled):
                    good = checkpoint is not None and checkpoint.exists()
                    kept = f"the last good checkpoint is {checkpoint}" if good else "nothing was saved"
                    where = f"loss {loss}, gradient norm {norm} at step {run.step + 1}"
                    raise TrainingDiverged(f"{where}; lower lr ({config.lr:g}); {kept}")
                run.step += 1
                if run.step % config.eval_every == 0:
                    score, scored = evaluate(), run.step
                if run.step % config.log_every == 0 or scored == run.step:
                    log.row(run.step, run.row(loss, norm, lr, score if scored == run.step else math.nan))
                if run.step % config.checkpoint_every == 0:
                    save()
                bar.n = run.step if config.seconds is None else round(run.clock())
                bar.set_postfix_str(f"loss {loss:.3f}", refresh=False)
                bar.update(0)
        if scored != run.step and run.step:
            score = evaluate()
        save()
        if run_dir is not None and run.finished and config.patience is None and writes:
            model.save(Path(run_dir) / "model.safetensors")
    return TrainResult(run.step, run.clock(), score if config.patience is None else run.best, run.finished)


@contextmanager
def _torch_rng(seed: int, saved: dict[str, Any] | None) -> Iterator[None]:
    """torch's global generator seeded, or as in the checkpoint; as it was afterwards."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if saved is not None:
            torch.set_rng_state(saved["torch_rng"])
        yield


def sample(model: LanguageModel, validation: np.ndarray, temperature: float = 0.8) -> str:
    """How the model goes on with the beginning of the validation text; a bar parts what it was given from what it says."""
    from .decoding.decoder import SpeculativeDecoder  # takes a second to import
    from .decoding.sampling import Sampling

    prompt = validation[: max(model.config.max_length // 2, 2)]
    decoder = SpeculativeDecoder(model, sampling=Sampling(temperature=temperature))
    text = decoder.generate(prompt, min(SAMPLE, model.config.max_length // 2)).tokens
    return f"{model.tokenizer.decode(prompt[-80:])}|{model.tokenizer.decode(text)}"


def data_hash(*texts: np.ndarray) -> str:
    """16 hex digits of the sha256 of token arrays, whatever integers hold them."""
    digest = hashlib.sha256()
    for text in texts:
        digest.update(f"{len(text)}:".encode())
        digest.update(np.ascontiguousarray(text, dtype=np.uint32).data)
    return digest.hexdigest()[:16]


def _check(
    config: TrainConfig, train: np.ndarray, validation: np.ndarray, model: LanguageModel, teacher: LanguageModel | None
) -> None:
    for name in ("steps", "batch", "accumulate", "length", "log_every", "eval_every", "checkpoint_every"):
        if getattr(config, name) < 1:
            raise TrainingError(f"{name} must be positive, got {getattr(config, name)}")
    if config.lr <= 0 or (config.seconds is not None and config.seconds <= 0):
        raise TrainingError(f"lr and seconds must be positive, got lr={config.lr}, seconds={config.seconds}")
    if config.seconds is not None and dist.is_initialized():
        raise TrainingError("several processes cannot share a time budget; give steps, not seconds")
    if not 0 <= config.distil <= 1:
        raise TrainingError(f"distil must be in [0, 1], got {config.distil}")
    if teacher is not None and teacher.config.vocab_size != model.config.vocab_size:
        raise TrainingError(
            f"the teacher has {teacher.config.vocab_size} tokens, the model {model.config.vocab_size}; use one tokenizer"
        )
    if teacher is not None and config.length > teacher.config.max_length:
        raise TrainingError(f"length {config.length} exceeds the teacher's max_length {teacher.config.max_length}; make it fit")
    if config.length > model.config.max_length:
        raise TrainingError(f"length {config.length} exceeds the model's max_length {model.config.max_length}; make one fit")
    if len(train) <= config.length or len(validation) < 2:
        raise TrainingError(
            f"train must hold more than length={config.length} tokens and validation 2, got {len(train)} and {len(validation)}"
        )


def _load_checkpoint(path: Path, identity: dict[str, Any], changed_text: bool) -> dict[str, Any]:
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle fails in any way it likes
        raise CheckpointError(f"cannot read checkpoint {path}: {(str(error) or type(error).__name__).splitlines()[0]}") from None
    if not isinstance(saved, dict) or saved.get("schema") != SCHEMA:
        raise CheckpointError(f"{path} is not a training checkpoint of schema {SCHEMA}")
    if saved["data"] != identity["data"] and not changed_text:
        raise CheckpointError(
            f"{path} was trained on text {saved['data']}, this is {identity['data']}: it has grown, shrunk or changed; "
            "choose another run_dir, or say that you mean it (changed_text=True, --changed-text)"
        )
    if saved["teacher"] != identity["teacher"]:
        raise CheckpointError(
            f"{path} was made with teacher {saved['teacher']}, not {identity['teacher']}; use that or another run_dir"
        )
    for part in ("config", "model"):
        for name, value in identity[part].items():
            if saved[part].get(name) != value:
                raise CheckpointError(
                    f"{path} was made with {part} {name}={saved[part].get(name)}, not {value}; use that or another run_dir"
                )
    return saved
