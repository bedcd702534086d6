"""Draws of whole groups of images, and intervals of shares: pure functions of arrays.

Shares stay shares (0 to 1). Every random draw comes from a stream that the caller names, so equal input gives equal
numbers. Sources: docs/leaderboard.md.
"""

from collections.abc import Sequence

import numpy as np
from scipy import special  # scipy.stats takes most of a second to import

DRAWS = 10_000  # of a bootstrap

Interval = tuple[float, float]


def percentile_interval(values: np.ndarray) -> Interval:
    """The 2.5 % and 97.5 % quantiles of (draws,) values: the percentile bootstrap's 95 % interval (Efron, 1979)."""
    low, high = np.quantile(values, (0.025, 0.975))
    return float(low), float(high)


def resample(groups: np.ndarray, draws: int, stream: np.random.SeedSequence) -> np.ndarray:
    """(draws, n) float64, rows of sum 1: the share of each item in samples of whole groups, drawn with replacement.

    groups: (n,) labels; items of equal label are drawn together, and as many groups are drawn as there are.
    """
    names, place = np.unique(groups, return_inverse=True)
    generator = np.random.default_rng(stream)
    counts = generator.multinomial(len(names), np.full(len(names), 1 / len(names)), draws)[:, place]
    return counts / counts.sum(axis=1, keepdims=True)


def resample_classes(
    normal: np.ndarray, anomalous: np.ndarray, draws: int, streams: Sequence[np.random.SeedSequence]
) -> tuple[np.ndarray, np.ndarray]:
    """As `resample`, of normal (N,) and anomalous (A,) images by their groups: (draws, N) and (draws, A). Groups of
    normal images, of anomalous ones and of both are drawn apart, so that neither class is ever without an image.

    streams: one for each of the three.
    """
    both = np.intersect1d(normal, anomalous)
    drawn = []
    for names, stream in zip((np.setdiff1d(normal, both), np.setdiff1d(anomalous, both), both), streams, strict=True):
        n = max(len(names), 1)
        counts = np.random.default_rng(stream).multinomial(len(names), np.full(n, 1 / n), draws)
        drawn.append(dict(zip(names, counts.T, strict=False)))
    times = drawn[0] | drawn[1] | drawn[2]
    counts = (np.stack([times[name] for name in groups], axis=1) for groups in (normal, anomalous))
    first, second = (each / each.sum(axis=1, keepdims=True) for each in counts)
    return first, second


def clopper_pearson(count: int, total: int) -> Interval:
    """The exact 95 % interval of a share, of which `count` of `total` >= 1 were seen (Clopper and Pearson, 1934)."""
    low = float(special.betaincinv(count, total - count + 1, 0.025)) if count else 0.0
    high = float(special.betaincinv(count + 1, total - count, 0.975)) if count < total else 1.0
    return low, high
