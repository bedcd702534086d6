"""What lies in the cache goes when it may: what killed processes left, and what `harness cache --prune` is asked for.

Rows: faults.md, section 10.
"""

import json
import os
import subprocess
import time
from pathlib import Path

import pytest

from harness.data import builtin, layouts  # noqa: F401  (they register their data sets)
from harness.data.catalog import Source
from tests.faults.commands import harness, refusal
from tests.faults.decoding import answer, is_sound, load, loading

pytestmark = pytest.mark.usefixtures("new_cache")

# What killed processes leave

FILL = """
import sys, time
from pathlib import Path
from harness.files import new_folder
with new_folder(Path(sys.argv[1]) / "0123456789abcdef") as work:
    (work / "images.npy").write_bytes(bytes(1000))
    print(work, flush=True)
    time.sleep(60)
"""


def filling(folder: Path) -> tuple[subprocess.Popen[str], Path]:
    (folder / "images").mkdir(parents=True, exist_ok=True)
    process = loading(folder / "images", script=FILL)
    return process, Path(process.stdout.readline().strip())


def test_what_a_killed_process_left_goes_and_what_a_living_one_fills_stays(new_cache: Path, source: Source) -> None:
    dead, left = filling(new_cache)
    dead.kill()
    dead.communicate()
    living, filled = filling(new_cache)
    try:
        assert left != filled
        load(source)
        assert not left.exists()
        assert filled.exists()
    finally:
        living.kill()
        living.communicate()


@pytest.mark.parametrize(("days", "stays"), [(0, True), (2, False)])
def test_a_temporary_folder_without_a_lock_goes_with_age(
    days: float, stays: bool, new_cache: Path, source: Source
) -> None:
    """Earlier versions had none, and some file systems have none."""
    work = new_cache / "images" / ".0123456789abcdef.x1y2z3_4"
    work.mkdir(parents=True)
    (work / "images.npy").write_bytes(bytes(10))
    for path in (work / "images.npy", work):
        os.utime(path, (time.time() - days * 86400,) * 2)
    load(source)
    assert work.exists() == stays


# harness cache


def test_the_command_shows_what_the_cache_holds(new_cache: Path, source: Source) -> None:
    assert "0 entries" in harness("cache").out
    load(source)
    done = harness("cache")
    assert done.code == 0
    assert str(new_cache) in done.out
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in done.out.splitlines() if "│" in line]
    assert ["fingerprints", "1"] in [row[:2] for row in rows]
    assert ["folder", "cloth", "train", "40", "6"] in [row[:5] for row in rows]
    assert ["folder", "cloth", "test", "40", "6"] in [row[:5] for row in rows]


def test_pruning_frees_what_nobody_has_and_keeps_what_is_small(new_cache: Path, source: Source, tree: Path) -> None:
    used = load(source)
    (new_cache / "images" / "mine.txt").write_text("not the harness's")
    dead, left = filling(new_cache)
    dead.kill()
    dead.communicate()
    assert "kept 2 entries" in harness("cache", "--prune").out
    assert len(entries_of_size(new_cache, 40)) == 2
    assert not left.exists()
    del used
    assert "removed 0 entries" in harness("cache", "--prune", "--older-than", "1").out
    os.utime(entries_of_size(new_cache, 40)[0], (time.time() - 2 * 86400,) * 2)
    assert "removed 1 entry" in harness("cache", "--prune", "--older-than", "1").out
    assert len(entries_of_size(new_cache, 40)) == 1
    assert (new_cache / "images" / "mine.txt").exists()
    assert len(list((new_cache / "fingerprints").iterdir())) == 1
    assert is_sound(load(source), source)


def entries_of_size(folder: Path, size: int) -> list[Path]:
    found = (folder / "images").glob("[0-9a-f]*/entry.json")
    return [path.parent for path in found if json.loads(path.read_text())["size"] == size]


def test_another_process_keeps_its_entry_from_being_pruned(new_cache: Path, source: Source, tree: Path) -> None:
    with loading(tree) as process:
        process.stdout.readline()
        assert answer(process).startswith("sum")
        assert "kept 2 entries" in harness("cache", "--prune").out
        process.communicate("\n")
    assert "removed 2 entries" in harness("cache", "--prune").out


def test_what_the_command_refuses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "give both" in refusal("cache", "--older-than", "3")
    assert "write a number of days" in refusal("cache", "--prune", "--older-than", "-1")
    assert "write a number of days" in refusal("cache", "--prune", "--older-than", "nan")
    (tmp_path / "file").touch()
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path / "file"))
    assert "cannot be used (Not a directory)" in refusal("cache")
