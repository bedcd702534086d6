"""Files to pixels: the data set, the cache, resizing, held-out normals."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from harness.data import builtin, entries, held_out, images, layouts  # noqa: F401
from harness.data.catalog import Sample, get_source
from harness.data.manifest import describe
from harness.files import cache_folder
from harness.spec import digest
from tests.conftest import save


def test_pixels_are_pils_and_decoded_once(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = get_source({"name": "folder", "root": str(tree)})
    data = describe(source, "cloth")
    category = images.load(source, data, 32)
    for half in (category.train, category.test):
        for sample, pixels in zip(half.samples, half.images, strict=True):
            with Image.open(tree / sample.path) as image:
                expected = np.asarray(image.convert("RGB").resize((32, 32), Image.Resampling.BILINEAR))
            assert np.array_equal(pixels, expected)
    assert len(category.train.samples) == len(category.test.samples) == 6
    for sample, mask in zip(category.test.samples, category.test.masks, strict=True):
        assert mask.any() == sample.anomalous
        if sample.mask:
            with Image.open(tree / sample.mask) as image:
                assert np.array_equal(mask, np.asarray(image.resize((32, 32), Image.Resampling.NEAREST)) > 0)
    assert list(category.test.regions) == [0, 0, 0, 1, 1, 1]
    monkeypatch.setattr(images, "_decode", None)  # from here on the cache must do
    assert np.array_equal(images.load(source, data, 32).train.images, category.train.images)


def test_padding_keeps_the_aspect(tree: Path) -> None:
    wide = np.full((20, 40, 3), 200, np.uint8)
    save(tree / "cloth" / "train" / "good" / "000.png", wide)
    source = get_source({"name": "folder", "root": str(tree), "resize": "pad"})
    first = images.load(source, describe(source, "cloth"), 32).train.images[0]
    assert (first[8:24] == 200).all()
    assert (first[:8] == 0).all()
    assert (first[24:] == 0).all()


def test_pixels_of_images_that_are_not_squares(tree: Path) -> None:
    """40 x 40 pixels stretched to 32 high and 64 wide; padded; and the middle square cut out."""
    source = get_source({"name": "folder", "root": str(tree)})
    data = describe(source, "cloth")
    category = images.load(source, data, (32, 64))
    wide = category.test
    assert (wide.images.shape[1:], wide.masks.shape[1:]) == ((32, 64, 3), (32, 64))
    for half in (category.train, wide):
        for sample, pixels in zip(half.samples, half.images, strict=True):
            with Image.open(tree / sample.path) as image:
                expected = np.asarray(image.convert("RGB").resize((64, 32), Image.Resampling.BILINEAR))
            assert np.array_equal(pixels, expected)
    for sample, mask in zip(wide.samples, wide.masks, strict=True):
        if sample.mask:
            with Image.open(tree / sample.mask) as image:
                assert np.array_equal(mask, np.asarray(image.resize((64, 32), Image.Resampling.NEAREST)) > 0)
    assert images.load(source, data, (64, 32)).train.images.shape[1:] == (64, 32, 3)
    middle = images.load(source, data, (32, 64), crop=16).test
    assert np.array_equal(middle.images, wide.images[:, 8:24, 24:40])
    assert np.array_equal(middle.masks, wide.masks[:, 8:24, 24:40])
    padded = get_source({"name": "folder", "root": str(tree), "resize": "pad"})
    first = images.load(padded, describe(padded, "cloth"), (32, 64)).train.images[0]
    assert (first[:, 16:48] > 0).any(axis=-1).all()
    assert (first[:, :16] == 0).all()
    assert (first[:, 48:] == 0).all()


def test_entries_of_the_cache_are_kept_by_the_sides(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A square's is where it was before there were other sizes; a strip is decoded once too."""
    source = get_source({"name": "folder", "root": str(tree)})
    data = describe(source, "cloth")
    images.load(source, data, 32), images.load(source, data, (32, 64))
    square = cache_folder("images") / digest([data.manifest, 32])
    assert json.loads((square / entries.FILE).read_text())["size"] == 32
    entries._checked.clear()  # as a new process
    monkeypatch.setattr(images, "_decode", None)
    assert images.load(source, data, 32).train.images.shape[1:] == (32, 32, 3)
    assert images.load(source, data, (32, 64)).test.images.shape[1:] == (32, 64, 3)


def test_samples_travel_as_a_hugging_face_dataset(tree: Path) -> None:
    source = get_source({"name": "folder", "root": str(tree)})
    rows = images.as_dataset(source, source.samples("cloth"))
    assert rows.column_names == ["image", "mask", "label", "defect", "split", "path"]
    last = rows[-1]
    assert (last["image"].size, last["mask"].size, last["label"], last["defect"]) == ((40, 40), (40, 40), 1, "hole")
    assert rows[0]["mask"] is None


def test_mask_threshold_of_magnetic_tiles(mtd_root: Path) -> None:
    source = get_source({"name": "mtd", "root": str(mtd_root)})
    empty = {"exp3_num_45042", "exp4_num_124690", "exp4_num_352527", "exp4_num_45057"}
    found = set()
    for sample in source.samples("magnetic_tile"):
        if sample.defect == "uneven":
            with Image.open(mtd_root / sample.mask) as image:
                if not (np.asarray(image.convert("L")) > source.mask_threshold).any():
                    found.add(Path(sample.path).stem)
    assert found == empty


def test_hold_out_takes_whole_groups_and_is_the_same_every_time() -> None:
    samples = [Sample(f"{i}.png", "train", group=str(i // 4)) for i in range(40)]
    kept, held = held_out.hold_out(samples, np.arange(40), 0.2)
    assert sorted([*kept, *held]) == list(range(40))
    assert len(held) == 8
    assert not {samples[i].group for i in kept} & {samples[i].group for i in held}
    again = held_out.hold_out(samples, np.arange(40), 0.2)
    assert np.array_equal(again[1], held)
    assert len(held_out.hold_out(samples[:4], np.arange(4), 0.2)[1]) == 0  # one group cannot be divided
