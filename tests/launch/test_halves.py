"""A training belongs to its training images, an evaluation to the test images too."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from harness.data.catalog import get_source
from harness.data.manifest import describe
from harness.grid import expand, resolve
from harness.gridfile import read_grid
from tests.conftest import save, texture
from tests.faults.commands import harness
from tests.launch.test_run import records, run

WriteGrid = Callable[..., Path]


def one_more(tree: Path, name: str = "009") -> None:
    image, mask = texture(50, defect=True)
    save(tree / f"cloth/test/hole/{name}.png", image)
    save(tree / f"cloth/ground_truth/hole/{name}_mask.png", mask.astype("uint8") * 255)


@pytest.mark.usefixtures("without_workers")
def test_one_more_test_picture_evaluates_anew_and_trains_nothing(tree: Path, write_grid: WriteGrid) -> None:
    grid = write_grid(tree, axes={"seed": [0, 1]})
    run(grid)
    trained = records(grid, "train")
    one_more(tree)
    plan = harness("plan", "--grid", grid, "--out", grid.parent / "runs")
    assert "2 runs (2 trainings, 2 evaluations)" in plan.out
    output = run(grid)
    assert "to do: 2 runs (0 trainings, 2 evaluations)" in output
    assert "✓ train" not in output
    assert records(grid, "train") == trained
    assert sorted(record.result["test_anomalous"] for record in records(grid).values()) == [3, 3, 4, 4]
    table = harness("leaderboard", grid.parent / "runs" / "tiny", "--format", "markdown").out
    assert "2 evaluations on earlier test sets are left out" in table
    assert table.count("| stfpm |") == 1
    assert "seeds 0, 1" in table


def test_one_more_training_picture_trains_anew_and_a_renamed_mask_does_not(tree: Path, write_grid: WriteGrid) -> None:
    def specs() -> tuple[str, str]:
        parsed = read_grid(write_grid(tree))
        (training,) = expand(parsed, resolve(parsed, "cpu")).trainings
        return training.spec.id, training.evaluations[0].id

    before = specs()
    other = shutil.copy(tree / "cloth/ground_truth/hole/000_mask.png", tree / "cloth/ground_truth/hole/001_mask.png")
    masked = specs()
    assert masked[0] == before[0]
    assert masked[1] != before[1], other
    save(tree / "cloth/train/good/099.png", texture(99)[0])
    assert specs()[0] != before[0]


def test_metrics_along_a_training_are_of_the_test_images(tree: Path, write_grid: WriteGrid) -> None:
    def training() -> str:
        parsed = read_grid(write_grid(tree, defaults={"train.epochs": 2, "evaluate.at": [1, 2]}))
        return expand(parsed, resolve(parsed, "cpu")).trainings[0].spec.id

    before = training()
    one_more(tree)
    assert training() != before


def test_the_halves_of_the_built_in_data_set_are_known_apart() -> None:
    small = {"name": "surfaces", "train": 1, "test_good": 1, "test_per_defect": 1, "side": 32}
    first = describe(get_source(small), "granite")
    more = describe(get_source(small | {"test_good": 2}), "granite")
    assert more.manifest == first.manifest
    assert more.test_manifest != first.test_manifest
    assert describe(get_source(small | {"train": 2}), "granite").manifest != first.manifest
