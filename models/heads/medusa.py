"""Medusa heads (Cai et al. 2024, arXiv 2401.10774).

    h^k = h + SiLU(W_k h + b_k),   t_{i+k+1} ~ softmax(W_out h^k_i),   k = 1..K        loss: sum over k of the cross-entropies

W_k begins at 0, so that every head begins as the trunk's own. The paper gives each head an output matrix of its own, a copy of
the trunk's at first; here they share the trunk's, which keeps a head at D^2 + D weights. Medusa-1 freezes the trunk, Medusa-2
trains it along.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from ..language_model import LanguageModel
from .parallel import ParallelHeads


class Medusa(ParallelHeads):
    """K residual layers that read the same hidden states."""

    def __init__(self, trunk: LanguageModel, depth: int = 4):
        super().__init__(trunk, depth)

    def make_head(self, trunk: LanguageModel) -> nn.Module:
        return ResidualHead(trunk.config.d_model)


class ResidualHead(nn.Module):
    """x + SiLU(W x + b), with no memory."""

    def __init__(self, width: int):
        super().__init__()
        self.linear = nn.Linear(width, width)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, x: Tensor, state: None = None) -> tuple[Tensor, None]:
        return x + F.silu(self.linear(x)), None
