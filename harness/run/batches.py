"""Batches of images: which positions are in one, and how they get to the networks."""

import functools
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from dskd.backbones import IMAGENET_MEAN, IMAGENET_STD


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


def index_of(positions: np.ndarray, place: torch.device) -> Tensor:
    """Positions as an index on the device, or a batch's pixels. A GPU gets them through pinned memory: for a copy from
    ordinary memory the host waits until the GPU has done all that it was given before.
    """
    index = torch.from_numpy(positions)
    return index.pin_memory().to(place, non_blocking=True) if place.type == "cuda" else index


def whole_batches(count: int, size: int) -> list[tuple[np.ndarray, int]]:
    """Positions 0..count-1 in batches of exactly `size`, the last filled up by repeating; each with its real length.

    A convolution's last bits may depend on the batch's shape: with one shape they do not.
    """
    batches = []
    for start in range(0, count, size):
        real = min(size, count - start)
        batches.append((np.minimum(np.arange(start, start + size), count - 1), real))
    return batches


def deal(batches: int, rank: int, processes: int) -> list[int]:
    """The numbers of the batches that a rank is at, turn by turn: batch i is rank i % k's.

    In the last turn it may have none of its own: it repeats the last one, which `received` leaves out.
    """
    return [min(turn + rank, batches - 1) for turn in range(0, batches, processes)]


def received(batches: Sequence[tuple[np.ndarray, int]], sent: Sequence[int]) -> dict[int, np.ndarray]:
    """Of which images a turn brings something new, by the rank that sends it: the positions of the real ones.

    Args:
        batches: of `whole_batches`; sent: the number of each rank's.
    """
    return {rank: batches[each][0][: batches[each][1]] for rank, each in enumerate(sent) if each not in sent[:rank]}


def part_of(positions: np.ndarray, rank: int, processes: int) -> tuple[np.ndarray, float]:
    """A rank's contiguous part of a global batch, and the weight of its mean loss.

    Parts differ by one image at most, the first ranks' are the larger ones. The ranks' gradients are averaged, so a
    rank with n of N images weighs its loss by `processes` * n / N: 1 for a whole batch, and for an incomplete last one
    what makes the average that of all N images. A rank that is left without an image takes the first one, with weight
    0: it must take part, since the others wait for its gradients. (It counts in `sync` BatchNorm's statistics.)
    """
    part = np.array_split(positions, processes)[rank]
    return (part if len(part) else positions[:1]), processes * len(part) / len(positions)
