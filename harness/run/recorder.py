"""How a step that is always the same becomes one that is launched at once: as a CUDA graph."""

import warnings
import weakref
from collections.abc import Callable, Iterable, Mapping
from typing import Protocol

import torch
from torch import Tensor

Step = Callable[[], None]


class Recorder(Protocol):
    """What makes of a step without arguments one that does the same to the same memory.

    The step reads and writes tensors that stay where they are, asks none for a value and gives none back.
    """

    def rehearse(self, steps: Step) -> None:
        """Do steps as they are before one is captured, for all that is made or loaded at a first use."""

    def capture(self, step: Step) -> Step:
        """The step as it is to be done from now on; whether it is done once by this is not said."""


class Calls:
    """Records nothing: the step is the function itself. With it all but the capture can be tried without a GPU."""

    def rehearse(self, steps: Step) -> None:
        steps()

    def capture(self, step: Step) -> Step:
        return step


class CudaGraphs:
    """One CUDA graph for each captured step, of the kernels that it would launch by itself, so with its numbers.

    All graphs that are alive share one pool of memory, since they run one after the other and nothing in it outlives a
    step.
    """

    def __init__(self) -> None:
        self.alive: weakref.WeakSet[torch.cuda.CUDAGraph] = weakref.WeakSet()

    def rehearse(self, steps: Step) -> None:
        side = torch.cuda.Stream()  # torch asks for another stream than the default one before a capture
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "This instance was constructed with capturable=True")
            steps()
        torch.cuda.current_stream().wait_stream(side)
        torch.cuda.synchronize()

    def capture(self, step: Step) -> Step:
        graph = torch.cuda.CUDAGraph()
        # A handle of a pool whose graphs are all gone cannot be used again: the pool is that of a graph that is alive.
        pool = next((other.pool() for other in self.alive), None)
        # The outer block puts the stream back, which torch does not where ending a capture raises. Other threads of a
        # worker may call CUDA meanwhile.
        with (
            torch.cuda.stream(torch.cuda.current_stream()),
            torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"),
        ):
            step()
        torch.cuda.synchronize()
        self.alive.add(graph)
        return graph.replay


def recorder_of(kind: str) -> Recorder | None:
    """For a kind of device; None where there are no such graphs."""
    return CudaGraphs() if kind == "cuda" else None


def require_in_place(held: Mapping[str, Tensor], used: Iterable[tuple[str, Tensor]]) -> None:
    """Raises RuntimeError for a tensor that is not where it was when something that uses it was recorded.

    Args:
        held: the tensors of then, by name; held, since others could get their place.
        used: those of now.
    """
    known = {name: tensor.data_ptr() for name, tensor in held.items()}
    now = {name: tensor.data_ptr() for name, tensor in used}
    moved = [name for name in known.keys() | now.keys() if known.get(name) != now.get(name)]
    if moved:
        raise RuntimeError(f"what is recorded knows memory by its address, and it moved: {', '.join(sorted(moved))}")


def equal(found: Tensor, expected: Tensor) -> bool:
    """Bit for bit, but for the sign of 0; a training that diverges has NaN, which equals itself here."""
    return torch.equal(found, expected) or torch.allclose(found, expected, rtol=0.0, atol=0.0, equal_nan=True)


def reason_of(error: Exception) -> str:
    """One line for a log and a record."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]
