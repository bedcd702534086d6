"""Memory of the host and of a GPU: whether it ran out, giving it back, its peak."""

import gc
import re
import resource
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

import torch

T = TypeVar("T")
# Of torch's allocator, of the operating system (any library's file or mapping) and of oneDNN, as seen in workers whose
# address space was limited; of CUDA, its driver and NCCL outside of torch's allocator, and of cuBLAS and cuDNN.
OUT_OF_MEMORY = re.compile(
    r"(can't|cannot) allocate memory|could not create a primitive$"
    r"|\bout of memory\b|STATUS_ALLOC_FAILED|unable to find an engine|find a valid cuDNN algorithm",
    re.IGNORECASE,
)


def is_out_of_memory(error: BaseException) -> bool:
    """Of the host or of a GPU. On the host every library says it in its own words, also through other errors."""
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or bool(OUT_OF_MEMORY.search(str(error)))


def free_memory() -> None:
    """Give back what nothing refers to any more. To be called when the error that has a hold on it is gone."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def largest_that_fits(size: int, do: Callable[[int], T], least: int = 1) -> tuple[int, T]:
    """The first of the batch sizes `size`, `size` / 2, ... that memory is large enough for, and what `do` gives for it.

    Raises:
        what `do` does for another reason than lack of memory, and for that too if half of the batch is below `least`.
    """
    while True:
        try:
            return size, do(size)
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error) or size // 2 < least:
                raise
        size //= 2
        free_memory()


def reset_peak_memory() -> None:
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # resets the high-water mark that VmHWM shows
    if torch.cuda.is_initialized():
        torch.cuda.reset_peak_memory_stats()


def peak_memory() -> dict[str, float]:
    """Peak memory in MiB since `reset_peak_memory`: of the process on the host, and of the allocator on a GPU."""
    peak_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with suppress(OSError):
        status = Path("/proc/self/status").read_text()
        peak_kib = int(status.split("VmHWM:")[1].split()[0])
    peaks = {"peak_host_memory_mib": round(peak_kib / 1024, 1)}
    if torch.cuda.is_initialized():
        peaks["peak_device_memory_mib"] = round(torch.cuda.max_memory_allocated() / 2**20, 1)
    return peaks
