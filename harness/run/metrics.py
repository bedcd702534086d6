"""Exact detection and localisation metrics from one pass over the scores.

The many negatives are sorted once. Every metric here changes only where a positive changes sides, so all of them are
read from counts at the scores of the few positives: how many negatives are above, and how many at least as high.
Ties are exact, -0.0 equals 0.0, infinite scores rank as they compare, and NaN is refused.
"""

import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from scipy import ndimage

from harness.environment import core_count
from harness.run import pimo

# NumPy works outside the GIL, so slices are sorted, and blocks counted, side by side; the numbers do not depend on it.
# Mostly one thread would do (6.5 M float32: 0.05 s), but NumPy's AVX-512 sort is slow on AMD's Zen 4 (0.3 s; issue 6 of
# numpy/x86-simd-sort).
_THREADS = min(4, core_count())
_SMALLEST_SLICE = 2**20  # scores, for sorting it beside to be worth a thread
_SEARCH_IN_SORTED = 7  # scores are sorted in the time of one search, which every positive does in every slice
_SIGN, _ALL = np.uint32(2**31), np.uint32(2**32 - 1)  # bits of a float32
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

    Attributes:
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
    normal, defective = (np.sort(scores.astype(dtype, copy=False)) for scores in (normal, defective))
    return _sweep([normal], defective)[0]


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
    known: np.ndarray | None = None,
) -> dict[str, float | None]:
    """All metrics of one test set: shares in [0, 1], or None where one class, or every region, is absent.

    Args:
        image_scores: (N,) float.
        labels: (N,) bool, True is anomalous.
        maps: (N, H, W) float32, higher is more anomalous.
        masks: (N, H, W) bool, True is defective. An anomalous image may have an empty mask: all its pixels are normal.
        regions: `regions(masks)`, if at hand.
        aupro_limits: false positive rates in (0, 1], at most two decimals.
        place: the device that sorts and counts pixels, None for NumPy on the host; the numbers are the same.
        known: (N,) bool, the images whose pixels' truth is known; None for all. The others count as images only.

    Keys: image_auroc, image_ap, image_f1_max, the same three for pixel_, aupro_0.30, aupro_0.05: one a limit, and
    aupimo (`pimo.aupimo`, the mean over images).
    AUPRO follows Bergmann et al., "The MVTec Anomaly Detection Dataset", IJCV 2021: the false positive rate is over all
    normal pixels of the test set, every region weighs the same, and only the axis of the rate is normalised.

    Raises:
        ValueError: a wrong type or shape, NaN, a defective pixel in a normal image or in one whose truth is not known,
            or regions of other masks.
    """
    check(image_scores, labels, maps, masks, aupro_limits, known)
    image = ranking(image_scores[~labels], image_scores[labels])
    pixel, aupros, aupimo = _localisation(maps, masks, labels, regions, aupro_limits, place, known)
    values = {f"aupro_{limit:.2f}": value for limit, value in zip(aupro_limits, aupros, strict=True)}
    values = {name: None if math.isnan(value) else value for name, value in values.items()}
    return named("image", image) | named("pixel", pixel) | values | {"aupimo": aupimo}


def named(level: str, found: Ranking) -> dict[str, float | None]:
    """As records hold it: `image_auroc` and so on; None for NaN."""
    return {f"{level}_{name}": None if math.isnan(value) else value for name, value in vars(found).items()}


def check(
    image_scores: np.ndarray,
    labels: np.ndarray,
    maps: np.ndarray,
    masks: np.ndarray,
    aupro_limits: Sequence[float],
    known: np.ndarray | None = None,
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
    defective = masks.any(axis=(1, 2))
    for contradictions, said in ((~labels, "label says normal"), (~known_of(known, labels), "truth is not known")):
        if (contradictions & defective).any():
            raise ValueError(f"masks[{(contradictions & defective).argmax()}] has defective pixels, but its {said}")
    for limit in aupro_limits:
        if not 0 < limit <= 1 or round(limit, 2) != limit:
            raise ValueError(f"AUPRO limit {limit} is not in (0, 1] with at most two decimals")


def known_of(known: np.ndarray | None, labels: np.ndarray) -> np.ndarray:
    """`known`, or all True in its place. Raises ValueError for another type or shape."""
    if known is None:
        return np.ones(len(labels), np.bool_)
    _expect("known", known, np.bool_, 1)
    if known.shape != labels.shape:
        raise ValueError(f"known and labels do not match: {known.shape}, {labels.shape}")
    return known


def _localisation(
    maps: np.ndarray,
    masks: np.ndarray,
    anomalous: np.ndarray,
    found: Regions | None,
    limits: Sequence[float],
    place: torch.device | None,
    known: np.ndarray | None,
) -> tuple[Ranking, list[float], float | None]:
    defective, normal = maps[masks], ~masks
    if known is not None:
        normal &= known[:, None, None]
    most = maps.size // max(_SMALLEST_SLICE, _SEARCH_IN_SORTED * defective.size) if place is None else 1
    count = max(1, min(_THREADS, most))
    parts = (np.array_split(array.ravel(), count) for array in (maps, normal))
    with ThreadPoolExecutor(count) as beside:
        slices = beside.map(lambda scores, normal: _ascending(scores[normal], place), *parts)
        found = regions(masks) if found is None else found
        if found.labels.size != defective.size:
            raise ValueError(f"regions hold {found.labels.size} defective pixels, but masks have {defective.size}")
        if not defective.size or not normal.any():
            return Ranking(math.nan, math.nan, math.nan), [math.nan] * len(limits), None
        defective, labels = _by_score(defective, found.labels)
        share = 1 / (found.sizes.size * found.sizes)  # of the mean overlap, for one pixel of each region
        by_image = pimo.mean(maps, anomalous, masks, (defective, labels, found.sizes))
        return *_sweep(list(slices), defective, share[labels], limits), by_image


def _by_score(scores: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(P,) scores ascending, and the int32 labels >= 0 in that order."""
    if scores.dtype != np.float32:
        order = np.argsort(scores)
        return scores[order], labels[order]
    # One sort of integers that hold both, in place of an argsort and two gathers. The bits of floats rank as the floats
    # do once the negative ones are turned round; adding 0 makes -0.0 equal 0.0.
    bits = (scores + np.float32(0)).view(np.uint32)
    bits ^= np.where(bits >> 31, _ALL, _SIGN)
    both = bits.astype(np.uint64) << np.uint64(32) | labels.astype(np.uint64)
    both.sort()
    bits = (both >> np.uint64(32)).astype(np.uint32)
    bits ^= np.where(bits >> 31, _SIGN, _ALL)
    return bits.view(np.float32), both.astype(np.uint32).view(np.int32)


def _ascending(scores: np.ndarray, place: torch.device | None) -> np.ndarray | torch.Tensor:
    """The scores sorted, in place or on the device."""
    if place is not None:
        return torch.from_numpy(scores).to(place).sort().values
    scores.sort()
    return scores


def _sweep(
    slices: Sequence[np.ndarray] | Sequence[torch.Tensor],
    positives: np.ndarray,
    weights: np.ndarray | None = None,
    limits: Sequence[float] = (),
) -> tuple[Ranking, list[float]]:
    """The metrics of N negatives, in ascending slices, and (P,) ascending positives, neither empty.

    weights: (P,) float64, what each positive adds to the mean overlap of the regions; needed only for AUPRO's limits.
    """
    n, p = sum(len(part) for part in slices), positives.size
    repeated = np.append(False, positives[1:] == positives[:-1])

    def contributions(start: int) -> tuple[float, ...]:
        scores = positives[start : start + _BLOCK]
        above, reached = (sum(counts) for counts in zip(*(_count(part, scores) for part in slices), strict=True))
        tied = repeated[start : start + _BLOCK].any()
        lower = np.searchsorted(positives, scores) if tied else np.arange(start, start + scores.size)
        found = p - lower  # positives at least as high
        flagged = found + reached
        # Not @: BLAS would spin more threads, and the last digits of its sum depend on how many.
        areas = (
            (weights[start : start + _BLOCK] * area_up_to(limit * n, above, reached)).sum()
            if above[-1] < limit * n  # else none of them has an area
            else 0.0
            for limit in limits
        )
        f1 = 2 * (found / (p + flagged)).max()
        return int((above + reached).sum()), (found / flagged).sum(), f1, *areas

    with ThreadPoolExecutor(_THREADS) as pool:
        misranked, precision, f1, *areas = zip(*pool.map(contributions, range(0, p, _BLOCK)), strict=True)
    # A tie is half a misranked pair, so pairs were counted twice, as integers. A threshold that adds no positive adds
    # nothing to AP and only lowers F1: the scores of the positives are all the thresholds they need.
    ranked = Ranking(1 - sum(misranked) / (2 * n * p), float(sum(precision)) / p, float(max(f1)))
    return ranked, [float(sum(area)) / (limit * n) for area, limit in zip(areas, limits, strict=True)]


def _count(negatives: np.ndarray | torch.Tensor, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """How many ascending `negatives` are above each of the n ascending `scores`, and at least as high: (n,) float64,
    which all that is made of them would turn them to.
    """
    if isinstance(negatives, torch.Tensor):
        sought = torch.from_numpy(scores).to(negatives.device)
        found = [torch.searchsorted(negatives, sought, side=side) for side in ("right", "left")]
        above, reached = (len(negatives) - torch.stack(found).double()).cpu().numpy()
        return above, reached
    start, stop = np.searchsorted(negatives, scores[0]), np.searchsorted(negatives, scores[-1], "right")
    near = negatives[start:stop]  # all that the searches need look at: it stays in cache
    below = np.searchsorted(near, scores)
    rest = float(negatives.size - start)
    reached = rest - below
    if not near.size:
        return reached, reached
    tied = np.flatnonzero(near.take(below, mode="clip") == scores)  # few: only these need the second search
    above = reached.copy()
    above[tied] = rest - np.searchsorted(near, scores[tied], "right")
    return above, reached


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
