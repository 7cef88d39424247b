"""Sequential multi-token prediction (DeepSeek-V3, arXiv 2412.19437, section 2.2).

    h'^k_i = M_k [RMSNorm(h^{k-1}_i) ; RMSNorm(Emb(t_{i+k}))]      h^k = block_k(h'^k)      t_{i+k+1} ~ softmax(W_out h^k_i)
    loss: (lambda / K) sum over k of the cross-entropies

Each depth has a module, embedding and output matrix are the trunk's. The norms have no gains, the matrix that follows has that
freedom. With a frozen trunk lambda is without effect; in joint training it is `HeadTraining.joint_weight`.
"""

from ..language_model import LanguageModel
from .chain import ChainHeads


class MTP(ChainHeads):
    """K modules, one a depth."""

    def __init__(self, trunk: LanguageModel, depth: int = 3):
        super().__init__(trunk, depth, depth)
