"""Folders to samples: the layouts, their splits, and what is refused."""

import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dskd.config import ConfigError
from harness.data import builtin, layouts  # noqa: F401
from harness.data.catalog import DataError, get_source
from harness.data.manifest import describe
from tests.conftest import save, texture, write_mvtec


def write_mtd(root: Path) -> Path:
    """A magnetic tile layout: 10 tiles of free images under 3 exposures, 2 defects."""
    for tile in range(10):
        for exposure in range(1, 4):
            name = f"exp{exposure}_num_{1000 * tile + exposure}"
            save(root / "MT_Free" / "Imgs" / f"{name}.jpg", texture(tile)[0])
            save(root / "MT_Free" / "Imgs" / f"{name}.png", np.zeros((40, 40), np.uint8))
    for kind in ("Crack", "Uneven"):
        image, mask = texture(50, defect=True)
        save(root / f"MT_{kind}" / "Imgs" / "exp1_num_20000.jpg", image)
        save(root / f"MT_{kind}" / "Imgs" / "exp1_num_20000.png", mask.astype(np.uint8) * 255)
    return root


def write_3d(root: Path) -> Path:
    for split, kind in (("train", "good"), ("validation", "good"), ("test", "good"), ("test", "hole")):
        image, mask = texture(1, defect=kind == "hole")
        save(root / "bagel" / split / kind / "rgb" / "000.png", image)
        save(root / "bagel" / split / kind / "gt" / "000.png", mask.astype(np.uint8) * 255)
        (root / "bagel" / split / kind / "xyz").mkdir()
    return root


def splits(name: str, root: Path, category: str, **options: object) -> Counter:
    samples = get_source({"name": name, "root": str(root), **options}).samples(category)
    return Counter((sample.split, sample.defect, sample.mask is not None) for sample in samples)


def test_mvtec(tree: Path) -> None:
    write_mvtec(tree, "wood", train=2)
    source = get_source({"name": "mvtec_ad", "root": str(tree)})
    assert source.chosen() == ["cloth", "wood"]
    expected = {("train", "good", False): 6, ("test", "good", False): 3, ("test", "hole", True): 3}
    assert splits("mvtec_ad", tree, "cloth") == expected
    assert get_source({"name": "folder", "root": str(tree / "wood")}).chosen() == ["wood"]  # a root of one category


def test_mvtec_3d(tmp_path: Path) -> None:
    found = splits("mvtec_3d_ad", write_3d(tmp_path), "bagel")
    assert found == {(s, "good", False): 1 for s in ("train", "val", "test")} | {("test", "hole", True): 1}


def test_magnetic_tile_split_keeps_tiles_together(tmp_path: Path) -> None:
    write_mtd(tmp_path)
    entry = {"name": "mtd", "root": str(tmp_path)}
    samples = get_source(entry).samples("magnetic_tile")
    tiles = {split: {s.group for s in samples if s.split == split and not s.anomalous} for split in ("train", "test")}
    assert len(tiles["train"]) == 8
    assert not tiles["train"] & tiles["test"]
    assert splits("mtd", tmp_path, "magnetic_tile")["train", "good", False] == 24
    images = [s.path for s in get_source(entry | {"split": "image"}).samples("magnetic_tile") if s.split == "train"]
    assert len(images) == 24
    assert images != [s.path for s in samples if s.split == "train"]
    other = get_source(entry | {"split_seed": 1}).samples("magnetic_tile")
    assert [s.split for s in other] != [s.split for s in samples]


def test_real_magnetic_tiles(mtd_root: Path) -> None:
    samples = get_source({"name": "mtd", "root": str(mtd_root)}).samples("magnetic_tile")
    kinds = Counter(s.defect for s in samples)
    assert kinds == {"good": 952, "blowhole": 115, "break": 85, "crack": 57, "fray": 32, "uneven": 103}
    assert len({s.group for s in samples}) == 210
    train = [s for s in samples if s.split == "train"]
    assert 762 <= len(train) <= 780
    assert not {s.group for s in train} & {s.group for s in samples if s.split == "test" and not s.anomalous}


def refused(name: str, root: Path, category: str, message: str) -> None:
    with pytest.raises(DataError, match=message) as error:
        describe(get_source({"name": name, "root": str(root)}), category)
    assert "\n" not in str(error.value)


def test_images_and_masks_that_stand_alone(tree: Path) -> None:
    mask = tree / "cloth" / "ground_truth" / "hole" / "001_mask.png"
    shutil.copy(mask, mask.with_name("009_mask.png"))
    refused("folder", tree, "cloth", r"1 mask\(s\) without an image, first .*009_mask.png")
    mask.unlink()
    refused(
        "mvtec_ad", tree, "cloth", r"1 image\(s\) without a mask, first .*hole/001.png; expected .*<image>_mask.png"
    )


def test_files_that_are_no_images(tree: Path) -> None:
    path = tree / "cloth" / "train" / "good" / "003.png"
    content = path.read_bytes()
    path.write_bytes(b"")
    refused("folder", tree, "cloth", "003.png is empty")
    path.write_bytes(content[:200])
    refused("folder", tree, "cloth", "003.png is not a readable image")
    path.write_bytes(content[:150] + b"x" + content[151:])
    refused("folder", tree, "cloth", "003.png is not a readable image")
    path.with_suffix(".jpg").write_bytes(b"no image")
    path.write_bytes(content)
    refused("folder", tree, "cloth", "003.jpg is not a readable image")


def test_truncated_jpeg(tmp_path: Path) -> None:
    root = write_mtd(tmp_path)
    path = root / "MT_Crack" / "Imgs" / "exp1_num_20000.jpg"
    path.write_bytes(path.read_bytes()[:-200])
    refused("mtd", root, "magnetic_tile", "20000.jpg is not a readable image")


def test_mask_of_another_size(tree: Path) -> None:
    mask = tree / "cloth" / "ground_truth" / "hole" / "001_mask.png"
    Image.new("L", (20, 40)).save(mask)
    refused("folder", tree, "cloth", "001_mask.png is 20x40 pixels, its image is 40x40")


@pytest.mark.parametrize("name", ["mvtec_ad", "folder", "mvtec_3d_ad", "mtd"])
def test_roots_that_are_none(name: str, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    for entry, message in (
        ({"name": name}, "`root` is missing"),
        ({"name": name, "root": str(tmp_path / "gone")}, "gone is not a folder"),
        ({"name": name, "root": str(tmp_path)}, "has another layout; expected .*; found other"),
    ):
        with pytest.raises(DataError, match=message):
            get_source(entry).chosen()


def test_unknown_category_and_empty_folder(tree: Path) -> None:
    with pytest.raises(ConfigError, match=r"dataset folder: root: \$NOPE is not set, in \$NOPE/data; set the variable"):
        get_source({"name": "folder", "root": "$NOPE/data"}).chosen()
    with pytest.raises(DataError, match="unknown category 'clth'; did you mean 'cloth'"):
        get_source({"name": "folder", "root": str(tree), "categories": ["clth"]}).chosen()
    shutil.rmtree(tree / "cloth" / "train" / "good")
    (tree / "cloth" / "train" / "good").mkdir()
    refused("folder", tree, "cloth", "train/good holds no images")


def test_manifest_follows_content_not_place(tree: Path, tmp_path: Path) -> None:
    first = describe(get_source({"name": "folder", "root": str(tree)}), "cloth")
    moved = shutil.copytree(tree, tmp_path / "moved")
    assert describe(get_source({"name": "folder", "root": str(moved)}), "cloth").manifest == first.manifest
    assert (first.train_images, first.test_images) == (6, 6)
    save(moved / "cloth" / "train" / "good" / "000.png", texture(99)[0])
    assert describe(get_source({"name": "folder", "root": str(moved)}), "cloth").manifest != first.manifest
