"""The teacher's features of a training set, computed once: it is frozen and nothing is augmented."""

import functools
import os
from collections.abc import Mapping
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from dskd.teacher import Teacher
from harness.run.batches import index_of, to_images, whole_batches
from harness.run.device import Device, autocast
from harness.run.memory import free_host_bytes
from harness.run.sections import section

Kept = Literal["device", "host", "recomputed"]
# Of the memory that is free when they are computed. A host serves several GPUs, each with workers of its own.
BUDGET_SHARE = {"device": 0.3, "host": 0.1}


class TeacherFeatures:
    """Features by position: `kept` on the device if they fit the budget there, else on a GPU's host if they fit the
    one there, else computed again for every batch.

    Either way the teacher sees batches of exactly `batch_size` and its output keeps its dtype, so the budgets cannot
    change a number.

    Args:
        pixels: uint8 (N, H, W, 3) on the device.
        batch_size: of the training, in this process.
        budgets: bytes on the `device` and on its `host`; None for BUDGET_SHARE of what is free.
    """

    def __init__(
        self,
        teacher: Teacher,
        pixels: Tensor,
        batch_size: int,
        device: Device,
        budgets: Mapping[str, float] | None = None,
    ) -> None:
        self.teacher, self.pixels, self.batch_size = teacher, pixels, batch_size
        # Not the device: features are kept for later runs, and its Accelerator holds the students of this one.
        self.autocast = functools.partial(autocast, device.place.type, device.precision)
        self.scales: list[Tensor] = []
        first = self._compute(np.arange(min(batch_size, len(pixels))))
        size = sum(scale.nbytes for scale in first) / len(first[0]) * len(pixels)
        budgets = _budgets(device) if budgets is None else budgets
        self.kept: Kept = next((place for place in ("device", "host") if size <= budgets[place]), "recomputed")
        if self.kept != "recomputed":
            self._fill(first)

    def __getitem__(self, positions: np.ndarray) -> list[Tensor]:
        """The pyramid of the positions: maps (B, C_k, h_k, w_k) in channels_last."""
        if self.kept == "recomputed":
            return self._compute(positions)
        if self.kept == "device":
            index = index_of(positions, self.pixels.device)
            return [scale.index_select(0, index).permute(0, 3, 1, 2) for scale in self.scales]
        return [self._send(scale, torch.from_numpy(positions)).permute(0, 3, 1, 2) for scale in self.scales]

    def _send(self, scale: Tensor, index: Tensor) -> Tensor:
        """Rows from the host to the GPU through pinned memory, so that the host does not wait for their way. Torch
        hands that memory out again only after they have arrived.
        """
        rows = torch.empty((len(index), *scale.shape[1:]), dtype=scale.dtype, pin_memory=self.pixels.is_cuda)
        torch.index_select(scale, 0, index, out=rows)
        return rows.to(self.pixels.device, non_blocking=True)

    def _compute(self, positions: np.ndarray) -> list[Tensor]:
        filled = positions[np.minimum(np.arange(self.batch_size), len(positions) - 1)]
        with section("teacher", self.batch_size), torch.no_grad(), self.autocast():
            scales = self.teacher(to_images(self.pixels[index_of(filled, self.pixels.device)]))
        return [scale[: len(positions)] for scale in scales]

    def _fill(self, first: list[Tensor]) -> None:
        # Stored channels last as plain rows, so that gathering a batch is one copy that keeps the layout.
        place = self.pixels.device if self.kept == "device" else "cpu"
        self.scales = [
            torch.empty((len(self.pixels), *scale.shape[2:], scale.shape[1]), dtype=scale.dtype, device=place)
            for scale in first
        ]
        for positions, real in whole_batches(len(self.pixels), self.batch_size):
            for kept, scale in zip(self.scales, self._compute(positions), strict=True):
                kept[positions[0] : positions[0] + real] = scale[:real].permute(0, 2, 3, 1)


def _budgets(device: Device) -> dict[str, float]:
    """Of the memory of the device and of its host; a CPU's host is the device itself."""
    host = free_host_bytes() / int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if device.place.type == "cpu":
        return {"device": host * BUDGET_SHARE["device"], "host": 0}
    unused = torch.cuda.memory_reserved() - torch.cuda.memory_allocated()  # by this process: the last run's features
    free = {"device": torch.cuda.mem_get_info()[0] + unused, "host": host}
    return {place: free[place] * share for place, share in BUDGET_SHARE.items()}
