"""`harness run` as users run it: real processes, a real worker, and what is left when something dies."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from harness.records import Failure, Record, Results
from tests.faults.commands import harness

WriteGrid = Callable[..., Path]
DEADLINE_S = 120


def command(grid: Path, *options: str) -> list[str]:
    return [sys.executable, "-m", "harness", "run", "--grid", str(grid), "--out", str(grid.parent / "runs"), *options]


def run(grid: Path, *options: str, expect: int = 0) -> str:
    """The supervisor is this process, its workers are others."""
    done = harness(*command(grid, *options)[3:])
    assert done.code == expect, done.out + done.err
    return done.out


def run_apart(grid: Path, *options: str) -> str:
    """In a process of its own: it loads plug-ins, which would stay in this one."""
    done = subprocess.run(command(grid, *options), capture_output=True, text=True, timeout=DEADLINE_S)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def records(grid: Path, kind: str = "evaluate") -> dict[str, Record]:
    found = Results(grid.parent / "runs" / "tiny")
    return {item.id: item for item in found if isinstance(item, Record) and item.kind == kind}


def metrics(grid: Path) -> dict[str, object]:
    """The numbers of every evaluation, less what a clock decides."""
    return {key: {k: v for k, v in record.result.items() if k != "inspect_s"} for key, record in records(grid).items()}


@pytest.fixture
def inside_a_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    """What an outer torchrun, or MPI under srun, sets: Accelerate would take each worker for a rank of theirs."""
    for name in ("PMI_SIZE", "WORLD_SIZE", "OMPI_COMM_WORLD_SIZE"):
        monkeypatch.setenv(name, "4")
    for name in ("PMI_RANK", "RANK", "LOCAL_RANK", "OMPI_COMM_WORLD_RANK"):
        monkeypatch.setenv(name, "3")
    monkeypatch.setenv("MASTER_PORT", "1")


@pytest.mark.usefixtures("inside_a_launcher")
def test_metrics_along_a_training_of_cropped_images_that_no_outer_launcher_disturbs(
    tree: Path, write_grid: WriteGrid
) -> None:
    defaults = {"image_size": 64, "crop": 32, "train.epochs": 3, "evaluate.at": [2, 3]}
    grid = write_grid(tree, axes={"method": ["stfpm"], "recipe": ["common"]}, defaults=defaults)
    output = run(grid)
    assert "✓ train" in output
    assert "stfpm (common) resnet18" in output
    (training,), (evaluation,) = records(grid, "train").values(), records(grid).values()
    folder = grid.parent / "runs" / "tiny" / training.id
    lines = list(csv.DictReader((folder / "metrics.csv").open(newline="")))
    assert [line["epoch"] for line in lines] == ["2", "3"]
    for key in ("image_auroc", "pixel_auroc", "aupro_0.30"):  # the last epoch is the one that is kept
        assert float(lines[-1][key]) == evaluation.result[key]
    assert "metrics along the training" in harness("show", folder).out


@pytest.fixture
def undisturbed_throughput(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the next call measures once more what others disturbed, such as the tests beside this one."""
    monkeypatch.setattr("harness.cli.run.is_measured_again", lambda *_: False)


@pytest.mark.usefixtures("undisturbed_throughput")
def test_a_grid_becomes_records_and_a_second_call_has_nothing_to_do(tree: Path, write_grid: WriteGrid) -> None:
    measured = {"batch_sizes": [1, 2], "seconds": 0.05}
    sections = {"axes": {"method": ["dskd", "stfpm"]}, "save": {"maps": 3}}
    grid = write_grid(tree, **sections, bench=measured)
    output = run(grid)
    assert "to do: 2 runs (2 trainings, 2 evaluations), 2 measurements" in output
    assert "image AUROC" in output
    results = grid.parent / "runs" / "tiny"
    (dskd,) = [r for r in records(grid).values() if r.spec["train"]["method"]["name"] == "dskd"]
    assert set(dskd.result) >= {"image_auroc", "image_ap", "image_f1_max", "pixel_auroc", "pixel_ap", "pixel_f1_max"}
    assert set(dskd.result) >= {"aupro_0.30", "aupro_0.05", "regions"}
    assert len(list((results / dskd.id / "maps").glob("*.png"))) == 3
    rows = (results / dskd.id / "scores.csv").read_text().splitlines()
    assert rows[0] == "path,defect,anomalous,score,group"
    assert len(rows) == 1 + 6
    training = records(grid, "train")[json.loads((results / dskd.id / "record.json").read_text())["spec"] and _id(dskd)]
    assert training.result["epochs"] == 1
    assert training.environment["packages"]["torch"]
    assert (results / training.id / "curve.csv").read_text().startswith("epoch,loss,held_out_map,seconds,images\n1,")
    (bench,) = [r for r in records(grid, "bench").values() if r.spec["method"]["name"] == "dskd"]
    assert [batch["batch_size"] for batch in bench.result["offline"]] == [1, 2]
    assert all(len((results / key / "record.json").read_bytes()) < 4096 for key in Results(results).done())

    done = Results(results).done()
    before = {results / key / "record.json": (results / key / "record.json").stat().st_mtime_ns for key in done}
    assert "to do: nothing" in run(grid)
    # A variant that is added later is evaluated from the saved weights: no training.
    output = run(write_grid(tree, **sections, bench=measured, evaluate=[{}, {"map.sigma": 1}]))
    assert "to do: 2 runs (0 trainings, 2 evaluations)" in output
    assert "✓ train" not in output
    assert "✓ evaluate stfpm resnet18 data/cloth seed 0 map.sigma=1 " in output
    index = {line["id"]: line for line in csv.DictReader((results / "index.csv").open(newline=""))}
    assert index.keys() == {path.parent.name for path in results.glob("*/record.json")}
    assert Counter(line["kind"] for line in index.values()) == {"train": 2, "evaluate": 4, "bench": 2}
    assert index[dskd.id]["name"] == "dskd resnet18 data/cloth seed 0"
    assert index[dskd.id]["files"].split() == ["maps", "record.json", "scores.csv"]
    assert {line["state"] for line in index.values()} == {"done"}
    assert len(records(grid)) == 4
    assert all(path.stat().st_mtime_ns == mtime for path, mtime in before.items())
    forced = run(write_grid(tree, **sections), "--force", "--only", "method=stfpm")
    assert forced.count("✓ train") == 1
    changed = {path.parent.name for path, mtime in before.items() if path.stat().st_mtime_ns != mtime}
    assert len(changed) == 2  # training and evaluation of stfpm


@pytest.mark.usefixtures("undisturbed_throughput", "without_workers")
def test_strips_from_grid_to_table(tree: Path, write_grid: WriteGrid) -> None:
    """Images of 64 x 96 under two methods of all students; and a square by both its sides is the square."""
    axes = {"method": ["dskd", "reverse_distillation"], "image_size": [[64, 96]]}
    sections = {"axes": axes, "save": {"maps": 2}, "bench": {"batch_sizes": [1], "seconds": 0.02}}
    square = {"method": ["stfpm"], "image_size": [[64, 64]]}
    settings = {"train.select": "val_normal", "evaluate.at": [1]}
    grid = write_grid(tree, **sections, include=[square], defaults=settings)
    run(grid)
    results = grid.parent / "runs" / "tiny"
    by_size = {}
    for each in records(grid).values():
        by_size.setdefault(str(each.spec["train"]["image_size"]), []).append(each)
    assert {size: len(found) for size, found in by_size.items()} == {"[64, 96]": 2, "64": 1}
    for each in by_size["[64, 96]"]:
        for path in (results / each.id / "maps").glob("*.png"):
            picture = np.asarray(Image.open(path))
            assert picture.shape == (64, 4 * 96, 3)
            kind, name = ("good", path.stem[-3:]) if "_good_" in path.name else ("hole", path.stem[-3:])
            with Image.open(tree / "cloth" / "test" / kind / f"{name}.png") as image:
                assert np.array_equal(picture[:, :96], image.resize((96, 64), Image.Resampling.BILINEAR))
        assert len(list((results / each.id / "maps").glob("*.png"))) == 2
        assert all(each.result[key] is not None for key in ("image_auroc", "pixel_auroc", "aupro_0.30"))
    benches = records(grid, "bench").values()
    assert sorted(str(each.spec["image_size"]) for each in benches) == ["64", "[64, 96]", "[64, 96]"]
    table = json.loads(harness("leaderboard", results, "--where", "image_size=64x96", "--format", "json").out)
    assert '"image_size": "64x96"' in json.dumps(table)
    again = write_grid(tree, **sections, include=[square | {"image_size": 64}], defaults=settings)
    assert "to do: nothing" in run(again)


def _id(evaluation: Record) -> str:
    from dskd.config import from_mapping
    from harness.spec import EvaluateSpec

    return from_mapping(EvaluateSpec, evaluation.spec).train.id


def test_a_run_that_fails_is_recorded_and_the_rest_goes_on(tree: Path, write_grid: WriteGrid) -> None:
    bad = {"name": "dskd", "train.optimizer": "sgd", "train.lr": 1e30, "train.epochs": 3, "train.batch_size": 2}
    grid = write_grid(tree, axes={"method": [bad, "stfpm"]})
    output = run(grid, expect=1)
    assert "1 failed" in output
    assert "diverged: DivergedError: the loss of epoch" in output
    assert len(records(grid)) == 1
    (failure,) = [item for item in Results(grid.parent / "runs" / "tiny") if isinstance(item, Failure)]
    assert (failure.reason, failure.attempt) == ("diverged", 1)
    shown = harness("show", failure.id[:8], "--out", grid.parent / "runs").out
    assert "failed (diverged, attempt 1)" in shown
    assert "a lower train.lr may help" in shown
    assert "to do: 1 run (1 training, 1 evaluation);" in run(grid, expect=1)  # tried again
    assert Results(grid.parent / "runs" / "tiny").last_failure(failure.id).attempt == 2


def _children(pid: int) -> list[int]:
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def _alive(pid: int) -> bool:
    try:
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


MOMENTS: dict[str, Callable[[Path], bool]] = {
    "before a job": lambda folder: True,
    "at the first run": lambda folder: any(folder.glob("*/log.txt")),
    "after weights": lambda folder: any(folder.glob("*/students.safetensors")),
    "after a record": lambda folder: any(folder.glob("*/record.json")),
}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, object]]:
    """A grid of three runs with two evaluations each, and its numbers."""
    import yaml

    from tests.conftest import write_mvtec

    folder = tmp_path_factory.mktemp("grid")
    root = write_mvtec(folder / "data")
    document = {
        "name": "tiny",
        "axes": {"method": ["stfpm"], "backbone": ["resnet18"], "dataset": [{"name": "folder", "root": str(root)}]},
        "defaults": {"image_size": 32, "weights": "random", "train.epochs": 2, "precision": "fp32"},
        "evaluate": [{}, {"map.sigma": 1}],
        "save": {"weights": False},
    }
    document["axes"]["seed"] = [0, 1, 2]
    grid = folder / "grid.yaml"
    grid.write_text(yaml.safe_dump(document))
    run(grid)
    return grid, metrics(grid)


# Two by default, the others with the slow ones: each starts four processes that import torch.
QUICK = [("at the first run", "supervisor"), ("after weights", "worker")]
CASES = [
    pytest.param(moment, victim, marks=() if (moment, victim) in QUICK else pytest.mark.slow)
    for moment in MOMENTS
    for victim in ("worker", "supervisor")
]


@pytest.mark.parametrize(("moment", "victim"), CASES)
def test_killed_at_any_moment_the_next_call_completes_to_the_same_numbers(
    victim: str, moment: str, tmp_path: Path, undisturbed: tuple[Path, dict[str, object]]
) -> None:
    original, expected = undisturbed
    grid = tmp_path / "grid.yaml"
    grid.write_text(original.read_text())
    folder = tmp_path / "runs" / "tiny"
    process = subprocess.Popen(command(grid), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    deadline = time.monotonic() + DEADLINE_S
    while not ((workers := _children(process.pid)) and MOMENTS[moment](folder)):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.002)
    os.kill(process.pid if victim == "supervisor" else workers[0], signal.SIGKILL)
    output, _ = process.communicate(timeout=DEADLINE_S)
    while any(_alive(worker) for worker in workers):  # a worker never outlives its supervisor
        assert time.monotonic() < deadline
        time.sleep(0.01)
    if victim == "worker":
        assert process.returncode in (0, 1), output
    if metrics(grid) != expected:
        run(grid)
    assert metrics(grid) == expected
    assert not list(folder.glob("*/students.safetensors"))  # kept only until the evaluations were done


def test_ctrl_c_keeps_what_is_finished(tree: Path, write_grid: WriteGrid) -> None:
    grid = write_grid(tree, axes={"seed": list(range(200))})
    process = subprocess.Popen(command(grid), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    deadline = time.monotonic() + DEADLINE_S
    while not (process.poll() is None and len(list(grid.parent.glob("runs/tiny/*/record.json"))) >= 2):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 130, output
    assert "interrupted" in output
    assert "image AUROC" in output  # the table so far
    assert len(records(grid)) >= 1


def test_workers_that_cannot_start_are_an_error_not_a_loop(
    tree: Path, write_grid: WriteGrid, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "torch.py").write_text("raise ImportError('a broken installation')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "broken"), prepend=os.pathsep)
    output = run(write_grid(tree), expect=1)
    assert "workers cannot start" in output
    assert "a broken installation" in output
