"""The two ways to compile: Numba's `njit`, and `lean`, without reference counts and always inlined.

A compiled function counts references to every array that it is given, also to each of those inside a tuple. Where parameters
are tuples of twenty arrays and a step takes 50 ns, that is nine tenths of the time. `lean` leaves the counting out: such a
function may read and write arrays, but neither make nor return one that was not passed to it by itself.

LLVM does the inlining. Numba's own `inline="always"` copies a function into its caller before types are known, and 0.68 gets it
wrong for functions with `while` or `break`: the caller reads stale variables. Use it for straight-line code only.
"""

from typing import Any

from numba import njit

lean: Any = njit(_nrt=False, forceinline=True)  # pyright: ignore[reportCallIssue]
