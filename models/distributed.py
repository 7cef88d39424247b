"""One training in several processes, started by torchrun: each takes its part of the windows, gradients are averaged."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor


@contextmanager
def process_group() -> Iterator[int]:
    """This process's rank among those that torchrun has started; 0, and no group, without it."""
    if not dist.is_torchelastic_launched():
        yield 0
        return
    dist.init_process_group("gloo")
    try:
        yield dist.get_rank()
    finally:
        dist.destroy_process_group()


def average(gradients: Sequence[Tensor], loss: float) -> float:
    """Average gradients (in place) and loss over all processes."""
    flat = torch.cat([g.flatten() for g in gradients] + [gradients[0].new_tensor([loss])])
    dist.all_reduce(flat)
    flat /= dist.get_world_size()
    *means, mean_loss = flat.split([g.numel() for g in gradients] + [1])
    for gradient, mean in zip(gradients, means):
        gradient.copy_(mean.view_as(gradient))
    return mean_loss.item()
