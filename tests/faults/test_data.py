"""Data sets as the world leaves them: refused by the plan in one line, and a run's pixels are those that were hashed.

Rows: faults.md, areas G and H, sections 2, 3 and 12.
"""

import os
import shutil
import struct
import threading
import time
import zlib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from harness import events
from harness.data import builtin, images, layouts  # noqa: F401  (they register their data sets)
from harness.data.catalog import DataError, Source, get_source
from harness.data.manifest import describe
from tests.conftest import save, texture
from tests.faults.commands import harness, refusal
from tests.faults.denial import as_anyone

WriteGrid = Callable[..., Path]
pytestmark = pytest.mark.usefixtures("new_cache")

IMAGE = "cloth/train/good/003.png"
WHITE = np.full((40, 40, 3), 255, np.uint8)


def of(root: Path, **keys: object) -> Source:
    return get_source({"name": "folder", "root": str(root), **keys})


def exchange(path: Path, change: Callable[[Path], object]) -> None:
    """Put something else in an image's place."""
    path.unlink()
    change(path)


def pipe(path: Path) -> None:
    """One that nobody writes to; who waits for it anyway is let go, to fail, after some seconds."""
    os.mkfifo(path)

    def let_go() -> None:
        with suppress(OSError):
            writing = os.open(path, os.O_WRONLY | os.O_NONBLOCK)
            time.sleep(0.5)
            os.close(writing)

    timer = threading.Timer(5, let_go)
    timer.daemon = True
    timer.start()


def denied(path: Path) -> None:
    path.chmod(0)


def not_utf8(path: Path) -> None:
    path.rename(os.fsdecode(os.fsencode(path.with_suffix("")) + b"\xff.png"))


def not_utf8_category(path: Path) -> None:
    folder = path.parents[2]
    folder.rename(os.fsdecode(os.fsencode(folder) + b"\xff"))


def floats(path: Path, fill: float = 0.5) -> None:
    exchange(path, lambda path: Image.new("F", (40, 40), fill).save(path, "TIFF"))


# What is done to one image of a sound data set, and the words of the line that refuses it.
DAMAGES = [
    pytest.param(
        lambda path: exchange(path, lambda path: path.symlink_to("../../.git/annex/objects/a")),
        "003.png is a link to ../../.git/annex/objects/a, which is not there; fetch what it stands for (git annex get",
        id="dangling-link",
    ),
    pytest.param(
        lambda path: exchange(path, lambda path: path.symlink_to(path.name)),
        "003.png is a link that leads back to itself",
        id="link-loop",
    ),
    pytest.param(
        lambda path: exchange(path, Path.mkdir), "003.png is a folder, not an image file", id="folder-named-as-an-image"
    ),
    pytest.param(lambda path: exchange(path, pipe), "003.png is a pipe, not an image file", id="pipe"),
    pytest.param(denied, "003.png cannot be read (Permission denied)", id="file-that-may-not-be-read"),
    pytest.param(
        lambda path: denied(path.parent), "train/good cannot be read (Permission denied)", id="folder-that-may-not-be"
    ),
    pytest.param(
        lambda path: Image.new("1", (40_000, 26_000)).save(path),
        "003.png has 40000x26000 pixels, more than 1000 million; scale it down or write max_megapixels: 1040",
        id="more-pixels-than-the-limit",
    ),
    pytest.param(not_utf8, r"the name cloth/train/good/003\xff.png is not UTF-8", id="file-name-that-is-not-utf8"),
    pytest.param(not_utf8_category, r"the name cloth\xff is not UTF-8", id="category-that-is-not-utf8"),
    pytest.param(floats, "floating point values, .*; write range: [LOW, HIGH]", id="floats-without-a-range"),
    pytest.param(lambda path: floats(path, np.nan), "003.png has values that are not finite", id="floats-with-nan"),
]


@pytest.mark.parametrize(("damage", "words"), DAMAGES)
def test_a_plan_refuses_in_one_line(
    damage: Callable[[Path], object], words: str, tree: Path, write_grid: WriteGrid
) -> None:
    path = tree / IMAGE
    damage(path)
    with as_anyone():
        line = refusal("plan", "--grid", write_grid(tree))
    for part in words.split(".*"):
        assert part in line
    for each in (path.parent, path):
        if each.exists():
            each.chmod(0o755)  # for the removal of the temporary folder


def test_a_large_image_is_read_and_the_limit_can_be_raised(tree: Path, write_grid: WriteGrid) -> None:
    """Pillow alone refuses more than 178.9 million pixels; a line scan has 200."""
    Image.new("1", (20_000, 10_000)).save(tree / IMAGE)
    assert harness("plan", "--grid", write_grid(tree)).code == 0
    assert "max_megapixels: 200" in refusal("plan", "--grid", write_grid(tree, axes={"dataset": [entry(tree, 100)]}))
    data = describe(of(tree), "cloth")
    assert describe(of(tree, max_megapixels=200), "cloth") == data  # neither id nor table changes
    assert images.load(of(tree), data, 32).train.images[3].max() == 0
    assert Image.MAX_IMAGE_PIXELS is not None  # a user's own Pillow stays careful


def entry(root: Path, max_megapixels: float) -> dict[str, object]:
    return {"name": "folder", "root": str(root), "max_megapixels": max_megapixels}


def test_a_png_cut_off_with_valid_checksums_is_the_datas_fault(tree: Path) -> None:
    content = (tree / IMAGE).read_bytes()
    at = content.index(b"IDAT")
    half = b"IDAT" + content[at + 4 : at + 104]
    cut = content[: at - 4] + struct.pack(">I", 100) + half + struct.pack(">I", zlib.crc32(half))
    (tree / IMAGE).write_bytes(cut + content[content.index(b"IEND") - 4 :])
    source = of(tree)
    with pytest.raises(DataError, match=r"003\.png is not a readable image"):
        images.load(source, describe(source, "cloth"), 32)


def restored(path: Path, content: bytes, like: os.stat_result) -> None:
    """Other content under the name, with the size and the mtime of before."""
    path.write_bytes(content)
    os.utime(path, ns=(like.st_atime_ns, like.st_mtime_ns))
    assert path.stat().st_size == like.st_size


@pytest.mark.parametrize(
    "name", ["cloth/train/good/003.png", "cloth/test/hole/001.png", "cloth/ground_truth/hole/001_mask.png"]
)
def test_images_exchanged_after_the_plan_are_refused_and_poison_nothing(name: str, tree: Path) -> None:
    source, path = of(tree), tree / name
    data, content, found = describe(source, "cloth"), path.read_bytes(), path.stat()
    save(path, np.full_like(np.asarray(Image.open(path)), 255))
    with pytest.raises(DataError, match=rf"{path.name} changed since it was planned; run the grid again"):
        images.load(source, data, 32)
    restored(path, content, found)
    expected = {sample.path: np.asarray(Image.open(tree / sample.path)) for sample in source.samples("cloth")}
    category = images.load(source, describe(source, "cloth"), 40)
    for half in (category.train, category.test):
        assert all(
            np.array_equal(pixels, expected[s.path]) for s, pixels in zip(half.samples, half.images, strict=True)
        )
    assert 0 < category.test.masks.mean() < 0.1


def test_an_exchange_that_size_and_mtime_do_not_tell_is_seen_by_the_next_plan(tree: Path) -> None:
    path = tree / IMAGE
    Image.fromarray(texture(3)[0]).save(path, "BMP")
    source, found = of(tree), path.stat()
    data = describe(source, "cloth")
    other = tree.parent / "other.bmp"
    Image.fromarray(WHITE).save(other)
    restored(path, other.read_bytes(), found)
    with pytest.raises(DataError, match=r"003\.png changed since it was planned"):
        images.load(source, data, 32)
    again = describe(source, "cloth")
    assert again.manifest != data.manifest
    assert images.load(source, again, 32).train.images[3].min() == 255


def test_an_exchange_by_what_is_no_image_is_seen_by_the_next_plan(tree: Path) -> None:
    path, source = tree / IMAGE, of(tree)
    data, found = describe(source, "cloth"), (tree / IMAGE).stat()
    restored(path, b"x" * found.st_size, found)
    with pytest.raises(DataError, match=r"003\.png changed since it was planned"):
        images.load(source, data, 32)
    with pytest.raises(DataError, match=r"003\.png is not a readable image"):
        describe(source, "cloth")


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda path: path.unlink(), id="vanished"),
        pytest.param(lambda path: shutil.copy(path, path.with_name("099.png")), id="one-more"),
        pytest.param(lambda path: exchange(path, pipe), id="pipe"),
        pytest.param(lambda path: exchange(path, lambda path: path.symlink_to("gone")), id="dangling-link"),
    ],
)
def test_files_that_changed_after_the_plan_are_the_datas_fault(change: Callable[[Path], object], tree: Path) -> None:
    source = of(tree)
    data = describe(source, "cloth")
    change(tree / IMAGE)
    with pytest.raises(DataError):
        images.load(source, data, 32)


def test_labels_are_those_of_the_pixels(tree: Path) -> None:
    """A file that moves to another split after the category was decoded moves no label of the cached pixels."""
    source = of(tree)
    data = describe(source, "cloth")
    before = images.load(source, data, 32)
    (tree / "cloth/test/good/000.png").rename(tree / "cloth/train/good/0000.png")
    after = images.load(source, data, 32)
    assert (after.train.samples, after.test.samples) == (before.train.samples, before.test.samples)
    assert np.array_equal(after.train.images, before.train.images)


def run_job(plan_source: Source, tmp_path: Path) -> list[events.FromWorker]:
    """Events of a run in this process, its images exchanged between plan and run."""
    from dskd import get_method, replace
    from harness.data.catalog import entry_of
    from harness.job import TrainJob
    from harness.run.execute import execute
    from harness.spec import TrainSpec, Weights

    spec = TrainSpec(
        replace(get_method("stfpm"), {"train.epochs": 1, "train.select": "last"}),
        "resnet18",
        Weights(),
        describe(plan_source, "cloth"),
        image_size=32,
        precision="fp32",
    )
    save(Path(plan_source.root) / IMAGE, WHITE)
    heard: list[events.FromWorker] = []
    job = TrainJob(spec, (), entry_of(plan_source), None, str(tmp_path / "results"), device="cpu")
    execute(job, heard.append)
    return heard


def test_a_run_whose_images_were_exchanged_fails_for_its_data(tree: Path, tmp_path: Path) -> None:
    last = run_job(of(tree), tmp_path)[-1]
    assert isinstance(last, events.Failed)
    assert last.reason == "data"
    assert "003.png changed since it was planned" in last.message


# Data sets whose files no plan hashes


SMALL = {"name": "surfaces", "train": 1, "test_good": 1, "test_per_defect": 1, "side": 32}


@pytest.fixture
def surfaces() -> Source:
    return get_source(SMALL)


def whiten(path: Path) -> None:
    like = path.stat()
    Image.new("RGB", (32, 32), "white").save(path)
    os.utime(path, ns=(like.st_atime_ns, like.st_mtime_ns))


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(lambda folder: whiten(folder / "granite/train/good/000.png"), id="exchanged"),
        pytest.param(lambda folder: (folder / "granite/train/good/000.png").write_bytes(b""), id="cut"),
        pytest.param(lambda folder: (folder / "granite/test/good/000.png").unlink(), id="missing"),
        pytest.param(
            lambda folder: (
                [path.unlink() for path in folder.glob("*.*")] + [whiten(folder / "granite/train/good/000.png")]
            ),
            id="of-an-earlier-version",
        ),
    ],
)
def test_the_built_in_data_set_is_written_again_where_it_is_damaged(
    damage: Callable[[Path], object], surfaces: Source
) -> None:
    data = describe(surfaces, "granite")
    expected = {s.path: np.asarray(Image.open(surfaces.folder() / s.path)) for s in surfaces.samples("granite")}
    damage(surfaces.folder())
    assert describe(surfaces, "granite") == data
    category = images.load(surfaces, data, 32)
    assert {sample.path for half in (category.train, category.test) for sample in half.samples} == expected.keys()
    for half in (category.train, category.test):
        for sample, pixels in zip(half.samples, half.images, strict=True):
            assert np.array_equal(pixels, expected[sample.path])


def test_a_plugin_that_names_another_content_than_the_plans_is_refused(
    tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = of(tree)
    monkeypatch.setattr(layouts.OwnFolder, "fixed_manifest", lambda self, category, half: "first")
    data = describe(source, "cloth")
    monkeypatch.setattr(layouts.OwnFolder, "fixed_manifest", lambda self, category, half: "second")
    with pytest.raises(DataError, match="cloth changed since it was planned"):
        images.load(source, data, 32)


def test_files_that_cannot_be_used_are_named_and_counted(tree: Path, write_grid: WriteGrid) -> None:
    paths = sorted((tree / "cloth").glob("t*/*/*.png"))  # train and test
    for path in paths:
        path.write_bytes(path.read_bytes()[:100])
    line = refusal("plan", "--grid", write_grid(tree))
    assert line.startswith(f"{paths[0]} is not a readable image (")
    named = ", ".join(str(path.relative_to(tree)) for path in paths[1:10])
    assert line.endswith(f"; 11 more files cannot be used: {named}, ...")
