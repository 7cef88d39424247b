"""Sequence backbones: one contract (base), what recurrent families share (recurrent), one file a family."""

import difflib
from importlib import import_module
from typing import TYPE_CHECKING, Any

from .base import Backbone, ContextOverflow, State
from .transformer import KVState, Transformer

if TYPE_CHECKING:
    from .gru import GRU as GRU
    from .lru import LRU as LRU
    from .mamba import Mamba as Mamba
    from .mamba2 import Mamba2 as Mamba2
    from .retnet import RetNet as RetNet
    from .rwkv4 import RWKV4 as RWKV4
    from .rwkv7 import RWKV7 as RWKV7
    from .s4 import S4 as S4
    from .s4d import S4D as S4D

BACKBONES = {
    "gru": "GRU",
    "lru": "LRU",
    "mamba": "Mamba",
    "mamba-2": "Mamba2",
    "rwkv-4": "RWKV4",
    "rwkv-7": "RWKV7",
    "s4": "S4",
    "s4d": "S4D",
    "retnet": "RetNet",
    "transformer": "Transformer",
}
"""The families that `make_backbone` knows, and their classes; the module of a class has the family's name."""

__all__ = ["BACKBONES", "Backbone", "ContextOverflow", "KVState", "State", "Transformer", "make_backbone"]


def __getattr__(name: str):
    family = next((family for family, cls in BACKBONES.items() if cls == name), None)
    if family is None:
        raise AttributeError(f"module {__name__} has no attribute {name}")
    return getattr(import_module(f".{family.replace('-', '')}", __name__), name)


def make_backbone(family: str, **sizes: Any) -> Backbone:
    """A backbone by the name of its family.

        make_backbone("gru", d_model=64, n_layers=2)

    :param family: a key of `BACKBONES`
    :param sizes: what the family's class takes: `d_model`, `n_layers` and the family's own
    :raises ValueError: an unknown family, with the nearest names, or sizes that the class does not take
    """
    if family not in BACKBONES:
        near = difflib.get_close_matches(family, BACKBONES, 3, 0.4)
        hint = f"; did you mean {' or '.join(near)}?" if near else ""
        raise ValueError(f'no backbone "{family}"{hint} (there are {", ".join(BACKBONES)})')
    cls = __getattr__(BACKBONES[family])
    try:
        return cls(**sizes)
    except TypeError as error:
        raise ValueError(f"{family}: {str(error).removeprefix(cls.__name__ + '.__init__() ')}") from error
