"""The command line: bad input ends with exit code 2 and one line; plans need no torch and no time."""

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.faults.commands import Done
from tests.faults.commands import harness as in_process

WriteGrid = Callable[..., Path]


def harness(*arguments: object, expect: int = 0) -> Done:
    done = in_process(*arguments)
    assert done.code == expect, done.out + done.err
    return done


def test_modules_that_plan_and_print_import_no_torch() -> None:
    planning = "dskd.methods, harness.cli, harness.grid, harness.records, harness.leaderboard.best, harness.environment"
    allowed = {
        f"{planning}, harness.launch.supervisor, harness.launch.schedule": "torch timm datasets accelerate",
        "harness.spec, harness.records": "harness.run harness.launch harness.data harness.cli torch",
    }
    for modules, banned in allowed.items():
        subprocess.run([sys.executable, "-c", imports_none(banned, modules)], check=True)


def imports_none(banned: str, modules: str) -> str:
    return f"import sys, {modules}\nfound = set({banned.split()}) & set(sys.modules)\nassert not found, found\n"


def test_methods_know_nothing_of_the_harness_and_a_worker_imports_what_decodes_images_when_it_must() -> None:
    arrows_point_one_way = imports_none("harness", "dskd.distiller, dskd.teacher, dskd.methods")
    of_a_worker = imports_none("datasets pandas pyarrow", "harness.run.execute")
    subprocess.run([sys.executable, "-c", arrows_point_one_way + of_a_worker], check=True)


def test_a_whole_plan_imports_no_torch(write_grid: WriteGrid, tree: Path) -> None:
    grid = write_grid(tree)
    code = (
        "import sys\nfrom harness.cli import app\n"
        f"app(['plan', '--grid', {str(grid)!r}], standalone_mode=False)\n"
        "assert not {'torch', 'timm', 'datasets', 'pandas'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_plan_counts_and_lists(write_grid: WriteGrid, tree: Path, tmp_path: Path) -> None:
    grid = write_grid(tree, axes={"seed": [0, 1, 2]}, bench={"seconds": 1}, evaluate=[{}, {"score": "mean"}])
    output = harness("plan", "--grid", grid, "--out", tmp_path / "runs", "--list").out
    assert "3 runs (3 trainings, 6 evaluations), 1 measurement; to do: 3 runs" in output
    assert output.count("cloth seed") == 9
    assert output.count("evaluate  stfpm resnet18 data/cloth seed 1 score=mean") == 1
    assert not (tmp_path / "runs").exists()
    assert "1 run (1 training, 2" in harness("plan", "--grid", grid, "--only", "seed=1").out


def test_bad_input_is_one_line_and_exit_code_2(write_grid: WriteGrid, tree: Path, tmp_path: Path) -> None:
    cases = [
        (["run", "--grid", tmp_path / "gone.yaml"], "gone.yaml: No such file"),
        (["run", "--grid", tmp_path], "Is a directory"),
        (["run", "--grid", write_grid(tree), "--devices", "tpu"], "--devices: 'tpu' is not possible"),
        (["run", "--grid", write_grid(tree), "--checkpoint-every", "-1"], "--checkpoint-every: -1 is not possible"),
        (["run", "--grid", write_grid(tree), "--checkpoint-every", "nan"], "--checkpoint-every: nan is not possible"),
        (["plan", "--grid", write_grid(tree), "--only", "seed"], "--only: 'seed' is not possible; write key=value"),
        (["plan", "--grid", write_grid(tree), "--only", "sed=1"], "--only: unknown key 'sed'; did you mean 'seed'"),
        (["plan", "--grid", write_grid(tree), "--only", "seed=9"], "--only: no run of the grid has seed=9"),
        (["show", "abc", "--out", tmp_path], "no run 'abc'"),
        (["leaderboard", tmp_path / "gone"], "is not a folder"),
        (["leaderboard", tmp_path, "--format", "html"], "--format: 'html' is not possible"),
        (["leaderboard", tmp_path], "no finished evaluation to show"),
        (["leaderboard", tmp_path, "--table", "scors"], "--table: unknown table 'scors'; did you mean 'scores'"),
        (["compare", tmp_path, tmp_path / "gone"], "no finished evaluation to compare"),
        (["compare", tmp_path, tmp_path, "--fail-on", "2"], "--fail-on: 2.0 is not possible; write the points"),
    ]
    for arguments, message in cases:
        error = harness(*arguments, expect=2).err
        assert message in error, arguments
        assert error.startswith("error: ")
        assert error.count("\n") == 1, error
    (tmp_path / "bad.yaml").write_text("axes: [")
    assert "is not YAML" in harness("run", "--grid", tmp_path / "bad.yaml", expect=2).err
    as_a_user = [sys.executable, "-m", "harness", "rnu"]
    assert subprocess.run(as_a_user, capture_output=True).returncode == 2


def test_bad_data_is_refused_before_anything_runs(write_grid: WriteGrid, tree: Path) -> None:
    (tree / "cloth" / "train" / "good" / "000.png").write_bytes(b"")
    error = harness("run", "--grid", write_grid(tree), "--out", tree / "runs", expect=2).err
    assert "000.png is empty" in error
    assert not (tree / "runs").exists()


def test_weights_that_cannot_be_had_are_said_at_once(write_grid: WriteGrid, tree: Path) -> None:
    grid = write_grid(tree, defaults={"weights": "imagenet"})
    started = time.monotonic()
    error = harness("run", "--grid", grid, expect=2).err
    assert "hf download timm/resnet18.tv_in1k model.safetensors" in error
    assert "weights: random" in error
    assert time.monotonic() - started < 20  # the hub's own client tries for 46 s


def test_every_command_explains_itself() -> None:
    overview = harness("--help").out
    for command in (
        "run",
        "plan",
        "show",
        "leaderboard",
        "compare",
        "submit",
        "status",
        "methods",
        "backbones",
        "datasets",
        "init",
    ):
        assert command in overview
        assert len(harness(command, "--help").out) > 300


def test_compare_tells_ci_of_a_regression(tmp_path: Path) -> None:
    from harness.records import Results
    from tests.leaderboard.test_table import evaluation

    for name, value in (("a", 0.8), ("b", 0.7)):
        Results(tmp_path / name).publish(evaluation("dskd", "x", 0, value))
    found = harness("compare", tmp_path / "a", tmp_path / "b", "--fail-on", -0.5, expect=1)
    assert "regression: set image_auroc dskd resnet18: -10.00 points" in found.err
    harness("compare", tmp_path / "b", tmp_path / "a", "--fail-on", -0.5)
    harness("compare", tmp_path / "a", tmp_path / "b")


@pytest.mark.parametrize("form", ["markdown", "csv", "latex", "json"])
def test_leaderboard_needs_records_alone(form: str, tmp_path: Path) -> None:
    from harness.records import Results
    from tests.leaderboard.test_table import evaluation

    Results(tmp_path).publish(evaluation("dskd", "a", 0, 0.8))
    assert "dskd" in harness("leaderboard", tmp_path, "--format", form).out


def test_show_finds_what_lies_where_by_labels(tmp_path: Path) -> None:
    from tests.leaderboard.synthetic import fail, write_results

    results = write_results(tmp_path / "runs" / "made", ("dskd", "stfpm"), seeds=2)
    fail(results)
    out = ("--out", tmp_path / "runs")
    found = harness("show", "method=dskd,seed=0,category=cloth", *out).out
    assert found.count("dskd resnet18 set/cloth seed 0") == 2
    assert "evaluate  done    dskd resnet18 set/cloth seed 0" in found
    lines = [line.split() for line in found.splitlines() if line.startswith("  ")]
    assert all(set(files) == {path.name for path in Path(folder).iterdir()} for folder, *files in lines)
    assert "train     failed  stfpm resnet18 set/cloth seed 99" in harness("show", "method=stfpm,kind=train", *out).out
    assert harness("show", "kind=evaluate,score=max,seed=1", *out).out.count("  done  ") == 4  # not the first alone
    whole = harness("show", "kind=bench,method=dskd", *out).out
    assert whole.startswith("bench ")
    assert "spec ──" in whole
    of_settings = harness("show", "kind=evaluate,method=dskd,train.batch_size=16", *out).out
    assert of_settings.count("evaluate  done    dskd resnet18") == 4  # not of the first that is looked at alone
    assert harness("show", "kind=bench,train.lr=0.4", *out, expect=2).err.startswith("error: nothing in ")
    for text, message in (
        ("method=dskd,seed", "'seed' is not possible; write key=value,key=value or an id"),
        ("sed=1", "unknown key 'sed'; did you mean 'seed'"),
        ("seed=77", "has seed=77; `harness plan --grid GRID --list` lists what a grid has"),
    ):
        assert message in harness("show", text, *out, expect=2).err
