"""EAGLE: one module that goes on with its own outputs, to any depth.

EAGLE-1 (Li et al. 2024, arXiv 2401.15077) regresses the trunk's next feature, its last hidden:

    f_{i+1} ~ h^1_i = block(W [f_i ; Emb(t_{i+1})])
    loss: SmoothL1(h^1_i, f_{i+1}) + 0.1 CE(softmax(W_out f_{i+1}), W_out h^1_i)

with noise U(-0.1, 0.1) on the features that are read, so that it stands its own errors. EAGLE-3 (Li et al. 2025, arXiv
2503.01840) drops the features' loss, reads layers from the bottom, the middle and the top, and is unrolled in training on its own
outputs:

    h^0_i = W_f [layer_a ; layer_b ; h]_i      loss: sum over k of 0.8^(k-1) CE(t_{i+k+1}, W_out h^k_i)
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..language_model import LanguageModel
from .chain import ChainHeads

NOISE = 0.1  # largest deviation of a feature
TOKEN_WEIGHT = 0.1  # of the cross-entropy beside the features' loss


class Eagle(ChainHeads):
    """One module, trained on the trunk's own features (EAGLE-1)."""

    def __init__(self, trunk: LanguageModel, depth: int = 4):
        super().__init__(trunk, depth, 1)

    def loss(self, hidden: Tensor, embedded: Tensor, labels: Tensor, logits: Callable[[Tensor], Tensor]) -> Tensor:
        """The first step's loss; the labels are the trunk's distributions, whatever is given."""
        noisy = hidden + torch.empty_like(hidden).uniform_(-NOISE, NOISE)
        y, truth = self.chain[0](noisy[:, :-1], embedded[:, 1:])[0], hidden[:, 1:].detach()
        says, should = logits(y).flatten(0, 1).float(), logits(truth).flatten(0, 1).float().softmax(-1)
        return F.smooth_l1_loss(y.float(), truth.float()) + TOKEN_WEIGHT * F.cross_entropy(says, should)


class Eagle3(ChainHeads):
    """One module over three layers of the trunk, trained on its own outputs (EAGLE-3)."""

    decay = 0.8

    def __init__(self, trunk: LanguageModel, depth: int = 4):
        super().__init__(trunk, depth, 1)
        n = trunk.config.n_layers
        self.taps = (min(1, n - 1), n // 2)
        self.mix = nn.Linear(3 * trunk.config.d_model, trunk.config.d_model, bias=False)

    def features(self, hidden: Tensor) -> Tensor:
        return self.mix(hidden)
