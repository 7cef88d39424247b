"""Mamba-2, a gated layer around state-space duality (Dao & Gu 2024, arXiv 2405.21060).

    z, (x, B, C), dt = in_proj(norm(u))       (x, B, C) <- silu(conv1d(x, B, C))       dt <- softplus(dt + dt_bias)
    S_t = exp(-exp(A_log) dt_t) S_{t-1} + dt_t x_t B_t^T       y_t = S_t C_t + D x_t       for each head
    u <- u + out_proj(gate_norm(y * silu(z)))

Names are those of the reference, but `gate_norm` (`mixer.norm` there) and `norm` (the block's).

B batch   T new inputs   D model width   E inner width   H heads of width P = E / H   G groups of heads   N state size
W conv width   K = E + 2 G N conv channels
"""

from collections.abc import Callable
from importlib import import_module

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...kernels.ssd import ssd, ssd_last, ssd_outputs
from .recurrent import Flow, Layer, Memory, Part, RecurrentBackbone, RMSNorm, inverse_softplus, keeps_states, log_uniform


class Mamba2Layer(Layer):
    """It remembers the last W - 1 inputs of the convolution (B, W - 1, K) and the heads' states S (B, H, P, N).

    :param d_model: width D
    :param d_state: N
    :param d_conv: W
    :param expand: E / D
    :param headdim: P
    :param ngroups: G
    :param bias: of the projections
    :param conv_bias: of the convolution
    :param eps: of the norms
    """

    def __init__(
        self,
        d_model: int,
        d_state: int = 128,
        d_conv: int = 4,
        expand: float = 2,
        headdim: int = 64,
        ngroups: int = 1,
        bias: bool = False,
        conv_bias: bool = True,
        eps: float = 1e-5,
        generator: torch.Generator | None = None,
    ):
        super().__init__()
        E = int(expand * d_model)
        if E % headdim or (E // headdim) % ngroups:
            raise ValueError(f"headdim must divide expand * d_model = {E} and ngroups the heads, got {headdim} and {ngroups}")
        H, K = E // headdim, E + 2 * ngroups * d_state
        self.d_inner, self.d_state, self.headdim, self.ngroups = E, d_state, headdim, ngroups
        self.norm = RMSNorm(d_model, eps)
        self.in_proj = nn.Linear(d_model, E + K + H, bias=bias)
        self.conv1d = nn.Conv1d(K, K, d_conv, groups=K, bias=conv_bias)
        dt = log_uniform((H,), 1e-3, 1e-1, generator).clamp(min=1e-4)
        self.dt_bias = nn.Parameter(inverse_softplus(dt))
        self.A_log = nn.Parameter(torch.empty(H).uniform_(1, 16, generator=generator).log())
        self.D = nn.Parameter(torch.ones(H))
        self.gate_norm = GroupRMSNorm(E, ngroups, eps)
        self.out_proj = nn.Linear(E, d_model, bias=bias)
        for weight, fan_in in ((self.in_proj.weight, d_model), (self.conv1d.weight, d_conv), (self.out_proj.weight, E)):
            nn.init.uniform_(weight, -(fan_in**-0.5), fan_in**-0.5, generator=generator)  # as torch's layers do by themselves
        for layer in (self.in_proj, self.conv1d, self.out_proj):
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)

    def initial(self, batch_size: int) -> Memory:
        K, _, W = self.conv1d.weight.shape
        window = self.D.new_zeros(batch_size, W - 1, K).detach()
        return window, self.D.new_zeros(batch_size, len(self.D), self.headdim, self.d_state, dtype=wide(self.D.dtype)).detach()

    def forward(self, x: Tensor, memory: Memory, flow: Flow) -> tuple[Tensor, tuple[Part, ...]]:
        window, S = memory
        B, T, _ = x.shape
        H, K = len(self.D), window.shape[2]
        zxbcdt = self.in_proj(self.norm(x))
        if self._steps(zxbcdt, window, S, flow):
            return self._step(x, zxbcdt, window, S)
        z, conv, dt = zxbcdt.split((self.d_inner, K, H), dim=-1)
        conv, window = self._convolve(conv, window, flow)
        u, b, c = conv.split((self.d_inner, self.ngroups * self.d_state, self.ngroups * self.d_state), dim=-1)
        u, b, c = u.view(B, T, H, -1), b.view(B, T, self.ngroups, -1), c.view(B, T, self.ngroups, -1)
        dt = F.softplus(dt + self.dt_bias)  # (B, T, H)
        y, S = scan(u * dt.unsqueeze(-1), -dt * self.A_log.exp(), b, c, S, flow)
        y = torch.addcmul(y, u, self.D.unsqueeze(-1)).view(B, T, -1)
        return x + self.out_proj(self.gate_norm(y * F.silu(z))), (window, S)

    def _steps(self, zxbcdt: Tensor, window: Tensor, S: Tensor, flow: Flow) -> bool:
        """Whether the compiled step does this call."""
        return (
            flow.length == 1
            and flow.reset is None
            and not (torch.is_grad_enabled() or torch.compiler.is_compiling())
            and zxbcdt.dtype == torch.float32
            and zxbcdt.device.type == "cpu"
            and self.conv1d.bias is not None
            and window.shape[1] > 0
            and zxbcdt.is_contiguous()
            and window.is_contiguous()
            and S.is_contiguous()
        )

    def _step(self, x: Tensor, zxbcdt: Tensor, window: Tensor, S: Tensor) -> tuple[Tensor, tuple[Part, ...]]:
        y, window_after, S_after = x.new_empty(len(x), self.d_inner), torch.empty_like(window), torch.empty_like(S)
        assert self.conv1d.bias is not None
        weights = self.conv1d.weight, self.conv1d.bias, self.dt_bias, self.A_log, self.D, self.gate_norm.gain
        conv, *others = (weight.numpy(force=True) for weight in weights)
        import_module("...kernels.mamba2_step", __package__).mamba2_step(
            *(tensor.numpy() for tensor in (zxbcdt[:, 0], window, S)),
            conv[:, 0],
            *others,
            self.ngroups,
            self.gate_norm.eps,
            *(tensor.numpy() for tensor in (y, window_after, S_after)),
        )
        return x + self.out_proj(y.unsqueeze(1)), (Part(window, window_after), Part(S, S_after))

    def _convolve(self, x: Tensor, before: Tensor, flow: Flow) -> tuple[Tensor, Part]:
        """(B, T, K) causal convolution and silu, and the windows to remember."""
        weight, bias = self.conv1d.weight.squeeze(1), self.conv1d.bias
        if flow.reset is not None or flow.parents is not None:
            windows = flow.windows(x, before)  # (B, T, W, K)
            y = torch.einsum("btwk,kw->btk", windows, weight)
            return F.silu(y if bias is None else y + bias), Part(before, states=windows[:, :, 1:])
        joined, width = torch.cat((before, x), dim=1), before.shape[1]
        part = Part(before, run=lambda t: joined[:, t : t + width])
        if flow.length == 1:
            y = torch.linalg.vecdot(joined.mT, weight).unsqueeze(1)
            return F.silu(y if bias is None else y + bias), part
        # torch's depthwise convolution in one dimension is ten times slower than in two with channels last
        image = joined.mT.unsqueeze(2)  # (B, K, 1, W - 1 + T), channels last
        y = F.conv2d(image, weight[:, None, None], bias, groups=len(weight)).squeeze(2).mT
        return F.silu(y), part


def scan(x: Tensor, log_decay: Tensor, b: Tensor, c: Tensor, S: Tensor, flow: Flow) -> tuple[Tensor, Part]:
    """`ssd` along a flow. A short call without gradients and a tree make no state until one is asked for: drafts are verified by
    reading the state before them, and only what is accepted is written.
    """
    b, c = b.to(x.dtype), c.to(x.dtype)  # autocast: in float32
    if flow.length == 1 or not keeps_states(flow):
        y, last = ssd(x, log_decay, b, c, S, reset=flow.reset, parents=flow.parents)
        last = last if flow.parents is None else last[:, 0]
        return y, Part(S, last, run=_runner(x, log_decay, b, S, flow))
    y = ssd_outputs(x, log_decay, b, c, S, reset=flow.reset, parents=flow.parents)
    return y, Part(S, run=_runner(x, log_decay, b, S, flow))


def _runner(x: Tensor, log_decay: Tensor, b: Tensor, S: Tensor, flow: Flow) -> Callable[[int], Tensor]:
    def run(t: int) -> Tensor:
        if flow.parents is not None:
            path = torch.from_numpy(_path(flow.parents, t - 1)).to(x.device)
            return ssd_last(x[:, path], log_decay[:, path], b[:, path], S)
        return ssd_last(x[:, :t], log_decay[:, :t], b[:, :t], S, reset=None if flow.reset is None else flow.reset[:, :t])

    return run


def _path(parents: np.ndarray, node: int) -> np.ndarray:
    """The nodes from the root to `node`."""
    nodes = [node]
    while (parent := int(parents[nodes[-1]])) >= 0:
        nodes.append(parent)
    return np.array(nodes[::-1], dtype=np.int64)


def wide(dtype: torch.dtype) -> torch.dtype:
    """The dtype of states: bfloat16 would lose what it adds up."""
    return torch.float32 if dtype == torch.bfloat16 else dtype


class GroupRMSNorm(RMSNorm):
    """RMSNorm of each of G groups of channels by itself."""

    def __init__(self, width: int, groups: int, eps: float = 1e-5):
        super().__init__(width, eps)
        self.groups = groups

    def forward(self, x: Tensor) -> Tensor:
        if self.groups == 1:
            return super().forward(x)
        parts = x.unflatten(-1, (self.groups, -1))
        scale = (parts.square().mean(-1, keepdim=True) + self.eps).rsqrt()
        return (parts * scale).flatten(-2) * self.gain


class Mamba2(RecurrentBackbone):
    """A stack of Mamba-2 layers and a last norm.

    :param d_model: width D
    :param n_layers: layers
    :param generator: of the initial weights
    :param sizes: of each layer, see `Mamba2Layer`
    """

    def __init__(self, d_model: int, n_layers: int, *, generator: torch.Generator | None = None, **sizes):
        layers = [Mamba2Layer(d_model, generator=generator, **sizes) for _ in range(n_layers)]
        super().__init__(d_model, layers, RMSNorm(d_model, layers[0].norm.eps if layers else 1e-5))
