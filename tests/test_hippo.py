"""HiPPO: the matrices are those of the integrals they stand for, and the memories come to the least-squares floor."""

import json

import numpy as np
import pytest

from tdraft.models import hippo
from tdraft.models.hippo import (
    band_limited_noise,
    basis,
    compress,
    compress_legs,
    discretise,
    lagt,
    least_squares,
    legs,
    legs_dplr,
    legt,
    lmu,
)

MEASURES = {"legs": legs, "legt": legt, "lmu": lmu, "lagt": lagt}


def test_the_first_matrices_by_hand():
    three, five = np.sqrt(3), np.sqrt(5)
    A, B = legs(3)
    np.testing.assert_allclose(A, [[-1, 0, 0], [-three, -2, 0], [-five, -three * five, -3]], rtol=1e-15)
    np.testing.assert_allclose(B, [1, three, five], rtol=1e-15)
    A, B = legt(3)
    np.testing.assert_allclose(A, [[-1, three, -five], [-three, -3, three * five], [-five, -three * five, -5]], rtol=1e-15)
    np.testing.assert_allclose(B, [1, three, five], rtol=1e-15)
    A, B = lmu(3)
    np.testing.assert_array_equal(A, [[-1, -1, -1], [3, -3, -3], [-5, 5, -5]])
    np.testing.assert_array_equal(B, [1, -3, 5])
    A, B = lagt(3)
    np.testing.assert_array_equal(A, [[-0.5, 0, 0], [-1, -0.5, 0], [-1, -1, -0.5]])
    np.testing.assert_array_equal(B, [1, 1, 1])


@pytest.mark.parametrize("N", [2, 8, 64])
def test_legs_is_diagonal_plus_low_rank(N):
    A, B = legs(N)
    dplr = legs_dplr(N)
    assert np.all(np.abs(dplr.Lambda.real + 0.5) < 1e-15) and np.all(np.diff(dplr.Lambda.imag) > 0) and dplr.Lambda.imag[0] > 0
    V, P, Lambda = (np.concatenate((x, x.conj()), axis=-1) for x in (dplr.V, dplr.P, dplr.Lambda))
    np.testing.assert_allclose(V @ (np.diag(Lambda) - np.outer(P, P.conj())) @ V.conj().T, A, atol=1e-12 * N**2, rtol=0)
    np.testing.assert_allclose(2 * (dplr.V @ dplr.B).real, B, rtol=1e-11)
    np.testing.assert_allclose(dplr.B, np.sqrt(2) * dplr.P, rtol=1e-10)
    assert np.all(dplr.P.real > 0) and np.all(np.abs(dplr.P.imag) < 1e-12)


def projection(measure: str, N: int, T: int, f: np.ndarray, window: int) -> np.ndarray:
    """The coefficients as integrals of the signal times the basis; both are sampled in the middle of the steps."""
    if measure == "lagt":
        return basis("lagt", N, (T - np.arange(T) - 0.5) / window).T @ f / window
    functions = basis(measure, N, (np.arange(window) + 0.5) / window)
    return np.linalg.solve(functions.T @ functions, functions.T @ f[T - window :])


@pytest.mark.parametrize("measure", MEASURES)
def test_coefficients_are_the_integrals(measure):
    """In the limit of small steps, by second order: four times as many steps, sixteen times less error.

    LegT and LMU replace what leaves their window by their own reconstruction of it, which is right for polynomials of degree < N.
    """
    N, off = 5, []
    for T in (256, 1024):
        s = (np.arange(2 * T) + 0.5) / T
        f = 0.3 + s - 0.7 * s**2 + 0.2 * s**3 if measure != "lagt" else np.sin(3 * s) * np.exp(-s)
        if measure == "legs":
            c, right = compress_legs(f, N)[-1], projection("legs", N, 2 * T, f, 2 * T)
        elif measure == "lagt":
            c, right = compress(f, *lagt(N), window=T / 4)[-1], projection("lagt", N, 2 * T, f, T // 4)
        else:  # after ten windows of the same polynomial nothing is left of the zeros at the start
            s = (np.arange(12 * T) + 0.5) / T - 10
            f = 0.3 + s - 0.7 * s**2 + 0.2 * s**3
            c, right = compress(f, *MEASURES[measure](N), window=T)[-1], projection(measure, N, 12 * T, f, T)
        off.append(np.abs(c - right).max())
    assert off[0] < 2e-3 and 12 < off[0] / off[1] < 20


def test_lmu_is_legt_in_other_coordinates():
    f = band_limited_noise(512, 5, seed=0)
    x = np.linspace(0, 1, 50)
    for method in hippo.METHODS:
        one, other = (basis(m, 12, x) @ compress(f, *MEASURES[m](12), window=128, method=method)[-1] for m in ("legt", "lmu"))
        np.testing.assert_allclose(one, other, atol=1e-12, rtol=0)


def test_legs_does_not_know_how_fast_time_goes():
    """Each input given three times: the same picture of a signal three times as long, up to the errors of the steps."""
    f = band_limited_noise(2048, 3, seed=0)
    c, slow = compress_legs(f, 16)[-1], compress_legs(np.repeat(f, 3), 16)[-1]
    np.testing.assert_allclose(slow, c, atol=1e-4, rtol=0)


def test_the_fast_loop_is_the_recurrence():
    f = np.random.default_rng(0).normal(size=40)
    A, B = legs(9)
    for midpoint in (True, False):
        c, found = np.zeros(9), compress_legs(f, 9, midpoint)
        for k in range(1, 41):
            t = k - 0.5 if midpoint else k
            c = np.linalg.solve(np.eye(9) - A / (2 * t), (np.eye(9) + A / (2 * t)) @ c + B / t * f[k - 1])
            np.testing.assert_allclose(found[k - 1], c, rtol=0, atol=1e-13)


@pytest.mark.parametrize("method", hippo.METHODS)
def test_a_discrete_step_is_the_equation(method):
    A, B = legt(6)
    A_d, B_d = discretise(A, B, 1e-3, method)
    np.testing.assert_allclose((A_d - np.eye(6)) / 1e-3, A, atol=0.2, rtol=0)
    steady = np.linalg.solve(np.eye(6) - A_d, B_d)  # under a constant input 1
    np.testing.assert_allclose(A @ steady + B, 0, atol=1e-11)
    if method == "zoh":  # two half steps are one
        half, into = discretise(A, B, 5e-4, method)
        np.testing.assert_allclose(half @ half, A_d, atol=1e-14)
        np.testing.assert_allclose(half @ into + into, B_d, atol=1e-14)


@pytest.mark.parametrize("N", [16, 32])
@pytest.mark.parametrize("seed", range(5))
def test_legs_comes_within_two_per_cent_of_the_floor(N, seed):
    f = band_limited_noise(4096, 10, seed)
    functions = basis("legs", N, (np.arange(4096) + 0.5) / 4096)
    floor = np.mean((least_squares(f, functions) - f) ** 2)
    mse = np.mean((functions @ compress_legs(f, N)[-1] - f) ** 2)
    window = np.mean((functions @ compress(f, *legt(N), window=4096)[-1] - f) ** 2)
    assert floor <= mse <= 1.02 * floor < window


def test_noise_is_what_it_says():
    f = band_limited_noise(1000, 7, seed=3, variance=2.0)
    spectrum = np.abs(np.fft.rfft(f))
    assert np.isclose(f.var(), 2.0) and np.all(spectrum[1:8] > 1e-3) and np.all(np.delete(spectrum, range(1, 8)) < 1e-9)


def test_bench_rows_and_figure(tmp_path):
    from tdraft.scripts.bench_hippo import HippoBench
    from tdraft.scripts.bench_hippo import hippo as bench

    rows, figure = tmp_path / "rows.json", tmp_path / "hippo.png"
    bench(HippoBench(signals=2, length=256, cycles=10, json=rows, out=figure))
    table = {row["name"]: row for row in json.loads(rows.read_text())["rows"]}
    assert len(table) == 12 and all(row["runs"] == 2 and row["value"] >= 0 for row in table.values())
    assert table["HiPPO, N = 16, LegT"]["ratio"] > table["HiPPO, N = 16, LegS"]["ratio"] >= 1
    assert figure.stat().st_size > 10_000


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: legs(0), "N must be at least 1, got 0"),
        (lambda: legs_dplr(5), "N must be even and at least 2, got 5"),
        (lambda: compress_legs(np.zeros((2, 3)), 4), r"f must be a signal \(T,\) with T >= 1, got \(2, 3\)"),
        (lambda: compress(np.zeros(3), *legt(4), window=0), "window must be positive, got 0"),
        (lambda: compress(np.zeros(3), *legt(4), window=2, method="euler"), "method must be one of bilinear, zoh, got 'euler'"),
        (lambda: basis("fourier", 4, np.zeros(2)), "measure must be one of legs, legt, lmu, lagt, got 'fourier'"),
    ],
)
def test_what_cannot_be_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
