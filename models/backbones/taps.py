"""What the layers inside a backbone give, beside what it gives itself: EAGLE-3 drafts from it."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from .base import Backbone, State


def tapped(
    backbone: Backbone, x: Tensor, state: Any, taps: Sequence[int], parents: Any = None
) -> tuple[Tensor, State, list[Tensor]]:
    """`backbone(x, state, parents=parents)` and the outputs (B, T, D) of the layers `taps`, counted from 0.

    Fused steps, which call no layer by itself, are switched off meanwhile.

    :raises ValueError: no such layer, or a family that doesn't call its layers one by one
    """
    layers = getattr(backbone, "layers", getattr(backbone, "blocks", None))
    if not isinstance(layers, nn.ModuleList) or not all(0 <= tap < len(layers) for tap in taps):
        has = f"{len(layers)} layers" if isinstance(layers, nn.ModuleList) else "no list of layers"
        raise ValueError(f"taps must be layers of the backbone, got {tuple(taps)}; {type(backbone).__name__} has {has}")
    found: dict[int, Tensor] = {}

    def keep(tap: int) -> Any:
        return lambda module, inputs, outputs: found.update({tap: outputs[0].view(x.shape)})

    hooks = [layers[tap].register_forward_hook(keep(tap)) for tap in taps]
    switch: Any = backbone
    fused = getattr(backbone, "fused", False)
    try:
        if fused:
            switch.fused = False
        y, state = backbone(x, state, parents=parents)
    finally:
        if fused:
            switch.fused = True
        for hook in hooks:
            hook.remove()
    if len(found) < len(set(taps)):
        raise ValueError(f"the layers of {type(backbone).__name__} cannot be tapped: it doesn't call them as modules")
    return y, state, [found[tap] for tap in taps]
