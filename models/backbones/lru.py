"""Linear Recurrent Units (Orvieto et al. 2023, arXiv 2303.06349).

    h_t = lambda * h_{t-1} + gamma * (B u_t)        y_t = Re(C h_t) + D * u_t
    lambda = exp(-exp(nu_log) + i exp(theta_log))   gamma = exp(gamma_log), at first sqrt(1 - |lambda|^2)

lambda begins uniform on the ring r_min <= |lambda| <= r_max with phases in [0, max_phase] (lemma 3.2 there). The block is the
paper's figure 1: x <- x + GLU(GELU(LRU(norm(x)))), with an RMSNorm where the paper has a batch norm, which mixes sequences.

B batch   T new inputs   D model width   N state size (complex)
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tdraft.kernels.linear_scan import linear_scan

from .recurrent import Flow, Layer, Memory, Part, RecurrentBackbone, RMSNorm, keeps_states


class LRULayer(Layer):
    """x + GLU(GELU(LRU(norm(x)))); it remembers h (B, N).

    Real and imaginary parts of `B` (N, 2, D) and `C` (D, N, 2) lie on the axis of size 2: a real product with all of them
    reads and writes complex numbers where they are.
    """

    def __init__(
        self,
        d_model: int,
        d_state: int,
        r_min: float,
        r_max: float,
        max_phase: float,
        generator: torch.Generator | None = None,
    ):
        super().__init__()
        u1, u2 = torch.rand(2, d_state, generator=generator)
        nu = -0.5 * torch.log(u1 * (r_max**2 - r_min**2) + r_min**2)  # -log |lambda|
        self.norm = RMSNorm(d_model)
        self.nu_log = nn.Parameter(nu.log())
        self.theta_log = nn.Parameter(torch.log(max_phase * u2))
        self.gamma_log = nn.Parameter(0.5 * torch.log(-torch.expm1(-2 * nu)))
        self.B = nn.Parameter(torch.randn(d_state, 2, d_model, generator=generator) / math.sqrt(2 * d_model))
        self.C = nn.Parameter(torch.randn(d_model, d_state, 2, generator=generator) / math.sqrt(d_state))
        self.D = nn.Parameter(torch.randn(d_model, generator=generator))
        self.glu = nn.Linear(d_model, 2 * d_model)
        bound = 1 / math.sqrt(d_model)  # that of nn.Linear, from our generator
        for weight in (self.glu.weight, self.glu.bias):
            nn.init.uniform_(weight, -bound, bound, generator)

    def initial(self, batch_size: int) -> Memory:
        return (torch.view_as_complex(self.nu_log.detach().new_zeros(batch_size, len(self.nu_log), 2)),)

    def forward(self, x: Tensor, memory: Memory, flow: Flow) -> tuple[Tensor, tuple[Part, ...]]:
        (first,) = memory
        u = self.norm(x)
        Bu = F.linear(u, self.B.flatten(0, 1)).unflatten(-1, self.B.shape[:2])  # (B, T, N, 2)
        drive = torch.view_as_complex(Bu * self.gamma_log.exp().unsqueeze(-1))  # (B, T, N)
        decay = torch.polar(torch.exp(-self.nu_log.exp()), self.theta_log.exp())  # lambda
        h, last = linear_scan(decay, drive, first, reset=flow.reset, parents=flow.parents)
        # Re(C h) is the real inner product of C and the conjugate of h
        y = F.linear(torch.view_as_real(h.conj().resolve_conj()).flatten(-2), self.C.flatten(1)) + self.D * u
        return x + F.glu(self.glu(F.gelu(y))), (self._part(first, h, last, decay, drive, flow),)

    @staticmethod
    def _part(first: Tensor, h: Tensor, last: Tensor, decay: Tensor, drive: Tensor, flow: Flow) -> Part:
        if keeps_states(flow):
            return Part(first, states=h)

        def run(t: int) -> Tensor:
            return linear_scan(decay, drive[:, :t], first, reset=None if flow.reset is None else flow.reset[:, :t])[1]

        return Part(first, last=last.clone(), run=run)  # a copy, as a view would keep all the states


class LRU(RecurrentBackbone):
    """A stack of LRU blocks and a last norm.

    :param d_model: width D
    :param n_layers: blocks
    :param d_state: complex states N of a block, None: D
    :param r_min: least |lambda| at first
    :param r_max: largest |lambda| at first
    :param max_phase: largest phase of lambda at first, in radians; small ones for long memories (section 4.4 there)
    :param generator: of the initial weights
    :raises ValueError: not 0 <= r_min < r_max <= 1, or a phase outside (0, 2 pi]
    """

    def __init__(
        self,
        d_model: int,
        n_layers: int,
        *,
        d_state: int | None = None,
        r_min: float = 0.9,
        r_max: float = 0.999,
        max_phase: float = math.pi / 10,
        generator: torch.Generator | None = None,
    ):
        if not 0 <= r_min < r_max <= 1:
            raise ValueError(f"r_min and r_max must be 0 <= r_min < r_max <= 1, got {r_min} and {r_max}")
        if not 0 < max_phase <= 2 * math.pi:
            raise ValueError(f"max_phase must be in (0, 2 pi] radians, got {max_phase}")
        ring = (d_state or d_model, r_min, r_max, max_phase, generator)
        super().__init__(d_model, [LRULayer(d_model, *ring) for _ in range(n_layers)], RMSNorm(d_model))
