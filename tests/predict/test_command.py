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

import numpy as np
import pytest
from PIL import Image

from harness.run_folder import RunFolder, read_calibration
from harness.text import one_line
from tests.conftest import save, texture
from tests.faults.commands import harness, refusal
from tests.predict.conftest import Trained

HOSTILE = "=cmd|' <b onload=x>\n\x1b[31m,\".png"


@pytest.fixture
def run(trained: Trained, calibrated: Callable[..., Path]) -> Path:
    """The folder of an evaluation with thresholds from 24 scores, between those of its test pictures."""
    _, scores = trained.scored(trained.folder(method="stfpm", category="cloth", label=""))
    normal = np.linspace(min(scores), sorted(scores)[-3], 24).tolist()
    thresholds = {"0.05": normal[-1], "0.1": normal[-2]}
    pixels = {rate: min(scores) for rate in thresholds}
    return calibrated(
        normal,
        false_alarm_rate=0.05,
        threshold=normal[-1],
        thresholds=thresholds,
        pixel_threshold=pixels["0.05"],
        pixel_thresholds=pixels,
        calibration_images=24,
        calibration_groups=24,
    )


@pytest.fixture
def pictures(trained: Trained, tmp_path: Path) -> Path:
    """The test pictures, one with a hostile name, and files that are no pictures."""
    folder = tmp_path / "pictures"
    shutil.copytree(trained.data / "cloth" / "test", folder)
    shutil.copy(folder / "hole" / "000.png", folder / HOSTILE)
    (folder / "broken.jpg").write_bytes(b"no picture")
    (folder / "notes.txt").write_text("no name of a picture")
    return folder


def table(folder: Path) -> list[dict[str, str]]:
    with (folder / "predictions.csv").open(newline="") as stream:
        return list(csv.DictReader(stream, strict=True))


def normals(run: Path) -> list[float]:
    return [line.score for line in read_calibration(RunFolder(run), [])]


def test_a_folder(trained: Trained, run: Path, pictures: Path) -> None:
    out = pictures / "out"  # of which nothing is taken for a picture
    done = harness("predict", run, pictures, "--out", out, "--heatmaps")
    assert done.code == 1, done
    assert "12 pictures in" in done.out
    assert "1 could not be read" in done.out
    lines = {line["path"]: line for line in table(out)}
    assert len(lines) == 12
    names, scores = trained.scored(trained.folder(method="stfpm", category="cloth", label=""))
    known = normals(run)
    for name, score in zip(names, scores, strict=True):
        line = lines[str(pictures / Path(name).relative_to(trained.data / "cloth" / "test"))]
        assert float(line["score"]) == score
        assert line["anomalous"] == str(int(score > max(known)))
        assert float(line["p_value"]) == pytest.approx((1 + sum(each >= score for each in known)) / 25, abs=1e-12)
        width, height = int(line["width"]), int(line["height"])
        assert (width, height) == {"turned.jpg": (40, 60), "palette.png": (60, 40), "alpha.png": (60, 40)}.get(
            Path(name).name, (40, 40)
        )
        if line["left"]:
            left, top, right, bottom = (int(line[side]) for side in ("left", "top", "right", "bottom"))
            assert 0 <= left < right <= width
            assert 0 <= top < bottom <= height
            assert 0 < float(line["area"]) <= (right - left) * (bottom - top) / (width * height)
        with Image.open(out / "heatmaps" / line["heatmap"]) as picture:
            assert picture.size == (3 * 32, 32)
    assert sum(bool(line["left"]) for line in lines.values()) > 3
    assert lines[str(pictures / "broken.jpg")]["error"].startswith("is not a readable image")
    assert len(os.listdir(out / "heatmaps")) == len(lines) - 1


def test_the_same_folder_goes_on(trained: Trained, run: Path, pictures: Path, tmp_path: Path) -> None:
    out, packed = tmp_path / "out", tmp_path / "cloth.pack"
    assert harness("predict", run, pictures, "--out", out).code == 1
    before = (out / "predictions.csv").read_bytes()
    assert harness("pack", run, "--out", packed).code == 0
    again = harness("predict", packed, pictures, pictures / "hole", "--out", out, "--heatmaps")
    assert again.code == 1
    assert "no new picture\n12 pictures in the table before, 1 of them as not readable\n" in again.out
    assert (out / "predictions.csv").read_bytes() == before
    assert len(os.listdir(out / "heatmaps")) == 11  # which were not there

    shutil.copy(pictures / "hole" / "000.png", pictures / "new.png")
    os.utime(pictures / "hole" / "001.png", ns=(0, 10**9 + 1))
    once_more = harness("predict", run, pictures, "--out", out)
    assert "11 pictures in the table before, 1 of them as not readable" in once_more.out
    assert (out / "predictions.csv").read_bytes().startswith(before)
    assert [line["path"] for line in table(out)[12:]] == [str(pictures / name) for name in ("new.png", "hole/001.png")]
    assert table(out)[-1]["mtime"] == "1970-01-01T00:00:01.000000001Z"

    before = (out / "predictions.csv").read_bytes()
    other = trained.folder(method="stfpm", category="cloth", label="smooth")
    assert "another rate (0.05, now 0.1)" in refusal("predict", run, pictures, "--out", out, "--rate", "0.1")
    assert "another format (csv, now jsonl)" in refusal("predict", run, pictures, "--out", out, "--format", "jsonl")
    assert f"another model ({run.name}, now {other.name})" in refusal("predict", other, pictures, "--out", out)
    assert (out / "predictions.csv").read_bytes() == before


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


def test_the_page_of_worst_cases(run: Path, pictures: Path, tmp_path: Path) -> None:
    assert harness("predict", run, pictures, "--out", tmp_path / "out").code == 1
    text = (tmp_path / "out" / "worst.html").read_text()
    page = _Page(text)
    sources = [attributes["src"] for tag, attributes in page.tags if tag in ("img", "script") and "src" in attributes]
    assert len(sources) == 3 * 11
    assert all(source.startswith("data:image/webp;base64,") for source in sources)
    tags = [tag for tag, _ in page.tags]
    assert set(tags).isdisjoint({"link", "iframe", "object"})
    assert tags.count("script") == 1
    assert tags.count("b") == 3 * 11  # rank, score, p-value
    assert not [name for _, attributes in page.tags for name in attributes if name.startswith("on")]
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f]", text)
    assert one_line(str(pictures / HOSTILE)).replace("\\n", "\n") in page.text
    shown = re.findall(r"score ([0-9.e-]+)", re.sub(r"\s+", " ", page.text))
    scores = sorted((float(line["score"]) for line in table(tmp_path / "out") if line["score"]), reverse=True)
    assert shown == [f"{score:.6g}" for score in scores]


def test_names_patterns_and_json_lines(run: Path, pictures: Path, tmp_path: Path) -> None:
    names = [pictures / "good" / "000.png", pictures / "good" / "000.png", pictures / "nothing.png", pictures / "hole"]
    command = [sys.executable, "-m", "harness", "predict", str(run), "-", str(pictures / "good" / "00[12].*")]
    done = subprocess.run(
        [*command, "--out", str(tmp_path / "out"), "--format", "jsonl", "--rate", "0.1"],
        input="\n".join(map(str, names)),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1, done.stderr
    lines = [json.loads(line) for line in (tmp_path / "out" / "predictions.jsonl").read_text().splitlines()]
    found = {line["path"]: line for line in lines}
    expected = [f"{kind}/{i:03d}.png" for kind in ("good", "hole") for i in range(3)]
    assert sorted(found) == sorted(str(pictures / name) for name in [*expected, "nothing.png"])
    assert len(lines) == len(found)
    assert "No such file" in found[str(pictures / "nothing.png")]["error"]
    threshold = sorted(normals(run))[-2]
    assert all(line["anomalous"] == (line["score"] > threshold) for line in lines if line["score"] is not None)


def test_without_thresholds(trained: Trained, pictures: Path, tmp_path: Path) -> None:
    other = trained.folder(method="stfpm", category="cloth", label="")
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
        (["method=stfpm", "{pictures}", "--runs", "{runs}"], "method=stfpm is 4 models"),
    ],
)
def test_bad_input(
    arguments: list[str], says: str, trained: Trained, run: Path, pictures: Path, tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    places = {"run": run, "pictures": pictures, "empty": tmp_path / "empty", "runs": trained.root / "runs"}
    said = refusal("predict", *(each.format(**places) for each in arguments), "--out", tmp_path / "out")
    assert says in said
    assert not (tmp_path / "out").exists()


def test_out_that_cannot_be_used(run: Path, pictures: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "predictions.csv").write_text("somebody's own\n")
    assert "without its predict.json" in refusal("predict", run, pictures, "--out", out)
    assert (out / "predictions.csv").read_text() == "somebody's own\n"
    assert "cannot be written" in refusal("predict", run, pictures, "--out", pictures / "broken.jpg")


@pytest.fixture
def watching(run: Path, tmp_path: Path) -> Iterator[Callable[[], subprocess.Popen[str]]]:
    """Starts a watch of `arriving` with its predictions in `out`; gives it when it has begun."""
    started = []

    def start() -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "harness", "predict", str(run), str(tmp_path / "arriving"), "--watch"]
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
