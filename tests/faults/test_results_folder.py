"""What lies in a results folder when `harness run` comes back to it, and beside the records when reports are made
(faults.md, areas B and A): damage costs the run that it hit, which is done again.
"""

import errno
import importlib.util
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from harness.cli.common import make_plan
from harness.data.catalog import Sample
from harness.grid import Training
from harness.run.pictures import save_maps
from tests.conftest import write_mvtec
from tests.faults.commands import Done, harness, refusal
from tests.leaderboard.synthetic import write_results

has_altair = pytest.mark.skipif(importlib.util.find_spec("altair") is None, reason="pip install 'dskd-harness[report]'")


# What `harness run` does about it: all rows are seeds of one grid, damaged between two calls of one process each.


@dataclass(frozen=True)
class Run:
    """The folders of a training and its evaluation."""

    training: Path
    evaluation: Path

    def lose_evaluation(self) -> None:
        shutil.rmtree(self.evaluation)


def truncated(run: Run) -> None:
    path = run.evaluation / "record.json"
    path.write_bytes(path.read_bytes()[:100])


def empty(run: Run) -> None:
    (run.evaluation / "record.json").write_bytes(b"")


def no_training_record(run: Run) -> None:
    """Torn, with its evaluation missing: the weights are there."""
    (run.training / "record.json").write_text('{"schema": 1, "kind": "tr')
    run.lose_evaluation()


def weights_cut(run: Run) -> None:
    path = run.training / "students.safetensors"
    os.truncate(path, path.stat().st_size // 2)
    run.lose_evaluation()


def weights_empty(run: Run) -> None:
    os.truncate(run.training / "students.safetensors", 0)
    run.lose_evaluation()


def weights_of_another_model(run: Run) -> None:
    from safetensors.numpy import save_file

    save_file({"some.weight": np.zeros((3, 3), np.float32)}, run.training / "students.safetensors")
    run.lose_evaluation()


ROWS: list[Callable[[Run], None]] = [
    truncated,
    empty,
    no_training_record,
    weights_cut,
    weights_empty,
    weights_of_another_model,
]


@dataclass(frozen=True)
class Again:
    """The second call, its runs by seed, and what each left in the first one."""

    said: Done
    runs: list[Run]
    results: list[dict]
    weights: list[bytes]


@pytest.fixture(scope="module")
def again(tmp_path_factory: pytest.TempPathFactory) -> Again:
    base = tmp_path_factory.mktemp("again")
    grid = base / "tiny.yaml"
    write_mvtec(base / "data")
    grid.write_text(
        "name: tiny\n"
        f"axes: {{method: [stfpm], backbone: [resnet18], dataset: [{{name: folder, root: {base / 'data'}}}],"
        f" seed: {list(range(len(ROWS)))}}}\n"
        "defaults: {image_size: 32, weights: random, train.epochs: 1, train.select: last, precision: fp32}\n"
    )
    call = ["run", "--grid", grid, "--out", base / "runs", "--devices", "cpu"]
    first = harness(*call)
    assert first.code == 0, first
    _, plan = make_plan(grid, "cpu", None)
    folder = base / "runs" / "tiny"

    def run_of(training: Training) -> Run:
        return Run(folder / training.spec.id, folder / training.evaluations[0].id)

    runs = [run_of(training) for training in sorted(plan.trainings, key=lambda each: each.spec.seed)]
    results = [json.loads((run.evaluation / "record.json").read_text())["result"] for run in runs]
    weights = [(run.training / "students.safetensors").read_bytes() for run in runs]
    for damage, run in zip(ROWS, runs, strict=True):
        damage(run)
    return Again(harness(*call), runs, results, weights)


@pytest.mark.parametrize("row", range(len(ROWS)), ids=[damage.__name__ for damage in ROWS])
def test_a_damaged_run_is_done_again_to_the_same_numbers(row: int, again: Again) -> None:
    run = again.runs[row]
    result = json.loads((run.evaluation / "record.json").read_text())["result"]
    keys = [key for key in result if key.startswith(("image_", "pixel_", "aupro_"))]
    assert {key: result[key] for key in keys} == {key: again.results[row][key] for key in keys}
    assert json.loads((run.training / "record.json").read_text())["kind"] == "train"
    assert (run.training / "students.safetensors").read_bytes() == again.weights[row]
    aside = [path.name for each in (run.training, run.evaluation) for path in each.glob("record.json.damaged-*")]
    damaged = ROWS[row] in (truncated, empty, no_training_record)
    assert aside == (["record.json.damaged-1"] if damaged else [])
    if ROWS[row] in (weights_cut, weights_empty, weights_of_another_model):
        assert "cannot be used" in (run.training / "log.txt").read_text()


def test_the_call_that_does_them_again_ends_well_and_says_so(again: Again) -> None:
    assert again.said.code == 0, again.said
    assert (
        f"to do: {len(ROWS)} runs (1 training, {len(ROWS)} evaluations)" in again.said.out
    )  # one training, and each evaluation
    damaged = [line for line in (again.said.out + again.said.err).splitlines() if "is empty" in line or "JSON" in line]
    assert len(damaged) == 3, again.said


def test_a_disk_without_hard_links_is_found_before_any_work(
    write_grid: Callable[..., Path], tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    done = harness("run", "--grid", write_grid(tree), "--out", tmp_path / "runs", "--devices", "cpu")
    assert done.code == 2, done
    assert done.err.startswith("error: --out: ")
    assert "without hard links" in done.err
    assert done.err.count("\n") == 1
    assert not list((tmp_path / "runs" / "tiny").glob("*/log.txt"))


@pytest.mark.parametrize("kind", ["loop", "file", "below-a-file", "too-long"])
def test_an_out_that_can_hold_nothing_is_one_line(
    kind: str, write_grid: Callable[..., Path], tree: Path, tmp_path: Path
) -> None:
    """Beyond the list."""
    out = tmp_path / ("x" * 300 if kind == "too-long" else "out")
    if kind == "loop":
        out.symlink_to(out)
    elif kind != "too-long":
        out.write_text("mine")
        out = out / "deeper" if kind == "below-a-file" else out
    line = refusal("run", "--grid", write_grid(tree), "--out", out, "--devices", "cpu")
    assert "cannot be written" in line
    assert (tmp_path / "out").is_symlink() or kind == "too-long" or (tmp_path / "out").read_text() == "mine"


# Pictures of maps.


def save(folder: Path, samples: list[Sample]) -> None:
    count = len(samples)
    shape = (count, 8, 8)
    pictures = (
        np.zeros((*shape, 3), np.uint8),
        np.zeros(shape, bool),
        np.random.default_rng(0).random(shape, np.float32),
    )
    save_maps(folder, samples, *pictures, count)


@pytest.mark.parametrize(
    "stem", ["x" * 244, "ü" * 122, "x" * 251], ids=["244-characters", "122-characters-of-2-bytes", "251-characters"]
)
def test_a_long_name_of_an_image_costs_no_evaluation(stem: str, tmp_path: Path) -> None:
    defects = ["good", "a_defect_of_many_words", "good"]
    save(tmp_path, [Sample(f"test/{stem}.png", "test", defect) for defect in defects])
    names = sorted(path.name for path in tmp_path.iterdir())
    assert [name[:7] for name in names] == ["0000_go", "0001_a_", "0002_go"]
    assert all(Image.open(tmp_path / name).size == (32, 8) for name in names)


def test_a_picture_is_whole_or_the_one_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    samples = [Sample("a.png", "test", "good")]
    save(tmp_path, samples)
    (path,) = tmp_path.iterdir()
    before = path.read_bytes()

    def killed(self: Image.Image, target: object, *_: object, **__: object) -> None:
        stream = target if hasattr(target, "write") else open(target, "wb")  # noqa: SIM115
        stream.write(before[:40])
        stream.flush()
        raise KeyboardInterrupt

    monkeypatch.setattr(Image.Image, "save", killed)
    with pytest.raises(KeyboardInterrupt):
        save(tmp_path, samples)
    assert [each.read_bytes() for each in tmp_path.iterdir()] == [before]


# What `report` and `leaderboard` make of files beside good records.


def thumb(run: Path) -> None:
    (run / "maps" / "thumb.png").write_bytes(b"a picture of a file manager")


def apple_double(run: Path) -> None:
    (run / "maps" / "._0001_bad_000.png").write_bytes(b"\0\5\26\7")


def torn_picture(run: Path) -> Path:
    path = next((run / "maps").glob("*.png"))
    path.write_bytes(path.read_bytes()[:300])
    return path


def no_picture(run: Path) -> Path:
    path = next((run / "maps").glob("*.png"))
    path.write_text("not a picture")
    return path


def picture_of_another_shape(run: Path) -> Path:
    path = next((run / "maps").glob("*.png"))
    Image.new("RGB", (10, 40)).save(path)
    return path


def written(name: str, content: str | bytes) -> Callable[[Path], Path]:
    def damage(run: Path) -> Path:
        path = run / name
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    return damage


def a_folder(name: str) -> Callable[[Path], Path]:
    def damage(run: Path) -> Path:
        (run / name).unlink()
        (run / name).mkdir()
        return run / name

    return damage


MAPS = [thumb, apple_double, torn_picture, no_picture, picture_of_another_shape]
CURVES = [
    written("curve.csv", "epoch,loss\n1,0.5\n2,"),
    written("curve.csv", "epoch\n1\n"),
    written("curve.csv", "epoch,loss\n1,inf\n2,0.1\n"),
    written("curve.csv", b"epoch,loss\n1,\xff\n"),
    a_folder("curve.csv"),
]
METRICS = [
    written("metrics.csv", "epoch,image_auroc\n2,0.5\n4"),
    written("metrics.csv", "epoch,image_auroc\n2,nan\n"),
    written("metrics.csv", "epoch,image_auroc\n2,97.0\n"),
    written("metrics.csv", "image_auroc\n0.5\n"),
]
SCORES = [
    written("scores.csv", "path,defect,anomalous,score\na.png,good,0"),
    written("scores.csv", "path,score\na.png,1\n"),
    written("scores.csv", "path,defect,anomalous,score\na,good,0,nan\n"),
]


@pytest.fixture(scope="module")
def board(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("board") / "grid"
    write_results(folder, ["stfpm", "dskd"], ["cloth"], 1, maps=4, side=16, epochs=4)
    return folder


@has_altair
@pytest.mark.parametrize("number", range(len(MAPS)))
def test_damaged_files_beside_a_record_are_passed_over(number: int, board: Path, tmp_path: Path) -> None:
    """One of each kind at once, which the report names line by line: it takes seconds."""
    folder = tmp_path / "grid"
    shutil.copytree(board, folder)
    records = {path.parent: json.loads(path.read_text()) for path in sorted(folder.glob("*/record.json"))}
    named = []
    for kind, damages in (("evaluate", MAPS), ("train", CURVES), ("train", METRICS), ("evaluate", SCORES)):
        run = next(run for run, record in records.items() if record["kind"] == kind)
        named += [damage(run) for damage in damages[number : number + 1]]
        shown = harness("show", run)
        assert shown.code == 0, shown
        assert "Traceback" not in shown.out + shown.err
    named = [path for path in named if path is not None]
    page = tmp_path / "page.html"
    for command in (["report", folder, "--out", page], ["leaderboard", folder, "--table", "all"]):
        done = harness(*command)
        assert done.code == 0, done
        assert "Traceback" not in done.out + done.err
        if command[0] == "report":
            assert done.err.count("skipped") == len(named), done.err
            assert all(str(path) in done.err for path in named), done.err
    text = page.read_text()
    assert "dskd" in text
    assert text.count("data:image/webp") >= 4  # the pictures that are good
