"""The parts of `harness predict` that decide without a model: the journal, names of pictures, boxes, arrivals."""

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dskd.config import ConfigError
from harness.data.images import middle, resized
from harness.predict.content import Preparation
from harness.predict.gather import Found, once, pictures
from harness.predict.regions import largest
from harness.predict.table import MOST_WORST, SPARE, Journal, Line, Summary, key_of, mtime_text
from harness.predict.watch import SETTLED_S, Arrivals
from tests.conftest import save

FOUND = [Found(f"/a/{i}\n,\"'.png", 10 * i, 1_700_000_000_000_000_000 + i) for i in range(3)]
LINES = [
    Line(each.path, 0.1 + i, bytes=each.bytes, mtime=mtime_text(each.mtime_ns), anomalous=i > 1, error="x" * (i == 1))
    for i, each in enumerate(FOUND)
]


@pytest.mark.parametrize("output", ["csv", "jsonl"])
def test_a_table_cut_anywhere_goes_on(output: str, tmp_path: Path) -> None:
    state = {"model": "m", "rate": 0.05}
    with Journal(tmp_path, output, state) as journal:
        journal.append(LINES)
    whole = journal.path.read_bytes()
    assert whole.count(b"\n") == len(LINES) + (output == "csv")
    for length in range(len(whole)):
        journal.path.write_bytes(whole[:length])
        with Journal(tmp_path, output, state) as again:
            missing = [line for each, line in zip(FOUND, LINES, strict=True) if key_of(each) not in again.done]
            again.append(missing)
            assert (again.summary.lines, again.summary.anomalous, again.summary.unread) == (3, 1, 1)
        assert journal.path.read_bytes() == whole


def test_one_process_at_a_table(tmp_path: Path) -> None:
    with Journal(tmp_path, "csv", {}), pytest.raises(ConfigError, match="another `harness predict`"):
        Journal(tmp_path, "csv", {})


def test_a_damaged_line_is_named(tmp_path: Path) -> None:
    with Journal(tmp_path, "csv", {}) as journal:
        journal.append(LINES)
    journal.path.write_text(journal.path.read_text().replace(",0.1,", ",high,"))
    with pytest.raises(ConfigError, match="line 2 of"):
        Journal(tmp_path, "csv", {})


def test_the_worst_are_the_last_lines_of_their_files() -> None:
    draw = np.random.default_rng(0)
    paths = [f"/{i}" for i in draw.integers(0, 4 * SPARE * MOST_WORST, 5000)]
    found, last = Summary(), {}
    for path, score in zip(paths, draw.random(5000), strict=True):
        line = Line(path, float(score)) if score > 0.1 else Line(path, error="gone")
        found.add(line)
        last[path] = line
    expected = sorted((line for line in last.values() if line.score), key=lambda line: -line.score)
    assert found.worst[:5] == expected[:5]
    assert len(found.kept) <= 2 * SPARE * MOST_WORST


def test_which_files_are_taken(tmp_path: Path) -> None:
    for name in ("b/2.png", "b/1.JPG", "a.tif", "b/.hidden.png", ".cache/x.png", "out/heatmaps/h.png", "b/notes.txt"):
        save(tmp_path / "in" / f"{name}.png", np.zeros((2, 2, 3), np.uint8))
        os.rename(tmp_path / "in" / f"{name}.png", tmp_path / "in" / name)
    (tmp_path / "in" / "b" / "loop").symlink_to(tmp_path / "in")
    given = [str(tmp_path / "in"), str(tmp_path / "in" / "b" / "*.png"), str(tmp_path / "in" / "b" / "notes.txt")]
    found = [os.path.relpath(each.path, tmp_path / "in") for each in once(pictures(given, tmp_path / "in" / "out"))]
    assert found == ["a.tif", "b/1.JPG", "b/2.png", "b/notes.txt"]


@pytest.mark.parametrize(
    "how", [Preparation("x", 256), Preparation("x", (192, 256), 128), Preparation("x", 256, 0, "pad")]
)
@pytest.mark.parametrize("size", [(200, 120), (90, 300), (64, 64)])
def test_a_box_is_where_the_defect_is(how: Preparation, size: tuple[int, int]) -> None:
    width, height = size
    left, top, right, bottom = 2 * width // 5, 2 * height // 5, 3 * width // 5, 3 * height // 5
    picture = np.zeros((height, width), np.uint8)
    picture[top:bottom, left:right] = 255
    seen = resized(Image.fromarray(picture), how.size, how.resize, Image.Resampling.BILINEAR)
    seen = seen[middle(how.size, how.crop)]
    found = largest(seen.astype(np.float32), 127, how, size)
    assert found is not None
    one = max(1.0, max(width, height) / 128)  # a pixel of the map is at most so wide or high
    assert abs(np.array(list(vars(found.box).values())) - [left, top, right, bottom]).max() <= one
    assert found.area == pytest.approx((right - left) * (bottom - top) / (width * height), rel=0.15)
    assert largest(seen.astype(np.float32), 255, how, size) is None
    assert largest(seen.astype(np.float32), None, how, size) is None


def test_padding_is_no_defect() -> None:
    how = Preparation("x", 64, 0, "pad")
    assert (
        largest(np.ones((64, 64), np.float32), 0, how, (200, 100)).box
        == largest(np.ones((64, 64), np.float32), 0, Preparation("x", 64), (200, 100)).box
    )


def test_a_file_is_taken_when_it_is_settled() -> None:
    arrivals, done = Arrivals(), set()
    small, large = Found("/a", 1, 5), Found("/a", 2, 6)
    assert arrivals.settled([small], done, 0) == []
    assert arrivals.settled([large], done, SETTLED_S) == []  # it has grown
    assert arrivals.settled([large], done, 1.9 * SETTLED_S) == []
    assert arrivals.settled([], done, 1.95 * SETTLED_S) == []  # away, and back: a new one
    assert arrivals.settled([large], done, 2 * SETTLED_S) == []
    assert arrivals.settled([large], done, 3 * SETTLED_S) == [large]
    done.add(key_of(large))
    assert arrivals.settled([large], done, 5 * SETTLED_S) == []
    assert arrivals.settled([small], done, 6 * SETTLED_S) == []  # written over: another state of it
    assert arrivals.settled([small, Found("/gone", None, None)], done, 7 * SETTLED_S) == [small]
