"""A pre-norm Transformer decoder whose key-value cache is a value.

    x <- x + Attention(norm(x)),   x <- x + SwiGLU(norm(x))

RoPE (Su et al. 2021, arXiv 2104.09864), RMSNorm (Zhang & Sennrich 2019, arXiv 1910.07467), SwiGLU (Shazeer 2020, arXiv
2002.05202), grouped queries (Ainslie et al. 2023, arXiv 2305.13245), a sliding window (Beltagy et al. 2020, arXiv 2004.05150), no
biases. The norms inside carry no gain of their own: the matrix that follows has that freedom.

B batch   T new inputs   S inputs in the cache   D model width   H heads   K heads of keys and values   G queries of each, H / K
C width of a head   F hidden width
"""

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .attention import AttentionBackbone, Extend, attend
from .attention import ancestors as ancestors
from .base import check_inputs
from .kv_cache import KVState, grow


class Block(nn.Module):
    """Attention and SwiGLU on the residual stream, which is (B * T, D) here: fewer views at T = 1."""

    def __init__(self, d_model: int, n_heads: int, n_kv_heads: int, d_hidden: int, norm_eps: float | None):
        super().__init__()
        self.n_kv_heads, self.groups, self.norm_eps = n_kv_heads, n_heads // n_kv_heads, norm_eps
        d_kv = d_model // self.groups
        self.qkv = nn.Parameter(torch.empty(d_model + 2 * d_kv, d_model))  # rows (G + 2, K, C): queries, keys, values
        self.out = nn.Parameter(torch.empty(d_model, d_model))  # columns (G, K, C)
        self.gate_up = nn.Parameter(torch.empty(2 * d_hidden, d_model))
        self.down = nn.Parameter(torch.empty(d_model, d_hidden))

    def forward(self, x: Tensor, extend: Extend, rope: Tensor, mask: Tensor | None, shape: tuple[int, int]):
        """x (B * T, D), rope (T or B, T, G + 2, 1, C / 2), mask (G * T or B, 1, G * T, S + T) -> x, kv (B, S + T, 2, K, C)."""
        B, T = shape
        G, K = self.groups, self.n_kv_heads
        C = x.shape[1] // (G * K)
        precise = torch.promote_types(x.dtype, torch.float32)  # for complex numbers
        qkv = F.linear(rms_norm(x, self.norm_eps), self.qkv).to(precise).view(B, T, G + 2, K, C // 2, 2)
        qkv = torch.view_as_real(torch.view_as_complex(qkv) * rope).view(B, T, G + 2, K, C)  # values are turned by 1
        qkv = qkv.to(x.dtype)
        kv = extend(qkv[:, :, G:])
        x = x + F.linear(attend(qkv[:, :, :G], kv, mask), self.out)
        gate, up = F.linear(rms_norm(x, self.norm_eps), self.gate_up).chunk(2, dim=1)
        return x + F.linear(F.silu(gate) * up, self.down), kv


class Transformer(AttentionBackbone):
    """A stack of blocks and a last norm.

    :param d_model: width D
    :param n_layers: blocks
    :param n_heads: heads H; D / H must be even (RoPE turns pairs); by default as many of a width of 32 or more as D allows
    :param max_length: longest context, in inputs since the last reset; with a window it bounds nothing
    :param d_hidden: width of the SwiGLU, by default 8/3 D rounded up to a multiple of 32
    :param generator: of the initial weights; by default torch's global one
    :param n_kv_heads: heads of keys and values K, which H / K queries share; by default H
    :param window: inputs that an input sees, itself included: the cache keeps no more; None sees all
    :param rope_base: the angles of RoPE are position * rope_base^(-2i / C)
    :param norm_eps: norms divide by sqrt(mean(x^2) + norm_eps), as Llama's; None: by sqrt(mean(x^2)) + 1e-6

    Set `fused` to True for decoding steps (T = B = 1, float32, CPU, no gradients) by a compiled kernel, 2 to 3 times faster. They
    round differently from calls with T > 1, so that a text verified in blocks may come to differ from one decoded step by step
    where two tokens are equally likely to the last digits.
    """

    def __init__(
        self,
        d_model: int,
        n_layers: int,
        n_heads: int | None = None,
        max_length: int = 4096,
        d_hidden: int | None = None,
        generator: torch.Generator | None = None,
        *,
        n_kv_heads: int | None = None,
        window: int | None = None,
        rope_base: float = 10000.0,
        norm_eps: float | None = None,
    ):
        n_heads = default_heads(d_model) if n_heads is None else n_heads
        n_kv_heads = n_heads if n_kv_heads is None else n_kv_heads
        if min(d_model, n_layers, n_heads, max_length) < 1 or d_model % (2 * n_heads):
            raise ValueError(
                f"d_model / n_heads must be a positive even number, n_layers and max_length positive, "
                f"got d_model={d_model}, n_heads={n_heads}, n_layers={n_layers}, max_length={max_length}"
            )
        if n_kv_heads < 1 or n_heads % n_kv_heads:
            raise ValueError(f"n_kv_heads must divide n_heads={n_heads}, got {n_kv_heads}")
        if window is not None and window < 1:
            raise ValueError(f"window must be positive, got {window}")
        d_hidden = -(-8 * d_model // 3 // 32) * 32 if d_hidden is None else d_hidden
        blocks = [Block(d_model, n_heads, n_kv_heads, d_hidden, norm_eps) for _ in range(n_layers)]
        super().__init__(d_model, blocks, n_kv_heads, n_heads // n_kv_heads, d_model // n_heads, max_length, window)
        self.n_heads, self.d_hidden, self.rope_base, self.norm_eps = n_heads, d_hidden, rope_base, norm_eps
        self.fused = False
        self._found: list[int] = []
        self._table = np.empty((0, 4), np.int64)
        self._rope: Tensor | None = None
        self._scratch = 2 * d_model + max(2 * (d_model + n_kv_heads * self.d_head), 3 * d_hidden)
        self._initialise(generator)

    def _initialise(self, generator: torch.Generator | None) -> None:
        """N(0, 1 / D), and less by sqrt(2 layers) where a branch joins the residual stream (as GPT-2)."""
        for name, weight in self.blocks.named_parameters():
            joins = name.endswith(("out", "down"))
            nn.init.normal_(weight, std=self.d_model**-0.5 / (2 * len(self.blocks)) ** (0.5 * joins), generator=generator)

    def forward(
        self, x: Tensor, state: KVState | None = None, *, reset: Tensor | None = None, parents: Any = None
    ) -> tuple[Tensor, KVState]:
        if self.fused and reset is None and parents is None and self._can_step(x, state):
            return self._step(x, state)
        return super().forward(x, state, reset=reset, parents=parents)

    def _can_step(self, x: Tensor, state: KVState | None) -> bool:
        plain = x.shape == (1, 1, self.d_model) and x.dtype == self.gain.dtype == torch.float32 and x.device.type == "cpu"
        quiet = not (torch.is_grad_enabled() or torch.compiler.is_compiling())
        return plain and quiet and (state is None or (isinstance(getattr(state, "start", None), int) and state.batch_size == 1))

    def _step(self, x: Tensor, state: KVState | None) -> tuple[Tensor, KVState]:
        """`forward` of one input of one sequence by the fused kernel."""
        from tdraft.kernels.transformer_step import transformer_step

        state = self.initial_state(1) if state is None else state
        self._check_state(state)
        check_inputs(x, self.d_model, state, None)
        past, start = state.in_sight(self.window)
        S = past[0].shape[1]
        assert isinstance(start, int)
        self._check_length(S - start, 1)
        claim, kv = grow(past, state.claim, 1)
        turn = self._rotation(slice(S - start, S - start + 1))[0, 0, 0].numpy().view(np.float32)
        floor, eps = (1e-6, 0.0) if self.norm_eps is None else (0.0, self.norm_eps)
        y, scratch = x.detach().numpy().flatten(), np.empty(S + 1 + self._scratch, np.float32)
        transformer_step(
            *(self._places(), claim.room.array, claim.end - S - 1, claim.end, turn),
            *(self.gain.detach().numpy(), np.float32(floor), np.float32(eps), self.d_hidden, y, scratch),
        )
        return torch.from_numpy(y).view(1, 1, self.d_model), KVState(state.family, kv, 1, start, None, claim)

    def _places(self) -> np.ndarray:
        """(L, 4) where the weights stand in memory, looked up at each step: they may have been moved or replaced."""
        weights = [weight for block in self.blocks for weight in block._parameters.values() if weight is not None]
        found = [weight.data_ptr() for weight in weights]
        if found != self._found:
            if any(weight.dtype != torch.float32 or not weight.is_contiguous() for weight in weights):
                raise ValueError("the fused step needs contiguous float32 weights; set fused to False")
            self._found, self._table = found, np.array(found).reshape(-1, 4)
        return self._table

    def begin(self, x: Tensor, position: slice | Tensor) -> tuple[Tensor, Tensor]:
        return x, self._rotation(position)

    def finish(self, x: Tensor) -> Tensor:
        return rms_norm(x, self.norm_eps) * self.gain

    def _rotation(self, position: slice | Tensor) -> Tensor:
        """(T or B, T, G + 2, 1, C / 2) complex: exp(i * position * theta) for queries and keys, 1 for values."""
        dtype = torch.promote_types(self.gain.dtype, torch.complex64)
        if self._rope is None or self._rope.dtype != dtype or self._rope.device != self.gain.device:
            with torch.inference_mode(False):  # else the table could never serve in training
                self._rope = self._turns(torch.arange(self.max_length)).to(device=self.gain.device, dtype=dtype)
        if self.window is not None:  # the only one that may go on past the table
            last = position.stop - 1 if isinstance(position, slice) else int(position.max())
            if last >= self.max_length:
                position = torch.arange(position.start, position.stop) if isinstance(position, slice) else position.cpu()
                return self._turns(position).to(device=self.gain.device, dtype=dtype)
        return self._rope[position]

    def _turns(self, position: Tensor) -> Tensor:
        half = self.d_head // 2
        theta = self.rope_base ** (-torch.arange(half, dtype=torch.float64) / half)
        angle = position.to(torch.float64)[..., None] * theta
        turn = torch.polar(torch.ones_like(angle), angle)[..., None, None, :]
        return torch.cat((*(turn,) * (self.groups + 1), torch.ones_like(turn)), dim=-3)


def rms_norm(x: Tensor, eps: float | None = None) -> Tensor:
    """x / (rms(x) + 1e-6) along the last axis, or x / sqrt(rms(x)^2 + eps); a third of the time of F.rms_norm at T = 1."""
    scale = torch.linalg.vector_norm(x, dim=-1, keepdim=True) * x.shape[-1] ** -0.5
    if eps is None:
        return x / (scale + 1e-6)
    return x * (scale.square() + eps).rsqrt()


def default_heads(d_model: int) -> int:
    """As many heads as have a width that is even and at least 32, or one."""
    return next((h for h in range(max(d_model, 0) // 32, 1, -1) if d_model % (2 * h) == 0), 1)
