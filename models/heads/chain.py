"""Heads that read each other and the tokens drafted so far: modules in a chain, which MTP has one a depth and EAGLE one for all.

    h^k_i = block_k([norm(h^{k-1}_i) ; norm(Emb(t_{i+k}))] W_k)        t_{i+k+1} ~ softmax(W_out h^k_i)

h^0 is the trunk's. Past the last module a draft goes on with that module fed with its own outputs, as the next inputs of its
sequence: where the others have read the text's h^{k-1}_0..h^{k-1}_i, it reads h^k_i, h^{k+1}_i, ... behind them.

B batch   T tokens   D width of the trunk   F width of what is read of it
"""

import numpy as np
import torch
from torch import Tensor, nn

from ..backbones import State
from ..backbones.transformer import rms_norm
from ..language_model import LanguageModel
from .base import Heads, one_block


class ChainModule(nn.Module):
    """Fuses a hidden state with the embedding of the token that came of it, and runs a block of the trunk's family."""

    def __init__(self, trunk: LanguageModel):
        super().__init__()
        self.fuse = nn.Linear(2 * trunk.config.d_model, trunk.config.d_model, bias=False)
        self.block = one_block(trunk)

    def enter(self, hidden: Tensor, embedded: Tensor) -> Tensor:
        """The block's inputs, (B, T, D)."""
        return self.fuse(torch.cat((rms_norm(hidden), rms_norm(embedded)), dim=-1))

    def forward(self, hidden: Tensor, embedded: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """Hidden states of the next depth for T inputs (B, T, D) each, and the block's state after them."""
        return self.block(self.enter(hidden, embedded), state)


class ChainHeads(Heads):
    """Modules in a chain.

    :param depth: K, to which they are unrolled in training; live drafts may be longer
    :param n_modules: how many there are, at most K
    """

    def __init__(self, trunk: LanguageModel, depth: int, n_modules: int):
        super().__init__(trunk, depth)
        self.chain = nn.ModuleList(ChainModule(trunk) for _ in range(n_modules))

    def features(self, hidden: Tensor) -> Tensor:
        """h^0 (B, T, D) of what is read of the trunk (B, T, F)."""
        return hidden

    def forward(self, hidden: Tensor, embedded: Tensor) -> list[Tensor]:
        T, y, outputs = hidden.shape[1], self.features(hidden), []
        nodes, parents = embedded[:, :0], np.arange(0)
        for k in range(1, self.depth + 1):
            module: ChainModule = self.chain[min(k, len(self.chain)) - 1]  # pyright: ignore[reportAssignmentType]
            x = module.enter(y[:, : T - k], embedded[:, k:])
            if k <= len(self.chain):
                nodes, parents = x, np.arange(-1, T - k - 1)
            else:  # a tree: row i follows row i of the depth before
                parents = np.concatenate((parents, len(parents) - (T - k + 1) + np.arange(T - k)))
                nodes = torch.cat((nodes, x), dim=1)
            y = module.block(nodes, parents=parents)[0][:, k - T :]
            outputs.append(y)
        return outputs
