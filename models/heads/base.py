"""What all heads that draft have in common: they read a trunk's hidden states, and its output matrix reads theirs.

After a text t_0..t_n the trunk has read t_0..t_{n-1}, and its hidden h_{n-1} has chosen t_n. A head of depth k proposes t_{n+k}
from h_0..h_{n-1} and the tokens up to t_{n+k-1}. So in a text that is there as a whole, row i of depth k predicts t_{i+k+1}, as
h_i itself (depth 0) predicts t_{i+1}.

B batch   T tokens   D width of the trunk   F = D (1 + taps)   K depths
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..backbones import Backbone
from ..backbones.taps import tapped
from ..checkpoints import fingerprint
from ..language_model import LanguageModel


class Heads(nn.Module, ABC):
    """Heads for one trunk, which is frozen unless it is trained along.

    :param trunk: whose sizes the heads take; it is not kept
    :param depth: K, tokens that are drafted after the one that the trunk has chosen
    """

    taps: tuple[int, ...] = ()
    """Layers of the trunk whose outputs are read beside its last hidden."""
    decay = 1.0
    """Weight of a depth in the loss, as a part of that before."""
    borrowed: tuple[str, ...] = ()
    """Prefixes of the parameters that are the trunk's."""

    def __init__(self, trunk: LanguageModel, depth: int):
        super().__init__()
        if depth < 1:
            raise ValueError(f"depth must be at least 1, got {depth}")
        self.depth, self.trunk_fingerprint = depth, trunk.fingerprint

    @abstractmethod
    def forward(self, hidden: Tensor, embedded: Tensor) -> list[Tensor]:
        """For each depth k what the trunk's output matrix makes logits of, (B, T - k, D); row i predicts t_{i+k+1}.

        :param hidden: (B, T, F) h_0..h_{T-1}, see `read_trunk`
        :param embedded: (B, T, D) t_0..t_{T-1} as the trunk embeds them
        """

    def loss(self, hidden: Tensor, embedded: Tensor, labels: Tensor, logits: Callable[[Tensor], Tensor]) -> Tensor:
        """Mean over the depths of decay^(k-1) times the cross-entropy, nats.

        :param labels: (B, T) what follows t_0..t_{T-1}
        :param logits: (..., D) -> (..., V), the trunk's output matrix
        """
        T, outputs = labels.shape[1], self(hidden, embedded)
        losses = [F.cross_entropy(logits(y).flatten(0, 1).float(), labels[:, T - y.shape[1] :].flatten()) for y in outputs]
        return torch.stack([self.decay**k * loss for k, loss in enumerate(losses)]).mean()

    def own(self) -> dict[str, Tensor]:
        """The tensors that are the heads', by name, without those of the trunk."""
        return {name: tensor for name, tensor in self.state_dict().items() if not name.startswith(self.borrowed)}

    @property
    def n_parameters(self) -> int:
        """Number of weights, without the trunk's."""
        return sum(tensor.numel() for tensor in self.own().values())

    @property
    def fingerprint(self) -> str:
        """16 hex digits of the sha256 of kind, weights and trunk."""
        return fingerprint(f"{type(self).__name__} {self.depth} {self.trunk_fingerprint}", self.own())


def read_trunk(trunk: LanguageModel, tokens: Tensor, taps: tuple[int, ...] = ()) -> Tensor:
    """What heads read of a trunk: its hidden states, and beside them the outputs of its layers `taps`; (B, T) -> (B, T, F)."""
    if not taps:
        return trunk.hidden(tokens)[0]
    y, _, layers = tapped(trunk.backbone, trunk.embed(tokens), None, taps)
    return torch.cat((y, *layers), dim=-1)


def one_block(trunk: LanguageModel) -> Backbone:
    """A block of the trunk's own family and a norm. A Transformer's SwiGLU is as wide as the model: heads are to be small."""
    config = trunk.config
    others = {"d_hidden": config.d_model} if config.backbone == "transformer" else {}
    return replace(config, n_layers=1).make(**others)
