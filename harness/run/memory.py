"""Memory of the host and of a GPU: whether it ran out, giving it back, its peak."""

import gc
import os
import re
import resource
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

import torch

T = TypeVar("T")
# Of torch's allocator, of the operating system (any library's file or mapping), of Python (no room for a thread's
# stack), of C++ and of oneDNN, as seen in workers whose address space was limited; of CUDA, its driver and NCCL outside
# of torch's allocator, and of cuBLAS and cuDNN.
OUT_OF_MEMORY = re.compile(
    r"(can't|cannot) allocate memory|can't start new thread|std::bad_alloc|could not create a primitive$"
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


def free_host_bytes(root: Path = Path("/")) -> float:
    """Memory that this process may still take: of the machine, or of its control group (a container, a SLURM job with
    --mem) where that leaves less. What files are cached in counts as free.
    """
    free = [float(os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))]
    with suppress(OSError, StopIteration, ValueError):
        lines = (root / "proc/meminfo").read_text().splitlines()
        free = [1024.0 * int(next(line for line in lines if line.startswith("MemAvailable")).split()[1])]
    with suppress(OSError, ValueError):
        for line in (root / "proc/self/cgroup").read_text().splitlines():
            _, controllers, own = line.split(":", 2)
            if controllers == "" or "memory" in controllers.split(","):
                free += _left_in_groups(root / "sys/fs/cgroup", controllers, own)
    return max(0.0, min(free))


def _left_in_groups(mount: Path, controllers: str, own: str) -> Iterator[float]:
    """Of a control group and all that hold it, as far as they have a limit and can be read."""
    base = mount / "memory" if controllers else mount  # version 1 has a tree for each controller
    names = ("memory.limit_in_bytes", "memory.usage_in_bytes") if controllers else ("memory.max", "memory.current")
    place = base / own.lstrip("/")
    for folder in (place, *place.parents):
        with suppress(OSError, ValueError):
            limit, used = (int((folder / name).read_text()) for name in names)  # ValueError: "max", no limit
            rows = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
            yield float(limit - used + int(rows.get("total_inactive_file", rows.get("inactive_file", 0))))
        if folder == base:
            return


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
