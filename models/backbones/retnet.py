"""RetNet: retention with a fixed decay a head, then a feed-forward network (Sun et al. 2023, arXiv 2307.08621).

    q, k, v = X W_Q, X W_K / sqrt(d), X W_V              for each head, gamma_h = 1 - 2^(-5 - h)
    S_n = gamma_h S_{n-1} + v_n (R^n k_n)^T              o_n = S_n R^n q_n
    X <- X + (swish(X W_G) * norm(o)) W_O                X <- X + gelu(X W_1) W_2

R^n turns pairs of channels by n theta, theta from 1 to 1/10000; n counts inputs since the last reset, and o sees only differences
of n. `norm` is an RMSNorm of each head by itself, without weights. Nothing before it is normalised in another way, so that the
parallel, the chunked and the recurrent form agree: a scale that `norm` would undo does not commute with its epsilon.
X is normed first (pre-norm).

B batch   T new inputs   D model width   H heads   d = D / H key width   V value width of a head
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...kernels.retention import as_ssd
from .mamba2 import scan, wide
from .recurrent import Flow, Layer, Memory, Part, RecurrentBackbone, RMSNorm


class RetNetLayer(Layer):
    """It remembers the heads' states S (B, H, V, d) and how many inputs they hold (B,).

    :param d_model: width D
    :param n_heads: H
    :param value_factor: H V / D
    :param d_ffn: hidden width of the feed-forward network, 2 D by default
    :param eps: of the norms
    """

    def __init__(
        self,
        d_model: int,
        n_heads: int = 4,
        value_factor: int = 2,
        d_ffn: int | None = None,
        eps: float = 1e-5,
        generator: torch.Generator | None = None,
    ):
        super().__init__()
        if d_model % (2 * n_heads):
            raise ValueError(f"d_model must be a multiple of 2 * n_heads = {2 * n_heads}, got {d_model}")
        D, values, hidden = d_model, value_factor * d_model, d_ffn or 2 * d_model
        self.n_heads, self.eps = n_heads, eps
        self.norm, self.ffn_norm = RMSNorm(D, eps), RMSNorm(D, eps)
        self.W_Q, self.W_K = nn.Linear(D, D, bias=False), nn.Linear(D, D, bias=False)
        self.W_V, self.W_G = nn.Linear(D, values, bias=False), nn.Linear(D, values, bias=False)
        self.W_O = nn.Linear(values, D, bias=False)
        self.W_1, self.W_2 = nn.Linear(D, hidden, bias=False), nn.Linear(hidden, D, bias=False)
        for layer in (self.W_Q, self.W_K, self.W_V, self.W_G):
            nn.init.xavier_uniform_(layer.weight, gain=2**-2.5, generator=generator)
        for layer in (self.W_O, self.W_1, self.W_2):
            nn.init.xavier_uniform_(layer.weight, gain=0.5, generator=generator)

    def initial(self, batch_size: int) -> Memory:
        weight, H = self.W_Q.weight, self.n_heads
        S = weight.new_zeros(batch_size, H, len(self.W_V.weight) // H, len(weight) // H, dtype=wide(weight.dtype))
        return S.detach(), torch.zeros(batch_size, dtype=torch.int64, device=weight.device)

    def forward(self, x: Tensor, memory: Memory, flow: Flow) -> tuple[Tensor, tuple[Part, ...]]:
        S, count = memory
        n = positions(count, flow)
        y, S = self.retain(x, S, self.turns(n), flow)
        return y, (S, Part(count, states=n + 1))

    def turns(self, n: Tensor) -> Tensor:
        """(B, T, 1, d / 2) complex, R^n as a number for each pair of channels.

        The angle is a float64: in float32 that of the millionth input would be off by up to 0.06.
        """
        pairs = self.W_Q.weight.shape[0] // (2 * self.n_heads)
        theta = torch.pow(10000.0, -torch.linspace(0, 1, pairs, dtype=torch.float64, device=n.device))
        angle = (n.unsqueeze(-1) * theta).unsqueeze(-2)
        real = wide(self.W_Q.weight.dtype)
        return torch.complex(angle.cos().to(real), angle.sin().to(real))

    def retain(self, x: Tensor, S: Tensor, turns: Tensor, flow: Flow) -> tuple[Tensor, Part]:
        """Outputs and the part of S, with the rotations of the inputs' positions."""
        B, T, D = x.shape
        H = self.n_heads
        u = self.norm(x)
        q, k, v = (W(u).view(B, T, H, -1) for W in (self.W_Q, self.W_K, self.W_V))
        q, k = rotate(q, turns), rotate(k, turns * (D // H) ** -0.5)
        log_gamma = torch.log1p(-torch.exp2(-5.0 - torch.arange(H, dtype=S.dtype, device=x.device)))
        o, part = scan(*as_ssd(q, k, v, log_gamma), S, flow)  # (B, T, H, V)
        o = (o * (o.square().mean(-1, keepdim=True) + self.eps).rsqrt()).view(B, T, -1)
        x = x + self.W_O(F.silu(self.W_G(u)) * o)
        return x + self.W_2(F.gelu(self.W_1(self.ffn_norm(x)))), part


def positions(count: Tensor, flow: Flow) -> Tensor:
    """(B, T) int64 inputs that each one can look back upon, (B,) of them before this call."""
    if flow.parents is not None:
        depth = [0] * flow.length
        for i, parent in enumerate(flow.parents.tolist()):
            depth[i] = depth[parent] + 1 if parent >= 0 else 0
        return count.unsqueeze(1) + torch.tensor(depth, device=count.device)
    place = torch.arange(flow.length, device=count.device)
    if flow.reset is None:
        return count.unsqueeze(1) + place
    last = torch.where(flow.reset, place, -1).cummax(1).values  # (B, T) place of the last reset
    return torch.where(last >= 0, place - last, count.unsqueeze(1) + place)


def rotate(x: Tensor, turns: Tensor) -> Tensor:
    """x (B, T, H, d), each pair of channels (2 i, 2 i + 1) turned."""
    pairs = torch.view_as_complex(x.to(turns.real.dtype).unflatten(-1, (-1, 2)))
    return torch.view_as_real(pairs * turns).flatten(-2).to(x.dtype)


class RetNet(RecurrentBackbone):
    """A stack of RetNet layers and a last norm.

    :param d_model: width D, a multiple of 2 n_heads
    :param n_layers: layers
    :param generator: of the initial weights
    :param sizes: of each layer, see `RetNetLayer`
    """

    def __init__(self, d_model: int, n_layers: int, *, generator: torch.Generator | None = None, **sizes):
        layers = [RetNetLayer(d_model, generator=generator, **sizes) for _ in range(n_layers)]
        super().__init__(d_model, layers, RMSNorm(d_model, layers[0].eps if layers else 1e-5))

    def run_layers(self, x: Tensor, memories: list[Memory], flow: Flow) -> tuple[Tensor, tuple[tuple[Part, ...], ...]]:
        """All layers stand at the same position: it is turned into rotations once."""
        layers: list[RetNetLayer] = list(self.layers)  # pyright: ignore[reportAssignmentType]
        count, made = memories[0][1], []
        n = positions(count, flow)
        turns, counted = layers[0].turns(n), Part(count, states=n + 1)
        for layer, (S, _) in zip(layers, memories):
            x, part = layer.retain(x, S, turns, flow)
            made.append((part, counted))
        return x, tuple(made)
