"""`calibrate: {folds: K}`: nothing is lost from training, and students that never saw it score each normal image."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import dskd
from dskd import conformal
from dskd.config import ConfigError
from harness import events
from harness.data import held_out
from harness.data.catalog import Sample
from harness.grid import Plan
from harness.job import Stop
from harness.launch.pace import estimate_s, prior
from harness.launch.schedule import remaining
from harness.records import Results
from harness.run.execute import execute
from harness.run_folder import read_calibration, read_curve, read_scores
from harness.spec import Folds, Save
from tests.conftest import write_mvtec
from tests.run.test_calibrate import done, planned, samples_of

WriteGrid = Callable[..., Path]
FOLDS = {"folds": 3}
SETTINGS = {"train.epochs": 2, "train.batch_size": 8, "image_size": 64, "eval.batch_size": 4, "false_alarm_rate": 0.1}


@pytest.fixture
def cloth(tmp_path: Path) -> Path:
    return write_mvtec(tmp_path / "data", train=24, good=6, defects=5)


def outcome(plan: Plan, results: Results) -> dict[str, Any]:
    """All numbers of its one run, but times."""
    (training,) = plan.trainings
    (evaluation,) = training.evaluations
    own, folder = results.run_folder(training.spec.id), results.run_folder(evaluation.id)
    result = results.record(evaluation.id).result
    return {
        "students": own.students.read_bytes(),
        "curve": read_curve(own, []),
        "scores": read_scores(folder, []),
        "calibration": read_calibration(folder, []),
        "thresholds": [result.get(key) for key in ("thresholds", "pixel_thresholds", "calibration_images")],
    }


@pytest.mark.parametrize(
    ("method", "select"),
    [("stfpm", "val_normal"), ("student_ensemble", "last")],  # that one's map is standardised by normals
)
def test_each_normal_is_scored_as_if_it_had_been_a_test_image(
    method: str, select: str, cloth: Path, write_grid: WriteGrid
) -> None:
    sections = {"axes": {"method": [method]}, "defaults": SETTINGS | {"train.select": select}}
    plan, results = done(write_grid(cloth, **sections, calibrate=FOLDS))
    plain = outcome(*done(write_grid(cloth, **sections)))
    found, samples, (training,) = outcome(plan, results), samples_of(plan), plan.trainings
    assert {key: found[key] for key in ("students", "curve", "scores")} == {
        key: plain[key] for key in ("students", "curve", "scores")
    }
    assert plain["calibration"] == []
    scores = {one.path: one.score for one in found["calibration"]}
    assert list(scores) == [one.path for one in samples if one.split == "train"]
    ordered = sorted(scores.values())  # of 24 the 23rd is the threshold for .1: ceil(25 * .9)
    assert found["thresholds"][0] == {"0.01": None, "0.05": ordered[23], "0.1": ordered[22]}
    assert found["thresholds"][2] == 24
    division = held_out.divide_by_fold(samples, training.spec)[1]
    moved = {samples[i].path for i in division.calibration}
    assert len(moved) == 8
    for path in moved:
        shutil.move(cloth / path, cloth / "cloth" / "test" / "good" / f"moved_{Path(path).name}")
    apart = outcome(*done(write_grid(cloth, **sections)))["scores"]
    expected = {each.path.rpartition("_")[2]: each.score for each in apart if "moved" in each.path}
    assert {Path(path).name: scores[path] for path in moved} == expected


def test_a_variant_made_later_uses_the_folds_students(cloth: Path, write_grid: WriteGrid) -> None:
    """One whose file is damaged is trained again, to the same numbers."""
    sections = {"defaults": SETTINGS, "calibrate": FOLDS}
    plan, results = done(write_grid(cloth, **sections))
    (training,) = plan.trainings
    folder, once = results.run_folder(training.spec.id), outcome(plan, results)
    written = {number: folder.fold(number).stat().st_mtime_ns for number in (1, 2, 3)}
    shutil.rmtree(results.run_folder(training.evaluations[0].id).path)
    assert outcome(*done(write_grid(cloth, **sections))) == once
    assert {number: folder.fold(number).stat().st_mtime_ns for number in written} == written
    shutil.rmtree(results.run_folder(training.evaluations[0].id).path)
    folder.fold(2).write_bytes(folder.fold(2).read_bytes()[:1000])
    assert outcome(*done(write_grid(cloth, **sections))) == once
    changed = [number for number in written if folder.fold(number).stat().st_mtime_ns != written[number]]
    assert changed == [2]


def test_what_is_loaded_decides_by_the_pooled_scores(cloth: Path, write_grid: WriteGrid, tmp_path: Path) -> None:
    plan, results = done(write_grid(cloth, defaults=SETTINGS, calibrate=FOLDS))
    evaluation = plan.trainings[0].evaluations[0]
    folder, result = results.run_folder(evaluation.id), results.record(evaluation.id).result
    model = dskd.load(folder.path)
    packed = dskd.load(model.pack(tmp_path / "one.dskd") or tmp_path / "one.dskd")
    scores = read_scores(folder, [])
    normal = np.array([one.score for one in read_calibration(folder, [])])
    expected = conformal.p_values(np.array([one.score for one in scores]), normal, np.ones(24))
    for each in (model, packed):
        found = list(each.predict([cloth / one.path for one in scores]))
        assert [one.score for one in found] == [one.score for one in scores]
        assert [one.p_value for one in found] == expected.tolist()
        assert [one.anomalous for one in found] == [one.score > result["threshold"] for one in scores]


def job_of(grid: Path, force: bool = False) -> Any:
    options = {"save": Save(), "device": "cpu", "force": force, "grid": "tiny", "checkpoint_every_s": 0.0}
    (job,) = remaining(planned(grid), (), results=str(grid.parent / "runs"), **options).jobs
    return job


def attempt(job: Any, stop_in: int = 0) -> list[int]:
    """Do the job, told to stop at the first step of that training; the numbers of the trainings that began."""
    stop, begun = Stop(), []

    def emit(event: events.FromWorker) -> None:
        if isinstance(event, events.Phase) and event.phase == "train":
            begun.append(event.part)
            if event.part == stop_in:
                stop.set()

    execute(job, emit, stop)
    return begun


def test_a_job_that_is_stopped_goes_on_in_its_fold(cloth: Path, write_grid: WriteGrid) -> None:
    """Also where it does again what has a record: of the earlier training's folds nothing is taken."""
    grid = write_grid(cloth, defaults=SETTINGS, calibrate=FOLDS)
    plan, results = done(grid)
    once, folder = outcome(plan, results), results.run_folder(plan.trainings[0].spec.id)
    for force in (True, False):
        written = folder.fold(1).stat().st_mtime_ns
        if not force:
            shutil.rmtree(results.folder)
        assert attempt(job_of(grid, force), stop_in=2) == [1, 2]
        failure = results.last_failure(plan.trainings[0].spec.id)
        assert failure.message.startswith("Interrupted: fold 2 of 3: stopped in epoch 1 of 2; the next call goes on")
        first = folder.fold(1).stat().st_mtime_ns
        assert first > written
        assert attempt(job_of(grid, force)) == [1, 2, 3, 4]
        assert folder.fold(1).stat().st_mtime_ns == first
        assert outcome(plan, results) == once
        record = results.record(plan.trainings[0].spec.id).result
        assert record["resumed"] == 1
        assert [each["calibration_images"] for each in record["folds"]] == [8, 8, 8]
        assert not folder.checkpoint.exists()


def test_weights_that_are_not_kept_leave_none_of_a_fold(cloth: Path, write_grid: WriteGrid) -> None:
    grid = write_grid(cloth, defaults=SETTINGS, calibrate=FOLDS)
    job = job_of(grid)
    execute(type(job)(**{**vars(job), "save": Save(weights=False)}), lambda *_: None)
    left = [name for _, folders, names in os.walk(grid.parent / "runs") for name in (*folders, *names)]
    assert "calibration.csv" in left
    assert not [name for name in left if "safetensors" in name or name == "folds"]


def test_folds_hold_each_image_once_and_groups_whole(cloth: Path, write_grid: WriteGrid) -> None:
    draw = np.random.default_rng(0)
    samples = [Sample(f"{i}.png", "train", group=str(g)) for i, g in enumerate(np.sort(draw.integers(0, 30, 200)))]
    spec = planned(write_grid(cloth, defaults=SETTINGS, calibrate={"folds": 7})).trainings[0].spec
    divisions = held_out.divide_by_fold([*samples, Sample("t.png", "test"), Sample("v.png", "val")], spec)
    parts = [division.calibration for division in divisions]
    assert sorted(np.concatenate(parts)) == list(range(200))
    assert len(parts) == 7
    assert max(map(len, parts)) - min(map(len, parts)) <= 12  # no more than the largest group
    owners = [{samples[i].group for i in part} for part in parts]
    assert sum(map(len, owners)) == len(set.union(*owners))
    assert all(sorted([*one.train, *one.calibration]) == list(range(200)) for one in divisions)


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        (
            {"calibrate": {"folds": 1}},
            r"calibrate: \{'folds': 1\} is not possible; write a number or \{folds: K\} with",
        ),
        ({"calibrate": {"folds": 21}}, "with K from 2 to 20"),
        ({"calibrate": {"fold": 5}}, r"calibrate: \{'fold': 5\} is not possible"),
        (
            {"calibrate": {"folds": 9}},
            r"8 normal images \(8 groups\) have no group for each fold; write .*\{folds: 8\}",
        ),
        (
            {"calibrate": FOLDS},
            "too few for false_alarm_rate: 0.05, which needs 19 groups; write false_alarm_rate: 0.12",
        ),
        (
            {"calibrate": FOLDS, "defaults": {"processes": 2, "train.batch_size": 8}},
            r"calibrate: \{folds: 3\} is for one process, not processes: 2; write calibrate: 0.2",
        ),
    ],
)
def test_what_cannot_be_meant_is_refused(
    sections: dict[str, object], message: str, tmp_path: Path, write_grid: WriteGrid
) -> None:
    with pytest.raises(ConfigError, match=message) as error:
        planned(write_grid(write_mvtec(tmp_path / "few", train=8), **sections))
    assert "\n" not in str(error.value)


def test_folds_without_test_images_are_refused(tmp_path: Path, write_grid: WriteGrid) -> None:
    root = write_mvtec(tmp_path / "normal", train=24, good=0, defects=0)
    with pytest.raises(ConfigError, match=r"without test images nothing is evaluated.*; write calibrate: 0"):
        planned(write_grid(root, calibrate=FOLDS))


def test_a_plan_says_what_folds_cost(cloth: Path, write_grid: WriteGrid) -> None:
    long = {"train.epochs": 1000, "train.batch_size": 1}
    plans = [planned(write_grid(cloth, calibrate=each, defaults=long)) for each in (0, FOLDS)]
    plain, folded = (plan.trainings[0] for plan in plans)
    said = (
        "calibrate: {folds: 3} of folder cloth trains 3 times more, each time without another fold of 24 normal images"
    )
    assert plans[1].remarks()[-1] == f"{said} (24 groups)"
    assert folded.spec.id != plain.spec.id
    assert folded.spec.calibrate == Folds(3)
    seconds = [estimate_s(each, prior("cpu")) for each in (plain, folded)]
    assert seconds[1] / seconds[0] == pytest.approx(3, rel=0.02)  # the run's own, and three of two thirds
    both = planned(write_grid(cloth, axes={"calibrate": [0, FOLDS]}))
    names = [both.names[each.spec.id].partition("seed 0")[2] for each in both.trainings]
    assert names == ["", " calibrate={folds: 3}"]
