"""One process for each device, started by torchrun; a process by itself is a group of one.

Only the first process (rank 0) reads and writes; `from_first` hands what it found to the others.
"""

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
PATIENCE = timedelta(days=30)  # the first process may have to wait for a training elsewhere


def start() -> None:
    """Join the group that torchrun's environment tells of, if there is one."""
    if int(os.environ.get("WORLD_SIZE", 1)) > 1 and not distributed.is_initialized():
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        distributed.init_process_group(backend, timeout=PATIENCE)
        atexit.register(distributed.destroy_process_group)


def rank() -> int:
    return distributed.get_rank() if distributed.is_initialized() else 0


def size() -> int:
    return distributed.get_world_size() if distributed.is_initialized() else 1


def own_device(device: torch.device) -> torch.device:
    """The GPU that is this process's; other devices as they are."""
    if size() == 1 or device.type != "cuda":
        return device
    own = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
    torch.cuda.set_device(own)
    return own


def from_first(make: Callable[[], T]) -> T:
    """What `make` returns in the first process, where alone it is called."""
    found = [make() if rank() == 0 else None]
    if size() > 1:
        distributed.broadcast_object_list(found)
    return found[0]


def first_then_others(make: Callable[[], T]) -> T:
    """What `make` returns in each process; the first one goes ahead, so that the others find what it cached."""
    made = make() if rank() == 0 else None
    from_first(lambda: None)
    return made if rank() == 0 else make()


def gathered(value: T) -> list[T]:
    """The value of each process, by rank."""
    values = [value] * size()
    if size() > 1:
        distributed.all_gather_object(values, value)
    return values


def totals(*values: float) -> tuple[float, ...]:
    """Each value, summed over the processes in double precision."""
    if size() == 1:
        return values
    sums = torch.tensor(values, dtype=torch.float64)
    distributed.all_reduce(sums)
    return tuple(sums.tolist())


def own_share(count: int) -> slice:
    """Which of `count` images, a number that the processes divide, are this process's."""
    own = count // size()
    return slice(rank() * own, (rank() + 1) * own)


def replicated(network: nn.Module, device: torch.device) -> nn.Module:
    """The network, made to start from the first process's weights and to have the mean of all processes' gradients.

    Only for as long as what is returned lives.
    """
    if size() == 1:
        return network
    devices = [device] if device.type == "cuda" else None
    return DistributedDataParallel(network, device_ids=devices, broadcast_buffers=False)


def average_buffers(network: nn.Module) -> None:
    """Make floating-point buffers, such as running statistics, their means over the processes."""
    for buffer in network.buffers() if size() > 1 else ():
        if buffer.is_floating_point():
            distributed.all_reduce(buffer)
            buffer /= size()


def all_gather(tensor: Tensor) -> Tensor:
    """The tensor of each process, (processes, ...). Without gradient."""
    tensors = [torch.empty_like(tensor) for _ in range(size())]
    distributed.all_gather(tensors, tensor.contiguous())
    return torch.stack(tensors)
