"""Optimisers of language models and their learning rate."""

import math
from typing import Literal

import torch
from torch import nn

from .precision import Masters

Optimizer = Literal["adamw", "muon"]


class Optimizers:
    """AdamW (Loshchilov & Hutter 2019, arXiv 1711.05101), or Muon (Jordan et al. 2024) for the backbone's matrices beside AdamW.

    Matrices decay, gains and a layer's `undecayed` parameters don't. Muon's updates are scaled to AdamW's size (Liu et al. 2025,
    arXiv 2502.16982), so that one learning rate serves both.

    :param model: a module, whose `embedding` and `head` Muon leaves to AdamW
    :param masters: of its parameters
    """

    def __init__(self, model: nn.Module, masters: Masters, kind: str, *, beta1: float, beta2: float, weight_decay: float):
        if kind not in ("adamw", "muon"):
            raise ValueError(f'optimizer must be "adamw" or "muon", got "{kind}"')
        decaying, gains = decaying_and_other(model)
        hidden, matrices = [], []
        for name, p in decaying.items():
            (hidden if kind == "muon" and p.dim() == 2 and not name.startswith(("embedding", "head")) else matrices).append(p)
        groups = [
            {"params": masters.of(matrices), "weight_decay": weight_decay},
            {"params": masters.of(gains), "weight_decay": 0.0},
        ]
        self.optimizers: list[torch.optim.Optimizer] = [torch.optim.AdamW(groups, betas=(beta1, beta2), fused=True)]
        if hidden:
            self.optimizers.append(
                torch.optim.Muon(masters.of(hidden), weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw")
            )

    def step(self, lr: float) -> None:
        """One update at this learning rate."""
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = lr
            optimizer.step()

    def zero_grad(self) -> None:
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)

    def state_dict(self) -> list[dict]:
        return [optimizer.state_dict() for optimizer in self.optimizers]

    def load_state_dict(self, states: list[dict]) -> None:
        for optimizer, state in zip(self.optimizers, states, strict=True):
            optimizer.load_state_dict(state)


def decaying_and_other(model: nn.Module) -> tuple[dict[str, nn.Parameter], list[nn.Parameter]]:
    """The trained parameters that decay, by name, and those that don't: vectors, and what a layer calls `undecayed`."""
    decaying, other = {}, []
    for path, module in model.named_modules():
        for name, p in module.named_parameters(recurse=False):
            if not p.requires_grad:
                continue
            if p.dim() < 2 or name in getattr(module, "undecayed", ()):
                other.append(p)
            else:
                decaying[f"{path}.{name}".lstrip(".")] = p
    return decaying, other


def schedule(fraction: float, warmup: float, final: float) -> float:
    """Learning rate as a part of the peak: linear from 0 over `warmup`, then a half cosine down to `final`.

    :param fraction: part of the run done, in [0, 1]
    """
    if fraction < warmup:
        return (fraction + 1e-3) / (warmup + 1e-3)  # not 0 at the first step
    return final + (1 - final) * 0.5 * (1 + math.cos(math.pi * (fraction - warmup) / max(1 - warmup, 1e-9)))
