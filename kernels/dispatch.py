"""What the operations share: the backend that runs, the checks, and how tensors reach a compiled kernel.

B batch   T inputs
"""

import warnings
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

CHUNK = 32  # inputs between the states that a forward pass keeps for its backward pass

COMPILED = (torch.float32, torch.float64, torch.bfloat16)

NO_RESET = np.empty((0, 0), np.bool_)
NO_PARENTS = np.empty(0, np.int64)


def compute_dtype(x: Tensor) -> torch.dtype:
    """float64 for float64, else float32: states and arithmetic of half precision are in single."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def choose_backend(op: str, x: Tensor, backend: str | None, compiled: tuple[torch.dtype, ...] = COMPILED) -> str:
    """The backend to run: the one asked for, else "cuda" on a GPU, "numba" on a CPU, "reference" for a dtype they don't know.

    :param op: the operation's name, for messages
    :param x: the tensor whose device and dtype decide
    :param compiled: dtypes that the compiled kernels take
    :raises ValueError: an unknown backend, or one for another device
    """
    if backend not in (None, "reference", "numba", "cuda"):
        raise ValueError(f'backend must be "reference", "numba", "cuda" or None, got {backend!r}')
    if backend == "reference":
        return backend
    fitting = "cuda" if x.is_cuda else "numba"
    if backend not in (None, fitting):
        raise ValueError(f'backend "{backend}" cannot take tensors on {x.device}; use "{fitting}" or leave it None')
    if x.dtype not in compiled or x.device.type not in ("cpu", "cuda"):
        _say_fallback(op, x.dtype, x.device.type)
        return "reference"
    return fitting


@cache
def _say_fallback(op: str, dtype: torch.dtype, device: str) -> None:
    warnings.warn(f"{op} of {dtype} on {device} runs as a slow loop: {op} has no compiled kernel for {dtype}", stacklevel=4)


def wants_gradient(*tensors: Tensor) -> bool:
    """Whether autograd records, or torch.compile traces: then a kernel must go through its custom_op."""
    return torch.compiler.is_compiling() or (torch.is_grad_enabled() and any(x.requires_grad for x in tensors))


def check_shape(name: str, x: Tensor, shape: tuple[int, ...], dtypes: tuple[torch.dtype, ...]) -> None:
    """Raise ValueError unless x has this shape and one of these dtypes."""
    if x.shape != shape or x.dtype not in dtypes:
        raise ValueError(f"{name} must be {shape} {' or '.join(map(str, dtypes))}, got {tuple(x.shape)} {x.dtype}")


def check_reset(reset: Tensor | None, shape: tuple[int, ...] | torch.Size) -> None:
    """Raise ValueError unless reset is None or bool of this shape, (B, T)."""
    if reset is not None and (reset.dtype != torch.bool or reset.shape != shape):
        raise ValueError(f"reset must be bool {tuple(shape)}, got {reset.dtype} {tuple(reset.shape)}")


def check_order(parents: np.ndarray) -> None:
    """Raise ValueError unless -1 <= parents[i] < i for every i of (T,)."""
    wrong = np.flatnonzero((parents < -1) | (parents >= np.arange(len(parents))))
    if wrong.size:
        i = int(wrong[0])
        raise ValueError(f"parents[{i}] must be in -1..{i - 1} (an earlier input, or -1 for the state), got {parents[i]}")


def checked_parents(parents: Any, T: int) -> Tensor | None:
    """`parents` as an int64 tensor (T,) on the CPU, None as None, or ValueError unless they are a tree's."""
    if parents is None:
        return None
    tree = torch.as_tensor(parents).cpu()
    if tree.shape != (T,) or tree.dtype not in (torch.int64, torch.int32):
        raise ValueError(f"parents must be {T} integers, one for each input, got {tree.dtype} {tuple(tree.shape)}")
    if not torch.compiler.is_compiling():  # under torch.compile the values are not known
        check_order(tree.numpy())
    return tree.long()


def check_flow(B: int, T: int, reset: Tensor | None, parents: Any) -> Tensor | None:
    """Raise ValueError unless reset is (B, T) bool and -1 <= parents[i] < i; `parents` as a tensor (T,) int64."""
    if reset is not None:
        check_shape("reset", reset, (B, T), (torch.bool,))
    if parents is None:
        return None
    array = np.asarray(parents)
    if array.shape != (T,) or array.dtype != np.int64:
        raise ValueError(f"parents must be ({T},) int64, got {array.shape} {array.dtype}")
    check_order(array)
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
