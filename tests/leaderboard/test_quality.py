"""How long it takes to come near the best: on made-up trainings whose curves can be read by eye."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from dskd.config import replace
from dskd.methods import get_method
from harness.cli import app
from harness.records import Results
from harness.run_folder import write_metrics
from harness.spec import Data, EvaluateSpec, TrainSpec, Weights
from tests.leaderboard.synthetic import AT, DEVICE, publish

CURVES = {  # by method and seed, after epochs 1, 2 and 4 of 4
    ("stfpm", 0): (0.70, 0.70, 0.60),
    ("stfpm", 1): (0.70, 0.72, 0.72),
    ("dskd", 0): (0.50, 0.80, 0.90),
    ("dskd", 1): (0.50, 0.875, 0.88),
}
OFF = {"cloth": 0.05, "metal": -0.05}  # of the categories around that mean


@pytest.fixture
def results(tmp_path: Path) -> Results:
    made = Results(tmp_path / "demo")
    made.folder.mkdir()
    (made.folder / "grid.yaml").write_text("name: demo\n")
    for (method, seed), values in CURVES.items():
        for category, off in OFF.items():
            train(made, method, seed, category, [value + off for value in values])
    return made


def train(results: Results, method: str, seed: int, category: str, values: list[float]) -> None:
    """A training of 10 images and 2 s an epoch, recorded along unless there are no values."""
    config = replace(get_method(method), {"train.epochs": 4})
    at = (1, 2, 4) if values else ()
    spec = TrainSpec(config, "resnet18", Weights(), Data("set", category, category), seed, 64, evaluate_at=at)
    publish(results, spec, {"epochs": 4, "train_images": 10, "train_s": 8.0, **DEVICE})
    if values:
        lines = [{"epoch": epoch, "image_auroc": value} for epoch, value in zip(at, values, strict=True)]
        write_metrics(results.run_folder(spec.id), lines)
    at = AT if values else "2025-12-31T00:00:00+00:00"
    publish(results, EvaluateSpec(spec, config.map, config.score), {"image_auroc": 0.5, **DEVICE}, at)


def show(results: Results, *arguments: str) -> str:
    done = CliRunner().invoke(app, ["leaderboard", str(results.folder), "--metric", "image_auroc", *arguments])
    assert done.exit_code == 0, done.output
    return done.output


def rows(results: Results, table: str) -> tuple[dict, str]:
    """Cells by method (and epoch), and the notes."""
    (section,) = json.loads(show(results, "--table", table, "--format", "json"))["sections"]
    (found,) = section["tables"]
    by = {tuple(row[key] for key in ("method", "epoch") if key in row): row["cells"] for row in found["rows"]}
    return by, "\n".join(found["notes"])


def said(cell: dict) -> tuple:
    return tuple(cell[key] for key in ("value", "low", "high", "runs", "expected"))


def test_images_and_seconds_until_a_seed_is_within_a_point(results: Results) -> None:
    found, notes = rows(results, "time")
    assert list(found) == [("dskd",), ("stfpm",)]  # the best first
    dskd, stfpm = found["dskd",], found["stfpm",]
    assert (dskd["best"]["value"], stfpm["best"]["value"]) == (pytest.approx(0.89), pytest.approx(0.71))
    assert stfpm["last"]["value"] == pytest.approx(0.66)  # its best was before
    assert said(dskd["images"]) == (30, 20, 40, 2, 2)  # each seed by its own best: epochs 4 and 2
    assert said(dskd["seconds"]) == (6, 4, 8, 2, 2)
    assert said(dskd["images_to_top"]) == (40, 40, 40, 2, 2)  # 0.88 is one point below the mean of 0.9 and 0.88
    assert said(stfpm["images"]) == (15, 10, 20, 2, 2)
    assert said(stfpm["seconds_to_top"]) == (None, None, None, 0, 2)  # never
    assert "it selects nothing" in notes


def test_what_no_training_recorded_is_a_hole_that_says_what_to_write(results: Results) -> None:
    for seed in (0, 1):
        for category in OFF:
            train(results, "reverse_distillation", seed, category, [])
    train(results, "dskd", 2, "cloth", [0.9, 0.9, 0.9])  # a seed that lacks a category has no mean
    found, notes = rows(results, "time")
    assert list(found)[-1] == ("reverse_distillation",)
    assert found["reverse_distillation",] == {}
    assert "along the trainings of reverse_distillation; `evaluate.at: log` in the grid records it" in notes
    assert said(found["dskd",]["images"]) == (30, 20, 40, 2, 3)
    text = show(results, "--table", "time", "--format", "markdown")
    assert "30 [20, 40] [2/3]" in text
    assert "| reverse_distillation | resnet18 | – | – | – | – | – | – |" in text


def test_rows_by_category_are_compared_within_it(results: Results) -> None:
    (section,) = json.loads(show(results, "--table", "time", "--by", "method,category", "--format", "json"))["sections"]
    found = {(row["method"], row["category"]): row["cells"] for row in section["tables"][0]["rows"]}
    for category in OFF:  # those of metal are ten points below those of cloth
        assert said(found["dskd", category]["images_to_top"]) == (40, 40, 40, 2, 2)


def test_a_row_of_other_categories_is_compared_with_none(results: Results) -> None:
    for seed in (0, 1):
        train(results, "reverse_distillation", seed, "cloth", [0.99, 0.99, 0.99])
    found, notes = rows(results, "time")
    assert said(found["reverse_distillation",]["images"]) == (10, 10, 10, 2, 2)
    assert "images_to_top" not in found["reverse_distillation",]
    assert said(found["dskd",]["images_to_top"]) == (40, 40, 40, 2, 2)  # as without it
    assert "reverse_distillation was recorded on 1 of 2 categories of set: it takes no part in best of all" in notes


def test_curves_by_epoch_are_the_means_behind_it(results: Results) -> None:
    found, _ = rows(results, "curves")
    assert [key for key in found if key[0] == "dskd"] == [("dskd", 1), ("dskd", 2), ("dskd", 4)]
    assert [found["dskd", epoch]["images"]["value"] for epoch in (1, 2, 4)] == [10, 20, 40]
    assert [found["dskd", epoch]["seconds"]["value"] for epoch in (1, 2, 4)] == [2, 4, 8]
    assert [found["stfpm", epoch]["value"]["value"] for epoch in (1, 2, 4)] == pytest.approx([0.7, 0.71, 0.66])


def test_a_training_that_is_done_again_for_its_curve_is_the_same_row(results: Results) -> None:
    alone = show(results, "--table", "scores,time")
    for method, seed in CURVES:
        for category in OFF:
            train(results, method, seed, category, [])
    assert show(results, "--table", "scores,time") == alone
