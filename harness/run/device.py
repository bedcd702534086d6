"""The device of a worker: which one, at which precision, under which Accelerator."""

import functools
import os
import resource
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import Tensor

from dskd.backbones import IMAGENET_MEAN, IMAGENET_STD
from harness.environment import cpu_flags, device_name, thread_count


@dataclass(frozen=True)
class Device:
    """Where a work runs. `precision` is the resolved one (fp32, tf32 or bf16), never `auto`."""

    accelerator: Accelerator
    precision: str

    @property
    def place(self) -> torch.device:
        return self.accelerator.device

    def autocast(self) -> torch.autocast:
        return torch.autocast(self.place.type, dtype=torch.bfloat16, enabled=self.precision == "bf16")

    def facts(self) -> dict[str, object]:
        """For a record: the device's name, what `auto` became, threads."""
        kind = self.place.type
        return {
            "device": device_name(kind),
            "device_type": kind,
            "precision": self.precision,
            "threads": thread_count(),
        }

    def synchronize(self) -> None:
        if self.place.type == "cuda":
            torch.cuda.synchronize()


def resolve_precision(precision: str, device_type: str) -> str:
    """`auto` is bf16 where the hardware multiplies it fast, else fp32; the record says which it became."""
    if precision == "tf32" and device_type != "cuda":
        raise ValueError("precision tf32 needs a CUDA device; write precision: fp32")
    if precision != "auto":
        return precision
    if device_type == "cuda":
        return "bf16" if torch.cuda.get_device_capability()[0] >= 8 else "fp32"
    return "bf16" if cpu_flags() & {"amx_bf16", "avx512_bf16"} else "fp32"


def open_device(device: str, precision: str) -> Device:
    """The worker's Accelerator for the next work, with the determinism that bit-equality is promised under.

    Args:
        device: `auto`, `cpu` or `cuda`.

    Raises:
        RuntimeError: Accelerate gave another device, precision or number of processes than asked for (it does so
        silently).
    """
    on_cpu = device == "cpu" or not torch.cuda.is_available()
    if device == "cuda" and on_cpu:
        raise RuntimeError("a CUDA device was asked for and torch sees none")
    resolved = resolve_precision(precision, "cpu" if on_cpu else "cuda")
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = resolved == "tf32"
    torch.set_num_threads(thread_count())
    AcceleratorState._reset_state()  # it is a process-wide singleton that keeps the first precision
    accelerator = Accelerator(cpu=on_cpu, mixed_precision="bf16" if resolved == "bf16" else "no")
    expected = int(os.environ.get("WORLD_SIZE", "1"))
    got = (accelerator.num_processes, accelerator.device.type, accelerator.mixed_precision)
    want = (expected, "cpu" if on_cpu else "cuda", "bf16" if resolved == "bf16" else "no")
    if got != want:
        raise RuntimeError(f"Accelerate gave (processes, device, precision) {got}, asked for {want}")
    return Device(accelerator, resolved)


def to_images(pixels: Tensor) -> Tensor:
    """uint8 (B, H, W, 3) to normalised float32 (B, 3, H, W) in channels_last, on the pixels' device."""
    scale, shift = _normalisation(pixels.device)
    return (pixels.float() * scale - shift).permute(0, 3, 1, 2)


@functools.lru_cache(maxsize=4)
def _normalisation(device: torch.device) -> tuple[Tensor, Tensor]:
    """Put on the device once: copied in every step, it would make the host wait for the device."""
    scale = torch.tensor([1 / (255 * std) for std in IMAGENET_STD], device=device)
    return scale, torch.tensor(
        [mean / std for mean, std in zip(IMAGENET_MEAN, IMAGENET_STD, strict=True)], device=device
    )


def whole_batches(count: int, size: int) -> list[tuple[np.ndarray, int]]:
    """Positions 0..count-1 in batches of exactly `size`, the last filled up by repeating; each with its real length.

    A convolution's last bits may depend on the batch's shape: with one shape they do not.
    """
    batches = []
    for start in range(0, count, size):
        real = min(size, count - start)
        batches.append((np.minimum(np.arange(start, start + size), count - 1), real))
    return batches


class PeakMemory:
    """Peak memory in MiB since `start`: of the process on the host, and of the allocator on a GPU."""

    def __init__(self, device: Device) -> None:
        self.cuda = device.place.type == "cuda"
        with suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")  # resets the high-water mark that VmHWM shows
        if self.cuda:
            torch.cuda.reset_peak_memory_stats()

    def read(self) -> dict[str, float]:
        peak_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        with suppress(OSError):
            status = Path("/proc/self/status").read_text()
            peak_kib = int(status.split("VmHWM:")[1].split()[0])
        peaks = {"peak_host_memory_mib": round(peak_kib / 1024, 1)}
        if self.cuda:
            peaks["peak_device_memory_mib"] = round(torch.cuda.max_memory_allocated() / 2**20, 1)
        return peaks
