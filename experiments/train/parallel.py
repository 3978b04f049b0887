"""Training with one process for each device. torchrun starts the processes; a process alone is a group of one.

Only the first process (rank 0) reads and writes files. `from_first` hands what it found to the others.
"""

# The aim is that a trial's result, and so its id, does not depend on the number of processes. Each process draws the
# crops of the whole batch from the same generator and takes its share (`own_share`), batch norms see all shares
# (train/batchnorm.py), gradients are averaged by DistributedDataParallel, and buffers after each epoch. What is left is
# rounding, and dropout, which each process draws for itself.
#
# The danger is a deadlock: a collective call returns when every process has made it. So no process may decide by what
# it sees on disk, where another process may see something else a moment later. The first process looks, and tells the
# others.

from __future__ import annotations

import atexit
import os
from collections.abc import Callable
from datetime import timedelta
from typing import TypeVar

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

T = TypeVar("T")
PATIENCE = timedelta(days=30)  # the first process may wait for a lock while another run trains the same source


def start() -> None:
    """Join the group that torchrun's environment variables describe, if there is a group."""
    if int(os.environ.get("WORLD_SIZE", 1)) > 1 and not distributed.is_initialized():
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        distributed.init_process_group(backend, timeout=PATIENCE)
        atexit.register(distributed.destroy_process_group)


def rank() -> int:
    """The number of this process in the group, from 0."""
    return distributed.get_rank() if distributed.is_initialized() else 0


def size() -> int:
    """The number of processes in the group; 1 without torchrun."""
    return distributed.get_world_size() if distributed.is_initialized() else 1


def own_device(device: torch.device) -> torch.device:
    """Return the GPU of this process for any GPU, and other devices as they are."""
    if size() == 1 or device.type != "cuda":
        return device
    own = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
    torch.cuda.set_device(own)
    return own


def from_first(make: Callable[[], T]) -> T:
    """Call `make` in the first process alone, and return its result in every process."""
    found = [make() if rank() == 0 else None]
    if size() > 1:
        distributed.broadcast_object_list(found)
    return found[0]


def first_then_others(make: Callable[[], T]) -> T:
    """Call `make` in every process, first in rank 0, so that the others find what that call cached."""
    made = make() if rank() == 0 else None
    from_first(lambda: None)
    return made if rank() == 0 else make()


def gathered(value: T) -> list[T]:
    """Return the values of all processes, by rank."""
    values = [value] * size()
    if size() > 1:
        distributed.all_gather_object(values, value)
    return values


def totals(*values: float) -> tuple[float, ...]:
    """Sum each value over the processes, in double precision."""
    if size() == 1:
        return values
    sums = torch.tensor(values, dtype=torch.float64)
    distributed.all_reduce(sums)
    return tuple(sums.tolist())


def own_share(count: int) -> slice:
    """Return which of `count` images are this process's. The number of processes must divide `count`."""
    own = count // size()
    return slice(rank() * own, (rank() + 1) * own)


def replicated(network: nn.Module, device: torch.device) -> nn.Module:
    """Wrap a network so that it starts from the first process's weights and gets the mean of all gradients.

    Keep the wrapper as long as gradients are computed. A process alone gets the network itself.
    """
    if size() == 1:
        return network
    devices = [device] if device.type == "cuda" else None
    return DistributedDataParallel(network, device_ids=devices, broadcast_buffers=False)


def average_buffers(network: nn.Module) -> None:
    """Replace floating-point buffers, such as running statistics, by their means over the processes, in place."""
    for buffer in network.buffers() if size() > 1 else ():
        if buffer.is_floating_point():
            distributed.all_reduce(buffer)
            buffer /= size()


def all_gather(tensor: Tensor) -> Tensor:
    """Return the tensors of all processes, (processes, ...), without gradient."""
    tensors = [torch.empty_like(tensor) for _ in range(size())]
    distributed.all_gather(tensors, tensor.contiguous())
    return torch.stack(tensors)
