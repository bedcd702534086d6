"""AUPIMO against its definition written down threshold by threshold."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import quad

from harness.run import metrics, streaming
from harness.run.pimo import aupimo
from tests.run.test_metrics import example, labelled_maps


def by_hand(maps: np.ndarray, labels: np.ndarray, masks: np.ndarray, low: float, high: float) -> list[float]:
    """Of each image with a defect: the curve from one threshold to the next, a straight line over the shared rate,
    integrated numerically over the logarithm of that.
    """
    found = []
    for scores, mask in zip(maps, masks, strict=True):
        if not mask.any():
            continue
        area = rate = overlap = 0.0
        for threshold in np.unique(maps)[::-1]:
            next_rate = np.mean([(normal >= threshold).mean() for normal in maps[~labels]])
            next_overlap = (scores[mask] >= threshold).mean()
            start, end = np.clip([rate, next_rate], low, high)
            if end > start:
                slope = (next_overlap - overlap) / (next_rate - rate)
                area += quad(lambda x, at=overlap, by=slope, of=rate: (at + by * (x - of)) / x, start, end)[0]
            rate, overlap = next_rate, next_overlap
        found.append(area / math.log(high / low))
    return found


@given(test_set=labelled_maps(), bounds=st.sampled_from([(0.05, 0.3), (0.1, 1.0), (0.4, 0.9)]))
@settings(max_examples=150, deadline=None)
def test_it_equals_its_definition(test_set, bounds):
    maps, labels, masks = (test_set[name] for name in ("maps", "labels", "masks"))
    found = aupimo(maps, labels, masks, bounds=bounds)
    if not masks.any() or bounds[0] * maps[~labels].size < 1:
        assert found is None
    else:
        assert found == pytest.approx(by_hand(maps, labels, masks, *bounds), abs=1e-9)


def of_paper(pixels: int = 100_000) -> dict[str, np.ndarray]:
    """One normal image with distinct scores 0, 1, ... `pixels` - 1, and four anomalous ones: a defect above all normal
    scores, one below, one of which each half is one of these, and one without a mask. The bounds are 1 and 10 of the
    100,000 normal pixels.
    """
    maps = np.zeros((5, 100, pixels // 100), np.float32)
    masks = np.zeros(maps.shape, bool)
    maps[0].flat = np.random.default_rng(0).permutation(pixels)
    masks[1:4, :2] = True
    maps[1], maps[3, 0], maps[4] = pixels, pixels, pixels
    labels = np.arange(5) > 0
    return {"image_scores": maps.max(axis=(1, 2)), "labels": labels, "maps": maps, "masks": masks}


def test_at_the_bounds_of_the_paper():
    test_set = of_paper()
    maps, labels, masks = (test_set[name] for name in ("maps", "labels", "masks"))
    assert aupimo(maps, labels, masks) == pytest.approx([1, 0, 0.5])
    assert metrics.evaluate(**test_set)["aupimo"] == pytest.approx(0.5)
    maps[2] = 99_999 - 3.5  # four normal scores are above: found at all rates beyond 4 of 1 to 10
    assert aupimo(maps, labels, masks)[1] == pytest.approx(math.log10(10 / 4))
    maps[2] = 99_999 - 4  # one is equal: found more and more between 4 and 5, by straight line
    assert math.log10(10 / 5) < aupimo(maps, labels, masks)[1] < math.log10(10 / 4)


def test_it_is_exact_beside_histograms_too_and_leaves_out_what_has_no_mask():
    test_set = of_paper()
    found = metrics.regions(test_set["masks"])
    values, bounds = streaming.evaluate(**test_set, regions=found)
    assert values["aupimo"] == pytest.approx(0.5)
    assert "aupimo" not in bounds
    assert metrics.evaluate(**test_set, known=np.arange(5) < 4)["aupimo"] == values["aupimo"]


def test_it_is_undefined_where_the_lower_bound_is_less_than_a_pixel_or_there_is_no_defect():
    assert metrics.evaluate(**of_paper(99_900))["aupimo"] is None
    test_set = of_paper()
    assert metrics.evaluate(**test_set | {"masks": np.zeros_like(test_set["masks"])})["aupimo"] is None
    assert metrics.evaluate(**example())["aupimo"] is None
