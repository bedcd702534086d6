"""Pixel metrics from histograms of the scores, for test sets whose maps do not fit in memory.

Two passes over the maps, a few images at a time: one finds the range of the scores, one counts normal and defective
pixels in bins of equal width. Scores of one bin then count as tied, and what that can change is bounded: the counts
limit where the true curve runs within a bin. Image metrics and AUPIMO are exact.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import digamma

from harness.run import metrics, pimo

BINS = 65_536
_CHUNK = 2**22  # pixels that are looked at together


@dataclass(frozen=True, eq=False)
class Histogram:
    """Pixels by score, in bins from the lowest to the highest.

    Attributes:
        normal: (B,) int64, normal pixels in each bin.
        defective: (B,) int64, defective ones.
        overlap: (B,) float64, what the defective ones add to the mean overlap of the regions; 1 in all.
    """

    normal: np.ndarray
    defective: np.ndarray
    overlap: np.ndarray


def evaluate(
    image_scores: np.ndarray,
    labels: np.ndarray,
    maps: np.ndarray,
    masks: np.ndarray,
    regions: metrics.Regions,
    aupro_limits: Sequence[float] = (0.3, 0.05),
    known: np.ndarray | None = None,
) -> tuple[dict[str, float | None], dict[str, float]]:
    """The metrics of `metrics.evaluate`, which takes the same arguments, and for each that is estimated a bound: the
    exact value is no further away. `maps` and `masks` may lie in memory-mapped files.

    Raises:
        ValueError: as `metrics.evaluate`, and for scores that are not finite.
    """
    metrics.check(image_scores, labels, maps, masks, aupro_limits, known)
    values = metrics.named("image", metrics.ranking(image_scores[~labels], image_scores[labels]))
    pixel, bounds = localisation(histogram(maps, masks, regions, known=known), aupro_limits)
    return values | pixel | {"aupimo": pimo.mean(maps, labels, masks)}, bounds


def histogram(
    maps: np.ndarray,
    masks: np.ndarray,
    regions: metrics.Regions,
    bins: int = BINS,
    known: np.ndarray | None = None,
) -> Histogram:
    """Count the pixels of (N, H, W) float maps, of those images that are `known` ((N,) bool; None for all). Raises
    ValueError for regions of other masks, or infinite scores.
    """
    ends = [(float(scores.min()), float(scores.max())) for scores, _ in _pieces(maps, masks, known)] or [(0.0, 0.0)]
    lowest, highest = min(low for low, _ in ends), max(high for _, high in ends)
    width = highest - lowest
    if not np.isfinite(width):
        raise ValueError("maps hold scores that are not finite, over which no bins can be laid; write metrics: exact")
    share = 1 / (max(1, regions.sizes.size) * regions.sizes)
    normal, defective = np.zeros(bins, np.int64), np.zeros(bins, np.int64)
    overlap = np.zeros(bins)
    seen = 0
    for scores, mask in _pieces(maps, masks, known):
        # Rounding keeps the order, so no pixel comes into a bin below that of a lower score.
        place = np.subtract(scores, lowest, dtype=np.float64) / (width or 1) * bins
        place = np.minimum(place.astype(np.int64), bins - 1)
        found = place[mask]
        region = regions.labels[seen : seen + found.size]
        seen += found.size
        normal += np.bincount(place[~mask], minlength=bins)
        defective += np.bincount(found, minlength=bins)
        if region.size == found.size:
            overlap += np.bincount(found, weights=share[region], minlength=bins)
    if seen != regions.labels.size:
        raise ValueError(f"regions hold {regions.labels.size} defective pixels, but masks have {seen}")
    return Histogram(normal, defective, overlap)


def _pieces(maps: np.ndarray, masks: np.ndarray, known: np.ndarray | None) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Maps and masks of the known images, a few at a time, none of them empty."""
    step = max(1, _CHUNK // max(1, maps[:1].size))
    for start in range(0, len(maps), step):
        piece = slice(start, start + step)
        scores, mask = maps[piece], masks[piece]
        if known is not None and not known[piece].all():
            scores, mask = scores[known[piece]], mask[known[piece]]
        if scores.size:
            yield scores, mask


def localisation(counts: Histogram, limits: Sequence[float]) -> tuple[dict[str, float | None], dict[str, float]]:
    """Pixel AUROC, AP, F1-max and AUPRO at the limits from a histogram, and how far the exact values may be away.

    None, without a bound, where one class is absent.
    """
    names = ["pixel_auroc", "pixel_ap", "pixel_f1_max", *(f"aupro_{limit:.2f}" for limit in limits)]
    n, p = int(counts.normal.sum()), int(counts.defective.sum())
    if not (n and p):
        return dict.fromkeys(names), {}
    used = np.flatnonzero(counts.defective)[::-1]  # the thresholds that matter, the highest first
    here, overlap = counts.defective[used].astype(np.float64), counts.overlap[used]  # products may exceed an int64
    reached = np.cumsum(counts.normal[::-1])[::-1][used]  # normal pixels in this bin and above
    above = reached - counts.normal[used]
    found = np.cumsum(here)
    before = found - here

    # Each pair of one bin counts half, and may count 0 or 1.
    tied = float((here * (reached - above)).sum()) / (n * p)
    auroc = float((here * (n - reached)).sum()) / (n * p) + tied / 2
    estimates = [(auroc, auroc - tied / 2, auroc + tied / 2)]

    # Best: all defective pixels of the bin come before its normal ones, at one score. Worst: after them, one by one;
    # the precisions k / (k + reached) of k = before + 1 ... found add up to a difference of digammas.
    ap = float((here * found / (found + reached)).sum()) / p
    worst = here - reached * (digamma(found + reached + 1) - digamma(before + reached + 1))
    estimates.append((ap, float(worst.sum()) / p, float((here * found / (found + above)).sum()) / p))

    # The thresholds between bins are among the exact curve's own: the estimate is reached.
    f1 = float((2 * found / (p + found + reached)).max())
    estimates.append((f1, f1, float((2 * found / (p + found + above)).max())))

    for limit in limits:
        end = limit * n
        area = metrics.area_up_to(end, above, reached)
        least, most = end - np.minimum(reached, end), end - np.minimum(above, end)
        estimates.append(tuple(float((overlap * each).sum()) / end for each in (area, least, most)))
    values = {name: value for name, (value, _, _) in zip(names, estimates, strict=True)}
    bounds = {
        name: max(value - lowest, highest - value)
        for name, (value, lowest, highest) in zip(names, estimates, strict=True)
    }
    return values, bounds
