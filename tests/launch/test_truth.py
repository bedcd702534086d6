"""Test images without masks, or none at all: from the grid to the tables."""

import shutil
from pathlib import Path

import pytest

from tests.conftest import write_mvtec
from tests.faults.commands import harness
from tests.launch.test_run import records, run

IMAGE = ("image_auroc", "image_ap", "image_f1_max")
PIXEL = ("pixel_auroc", "pixel_ap", "pixel_f1_max", "aupro_0.30", "aupro_0.05")
LINES = (
    "folder none: pixel metrics are undefined, as none of the 3 abnormal test images has a mask",
    "folder some: pixel metrics are over 5 of 6 test images, as 1 of the 3 abnormal ones have no mask",
)
FEW = "folder all, some: AUPIMO is undefined, as the normal test images of each have fewer than 100,000 pixels"
UNSCORED = "folder normal: trained and not scored, as there are no test images"


def write(folder: Path) -> Path:
    """A grid over four categories that are equal but for what is there of their test images."""
    for category in ("all", "some", "none", "normal"):
        base = write_mvtec(folder / "data", category) / category
        if category == "some":
            (base / "ground_truth/hole/001_mask.png").unlink()
        elif category != "all":
            shutil.rmtree(base / "ground_truth")
        if category == "normal":
            shutil.rmtree(base / "test")
    grid = folder / "grid.yaml"
    grid.write_text(
        f"""name: tiny
axes: {{method: [stfpm], backbone: [resnet18], dataset: [{{name: folder, root: {folder}/data}}], seed: [0]}}
defaults: {{image_size: 32, weights: random, train.epochs: 1, train.select: last, precision: fp32, evaluate.at: [1]}}
evaluate: [{{}}, {{metrics: histogram}}]
save: {{scores: true, maps: 4, weights: false}}
"""
    )
    return grid


@pytest.mark.usefixtures("without_workers")
def test_what_is_measured_without_masks_and_what_is_said_of_it(tmp_path: Path) -> None:
    grid = write(tmp_path)
    said = run(grid)
    assert (
        "folder normal: 6 normal images to train; warning: no test images: it is trained and nothing is scored" in said
    )
    for line in (*LINES, UNSCORED):
        assert line in said
    found = {(r.spec["train"]["data"]["category"], r.spec["metrics"]): r.result for r in records(grid).values()}
    assert len(found) == 6
    for (category, metrics), result in found.items():
        full = found["all", metrics]
        assert [result[key] for key in IMAGE] == [full[key] for key in IMAGE]  # of all images, whatever is known
        assert [result[key] is None for key in PIXEL] == [category == "none"] * len(PIXEL)
        assert result.get("test_without_mask") == {"all": None, "some": 1, "none": 3}[category]
        assert (result["anomalous_without_mask"], result["regions"]) == (0, {"all": 3, "some": 2, "none": 0}[category])
        assert result["aupimo"] is None
        bounds = result.get("error_bounds", {})
        for key, bound in bounds.items():
            assert abs(result[key] - found[category, "exact"][key]) <= bound + 1e-12
        assert bool(bounds) == (metrics == "histogram" and category != "none")
    assert found["some", "exact"]["pixel_auroc"] != found["all", "exact"]["pixel_auroc"]
    along = {
        r.spec["data"]["category"]: (tmp_path / "runs/tiny" / r.id / "metrics.csv")
        for r in records(grid, "train").values()
    }
    assert {category for category, path in along.items() if path.exists()} == {"all", "some", "none"}

    runs = tmp_path / "runs" / "tiny"
    for arguments in (["leaderboard", runs], ["leaderboard", runs, "--format", "markdown"], ["compare", runs, runs]):
        shown = " ".join(harness(*arguments).out.split())
        assert all(line in shown for line in LINES) or "6 of 6 runs identical" in shown, shown
        assert (UNSCORED in shown) == (arguments[0] == "leaderboard")
    assert not any(line in harness("leaderboard", runs, "--metric", "image_auroc").out for line in LINES)
    assert FEW in harness("leaderboard", runs, "--metric", "pixel_auroc,aupimo", "--format", "markdown").out
    page = tmp_path / "page.html"
    assert harness("report", runs, "--out", page).code == 0
    assert all(line in page.read_text() for line in (*LINES, UNSCORED))


@pytest.mark.usefixtures("without_workers")
def test_normal_images_alone_have_no_table(tmp_path: Path) -> None:
    grid = write(tmp_path)
    said = run(grid, "--only", "category=normal")
    assert UNSCORED in said
    assert "AUROC" not in said
    done = harness("leaderboard", tmp_path / "runs" / "tiny")
    assert (done.code, done.err) == (2, f"error: no finished evaluation to show; {UNSCORED}\n")
