"""Parallel heads (Gloeckle et al. 2024, "Better & faster large language models via multi-token prediction", arXiv 2404.19737).

    h^k = block_k(h),   t_{i+k+1} ~ softmax(W_out h^k_i),   k = 1..K        loss: mean over k of the cross-entropies

Independent heads, each a block on the trunk's hidden states: none sees what another has drafted, so that all tokens of a draft
come from one call. The paper trains the trunk along and counts the trunk's own last layer as the first head; here the trunk
has it, and may be frozen.
"""

from typing import Any

from torch import Tensor, nn

from ..language_model import LanguageModel
from .base import Heads, one_block


class ParallelHeads(Heads):
    """K heads that read the same hidden states."""

    def __init__(self, trunk: LanguageModel, depth: int = 3):
        super().__init__(trunk, depth)
        self.heads = nn.ModuleList(self.make_head(trunk) for _ in range(depth))

    def make_head(self, trunk: LanguageModel) -> nn.Module:
        """A map (hidden (B, T, D), state) -> ((B, T, D), state)."""
        return one_block(trunk)

    def forward(self, hidden: Tensor, embedded: Tensor) -> list[Tensor]:
        T = hidden.shape[1]
        return [y[:, : T - k] for k, y in enumerate(self.read(hidden)[0], 1)]

    def read(self, hidden: Tensor, states: list[Any] | None = None) -> tuple[list[Tensor], list[Any]]:
        """The heads' outputs for more hidden states (B, T, D) of a text, (B, T, D) each, and their states after them."""
        made = [head(hidden, state) for head, state in zip(self.heads, states or [None] * self.depth)]
        return [y for y, _ in made], [state for _, state in made]
