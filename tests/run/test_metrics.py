"""Metrics against scikit-learn and against AUPRO as one would write it down: threshold by threshold."""

import json
import math
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import ndimage
from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score

from harness.run import metrics
from harness.run.metrics import Ranking, evaluate, ranking, regions

LEVELS = st.sampled_from(np.float32([-1, -0.0, 0.0, 1e-30, 0.5, np.nextafter(np.float32(0.5), 1), 3]))  # many ties
SCORES = st.one_of(LEVELS, st.floats(-9, 9, width=32))
LIMITS = (0.05, 0.3, 1.0)


@st.composite
def labelled_maps(draw) -> dict[str, np.ndarray]:
    """Everything `evaluate` takes; anomalous images may have an empty mask, and any class may be absent."""
    shape = draw(st.tuples(st.integers(1, 4), st.integers(1, 6), st.integers(1, 6)))
    masks = draw(hnp.arrays(bool, shape))
    masks[draw(hnp.arrays(bool, shape[0]))] = False
    return {
        "image_scores": draw(hnp.arrays(np.float32, shape[0], elements=SCORES)),
        "labels": masks.any(axis=(1, 2)) | draw(hnp.arrays(bool, shape[0])),
        "maps": draw(hnp.arrays(np.float32, shape, elements=SCORES)),
        "masks": masks,
    }


def example(images: int = 6, levels: int = 40, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    masks = rng.random((images, 9, 8)) < 0.2
    masks[0] = False
    maps = np.floor(levels * (0.7 * rng.random(masks.shape) + 0.3 * masks)).astype(np.float32)
    return {"image_scores": maps.max(axis=(1, 2)), "labels": masks.any(axis=(1, 2)), "maps": maps, "masks": masks}


def by_scikit_learn(labels: np.ndarray, scores: np.ndarray) -> list[float]:
    labels, scores = labels.ravel(), scores.ravel()
    precision, recall, _ = precision_recall_curve(labels, scores)
    f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-300)
    return [roc_auc_score(labels, scores), average_precision_score(labels, scores), f1.max()]


def aupro_by_hand(maps: np.ndarray, masks: np.ndarray, limit: float) -> float:
    """The curve point by point, one threshold after the other, then trapezoids and a linear cut at the limit."""
    overlaps = []  # the scores inside each region
    for scores, mask in zip(maps, masks, strict=True):
        labelled, count = ndimage.label(mask, np.ones((3, 3)))
        overlaps += [scores[labelled == region] for region in range(1, count + 1)]
    rate, overlap, area = 0.0, 0.0, 0.0
    for threshold in np.unique(maps)[::-1]:
        next_rate = (maps[~masks] >= threshold).mean()
        next_overlap = np.mean([(inside >= threshold).mean() for inside in overlaps])
        if next_rate > limit:
            at_limit = overlap + (next_overlap - overlap) * (limit - rate) / (next_rate - rate)
            return (area + (limit - rate) * (overlap + at_limit) / 2) / limit
        area += (next_rate - rate) * (overlap + next_overlap) / 2
        rate, overlap = next_rate, next_overlap
    return area / limit


@given(labels=hnp.arrays(bool, st.integers(2, 60)), data=st.data())
@settings(max_examples=150, deadline=None)
def test_ranking_equals_scikit_learn(labels, data):
    scores = data.draw(hnp.arrays(np.float32, labels.size, elements=SCORES))
    ours = ranking(scores[~labels], scores[labels])
    if labels.all() or not labels.any():
        assert all(math.isnan(value) for value in vars(ours).values())
    else:
        assert list(vars(ours).values()) == pytest.approx(by_scikit_learn(labels, scores), abs=1e-9)


@pytest.mark.parametrize(
    ("normal", "defective", "expected"),
    [
        ([1], [2], Ranking(1, 1, 1)),
        ([2], [1], Ranking(0, 1 / 2, 2 / 3)),
        ([0.0, -0.0], [-0.0, 0.0], Ranking(1 / 2, 1 / 2, 2 / 3)),
        ([-np.inf, 1], [np.inf, 1], Ranking(7 / 8, 5 / 6, 4 / 5)),
    ],
)
@pytest.mark.parametrize("kinds", [(np.float16, np.float16), (np.float32, np.float64), (np.float64, np.float32)])
def test_ranking_of_single_scores_ties_signed_zeros_and_infinities(normal, defective, expected, kinds):
    ours = ranking(np.array(normal, dtype=kinds[0]), np.array(defective, dtype=kinds[1]))
    assert vars(ours) == pytest.approx(vars(expected), abs=1e-12)


def test_scores_are_compared_in_the_wider_of_two_types():
    assert ranking(np.float32([0.1]), np.float64([0.1])).auroc == 0  # 0.1 in float32 is above 0.1


@given(labelled_maps())
@settings(max_examples=150, deadline=None)
def test_evaluate_equals_scikit_learn_and_aupro_by_hand(test_set):
    values = evaluate(**test_set, aupro_limits=LIMITS)
    for level, labels, scores in (("image", "labels", "image_scores"), ("pixel", "masks", "maps")):
        ours = [values[f"{level}_{name}"] for name in ("auroc", "ap", "f1_max")]
        if 0 < test_set[labels].mean() < 1:
            assert ours == pytest.approx(by_scikit_learn(test_set[labels], test_set[scores]), abs=1e-9)
        else:
            assert ours == [None] * 3
    maps, masks = test_set["maps"], test_set["masks"]
    for limit in LIMITS:
        expected = aupro_by_hand(maps, masks, limit) if 0 < masks.mean() < 1 else None
        assert values[f"aupro_{limit:.2f}"] == (expected if expected is None else pytest.approx(expected, abs=1e-9))


def test_aupro_weighs_regions_equally_and_cuts_a_tie_at_the_limit():
    maps = np.zeros((1, 2, 6), dtype=np.float32)
    masks = np.zeros(maps.shape, dtype=bool)
    masks[0, 0, 0] = masks[0, :, 5] = True  # one pixel; two pixels; both at the border; nine normal ones
    maps[0, 0, 0], maps[0, 1, 5], maps[0, 0, 2:4] = 2, 1, 1
    labels, scores = np.array([True]), np.ones(1)
    # The first region is whole at no false positive; a quarter more comes with two of nine, linearly; the rest at all.
    values = evaluate(scores, labels, maps, masks, aupro_limits=(0.1, 1.0))
    assert values["aupro_0.10"] == pytest.approx(0.5 + 0.25 * (0.1 / (2 / 9)) / 2)
    assert values["aupro_1.00"] == pytest.approx(2 / 9 * (0.5 + 0.75) / 2 + 7 / 9 * (0.75 + 1) / 2)


def squares(*places: tuple[slice, slice]) -> np.ndarray:
    """Masks (2, 8, 9): nothing in the first, these boxes in the second."""
    masks = np.zeros((2, 8, 9), bool)
    for rows, columns in places:
        masks[1, rows, columns] = True
    return masks


@pytest.mark.parametrize(
    "masks",
    [
        squares((slice(3, 5), slice(4, 7))),
        squares((slice(0, 8), slice(0, 9))),
        squares((slice(0, 2), slice(0, 9)), (slice(7, 8), slice(0, 1)), (slice(4, 8), slice(8, 9))),
        squares((slice(7, 8), slice(8, 9))),
    ],
    ids=["one region", "a region that is the image", "regions along the borders", "a corner"],
)
@pytest.mark.parametrize("scores", ["all tied", "two values", "those of the mask", "its opposite", "random"])
def test_adversarial_sets_equal_scikit_learn_and_aupro_by_hand(masks, scores):
    rng = np.random.default_rng(0)
    maps = {
        "all tied": np.full(masks.shape, 0.25),
        "two values": rng.integers(0, 2, masks.shape),
        "those of the mask": masks,
        "its opposite": ~masks,
        "random": rng.standard_normal(masks.shape),
    }[scores].astype(np.float32)
    values = evaluate(maps.max(axis=(1, 2)), masks.any(axis=(1, 2)), maps, masks, aupro_limits=LIMITS)
    expected = by_scikit_learn(masks, maps) + [aupro_by_hand(maps, masks, limit) for limit in LIMITS]
    ours = [value for name, value in values.items() if name.startswith(("pixel", "aupro"))]
    assert ours == pytest.approx(expected, abs=1e-9)
    if scores == "all tied":
        assert values["pixel_auroc"] == values["image_auroc"] == 0.5


@pytest.mark.slow
def test_ten_million_pixels_equal_scikit_learn():
    rng = np.random.default_rng(0)
    masks = ndimage.gaussian_filter(rng.standard_normal((40, 500, 500), np.float32), (0, 20, 20)) > 0.03
    maps = (rng.standard_normal(masks.shape) + masks).astype(np.float32).round(4)  # many ties
    assert masks.size == 10**7
    values = evaluate(maps.max(axis=(1, 2)), masks.any(axis=(1, 2)), maps, masks)
    ours = [values[f"pixel_{name}"] for name in ("auroc", "ap", "f1_max")]
    assert ours == pytest.approx(by_scikit_learn(masks, maps), abs=1e-9)


def test_regions_touch_at_corners_but_not_across_images():
    masks = np.zeros((3, 3, 4), dtype=bool)
    masks[0, 0, 0] = masks[0, 1, 1] = masks[0, 2, 3] = True
    masks[2, 2, 3] = masks[2, 0, 3] = True
    found = regions(masks)
    assert found.labels.tolist() == [0, 0, 1, 2, 3]
    assert found.sizes.tolist() == [2, 1, 1, 1]


def test_threads_blocks_and_the_device_that_sorts_change_nothing(monkeypatch):
    test_set = example()
    whole = evaluate(**test_set)
    assert evaluate(**test_set, place=torch.device("cpu")) == whole
    for name, value in {"_THREADS": 3, "_SMALLEST_SLICE": 1, "_SEARCH_IN_SORTED": 0, "_BLOCK": 7}.items():
        monkeypatch.setattr(metrics, name, value)
    assert evaluate(**test_set) == pytest.approx(whole, abs=1e-12)


def test_monotone_transforms_order_of_images_and_given_regions_change_nothing():
    test_set = example()
    values = evaluate(**test_set)
    names = "image_auroc image_ap image_f1_max pixel_auroc pixel_ap pixel_f1_max aupro_0.30 aupro_0.05"
    assert list(values) == [*names.split(), "aupimo"]
    assert values["aupimo"] is None  # of so few normal pixels: tests/run/test_pimo.py
    assert all(type(value) is float and 0 < value <= 1 for value in list(values.values())[:-1])
    assert evaluate(**test_set, regions=regions(test_set["masks"])) == values
    transformed = {name: np.exp(test_set[name].astype(float) / 9) - 5 for name in ("image_scores", "maps")}
    assert evaluate(**test_set | transformed) == pytest.approx(values, abs=1e-12)
    order = np.random.default_rng(1).permutation(len(test_set["maps"]))
    permuted = evaluate(**{name: array[order] for name, array in test_set.items()})
    assert permuted == pytest.approx(values, abs=1e-12)


def test_inputs_are_left_as_they_were():
    test_set = example()
    for array in test_set.values():
        array.flags.writeable = False
    evaluate(**test_set)
    scores = np.array([3.0, 1.0, 2.0])
    ranking(scores, scores)
    assert scores.tolist() == [3, 1, 2]


def test_undefined_values_are_none_and_valid_json():
    test_set = example()
    test_set["masks"] = np.zeros_like(test_set["masks"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        values = evaluate(**test_set)
        nothing = evaluate(np.ones(0), np.ones(0, bool), np.ones((0, 2, 2)), np.ones((0, 2, 2), bool))
    assert {name for name, value in values.items() if value is None} == {n for n in values if not n.startswith("image")}
    assert set(nothing.values()) == {None}
    assert json.loads(json.dumps(values, allow_nan=False)) == values


def with_nan(array: np.ndarray, index) -> np.ndarray:
    array = array.copy()
    array[index] = np.nan
    return array


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: {"maps": with_nan(t["maps"], (3, 4, 5))}, r"maps\[3\] is or holds NaN"),
        (lambda t: {"image_scores": with_nan(t["image_scores"], 2)}, r"image_scores\[2\] is or holds NaN"),
        (lambda t: {"labels": np.arange(6) != 4}, r"masks\[4\] has defective pixels, but its label says normal"),
        (lambda t: {"labels": t["labels"][:5]}, r"do not match: \(6,\), \(5,\), \(6, 9, 8\), \(6, 9, 8\)"),
        (lambda t: {"masks": t["masks"][:, :8]}, r"do not match: .*\(6, 9, 8\), \(6, 8, 8\)"),
        (lambda t: {"masks": t["masks"].astype(np.uint8)}, r"masks is uint8\(6, 9, 8\), expected bool"),
        (lambda t: {"maps": t["maps"][0]}, r"maps is float32\(9, 8\), expected floating with 3 dimensions"),
        (lambda t: {"regions": regions(t["masks"][:5])}, r"regions hold \d+ defective pixels, but masks have \d+"),
        (lambda t: {"aupro_limits": [0.3, 0]}, "AUPRO limit 0 is not"),
        (lambda t: {"aupro_limits": [1.01]}, "AUPRO limit 1.01 is not"),
        (lambda t: {"aupro_limits": [0.005]}, "AUPRO limit 0.005 is not"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(change, message):
    test_set = example()
    with pytest.raises(ValueError, match=f"^.*{message}.*$"):
        evaluate(**test_set | change(test_set))


@pytest.mark.parametrize("place", [0, 1])
def test_ranking_refuses_nan(place):
    scores = [np.ones(3), np.ones(3)]
    scores[place][1] = np.nan
    with pytest.raises(ValueError, match=r"\[1\] is or holds NaN"):
        ranking(*scores)


@given(test_set=labelled_maps(), data=st.data())
@settings(max_examples=150, deadline=None)
def test_images_of_unknown_truth_count_as_images_only(test_set, data):
    """Pixel metrics are those of the known images alone, image metrics those of all."""
    known = data.draw(hnp.arrays(bool, len(test_set["labels"]))) | ~test_set["labels"]
    test_set["masks"] &= known[:, None, None]
    values = evaluate(**test_set, known=known, aupro_limits=LIMITS)
    of_known = evaluate(**{name: array[known] for name, array in test_set.items()}, aupro_limits=LIMITS)
    of_all = evaluate(**test_set, aupro_limits=LIMITS)
    for name, value in values.items():
        assert value == (of_all if name.startswith("image") else of_known)[name]


def test_a_mask_of_unknown_truth_is_refused():
    test_set = example()
    known = np.ones(6, bool)
    known[3] = False
    with pytest.raises(ValueError, match=r"masks\[3\] has defective pixels, but its truth is not known"):
        evaluate(**test_set, known=known)
    with pytest.raises(ValueError, match="known and labels do not match"):
        evaluate(**test_set, known=known[:2])
