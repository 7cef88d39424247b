"""The settings of a training, one update of it, and all that changes by it.

B batch   T window length   N tokens in a text
"""

import json
import math
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from .distributed import average
from .language_model import LanguageModel
from .optimizers import Optimizer, Optimizers, schedule
from .precision import LossScaler, Masters, Precision, autocast, clip, resolve, storage


class TrainingError(ValueError):
    """Impossible settings, too little text, or a folder that is in use."""


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
    """Windows in a pass, B."""
    accumulate: int = 1
    """Passes in an update, whose gradients are averaged."""
    length: int = 256
    """Tokens in a window, T. A model is at home in contexts no longer than this."""
    optimizer: Optimizer = "adamw"
    """AdamW, or Muon for the backbone's matrices."""
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
    """Of matrices; gains, rates and steps have none."""
    clip: float = 1.0
    """Largest norm of the gradient."""
    distil: float = 1.0
    """With a teacher: weight of what it says of the next token, the rest being the text's own (Hinton et al. 2015)."""
    precision: Precision = "32-true"
    """Lightning's strings; auto is bf16-mixed where the device multiplies bfloat16 fast."""
    seed: int = 0
    """Of the windows drawn (the initial weights are the model's affair)."""
    log_every: int = 20
    """Steps between rows of progress.csv."""
    eval_every: int = 500
    """Steps between evaluations; there is one at the end too."""
    eval_tokens: int = 16384
    """Validation tokens in an evaluation."""
    patience: int | None = None
    """Stop after so many evaluations without a better one; model.safetensors is then the best model, not the last."""
    checkpoint_every: int = 500
    """Steps between checkpoints; there is one at the end too."""


class Run:
    """All of a training that changes: optimiser, scaler, generator, counters, clock.

    :param token_bytes: bytes that a token of the text stands for
    """

    def __init__(self, model: LanguageModel, config: TrainConfig, teacher: LanguageModel | None, token_bytes: float):
        device = next(model.parameters()).device.type
        self.model, self.config, self.teacher = model, config, teacher
        self.precision = resolve(config.precision, device)
        model.to(storage(self.precision))
        self.autocast = autocast(self.precision, device)
        self.masters = Masters(model.parameters())
        decays = {"beta1": config.beta1, "beta2": config.beta2, "weight_decay": config.weight_decay}
        self.optimizers = Optimizers(model, self.masters, config.optimizer, **decays)
        self.scaler = LossScaler(self.precision.startswith("16"))
        self.rng = np.random.default_rng(np.random.SeedSequence(config.seed))
        self.step, self.elapsed, self.started = 0, 0.0, time.perf_counter()
        self.best, self.worse = math.inf, 0
        self.token_bytes, self._logged = token_bytes, (0, 0.0)
        self.rank, self.processes = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)

    def clock(self) -> float:
        """Seconds since the very beginning, pauses left out."""
        return self.elapsed + time.perf_counter() - self.started

    @property
    def fraction(self) -> float:
        """Part of the run done."""
        config = self.config
        return self.step / config.steps if config.seconds is None else min(self.clock() / config.seconds, 1.0)

    @property
    def finished(self) -> bool:
        return self.fraction >= 1.0 or (self.config.patience is not None and self.worse >= self.config.patience)

    @property
    def lr(self) -> float:
        return self.config.lr * schedule(self.fraction, self.config.warmup, self.config.final_lr)

    def update(self, tokens: np.ndarray, lr: float) -> tuple[float, float]:
        """One step down the mean cross-entropy of random windows; the weights stay when loss or gradient isn't finite.

        :return: loss on the text in nats a token, norm of the gradient before it is clipped
        """
        config, passes = self.config, self.config.accumulate
        windows = draw(tokens, self.rng, config.batch * passes * self.processes, config.length)
        own = windows.chunk(self.processes)[self.rank]
        loss = 0.0
        for window in own.to(next(self.model.parameters()).device).chunk(passes):
            with self.autocast:
                logits, _ = self.model(window[:, :-1])
            logits = logits.flatten(0, 1).float()
            part = F.cross_entropy(logits, window[:, 1:].flatten()) / passes
            loss += part.item()
            if self.teacher is not None:
                part = (1 - config.distil) * part + config.distil * self._distance(window, logits) / passes
            (part * self.scaler.scale).backward()
        gradients = self.masters.take_gradients(self.scaler.scale)
        if self.processes > 1:
            loss = average(gradients, loss)
        norm = clip(gradients, config.clip)
        finite = math.isfinite(loss) and math.isfinite(norm)
        if finite:
            self.optimizers.step(lr)
            self.masters.write_back()
        try:
            self.scaler.update(finite)
        except FloatingPointError as error:
            raise TrainingDiverged(f"{error} at step {self.step + 1}; lower lr ({config.lr:g}) or use bf16-mixed") from None
        self.optimizers.zero_grad()
        return loss, norm

    def row(self, loss: float, norm: float, lr: float, score: float) -> tuple[float, ...]:
        """What the log says of a step (`training_log.COLUMNS`)."""
        config, now, (step, before) = self.config, self.clock(), self._logged
        self._logged = self.step, now
        tokens = config.batch * config.accumulate * self.processes * config.length  # a step
        scale, skipped = (self.scaler.scale, self.scaler.skipped) if self.scaler.enabled else (math.nan, math.nan)
        bits, speed = loss / math.log(2) / self.token_bytes, (self.step - step) * tokens / max(now - before, 1e-9)
        return (self.step, now, self.step * tokens, loss, bits, lr, norm, scale, skipped, speed, score)

    def _distance(self, window: Tensor, logits: Tensor) -> Tensor:
        """Cross-entropy to what the teacher says of the windows' tokens (B, T + 1), nats a token."""
        assert self.teacher is not None
        with torch.no_grad(), self.autocast:
            law = self.teacher(window[:, :-1])[0].flatten(0, 1).float().softmax(-1)
        return F.cross_entropy(logits, law)

    def state_dict(self) -> dict[str, Any]:
        return {
            "weights": self.model.state_dict(),
            "masters": self.masters.state_dict(),
            "optimizers": self.optimizers.state_dict(),
            "scaler": self.scaler.state_dict(),
            "numpy_rng": json.dumps(self.rng.bit_generator.state),
            "torch_rng": torch.get_rng_state(),
            "counters": {"step": self.step, "elapsed": self.clock(), "best": self.best, "worse": self.worse},
        }

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        self.model.load_state_dict(saved["weights"])
        self.masters.load_state_dict(saved["masters"])
        self.optimizers.load_state_dict(saved["optimizers"])
        self.scaler.load_state_dict(saved["scaler"])
        self.rng.bit_generator.state = json.loads(saved["numpy_rng"])
        for name, value in saved["counters"].items():
            setattr(self, name, value)
        self._logged = self.step, self.clock()


def draw(tokens: np.ndarray, rng: np.random.Generator, batch: int, length: int) -> Tensor:
    """(B, T + 1) int64: windows of the text that start anywhere."""
    starts = rng.integers(0, len(tokens) - length, size=batch)
    return torch.from_numpy(tokens[starts[:, None] + np.arange(length + 1)].astype(np.int64))
