"""Exact detection and localisation metrics from one pass over the scores.

The many negatives are sorted once. Every metric here changes only where a positive changes sides, so all of them are
read from counts at the scores of the few positives: how many negatives are above, and how many at least as high.
Ties are exact, -0.0 equals 0.0, infinite scores rank as they compare, and NaN is refused.
"""

import math
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from scipy import ndimage

# NumPy works outside the GIL, so slices are sorted, and blocks counted, side by side; the numbers do not depend on it.
# Mostly one thread would do (6.5 M float32: 0.05 s), but NumPy's AVX-512 sort is slow on AMD's Zen 4 (0.3 s; issue 6 of
# numpy/x86-simd-sort).
_THREADS = min(4, os.cpu_count() or 1)
_SMALLEST_SLICE = 2**20  # negatives; below it another slice costs more in searches than it saves in sorting
_BLOCK = 2**14  # positives counted at a time: their float64 and int64 arrays stay small and in cache


@dataclass(frozen=True)
class Ranking:
    """How well scores separate two classes: shares in [0, 1], or NaN where one class is absent."""

    auroc: float
    ap: float
    f1_max: float


@dataclass(frozen=True, eq=False)
class Regions:
    """The connected defective regions of a set of masks, as AUPRO needs them.

    labels: (P,) int32, the region (0 … R-1) of each defective pixel, in the order of `maps[masks]`.
    sizes: (R,) int64, pixels in each region.
    """

    labels: np.ndarray
    sizes: np.ndarray


def ranking(normal: np.ndarray, defective: np.ndarray) -> Ranking:
    """AUROC, average precision and best F1 of scores that should be low for `normal` and high for `defective`.

    normal, defective: (n,) and (p,) scores of any float type. AP is the step-wise sum and F1 is taken over all
    thresholds, both as in scikit-learn. Raises ValueError for NaN or for another type or shape.
    """
    for name, scores in (("normal", normal), ("defective", defective)):
        _expect(name, scores, np.floating, 1)
        _refuse_nan(name, scores)
    if not (normal.size and defective.size):
        return Ranking(math.nan, math.nan, math.nan)
    dtype = np.result_type(normal, defective)
    return _sweep(np.array(normal, dtype=dtype), np.sort(defective.astype(dtype, copy=False)))[0]


def regions(masks: np.ndarray) -> Regions:
    """Label the 8-connected regions of each mask: once, to be reused for all maps of the same images.

    masks: (N, H, W) bool at evaluation size (our choice). Raises ValueError for another type or shape.
    """
    _expect("masks", masks, np.bool_, 3)
    labels, count = [np.empty(0, dtype=np.int32)], 0
    for mask in masks:
        if mask.any():
            labelled, here = ndimage.label(mask, np.ones((3, 3)))
            labels.append(labelled[mask] + np.int32(count - 1))
            count += here
    flat = np.concatenate(labels)
    return Regions(labels=flat, sizes=np.bincount(flat, minlength=count))


def evaluate(
    image_scores: np.ndarray,
    labels: np.ndarray,
    maps: np.ndarray,
    masks: np.ndarray,
    regions: Regions | None = None,
    aupro_limits: Sequence[float] = (0.3, 0.05),
    place: torch.device | None = None,
) -> dict[str, float | None]:
    """All metrics of one test set: shares in [0, 1], or None where one class, or every region, is absent.

    image_scores: (N,) float. labels: (N,) bool, True is anomalous. maps: (N, H, W) float32, higher is more anomalous.
    masks: (N, H, W) bool, True is defective; an anomalous image may have an empty mask, all its pixels are normal then.
    regions: `regions(masks)`, if at hand. aupro_limits: false positive rates in (0, 1], at most two decimals.
    place: the device that sorts and counts pixels, None for NumPy on the host; the numbers are the same.

    Keys: image_auroc, image_ap, image_f1_max, the same three for pixel_, and aupro_0.30, aupro_0.05: one a limit.
    AUPRO follows Bergmann et al., "The MVTec Anomaly Detection Dataset", IJCV 2021: the false positive rate is over all
    normal pixels of the test set, every region weighs the same, and only the axis of the rate is normalised.
    Raises ValueError for a wrong type or shape, NaN, a defective pixel in a normal image, or regions of other masks.
    """
    check(image_scores, labels, maps, masks, aupro_limits)
    image = ranking(image_scores[~labels], image_scores[labels])
    pixel, aupros = _localisation(maps, masks, regions, aupro_limits, place)
    values = {f"aupro_{limit:.2f}": value for limit, value in zip(aupro_limits, aupros, strict=True)}
    values = {name: None if math.isnan(value) else value for name, value in values.items()}
    return named("image", image) | named("pixel", pixel) | values


def named(level: str, found: Ranking) -> dict[str, float | None]:
    """As records hold it: `image_auroc` and so on; None for NaN."""
    return {f"{level}_{name}": None if math.isnan(value) else value for name, value in vars(found).items()}


def check(
    image_scores: np.ndarray, labels: np.ndarray, maps: np.ndarray, masks: np.ndarray, aupro_limits: Sequence[float]
) -> None:
    """Raises ValueError for what `evaluate` refuses, in one line."""
    _expect("image_scores", image_scores, np.floating, 1)
    _expect("labels", labels, np.bool_, 1)
    _expect("maps", maps, np.floating, 3)
    _expect("masks", masks, np.bool_, 3)
    if maps.shape != masks.shape or not len(image_scores) == len(labels) == len(maps):
        shapes = ", ".join(str(array.shape) for array in (image_scores, labels, maps, masks))
        raise ValueError(f"image_scores, labels, maps and masks do not match: {shapes}")
    _refuse_nan("image_scores", image_scores)
    _refuse_nan("maps", maps)
    contradictions = masks.any(axis=(1, 2)) & ~labels
    if contradictions.any():
        raise ValueError(f"masks[{contradictions.argmax()}] has defective pixels, but its label says normal")
    for limit in aupro_limits:
        if not 0 < limit <= 1 or round(limit, 2) != limit:
            raise ValueError(f"AUPRO limit {limit} is not in (0, 1] with at most two decimals")


def _localisation(
    maps: np.ndarray,
    masks: np.ndarray,
    found: Regions | None,
    limits: Sequence[float],
    place: torch.device | None,
) -> tuple[Ranking, list[float]]:
    found = regions(masks) if found is None else found
    normal, defective = maps[~masks], maps[masks]
    if found.labels.size != defective.size:
        raise ValueError(f"regions hold {found.labels.size} defective pixels, but masks have {defective.size}")
    if not (normal.size and defective.size):
        return Ranking(math.nan, math.nan, math.nan), [math.nan] * len(limits)
    order = np.argsort(defective)
    defective = defective[order]
    share = 1 / (found.sizes.size * found.sizes)  # of the mean overlap, for one pixel of each region
    return _sweep(normal, defective, share[found.labels[order]], limits, place)


def _sweep(
    negatives: np.ndarray,
    positives: np.ndarray,
    weights: np.ndarray | None = None,
    limits: Sequence[float] = (),
    place: torch.device | None = None,
) -> tuple[Ranking, list[float]]:
    """The metrics of (N,) negatives, which are reordered in place, and (P,) ascending positives, neither empty.

    weights: (P,) float64, what each positive adds to the mean overlap of the regions; needed only for AUPRO's limits.
    """
    n, p = negatives.size, positives.size
    threads = max(1, min(_THREADS, n // _SMALLEST_SLICE))
    slices = np.array_split(negatives, threads) if place is None else [torch.from_numpy(negatives).to(place)]

    def contributions(start: int) -> tuple[float, ...]:
        scores = positives[start : start + _BLOCK]
        above, reached = sum(_count(part, scores) for part in slices)
        found = p - np.searchsorted(positives, scores)  # positives at least as high
        # Not @: BLAS would spin more threads, and the last digits of its sum depend on how many.
        areas = ((weights[start : start + _BLOCK] * area_up_to(limit * n, above, reached)).sum() for limit in limits)
        f1 = 2 * found / (p + found + reached)
        return int((above + reached).sum()), (found / (found + reached)).sum(), f1.max(), *areas

    with ThreadPoolExecutor(len(slices)) as pool:
        slices = list(pool.map(_ascending, slices))
        misranked, precision, f1, *areas = zip(*pool.map(contributions, range(0, p, _BLOCK)), strict=True)
    # A tie is half a misranked pair, so pairs were counted twice, as integers. A threshold that adds no positive adds
    # nothing to AP and only lowers F1: the scores of the positives are all the thresholds they need.
    ranked = Ranking(1 - sum(misranked) / (2 * n * p), float(sum(precision)) / p, float(max(f1)))
    return ranked, [float(sum(area)) / (limit * n) for area, limit in zip(areas, limits, strict=True)]


def _ascending(scores: np.ndarray | torch.Tensor) -> np.ndarray | torch.Tensor:
    if isinstance(scores, torch.Tensor):
        return scores.sort().values
    scores.sort()
    return scores


def _count(negatives: np.ndarray | torch.Tensor, scores: np.ndarray) -> np.ndarray:
    """(2, n) int64: how many ascending `negatives` are above each of the n ascending `scores`, and at least as high."""
    if isinstance(negatives, torch.Tensor):
        sought = torch.from_numpy(scores).to(negatives.device)
        found = [torch.searchsorted(negatives, sought, side=side) for side in ("right", "left")]
        return len(negatives) - torch.stack(found).cpu().numpy()
    below = np.searchsorted(negatives, scores)
    not_above = below.copy()
    tied = negatives[np.minimum(below, negatives.size - 1)] == scores  # few: only these need the second search
    not_above[tied] = np.searchsorted(negatives, scores[tied], "right")
    return negatives.size - np.stack((not_above, below))


def area_up_to(end: float, above: np.ndarray, reached: np.ndarray) -> np.ndarray:
    """Area up to `end` false positives under a curve that rises linearly from 0 at `above` to 1 at `reached`."""
    low, high = np.minimum(above, end), np.minimum(reached, end)
    return (high - low) ** 2 / (2 * np.maximum(reached - above, 1)) + (end - high)


def _expect(name: str, array: np.ndarray, kind: type, ndim: int) -> None:
    if array.ndim != ndim or not np.issubdtype(array.dtype, kind):
        raise ValueError(f"{name} is {array.dtype}{array.shape}, expected {kind.__name__} with {ndim} dimensions")


def _refuse_nan(name: str, scores: np.ndarray) -> None:
    highest = scores.max(axis=tuple(range(1, scores.ndim)), initial=-np.inf)  # max hands NaN on and copies nothing
    if np.isnan(highest).any():
        raise ValueError(f"{name}[{np.isnan(highest).argmax()}] is or holds NaN")
