"""S4D, a diagonal state-space model for each channel (Gu et al. 2022, arXiv 2206.11893).

    x'(s) = A x(s) + B u(s)    y(s) = 2 Re(C x(s)) + D u(s)        A diagonal, each state with its conjugate, B = 1

sampled at steps of length dt:

    x_t = A_bar x_{t-1} + B_bar u_t    y_t = 2 Re(C x_t) + D u_t
    zoh:       A_bar = exp(dt A)                      B_bar = (exp(dt A) - 1) / A
    bilinear:  A_bar = (1 + dt A / 2) / (1 - dt A / 2)   B_bar = dt / (1 - dt A / 2)

The block is x <- x + GLU(GELU(S4D(norm(x)))). A state is kept without B_bar, which goes with C.

B batch   T new inputs   D model width   N state size, N / 2 of which are kept: one of each pair of conjugates
"""

import math

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tdraft.kernels.diagonal_ssm import diagonal_ssm
from tdraft.models.hippo import legs_dplr

from .recurrent import Flow, Layer, Memory, Part, RecurrentBackbone, RMSNorm, keeps_states, log_uniform

INITS = ("lin", "inv", "real", "legs")
METHODS = ("zoh", "bilinear")
BLOCK = 64  # powers of A_bar in a table, in `response`


def initial_A(init: str, d_state: int) -> tuple[np.ndarray, np.ndarray]:
    """(-Re A, Im A), (N / 2,) each: table 1 of the paper.

    lin: -1/2 + i pi n; inv: -1/2 + i (N / pi) (N / (2n + 1) - 1); real: -(n + 1); legs: the eigenvalues of HiPPO-LegS without its
    term of rank one, which the two imaginary parts before approximate.
    """
    n = np.arange(d_state // 2)
    if init == "real":
        return n + 1.0, np.zeros(len(n))
    if init == "legs":
        imag = np.imag(legs_dplr(d_state).Lambda)
    else:
        imag = math.pi * n if init == "lin" else d_state / math.pi * (d_state / (2 * n + 1) - 1)
    return np.full(len(n), 0.5), imag


class S4DLayer(Layer):
    """x + GLU(GELU(S4D(norm(x)))); it remembers the states (B, D, N / 2), complex."""

    undecayed = ("log_dt", "log_A_real", "A_imag")

    def __init__(
        self,
        d_model: int,
        d_state: int,
        init: str,
        method: str,
        dt_min: float,
        dt_max: float,
        convolution: bool | None,
        generator: torch.Generator | None = None,
    ):
        super().__init__()
        real, imag = (torch.from_numpy(x).float().repeat(d_model, 1) for x in initial_A(init, d_state))
        self.bilinear, self.convolution = method == "bilinear", convolution
        self.norm = RMSNorm(d_model)
        self.log_dt = nn.Parameter(log_uniform((d_model, 1), dt_min, dt_max, generator).log())
        self.log_A_real = nn.Parameter(real.log())
        self.A_imag: Tensor
        if init == "real":
            self.register_buffer("A_imag", imag)  # it stays real
        else:
            self.A_imag = nn.Parameter(imag)
        self.C = nn.Parameter(torch.randn(d_model, d_state // 2, 2, generator=generator) * math.sqrt(0.5))
        self.D = nn.Parameter(torch.randn(d_model, generator=generator))
        self.glu = nn.Linear(d_model, 2 * d_model)
        bound = 1 / math.sqrt(d_model)  # that of nn.Linear, from our generator
        for weight in (self.glu.weight, self.glu.bias):
            nn.init.uniform_(weight, -bound, bound, generator)

    def initial(self, batch_size: int) -> Memory:
        return (torch.view_as_complex(self.C.detach().new_zeros(batch_size, *self.C.shape)),)

    def forward(self, x: Tensor, memory: Memory, flow: Flow) -> tuple[Tensor, tuple[Part, ...]]:
        (first,) = memory
        u = self.norm(x)
        A, C = self.discretised()
        if self.convolves(u, flow):
            y, part = convolved(u, A, C, first), Part(first, run=lambda t: diagonal_ssm(u[:, :t], A, C, first)[1])
        else:
            y, part = self._run(u, A, C, first, flow)
        return x + F.glu(self.glu(F.gelu(y + self.D * u))), (part,)

    def discretised(self) -> tuple[Tensor, Tensor]:
        """A_bar and C B_bar, (D, N / 2).

        With gradients in float64, as that of B_bar by A is a difference of near numbers where the step is small.
        """
        dtype = torch.float64 if torch.is_grad_enabled() else self.C.dtype
        dt, real, imag = self.log_dt.to(dtype).exp(), -self.log_A_real.to(dtype).exp(), self.A_imag.to(dtype)
        A, C = torch.complex(real, imag), torch.view_as_complex(self.C)
        if self.bilinear:
            half = A * (dt / 2)
            A_bar, B_bar = (1 + half) / (1 - half), dt / (1 - half)
        else:
            moved = expm1(dt * real, dt * imag)
            A_bar, B_bar = moved + 1, moved / A
        return A_bar.to(C.dtype), C * B_bar.to(C.dtype)

    def convolves(self, u: Tensor, flow: Flow) -> bool:
        """Whether a call goes by FFT: where measured faster on a CPU (docs/backbones/s4d.md), and on other devices.

        The recurrence costs B T D N, and of the FFT's only the kernel's T D N depends on N: with a backward pass to come, it wins
        where a few sequences share the kernel. It leaves the last state to be worked out when asked for; without
        gradients that is what the next call begins from, and the recurrence gives it.
        """
        (B, T, _), N = u.shape, 2 * self.C.shape[1]
        if flow.parents is not None or flow.reset is not None or keeps_states(flow):
            return False
        if self.convolution is not None:
            return self.convolution
        return u.device.type != "cpu" or (u.requires_grad and B >= 4 and B * T >= 4096 and N >= 64)

    @staticmethod
    def _run(u: Tensor, A: Tensor, C: Tensor, first: Tensor, flow: Flow) -> tuple[Tensor, Part]:
        every = keeps_states(flow)
        y, after = diagonal_ssm(u, A, C, first, reset=flow.reset, parents=flow.parents, every=every)
        if every:
            return y, Part(first, states=after)

        def run(t: int) -> Tensor:
            return diagonal_ssm(u[:, :t], A, C, first, reset=None if flow.reset is None else flow.reset[:, :t])[1]

        return y, Part(first, last=after, run=run)


def expm1(real: Tensor, imag: Tensor) -> Tensor:
    """exp(real + i imag) - 1 where both are small too, twice as fast as torch's own of complex numbers."""
    grown, s, c = torch.expm1(real), torch.sin(imag / 2), torch.cos(imag / 2)
    twice = 2 * s * (grown + 1)
    return torch.complex(grown - twice * s, twice * c)


def convolved(u: Tensor, A: Tensor, C: Tensor, first: Tensor) -> Tensor:
    """y of `diagonal_ssm` by FFT: u * K, and what is left of the first state.

    :param u: (B, T, D)
    :param first: (B, D, N / 2) state before the first input
    """
    T = u.shape[1]
    size = 1 << (2 * T - 2).bit_length()  # no input reaches around the end
    K = response(A, C, torch.ones_like(A).unsqueeze(0), T).mT.contiguous()  # (1, D, T)
    y = torch.fft.irfft(torch.fft.rfft(u.mT, size) * torch.fft.rfft(K, size), size)[..., :T].mT
    if u.device.type == "cpu" and not torch.compiler.is_compiling() and not first.requires_grad and not first.any():
        return y  # the start of a sequence
    return y + response(A, C, A * first, T)


def response(A: Tensor, C: Tensor, x: Tensor, T: int) -> Tensor:
    """(B, T, D): 2 Re sum_n C A^t x, t = 0..T-1, for x (B, D, N / 2).

    A^t = A^l (A^BLOCK)^j by t = j BLOCK + l: a table of A^l C times one of (A^BLOCK)^j x, as products of real matrices, which
    costs neither T N complex powers nor room for them.
    """
    block = powers(A, BLOCK + 1)  # (BLOCK + 1, D, N / 2)
    jumps = powers(block[-1], -(-T // BLOCK)) * x.unsqueeze(1)  # (B, J, D, N / 2)
    table = torch.view_as_real((2 * C * block[:-1]).conj().resolve_conj()).flatten(-2)  # (BLOCK, D, N)
    return torch.einsum("ldn,bjdn->bjld", table, torch.view_as_real(jumps).flatten(-2)).flatten(1, 2)[:, :T]


def powers(A: Tensor, n: int) -> Tensor:
    """(n, ...): A^0 .. A^(n-1), by doubling."""
    table = torch.ones_like(A).unsqueeze(0)
    while len(table) < n:
        table = torch.cat((table, table * (A * table[-1])))
    return table[:n]


class S4D(RecurrentBackbone):
    """A stack of S4D blocks and a last norm.

    :param d_model: width D
    :param n_layers: blocks
    :param d_state: states N of a channel, even
    :param init: "lin", "inv", "real" or "legs", the first A (`initial_A`)
    :param method: of discretisation, "zoh" or "bilinear"
    :param dt_min: least step at first, in units where one step of time is the state's own; log-uniform up to dt_max
    :param dt_max: largest step at first
    :param convolution: whether to take plain sequences by FFT; None: where it is faster (see `S4DLayer.convolves`)
    :param generator: of the initial weights
    :raises ValueError: an unknown init or method, an odd N, or steps that are not 0 < dt_min <= dt_max
    """

    def __init__(
        self,
        d_model: int,
        n_layers: int,
        *,
        d_state: int = 64,
        init: str = "legs",
        method: str = "zoh",
        dt_min: float = 1e-3,
        dt_max: float = 1e-1,
        convolution: bool | None = None,
        generator: torch.Generator | None = None,
    ):
        if init not in INITS:
            raise ValueError(f"init must be one of {', '.join(INITS)}, got {init!r}")
        if method not in METHODS:
            raise ValueError(f"method must be one of {', '.join(METHODS)}, got {method!r}")
        if d_state < 2 or d_state % 2:
            raise ValueError(f"d_state must be even and at least 2, as states come with their conjugates, got {d_state}")
        if not 0 < dt_min <= dt_max:
            raise ValueError(f"dt_min and dt_max must be 0 < dt_min <= dt_max, got {dt_min} and {dt_max}")
        sizes = (d_state, init, method, dt_min, dt_max, convolution, generator)
        super().__init__(d_model, [S4DLayer(d_model, *sizes) for _ in range(n_layers)], RMSNorm(d_model))
