"""Discrepancies to one anomaly map per image, and a map to one score per image."""

import functools
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from dskd.discrepancy import FACTORS
from dskd.methods import Map

_FUSE = {
    "sum": lambda maps: torch.stack(maps).sum(dim=0),
    "mul": lambda maps: torch.stack(maps).prod(dim=0),
    "max": lambda maps: torch.stack(maps).amax(dim=0),
}
_SCORES = {
    "max": lambda maps: maps.amax(dim=(1, 2)),
    "mean": lambda maps: maps.mean(dim=(1, 2)),
    "std": lambda maps: maps.std(dim=(1, 2)),
}


def anomaly_map(discrepancies: Mapping[str, Sequence[Tensor]], config: Map, size: tuple[int, int]) -> Tensor:
    """Fuse the half squared distances of each student's scales into maps (B, H, W) of `size`, float32.

    Scales are brought to one size and fused, then students, then the result is smoothed.

    Args:
        discrepancies: per student its scales (B, h_k, w_k), finest first, as `discrepancy.per_position` gives them.
        config: fusion, alignment and smoothing.
        size: (H, W) of the images.
    """
    finest = next(iter(discrepancies.values()))[0]
    fuse_size = size if config.fuse_at == "image" else tuple(finest.shape[1:])
    factor = FACTORS[config.discrepancy]
    students = [
        _FUSE[config.scale_fuse]([_resize(scale * factor, fuse_size, config.align_corners) for scale in scales])
        for scales in discrepancies.values()
    ]
    fused = _resize(_FUSE[config.student_fuse](students), size, config.align_corners)
    return gaussian_filter(fused, config.sigma) if config.sigma else fused


def image_scores(maps: Tensor, score: str) -> Tensor:
    """One score per image, (B,), from maps (B, H, W): `max`, `mean` or `std` over the positions."""
    return _SCORES[score](maps)


def gaussian_filter(maps: Tensor, sigma: float) -> Tensor:
    """Equal to `scipy.ndimage.gaussian_filter(map, sigma)` (truncate 4, border `reflect`) for each of (B, H, W).

    Both passes are matrix products G_H A G_W' whose matrices hold the border rule, so no padding is needed.
    """
    rows = _gaussian_matrix(maps.shape[1], sigma).to(maps)
    columns = _gaussian_matrix(maps.shape[2], sigma).to(maps)
    return rows @ maps @ columns.T


@functools.lru_cache(maxsize=8)
def _gaussian_matrix(size: int, sigma: float) -> Tensor:
    """(size, size): row i holds the weights of every position in the smoothed value at i; float64, on the host."""
    radius = int(4 * sigma + 0.5)
    offsets = torch.arange(-radius, radius + 1)
    weights = torch.exp(-0.5 * (offsets.double() / sigma) ** 2)
    weights /= weights.sum()
    # scipy's `reflect` repeats the edge (d c b a | a b c d | d c b a): a wave of period 2 * size.
    positions = (torch.arange(size)[:, None] + offsets) % (2 * size)
    positions = torch.where(positions < size, positions, 2 * size - 1 - positions)
    return torch.zeros(size, size, dtype=torch.float64).scatter_add_(1, positions, weights.expand(size, -1))


def _resize(maps: Tensor, size: tuple[int, int], align_corners: bool) -> Tensor:
    if tuple(maps.shape[1:]) == tuple(size):
        return maps
    return functional.interpolate(maps[:, None], size=size, mode="bilinear", align_corners=align_corners)[:, 0]
