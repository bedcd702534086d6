"""Discrepancies to one anomaly map per image, and a map to one score per image."""

import functools
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from dskd.discrepancy import FACTORS
from dskd.switches import PER_SCALE_FUSIONS, Map

TOPK_SHARE = 0.01  # of the positions that `topk_mean` averages (our choice)

_FUSE = {
    "sum": lambda maps: torch.stack(maps).sum(dim=0),
    "mul": lambda maps: torch.stack(maps).prod(dim=0),
    "max": lambda maps: torch.stack(maps).amax(dim=0),
}
_SCORES = {
    "max": lambda maps: maps.amax(dim=(1, 2)),
    "topk_mean": lambda maps: _largest(maps.flatten(1)).mean(dim=1),
    "mean": lambda maps: maps.mean(dim=(1, 2)),
    "std": lambda maps: maps.std(dim=(1, 2)),
}
Discrepancies = Mapping[str, Sequence[Tensor]]
# Mean and standard deviation over normal images of each scale of `error` and `disagreement`.
Calibration = Mapping[str, Sequence[tuple[float, float]]]


def anomaly_map(
    discrepancies: Discrepancies, config: Map, size: tuple[int, int], calibration: Calibration | None = None
) -> Tensor:
    """Fuse the half squared distances of each student's scales into maps (B, H, W) of `size`, float32.

    Scales are brought to one size and fused, then students, then the result is smoothed; where `student_fuse` is of
    PER_SCALE_FUSIONS, students are fused at each scale first.

    Args:
        discrepancies: per student its scales (B, h_k, w_k), finest first, and what fusions of features need
            (`error`, ...), as `Distiller.discrepancies` gives them.
        config: fusion, weights, alignment and smoothing.
        size: (H, W) of the images.
        calibration: what `error_disagreement` standardises by, see `calibrate`; without it nothing is standardised.
    """
    finest = next(iter(discrepancies.values()))[0]
    fuse_size = size if config.fuse_at == "image" else tuple(finest.shape[1:])
    students = {name: scales for name, scales in discrepancies.items() if name.startswith(("encoder", "decoder"))}
    student_fuse = config.student_fuse
    if student_fuse in PER_SCALE_FUSIONS:
        students, student_fuse = {"all": _fused_per_scale(discrepancies, students, student_fuse, calibration)}, "sum"
    student_weights = {"encoder": config.encoder_weight, "decoder": config.decoder_weight}
    maps = []
    for name, scales in students.items():
        weight = FACTORS[config.discrepancy] * student_weights.get(name.partition("_")[0], 1.0)
        weighted = [scale * (weight * own) for scale, own in zip(scales, config.scale_weights, strict=False)]
        maps.append(_FUSE[config.scale_fuse]([_resize(scale, fuse_size, config.align_corners) for scale in weighted]))
    fused = _resize(_FUSE[student_fuse](maps), size, config.align_corners)
    sigma = config.sigma_of(size)
    return gaussian_filter(fused, sigma) if sigma else fused


def _fused_per_scale(
    discrepancies: Discrepancies, students: Discrepancies, fuse: str, calibration: Calibration | None
) -> list[Tensor]:
    """The students' maps of each scale as one."""
    if fuse == "mean_feature":
        return list(discrepancies["mean_feature"])
    if fuse == "noisy_or":  # discrepancies as probabilities: below 1 for features that are not negative
        return [
            1 - torch.stack([1 - one.clamp(0, 1) for one in scale]).prod(dim=0)
            for scale in zip(*students.values(), strict=True)
        ]
    fused = [torch.zeros_like(scale) for scale in discrepancies["error"]]
    for name in ("error", "disagreement"):
        for k, scale in enumerate(discrepancies[name]):
            mean, deviation = calibration[name][k] if calibration else (0.0, 1.0)
            fused[k] += (scale - mean) / deviation
    return fused


def calibrate(batches: Iterable[Discrepancies]) -> Calibration:
    """Mean and standard deviation of `error` and `disagreement` over all positions of normal images, scale by scale."""
    kept: dict[str, list[list[Tensor]]] = {"error": [], "disagreement": []}
    for discrepancies in batches:
        for name, sums in kept.items():
            scales = [scale.double() for scale in discrepancies[name]]
            sums.append([torch.stack([s.new_tensor(s.numel()), s.sum(), s.square().sum()]) for s in scales])
    found: dict[str, list[tuple[float, float]]] = {}
    for name, sums in kept.items():
        totals = [torch.stack(scale).sum(dim=0).tolist() for scale in zip(*sums, strict=True)]
        pairs = [(total / count, squares / count - (total / count) ** 2) for count, total, squares in totals]
        found[name] = [(mean, max(variance, 1e-24) ** 0.5) for mean, variance in pairs]
    return found


def image_scores(maps: Tensor, score: str) -> Tensor:
    """One score per image, (B,), from maps (B, H, W): `max`, `mean` or `std` over the positions, or the mean of the
    largest 1 % (`topk_mean`).
    """
    return _SCORES[score](maps)


def _largest(values: Tensor) -> Tensor:
    """Of each row (B, P) the TOPK_SHARE of largest values, at least one."""
    return values.topk(max(1, round(values.shape[1] * TOPK_SHARE)), dim=1).values


def gaussian_filter(maps: Tensor, sigma: float) -> Tensor:
    """Equal to `scipy.ndimage.gaussian_filter(map, sigma)` (truncate 4, border `reflect`) for each of (B, H, W).

    Both passes are matrix products G_H A G_W' whose matrices hold the border rule, so no padding is needed.
    """
    rows, columns = (_gaussian_matrix(size, sigma, maps.dtype, maps.device) for size in maps.shape[1:])
    tf32 = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False  # with it a GPU keeps three digits
    try:
        return rows @ maps @ columns.T
    finally:
        torch.backends.cuda.matmul.allow_tf32 = tf32


@functools.lru_cache(maxsize=8)
@torch.inference_mode(False)  # whoever asks first, the next one may want gradients
def _gaussian_matrix(size: int, sigma: float, dtype: torch.dtype, device: torch.device) -> Tensor:
    """(size, size): row i has the weights of every position in the smoothed value at i. Put on the device once: a copy
    for every batch would make the host wait for a GPU.
    """
    radius = int(4 * sigma + 0.5)
    offsets = torch.arange(-radius, radius + 1)
    weights = torch.exp(-0.5 * (offsets.double() / sigma) ** 2)
    weights /= weights.sum()
    # scipy's `reflect` repeats the edge (d c b a | a b c d | d c b a): a wave of period 2 * size.
    positions = (torch.arange(size)[:, None] + offsets) % (2 * size)
    positions = torch.where(positions < size, positions, 2 * size - 1 - positions)
    matrix = torch.zeros(size, size, dtype=torch.float64).scatter_add_(1, positions, weights.expand(size, -1))
    return matrix.to(device, dtype)


def _resize(maps: Tensor, size: tuple[int, int], align_corners: bool) -> Tensor:
    if tuple(maps.shape[1:]) == tuple(size):
        return maps
    return functional.interpolate(maps[:, None], size=size, mode="bilinear", align_corners=align_corners)[:, 0]
