"""Training of heads behind a frozen trunk or together with it, and how often the trunk agrees with them.

B batch   T window length   N tokens in a text   K depths
"""

import math
import sys
import time
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from ..decoding.record import plain_text
from ..decoding.sampling import Sampling
from ..language_model import LanguageModel
from ..optimizers import decaying_and_other, schedule
from ..precision import autocast, resolve
from ..training_run import TrainingDiverged, TrainingError, draw
from .base import Heads, read_trunk


@dataclass(frozen=True)
class HeadTraining:
    """How to train heads."""

    steps: int = 1500
    """Updates; the schedule spans them."""
    seconds: float | None = None
    """A time budget instead of `steps`; the schedule then follows the clock."""
    batch: int = 8
    """Windows in an update, B."""
    length: int = 256
    """Tokens in a window, T; at most the trunk's context."""
    lr: float = 2e-3
    """Peak learning rate of the heads."""
    warmup: float = 0.05
    """Part of the run in which the learning rate rises from 0."""
    final_lr: float = 0.02
    """Learning rate at the end, as a part of the peak."""
    weight_decay: float = 0.1
    """Of matrices."""
    clip: float = 1.0
    """Largest norm of the gradient."""
    precision: Literal["auto", "32-true", "bf16-mixed"] = "32-true"
    """Lightning's strings; auto is bf16-mixed where the device multiplies bfloat16 fast."""
    distil: bool = True
    """Learn what the trunk would choose, which is what drafts are checked against, instead of what the text goes on with."""
    joint: bool = False
    """Train the trunk along with the heads."""
    joint_lr: float = 0.1
    """Learning rate of the trunk, as a part of the heads'."""
    joint_weight: float = 0.3
    """Weight of the heads' loss beside the trunk's own, lambda."""
    seed: int = 0
    """Of the windows drawn and of noise (the initial weights are the heads' affair)."""


@dataclass(frozen=True)
class HeadResult:
    """What `train_heads` did."""

    steps: int
    seconds: float
    losses: np.ndarray  # (steps,) float32, nats; of the heads, without that of a trunk trained along


def train_heads(heads: Heads, trunk: LanguageModel, tokens: np.ndarray, config: HeadTraining) -> HeadResult:
    """Train heads in place, and the trunk too if `config.joint`.

    :param tokens: (N,) token ids to learn from
    :raises TrainingError: impossible settings, or too little text
    :raises TrainingDiverged: the loss or its gradient is no longer a finite number
    """
    _check(config, trunk, tokens)
    started, rng = time.perf_counter(), np.random.default_rng(np.random.SeedSequence(config.seed))
    optimizer, losses = _make_optimizer(heads, trunk, config), []

    def fraction() -> float:
        return len(losses) / config.steps if config.seconds is None else (time.perf_counter() - started) / config.seconds

    with torch.random.fork_rng(devices=[]), tqdm(total=100, unit="%", disable=not sys.stderr.isatty()) as bar:
        torch.manual_seed(config.seed)
        while (done := fraction()) < 1.0:
            for group in optimizer.param_groups:
                group["lr"] = config.lr * group["part"] * schedule(done, config.warmup, config.final_lr)
            losses.append(_update(heads, trunk, optimizer, draw(tokens, rng, config.batch, config.length), config))
            if not math.isfinite(losses[-1]):
                raise TrainingDiverged(f"loss {losses[-1]} at step {len(losses)}; lower lr ({config.lr:g}); nothing was saved")
            bar.n = round(100 * done)
            bar.set_postfix_str(f"loss {losses[-1]:.3f}", refresh=False)
            bar.update(0)
    if config.joint:
        heads.trunk_fingerprint = trunk.fingerprint
    return HeadResult(len(losses), time.perf_counter() - started, np.array(losses, np.float32))


def _make_optimizer(heads: Heads, trunk: LanguageModel, config: HeadTraining) -> torch.optim.Optimizer:
    """AdamW over the heads' own weights, and the trunk's where it is trained along."""
    shared = {id(parameter) for parameter in trunk.parameters()}
    groups = []
    for module, part in ((heads, 1.0), (trunk, config.joint_lr)) if config.joint else ((heads, 1.0),):
        decaying, other = decaying_and_other(module)
        for parameters, decay in ((decaying.values(), config.weight_decay), (other, 0.0)):
            own = [p for p in parameters if module is trunk or id(p) not in shared]
            groups.append({"params": own, "part": part, "weight_decay": decay})
    return torch.optim.AdamW([group for group in groups if group["params"]], config.lr, betas=(0.9, 0.95))


def _update(heads: Heads, trunk: LanguageModel, optimizer: torch.optim.Optimizer, window: Tensor, config: HeadTraining) -> float:
    """One step down the loss of (B, T + 1) tokens, the heads' loss; where loss or gradient isn't finite, no step and NaN."""
    tokens, labels = window[:, :-1], window[:, 1:]
    device = window.device.type
    with autocast(resolve(config.precision, device), device):
        with torch.set_grad_enabled(config.joint):
            hidden = read_trunk(trunk, tokens, heads.taps)
            logits = trunk.logits(hidden[..., : trunk.config.d_model])
        loss = heads.loss(hidden, trunk.embed(tokens), logits.argmax(-1) if config.distil else labels, trunk.logits)
    total = loss
    if config.joint:
        total = config.joint_weight * loss + F.cross_entropy(logits.flatten(0, 1).float(), labels.flatten())
    trained = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    optimizer.zero_grad(set_to_none=True)
    total.backward(inputs=trained)  # a frozen trunk gets no gradients
    norm = torch.nn.utils.clip_grad_norm_(trained, config.clip)
    if not (total.isfinite() and norm.isfinite()):
        return math.nan
    optimizer.step()
    return loss.item()


def _check(config: HeadTraining, trunk: LanguageModel, tokens: np.ndarray) -> None:
    for name in ("steps", "batch", "length", "lr", "clip"):
        if getattr(config, name) <= 0:
            raise TrainingError(f"{name} must be positive, got {getattr(config, name)}")
    if config.length > trunk.config.max_length:
        raise TrainingError(f"length {config.length} exceeds the trunk's max_length {trunk.config.max_length}; lower it")
    if len(tokens) <= config.length:
        raise TrainingError(f"the text must hold more than length={config.length} tokens, got {len(tokens)}")


def agreement(heads: Heads, trunk: LanguageModel, windows: np.ndarray, *, batch: int = 16) -> np.ndarray:
    """Where the trunk would choose what the heads propose, the tokens before it being those of the text.

    :param windows: (M, T) tokens
    :return: (M, T - K, K) bool: for each depth k, whether it agrees on the token i + k + 1 after t_i (depth 0 for early exit)
    """
    found = []
    for i in range(0, len(windows), batch):
        tokens = torch.from_numpy(windows[i : i + batch].astype(np.int64))
        with torch.inference_mode():
            hidden = read_trunk(trunk, tokens, heads.taps)
            top = trunk.logits(hidden[..., : trunk.config.d_model]).argmax(-1)
            outputs = heads(hidden, trunk.embed(tokens))
            hits = [trunk.logits(y).argmax(-1) == top[:, tokens.shape[1] - y.shape[1] :] for y in outputs]
        found.append(torch.stack([hit[:, : hits[-1].shape[1]] for hit in hits], dim=-1).numpy())
    return np.concatenate(found)


def greedy_windows(trunk: LanguageModel, prompts: np.ndarray, length: int) -> np.ndarray:
    """(M, P + length) prompts (M, P) and what the trunk goes on with, greedily."""
    text = plain_text(trunk, prompts.astype(np.int64), length, Sampling(temperature=0.0), np.arange(len(prompts)))
    return np.concatenate([prompts, text], axis=1)
