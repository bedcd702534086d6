"""The cache may be damaged, full, gone, shared and left behind: no number comes from it that was not computed from the
images, and the line that tells of it names its folder.

Rows: faults.md, areas E and H, section 10, and the machine's part of section 12.
"""

import errno
import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from harness import events
from harness.data import builtin, images, layouts  # noqa: F401  (they register their data sets)
from harness.data.catalog import Source, get_source
from harness.data.manifest import describe
from tests.conftest import texture
from tests.faults.commands import harness, refusal
from tests.faults.decoding import SIZE, answer, is_sound, load, loading
from tests.faults.denial import as_anyone

WriteGrid = Callable[..., Path]
pytestmark = pytest.mark.usefixtures("new_cache")


def entries_of(folder: Path) -> list[Path]:
    """Those of test images: they have masks."""
    return [found for found in folder.glob("[!.]*") if '"half": "test"' in (found / "entry.json").read_text()]


def entry(cache: Path) -> Path:
    (found,) = entries_of(cache / "images")
    return found


def flip(path: Path) -> None:
    """Other content in a file of its own, of the same size and time."""
    like, content = path.stat(), bytearray(path.read_bytes())
    content[-1] ^= 1
    path.unlink()
    path.write_bytes(content)
    os.utime(path, ns=(like.st_atime_ns, like.st_mtime_ns))


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def edit(path: Path, change: Callable[[dict], object]) -> None:
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))


def foreign(found: Path, tree: Path) -> None:
    """Another category's entry under this one's name."""
    other = get_source({"name": "folder", "root": str(shutil.copytree(tree, tree.parent / "other"))})
    Image.fromarray(texture(77)[0]).save(other.folder() / "cloth/test/good/000.png")
    images.load(other, describe(other, "cloth"), SIZE)
    (second,) = (path for path in entries_of(found.parent) if path != found)
    shutil.rmtree(found)
    second.rename(found)


def replaced(found: Path, make: Callable[[Path], object]) -> None:
    shutil.rmtree(found)
    make(found)


def of_an_earlier_version(found: Path, tree: Path) -> None:
    for path in found.iterdir():
        if path.suffix != ".npy":
            path.unlink()
    flip(found / "images.npy")


DAMAGES = [
    pytest.param(lambda found, tree: truncate(found / "images.npy"), id="images-cut"),
    pytest.param(lambda found, tree: truncate(found / "masks.npy"), id="masks-cut"),
    pytest.param(lambda found, tree: (found / "regions.npy").write_bytes(b""), id="regions-empty"),
    pytest.param(lambda found, tree: flip(found / "images.npy"), id="images-exchanged"),
    pytest.param(lambda found, tree: flip(found / "masks.npy"), id="masks-exchanged"),
    pytest.param(foreign, id="another-categorys"),
    pytest.param(of_an_earlier_version, id="without-a-hash"),
    pytest.param(lambda found, tree: truncate(found / "entry.json"), id="hashes-cut"),
    pytest.param(
        lambda found, tree: edit(found / "entry.json", lambda entry: entry["samples"][-1].__setitem__(2, "good")),
        id="labels-edited",
    ),
    pytest.param(lambda found, tree: (found / "entry.json").write_text("[" * 100_000), id="hashes-too-deep"),
    pytest.param(lambda found, tree: replaced(found, lambda path: path.write_text("x")), id="a-file-in-its-place"),
    pytest.param(lambda found, tree: replaced(found, lambda path: path.symlink_to(path.name)), id="a-link-loop"),
]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_entry_is_decoded_anew(
    damage: Callable[[Path, Path], object], new_cache: Path, source: Source, tree: Path
) -> None:
    assert is_sound(load(source), source)
    damage(entry(new_cache), tree)
    assert is_sound(load(source), source)
    assert is_sound(load(source), source)
    assert [path.name for path in (new_cache / "images").glob(".*")] == []


def test_an_entry_is_hashed_once(source: Source, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker does a thousand runs on it."""
    data = describe(source, "cloth")
    images.load(source, data, SIZE)
    monkeypatch.setattr(os, "pread", None)
    assert len(images.load(source, data, SIZE).train.images) == 6


def test_who_has_an_entry_keeps_its_pixels_when_it_is_replaced(new_cache: Path, source: Source) -> None:
    first = load(source)
    before = first.test.images.copy()
    flip(entry(new_cache) / "images.npy")
    load(source)
    assert np.array_equal(first.test.images, before)


def test_processes_that_replace_an_entry_at_once_agree(new_cache: Path, source: Source, tree: Path) -> None:
    load(source)
    truncate(entry(new_cache) / "images.npy")
    processes = [loading(tree) for _ in range(3)]
    for process in processes:
        assert process.stdout.readline() == "planned\n"
    for process in processes:
        process.stdin.write("\n")
        process.stdin.flush()
    said = [process.stdout.readline() for process in processes]
    for process in processes:
        process.communicate("\n")
    sums = images.load(source, describe(source, "cloth"), SIZE)
    assert said == [f"sum {int(sums.train.images.sum())} {int(sums.test.masks.sum())}\n"] * 3
    assert is_sound(sums, source)
    assert [path.name for path in (new_cache / "images").glob(".*")] == []


# Full and unusable folders


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own of half a megabyte."""
    place = tmp_path / "disk"
    place.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=512k", "none", place], capture_output=True).returncode:
        pytest.skip("no right to mount a small disk")
    yield place
    subprocess.run(["umount", place], check=True)


def test_a_full_cache_disk_is_an_error_that_names_the_cache(small_disk: Path, tree: Path) -> None:
    with loading(tree, 192, HARNESS_CACHE=str(small_disk)) as process:  # 6 images of 110 KB do not fit
        assert process.stdout.readline() == "planned\n"
        said = answer(process)
        process.communicate("\n")
    assert said.startswith(f"CacheError: cache folder {small_disk}/images cannot be used (No space left on device)"), (
        said
    )
    assert "set HARNESS_CACHE" in said
    assert "`harness cache --prune`" in said
    assert process.returncode == 0  # and no SIGBUS
    assert list((small_disk / "images").iterdir()) == []  # what was begun takes no room


def test_a_full_cache_disk_costs_the_run_and_not_the_grid(
    source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dskd import get_method, replace
    from harness.data.catalog import entry_of
    from harness.job import TrainJob
    from harness.run.execute import execute
    from harness.spec import TrainSpec, Weights

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    method = replace(get_method("stfpm"), {"train.epochs": 1, "train.select": "last"})
    spec = TrainSpec(method, "resnet18", Weights(), describe(source, "cloth"), image_size=32, precision="fp32")
    monkeypatch.setattr(os, "posix_fallocate", full)
    heard: list[events.FromWorker] = []
    job = TrainJob(spec, (), entry_of(source), None, str(tmp_path / "results"), device="cpu")
    execute(job, heard.append)
    # That would end the grid: "results folder ... full".
    assert events.Unwritable not in [type(event) for event in heard]
    last = heard[-1]
    assert (type(last), last.reason) == (events.Failed, "error")
    assert str(tmp_path / "cache" / "images") in last.message


def a_file(place: Path) -> dict[str, str]:
    place.write_text("")
    return {"HARNESS_CACHE": str(place)}


def not_writable(place: Path) -> dict[str, str]:
    place.mkdir(mode=0o555)
    return {"HARNESS_CACHE": str(place)}


UNUSABLE = [
    pytest.param(a_file, "(Not a directory)", id="a-file"),
    pytest.param(not_writable, "(Permission denied)", id="not-writable"),
    pytest.param(lambda place: {"HARNESS_CACHE": str(place / ("x" * 300))}, "(File name too long)", id="name-too-long"),
    pytest.param(lambda place: {"HARNESS_CACHE": "", "XDG_CACHE_HOME": "", "HOME": "/proc/none"}, "/proc", id="home"),
    pytest.param(lambda place: {"HARNESS_CACHE": "~nobody_here/x"}, "home folder is not known", id="home-not-known"),
]


@pytest.mark.parametrize(("make", "words"), UNUSABLE)
def test_a_cache_that_cannot_be_had_is_one_line_of_the_plan(
    make: Callable[[Path], dict[str, str]],
    words: str,
    tree: Path,
    tmp_path: Path,
    write_grid: WriteGrid,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in make(tmp_path / "place").items():
        monkeypatch.setenv(name, value)
    with as_anyone():
        line = refusal("plan", "--grid", write_grid(tree))
    assert "cache folder" in line
    assert words in line
    assert "set HARNESS_CACHE" in line


def test_a_full_cache_disk_is_one_line_of_the_plan(
    small_disk: Path, tree: Path, write_grid: WriteGrid, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HARNESS_CACHE", str(small_disk))
    with suppress(OSError), (small_disk / "full").open("wb", buffering=0) as stream:
        while True:
            stream.write(bytes(4096))
    line = refusal("plan", "--grid", write_grid(tree))
    assert f"cache folder {small_disk}" in line
    assert "(No space left on device)" in line


def test_a_warm_cache_that_is_read_only_still_serves(
    new_cache: Path, source: Source, tree: Path, write_grid: WriteGrid
) -> None:
    grid = write_grid(tree)
    load(source)
    assert harness("plan", "--grid", grid).code == 0
    places = [path for path in (new_cache, *new_cache.rglob("*")) if path.is_dir()]
    for path in places:
        path.chmod(0o555)
    with as_anyone():
        assert harness("plan", "--grid", grid).code == 0
        assert is_sound(load(source), source)
    for path in places:
        path.chmod(0o755)


@pytest.mark.parametrize(
    "content",
    ["", "{", "[]", "[" * 100_000, '{"cloth/train/good/000.png": 1}', '{"cloth/train/good/000.png": [[0], 1]}'],
)
def test_damaged_fingerprints_are_made_again(content: str, new_cache: Path, source: Source) -> None:
    data = describe(source, "cloth")
    (store,) = (new_cache / "fingerprints").iterdir()
    store.write_text(content)
    assert describe(source, "cloth") == data
