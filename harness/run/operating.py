"""Thresholds of one evaluation, made of normal images alone, and how well they do on the test images. Pure.

An image is called anomalous, and a pixel marked, where its score is above the threshold. Sources: `dskd.conformal`;
Clopper and Pearson, Biometrika 1934 (intervals of shares); Efron, 1979 (bootstrap).
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from dskd.conformal import least_rate, thresholds, unit_weights
from harness.data.catalog import Sample
from harness.data.held_out import unit_of
from harness.resampling import Interval, clopper_pearson, percentile_interval, resample, resample_classes

RATES = (0.01, 0.05, 0.1)  # that thresholds are made for beside the evaluation's own
DRAWS = 2000  # of a bootstrap: of grouped images each takes 16 bytes an image
STREAM = 20_260  # its seed
NAMES = ("fpr", "recall", "precision", "f1")

Rates = tuple[np.ndarray, np.ndarray]  # false positive rates and recalls, by draw


def thresholds_of(scores: np.ndarray, maps: np.ndarray, groups: Sequence[str], rate: float) -> dict[str, Any]:
    """As an evaluation's record has them; null where there are too few groups for a rate.

    Args:
        scores: (n,) float64 of normal images that nothing has seen; maps: (n, H, W) float32; groups: of each image.
        rate: the false alarm rate of `threshold` and `pixel_threshold`.
    """
    rates, weights = sorted({*RATES, rate}), unit_weights(groups)
    images, pixels = ([_finite(each) for each in thresholds(of, weights, rates)] for of in (scores, maps))
    units, main = len(set(groups)), rates.index(rate)
    return {
        "false_alarm_rate": rate,
        "least_false_alarm_rate": least_rate(units),
        "calibration_images": len(groups),
        "calibration_groups": units,
        "threshold": images[main],
        "pixel_threshold": pixels[main],
        "thresholds": {f"{each:g}": found for each, found in zip(rates, images, strict=True)},
        "pixel_thresholds": {f"{each:g}": found for each, found in zip(rates, pixels, strict=True)},
    }


def operating_point(scores: np.ndarray, samples: Sequence[Sample], limit: float | None) -> dict[str, Any]:
    """False positive rate, recall, precision and F1 of the test images at a threshold, each with its 95 % interval;
    null without a threshold, and where the class is absent.

    Intervals of the first two are Clopper and Pearson's where each image of the class shows another object, else of a
    bootstrap of whole groups (where none or all images are called anomalous there is nothing to draw, and it is Clopper
    and Pearson's over groups). Of the other two it is a bootstrap within the classes, so that precision is that at the
    test set's share of anomalous images; null where all draws are equal.
    """
    result: dict[str, Any] = {f"{name}_at_threshold{end}": None for end in ("", "_interval") for name in NAMES}
    if limit is None:
        return result
    labels, called = np.array([one.anomalous for one in samples], bool), scores > limit
    groups = np.array([unit_of(one) for one in samples])
    drawn = _drawn(called, labels, groups)
    found: dict[str, tuple[float, Interval | None]] = {}
    for name, which, rates in (("fpr", ~labels, drawn[0]), ("recall", labels, drawn[1])):
        if which.any():
            found[name] = float(called[which].mean()), _interval(called[which], groups[which], rates)
    normal, anomalous = int((~labels).sum()), int(labels.sum())
    if anomalous:
        own = tuple(np.array([found[name][0] if name in found else 0.0]) for name in ("fpr", "recall"))
        for name, share in (("precision", _precision), ("f1", _f1)):
            value, draws = float(share(own, normal, anomalous)[0]), share(drawn, normal, anomalous)
            if not math.isnan(value):
                draws = draws[~np.isnan(draws)]
                found[name] = value, percentile_interval(draws) if np.ptp(draws) else None
    for name, (value, interval) in found.items():
        result[f"{name}_at_threshold"] = value
        result[f"{name}_at_threshold_interval"] = None if interval is None else list(interval)
    return result


def marked_share(maps: np.ndarray, chosen: np.ndarray, limit: float | None) -> float | None:
    """Mean over the chosen images of (N, H, W) maps of the share of their pixels above the threshold; None without one
    or without images. `chosen`: bool (N,).
    """
    if limit is None or not chosen.any():
        return None
    return float(np.mean([float((maps[place] > limit).mean()) for place in np.flatnonzero(chosen)]))


def f1_max_threshold(scores: np.ndarray, labels: np.ndarray) -> float | None:
    """The threshold of the best F1 on these very images, which nobody who has only normal images can know: the highest
    score that is not called anomalous there. None where no image is anomalous.
    """
    if not labels.any():
        return None
    order = np.argsort(-scores, kind="stable")
    ordered, found = scores[order], np.cumsum(labels[order])
    last = np.append(ordered[1:] != ordered[:-1], True)  # of equal scores all are called so, or none
    f1 = 2 * found / (labels.sum() + np.arange(1, len(scores) + 1))
    best = int(np.argmax(np.where(last, f1, -1.0)))
    return _finite(float(ordered[best + 1] if best + 1 < len(ordered) else np.nextafter(ordered[best], -math.inf)))


def _interval(called: np.ndarray, groups: np.ndarray, rates: np.ndarray) -> Interval:
    """Of the share of one class's images that are called anomalous. `rates`: the same in each draw of a bootstrap."""
    units = len(set(groups))
    if units == len(groups):
        return clopper_pearson(int(called.sum()), len(called))
    if called.all() or not called.any():
        return clopper_pearson(units if called.all() else 0, units)
    return percentile_interval(rates)


def _drawn(called: np.ndarray, labels: np.ndarray, groups: np.ndarray) -> Rates:
    """Of samples of the images, whole groups together, as the leaderboard draws them; 0 for a class that is not
    there.
    """
    streams = np.random.SeedSequence(STREAM).spawn(3)
    parts = [(called[which], groups[which]) for which in (~labels, labels)]
    if len(set(groups)) == len(groups):  # then counts are binomial, and no image needs to be drawn
        draws = (
            np.random.default_rng(stream).binomial(len(own), own.mean(), DRAWS) / len(own)
            if len(own)
            else np.zeros(DRAWS)
            for (own, _), stream in zip(parts, streams, strict=False)
        )
    elif all(len(own) for own, _ in parts):
        shares = resample_classes(parts[0][1], parts[1][1], DRAWS, streams)
        draws = (share @ own for share, (own, _) in zip(shares, parts, strict=True))
    else:
        draws = (resample(names, DRAWS, streams[0]) @ own if len(own) else np.zeros(DRAWS) for own, names in parts)
    first, second = draws
    return first, second


def _precision(rates: Rates, normal: int, anomalous: int) -> np.ndarray:
    """NaN where nothing is called anomalous."""
    false, found = rates[0] * normal, rates[1] * anomalous
    with np.errstate(invalid="ignore"):
        return found / (false + found)


def _f1(rates: Rates, normal: int, anomalous: int) -> np.ndarray:
    false, found = rates[0] * normal, rates[1] * anomalous
    return 2 * found / (false + found + anomalous)


def _finite(value: float | None) -> float | None:
    """JSON has no other numbers."""
    return value if value is not None and math.isfinite(value) else None
