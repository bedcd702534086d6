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
from harness.resampling import Interval, clopper_pearson, percentile_interval, resample_classes

RATES = (0.01, 0.05, 0.1)  # that thresholds are made for beside the evaluation's own
DRAWS = 2000  # of a bootstrap: of grouped images each takes 16 bytes an image
STREAM = 20_260  # its seed

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
    null without a threshold, and where one class is absent.

    Intervals of the first two are Clopper and Pearson's where each test image shows another object; else, and of the
    other two, of a bootstrap within the classes (whole groups together): precision is that at the test set's share of
    anomalous images.
    """
    names = ("fpr", "recall", "precision", "f1")
    labels = np.array([one.anomalous for one in samples], bool)
    normal, anomalous = int((~labels).sum()), int(labels.sum())
    point: dict[str, tuple[float | None, Interval | None]] = dict.fromkeys(names, (None, None))
    if limit is not None:
        called = scores > limit
        false, found = int(called[~labels].sum()), int(called[labels].sum())
        groups = np.array([unit_of(one) for one in samples])
        grouped = len(set(groups)) < len(groups)
        drawn = (
            _drawn(called, labels, groups)
            if grouped and normal and anomalous
            else _binomial((false, normal), (found, anomalous))
        )
        if normal:
            exact = clopper_pearson(false, normal)
            point["fpr"] = false / normal, percentile_interval(drawn[0]) if grouped and anomalous else exact
        if anomalous:
            exact = clopper_pearson(found, anomalous)
            point["recall"] = found / anomalous, percentile_interval(drawn[1]) if grouped and normal else exact
            own = (np.array([false / max(normal, 1)]), np.array([found / anomalous]))
            for name, share in (("precision", _precision), ("f1", _f1)):
                value = float(share(own, normal, anomalous)[0])
                if not math.isnan(value):
                    many = share(drawn, normal, anomalous)
                    point[name] = value, percentile_interval(many[~np.isnan(many)])
    result: dict[str, Any] = {f"{name}_at_threshold": value for name, (value, _) in point.items()}
    return result | {
        f"{name}_at_threshold_interval": None if interval is None else list(interval)
        for name, (_, interval) in point.items()
    }


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


def _drawn(called: np.ndarray, labels: np.ndarray, groups: np.ndarray) -> Rates:
    """Of samples of whole groups, as the leaderboard draws them."""
    streams = np.random.SeedSequence(STREAM).spawn(3)
    shares = resample_classes(groups[~labels], groups[labels], DRAWS, streams)
    false, found = (share @ called[which] for share, which in zip(shares, (~labels, labels), strict=True))
    return false, found


def _binomial(*counts: tuple[int, int]) -> Rates:
    """Of samples of single images: of each class so many of so many are called anomalous."""
    streams = np.random.SeedSequence(STREAM).spawn(len(counts))
    first, second = (
        np.random.default_rng(stream).binomial(total, part / max(total, 1), DRAWS) / max(total, 1)
        for (part, total), stream in zip(counts, streams, strict=True)
    )
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
