"""Precision of training: what is computed in 16 bits, what is kept in 32, and how float16 is kept from over- and underflow.

Strings as in Lightning. "mixed": weights in float32, matrix products under autocast in 16 bits. "true": weights and activations
in 16 bits; the optimiser steps float32 masters, else small updates would be lost (Micikevicius et al. 2018, arXiv 1710.03740).
IEEE 754 bits of exponent + fraction: float32 8 + 23, float16 5 + 10, bfloat16 8 + 7.
"""

import math
import warnings
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

Precision = Literal["auto", "32-true", "bf16-mixed", "16-mixed", "bf16-true", "16-true"]
DTYPES = {"32": torch.float32, "bf16": torch.bfloat16, "16": torch.float16}


def has_fast_bf16() -> bool:
    """Whether this CPU multiplies bfloat16 in hardware (avx512_bf16 or AMX)."""
    return any(getattr(torch.cpu, name, bool)() for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"))


def resolve(precision: str, device: str = "cpu") -> str:
    """The precision itself, and for "auto" bfloat16 where the device is good at it: "bf16-mixed" or "32-true".

    float16 on a CPU works, slowly; it warns once.

    :raises ValueError: not a precision
    """
    if precision not in get_args(Precision):
        raise ValueError(f'precision must be one of {", ".join(get_args(Precision))}, got "{precision}"')
    if precision == "auto":
        fast = torch.cuda.is_bf16_supported() if device == "cuda" else has_fast_bf16()
        return "bf16-mixed" if fast else "32-true"
    if precision.startswith("16") and device == "cpu":
        _warn_of_slow_float16()
    return precision


@lru_cache
def _warn_of_slow_float16() -> None:
    warnings.warn("float16 on a CPU is 3 to 9 times slower than float32; bf16-mixed or 32-true are faster here", stacklevel=4)


def storage(precision: str) -> torch.dtype:
    """The dtype of the weights."""
    bits, kind = precision.split("-")
    return DTYPES[bits] if kind == "true" else torch.float32


def autocast(precision: str, device: str) -> torch.autocast:
    """The context in which the model is called."""
    bits, kind = precision.split("-")
    return torch.autocast(device, DTYPES[bits] if kind == "mixed" else None, enabled=kind == "mixed")


class LossScaler:
    """Dynamic scaling of a float16 loss, so that small gradients don't vanish (Micikevicius et al. 2018, sec. 3.2).

    A gradient that overflowed skips the update and halves the scale; `interval` clean updates in a row double it.

    :param enabled: else the scale is 1 for good
    """

    def __init__(self, enabled: bool, interval: int = 2000):
        self.enabled, self.interval = enabled, interval
        self.scale, self.clean, self.skipped = 2.0**16 if enabled else 1.0, 0, 0

    def update(self, finite: bool) -> None:
        """Take notice of an update that was done (`finite`) or had to be skipped.

        :raises FloatingPointError: the scale has fallen below 1, so that it isn't the scale's fault
        """
        if not self.enabled:
            return
        if finite:
            self.clean += 1
            if self.clean == self.interval:
                self.scale, self.clean = 2 * self.scale, 0
        else:
            self.scale, self.clean, self.skipped = self.scale / 2, 0, self.skipped + 1
            if self.scale < 1.0:
                raise FloatingPointError(f"{self.skipped} updates overflowed, the loss scale has fallen to {self.scale:g}")

    def state_dict(self) -> dict[str, Any]:
        return {"scale": self.scale, "clean": self.clean, "skipped": self.skipped}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.scale, self.clean, self.skipped = state["scale"], state["clean"], state["skipped"]


class Masters:
    """float32 copies of weights kept in 16 bits, for an optimiser to step; float32 weights are their own masters.

    :param parameters: of the model
    """

    def __init__(self, parameters: Iterable[nn.Parameter]):
        self.weights = list(parameters)
        self.masters = [p if p.dtype == torch.float32 else nn.Parameter(p.detach().float()) for p in self.weights]

    def of(self, weights: Sequence[nn.Parameter]) -> list[nn.Parameter]:
        """The masters of some of the weights."""
        found = {id(w): m for w, m in zip(self.weights, self.masters)}
        return [found[id(w)] for w in weights]

    def take_gradients(self, scale: float) -> list[Tensor]:
        """Move the weights' gradients to the masters, divided by `scale`; all of them, in place."""
        for weight, master in zip(self.weights, self.masters):
            if master is not weight:
                master.grad, weight.grad = None if weight.grad is None else weight.grad.float(), None
        gradients = [m.grad for m in self.masters if m.grad is not None]
        if scale != 1.0:
            for gradient in gradients:
                gradient.mul_(1.0 / scale)
        return gradients

    @torch.no_grad()
    def write_back(self) -> None:
        """Round the masters to the weights."""
        for weight, master in zip(self.weights, self.masters):
            if master is not weight:
                weight.copy_(master)

    def state_dict(self) -> list[Tensor]:
        """The masters that aren't weights themselves."""
        return [m.detach() for w, m in zip(self.weights, self.masters) if m is not w]

    @torch.no_grad()
    def load_state_dict(self, state: Sequence[Tensor]) -> None:
        for master, saved in zip((m for w, m in zip(self.weights, self.masters) if m is not w), state, strict=True):
            master.copy_(saved)


def clip(gradients: Sequence[Tensor], largest: float) -> float:
    """Scale gradients down in place so that their joint norm is at most `largest`; the norm before that."""
    norm = float(torch.nn.utils.get_total_norm(gradients))
    if math.isfinite(norm) and norm > largest:
        for gradient in gradients:
            gradient.mul_(largest / norm)
    return norm
