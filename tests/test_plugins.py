"""The plug-in of docs/plugins.md, used as the page says; and plug-ins that cannot be had."""

import csv
import hashlib
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from harness.records import Record, Results
from tests.conftest import ROOT, write_mvtec
from tests.faults.commands import refusal

PAGE = (ROOT / "docs" / "plugins.md").read_text()


def block(language: str) -> str:
    (found,) = re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)
    return found


def harness(folder: Path, *arguments: str, expect: int = 0) -> subprocess.CompletedProcess[str]:
    """Run there as a user's shell would: the folder is not on Python's path."""
    command = [Path(sys.executable).parent / "harness", *arguments]
    environment = os.environ | {"DATA": str(folder / "data")}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == expect, done.stdout + done.stderr
    return done


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    """A folder with the page's plug-in and grid, and tiny images listed in a CSV file."""
    root = write_mvtec(tmp_path / "data")
    rows = [("path", "split", "defect", "mask")]
    for path in sorted(root.glob("cloth/*/*/*.png")):
        name, (_, split, defect, _) = path.relative_to(root), path.relative_to(root).parts
        mask = f"cloth/ground_truth/{defect}/{path.stem}_mask.png"
        if split != "ground_truth":
            rows.append((str(name), split, *(("", "") if defect == "good" else (defect, mask))))
    with (root / "cloth.csv").open("w", newline="") as stream:
        csv.writer(stream).writerows(rows)
    (tmp_path / "my_plugin.py").write_text(block("python"))
    document = yaml.safe_load(block("yaml"))
    # Only what decides how long it takes.
    document["defaults"] |= {"image_size": 32, "train.epochs": 1}
    document["axes"]["seed"] = [0]
    (tmp_path / "grid.yaml").write_text(yaml.safe_dump(document))
    return tmp_path


@pytest.fixture
def registered(mine: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The page's plug-in in this process, and afterwards the registries as they were."""
    from dskd import backbones, methods
    from harness import plugins
    from harness.data import catalog

    tables = [methods.METHODS, methods.ABOUT, methods.STUDENTS, backbones.TRUNKS, backbones.BACKBONES, catalog.SOURCES]
    tables += [plugins._versions, plugins._given]
    before = [dict(table) for table in tables]
    monkeypatch.setattr(plugins, "_files", set())
    try:
        plugins.load([str(mine / "my_plugin.py")])
        plugins.load([str(mine / "my_plugin.py")])  # once per process: names are not taken by themselves
        yield
    finally:
        for table, content in zip(tables, before, strict=True):
            table.clear()
            table.update(content)


def test_the_page_as_it_stands(mine: Path, registered: None) -> None:
    from safetensors.torch import save_file

    from dskd.backbones import TRUNKS

    save_file(TRUNKS["plain_cnn"]().state_dict(), mine / "plain_cnn.safetensors")
    document = yaml.safe_load((mine / "grid.yaml").read_text())
    document["axes"]["weights"] = ["random", "plain_cnn.safetensors"]
    document["bench"] = {"batch_sizes": [1], "seconds": 0.05}
    (mine / "grid.yaml").write_text(yaml.safe_dump(document))
    command = block("console").removeprefix("$ harness ").split()
    assert "4 runs (4 trainings, 4 evaluations), 2 measurements; to do: 4 runs" in harness(mine, *command).stdout
    records = [item for item in Results(mine / "runs" / "mine") if isinstance(item, Record)]
    version = hashlib.sha256((mine / "my_plugin.py").read_bytes()).hexdigest()[:12]
    assert len(records) == 10
    assert all(record.environment["plugins"] == {"my_plugin.py": version} for record in records)
    trained = [record.spec for record in records if record.kind == "train"]
    assert {spec["method"]["name"] for spec in trained} == {"stfpm", "narrow_stfpm"}
    assert {spec["weights"]["name"] for spec in trained} == {"random", "plain_cnn.safetensors"}
    assert all((spec["data"]["name"], spec["data"]["category"]) == ("image_list", "cloth") for spec in trained)
    assert all((spec["data"]["train_images"], spec["data"]["test_images"]) == (6, 6) for spec in trained)
    parameters = {r.spec["method"]["name"]: r.result["parameters_students"] for r in records if r.kind == "train"}
    assert parameters["narrow_stfpm"] > parameters["stfpm"]  # its own students were trained
    assert "to do: nothing" in harness(mine, *command).stdout
    assert "narrow_stfpm" in harness(mine, "leaderboard", "runs/mine", "--allow-mixed").stdout  # no plug-in
    # What slurm/sweep.sh and slurm/multinode.sh ask after a job: the grid's name is all that is wanted.
    assert "narrow_stfpm" in harness(mine, "leaderboard", "grid.yaml", "--allow-mixed").stdout
    assert "4 runs (4 done), 2 measurements (2 done)" in harness(mine, "status", "grid.yaml").stdout


def test_a_plugin_backbone_works_with_every_method(registered: None) -> None:
    import torch

    from dskd import METHODS, Distiller

    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    for method in METHODS.values():
        distiller = Distiller(method, "plain_cnn")
        distiller.loss(images).backward()
        assert all(scale.isfinite().all() for maps in distiller.discrepancies(images).values() for scale in maps)


def test_lists_have_what_plugins_bring(mine: Path, registered: None) -> None:
    from typer.testing import CliRunner

    from harness.cli import app

    options = ["--plugin", str(mine / "my_plugin.py"), "--image-size", "64"]
    listed = CliRunner().invoke(app, ["methods", "narrow_stfpm", "--backbone", "plain_cnn", *options]).output
    assert "switches of narrow_stfpm" in listed
    assert "64, 128, 256" in CliRunner().invoke(app, ["backbones", "plain_cnn", *options]).output


def test_a_raised_revision_is_another_run(registered: None) -> None:
    from dskd import METHODS, replace
    from dskd.methods import ABOUT
    from harness.spec import Data, TrainSpec, Weights

    method = METHODS["narrow_stfpm"]
    ids = {
        TrainSpec(made, "plain_cnn", Weights(), Data("", "", "")).id
        for made in (method, replace(method, {"revision": 1}))
    }
    assert len(ids) == 2
    assert ABOUT["narrow_stfpm"].startswith("STFPM whose student")


def test_an_installed_plugin_is_always_there(mine: Path) -> None:
    site = mine / "site"
    project = tomllib.loads(block("toml"))["project"]
    name, version, ((group, entries),) = project["name"], project["version"], project["entry-points"].items()
    info = site / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    lines = "".join(f"{key} = {value}\n" for key, value in entries.items())
    (info / "entry_points.txt").write_text(f"[{group}]\n{lines}")
    (mine / "my_plugin.py").rename(site / "my_plugin.py")
    # Named by its file too, it is still loaded once.
    options = ["plan", "--grid", "grid.yaml", "--plugin", "site/my_plugin.py"]
    code = (
        f"from harness import cli, environment\ncli.app({options}, standalone_mode=False)\n"
        "print(environment.describe_environment()['plugins'])"
    )
    paths = {"PYTHONPATH": str(site), "DATA": str(mine / "data")}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=mine, env=os.environ | paths, capture_output=True, text=True)
    assert "2 trainings" in done.stdout, done.stderr
    assert "{'my_plugin': '0.1.0'}" in done.stdout


def test_without_plugins_records_do_not_speak_of_them() -> None:
    from harness.environment import describe_environment

    assert "plugins" not in describe_environment()


def test_bad_plugins_are_one_line_and_exit_code_2(mine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(mine)
    monkeypatch.setenv("DATA", str(mine / "data"))
    bad = {
        "raising.py": "1 / 0",
        "taken.py": "from harness.data.catalog import Source, register_dataset\nregister_dataset('folder')(Source)",
        "script.py": "import sys\nsys.exit(1)",
        "needy.py": "import a_module_that_is_not_there",
        "broken.py": "def",
    }
    for name, code in bad.items():
        (mine / name).write_text(code)
    cases = {
        "gone.py": "gone.py; write the path of a .py file or a module's name",
        "my_plugin": "there is no module 'my_plugin'; write --plugin my_plugin.py",
        "not_installed.at_all": "there is no module 'not_installed.at_all'; write one that is installed or the path",
        "./here": "'./here' is not possible; write a module's name or the path of a .py file",
        "raising.py": "raising.py cannot be imported: ZeroDivisionError: division by zero",
        "taken.py": "taken.py cannot be imported: ConfigError: dataset 'folder' exists already; choose another name",
        "script.py": "script.py cannot be imported: SystemExit: 1",
        "needy.py": "needy.py cannot be imported: ModuleNotFoundError: No module named 'a_module_that_is_not_there'",
        "broken.py": "broken.py cannot be imported: SyntaxError: ",
    }
    for plugin, message in cases.items():
        assert message in refusal("plan", "--grid", "grid.yaml", "--plugin", plugin)
