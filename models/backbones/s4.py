"""S4, a state-space model of diagonal-plus-low-rank form for each channel (Gu et al. 2022, arXiv 2111.00396).

    x'(s) = A x(s) + B u(s)    y(s) = C x(s) + D u(s)        A = Lambda - P P*, at first HiPPO-LegS

By the bilinear rule with steps of length dt, x_t = A_bar x_{t-1} + B_bar u_t and y_t = C x_t + D u_t. It runs in two ways:

- the recurrence (`dplr_scan`): by Woodbury A_bar too is diagonal plus rank one, so a step costs O(N);
- the convolution with K_l = C A_bar^l B_bar, l < L, from its generating function at the roots of unity w:

    sum_l K_l w^l = C~ (1 - A_bar w)^-1 B_bar,    C~ = C (1 - A_bar^L)

C~ is what is trained. The recurrence needs C itself, which the same resolvents give, since the mean of (1 - A_bar w)^-1 over
all w is (1 - A_bar^L)^-1. All of this and the states are in complex128, for float32 and bfloat16 models too.

The block is x <- x + GLU(GELU(S4(norm(x)))).

B batch   T new inputs   D model width   L length for which C~ is trained   F = L // 2 + 1 roots of unity
N state size, M = N / 2 of which are kept: one of each pair of conjugates
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from tdraft.kernels.dplr_scan import dplr_scan
from tdraft.models.hippo import legs_dplr

from .recurrent import KEPT, Flow, Layer, Memory, Part, RecurrentBackbone, RMSNorm, keeps_states, log_uniform

ROOM = 1 << 20  # complex numbers of the resolvents of so many channels as are worked on at a time


Steps = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]  # a, p, w, b, c of `dplr_scan`, (D, M) each


class Continuous(NamedTuple):
    """The parameters of D channels in double precision."""

    Lambda: Tensor  # (D, M)
    P: Tensor  # (D, M)
    B: Tensor  # (D, M)
    C: Tensor  # (D, M), C~
    dt: Tensor  # (D, 1) real


class Roots(NamedTuple):
    """What the resolvents at the roots of unity w = exp(-i phi), 0 <= phi <= pi, have in common.

    With the phase exp(i phi / 2) = cos + i sin taken out nothing is divided by 1 + w, which is 0 for even L at the last root:

        (1 - A_bar w)^-1 (1 - dt A / 2)^-1 = exp(i phi / 2) (2 i sin - cos dt A)^-1
    """

    phase: Tensor  # (F,) exp(i phi / 2)
    scale: Tensor  # (D, 1, F) real, cos dt
    inverse: Tensor  # (D, N, F) 1 / (2 i sin - cos dt Lambda)


def pairs(x: Tensor) -> Tensor:
    """(..., M) -> (..., N): the conjugates too."""
    return torch.cat((x, x.conj()), dim=-1)


def real_sum(x: Tensor) -> Tensor:
    """(..., M) -> (..., 1) real: the sum over all N."""
    return 2 * x.real.sum(-1, keepdim=True)


def at_roots(model: Continuous, L: int) -> Roots:
    j = torch.arange(L // 2 + 1, dtype=torch.float64, device=model.dt.device)
    sin, cos = torch.sin(j * (math.pi / L)), torch.sin((L - 2 * j) * (math.pi / (2 * L)))  # 0 exactly where 2j = L
    scale = (cos * model.dt).unsqueeze(1)
    return Roots(torch.complex(cos, sin), scale, 1 / (2j * sin - scale * pairs(model.Lambda).unsqueeze(-1)))


def discretised(model: Continuous) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """a, p, w, b (D, M) of `dplr_scan`: A_bar = diag(a) + p w^T, B_bar = b.

    Of (1 - dt A / 2)^-1 = R - R P P* R / (2 / dt + P* R P) with R = 1 / (1 - dt Lambda / 2), as A_bar is twice that, less 1.
    """
    Lambda, P, B, _, dt = model
    R = 1 / (1 - Lambda * (dt / 2))
    rank = R * P / (2 / dt + real_sum(P.conj() * R * P))
    w = P.conj() * R
    return 2 * R - 1, -2 * rank, w, dt * (R * B - rank * real_sum(w * B))


def untruncated(model: Continuous, L: int) -> Tensor:
    """C (D, M) from C~, the mean over all roots of C~ (1 - A_bar w)^-1 = C~ [...]^-1 (1 - dt A / 2)."""
    Lambda, P, _, C, dt = model
    phase, scale, inverse = at_roots(model, L)
    left, low = pairs(C), pairs(P.conj())
    sums = torch.stack((left * pairs(P), low * pairs(P)), dim=1) @ inverse  # (D, 2, F): C~ .. P and P* .. P
    once = torch.full_like(phase, 1.0)
    once[0] = 0.5  # each root stands for its conjugate too, except the real ones
    if L % 2 == 0:
        once[-1] = 0.5
    through = scale[:, 0] * sums[:, 0] / (1 + scale[:, 0] * sums[:, 1])
    row = left * (inverse @ (once * phase)) - low * (inverse @ (once * phase * through).unsqueeze(-1)).squeeze(-1)
    half = len(Lambda[0])
    row = (row[:, :half] + row[:, half:].conj()) / L
    return row - (dt / 2) * (Lambda * row - P.conj() * real_sum(row * P))


def responses(model: Continuous, first: Tensor | None, L: int) -> Tensor:
    """(D, 1 or 1 + B, L): the kernel K, and the outputs that the states `first` (D, B, M) lead to by themselves.

    Those are C A_bar^l (A_bar x), the same function with A_bar x in the place of B_bar.
    """
    Lambda, P, B, C, dt = model
    starts = (dt * B).unsqueeze(1)
    if first is not None:
        P_ = P.unsqueeze(1)
        moved = Lambda.unsqueeze(1) * first - P_ * real_sum(P_.conj() * first)
        starts = torch.cat((starts, first + (dt / 2).unsqueeze(1) * moved), dim=1)
    phase, scale, inverse = at_roots(model, L)
    right = pairs(torch.cat((P.unsqueeze(1), starts), dim=1))  # (D, 2 or 2 + B, N)
    through, low = ((pairs(left).unsqueeze(1) * right) @ inverse for left in (C, P.conj()))  # C~ .. and P* .., (D, ., F)
    spectrum = through[:, 1:] - scale * through[:, :1] * low[:, 1:] / (1 + scale * low[:, :1])
    return torch.fft.irfft(phase * spectrum, L)


def transition(a: Tensor, p: Tensor, w: Tensor) -> Tensor:
    """(D, N, N) A_bar as it acts on (Re x, Im x)."""
    real, imag = a.real.diag_embed(), a.imag.diag_embed()
    diagonal = torch.cat((torch.cat((real, -imag), dim=2), torch.cat((imag, real), dim=2)), dim=1)
    return diagonal + torch.cat((p.real, p.imag), 1).unsqueeze(2) * torch.cat((w.real, -w.imag), 1).unsqueeze(1) * 2


def truncated(model: Continuous, L: int) -> Tensor:
    """C~ (D, M) = C (1 - A_bar^L), where `model` holds C."""
    power = torch.linalg.matrix_power(transition(*discretised(model)[:3]), L)
    row = torch.cat((model.C.real, -model.C.imag), 1).unsqueeze(1)
    row = (row - row @ power).squeeze(1)
    real, imag = row.chunk(2, dim=1)
    return torch.complex(real, -imag)


def by_channels(function: Callable[..., Tensor], L: int, *tensors: Tensor) -> Tensor:
    """A function of channels (D, ...), of so many at a time that their resolvents fit into a cache; backward makes them anew."""
    D, M = tensors[0].shape
    n = max(ROOM // (M * L), 1)
    if n >= D:
        return function(*tensors)
    pieces = [[x[i : i + n] for x in tensors] for i in range(0, D, n)]
    return torch.cat([checkpoint(function, *x, use_reentrant=False, preserve_rng_state=False) for x in pieces])  # pyright: ignore


class S4Layer(Layer):
    """x + GLU(GELU(S4(norm(x)))); it remembers the states (B, D, M), complex128."""

    undecayed = ("log_step", "log_Lambda_real", "Lambda_imag", "P", "B")

    def __init__(
        self,
        d_model: int,
        d_state: int,
        length: int,
        dt_min: float,
        dt_max: float,
        convolution: bool | None,
        generator: torch.Generator | None = None,
    ):
        super().__init__()
        self.length, self.convolution = length, convolution
        legs = legs_dplr(d_state)
        Lambda, P, B = (torch.from_numpy(x).repeat(d_model, 1) for x in (legs.Lambda, legs.P, legs.B))
        self.norm = RMSNorm(d_model)
        self.log_step = nn.Parameter(log_uniform((d_model, 1), dt_min, dt_max, generator).log())
        self.log_Lambda_real = nn.Parameter((-Lambda.real).log().float())
        self.Lambda_imag = nn.Parameter(Lambda.imag.float())
        self.P, self.B = (nn.Parameter(torch.view_as_real(x).float()) for x in (P, B))
        self.C = nn.Parameter(torch.randn(d_model, d_state // 2, 2, generator=generator) * math.sqrt(0.5))
        self.D = nn.Parameter(torch.randn(d_model, generator=generator))
        self.glu = nn.Linear(d_model, 2 * d_model)
        bound = 1 / math.sqrt(d_model)  # that of nn.Linear, from our generator
        for weight in (self.glu.weight, self.glu.bias):
            nn.init.uniform_(weight, -bound, bound, generator)
        with torch.no_grad():
            self.C.copy_(torch.view_as_real(truncated(self.continuous(), length)))  # drawn as C, kept as C~
        self._kept: tuple[list[Tensor], list[int], Steps] | None = None

    def initial(self, batch_size: int) -> Memory:
        D, M, _ = self.C.shape
        return (torch.zeros(batch_size, D, M, dtype=torch.complex128, device=self.C.device),)

    def forward(self, x: Tensor, memory: Memory, flow: Flow) -> tuple[Tensor, tuple[Part, ...]]:
        (first,) = memory
        u = self.norm(x)
        y, part = self._convolve(u, first) if self.convolves(flow) else self._scan(u, first, flow)
        return x + F.glu(self.glu(F.gelu(y + self.D * u))), (part,)

    def continuous(self) -> Continuous:
        Lambda = torch.complex(-self.log_Lambda_real.double().exp(), self.Lambda_imag.double())
        P, B, C = (torch.view_as_complex(x.double()) for x in (self.P, self.B, self.C))
        return Continuous(Lambda, P, B, C, self.log_step.double().exp())

    def convolves(self, flow: Flow) -> bool:
        """Whether a call goes by FFT, which a plain sequence of at most L inputs can.

        By default it does if it is long and gradients are wanted: then the recurrence has to work out C, and its gradient, which
        costs what the kernel K does. Without gradients C is kept, and the recurrence costs less than K does.
        """
        if flow.reset is not None or flow.parents is not None or keeps_states(flow) or flow.length > self.length:
            return False
        if self.convolution is None:
            return flow.length > KEPT and torch.is_grad_enabled()
        return self.convolution

    def _scan(self, u: Tensor, first: Tensor, flow: Flow) -> tuple[Tensor, Part]:
        steps, every = self.steps(), keeps_states(flow)
        y, after = dplr_scan(u, *steps, first, reset=flow.reset, parents=flow.parents, every=every)
        if every:
            return y, Part(first, states=after)

        def run(t: int) -> Tensor:
            return dplr_scan(u[:, :t], *steps, first, reset=None if flow.reset is None else flow.reset[:, :t])[1]

        return y, Part(first, last=after, run=run)

    def _convolve(self, u: Tensor, first: Tensor) -> tuple[Tensor, Part]:
        """y by FFT. The last state is worked out by the recurrence, if it is ever asked for."""
        T, model = u.shape[1], self.continuous()
        begins = u.device.type == "cpu" and not torch.compiler.is_compiling() and not first.requires_grad and not first.any()
        given = model if begins else (*model, first.transpose(0, 1))

        def respond(*given: Tensor) -> Tensor:
            return responses(Continuous._make(given[:5]), given[5] if given[5:] else None, self.length)

        found = by_channels(respond, self.length, *given)[..., :T]
        wide = torch.float64 if u.dtype == torch.float64 else torch.float32
        size = 1 << (2 * T - 2).bit_length()  # no input reaches around the end
        K, signal = found[:, 0].to(wide), u.to(wide).mT
        y = torch.fft.irfft(torch.fft.rfft(signal, size) * torch.fft.rfft(K, size), size)[..., :T]
        if not begins:
            y = y + found[:, 1:].transpose(0, 1).to(wide)
        a, p, w, b = discretised(model)
        return y.mT.to(u.dtype), Part(first, run=lambda t: dplr_scan(u[:, :t], a, p, w, b, b, first)[1])

    def steps(self) -> Steps:
        """a, p, w, b, c of `dplr_scan`; without gradients they are kept until a parameter changes."""
        parameters = [self.log_step, self.log_Lambda_real, self.Lambda_imag, self.P, self.B, self.C]
        if torch.is_grad_enabled() or torch.compiler.is_compiling() or any(x.is_inference() for x in parameters):
            return self._steps()
        versions = [x._version for x in parameters]
        if self._kept is not None:
            aliases, old, steps = self._kept
            if old == versions and all(x.data_ptr() == y.data_ptr() and x.dtype == y.dtype for x, y in zip(parameters, aliases)):
                return steps
        steps = self._steps()
        self._kept = [x.detach() for x in parameters], versions, steps  # the aliases keep the addresses from being used again
        return steps

    def _steps(self) -> Steps:
        model = self.continuous()
        C = by_channels(lambda *given: untruncated(Continuous._make(given), self.length), self.length, *model)
        return *discretised(model), C


class S4(RecurrentBackbone):
    """A stack of S4 blocks and a last norm.

    :param d_model: width D
    :param n_layers: blocks
    :param d_state: states N of a channel, even
    :param length: L, the longest sequence that convolution takes; longer ones go by the recurrence, and both are exact
    :param dt_min: least step at first, in units where one step of time is the state's own; log-uniform up to dt_max
    :param dt_max: largest step at first
    :param convolution: whether to take plain sequences of up to L inputs by FFT; None: where it is faster (`S4Layer.convolves`)
    :param generator: of the initial weights
    :raises ValueError: an odd N, L < 1, or steps that are not 0 < dt_min <= dt_max
    """

    def __init__(
        self,
        d_model: int,
        n_layers: int,
        *,
        d_state: int = 64,
        length: int = 1024,
        dt_min: float = 1e-3,
        dt_max: float = 1e-1,
        convolution: bool | None = None,
        generator: torch.Generator | None = None,
    ):
        if d_state < 2 or d_state % 2:
            raise ValueError(f"d_state must be even and at least 2, as states come with their conjugates, got {d_state}")
        if length < 1:
            raise ValueError(f"length must be at least 1, got {length}")
        if not 0 < dt_min <= dt_max:
            raise ValueError(f"dt_min and dt_max must be 0 < dt_min <= dt_max, got {dt_min} and {dt_max}")
        sizes = (d_state, length, dt_min, dt_max, convolution, generator)
        super().__init__(d_model, [S4Layer(d_model, *sizes) for _ in range(n_layers)], RMSNorm(d_model))
