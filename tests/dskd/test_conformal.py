"""Thresholds and p-values from normal images alone, against plain loops and against what they promise."""

import math
from collections.abc import Sequence
from fractions import Fraction

import numpy as np
import pytest

from dskd.conformal import least_rate, p_values, threshold, thresholds, unit_weights, units_needed


@pytest.mark.parametrize("rate", ["0.01", "0.05", "0.1", "0.25", "0.5"])
@pytest.mark.parametrize("count", [1, 8, 9, 19, 20, 99, 100, 137])
def test_the_threshold_is_the_order_statistic_of_split_conformal(count: int, rate: str) -> None:
    scores = np.random.default_rng(count).normal(size=count)
    k = math.ceil((count + 1) * (1 - Fraction(rate)))
    expected = None if k > count else float(np.sort(scores)[k - 1])
    assert threshold(scores, unit_weights(range(count)), float(rate)) == expected
    assert (expected is None) == (Fraction(rate) < Fraction(1, count + 1))
    assert least_rate(count) == 1 / (count + 1)
    assert (expected is None) == (count < units_needed(float(rate)))


@pytest.mark.parametrize("grouped", [False, True])
def test_a_score_is_above_the_threshold_where_its_p_value_is_at_most_the_rate(grouped: bool) -> None:
    draw = np.random.default_rng(3)
    for trial in range(200):
        count = int(draw.integers(5, 40))
        normal = draw.integers(0, 12, count) / 4  # with many ties
        groups = draw.integers(0, 8, count) if grouped else range(count)
        weights, rate = unit_weights(groups), float(draw.choice([0.05, 0.1, 0.2, 0.3]))
        limit = threshold(normal, weights, rate)
        scores = np.concatenate([normal, draw.normal(1.5, 1, 50)])
        found = p_values(scores, normal, weights)
        units = len(set(groups))
        plain = [(1 + sum(w for s, w in zip(normal, weights, strict=True) if s >= one)) / (units + 1) for one in scores]
        np.testing.assert_allclose(found, plain, rtol=1e-12)
        assert found.max() <= 1, trial
        if limit is None:
            assert (found > rate).all(), trial
        else:
            np.testing.assert_array_equal(scores > limit, found <= rate + 1e-9, err_msg=str(trial))


def risk(maps: np.ndarray, groups: Sequence[int], limit: float) -> float:
    """(n R + 1) / (n + 1), R being the mean over groups of the mean share of pixels above the limit."""
    shares, names = (maps > limit).mean(axis=(1, 2)), set(groups)
    means = [np.mean([s for s, g in zip(shares, groups, strict=True) if g == name]) for name in names]
    return (sum(means) + 1) / (len(names) + 1)


def test_the_pixels_threshold_is_the_lowest_that_controls_the_risk() -> None:
    draw = np.random.default_rng(5)
    for trial in range(40):
        count, rate = int(draw.integers(12, 30)), 0.15
        maps = np.round(draw.gamma(2, size=(count, 4, 5)), 1).astype(np.float32)
        groups = draw.integers(0, 9, count) if trial % 2 else range(count)
        fit = [float(each) for each in np.unique(maps) if risk(maps, groups, each) <= rate + 1e-12]
        assert threshold(maps, unit_weights(groups), rate) == (min(fit) if fit else None)
        rates = [0.3, 0.01, rate, 0.95]
        alone = [threshold(maps, unit_weights(groups), each) for each in rates]
        assert thresholds(maps, unit_weights(groups), rates) == alone


@pytest.mark.parametrize("grouped", [False, True])
def test_the_promised_rate_is_kept(grouped: bool) -> None:
    """Over many draws of normal images, of objects that differ among each other where there are groups of images."""
    draw, rate, alarms, pixels = np.random.default_rng(7), 0.1, [], []
    for _ in range(3000):
        units, each = (25, 3) if grouped else (25, 1)
        objects = draw.normal(size=units + 1)
        maps = objects.repeat(each)[:, None, None] + 0.3 * draw.normal(size=((units + 1) * each, 3, 3))
        groups = np.arange(units + 1).repeat(each)
        known, new = maps[:-each], maps[-each:]
        weights = unit_weights(groups[:-each])
        alarms.append((new.max(axis=(1, 2)) > threshold(known.max(axis=(1, 2)), weights, rate)).mean())
        pixels.append((new > threshold(known, weights, rate)).mean())
    for found in (alarms, pixels):
        error = 3 * np.std(found) / math.sqrt(len(found))
        assert np.mean(found) <= rate + error
        assert np.mean(found) >= rate - 1 / (units + 1) - error  # and no more careful than so few groups ask for
