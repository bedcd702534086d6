"""The README's commands, run as they stand there (`make quickstart` is CI's own)."""

import io
import os
import re
import shlex
import subprocess
import sys
from contextlib import redirect_stdout
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from dskd.methods import METHODS
from harness.gridfile import METHOD_KEYS, RUN_KEYS
from tests.conftest import ROOT, save, write_mvtec
from tests.faults.commands import harness

README = (ROOT / "README.md").read_text()


ON_A_CLUSTER = re.search(r"## On a cluster\n(.*?)\n## ", README, re.DOTALL)[1]  # tests/slurm runs its commands


def blocks(language: str, text: str = README.replace(ON_A_CLUSTER, "")) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def by_a_shell(command: str) -> tuple[int, str]:
    done = subprocess.run(command, shell=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    return done.returncode, done.stdout


def in_this_process(command: str) -> tuple[int, str]:
    done = harness(*shlex.split(os.path.expandvars(command))[1:])
    return done.code, done.out + done.err


@pytest.mark.usefixtures("without_workers")
def test_readme_commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first by a shell, as users give it; the others in this process, which has imported what each needs."""
    (grid,) = blocks("yaml")
    document = yaml.safe_load(grid)
    # Only what decides how long it takes, and weights that need no network.
    document["defaults"] = {"image_size": 32, "weights": "random", "train.epochs": 1}
    document["axes"]["seed"], document["bench"]["seconds"], document["bench"]["batch_sizes"] = [0], 0.05, [1]
    (tmp_path / "grid.yaml").write_text(yaml.safe_dump(document, sort_keys=False))
    monkeypatch.setenv("DATA", str(write_mvtec(tmp_path / "data", train=8)))
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent), prepend=os.pathsep)
    monkeypatch.chdir(tmp_path)
    lines = [line.removeprefix("$ ") for block in blocks("console") for line in block.splitlines()]
    commands = [line.split("#")[0].strip() for line in lines if line.startswith("harness")]
    after_quickstart = [command for command in commands if "runs/quickstart" in command]
    ci = (ROOT / ".ci" / "run").read_text()
    assert after_quickstart
    assert all(f".venv/bin/{command}\n" in ci for command in after_quickstart)
    assert len(commands) == 15 + len(after_quickstart)
    for number, command in enumerate(commands[len(after_quickstart) :]):
        if command.endswith("RUN"):
            run_id = next((tmp_path / "runs" / "tiles").glob("*/record.json")).parent.name
            command = command.replace("RUN", run_id)
        code, out = by_a_shell(command) if number == 0 else in_this_process(command)
        assert code == 0, f"{command}\n{out}"
        assert out
        if command.startswith("harness init"):
            own = tmp_path / command.split()[-1]
            dataset = yaml.safe_load(own.read_text())["axes"]["dataset"]
            axes = document["axes"] | {"dataset": dataset, "method": ["stfpm"]}
            own.write_text(yaml.safe_dump({"name": "mine", "axes": axes, "defaults": document["defaults"]}))
    (lines,) = blocks("python")
    assert len(lines.splitlines()) == 5
    for number, picture in enumerate(sorted((tmp_path / "data").glob("cloth/test/*/*.png"))[:2], start=1):
        save(tmp_path / "new" / f"{number}.png", np.asarray(Image.open(picture)))
    with redirect_stdout(io.StringIO()) as printed:
        exec(lines, {})
    assert [line.split()[0] for line in printed.getvalue().splitlines()] == ["new/1.png", "new/2.png"]


@pytest.mark.parametrize("path", sorted((ROOT / "benchmarks" / "grids").glob("*.yaml")), ids=lambda path: path.name)
def test_grid_files_that_ship(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from harness.gridfile import read_grid

    assert read_grid(path).name == path.stem


@pytest.mark.parametrize(
    ("script", "says"),
    [
        ("metrics.py --images 4 --size 64", "ratio"),
        ("training.py --images 32 --epochs 1 --repeats 1 --size 32", "ratio"),
        ("scaling.py --parts fixed", "to_first_step_s"),
        ("decoding.py --images 20 --repeats 1 --side 32", "median"),
        ("predict.py --images 40 --repeats 1 --size 32", "median share"),
        ("throughput.py --repeats 1 --size 32 --seconds 0.02 --batch-sizes 1 2", "The nested intervals rise"),
    ],
)
def test_benchmarks_run(script: str, says: str) -> None:
    command = f"{sys.executable} benchmarks/speed/{script}"
    done = subprocess.run(command, shell=True, cwd=ROOT, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    assert says in done.stdout


def test_every_setting_is_documented_in_one_place() -> None:
    from harness.data.catalog import SOURCES

    assert all(f"`{name}`" in README for name in SOURCES)
    page = (ROOT / "docs" / "methods.md").read_text()
    assert not [name for name in (*METHODS, *METHOD_KEYS, *RUN_KEYS) if f"`{name}`" not in page]
    assert all(f"](docs/{path.name})" in README for path in (ROOT / "docs").glob("*.md"))
