"""HiPPO: the past of a signal as coefficients of orthogonal polynomials, kept up to date by a linear recurrence.

    c'(t) = A c(t) + B f(t)

| measure | looks at                      | basis at x, 0 the oldest, 1 the newest       |
|---------|-------------------------------|----------------------------------------------|
| LegS    | all of the past, equally      | sqrt(2n+1) P_n(2x - 1)                       |
| LegT    | a sliding window, equally     | sqrt(2n+1) P_n(2x - 1)                       |
| LMU     | the same in other coordinates | P_n(1 - 2x)                                  |
| LagT    | all of the past, fading       | exp(-s/2) L_n(s), s the age over the window  |

LegS (Gu et al. 2020, arXiv 2008.07669) stretches as time goes on, c' = (A c + B f) / t; the others do not change with
time, and are in units of a window. LMU: Voelker et al. 2019. Everything is float64.

N coefficients   T inputs   M = N/2 pairs of conjugates
"""

from typing import NamedTuple

import numpy as np
import torch
from numba import njit
from numpy.polynomial import laguerre, legendre

METHODS = ("bilinear", "zoh")


def legs(N: int) -> tuple[np.ndarray, np.ndarray]:
    """A (N, N), B (N,) of scaled Legendre: A_nk = -sqrt((2n+1)(2k+1)) below the diagonal, -(n+1) on it, 0 above."""
    root = np.sqrt(2.0 * np.arange(_checked(N)) + 1)
    return -np.tril(np.outer(root, root), -1) - np.diag(np.arange(N) + 1.0), root


def legt(N: int) -> tuple[np.ndarray, np.ndarray]:
    """A (N, N), B (N,) of translated Legendre on a window of length 1.

    A_nk = -sqrt((2n+1)(2k+1)), above the diagonal times (-1)^(n-k); B_n = sqrt(2n+1).
    """
    n = np.arange(_checked(N))
    root, sign = np.sqrt(2.0 * n + 1), (-1.0) ** (n[:, None] - n)
    return -np.outer(root, root) * np.where(n[:, None] < n, sign, 1.0), root


def lmu(N: int) -> tuple[np.ndarray, np.ndarray]:
    """A (N, N), B (N,) of the Legendre memory unit on a window of length 1.

    A_nk = (2n+1) times -1 above the diagonal, else (-1)^(n-k+1); B_n = (-1)^n (2n+1).
    """
    n = np.arange(_checked(N))
    sign = (-1.0) ** (n[:, None] - n + 1)
    return (2.0 * n[:, None] + 1) * np.where(n[:, None] < n, -1.0, sign), (-1.0) ** n * (2 * n + 1)


def lagt(N: int) -> tuple[np.ndarray, np.ndarray]:
    """A (N, N), B (N,) of translated Laguerre: A = -1/2 on the diagonal, -1 below it; B = 1."""
    return np.eye(_checked(N)) / 2 - np.tril(np.ones((N, N))), np.ones(N)


class Dplr(NamedTuple):
    """LegS where it is diagonal less a rank of one, A = V (diag(Lambda) - P P*) V*, as one of each pair of conjugates.

    A real vector is c = 2 Re(V x), LegS's own B is 2 Re(V B); P* x over all pairs is 2 Re(sum conj(P) x).
    """

    Lambda: np.ndarray  # (M,) complex, Re = -1/2, Im > 0 and rising
    P: np.ndarray  # (M,) complex; the phases of V are such that it is real and positive
    B: np.ndarray  # (M,) complex; sqrt(2) P
    V: np.ndarray  # (N, M) complex, orthonormal columns


def legs_dplr(N: int) -> Dplr:
    """LegS as diagonal plus low rank (S4, Gu et al. 2022, arXiv 2111.00396). Without P it is S4D-LegS (arXiv 2206.11893).

    A + P P^T with P_n = sqrt(n + 1/2) is -1/2 plus a skew matrix, hence normal.

    :param N: coefficients, even
    :raises ValueError: N is odd or less than 2
    """
    if N < 2 or N % 2:
        raise ValueError(f"N must be even and at least 2, got {N}: the eigenvalues come as pairs of conjugates")
    A, B = legs(N)
    P = np.sqrt(np.arange(N) + 0.5)
    skew = A + np.outer(P, P) + np.eye(N) / 2
    imag, V = np.linalg.eigh(-1j * skew)
    imag, V = imag[N // 2 :], V[:, N // 2 :]  # ascending: the second half is positive
    phase = V.conj().T @ P
    V = V * (phase / np.abs(phase))
    return Dplr(-0.5 + 1j * imag, V.conj().T @ P, V.conj().T @ B, V)


def discretise(A: np.ndarray, B: np.ndarray, step: float, method: str = "bilinear") -> tuple[np.ndarray, np.ndarray]:
    """The recurrence c_k = A_d c_{k-1} + B_d f_k of c' = A c + B f.

    bilinear: A_d = (1 - dA/2)^-1 (1 + dA/2), B_d = (1 - dA/2)^-1 dB; zoh, exact where f is constant during a step:
    A_d = exp(dA), B_d = A^-1 (exp(dA) - 1) B, here without the inverse, from exp of the block matrix [[dA, dB], [0, 0]].

    :param step: d, in units of the equation's time
    :return: (N, N), (N,)
    :raises ValueError: a method that is neither
    """
    N = len(A)
    if method == "bilinear":
        left = np.eye(N) - step / 2 * A
        return np.linalg.solve(left, np.eye(N) + step / 2 * A), np.linalg.solve(left, step * B)
    if method == "zoh":
        block = np.zeros((N + 1, N + 1))
        block[:N, :N], block[:N, N] = step * A, step * B
        power = torch.linalg.matrix_exp(torch.from_numpy(block)).numpy()
        return power[:N, :N], power[:N, N]
    raise ValueError(f"method must be one of {', '.join(METHODS)}, got {method!r}")


def compress_legs(f: np.ndarray, N: int, midpoint: bool = True) -> np.ndarray:
    """LegS of all that came before, after each input, by the bilinear rule with step 1 at time t = k - 1/2, k from 1:

        c_k = (1 - A/2t)^-1 [(1 + A/2t) c_{k-1} + (B/t) f_k]

    The paper's recurrence takes t = k, the end of the step. It is of first order in 1/T only and ends visibly above the
    least-squares floor where that is low; the middle of the step makes it second order. O(N) a step, since A is lower triangular
    and of rank one below its diagonal.

    :param f: (T,) a signal
    :param midpoint: False for t = k
    :return: (T, N)
    """
    f = _signal(f)
    c = np.empty((len(f), _checked(N)))
    _legs_loop(f, np.sqrt(2.0 * np.arange(N) + 1), 0.5 if midpoint else 0.0, c)
    return c


@njit(nogil=True)
def _legs_loop(f, root, early, c):
    T, N = c.shape
    for k in range(T):
        h = 0.5 / (k + 1 - early)
        below = solved = 0.0  # sum over j < n of root_j c_j, of the old coefficients and of the new
        for n in range(N):
            old = c[k - 1, n] if k else 0.0
            right = old * (1.0 - h * (n + 1)) - h * root[n] * below + 2.0 * h * root[n] * f[k]
            new = (right - h * root[n] * solved) / (1.0 + h * (n + 1))
            below += root[n] * old
            solved += root[n] * new
            c[k, n] = new


def compress(f: np.ndarray, A: np.ndarray, B: np.ndarray, window: float, method: str = "bilinear") -> np.ndarray:
    """The coefficients of LegT, LMU or LagT after each input; before the first one all was 0.

    :param f: (T,) a signal
    :param A: (N, N) and B (N,) of the measure
    :param window: inputs that a window of length 1 spans (LagT: the age at which a basis function has faded to exp(-1/2))
    :return: (T, N)
    :raises ValueError: a window that is not positive
    """
    if not window > 0:
        raise ValueError(f"window must be positive, got {window}")
    f = _signal(f)
    A_d, B_d = discretise(A, B, 1.0 / window, method)
    states = np.empty((len(f), len(B)))
    c = np.zeros(len(B))
    for k, drive in enumerate(f[:, None] * B_d):
        c = A_d @ c + drive
        states[k] = c
    return states


def basis(measure: str, N: int, x: np.ndarray) -> np.ndarray:
    """(S, N) basis functions of "legs", "legt", "lmu" or "lagt" at places x (S,), so that the signal there is basis @ c.

    :param x: 0 the oldest place that is remembered, 1 the newest; for "lagt" 1 is a window before now and 0 now: an age
    """
    n = np.arange(_checked(N))
    if measure in ("legs", "legt"):
        return legendre.legvander(2 * x - 1, N - 1) * np.sqrt(2 * n + 1)
    if measure == "lmu":
        return legendre.legvander(1 - 2 * x, N - 1)
    if measure == "lagt":
        return laguerre.lagvander(x, N - 1) * np.exp(-x / 2)[:, None]
    raise ValueError(f"measure must be one of legs, legt, lmu, lagt, got {measure!r}")


def least_squares(f: np.ndarray, functions: np.ndarray) -> np.ndarray:
    """(T,) the combination of the columns of `functions` (T, N) that is nearest to f (T,): no reconstruction is nearer."""
    return functions @ np.linalg.lstsq(functions, f, rcond=None)[0]


def band_limited_noise(T: int, cycles: int, seed: int, variance: float = 0.25) -> np.ndarray:
    """(T,) Gaussian noise of frequencies 1..cycles per T inputs, scaled to have exactly this variance."""
    rng = np.random.default_rng(seed)
    spectrum = np.zeros(T // 2 + 1, complex)
    spectrum[1 : cycles + 1] = rng.standard_normal(cycles) + 1j * rng.standard_normal(cycles)
    f = np.fft.irfft(spectrum, T)
    return f * np.sqrt(variance / f.var())


def _signal(f: np.ndarray) -> np.ndarray:
    f = np.asarray(f, np.float64)
    if f.ndim != 1 or not len(f):
        raise ValueError(f"f must be a signal (T,) with T >= 1, got {f.shape}")
    return f


def _checked(N: int) -> int:
    if N < 1:
        raise ValueError(f"N must be at least 1, got {N}")
    return N
