"""AUPIMO: how much of each anomalous image's defect is found at thresholds that leave normal images alone.

Bertoldo et al., "AUPIMO: Redefining Visual Anomaly Detection Benchmarks with High Speed and Low Tolerance", BMVC 2024.
Exact, in one pass over the normal maps that keeps a ten-thousandth of their scores: the thresholds are scores of normal
pixels, and only the highest of these are within the bounds.
"""

import math
from collections.abc import Iterable

import numpy as np

BOUNDS = (1e-5, 1e-4)  # false positive rates between which the paper integrates
Ranked = tuple[np.ndarray, np.ndarray, np.ndarray]


def aupimo(
    maps: np.ndarray,
    labels: np.ndarray,
    masks: np.ndarray,
    ranked: Ranked | None = None,
    bounds: tuple[float, float] = BOUNDS,
) -> np.ndarray | None:
    """(A,) float64 shares in [0, 1]: the AUPIMO of each anomalous image that has a defective pixel, in their order.

    The area under the image's true positive rate over the logarithm of the shared false positive rate, divided by the
    width of that axis. The shared rate is the mean over normal images of their share of pixels above the threshold. An
    anomalous image without a defective pixel (an empty mask, or none) is in neither rate. Between normal pixels of
    consecutive scores the curve is a step, where anomalib puts trapezoids between points of a fixed grid of thresholds;
    at a score that normal and defective pixels share it rises linearly with the false positive rate, as AUPRO's does.

    Args:
        maps: (N, H, W) float without NaN, maybe in a file; labels: (N,) bool, True is anomalous; masks: (N, H, W) bool,
            True is defective, in anomalous images only.
        ranked: if at hand the scores of the defective pixels, ascending, the region of each, and the regions' sizes (as
            `metrics.Regions` has them).
        bounds: false positive rates, the lower one above 0.

    Returns:
        None where it is not defined: no anomalous image has a defective pixel, or the normal images have so few pixels
        that the lower bound is less than one of them (below 100,000 for the paper's; anomalib raises there).
    """
    pixels = int((~labels).sum()) * maps[:1].size
    low, high = (bound * pixels for bound in bounds)
    counts = np.array([np.count_nonzero(masks[place]) for place in np.flatnonzero(labels)], np.int64)
    sizes = counts[counts > 0]
    if not sizes.size or low < 1 - 1e-9:
        return None
    thresholds, more = _highest((maps[place] for place in np.flatnonzero(~labels)), math.ceil(high))
    scores, parts, of_parts = ranked or _ranked(maps[masks], sizes, thresholds[0])
    first = np.searchsorted(scores, thresholds[0])  # those before it are found beyond the bounds
    scores, images = scores[first:], np.searchsorted(np.cumsum(sizes), np.cumsum(of_parts))[parts[first:]]
    # All scores that equal a threshold add the same to the area, and so do all between it and the next.
    levels, starts, ties = np.unique(thresholds, return_index=True, return_counts=True)
    above, reached = thresholds.size - starts - ties, thresholds.size - starts
    reached[0] += more
    equal, higher = np.searchsorted(scores, levels), np.searchsorted(scores, levels, "right")
    numbers = np.stack([higher - equal, np.append(equal[1:], scores.size) - higher], 1)
    areas = np.stack([_area(above, reached, low, high), _area(above, above, low, high)], 1)
    found = np.bincount(images, np.repeat(areas.ravel(), numbers.ravel()), minlength=sizes.size)
    return found / (sizes * math.log(high / low))


def mean(maps: np.ndarray, labels: np.ndarray, masks: np.ndarray, ranked: Ranked | None = None) -> float | None:
    """The mean of `aupimo` over images, as the record has it; None where that is."""
    found = aupimo(maps, labels, masks, ranked)
    return None if found is None else float(found.mean())


def _ranked(scores: np.ndarray, sizes: np.ndarray, lowest: float) -> Ranked:
    """As `aupimo` takes them: of scores by image, in such numbers, those that are not below the lowest threshold."""
    hits = np.flatnonzero(scores >= lowest)
    hits = hits[np.argsort(scores[hits])]
    return scores[hits], np.repeat(np.arange(sizes.size), sizes)[hits], sizes


def _highest(maps: Iterable[np.ndarray], count: int) -> tuple[np.ndarray, int]:
    """The `count` highest scores in all maps, ascending, and how many others equal the lowest of them."""
    kept, more = np.empty(0), 0
    for scores in maps:
        full = kept.size == count
        lowest = kept[0] if full else -np.inf
        kept = np.append(kept, scores[scores >= lowest]) if kept.size else scores.ravel()
        if kept.size >= count:
            kept = np.partition(kept, kept.size - count)  # of those that are kept the lowest comes first
            kept, cut = kept[-count:], kept[:-count]
            more = int((cut == kept[0]).sum()) + (more if full and kept[0] == lowest else 0)
    return np.sort(kept), more


def _area(above: np.ndarray, reached: np.ndarray, low: float, high: float) -> np.ndarray:
    """Area over the logarithm of x from `low` to `high`, under a line from 0 at `above` to 1 at `reached`, then 1."""
    start, end = np.clip(above, low, high), np.clip(reached, low, high)
    rising = (end - start - above * np.log(end / start)) / np.maximum(reached - above, 1)
    return rising + np.log(high / end)
