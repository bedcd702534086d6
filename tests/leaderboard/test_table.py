"""The comparison table: means, spreads, holes, settings that make rows, and every format against its golden file."""

import json
import os
from pathlib import Path

import pytest

from dskd.config import ConfigError, replace, to_mapping
from dskd.methods import get_method
from harness.leaderboard.render import FORMATS, footer
from harness.leaderboard.table import build, load
from harness.records import Failure, Record, Results
from harness.spec import BenchSpec, Data, EvaluateSpec, TrainSpec, Weights

GOLDEN = Path(__file__).parent / "golden"


def evaluation(
    method: str,
    category: str,
    seed: int,
    image_auroc: float | None,
    values: dict | None = None,
    precision: str = "fp32",
) -> Record:
    config = replace(get_method(method), values or {})
    train = TrainSpec(
        config, "resnet18", Weights("random"), Data("set", category, "m", (("resize", "square"),)), seed, 64
    )
    spec = EvaluateSpec(train, config.map, config.score)
    metrics = {"image_auroc": image_auroc, "pixel_auroc": 0.9, "aupro_0.30": 0.5 if method == "dskd" else 0.25}
    metrics |= {"degenerate": image_auroc is not None and image_auroc <= 0.5, "precision": precision}
    metrics |= {"device": "a processor", "threads": 2}
    environment = {"packages": {"torch": "2.13.0", "dskd-harness": "0.1.0"}, "commit": "0123456789ab"}
    return Record(
        "evaluate", spec.id, to_mapping(spec), metrics, environment, f"2026-01-0{1 + seed}T00:00:00+00:00", 1.0
    )


def bench(method: str, speed: float) -> Record:
    spec = BenchSpec(get_method(method), "resnet18", 64, "auto", "cpu", 2)
    return Record("bench", spec.id, to_mapping(spec), {"images_per_s": speed}, {}, "2026-01-01T00:00:00+00:00", 1.0)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two methods on two categories and three seeds; one run of stfpm is missing, one collapsed, one failed."""
    results = Results(tmp_path / "runs" / "grid")
    for seed, (a, b) in enumerate([(0.80, 0.90), (0.84, 0.94), (0.82, 0.95)]):
        results.publish(evaluation("dskd", "a", seed, a))
        results.publish(evaluation("dskd", "b", seed, b))
    for category, seed, value in (("a", 0, 0.70), ("b", 0, 0.5), ("a", 1, 0.60), ("b", 1, 0.80), ("a", 2, 0.65)):
        results.publish(evaluation("stfpm", category, seed, value))
    results.publish(bench("dskd", 123.4))
    results.publish(bench("stfpm", 45.67))
    spec = TrainSpec(get_method("stfpm"), "resnet18", Weights("random"), Data("set", "b", "m"), 2, 64)
    results.fail(Failure("train", spec.id, to_mapping(spec), "diverged", "lost", "", "2026-01-01T00:00:00+00:00", {}))
    (results.folder / "grid.yaml").write_text("name: grid\n")
    return results.folder


def test_mean_over_categories_and_spread_over_whole_seeds(folder: Path) -> None:
    table = build(load([folder]))
    rows = {key[0]: cells for key, cells in table.rows}
    assert list(rows) == ["dskd", "stfpm"]  # best first
    dskd, stfpm = rows["dskd"]["set", "image_auroc"], rows["stfpm"]["set", "image_auroc"]
    assert dskd.mean == pytest.approx((0.82 + 0.93) / 2)
    assert dskd.spread == pytest.approx(0.000475**0.5)  # of 0.85, 0.89, 0.885, by hand
    assert (dskd.runs, dskd.expected, dskd.degenerate) == (6, 6, 0)
    assert stfpm.mean == pytest.approx((0.65 + 0.65) / 2)
    assert stfpm.spread == pytest.approx(0.0707106781)  # of 0.60 and 0.70: seed 2 lacks a category
    assert (stfpm.runs, stfpm.expected, stfpm.degenerate) == (5, 6, 1)
    assert rows["dskd"]["", "images_per_s"].mean == 123.4
    assert "k of n" in " ".join(footer(table))
    assert "collapsed" in " ".join(footer(table))


def test_settings_that_differ_make_rows_and_are_named(folder: Path) -> None:
    results = Results(folder)
    results.publish(evaluation("dskd", "a", 0, 0.99, {"map.sigma": 0, "train.epochs": 5}))
    results.publish(evaluation("dskd", "a", 0, 0.98, {"train.lr": 0.1}, precision="bf16"))
    table = build(load([folder]))
    variants = {key[2] for key, _ in table.rows if key[0] == "dskd"}
    assert variants == {"", "train.epochs=5 map.sigma=0", "precision=bf16 train.lr=0.1"} or variants == {
        "precision=fp32",
        "precision=fp32 train.epochs=5 map.sigma=0",
        "precision=bf16 train.lr=0.1",
    }
    assert next(cells for key, cells in table.rows if key[2].endswith("sigma=0"))["set", "image_auroc"].expected == 6


def test_by(folder: Path) -> None:
    table = build(load([folder]), ["method", "category"])
    found = {key: cells["set", "image_auroc"] for key, cells in table.rows}
    assert found["dskd", "b"].mean == pytest.approx(0.93)
    assert (found["stfpm", "b"].runs, found["stfpm", "b"].expected) == (2, 3)
    by_seed = build(load([folder]), ["method", "seed"])
    assert {key: cells["set", "image_auroc"].spread for key, cells in by_seed.rows}["dskd", "0"] is None
    with pytest.raises(ConfigError, match="--by: unknown key 'metod'; did you mean 'method'"):
        build(load([folder]), ["metod"])


def test_a_metric_that_is_undefined_is_a_hole_not_a_zero(tmp_path: Path) -> None:
    results = Results(tmp_path)
    results.publish(evaluation("dskd", "a", 0, None))
    results.publish(evaluation("dskd", "b", 0, 0.75))
    cell = build(load([tmp_path])).rows[0][1]["set", "image_auroc"]
    assert (cell.mean, cell.runs, cell.expected) == (0.75, 1, 2)


def test_selection(folder: Path, tmp_path: Path) -> None:
    assert len(load([folder.parent]).evaluations) == 11  # a folder of results folders
    assert len(load([folder, folder]).evaluations) == 11  # each run once
    assert [failure.reason for failure in load([folder]).failures] == ["diverged"]
    (folder / "torn").mkdir()
    (folder / "torn" / "record.json").write_text("{")
    assert [damaged.folder.name for damaged in load([folder]).damaged] == ["torn"]
    with pytest.raises(ConfigError, match="is not a folder"):
        load([tmp_path / "gone"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match="no finished evaluation to show"):
        build(load([tmp_path / "empty"]))


@pytest.mark.parametrize("form", FORMATS)
def test_formats(form: str, folder: Path) -> None:
    """Golden files; `UPDATE_GOLDEN=1 pytest tests/leaderboard` writes them anew, for a reviewer to read the change."""
    text = FORMATS[form](build(load([folder])))
    path = GOLDEN / f"table.{form}"
    if os.environ.get("UPDATE_GOLDEN"):
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    assert text == path.read_text()
    if form == "json":
        assert json.loads(text)["rows"][0]["method"] == "dskd"
