"""Early exit (LayerSkip, Elhoushi et al. 2024, arXiv 2404.16710): the trunk's first E layers draft for the whole.

    x = norm(layer_E(...layer_1(Emb(t)))),   t_{i+1} ~ softmax(W_out A x_i)        loss: cross-entropy

LayerSkip trains the trunk so that its one output matrix reads every layer. Behind a frozen trunk the layer speaks another
language, which a norm's gain cannot translate: A (D, D) does, the "tuned lens" of Belrose et al. 2023 (arXiv 2303.08112). It
begins as the identity.
"""

from dataclasses import replace

from torch import Tensor, nn

from ..language_model import LanguageModel
from .base import Heads


class ExitModel(LanguageModel):
    """A language model of the first layers of another, whose weights it shares; its last norm and A are its own."""

    def __init__(self, trunk: LanguageModel, n_layers: int):
        super().__init__(replace(trunk.config, n_layers=n_layers))
        self.tokenizer, self.embedding = trunk.tokenizer, trunk.embedding
        for name in ("layers", "blocks"):
            if hasattr(self.backbone, name):
                setattr(self.backbone, name, getattr(trunk.backbone, name)[:n_layers])
        self.exit = nn.Linear(trunk.config.d_model, trunk.config.d_model, bias=False)
        nn.init.eye_(self.exit.weight)

    def logits(self, hidden: Tensor) -> Tensor:
        return super().logits(self.exit(hidden))


class EarlyExit(Heads):
    """A norm and a linear map after layer E. It is of depth 0, proposes the very token that the trunk is to choose, and `model`
    goes on from there as any small language model does.

    :param depth: E, layers of the trunk that are run
    """

    borrowed = ("model.embedding", "model.backbone.layers.", "model.backbone.blocks.")

    def __init__(self, trunk: LanguageModel, depth: int = 2):
        super().__init__(trunk, depth)
        if depth >= trunk.config.n_layers:
            raise ValueError(f"depth, the layer to leave after, must be below the trunk's {trunk.config.n_layers}, got {depth}")
        self.model = ExitModel(trunk, depth)

    def forward(self, hidden: Tensor, embedded: Tensor) -> list[Tensor]:
        return [self.model.exit(self.model.backbone(embedded)[0])]
