"""Two ways to compile, Numba's `njit`, and `lean`, without reference counts and always inlined; `Box` and `entry`, for calls from
Python.

A compiled function counts references to every array that it is given, also to each of those inside a tuple. Where parameters
are tuples of twenty arrays and a step takes 50 ns, that is nine tenths of the time. `lean` leaves the counting out: such a
function may read and write arrays, but neither make nor return one that was not passed to it by itself.

It lets other threads run, so that several agents train at once in one process. It divides as NumPy does: a floating-point
division by zero gives inf or NaN and no exception, the mere possibility of which made a loop over such tuples four times slower.

LLVM does the inlining. Numba's own `inline="always"` copies a function into its caller before types are known, and 0.68 gets it
wrong for functions with `while` or `break`: the caller reads stale variables. Use it for straight-line code only.
"""

from typing import Any

from numba import njit, typeof, types
from numba.experimental import structref

lean: Any = njit(_nrt=False, forceinline=True, error_model="numpy", nogil=True)  # pyright: ignore[reportCallIssue]


@structref.register
class _BoxType(types.StructRef):
    """Numba's type of a `Box`: one for each type of value."""


class Box(structref.StructRefProxy):
    """A value for compiled functions to keep between calls: they take `box` and read `box.value`.

    Numba takes a tuple apart anew at each call from Python, 2 us for twenty arrays; a box is one pointer. It holds the arrays
    themselves, no copies: a change in place is seen on both sides, and whoever makes a new array makes a new box. `value` is not
    to be assigned. A deep copy or a pickle is of the value, shared as ever with whatever else is copied in the same call.

        @njit
        def step(box, action):
            params, rng = box.value
            ...

        step(Box((params, rng)), 1)
    """

    __slots__ = ("value",)

    def __new__(cls, value: Any):
        box = super().__new__(cls, value)
        box.value = value
        return box

    def __reduce__(self):
        return Box, (self.value,)


structref.define_proxy(Box, _BoxType, ["value"])

_ENTRIES: dict[tuple, Any] = {}


def entry(function: Any, *args: Any) -> Any:
    """A compiled function for arguments of just these types, which it does not look at again: with cold caches a call takes 5 us
    where Numba's dispatcher takes 12. Boxes, numbers and tuples of numbers only; a box of another type would be read as if it
    had this one.
    """
    key = function, *(id(arg._numba_type_) if isinstance(arg, Box) else type(arg) for arg in args)
    if key not in _ENTRIES:
        found = tuple(typeof(arg) for arg in args)
        _ENTRIES[key] = function.compile(found), found  # the types stay, so that no other gets the id
    return _ENTRIES[key][0]
