"""Mamba (Gu & Dao 2023, arXiv 2312.00752): a state-space model whose steps, inputs and outputs depend on the input.

    x, z = W_in norm(stream)      u = silu(conv(x))      dt, B, C = W_x u      dt = softplus(W_dt dt + b_dt)      A = -exp(A_log)
    h_t = exp(dt_t A) h_{t-1} + dt_t B_t u_t       y_t = C_t h_t + D u_t       stream <- stream + W_out (y silu(z))

The convolution is causal, a channel by itself, over K inputs. Parameters have the names of the authors' code.

B batch (and B, C, D the paper's matrices)   T new inputs   W channels   N states a channel   R rank of dt   K convolution's width
"""

import math
from functools import cached_property
from importlib import import_module
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...kernels.selective_scan import selective_scan
from .base import check_inputs
from .recurrent import (
    KEPT,
    Flow,
    Layer,
    Memory,
    Part,
    RecurrentBackbone,
    RecurrentState,
    RMSNorm,
    inverse_softplus,
    keeps_states,
    log_uniform,
    make_flow,
)


class MambaLayer(Layer):
    """One block; it remembers the convolution's last inputs (B, K - 1, W) and h (B, N, W)."""

    undecayed = ("A_log",)

    def __init__(self, d_model: int, width: int, d_state: int, d_conv: int, dt_rank: int, eps: float, generator: Any):
        super().__init__()
        self.d_state, self.dt_rank = d_state, dt_rank
        self.norm = RMSNorm(d_model, eps)
        self.in_proj = _uniform(nn.Linear(d_model, 2 * width, bias=False, device="meta"), d_model, generator)
        self.conv1d = _uniform(nn.Conv1d(width, width, d_conv, groups=width, device="meta"), d_conv, generator)
        self.x_proj = _uniform(nn.Linear(width, dt_rank + 2 * d_state, bias=False, device="meta"), width, generator)
        self.dt_proj = _uniform(nn.Linear(dt_rank, width, device="meta"), dt_rank, generator)
        with torch.no_grad():
            self.dt_proj.bias.copy_(inverse_softplus(log_uniform((width,), 1e-3, 0.1, generator).clamp(min=1e-4)))
        rates = torch.arange(1.0, d_state + 1).log()
        # (W, N) as in the paper, laid out in memory as (N, W): the kernels run over channels
        self.A_log = nn.Parameter(rates.unsqueeze(1).repeat(1, width).mT)
        self.D = nn.Parameter(torch.ones(width))
        self.out_proj = _uniform(nn.Linear(width, d_model, bias=False, device="meta"), width, generator)

    def initial(self, batch_size: int) -> Memory:
        x = self.conv1d.weight.detach()
        states = torch.promote_types(x.dtype, torch.float32)
        return x.new_zeros(batch_size, x.shape[2] - 1, len(x)), x.new_zeros(batch_size, self.d_state, len(x), dtype=states)

    def forward(self, x: Tensor, memory: Memory, flow: Flow) -> tuple[Tensor, tuple[Part, ...]]:
        past, h = memory
        new, z = self.in_proj(self.norm(x)).chunk(2, dim=-1)  # (B, T, W) each
        windows = flow.windows(new, past)  # (B, T, K, W)
        u = self.conv1d.bias
        for k, weight in enumerate(self.conv1d.weight[:, 0].unbind(1)):
            u = torch.addcmul(u, windows[:, :, k], weight)
        u = F.silu(u)
        low, B, C = self.x_proj(u).to(u.dtype).split((self.dt_rank, self.d_state, self.d_state), dim=-1)  # autocast: in float32
        inputs = (u, F.softplus(self.dt_proj(low).to(u.dtype)), -torch.exp(self.A_log), B, C, self.D)
        kept = keeps_states(flow)
        y, after = selective_scan(*inputs, h, reset=flow.reset, parents=flow.parents, every=kept)
        window_part = Part(past, states=windows[:, :, 1:])
        state_part = Part(h, states=after) if kept else Part(h, after, run=lambda t: _state_after(t, inputs, h, flow.reset))
        return x + self.out_proj(y * F.silu(z)), (window_part, state_part)


class Mamba(RecurrentBackbone):
    """A stack of Mamba blocks and a last norm.

    A few inputs of one sequence without gradients, in float32 on a CPU, are one call of a compiled kernel for all layers, which
    reads the weights once; the states are interchangeable. Forward hooks of the modules inside are not called there, unless
    `fused` is set to False.

    :param d_model: width D
    :param n_layers: blocks
    :param d_state: states a channel N
    :param expand: channels W = expand * d_model
    :param d_conv: width K of the convolution, at least 2
    :param dt_rank: R, by default d_model / 16 rounded up
    :param norm_eps: of the RMSNorms
    :param generator: of the initial weights; by default torch's global one
    """

    def __init__(
        self,
        d_model: int,
        n_layers: int,
        d_state: int = 16,
        expand: int = 2,
        d_conv: int = 4,
        dt_rank: int | None = None,
        norm_eps: float = 1e-5,
        generator: torch.Generator | None = None,
    ):
        if d_conv < 2:
            raise ValueError(f"d_conv must be at least 2, got {d_conv}")
        rank = math.ceil(d_model / 16) if dt_rank is None else dt_rank
        sizes = (d_model, expand * d_model, d_state, d_conv, rank, norm_eps, generator)
        layers = [MambaLayer(*sizes) for _ in range(n_layers)]
        super().__init__(d_model, layers, RMSNorm(d_model, norm_eps))
        self.d_conv, self.dt_rank = d_conv, rank
        self._sizes = f"Mamba(d_model={d_model}, n_layers={n_layers}, d_state={d_state}, expand={expand}, d_conv={d_conv}"
        with torch.no_grad():
            for layer in layers:
                layer.out_proj.weight /= math.sqrt(n_layers)  # as GPT-2: the stream's variance is then the same for any depth
        self._step = _Step(d_model, expand * d_model, d_state, d_conv, rank)
        self.fused = True

    @property
    def family(self) -> str:
        return f"{self._sizes}, {self.norm.gain.dtype})"

    def forward(
        self, x: Tensor, state: RecurrentState | None = None, *, reset: Tensor | None = None, parents: Any = None
    ) -> tuple[Tensor, RecurrentState]:
        few = reset is None and x.dim() == 3 and x.shape[0] == 1 and x.shape[1] <= KEPT and x.dtype == torch.float32
        if few and self.fused and x.device.type == "cpu" and not torch.is_grad_enabled() and not torch.compiler.is_compiling():
            state = self.initial_state(1) if state is None else state
            addresses = self._step.addresses(self.layers)
            if addresses is not None and getattr(state, "family", None) == self.family:
                check_inputs(x, self.d_model, state, None)
                return self._few_steps(x, state, make_flow(x, None, parents), addresses)
        return super().forward(x, state, reset=reset, parents=parents)

    def run_layers(self, x: Tensor, memories: list[Memory], flow: Flow) -> tuple[Tensor, tuple[tuple[Part, ...], ...]]:
        if len(memories[0]) == 1:  # all layers in one tensor, as the compiled step leaves them
            past = self.d_conv - 1
            memories = [(one[:, :past], one[:, past:]) for one in memories[0][0].unbind(1)]
        return super().run_layers(x, memories, flow)

    def _few_steps(self, x: Tensor, state: RecurrentState, flow: Flow, addresses: np.ndarray) -> tuple[Tensor, RecurrentState]:
        """The compiled step; its states are one part (1, T, L, K - 1 + N, W) for all layers."""
        memories, T = state.memories(), flow.length
        before = memories[0][0] if len(memories[0]) == 1 else torch.stack([torch.cat(parts, dim=1) for parts in memories], dim=1)
        before = before.detach().contiguous()
        norm: Any = self.norm
        y, after = torch.empty(x.shape), before.new_empty(1, T, *before.shape[1:])
        order = np.arange(-1, T - 1) if flow.parents is None else flow.parents
        arrays = x.detach().contiguous().numpy()[0], before.numpy()[0], order, addresses, norm.gain.detach().numpy()
        self._step.kernel(*arrays, norm.eps, self.d_conv, self.dt_rank, y.numpy()[0], after.numpy()[0])
        parts = ((Part(before, states=after),),)
        return y, RecurrentState(state.family, parts, T, T, None, flow.parents, state.ages())


class _Step:
    """The compiled step, and where the weights lie that it reads; neither is copied or saved with a model."""

    def __init__(self, D: int, W: int, N: int, K: int, R: int):
        self._sizes = (D, W, N, K, R)
        self._shapes = ((D,), (2 * W, D), (W, 1, K), (W,), (R + 2 * N, W), (W, R), (W,), (N, W), (W,), (D, W))
        self._found: list[int] = []
        self._addresses: np.ndarray | None = None

    def __reduce__(self):
        return _Step, self._sizes

    @cached_property
    def kernel(self) -> Any:
        return import_module("...kernels.mamba_step", __package__).mamba_step

    def addresses(self, layers: Any) -> np.ndarray | None:
        """(L, number of weights a layer) addresses; None where a weight isn't a plain float32 matrix as the kernel expects it."""
        try:
            weights = [weight for layer in layers for weight in _weights(layer)]
        except KeyError:  # a layer was wrapped or parametrised
            return None
        found = [weight.data_ptr() for weight in weights]
        if found != self._found:
            good = all(
                weight.dtype == torch.float32 and weight.device.type == "cpu" and weight.is_contiguous() and weight.shape == shape
                for weight, shape in zip(weights, self._shapes * len(layers))
            )
            self._found, self._addresses = found, np.array(found, np.int64).reshape(len(layers), -1) if good else None
        return self._addresses


def _weights(layer: Any) -> tuple[Tensor, ...]:
    """In the kernel's order. By the dicts of the modules, because their attributes take ten times as long."""
    modules, own = layer._modules, layer._parameters
    conv, dt = modules["conv1d"]._parameters, modules["dt_proj"]._parameters
    norm, matrices = modules["norm"]._parameters["gain"], [modules[name]._parameters["weight"] for name in _MATRICES]
    return (
        norm,
        matrices[0],
        conv["weight"],
        conv["bias"],
        matrices[1],
        dt["weight"],
        dt["bias"],
        own["A_log"].mT,
        own["D"],
        matrices[2],
    )


_MATRICES = ("in_proj", "x_proj", "out_proj")


def _state_after(t: int, inputs: tuple[Tensor, ...], h: Tensor, reset: Tensor | None) -> Tensor:
    """The state after the first t inputs of a call."""
    u, dt, A, B, C, D = inputs
    reset = None if reset is None else reset[:, :t]
    return selective_scan(u[:, :t], dt[:, :t], A, B[:, :t], C[:, :t], D, h, reset=reset)[1]


def _uniform(module: Any, inputs: int, generator: torch.Generator | None) -> Any:
    """A module made on "meta" (so no random number was drawn) with weights uniform between +-1 / sqrt(inputs) and biases 0."""
    module.to_empty(device="cpu")
    for name, parameter in module.named_parameters():
        bound = inputs**-0.5 if name == "weight" else 0.0
        nn.init.uniform_(parameter, -bound, bound, generator=generator)
    return module
