"""Two students' own maps from a trained model, and what is said of them; a decoder's size in the record."""

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import dskd
from harness.data import images
from tests.conftest import ROOT
from tests.run.test_calibrate import done


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(ROOT / "benchmarks" / "checks")
    return importlib.import_module("disagreement")


def test_maps_of_single_students_add_up_and_both_are_the_record(
    script: Any, tree: Path, write_grid: Callable[..., Path]
) -> None:
    size = {"name": "dskd", "label": "same size", "decoder.size": "encoder"}
    plan, results = done(write_grid(tree, axes={"method": [size, "stfpm"]}))
    ((row, seeds),) = script.measured(plan, results).items()
    assert row == ("same size", "data")
    found = seeds[0][0]
    (training, folder) = next(script.done(plan, results))
    record = results.record(folder.name).result
    assert found["image_both"] == pytest.approx(100 * record["image_auroc"])
    assert found["pixel_both"] == pytest.approx(100 * record["pixel_auroc"])
    assert abs(results.record(training.spec.id).result["decoder_to_encoder_parameters"] - 1) <= 0.01
    model = dskd.load(folder)
    pixels = images.load(training.source, training.spec.data, training.spec.image_size).test.images
    weights = {"encoder": {"decoder_weight": 0.0}, "decoder": {"encoder_weight": 0.0}, "both": {}}
    own, other, both = (script.seen_by(model, pixels, **each)[0] for each in weights.values())
    np.testing.assert_allclose(own + other, both, rtol=1e-4)
    assert np.abs(own - other).max() > 1e-3


def test_what_is_said_of_two_students(script: Any) -> None:
    draw = np.random.default_rng(0)
    bad = np.arange(40) >= 15
    masks = np.zeros((40, 6, 6), bool)
    masks[bad, :2] = True
    first, second = draw.uniform(0.1, 1, (2, 40, 6, 6))
    assert max(script.disagreement(first, 3 * first, masks, bad).values()) < 1e-9
    blind = np.where(masks, 1e-12, second)  # sees nothing where the other one does
    assert script.disagreement(first, blind, masks, bad)["defect"] == pytest.approx(100)
    scores = draw.normal(size=(2, 40)) + bad
    assert list(script.shared_errors(scores[0], scores[0] ** 3, bad).values()) == pytest.approx([1, 1])
    good, wrong = np.flatnonzero(~bad), np.flatnonzero(bad)
    lower = [[np.mean([one[j] < one[i] for j in wrong]) for i in good] for one in scores]  # pair by pair
    expected = np.corrcoef(*lower)[0, 1]
    assert script.shared_errors(*scores, bad)["errors_normal"] == pytest.approx(expected)
    perfect = np.where(bad, 5.0, 0.0) + draw.uniform(size=40)
    assert np.isnan(script.shared_errors(perfect, scores[0], bad)["errors_normal"])
    assert script.told({0: [{"errors_normal": np.nan}], 1: [{"errors_normal": np.nan}]}, "errors_normal") == "–"
