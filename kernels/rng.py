"""Random numbers for compiled loops: xoshiro256++ (Blackman & Vigna 2021) and position-keyed noise (SplitMix64).

An inlined xoshiro is about three times faster inside a Numba loop than np.random. Every function takes its generator as an
argument: an array from `seed_state`, or a NumPy Generator, which Numba takes bit for bit. With NUMBA_DISABLE_JIT=1 the same
functions run as plain Python and draw the same numbers.
"""

import numpy as np
from numba import config, njit, types
from numba.extending import overload

_INVERSE_2_53 = 1.0 / 9007199254740992.0


def seed_state(seed: int | np.random.SeedSequence) -> np.ndarray:
    """State of a xoshiro256++ generator.

    :param seed: a non-negative integer or a SeedSequence
    :return: (4,) uint64, changed in place by each draw
    """
    sequence = seed if isinstance(seed, np.random.SeedSequence) else np.random.SeedSequence(seed)
    return sequence.generate_state(4, np.uint64)


def _wrapping(function):
    """Integers wrap around in both worlds; where Numba does not compile, NumPy's scalars would warn of it."""
    return np.errstate(over="ignore")(function) if config.DISABLE_JIT else function  # pyright: ignore[reportAttributeAccessIssue]


@njit(inline="always")
def _rotate_left(x, k):
    return (x << np.uint64(k)) | (x >> np.uint64(64 - k))


@_wrapping
@njit(inline="always")
def _next(state):
    """The next 64 bits of xoshiro256++; `state` (4,) uint64 advances in place."""
    s0, s1, s2, s3 = state[0], state[1], state[2], state[3]
    result = _rotate_left(s0 + s3, 23) + s0
    t = s1 << np.uint64(17)
    s2 ^= s0
    s3 ^= s1
    s1 ^= s2
    s0 ^= s3
    s2 ^= t
    s3 = _rotate_left(s3, 45)
    state[0], state[1], state[2], state[3] = s0, s1, s2, s3
    return result


def _draw(rng):
    return (_next(rng) >> np.uint64(11)) * _INVERSE_2_53 if isinstance(rng, np.ndarray) else rng.random()


@overload(_draw, inline="always")
def _draw_overload(rng):
    if isinstance(rng, types.Array):
        return lambda rng: (_next(rng) >> np.uint64(11)) * _INVERSE_2_53
    return lambda rng: rng.random()


@njit(inline="always")
def uniform(rng):
    """A float64 uniform in [0, 1).

    :param rng: state from `seed_state`, or a NumPy Generator
    """
    return _draw(rng)


@njit(inline="always")
def randint(rng, n):
    """An integer uniform in 0..n-1, for n far below 2**53."""
    return int(uniform(rng) * n)


@njit(inline="always")
def _mix(z):
    """SplitMix64's output function (Steele, Lea & Flood 2014)."""
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


@_wrapping
@njit
def keyed_uniform(key, position):
    """Uniform in [0, 1) that depends on (key, position) alone: the noise of a text position, whoever asks for it and when.

    :param key: seed of the text, an integer
    :param position: index of the token in the text
    """
    z = _mix(np.uint64(key) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(0x632BE59BD9B4E019))
    z = _mix(z + (np.uint64(position) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15))
    return (z >> np.uint64(11)) * _INVERSE_2_53
