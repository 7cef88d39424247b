"""RWKV-7 (Peng et al. 2025, arXiv 2503.14456): a matrix for each head, under a delta rule with decays and rates of each channel.

With x' the input before x and mix(mu) = x + mu o (x' - x), on ln1(x), lora(u) = f(u A) B of low rank:

    r = W_r mix(x_r)   k = W_k mix(x_k)   v = W_v mix(x_v)   g = sigmoid(mix(x_g) g1) g2
    w = exp(-sigmoid(w0 + tanh(mix(x_w) w1) w2) / sqrt(e))          a = sigmoid(a0 + mix(x_a) a1 a2)
    v <- v + (v_first - v) o sigmoid(v0 + mix(x_v) v1 v2)           v_first is the first layer's v of the same input
    kap = k o k_k / |k o k_k| in each head                          k <- k o (1 + (a - 1) o k_a)
    x <- x + W_o (g o (GroupNorm(WKV(r, w, k, v, kap, a)) + (r . (r_k o k)) v))

where WKV is that of kernels/wkv7.py, and on ln2(x): x <- x + W_v max(W_k mix(x_k), 0)^2. A norm ln0 stands before the first
layer. Names and initial weights are those of the authors' repository (RWKV-v7, x070).

B batch   T new inputs   D model width   H heads   N width of a head   F hidden width
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...kernels.wkv7 import wkv7
from .recurrent import Flow, Layer, Memory, Part, RecurrentBackbone, keeps_states
from .rwkv4 import bare_linear, shifted, zero_linear


class TimeMixing(nn.Module):
    """x (B, T, D) to what it adds to the residual stream; it remembers its last input and the heads' matrices (B, H, N, N)."""

    def __init__(
        self, d_model: int, d_head: int, ranks: dict[str, int], layer: int, n_layers: int, generator: torch.Generator | None
    ):
        super().__init__()
        depth, height = layer / max(n_layers - 1, 1), 1 - layer / n_layers
        channel = torch.arange(d_model)
        linear = channel / max(d_model - 1, 1) - 0.5
        zigzag = (channel % d_head - (d_head - 1) / 2) / max((d_head - 1) / 2, 0.5)
        zigzag = zigzag * zigzag.abs()

        def shift(power: float) -> nn.Parameter:
            return nn.Parameter(1 - (channel / d_model) ** (power * height))

        def low_rank(rank: int) -> tuple[nn.Parameter, nn.Parameter]:
            up = nn.init.orthogonal_(torch.empty(rank, d_model), 0.1 * max(rank / d_model, 1) ** 0.5, generator)
            return nn.Parameter(torch.zeros(d_model, rank)), nn.Parameter(up)

        self.x_r, self.x_w, self.x_k = shift(0.2), shift(0.9), shift(0.7)
        self.x_v, self.x_a, self.x_g = shift(0.7), shift(0.9), shift(0.2)
        self.w0 = nn.Parameter(-5.5 + 6 * (linear + 0.5) ** (1 + depth**0.3) + 2.5 * zigzag)
        self.a0 = nn.Parameter(-0.19 + 0.3 * zigzag + 0.4 * linear)
        self.v0 = None if layer == 0 else nn.Parameter(0.73 - 0.4 * linear)
        self.w1, self.w2 = low_rank(ranks["w"])
        self.a1, self.a2 = low_rank(ranks["a"])
        self.v1, self.v2 = (None, None) if layer == 0 else low_rank(ranks["v"])
        self.g1, self.g2 = low_rank(ranks["g"])
        self.k_k = nn.Parameter(0.71 - 0.1 * linear)
        self.k_a = nn.Parameter(torch.full((d_model,), 1.02))
        self.r_k = nn.Parameter(torch.full((d_model // d_head, d_head), -0.04))
        self.receptance = uniform_linear(d_model, d_model, 0.5, generator)
        self.key = uniform_linear(d_model, d_model, 0.05, generator)
        self.value = uniform_linear(d_model, d_model, 0.5, generator)
        self.output = zero_linear(d_model, d_model)
        self.ln_x = nn.GroupNorm(d_model // d_head, d_model, eps=64e-5)

    def forward(
        self, x: Tensor, before: Tensor, state: Tensor, flow: Flow, v_first: Tensor | None
    ) -> tuple[Tensor, Tensor, Part]:
        """(what is added, v_first for the layers above, the part of the matrices)."""
        (B, T, D), heads = x.shape, self.r_k.shape
        past = shifted(x, before, flow)
        r = F.linear(torch.lerp(x, past, self.x_r), self.receptance.weight)
        k = F.linear(torch.lerp(x, past, self.x_k), self.key.weight)
        x_v = torch.lerp(x, past, self.x_v)
        v = F.linear(x_v, self.value.weight)
        if v_first is None or self.v0 is None or self.v1 is None or self.v2 is None:
            v_first = v
        else:
            v = torch.lerp(v, v_first, torch.sigmoid(self.v0 + x_v @ self.v1 @ self.v2).to(v.dtype))
        g = torch.sigmoid(torch.lerp(x, past, self.x_g) @ self.g1) @ self.g2
        w = self.w0 + torch.tanh(torch.lerp(x, past, self.x_w) @ self.w1) @ self.w2
        w = torch.exp(torch.sigmoid(w) * -math.exp(-0.5))
        a = torch.sigmoid(self.a0 + torch.lerp(x, past, self.x_a) @ self.a1 @ self.a2)
        kap = F.normalize((k * self.k_k).view(B, T, *heads), dim=-1)
        k = torch.addcmul(k, k, (a - 1) * self.k_a)
        r, w, k, v, kap, a = (z.to(w.dtype).view(B, T, *heads) for z in (r, w, k, v, kap, a))  # autocast: in float32
        every, inputs = keeps_states(flow), (r, w, k, v, kap, a)
        y, after = wkv7(r, w, k, v, kap, a, state, reset=flow.reset, parents=flow.parents, every=every)

        def run(t: int) -> Tensor:
            reset = None if flow.reset is None else flow.reset[:, :t]
            return wkv7(*(z[:, :t] for z in inputs), state, reset=reset)[1]  # pyright: ignore[reportArgumentType, reportCallIssue]

        part = Part(state, states=after) if every else Part(state, last=after, run=run)
        bonus = (r * k * self.r_k).sum(-1, keepdim=True) * v
        y = self.ln_x(y.reshape(B * T, D)).view(B, T, D) + bonus.view(B, T, D)
        return F.linear(y * g, self.output.weight), v_first, part


class ChannelMixing(nn.Module):
    """x (B, T, D) to what it adds to the residual stream; it remembers its last input."""

    def __init__(self, d_model: int, d_hidden: int, height: float, generator: torch.Generator | None):
        super().__init__()
        self.x_k = nn.Parameter(1 - (torch.arange(d_model) / d_model) ** height**4)
        self.key = uniform_linear(d_model, d_hidden, 0.5, generator)
        self.value = zero_linear(d_hidden, d_model)

    def forward(self, x: Tensor, before: Tensor, flow: Flow) -> Tensor:
        k = F.linear(torch.lerp(x, shifted(x, before, flow), self.x_k), self.key.weight)
        return F.linear(torch.relu(k).square(), self.value.weight)


class RWKV7Layer(Layer):
    """Time mixing and channel mixing; it remembers the last input of each (B, 1, D) and the heads' matrices (B, H, N, N)."""

    def __init__(
        self,
        d_model: int,
        d_head: int,
        d_hidden: int,
        ranks: dict[str, int],
        layer: int,
        n_layers: int,
        generator: torch.Generator | None = None,
    ):
        super().__init__()
        self.ln0 = nn.LayerNorm(d_model) if layer == 0 else None
        self.ln1, self.ln2 = nn.LayerNorm(d_model), nn.LayerNorm(d_model)
        self.att = TimeMixing(d_model, d_head, ranks, layer, n_layers, generator)
        self.ffn = ChannelMixing(d_model, d_hidden, 1 - layer / n_layers, generator)

    def initial(self, batch_size: int) -> Memory:
        weight, (H, N) = self.ln1.weight.detach(), self.att.r_k.shape
        nothing = weight.new_zeros(batch_size, 1, len(weight))
        exact = torch.promote_types(weight.dtype, torch.float32)
        return nothing, nothing, weight.new_zeros(batch_size, H, N, N, dtype=exact)

    def forward(self, x: Tensor, memory: Memory, flow: Flow) -> tuple[Tensor, tuple[Part, ...]]:
        x, _, parts = self.pass_on(x, memory, flow, None)
        return x, parts

    def pass_on(self, x: Tensor, memory: Memory, flow: Flow, v_first: Tensor | None) -> tuple[Tensor, Tensor, tuple[Part, ...]]:
        """As `forward`, with the first layer's values (B, T, D) from below and to above."""
        before_att, before_ffn, state = memory
        x = x if self.ln0 is None else self.ln0(x)
        u = self.ln1(x)
        added, values, wkv_part = self.att(u, before_att, state, flow, v_first)
        x = x + added
        z = self.ln2(x)
        x = x + self.ffn(z, before_ffn, flow)
        return x, values, (Part(before_att, states=u.unsqueeze(2)), Part(before_ffn, states=z.unsqueeze(2)), wkv_part)


class RWKV7(RecurrentBackbone):
    """A stack of RWKV-7 layers between the norms ln0 and ln_out. Layers begin as the identity: their output weights are 0.

    :param d_model: width D
    :param n_layers: layers
    :param d_head: width N of a head, which must divide D; 64, or D where that is less, by default
    :param d_hidden: width F of the channel mixing, 4 D by default
    :param d_decay: rank of the decay's low-rank map (w1, w2); by default 2.5 sqrt(D) to a multiple of 32, at least 32
    :param d_rate: of the rate's (a1, a2), by default as `d_decay`
    :param d_value: of the value residual's (v1, v2), by default 1.7 sqrt(D) in the same way
    :param d_gate: of the gate's (g1, g2), by default 5 sqrt(D) in the same way
    :param generator: of the initial weights; by default torch's global one
    """

    def __init__(
        self,
        d_model: int,
        n_layers: int,
        d_head: int | None = None,
        d_hidden: int | None = None,
        d_decay: int | None = None,
        d_rate: int | None = None,
        d_value: int | None = None,
        d_gate: int | None = None,
        generator: torch.Generator | None = None,
    ):
        d_head = min(64, d_model) if d_head is None else d_head
        d_hidden = 4 * d_model if d_hidden is None else d_hidden
        chosen = {"w": (d_decay, 2.5), "a": (d_rate, 2.5), "v": (d_value, 1.7), "g": (d_gate, 5.0)}
        ranks = {
            name: max(32, round(factor * max(d_model, 0) ** 0.5 / 32) * 32) if rank is None else rank
            for name, (rank, factor) in chosen.items()
        }
        if min(d_model, n_layers, d_head, d_hidden, *ranks.values()) < 1 or d_model % d_head:
            raise ValueError(
                f"sizes must be positive and d_head must divide d_model, got d_model={d_model}, n_layers={n_layers}, "
                f"d_head={d_head}, d_hidden={d_hidden}, ranks {ranks}"
            )
        layers = [RWKV7Layer(d_model, d_head, d_hidden, ranks, i, n_layers, generator) for i in range(n_layers)]
        super().__init__(d_model, layers, nn.LayerNorm(d_model))

    def run_layers(self, x: Tensor, memories: list[Memory], flow: Flow) -> tuple[Tensor, tuple[tuple[Part, ...], ...]]:
        made, v_first = [], None
        for layer, memory in zip(self.layers, memories):
            assert isinstance(layer, RWKV7Layer)
            x, v_first, parts = layer.pass_on(x, memory, flow, v_first)
            made.append(parts)
        return x, tuple(made)


def uniform_linear(d_in: int, d_out: int, scale: float, generator: torch.Generator | None) -> nn.Linear:
    """A linear map that begins uniform in +- scale / sqrt(d_in)."""
    linear = bare_linear(d_in, d_out)
    nn.init.uniform_(linear.weight, -scale * d_in**-0.5, scale * d_in**-0.5, generator=generator)
    return linear
