"""The teacher's features of a training set, computed once: it is frozen and nothing is augmented."""

import os

import numpy as np
import torch
from torch import Tensor

from dskd.teacher import Teacher
from harness.run.device import Device, to_images, whole_batches
from harness.run.profile import section

BUDGET_SHARE = 0.3  # of the memory that is free when they are computed


class TeacherFeatures:
    """Features by position, kept if they fit the budget, else computed again for every batch.

    Either way the teacher sees batches of exactly `batch_size` and its output keeps its dtype, so the budget cannot
    change a number.

    Args:
        pixels: uint8 (N, H, W, 3) on the device.
        batch_size: of the training, in this process.
        budget_bytes: None for BUDGET_SHARE of what is free.
    """

    def __init__(
        self, teacher: Teacher, pixels: Tensor, batch_size: int, device: Device, budget_bytes: int | None = None
    ) -> None:
        self.teacher, self.pixels, self.batch_size, self.device = teacher, pixels, batch_size, device
        self.scales: list[Tensor] | None = None
        first = self._compute(np.arange(min(batch_size, len(pixels))))
        size = sum(scale.nbytes for scale in first) / len(first[0]) * len(pixels)
        if size <= (free_bytes(device) * BUDGET_SHARE if budget_bytes is None else budget_bytes):
            self._fill(first)

    @property
    def cached(self) -> bool:
        return self.scales is not None

    def __getitem__(self, positions: np.ndarray) -> list[Tensor]:
        """The pyramid of the positions: maps (B, C_k, h_k, w_k) in channels_last."""
        if self.scales is None:
            return self._compute(positions)
        index = torch.from_numpy(positions).to(self.pixels.device)
        return [scale.index_select(0, index).permute(0, 3, 1, 2) for scale in self.scales]

    def _compute(self, positions: np.ndarray) -> list[Tensor]:
        filled = positions[np.minimum(np.arange(self.batch_size), len(positions) - 1)]
        with section("teacher", self.batch_size), torch.no_grad(), self.device.autocast():
            scales = self.teacher(to_images(self.pixels[torch.from_numpy(filled).to(self.pixels.device)]))
        return [scale[: len(positions)] for scale in scales]

    def _fill(self, first: list[Tensor]) -> None:
        # Stored channels last as plain rows, so that gathering a batch is one copy that keeps the layout.
        self.scales = [
            torch.empty((len(self.pixels), *scale.shape[2:], scale.shape[1]), dtype=scale.dtype, device=scale.device)
            for scale in first
        ]
        for positions, real in whole_batches(len(self.pixels), self.batch_size):
            for kept, scale in zip(self.scales, self._compute(positions), strict=True):
                kept[positions[0] : positions[0] + real] = scale[:real].permute(0, 2, 3, 1)


def free_bytes(device: Device) -> int:
    """Memory that is free: on the GPU, or this process's share of the host's."""
    if device.place.type == "cuda":
        return torch.cuda.mem_get_info()[0]
    try:
        with open("/proc/meminfo") as stream:
            free = next(int(line.split()[1]) * 1024 for line in stream if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return free // device.processes
