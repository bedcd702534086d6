"""Metrics from histograms against the exact ones: within the bound that they state, whatever the scores."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.run import metrics, streaming
from harness.run.streaming import evaluate, histogram, localisation
from tests.run.test_checkpoint import attempt, job_of
from tests.run.test_metrics import LIMITS, example, labelled_maps, with_nan

ESTIMATED = ["pixel_auroc", "pixel_ap", "pixel_f1_max", *(f"aupro_{limit:.2f}" for limit in LIMITS)]


@given(test_set=labelled_maps(), bins=st.integers(1, 40))
@settings(max_examples=200, deadline=None)
def test_the_exact_value_is_within_the_bound(test_set, bins):
    exact = metrics.evaluate(**test_set, aupro_limits=LIMITS)
    found = metrics.regions(test_set["masks"])
    values, bounds = localisation(histogram(test_set["maps"], test_set["masks"], found, bins), LIMITS)
    assert list(values) == ESTIMATED
    if exact["pixel_auroc"] is None:
        assert set(values.values()) == {None}
        assert bounds == {}
    else:
        for name, value in values.items():
            assert abs(value - exact[name]) <= bounds[name] + 1e-12
            assert 0 <= bounds[name] <= 1 + 1e-12


@given(test_set=labelled_maps(), data=st.data())
@settings(max_examples=100, deadline=None)
def test_images_of_unknown_truth_are_as_if_they_were_not_there(test_set, data):
    known = np.array([data.draw(st.booleans()) or not label for label in test_set["labels"]])
    test_set["masks"] &= known[:, None, None]
    found = metrics.regions(test_set["masks"])
    counts = histogram(test_set["maps"], test_set["masks"], found, 9, known)
    alone = histogram(test_set["maps"][known], test_set["masks"][known], found, 9)
    for name, values in vars(counts).items():
        assert np.array_equal(values, vars(alone)[name])


@given(labelled_maps())
@settings(max_examples=50, deadline=None)
def test_scores_that_do_not_share_a_bin_leave_no_error_of_areas(test_set):
    """Where no bin holds two different scores, only ties are left, which are exact: whole numbers, one a bin."""
    test_set["maps"] = np.floor(test_set["maps"])
    found = metrics.regions(test_set["masks"])
    exact = metrics.evaluate(**test_set, regions=found, aupro_limits=LIMITS)
    values, _ = evaluate(**test_set, regions=found, aupro_limits=LIMITS)
    assert values == pytest.approx(exact, abs=1e-12)


def test_the_bound_is_reached_by_the_worst_and_the_best_order():
    """One bin that holds everything: the exact AUROC is 1 or 0, the estimate half, the bound half."""
    masks = np.zeros((1, 2, 4), bool)
    masks[0, 0] = True
    found = metrics.regions(masks)
    for sign in (1, -1):
        maps = np.where(masks, sign * (1 + np.arange(8).reshape(masks.shape)), 0).astype(np.float32)
        exact = metrics.evaluate(np.ones(1), np.ones(1, bool), maps, masks, found, LIMITS)
        values, bounds = localisation(histogram(maps, masks, found, bins=1), LIMITS)
        assert (values["pixel_auroc"], bounds["pixel_auroc"]) == (0.5, 0.5)
        assert exact["pixel_auroc"] == 0.5 + 0.5 * sign
        assert bounds["aupro_1.00"] == pytest.approx(abs(exact["aupro_1.00"] - values["aupro_1.00"]))
        assert bounds["pixel_ap"] >= abs(exact["pixel_ap"] - values["pixel_ap"])
    assert bounds["pixel_f1_max"] == pytest.approx(1 - values["pixel_f1_max"])  # it may be whole, and never less


def test_of_smooth_scores_the_bound_is_small_and_chunks_change_nothing(monkeypatch):
    rng = np.random.default_rng(0)
    masks = rng.random((8, 64, 64)) < 0.05
    maps = (rng.standard_normal(masks.shape) + masks).astype(np.float32)
    test_set = {"image_scores": maps.max(axis=(1, 2)), "labels": masks.any(axis=(1, 2)), "maps": maps, "masks": masks}
    found = metrics.regions(masks)
    whole = evaluate(**test_set, regions=found)
    assert max(whole[1].values()) < 1e-3
    assert whole[1]["pixel_auroc"] < 1e-4
    monkeypatch.setattr(streaming, "_CHUNK", 1)
    values, bounds = evaluate(**test_set, regions=found)
    assert (values, bounds) == (pytest.approx(whole[0], abs=1e-12), pytest.approx(whole[1], abs=1e-12))
    assert {name: value for name, value in values.items() if name.startswith("image")} == {
        name: value for name, value in metrics.evaluate(**test_set).items() if name.startswith("image")
    }


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: {"maps": with_nan(t["maps"], (3, 4, 5))}, r"maps\[3\] is or holds NaN"),
        (lambda t: {"maps": np.where(t["masks"], np.float32(np.inf), 0)}, "not finite.*write metrics: exact"),
        (lambda t: {"regions": metrics.regions(t["masks"][:5])}, r"regions hold \d+ defective pixels, but masks"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(change, message):
    test_set = example()
    with pytest.raises(ValueError, match=f"^.*{message}.*$"):
        evaluate(**{**test_set, "regions": metrics.regions(test_set["masks"])} | change(test_set))


def test_a_run_with_both_kinds_of_metrics(tree: Path, write_grid: Callable[..., Path]) -> None:
    job = job_of(write_grid(tree, evaluate=[{}, {"metrics": "histogram"}]), every_s=600.0)
    assert [evaluation.metrics for evaluation in job.evaluations] == ["exact", "histogram"]
    results = attempt(job)
    exact, estimated = (results.record(evaluation.id).result for evaluation in job.evaluations)
    assert estimated["bins"] == streaming.BINS
    assert estimated["error_bounds"].keys() == {"pixel_auroc", "pixel_ap", "pixel_f1_max", "aupro_0.30", "aupro_0.05"}
    assert estimated["image_auroc"] == exact["image_auroc"]
    for name, bound in estimated["error_bounds"].items():
        assert abs(estimated[name] - exact[name]) <= bound + 1e-12
    assert not list(results.folder.glob("tmp*"))
