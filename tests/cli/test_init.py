"""`harness init`: from a folder of pictures to a table in two commands; what it says, and what it never does."""

import csv
import os
import shutil
from pathlib import Path

import pytest
import yaml
from PIL import Image

from harness import packaged, starter
from harness.gridfile import parse, read_grid
from tests.conftest import ROOT, save, texture
from tests.faults.commands import harness, refusal
from tests.scripts.factory import write as write_factory


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to stand in, where no packaged teacher is installed: its weights take a while to convert."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(packaged.Package, "path", lambda _: None)
    return tmp_path


def write(root: Path, **folders: int) -> Path:
    for seed, (folder, count) in enumerate(folders.items()):
        for i in range(count):
            save(root / folder / f"{i:03d}.png", texture(1000 * seed + i, defect=folder == "bad")[0])
    return root


def said(*arguments: object) -> str:
    done = harness("init", *arguments)
    assert done.code == 0, done.err
    return " ".join(done.out.split())


@pytest.fixture
def factory(here: Path) -> Path:
    """As `tests/scripts/factory.py` makes it of large pictures."""
    write(here / "made", good=20, bad=10)
    good, bad = (sorted((here / "made" / kind).iterdir()) for kind in ("good", "bad"))
    return write_factory(here / "Teile Ä", good, bad)


@pytest.mark.usefixtures("without_workers")
def test_a_factorys_folder_in_two_commands(factory: Path, here: Path) -> None:
    text = said("--data", "Teile Ä")
    assert "Teile Ä: folders of normal and abnormal pictures normal: gut abnormal: schlecht" in text
    assert "RGB 18, grey 6, 16 bit 6" in text
    assert "10 abnormal without masks: pixel metrics are undefined" in text
    assert "other files, which are not read: 2 .db" in text
    assert "no weights of a teacher can be had here" in text
    assert text.endswith("next: harness run 'Teile_Ä.yaml'")
    path = here / "Teile_Ä.yaml"
    plan = harness("plan", "--grid", path)
    assert plan.code == 0, plan.err
    rows = [" ".join(each.split()).rpartition("Teile Ä │ ")[2][:20] for each in (text, plan.out)]
    assert rows[0] == rows[1] == "15 │ 5 │ 10 │ 0 │ 40"  # what it said, a plan says
    document = yaml.safe_load(path.read_text())
    assert (document["defaults"]["image_size"], document["defaults"]["train.epochs"]) == (64, 50)
    document["defaults"] |= {"image_size": 32, "train.epochs": 1}  # only what decides how long it takes
    document["axes"] |= {"method": ["stfpm"], "seed": [0]}
    del document["bench"]
    path.write_text(yaml.safe_dump(document))
    run = harness("run", "--grid", path)
    assert run.code == 0, run.out + run.err
    assert "pixel metrics are undefined, as none of the 10 abnormal test images has a mask" in run.out
    scores = [list(csv.DictReader(file.open())) for file in (here / "runs" / "Teile_Ä").glob("*/scores.csv")]
    assert len(scores) == 1
    for rows in scores:
        deep = [row["score"] for row in rows if "16 Bit" in row["path"] and row["path"].startswith("schlecht")]
        assert len(deep) == len(set(deep)) == 2  # each is seen as it is, none as white


def test_a_grid_that_is_there_stays(here: Path) -> None:
    write(here / "teile", good=8, bad=3)
    (here / "teile.yaml").write_text("mine")
    assert (
        refusal("init", "--data", "teile")
        == "teile.yaml is there already and stays as it is; write --out with another name"
    )
    assert (here / "teile.yaml").read_text() == "mine"
    said("--data", "teile", "--out", "sub/other.yaml")
    assert read_grid(here / "sub" / "other.yaml").name == "teile"


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["--data", "gone"], "--data: there is no folder or table gone; write the path of your pictures"),
        (["--data", "empty"], "--data: empty holds no pictures, no table and no Parquet that can be read"),
        (["--data", "ab"], "which are not; it holds a (4), b (2). Name them: --normal FOLDER --abnormal FOLDER"),
        (["--data", "ab", "--normal", "a", "--abnormal", "c"], "abnormal: 'c' matches no image"),
        (["--data", "ab", "--abnormal", "b"], "--abnormal goes with --normal; write both"),
        (["x", "--data", "ab"], "--data writes one grid; write --out for its place, without 'x'"),
        (["--check"], "go with --data DIR; write it, or name the folder alone"),
    ],
)
def test_what_cannot_be_meant(arguments: list[str], error: str, here: Path) -> None:
    (here / "empty").mkdir()
    write(here / "ab", a=4, b=2)
    assert error in refusal("init", *arguments)
    assert not list(here.glob("*.yaml"))


def test_names_that_are_no_text_and_places_that_cannot_be_written(here: Path) -> None:
    write(here / "teile", good=8, bad=3)
    (here / "file").write_text("")
    line = refusal("init", "--data", "teile", "--out", "file/grid.yaml")
    assert "file/grid.yaml cannot be written (" in line
    odd = here / os.fsdecode(b"gut\xff")
    write(odd, good=8, bad=3)
    assert "is not UTF-8; rename the file or folder" in refusal("init", "--data", odd.name, "--out", "odd.yaml")
    write(here / "two\nlines", good=8, bad=3)
    said("--data", "two\nlines", "--out", "lines.yaml")
    assert harness("plan", "--grid", "lines.yaml").code == 0


def test_folders_that_are_named_by_the_user(here: Path) -> None:
    write(here / "ab", a=8, b=3)
    assert "normal: a abnormal: b" in said("--data", "ab", "--normal", "a", "--abnormal", "b")
    assert "warning: no test images: it is trained and nothing is scored" in said(
        "--data", "ab", "--normal", "**", "--out", "all.yaml"
    )


def test_check_reads_the_pixels(here: Path) -> None:
    root = write(here / "teile", good=30, bad=4)
    shutil.copy(root / "good" / "001.png", root / "bad" / "same.png")
    Image.open(root / "good" / "002.png").save(root / "bad" / "near.jpg", quality=90)
    Image.new("RGB", (40, 40), (9, 9, 9)).save(root / "bad" / "flat.png")
    text = said("--data", "teile")
    assert "1 image stands in training and in test with the same bytes, first good/001.png and bad/same.png" in text
    assert "a run refuses pictures that stand on both sides" in text
    assert "one colour" not in text
    text = said("--data", "teile", "--check", "--out", "checked.yaml")
    assert "test pictures are nearly the same as one of training (at most 85 of 1024 bits" in text
    assert "good/002.png and bad/near.jpg" in text
    assert "1 picture of one colour, first bad/flat.png" in text
    whole = (root / "good" / "003.png").read_bytes()
    (root / "good" / "003.png").write_bytes(whole[: len(whole) // 2])
    (root / "good" / "004.png").write_bytes(b"")
    text = said("--data", "teile", "--out", "damaged.yaml")
    assert "files that are no pictures that can be read: good/004.png (it is empty)" in text
    text = said("--data", "teile", "--check", "--out", "both.yaml")
    assert "a run will end with: " in text
    assert "good/003.png is not a readable image" in text


@pytest.mark.parametrize(
    "name",
    [
        "a: b",
        "#1",
        "'quoted'",
        '"twice"',
        "Gehäuse 12",
        "- x",
        "{a}",
        "[b]",
        "yes",
        "007",
        "two\nlines",
        "x\u2028y",
        "t\tb",
    ],
)
def test_a_grid_reads_back_as_what_it_says(name: str) -> None:
    entry = {"name": "folder", "root": f"x/{name}", "normal": name, "abnormal": "{category}/{defect}"}
    made = starter.Starter("n", entry, (256, 640), starter.Teacher("resnet18", "random"), 20, ("about",))
    document = yaml.safe_load(starter.text(made))
    assert document["axes"]["dataset"] == [entry]
    assert parse(document).defaults["image_size"] == [256, 640]
    assert all(len(line) <= 140 for line in starter.text(made).splitlines())


def test_what_is_copied_is_what_a_user_needs(here: Path) -> None:
    text = said("new")
    assert "next: harness init --data FOLDER" in text
    files = {path.relative_to(here / "new").as_posix() for path in (here / "new").rglob("*") if path.is_file()}
    shipped = {f"slurm/{path.name}" for path in (ROOT / "slurm").iterdir()}
    shipped |= {f"benchmarks/grids/{path.name}" for path in (ROOT / "benchmarks" / "grids").iterdir()}
    assert files == shipped | {"grid.yaml"}
    grid = (here / "new" / "grid.yaml").read_text()
    assert starter.PLACEHOLDER in refusal("plan", "--grid", "new/grid.yaml")
    write(here / "mine", good=8, bad=3)
    (here / "new" / "grid.yaml").write_text(grid.replace(starter.PLACEHOLDER, "mine"))
    assert harness("plan", "--grid", "new/grid.yaml").code == 0


def test_the_wheel_has_what_is_copied() -> None:
    import tomllib

    files = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["data-files"]
    listed = {path.relative_to(ROOT) for patterns in files.values() for each in patterns for path in ROOT.glob(each)}
    from harness import shipped

    assert listed == {place for _, place in shipped.files()}
