"""What the two WKV operations share: the backend that runs, the checks, and how tensors reach a compiled kernel.

B batch   T inputs
"""

import warnings
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

CHUNK = 32  # inputs between the states that a forward pass keeps for its backward pass

NO_RESET = np.empty((0, 0), np.bool_)
NO_PARENTS = np.empty(0, np.int64)


def compute_dtype(x: Tensor) -> torch.dtype:
    """float64 for float64, else float32: states and arithmetic of half precision are in single."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def choose_backend(op: str, x: Tensor, backend: str | None) -> str:
    """The backend to run: the one asked for, else "cuda" on a GPU, "numba" on a CPU, "reference" for a dtype they don't know."""
    if backend not in (None, "reference", "numba", "cuda"):
        raise ValueError(f'backend must be None, "reference", "numba" or "cuda", got {backend!r}')
    if backend == "reference":
        return backend
    fitting = "cuda" if x.is_cuda else "numba"
    if backend not in (None, fitting):
        raise ValueError(f'backend "{backend}" cannot run on tensors of device {x.device}; use "{fitting}" or move them')
    if x.dtype not in (torch.float32, torch.float64, torch.bfloat16) or x.device.type not in ("cpu", "cuda"):
        _say_fallback(op, x.dtype, x.device.type)
        return "reference"
    return fitting


@cache
def _say_fallback(op: str, dtype: torch.dtype, device: str) -> None:
    warnings.warn(f"{op} has no compiled kernel for {dtype} on {device}: the slow reference runs", stacklevel=4)


def wants_gradient(*tensors: Tensor) -> bool:
    """Whether autograd records, or torch.compile traces: then a kernel must go through its custom_op."""
    return torch.compiler.is_compiling() or (torch.is_grad_enabled() and any(x.requires_grad for x in tensors))


def check_shape(name: str, x: Tensor, shape: tuple[int, ...], dtypes: tuple[torch.dtype, ...]) -> None:
    """Raise ValueError unless x has this shape and one of these dtypes."""
    if x.shape != shape or x.dtype not in dtypes:
        raise ValueError(f"{name} must be {shape} {' or '.join(map(str, dtypes))}, got {tuple(x.shape)} {x.dtype}")


def check_flow(B: int, T: int, reset: Tensor | None, parents: Any) -> Tensor | None:
    """Raise ValueError unless reset is (B, T) bool and -1 <= parents[i] < i; `parents` as a tensor (T,) int64."""
    if reset is not None:
        check_shape("reset", reset, (B, T), (torch.bool,))
    if parents is None:
        return None
    array = np.asarray(parents)
    if array.shape != (T,) or array.dtype != np.int64:
        raise ValueError(f"parents must be ({T},) int64, got {array.shape} {array.dtype}")
    wrong = np.flatnonzero((array < -1) | (array >= np.arange(T)))
    if wrong.size:
        i = int(wrong[0])
        raise ValueError(f"parents[{i}] must be in -1..{i - 1} (an earlier input, or -1 for the state), got {array[i]}")
    return torch.from_numpy(array)


def arrays(k: Tensor, tensors: tuple[Tensor, ...], reset: Tensor | None, parents: Tensor | None) -> list[Any]:
    """The tensors, reset and parents as a kernel takes them: NumPy arrays on a CPU (no copies), else contiguous tensors.

    A CPU kernel takes an empty `reset` or `parents` for none, a CUDA kernel always a whole one.
    """
    if not k.is_cuda:
        found = [(x if x.is_contiguous() else x.contiguous()).detach().numpy() for x in tensors]
        return [
            *found,
            NO_RESET if reset is None else reset.contiguous().numpy(),
            NO_PARENTS if parents is None else parents.contiguous().numpy(),
        ]
    B, T = k.shape[:2]
    reset = torch.zeros(B, T, dtype=torch.bool, device=k.device) if reset is None else reset
    parents = torch.arange(-1, T - 1) if parents is None else parents
    return [x.detach().contiguous() for x in (*tensors, reset, parents.to(k.device))]


def device_scratch(like: Any, shape: tuple[int, ...]) -> Any:
    """An uninitialised device array of the dtype of `like`, a CUDA tensor, or an array in Numba's simulator."""
    from numba import cuda

    dtype: Any = np.dtype(str(like.dtype).removeprefix("torch."))
    return cuda.device_array(shape, dtype, stream=device_stream(like))


def device_stream(like: Any) -> Any:
    """torch's current stream, on which the tensors were made."""
    from numba import cuda

    return cuda.external_stream(torch.cuda.current_stream(like.device).cuda_stream) if isinstance(like, Tensor) else 0
