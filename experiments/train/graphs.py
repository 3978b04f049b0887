"""Steps of training and of testing as CUDA graphs, so that networks of small images do not wait for kernel launches.

A step is a function of tensors that returns nothing and adds what it finds to tensors of its own. Captured once, it is
replayed with one launch. What it does beside its work on the GPU (Python's own random numbers, say) happens when it is
captured and never again: `cuda_graphs=false` is for networks that count on it.
"""

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

WARM_UP = 3  # calls before the capture: libraries choose their algorithms, the optimizer makes its state
AHEAD = 8  # steps


@contextmanager
def own_stream(device: torch.device) -> Iterator[None]:
    """All work on a stream that is not the default one, on which nothing can be captured."""
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
    """One for all trainings: libraries keep memory for each stream that they have seen."""
    return torch.cuda.Stream(device)


class Pace:
    """Called after each step, keeps the CPU few steps ahead of the GPU.

    So a bar shows what is done and not what is asked for, and few batches wait in memory.
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
    """Calls of a step, which is captured after a few of them with tensors of one shape, and replayed from then on.

    Every call counts, the first ones too. Calls with other shapes (of a last, smaller batch) and steps that cannot be
    captured, of which it says so, are computed as they would be without it. It keeps no step, so that what a step needs
    (processes that load images, memory) goes with the step's owner.
    """

    def __init__(self, name: str, wanted: bool = True):
        self.name = name
        self.eager = not wanted  # for good
        self.inputs: list[Tensor] = []  # the graph's own, filled anew for each call
        self.left = WARM_UP  # calls until it is captured
        self.replay: Callable[[], None] | None = None

    def __call__(self, step: Callable[..., None], *inputs: Tensor) -> None:
        """step(*inputs), the same step each time."""
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
        except Exception as error:  # of CUDA, or whatever a user's network raises only then
            self._give_up(first_line(error))
        return not self.eager

    def _give_up(self, cause: str) -> None:
        self.eager = True
        tqdm.write(f"{self.name}: no CUDA graph, which would be faster ({cause})")


def synchronizes(call: Callable[[], None]) -> bool:
    """Call it; whether it made the CPU wait for the GPU, which a graph cannot."""
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
    """A function that does on the GPU what the call would do, which is not done now. Raises what keeps it from that."""
    graph = torch.cuda.CUDAGraph()
    try:
        with _capturing(graph):
            call()
    except Exception:
        with _capturing(torch.cuda.CUDAGraph()):  # of nothing: else the generator of dropout waits for the end of this
            pass
        raise
    return graph.replay


def _capturing(graph: torch.cuda.CUDAGraph) -> torch.cuda.graph:
    return torch.cuda.graph(graph, stream=torch.cuda.current_stream(), capture_error_mode="thread_local")
