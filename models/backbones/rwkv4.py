"""RWKV-4 (Peng et al. 2023, arXiv 2305.13048): an average of all values so far, weighted by keys and by a decay of each channel.

Time mixing, with x' the input before x and mu o x + (1 - mu) o x' written mix(mu), on u = ln1(x):

    r = W_r mix(mu_r)   k = W_k mix(mu_k)   v = W_v mix(mu_v)        x <- x + W_o (sigmoid(r) o WKV(k, v))

where WKV, with its decay -exp(time_decay) and its bonus time_first, is that of kernels/wkv4.py. Channel mixing, on u = ln2(x):

    r = W_r mix(mu_r)   k = W_k mix(mu_k)        x <- x + sigmoid(r) o (W_v max(k, 0)^2)

A norm ln0 stands before the first layer. Names and initial weights are those of the authors' repository (RWKV-v4neo).

B batch   T new inputs   D model width   F hidden width
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...kernels.wkv4 import wkv4, wkv4_initial
from .recurrent import Flow, Layer, Memory, Part, RecurrentBackbone, keeps_states


def shifted(x: Tensor, before: Tensor, flow: Flow) -> Tensor:
    """(B, T, D) the input before each of x (B, T, D); `before` (B, 1, D) is the last one of the past."""
    if flow.length == 1 and flow.reset is None:
        return before
    return flow.windows(x, before)[:, :, 0]


class TimeMixing(nn.Module):
    """x (B, T, D) to what it adds to the residual stream; it remembers its last input and WKV's state (B, 3, D)."""

    def __init__(self, d_model: int, depth: float, height: float, generator: torch.Generator | None):
        """:param depth: 0 in the first layer to 1 in the last; `height` 1 in the first and just above 0 in the last"""
        super().__init__()
        channel = torch.arange(d_model) / d_model
        speed = -5 + 8 * (torch.arange(d_model) / max(d_model - 1, 1)) ** (0.7 + 1.3 * depth)
        zigzag = 0.5 * ((torch.arange(d_model) + 1) % 3 - 1)
        self.time_decay = nn.Parameter(speed)
        self.time_first = nn.Parameter(math.log(0.3) + zigzag)
        self.time_mix_k = nn.Parameter(channel**height)
        self.time_mix_v = nn.Parameter(channel**height + 0.3 * depth)
        self.time_mix_r = nn.Parameter(channel ** (0.5 * height))
        self.key = zero_linear(d_model, d_model)
        self.value = orthogonal_linear(d_model, d_model, generator)
        self.receptance = zero_linear(d_model, d_model)
        self.output = zero_linear(d_model, d_model)

    def forward(self, x: Tensor, before: Tensor, state: Tensor, flow: Flow) -> tuple[Tensor, Part]:
        past = shifted(x, before, flow)
        k = F.linear(torch.lerp(past, x, self.time_mix_k), self.key.weight)
        v = F.linear(torch.lerp(past, x, self.time_mix_v), self.value.weight)
        r = F.linear(torch.lerp(past, x, self.time_mix_r), self.receptance.weight)
        w, u, every = -torch.exp(self.time_decay), self.time_first, keeps_states(flow)
        y, after = wkv4(w, u, k, v, state, reset=flow.reset, parents=flow.parents, every=every)

        def run(t: int) -> Tensor:
            return wkv4(w, u, k[:, :t], v[:, :t], state, reset=None if flow.reset is None else flow.reset[:, :t])[1]

        part = Part(state, states=after) if every else Part(state, last=after, run=run)
        return F.linear(torch.sigmoid(r) * y, self.output.weight), part


class ChannelMixing(nn.Module):
    """x (B, T, D) to what it adds to the residual stream; it remembers its last input."""

    def __init__(self, d_model: int, d_hidden: int, height: float, generator: torch.Generator | None):
        super().__init__()
        channel = torch.arange(d_model) / d_model
        self.time_mix_k = nn.Parameter(channel**height)
        self.time_mix_r = nn.Parameter(channel**height)
        self.key = orthogonal_linear(d_model, d_hidden, generator)
        self.receptance = zero_linear(d_model, d_model)
        self.value = zero_linear(d_hidden, d_model)

    def forward(self, x: Tensor, before: Tensor, flow: Flow) -> Tensor:
        past = shifted(x, before, flow)
        k = F.linear(torch.lerp(past, x, self.time_mix_k), self.key.weight)
        r = F.linear(torch.lerp(past, x, self.time_mix_r), self.receptance.weight)
        return torch.sigmoid(r) * F.linear(torch.relu(k).square(), self.value.weight)


class RWKV4Layer(Layer):
    """Time mixing and channel mixing; it remembers the last input of each (B, 1, D) and WKV's state (B, 3, D)."""

    def __init__(self, d_model: int, d_hidden: int, layer: int, n_layers: int, generator: torch.Generator | None = None):
        super().__init__()
        depth, height = layer / max(n_layers - 1, 1), 1 - layer / n_layers
        self.ln0 = nn.LayerNorm(d_model) if layer == 0 else None
        self.ln1, self.ln2 = nn.LayerNorm(d_model), nn.LayerNorm(d_model)
        self.att = TimeMixing(d_model, depth, height, generator)
        self.ffn = ChannelMixing(d_model, d_hidden, height, generator)

    def initial(self, batch_size: int) -> Memory:
        weight = self.ln1.weight.detach()
        nothing = weight.new_zeros(batch_size, 1, len(weight))
        return nothing, nothing, wkv4_initial(batch_size, weight)

    def forward(self, x: Tensor, memory: Memory, flow: Flow) -> tuple[Tensor, tuple[Part, ...]]:
        before_att, before_ffn, state = memory
        x = x if self.ln0 is None else self.ln0(x)
        u = self.ln1(x)
        added, wkv_part = self.att(u, before_att, state, flow)
        x = x + added
        z = self.ln2(x)
        x = x + self.ffn(z, before_ffn, flow)
        return x, (Part(before_att, states=u.unsqueeze(2)), Part(before_ffn, states=z.unsqueeze(2)), wkv_part)


class RWKV4(RecurrentBackbone):
    """A stack of RWKV-4 layers between the norms ln0 and ln_out. Layers begin as the identity: their output weights are 0.

    :param d_model: width D
    :param n_layers: layers
    :param d_hidden: width F of the channel mixing, 4 D by default
    :param generator: of the initial weights; by default torch's global one
    """

    def __init__(self, d_model: int, n_layers: int, d_hidden: int | None = None, generator: torch.Generator | None = None):
        d_hidden = 4 * d_model if d_hidden is None else d_hidden
        if min(d_model, n_layers, d_hidden) < 1:
            raise ValueError(f"d_model, n_layers and d_hidden must be positive, got {d_model}, {n_layers}, {d_hidden}")
        layers = [RWKV4Layer(d_model, d_hidden, i, n_layers, generator) for i in range(n_layers)]
        super().__init__(d_model, layers, nn.LayerNorm(d_model))


def zero_linear(d_in: int, d_out: int) -> nn.Linear:
    """A linear map that begins as 0."""
    linear = bare_linear(d_in, d_out)
    nn.init.zeros_(linear.weight)
    return linear


def orthogonal_linear(d_in: int, d_out: int, generator: torch.Generator | None) -> nn.Linear:
    """A linear map that begins orthogonal, times sqrt(d_out / d_in) where that is above 1."""
    linear = bare_linear(d_in, d_out)
    nn.init.orthogonal_(linear.weight, gain=max(d_out / d_in, 1) ** 0.5, generator=generator)
    return linear


def bare_linear(d_in: int, d_out: int) -> nn.Linear:
    """A linear map without bias whose weights are not set: nn.Linear's own would take numbers of the global generator."""
    return nn.Linear(d_in, d_out, bias=False, device="meta").to_empty(device="cpu")
