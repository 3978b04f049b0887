"""Training and test steps as CUDA graphs, so that networks of small images do not wait for kernel launches.

A step is a function of tensors. It returns nothing and adds its loss to a tensor of its own. A step that was captured
once is replayed with one launch. A replay repeats the work on the GPU alone: what Python does in the step, such as
drawing from `random`, happens at the capture and never again. `cuda_graphs=false` is for networks that need it.
"""

# Why graphs: at 32 px a step is a long row of kernels that take a few microseconds each. Python and the driver need
# longer to launch such a kernel than the GPU needs to run it, so the GPU waits for the CPU. A graph holds all launches
# of the step, and one call starts them.
#
# What a capture demands shapes the rest of this file:
# - Nothing may be captured on the default stream, so all work of a training runs on one other stream (`own_stream`).
# - A graph reads the addresses it was captured with. So a step has inputs of its own that each batch is copied into,
#   and its results are sums in tensors that stay; no step returns anything.
# - The CPU must not wait for the GPU inside a step (no `.item()`). A step that does is found before the capture and
#   runs without a graph, with a line that says so: slower, but right.
# - Shapes are fixed. The last, smaller batch of a test pass runs without a graph.

from __future__ import annotations

import warnings
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache

import torch
from torch import Tensor
from tqdm import tqdm

from experiments.settings import first_line

WARM_UP = 3  # calls before the capture, in which libraries choose algorithms and the optimizer makes its state
AHEAD = 8  # steps that the CPU may be ahead of the GPU


@contextmanager
def own_stream(device: torch.device) -> Iterator[None]:
    """Run all work on a stream of its own: nothing can be captured on the default stream."""
    if device.type != "cuda":
        yield
        return
    stream = _stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):
        yield
    torch.cuda.current_stream(device).wait_stream(stream)


@lru_cache
def _stream(device: torch.device) -> torch.cuda.Stream:
    """Return the one stream of all trainings: libraries keep memory for each stream that they have seen."""
    return torch.cuda.Stream(device)


class Pace:
    """Keeps the CPU a few steps ahead of the GPU. Call the object after each step.

    Launches return at once. Without a limit, the CPU would ask for a whole epoch in a second: the progress bar would be
    wrong, and the batches of the epoch would wait in memory.
    """

    def __init__(self, device: torch.device):
        self.device, self.events = device, deque()

    def __call__(self) -> None:
        if self.device.type != "cuda":
            return
        self.events.append(torch.cuda.Event())
        self.events[-1].record()
        if len(self.events) > AHEAD:
            self.events.popleft().synchronize()


class ReplayedStep:
    """Captures a step after a few calls, and replays the step from then on.

    Every call does the step's work, the first calls too. Calls with other shapes run without the graph, and so does a
    step that cannot be captured, after a line that says why.

    Args:
        name: What the line calls the step.
        wanted: False never captures.
    """

    # The step is an argument of each call, and is not kept. A step refers to its training, which refers to this object:
    # kept here, the step would close a circle. The loader processes and the memory of the training would then stay
    # until the garbage collector comes by.

    def __init__(self, name: str, wanted: bool = True):
        self.name = name
        self.eager = not wanted  # True for good once a capture has failed
        self.inputs: list[Tensor] = []  # the tensors that the graph reads, filled anew for each call
        self.left = WARM_UP  # calls until the capture
        self.replay: Callable[[], None] | None = None

    def __call__(self, step: Callable[..., None], *inputs: Tensor) -> None:
        """Do what step(*inputs) does. The step must be the same in each call."""
        if not self.eager and not self.inputs:
            self.inputs = [torch.empty_like(tensor) for tensor in inputs]
        if self.eager or any(own.shape != new.shape for own, new in zip(self.inputs, inputs, strict=True)):
            step(*inputs)
        elif self.left > 0:
            self._warm_up(lambda: step(*inputs))
        elif self.replay or self._capture(lambda: step(*self.inputs)):
            for own, new in zip(self.inputs, inputs, strict=True):
                own.copy_(new)
            self.replay()
        else:
            step(*inputs)

    def _warm_up(self, call: Callable[[], None]) -> None:
        self.left -= 1
        if self.left > 0:
            call()
        elif synchronizes(call):
            self._give_up("it makes the CPU wait for the GPU")

    def _capture(self, call: Callable[[], None]) -> bool:
        try:
            self.replay = capture(call)
        except Exception as error:  # CUDA's, or what a user's network raises under capture alone
            self._give_up(first_line(error))
        return not self.eager

    def _give_up(self, cause: str) -> None:
        self.eager = True
        tqdm.write(f"{self.name}: no CUDA graph, which would be faster ({cause})")


def synchronizes(call: Callable[[], None]) -> bool:
    """Make the call, and return whether the CPU had to wait for the GPU, which no graph can hold."""
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            call()
    finally:
        torch.cuda.set_sync_debug_mode(before)
    return any("synchronizing CUDA operation" in str(warning.message) for warning in caught)


def capture(call: Callable[[], None]) -> Callable[[], None]:
    """Capture a call, which does no work now, and return a function that does the call's work on the GPU.

    Raises whatever the capture raises.
    """
    graph = torch.cuda.CUDAGraph()
    try:
        with _capturing(graph):
            call()
    except Exception:
        # A capture that fails leaves the generator of dropout in its capturing state, and the next plain dropout would
        # raise. A capture of nothing ends in order and takes the generator back.
        with _capturing(torch.cuda.CUDAGraph()):
            pass
        raise
    return graph.replay


def _capturing(graph: torch.cuda.CUDAGraph) -> torch.cuda.graph:
    return torch.cuda.graph(graph, stream=torch.cuda.current_stream(), capture_error_mode="thread_local")
