"""GPT-2 (Radford et al. 2019): a pre-norm Transformer with LayerNorm, learned positions, biases and a GELU.

    x_t <- x_t + p_t,   x <- x + Attention(norm(x)),   x <- x + W GELU(V norm(x) + b) + c

It is here for the weights that others trained; to train one's own, `Transformer` is the better model.

B batch   T new inputs   S inputs in the cache   D model width   H heads   C width of a head   F hidden width
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .attention import AttentionBackbone, Extend, attend


class GPT2Block(nn.Module):
    """Attention and GELU on the residual stream (B * T, D)."""

    def __init__(self, d_model: int, n_heads: int, d_hidden: int, norm_eps: float):
        super().__init__()
        self.n_heads = n_heads
        self.norm_attention = nn.LayerNorm(d_model, norm_eps)
        self.qkv = nn.Linear(d_model, 3 * d_model)
        self.out = nn.Linear(d_model, d_model)
        self.norm_hidden = nn.LayerNorm(d_model, norm_eps)
        self.up = nn.Linear(d_model, d_hidden)
        self.down = nn.Linear(d_hidden, d_model)

    def forward(self, x: Tensor, extend: Extend, places: None, mask: Tensor | None, shape: tuple[int, int]):
        """x (B * T, D), mask (T or B, 1, T, S + T) -> x, kv (B, S + T, 2, H, C)."""
        B, T = shape
        qkv = self.qkv(self.norm_attention(x)).view(B, T, 3, self.n_heads, x.shape[1] // self.n_heads)
        kv = extend(qkv[:, :, 1:])
        x = x + self.out(attend(qkv[:, :, :1], kv, mask))
        return x + self.down(F.gelu(self.up(self.norm_hidden(x)), approximate="tanh")), kv


class GPT2(AttentionBackbone):
    """A stack of blocks between learned positions and a last norm.

    :param d_model: width D
    :param n_layers: blocks
    :param n_heads: heads H, a divisor of D
    :param max_length: longest context, in inputs since the last reset: there are so many positions
    :param d_hidden: width F, by default 4 D
    :param norm_eps: norms divide by sqrt(variance + norm_eps)
    :param generator: of the initial weights; by default torch's global one
    """

    def __init__(
        self,
        d_model: int,
        n_layers: int,
        n_heads: int,
        max_length: int = 1024,
        d_hidden: int | None = None,
        norm_eps: float = 1e-5,
        generator: torch.Generator | None = None,
    ):
        if min(d_model, n_layers, n_heads, max_length) < 1 or d_model % n_heads:
            raise ValueError(
                f"n_heads must divide d_model, n_layers and max_length must be positive, "
                f"got d_model={d_model}, n_heads={n_heads}, n_layers={n_layers}, max_length={max_length}"
            )
        blocks = [GPT2Block(d_model, n_heads, d_hidden or 4 * d_model, norm_eps) for _ in range(n_layers)]
        super().__init__(d_model, blocks, n_heads, 1, d_model // n_heads, max_length)
        self.bias = nn.Parameter(torch.zeros(d_model))  # of the last norm
        self.positions = nn.Parameter(torch.empty(max_length, d_model))
        self.norm_eps = norm_eps
        self._initialise(generator)

    def _initialise(self, generator: torch.Generator | None) -> None:
        """N(0, 0.02^2), less by sqrt(2 layers) where a branch joins the residual stream; biases 0, positions N(0, 0.01^2)."""
        for name, weight in self.blocks.named_parameters():
            if name.endswith(("out.weight", "down.weight")):
                nn.init.normal_(weight, std=0.02 / (2 * len(self.blocks)) ** 0.5, generator=generator)
            elif weight.dim() == 2:
                nn.init.normal_(weight, std=0.02, generator=generator)
            elif name.endswith("bias"):
                nn.init.zeros_(weight)
        nn.init.normal_(self.positions, std=0.01, generator=generator)

    def begin(self, x: Tensor, position: slice | Tensor) -> tuple[Tensor, None]:
        return x + self.positions[position], None

    def finish(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, (self.d_model,), self.gain, self.bias, self.norm_eps)
