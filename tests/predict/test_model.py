"""A trained run as a model: its numbers are those of its evaluation, and its decisions those of its thresholds."""

import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import dskd
from dskd import conformal
from harness.data.catalog import DataError
from harness.predict import model as module
from harness.predict.content import Preparation
from harness.predict.model import Prediction, Unreadable
from tests.predict.conftest import Trained

VARIANTS = [(method, label) for method in ("stfpm", "student_ensemble") for label in ("", "smooth")]


@pytest.mark.parametrize(("method", "label"), VARIANTS)
def test_scores_are_those_of_the_evaluation_bit_for_bit(
    trained: Trained, tmp_path: Path, method: str, label: str
) -> None:
    folder = trained.folder(method=method, category="cloth", label=label)
    paths, scores = trained.scored(folder)
    assert len(paths) == 10
    assert len({Path(path).suffix for path in paths}) == 2
    torch.manual_seed(3)
    expected = torch.random.get_rng_state()
    model = dskd.load(folder)
    found = list(model.predict(paths))
    assert [each.path for each in found] == paths
    assert [each.score for each in found] == scores
    assert torch.equal(torch.random.get_rng_state(), expected)  # loading draws none of the user's random numbers
    backwards = list(model.predict(paths[::-1]))
    assert [each.score for each in backwards] == scores[::-1]
    maps, again = model.inspect(np.stack([each.pixels for each in found]))
    assert again.tolist() == scores
    assert all(np.array_equal(each.map, one) for each, one in zip(found, maps, strict=True))
    assert maps.shape == (10, 32, 32)
    model.pack(tmp_path / "one.pack")
    packed = dskd.load(tmp_path / "one.pack")
    assert packed.content == model.content
    assert [each.score for each in packed.predict(paths)] == scores


def test_a_record_of_before_statistics_were_kept_says_what_to_do(trained: Trained, tmp_path: Path) -> None:
    folder = trained.folder(method="student_ensemble", category="cloth", label="")
    shutil.copytree(trained.results, tmp_path / "tiny")
    record = tmp_path / "tiny" / folder.name / "record.json"
    record.write_text(record.read_text().replace('"standardisation"', '"something"'))
    with pytest.raises(dskd.ConfigError, match="remove that folder and run its grid again, which only evaluates"):
        dskd.load(record.parent)


def test_decisions_are_those_of_the_evaluation_image_by_image(trained: Trained) -> None:
    folder = trained.folder(method="stfpm", category="felt", label="")
    paths, scores = trained.scored(folder)
    (record,) = [each for each in trained.records() if each.id == folder.name]
    result, model = record.result, dskd.load(folder)
    assert (model.rate, model.threshold) == (0.1, result["threshold"])
    found = list(model.predict(paths))
    assert [each.anomalous for each in found] == [score > result["threshold"] for score in scores]
    called = {anomalous: [] for anomalous in (True, False)}
    for each in found:
        called["hole" in each.path].append(each.anomalous)
    assert np.mean(called[False]) == result["fpr_at_threshold"]
    assert np.mean(called[True]) == result["recall_at_threshold"]
    marked = [(each.map > model.pixel_threshold).mean() for each in found if "hole" not in each.path]
    assert np.mean(marked) == pytest.approx(result["pixel_fpr_at_threshold"])
    scored, weights = model.calibration
    assert (len(scored), weights.sum()) == (result["calibration_images"], result["calibration_groups"]) == (12, 12)
    assert model.content.threshold_at(0.1) == conformal.threshold(scored, weights, 0.1)
    assert [each.anomalous for each in found] == [each.p_value <= 0.1 + 1e-9 for each in found]


def test_decisions_are_those_of_the_thresholds(calibrated: Callable[..., Path], trained: Trained) -> None:
    paths, scores = trained.scored(trained.folder(method="stfpm", category="cloth", label=""))
    normal = np.linspace(min(scores), max(scores), 39).tolist()
    thresholds = {str(rate): conformal.threshold(np.array(normal), np.ones(39), rate) for rate in (0.05, 0.1)}
    folder = calibrated(
        normal,
        false_alarm_rate=0.1,
        threshold=thresholds["0.1"],
        thresholds=thresholds,
        pixel_threshold=0.5,
        pixel_thresholds={"0.1": 0.5, "0.05": None},
    )
    model = dskd.load(folder)
    assert (model.rate, model.threshold, model.pixel_threshold) == (0.1, thresholds["0.1"], 0.5)
    found = list(model.predict(paths))
    assert [each.score for each in found] == scores
    assert [each.anomalous for each in found] == [score > thresholds["0.1"] for score in scores]
    assert {each.anomalous for each in found} == {True, False}
    counted = [(1 + sum(each >= score for each in normal)) / 40 for score in scores]
    assert [each.p_value for each in found] == pytest.approx(counted, abs=1e-12)
    for rate in (0.05, 0.2):  # stored, and made from the scores
        chosen = list(model.predict(paths, rate=rate))
        assert [each.anomalous for each in chosen] == [value <= rate for value in counted]
    assert model.content.pixel_threshold_at(0.1) == 0.5
    with pytest.raises(
        dskd.ConfigError, match=r"write one of 0\.1, or false_alarm_rate: 0\.2 in an entry of `evaluate`"
    ):
        model.content.pixel_threshold_at(0.2)


def test_a_rate_that_there_is_no_threshold_for_is_refused_at_once(
    calibrated: Callable[..., Path], trained: Trained
) -> None:
    model = dskd.load(calibrated([1.0] * 8, false_alarm_rate=0.05, threshold=None, thresholds={"0.05": None}))
    (note,) = model.notes
    assert "a false alarm rate of 0.05 is too low" in note
    for rate, message in (
        (
            0.05,
            r"rate: 0\.05 is too low: its run had 8 normal images in 8 groups for thresholds, which allow 0\.112 or",
        ),
        (0.0, "write a number between 0 and 1"),
    ):
        with pytest.raises(dskd.ConfigError, match=message):
            model.predict([], rate=rate)
    assert not list(model.predict([], rate=0.2))
    plain = dskd.load(trained.folder(method="stfpm", category="cloth", label=""))
    assert plain.calibration is None
    with pytest.raises(dskd.ConfigError, match=r"rate: 0\.05 needs a calibration.*calibrate: 0\.2"):
        plain.predict([], rate=0.05)


def test_what_cannot_be_read_stands_in_its_place(trained: Trained, tmp_path: Path) -> None:
    model = dskd.load(trained.folder(method="stfpm", category="cloth", label=""))
    paths, scores = trained.scored(trained.folder(method="stfpm", category="cloth", label=""))
    (tmp_path / "cut.png").write_bytes(Path(paths[0]).read_bytes()[:200])
    (tmp_path / "text.png").write_text("no picture")
    mixed = [tmp_path / "cut.png", *paths[:6], tmp_path / "text.png", tmp_path, tmp_path / "none.png", *paths[6:]]
    found = list(model.predictions(mixed))
    assert [each.path for each in found] == list(map(str, mixed))
    assert [type(each) for each in found].count(Unreadable) == 4
    assert [each.score for each in found if isinstance(each, Prediction)] == scores
    assert all(
        each.why.startswith(each.path) and "\n" not in each.why for each in found if isinstance(each, Unreadable)
    )
    some = model.predict(mixed[1:])
    assert [next(some).score for _ in range(6)] == scores[:6]
    with pytest.raises(DataError, match=r"text\.png is not a readable image"):
        next(some)
    assert Image.MAX_IMAGE_PIXELS is not None


def test_however_many_paths_there_are_a_few_batches_are_held(trained: Trained) -> None:
    folder = trained.folder(method="stfpm", category="cloth", label="")
    (path, *_), _ = trained.scored(folder)
    taken = 0

    def endless() -> Iterator[str]:
        nonlocal taken
        while True:
            taken += 1
            yield path

    found = dskd.load(folder).predict(endless())
    for number in range(1, 41):
        next(found)
        assert taken <= number + (module.AHEAD + 1) * 4 + 1
    found.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("decode")]


def test_a_picture_of_another_size_is_treated_as_in_training_and_named_once(
    trained: Trained, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = dskd.load(trained.folder(method="stfpm", category="cloth", label=""))
    paths, _ = trained.scored(trained.folder(method="stfpm", category="cloth", label=""))
    assert model.content.pictures["width"] == [40, 40]
    before = list(model.notes)
    list(model.predict([path for path in paths if Path(path).stem.isdigit()]))
    assert model.notes == before
    for number in range(2):
        Image.new("RGB", (200, 20), "grey").save(tmp_path / f"{number}.png")
    list(model.predict([tmp_path / "0.png", tmp_path / "1.png"]))
    (note,) = model.notes[len(before) :]
    assert "0.png has 200x20 pixels, pictures of training had 40 to 40 by 40 to 40" in note
    assert sum(note in record.getMessage() for record in caplog.records) == 1


@pytest.mark.parametrize(
    ("picture", "preparation"),
    [
        ((200, 100), Preparation("", (64, 96))),
        ((200, 100), Preparation("", (64, 96), resize="pad")),
        ((90, 180), Preparation("", (64, 96), resize="pad")),
        ((90, 180), Preparation("", 64, crop=32)),
        ((120, 100), Preparation("", (64, 96), crop=60, resize="pad")),
    ],
)
def test_boxes_of_maps_are_found_in_the_picture(
    tmp_path: Path, picture: tuple[int, int], preparation: Preparation
) -> None:
    width, height = picture
    box = np.array([width * 0.4, height * 0.45, width * 0.6, height * 0.6]).round().astype(int)
    pixels = np.zeros((height, width), np.uint8)
    pixels[box[1] : box[3], box[0] : box[2]] = 255
    Image.fromarray(pixels).save(tmp_path / "one.png")
    seen = module.read(str(tmp_path / "one.png"), preparation)
    assert seen.pixels.shape[:2] == preparation.sides
    rows, columns = np.nonzero(seen.pixels[..., 0] > 127)
    found = preparation.in_picture((columns.min(), rows.min(), columns.max() + 1, rows.max() + 1), picture)
    assert np.abs(np.array(found) - box).max() <= max(width, height) / min(preparation.sides) + 1
