"""Sequence backbones: one contract (base), one file a family."""

from .base import Backbone, ContextOverflow, State
from .transformer import KVState, Transformer

__all__ = ["Backbone", "ContextOverflow", "KVState", "State", "Transformer"]
