"""`harness predict` as users call it, on a run that was trained for it."""

import csv
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path

import pytest
import yaml
from PIL import Image

from harness.run_folder import RunFolder, read_scores
from tests.conftest import save, texture, write_mvtec
from tests.faults.commands import harness, refusal
from tests.predict.trained import calibrate

NORMALS = 24
HOSTILE = "=cmd|' <b onload=x></script>\n\x1b[31m,\".png"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The folder of an evaluation, and that of the pictures of its category."""
    base = tmp_path_factory.mktemp("trained")
    images = write_mvtec(base / "data", good=NORMALS)
    dataset = {"name": "folder", "root": str(images)}
    axes = {"method": ["stfpm"], "backbone": ["resnet18"], "dataset": [dataset], "seed": [0, 1]}
    defaults = {"image_size": 32, "weights": "random", "train.epochs": 1, "precision": "fp32"}
    grid = {"name": "tiny", "axes": axes, "defaults": defaults, "save": {"scores": True, "weights": True}}
    (base / "grid.yaml").write_text(yaml.safe_dump(grid))
    done = harness("run", base / "grid.yaml", "--out", base / "runs", "--devices", "cpu")
    assert done.code == 0, done.err
    runs = sorted(path.parent for path in (base / "runs" / "tiny").glob("*/scores.csv"))
    calibrate(runs[0], images)
    return runs[0], images / "cloth"


@pytest.fixture
def pictures(trained: tuple[Path, Path], tmp_path: Path) -> Path:
    """The test images, one with a hostile name, and files that are no pictures."""
    folder = tmp_path / "pictures"
    shutil.copytree(trained[1] / "test", folder)
    shutil.copy(folder / "hole" / "000.png", folder / HOSTILE.replace("/", "_"))
    (folder / "broken.jpg").write_bytes(b"no picture")
    (folder / "notes.txt").write_text("no name of a picture")
    return folder


def table(folder: Path) -> list[dict[str, str]]:
    with (folder / "predictions.csv").open(newline="") as stream:
        return list(csv.DictReader(stream, strict=True))


def test_a_folder(trained: tuple[Path, Path], pictures: Path, tmp_path: Path) -> None:
    run, images = trained
    out = pictures / "out"  # which is not taken for pictures, the next time
    done = harness("predict", run, pictures, "--out", out, "--heatmaps")
    assert done.code == 1, done
    assert "1 could not be read" in done.out
    lines = {line["path"]: line for line in table(out)}
    assert len(lines) == NORMALS + 3 + 2
    threshold = json.loads((run / "record.json").read_text())["result"]["threshold"]
    scores = read_scores(RunFolder(run), [])
    normal = sorted(score.score for score in scores if not score.anomalous)
    for score in scores:
        line = lines[str(pictures / Path(score.path).relative_to("cloth/test"))]
        assert float(line["score"]) == score.score
        assert line["anomalous"] == str(int(score.score > threshold))
        assert float(line["p_value"]) == (1 + sum(each >= score.score for each in normal)) / (1 + NORMALS)
        assert (line["width"], line["height"]) == ("40", "40")
        if line["left"]:
            left, top, right, bottom = (int(line[side]) for side in ("left", "top", "right", "bottom"))
            assert 0 <= left < right <= 40
            assert 0 <= top < bottom <= 40
            assert 0 < float(line["area"]) <= (right - left) * (bottom - top) / 1600
        with Image.open(out / "heatmaps" / line["heatmap"]) as picture:
            assert picture.size == (3 * 32, 32)
    assert lines[str(pictures / "broken.jpg")]["error"].startswith("is not a readable image")
    assert len(os.listdir(out / "heatmaps")) == len(lines) - 1

    before = (out / "predictions.csv").read_bytes()
    shutil.copy(images / "train" / "good" / "000.png", pictures / "new.png")
    again = harness("predict", run, pictures, "--out", out)
    assert again.code == 1
    assert "29 pictures in the table before, 1 of them as not readable" in again.out
    assert (out / "predictions.csv").read_bytes().startswith(before)
    assert [line["path"] for line in table(out)[29:]] == [str(pictures / "new.png")]

    assert "another rate (0.05, now 0.1)" in refusal("predict", run, pictures, "--out", out, "--rate", "0.1")
    assert "another format (csv, now jsonl)" in refusal("predict", run, pictures, "--out", out, "--format", "jsonl")
    other = next(path.parent for path in run.parent.glob("*/scores.csv") if path.parent != run)
    assert f"another model ({run.name}, now {other.name})" in refusal("predict", other, pictures, "--out", out)
    assert (out / "predictions.csv").read_bytes().startswith(before)


class _Page(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_page_of_worst_cases(trained: tuple[Path, Path], pictures: Path, tmp_path: Path) -> None:
    assert harness("predict", trained[0], pictures, "--out", tmp_path / "out").code == 1
    text = (tmp_path / "out" / "worst.html").read_text()
    page = _Page(text)
    sources = [attributes["src"] for tag, attributes in page.tags if tag in ("img", "script") and "src" in attributes]
    assert len(sources) == 3 * 24
    assert all(source.startswith("data:image/webp;base64,") for source in sources)
    assert {tag for tag, _ in page.tags}.isdisjoint({"link", "iframe", "object"})
    assert [tag for tag, _ in page.tags].count("script") == 1
    assert not [name for _, attributes in page.tags for name in attributes if name.startswith("on")]
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f]", text)
    shown = re.findall(r"score ([0-9.e-]+)", re.sub(r"\s+", " ", page.text))
    scores = sorted((float(line["score"]) for line in table(tmp_path / "out") if line["score"]), reverse=True)
    assert shown == [f"{score:.6g}" for score in scores[:24]]


def test_names_patterns_and_json_lines(trained: tuple[Path, Path], pictures: Path, tmp_path: Path) -> None:
    names = [pictures / "good" / "000.png", pictures / "good" / "000.png", pictures / "nothing.png", pictures / "hole"]
    command = [sys.executable, "-m", "harness", "predict", str(trained[0]), "-", str(pictures / "good" / "01?.png")]
    done = subprocess.run(
        [*command, "--out", str(tmp_path / "out"), "--format", "jsonl", "--rate", "0.1"],
        input="\n".join(map(str, names)),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1, done.stderr
    lines = [json.loads(line) for line in (tmp_path / "out" / "predictions.jsonl").read_text().splitlines()]
    found = {line["path"]: line for line in lines}
    expected = [f"good/{i:03d}.png" for i in (0, *range(10, 20))] + [f"hole/{i:03d}.png" for i in range(3)]
    assert sorted(found) == sorted(str(pictures / name) for name in [*expected, "nothing.png"])
    assert "No such file" in found[str(pictures / "nothing.png")]["error"]
    threshold = json.loads((trained[0] / "record.json").read_text())["result"]["thresholds"]["0.1"]
    assert all(line["anomalous"] == (line["score"] > threshold) for line in lines if line["score"] is not None)


def test_without_thresholds(trained: tuple[Path, Path], pictures: Path, tmp_path: Path) -> None:
    other = next(path.parent for path in trained[0].parent.glob("*/scores.csv") if path.parent != trained[0])
    done = harness("predict", other, pictures / "hole", "--out", tmp_path / "out", "--heatmaps")
    assert done.code == 0, done
    assert "calibrate: 0.2" in done.out
    for line in table(tmp_path / "out"):
        assert line["score"]
        assert not any(line[name] for name in ("p_value", "anomalous", "left", "area", "error"))
    state = json.loads((tmp_path / "out" / "predict.json").read_text())
    assert state["scale"][0] < state["scale"][1]  # of the colours, for all pictures that are still to come


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["{run}", "{pictures}/nowhere"], "nowhere is no file, folder or pattern"),
        (["{run}", "{pictures}/*.gif"], "*.gif matches nothing"),
        (["{run}", "{pictures}/notes.txt", "--format", "xml"], "--format: 'xml' is not possible"),
        (["{run}", "{empty}"], "no picture in"),
        (["{run}", "-", "--watch"], "--watch looks into folders"),
        (["{run}", "{pictures}", "--rate", "2"], "rate: 2.0 is not possible"),
        (["{run}", "{pictures}", "--rate", "0.01"], "too low"),
        (["{run}", "{pictures}", "--device", "abacus"], "device: 'abacus' is not possible"),
        (["0123456789abcdef", "{pictures}"], "no run '0123456789abcdef'"),
        (["kind=evaluate", "{pictures}", "--runs", "{runs}"], "seed 1"),
    ],
)
def test_bad_input(arguments: list[str], says: str, trained: tuple[Path, Path], pictures: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    places = {"run": trained[0], "pictures": pictures, "empty": tmp_path / "empty", "runs": trained[0].parents[1]}
    said = refusal("predict", *(each.format(**places) for each in arguments), "--out", tmp_path / "out")
    assert says in said
    assert not (tmp_path / "out").exists()


def test_out_that_cannot_be_used(trained: tuple[Path, Path], pictures: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    (out / "predictions.csv").parent.mkdir()
    (out / "predictions.csv").write_text("somebody's own\n")
    assert "without its predict.json" in refusal("predict", trained[0], pictures, "--out", out)
    assert (out / "predictions.csv").read_text() == "somebody's own\n"
    assert "cannot be written" in refusal("predict", trained[0], pictures, "--out", pictures / "broken.jpg")


@pytest.fixture
def watching(trained: tuple[Path, Path], tmp_path: Path) -> Iterator[Callable[[], subprocess.Popen[str]]]:
    """Starts a watch of `arriving` with its predictions in `out`; gives it when it has begun."""
    started = []

    def start() -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "harness", "predict", str(trained[0]), str(tmp_path / "arriving"), "--watch"]
        process = subprocess.Popen(
            [*command, "--out", str(tmp_path / "out"), "--heatmaps"], stdout=subprocess.PIPE, text=True
        )
        started.append(process)
        while "watching" not in process.stdout.readline():
            assert process.poll() is None
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()


def _until(condition: Callable[[], bool], seconds: float = 60) -> None:
    ends = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < ends
        time.sleep(0.02)


def test_watch_takes_each_file_once_through_a_kill(watching, tmp_path: Path) -> None:
    arriving, journal = tmp_path / "arriving", tmp_path / "out" / "predictions.csv"
    arriving.mkdir()
    names = [f"{i:03d}.png" for i in range(40)]

    def arrive(some: list[str]) -> None:
        for name in some:
            save(arriving / name, texture(int(name[:3]))[0])

    def lines() -> int:
        return journal.read_bytes().count(b"\n") - 1 if journal.exists() else 0

    process = watching()
    arrive(names[:20])
    _until(lambda: lines() > 0)  # in the middle of its work
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = lines()
    with journal.open("ab") as stream:  # what a kill within a write leaves
        stream.write(b"/somewhere/0")
    arrive(names[20:])
    process = watching()
    assert lines() == before
    _until(lambda: {line["path"] for line in table(tmp_path / "out")} >= {str(arriving / name) for name in names})
    process.terminate()
    assert process.wait(60) == 0
    counts = Counter(line["path"] for line in table(tmp_path / "out"))
    assert counts == {str(arriving / name): 1 for name in names}
    for line in table(tmp_path / "out"):
        assert line["score"]
        assert (tmp_path / "out" / "heatmaps" / line["heatmap"]).stat().st_size
    assert (tmp_path / "out" / "worst.html").exists()
