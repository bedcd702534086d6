"""`calibrate`: what is held out is used for thresholds and for nothing else, and these are what a plain count says."""

import csv
import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from scipy import stats
from sklearn.metrics import f1_score, precision_score

from dskd.config import ConfigError
from harness.data import held_out
from harness.data.catalog import Sample
from harness.grid import Plan, expand, resolve
from harness.gridfile import parse
from harness.launch.schedule import remaining
from harness.records import Results
from harness.run.execute import execute
from harness.run.operating import f1_max_threshold, operating_point, thresholds_of
from harness.run_folder import read_calibration, read_curve, read_scores
from harness.spec import EvaluateSpec, Save
from tests.conftest import write_mvtec

WriteGrid = Callable[..., Path]
SETTINGS = {"train.select": "val_normal", "train.holdout": 0.2, "image_size": 64, "eval.batch_size": 4}
EVALUATE = [{"false_alarm_rate": 0.1}]


@pytest.fixture
def cloth(tmp_path: Path) -> Path:
    return write_mvtec(tmp_path / "data", train=24, good=6, defects=5)


def planned(grid: Path) -> Plan:
    parsed = parse(yaml.safe_load(grid.read_text()))
    return expand(parsed, resolve(parsed))


def done(grid: Path) -> tuple[Plan, Results]:
    """The plan of a grid, with what is missing of it done."""
    plan, results = planned(grid), Results(grid.parent / "runs")
    todo = remaining(
        plan,
        results.done(),
        results=str(results.folder),
        save=Save(),
        device="cpu",
        force=False,
        grid="tiny",
        checkpoint_every_s=600.0,
    )
    for job in todo.jobs:
        execute(job, lambda *_: None)
    assert results.done() >= {spec.id for spec in plan.works()}
    return plan, results


def samples_of(plan: Plan) -> tuple[Sample, ...]:
    (found,) = plan.looks.values()
    return found.samples


def test_it_moves_no_id_where_it_is_not_asked_for(cloth: Path, write_grid: WriteGrid) -> None:
    (plain,) = planned(write_grid(cloth)).trainings
    grid = write_grid(cloth, calibrate=0, evaluate=[{"false_alarm_rate": 0.05}])
    assert [spec.id for spec in planned(grid).works()] == [plain.spec.id, plain.evaluations[0].id]
    other = dataclasses.replace(plain.spec, calibrate=0.5)
    moved = {spec.id for spec in (other, *(EvaluateSpec(other, each.map) for each in plain.evaluations))}
    assert not moved & {plain.spec.id, plain.evaluations[0].id}
    assert dataclasses.replace(plain.evaluations[0], false_alarm_rate=0.1).id != plain.evaluations[0].id


@pytest.mark.parametrize(
    ("method", "select", "parts_of"),
    [("stfpm", "val_normal", (9, 3, 12)), ("student_ensemble", "last", (12, 0, 12))],  # that one's map needs normals
)
def test_what_is_held_out_is_used_for_nothing_else(
    method: str, select: str, parts_of: tuple[int, ...], cloth: Path, write_grid: WriteGrid
) -> None:
    """Scores are those of a data set that never had these images, bit for bit."""
    settings = SETTINGS | {"train.epochs": 2, "train.batch_size": 8, "train.select": select}
    sections = {"axes": {"method": [method]}, "defaults": settings, "evaluate": EVALUATE}
    plan, results = done(write_grid(cloth, calibrate=0.5, **sections))
    (training,) = plan.trainings
    samples = samples_of(plan)
    division = held_out.divide(samples, training.spec)
    parts = [{samples[i].path for i in part} for part in dataclasses.astuple(division)]
    assert tuple(map(len, parts)) == parts_of
    assert len(set.union(*parts)) == 24
    result = results.record(training.spec.id).result
    assert (result["train_images"], result["held_out_images"], result["calibration_images"]) == parts_of
    (evaluation,) = training.evaluations
    assert {one.path for one in read_calibration(results.run_folder(evaluation.id), [])} == parts[2]
    for path in parts[2]:
        (cloth / path).unlink()
    other, _ = done(write_grid(cloth, **sections))
    (again,) = other.trainings
    curves = [read_curve(results.run_folder(each.spec.id), []) for each in (training, again)]
    assert curves[0] == curves[1]
    scores = [read_scores(results.run_folder(each.id), []) for each in (evaluation, *again.evaluations)]
    assert scores[0] == scores[1]
    assert "threshold" in results.record(evaluation.id).result
    assert "threshold" not in results.record(again.evaluations[0].id).result


def test_thresholds_and_the_operating_point_are_a_plain_count(cloth: Path, write_grid: WriteGrid) -> None:
    grid = write_grid(cloth, calibrate=0.5, defaults=SETTINGS, evaluate=EVALUATE)
    plan, results = done(grid)
    evaluation = plan.trainings[0].evaluations[0]
    folder, result = results.run_folder(evaluation.id), results.record(evaluation.id).result
    calibration = sorted(one.score for one in read_calibration(folder, []))
    assert (result["calibration_images"], result["calibration_groups"], len(calibration)) == (12, 12, 12)
    # Of 12 the 12th smallest is the threshold for .1: ceil(13 * .9) = 12; .05 needs 19.
    assert result["thresholds"] == {"0.01": None, "0.05": None, "0.1": calibration[11]}
    assert result["threshold"] == calibration[11]
    assert result["pixel_thresholds"]["0.05"] is None
    assert result["pixel_threshold"] == result["pixel_thresholds"]["0.1"] < result["threshold"]
    assert result["least_false_alarm_rate"] == 1 / 13
    scores = read_scores(folder, [])
    truth, called = [one.anomalous for one in scores], [one.score > result["threshold"] for one in scores]
    false = sum(c for c, t in zip(called, truth, strict=True) if not t)
    found = sum(c for c, t in zip(called, truth, strict=True) if t)
    assert (result["fpr_at_threshold"], result["recall_at_threshold"]) == (false / 6, found / 5)
    for key, count, total in (("fpr", false, 6), ("recall", found, 5)):
        exact = stats.binomtest(count, total).proportion_ci(method="exact")
        assert result[f"{key}_at_threshold_interval"] == pytest.approx(list(exact), abs=1e-12)
    if any(called):
        assert result["precision_at_threshold"] == pytest.approx(precision_score(truth, called))
        assert result["f1_at_threshold"] == pytest.approx(f1_score(truth, called))
    oracle = [one.score > result["image_f1_max_threshold"] for one in scores]
    assert f1_score(truth, oracle) == pytest.approx(result["image_f1_max"])


def test_a_variant_made_later_is_the_one_made_at_once(cloth: Path, write_grid: WriteGrid) -> None:
    def measured(folder: Path) -> tuple[Any, str]:
        own = json.loads((folder / "record.json").read_text())["result"]
        own.pop("inspect_s")
        return own, (folder / "calibration.csv").read_text()

    variants = [*EVALUATE, {"map.sigma": 1, "false_alarm_rate": 0.2, "metrics": "histogram"}]
    plan, results = done(write_grid(cloth, calibrate=0.5, defaults=SETTINGS, evaluate=variants))
    _, second = plan.trainings[0].evaluations
    once = measured(results.run_folder(second.id).path)
    results.run_folder(second.id).record.unlink()
    results.run_folder(second.id).calibration.unlink()
    done(write_grid(cloth, calibrate=0.5, defaults=SETTINGS, evaluate=variants))
    assert measured(results.run_folder(second.id).path) == once


def test_intervals_draw_whole_groups() -> None:
    """Where each of few objects is called anomalous as a whole, images are no evidence of their own."""
    draw = np.random.default_rng(0)
    groups = [f"{place // 10}" for place in range(100)]
    samples = [Sample(f"{i}.png", "test", "hole" if int(g) > 6 else "good", group=g) for i, g in enumerate(groups)]
    scores = np.repeat([0, 0, 0, 1, 0, 0, 1, 1, 1, 0], 10) + draw.uniform(0, 0.1, 100)
    alone = [dataclasses.replace(each, group="") for each in samples]
    wide, narrow = (operating_point(scores, each, 0.5) for each in (samples, alone))
    for key in ("fpr", "recall", "precision", "f1"):
        key = f"{key}_at_threshold"
        assert wide[key] == narrow[key]
        (low, high), (inner, outer) = wide[f"{key}_interval"], narrow[f"{key}_interval"]
        assert high - low > 1.5 * (outer - inner), key
        assert low <= wide[key] <= high
    assert operating_point(scores, samples, 0.5) == wide  # seeded
    nothing = operating_point(scores, samples, 2.0)  # of 7 normal objects none: that is no rate of 0 for sure
    assert nothing["fpr_at_threshold_interval"] == pytest.approx(list(stats.binomtest(0, 7).proportion_ci()), abs=1e-9)
    assert nothing["f1_at_threshold"] == 0
    assert nothing["f1_at_threshold_interval"] is None
    normal = operating_point(scores[:70], samples[:70], 0.5)
    assert normal["fpr_at_threshold"] == wide["fpr_at_threshold"]
    assert normal["fpr_at_threshold_interval"][1] > narrow["fpr_at_threshold_interval"][1]


def test_a_class_that_is_not_there() -> None:
    scores = np.array([0.1, 0.9])
    normal, anomalous = (
        operating_point(scores, [Sample(f"{i}", "test", kind) for i in range(2)], 0.5) for kind in ("good", "hole")
    )
    assert (normal["fpr_at_threshold"], normal["recall_at_threshold"], normal["f1_at_threshold"]) == (0.5, None, None)
    assert (anomalous["fpr_at_threshold"], anomalous["recall_at_threshold"]) == (None, 0.5)
    assert anomalous["precision_at_threshold"] == 1
    assert set(operating_point(scores, [Sample("a", "test"), Sample("b", "test")], None).values()) == {None}
    assert f1_max_threshold(scores, np.zeros(2, bool)) is None


def test_the_threshold_of_f1_max_reaches_it() -> None:
    draw = np.random.default_rng(1)
    for _ in range(100):
        labels, scores = draw.random(12) < 0.4, draw.integers(0, 6, 12) / 4
        if labels.any():
            best = max(f1_score(labels, scores >= each) for each in scores)
            assert f1_score(labels, scores > f1_max_threshold(scores, labels)) == pytest.approx(best)


def test_groups_are_what_counts() -> None:
    scores, maps = np.arange(30.0), np.arange(30.0, dtype=np.float32)[:, None, None]
    alone = thresholds_of(scores, maps, [str(i) for i in range(30)], 0.05)
    grouped = thresholds_of(scores, maps, [str(i // 3) for i in range(30)], 0.05)
    assert (alone["threshold"], alone["calibration_groups"]) == (29.0, 30)
    assert (grouped["threshold"], grouped["calibration_groups"], grouped["calibration_images"]) == (None, 10, 30)
    assert grouped["thresholds"] == {"0.01": None, "0.05": None, "0.1": 29.0}


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"calibrate": 1}, "calibrate: 1 is not possible; write the share of normal images"),
        ({"calibrate": -0.1}, "calibrate: -0.1 is not possible"),
        ({"calibrate": 0.2, "defaults": {"calibrate": 0.2}}, "calibrate: is in defaults too"),
        ({"evaluate": [{"false_alarm_rate": 0}]}, "false_alarm_rate: 0 is not possible; write a share between 0 and 1"),
        ({"calibrate": 0.25}, r"8 normal images \(8 groups\) are too few for false_alarm_rate: 0.05, which needs 19"),
        ({"calibrate": 0.25}, "write false_alarm_rate: 0.34 or calibrate: 0"),
        ({"calibrate": 0.95, "defaults": {"false_alarm_rate": 0.3}}, "nothing is left to train on of 8 normal images"),
        (
            {"calibrate": 0.8, "defaults": {"false_alarm_rate": 0.3, "train.select": "val_normal"}},
            "nothing is left for train.select: val_normal",
        ),
    ],
)
def test_what_cannot_be_meant_is_refused(
    sections: dict[str, object], message: str, tmp_path: Path, write_grid: WriteGrid
) -> None:
    with pytest.raises(ConfigError, match=message) as error:
        planned(write_grid(write_mvtec(tmp_path / "few", train=8), **sections))
    assert "\n" not in str(error.value)


def test_a_plan_says_what_is_held_out_and_what_it_is_good_for(cloth: Path, write_grid: WriteGrid) -> None:
    said = planned(write_grid(cloth, calibrate=0.8, evaluate=[{}, {"map.sigma": 1}])).remarks()
    assert "calibrate: 0.8 of folder cloth holds out 20 of 24 normal images, 20 groups" in said
    (line,) = [line for line in planned(write_grid(cloth, calibrate=0.3)).remarks() if "calibrate" in line]
    assert line.startswith("warning: calibrate: 0.3 of folder cloth holds out 8 of 24 normal images, 8 groups; a false")
    assert "a false alarm rate of 0.05 needs 19, so there will be no threshold for it: 0.111 is the lowest" in line
    assert not [line for line in planned(write_grid(cloth)).remarks() if "calibrate" in line]


def test_the_draw_keeps_groups_and_is_not_that_of_the_epoch() -> None:
    samples = [Sample(f"{i}.png", "train", group=str(i // 4)) for i in range(80)]
    draws = [held_out.hold_out(samples, np.arange(80), 0.2, seed)[1] for seed in (0, 1)]
    assert not np.array_equal(*draws)
    for draw in draws:
        kept = {samples[i].group for i in draw}
        assert len(draw) == 16
        assert sum(samples[i].group in kept for i in range(80)) == 16


def test_calibration_csv_is_read_as_it_was_written(cloth: Path, write_grid: WriteGrid) -> None:
    plan, results = done(write_grid(cloth, calibrate=0.5, defaults=SETTINGS, evaluate=EVALUATE))
    folder = results.run_folder(plan.trainings[0].evaluations[0].id)
    rows = list(csv.reader(folder.calibration.open(newline="")))
    assert rows[0] == ["path", "group", "score"]
    folder.calibration.write_text("path,group,score\na,,nan\n")
    skipped: list[Any] = []
    assert read_calibration(folder, skipped) == []
    assert "nan, which is no finite number" in skipped[0].message
