"""The built-in data set: deterministic, and its masks tell where the damage is."""

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from harness.data import surfaces

PAIRS = [(category, defect) for category in surfaces.CATEGORIES for defect in surfaces.defects_of(category)]

GOLDEN = {
    "woven_cloth": (2, 118.26, 23.87, 1528),
    "brushed_metal": (2, 163.15, 11.09, 172),
    "wood_grain": (2, 141.30, 42.41, 292),
    "granite": (2, 140.47, 29.77, 529),
    "leather": (2, 74.44, 27.65, 84),
}
"""The revision, mean and standard deviation of an image of each category, and the pixels in its mask."""


def test_same_names_give_same_pixels_and_any_other_name_gives_others():
    names = ("wood_grain", "test", 0, "crack")
    image, mask = surfaces.render(*names, size=64)
    again, mask_again = surfaces.render(*names, size=64)
    assert (image.dtype, image.shape, mask.dtype, mask.shape) == (np.uint8, (64, 64, 3), bool, (64, 64))
    assert np.array_equal(image, again)
    assert np.array_equal(mask, mask_again)
    for place, other in enumerate(("granite", "train", 1, "stain")):
        changed = (*names[:place], other, *names[place + 1 :])
        assert not np.array_equal(image, surfaces.render(*changed, size=64)[0])


def test_every_category_has_five_defects_and_its_good_images_have_none():
    for category in surfaces.CATEGORIES:
        assert len(set(surfaces.defects_of(category))) >= 5
        assert set(surfaces.defects_of(category)) <= set(surfaces.DEFECTS)
        assert not surfaces.render(category, "train", 0, size=64)[1].any()


@pytest.mark.parametrize(("category", "defect"), PAIRS)
def test_mask_covers_what_the_defect_changes(category, defect):
    for seed in range(2):
        clean, damaged, mask = surfaces._scene(np.random.default_rng(seed), category, defect, 96)
        assert 0.001 <= mask.mean() <= 0.08
        change = np.abs(damaged - clean).max(axis=-1)
        near = ndimage.binary_dilation(mask, iterations=2)
        assert change[near].sum() > 0.8 * change.sum()
        assert change[mask].mean() > 1.0
        assert change[~ndimage.binary_dilation(mask, iterations=16)].max() < 1.0


@pytest.mark.parametrize(("category", "defect"), PAIRS)
def test_damage_shows_at_96_pixels_beside_what_good_surfaces_vary_by_and_from_obvious_to_subtle(category, defect):
    shown = []
    for seed in range(8):
        clean, damaged, mask = surfaces._scene(np.random.default_rng(seed), category, defect, 96)
        change = np.abs(damaged - clean).mean(axis=-1)[mask].mean()
        shown.append(change / clean.mean(axis=-1).std())
    assert np.median(shown) > 0.4
    assert max(shown) > 1.3 * min(shown)


@pytest.mark.parametrize("category", surfaces.CATEGORIES)
def test_the_picture_is_the_same_at_any_size(category):
    large, mask = surfaces.render(category, "test", 0, "stain")
    small, small_mask = surfaces.render(category, "test", 0, "stain", 128)
    assert (mask[::2, ::2] & small_mask).sum() > 0.8 * (mask[::2, ::2] | small_mask).sum()
    blurred = [
        ndimage.uniform_filter(image.astype(float), (width, width, 0)) for image, width in ((large, 33), (small, 17))
    ]
    assert np.abs(blurred[0][::2, ::2] - blurred[1]).mean() < 4


@pytest.mark.parametrize("category", surfaces.CATEGORIES)
def test_pixels_are_those_of_this_revision(category):
    """A change of these numbers is a change of the data set: raise REVISION with it."""
    image, mask = surfaces.render(category, "test", 0, surfaces.defects_of(category)[0])
    revision, mean, std, area = GOLDEN[category]
    assert revision == surfaces.REVISION
    assert image.mean() == pytest.approx(mean, abs=0.5)
    assert image.std() == pytest.approx(std, abs=0.5)
    assert mask.sum() == pytest.approx(area, abs=10)


def test_tree_has_the_layout_of_mvtec(tmp_path):
    told = []
    surfaces.write_tree(
        tmp_path,
        ["granite"],
        train=2,
        test_good=1,
        test_per_defect=2,
        size=64,
        progress=lambda done, total: told.append((done, total)),
    )
    defects = surfaces.defects_of("granite")
    expected = {"train/good/000.png", "train/good/001.png", "test/good/000.png"}
    for defect in defects:
        expected |= {f"test/{defect}/00{i}.png" for i in range(2)}
        expected |= {f"ground_truth/{defect}/00{i}_mask.png" for i in range(2)}
    written = {path.relative_to(tmp_path / "granite").as_posix() for path in tmp_path.rglob("*.png")}
    assert written == expected
    assert told == [(i + 1, 3 + 2 * len(defects)) for i in range(3 + 2 * len(defects))]
    image, mask = surfaces.render("granite", "test", 1, "chip", 64)
    with Image.open(tmp_path / "granite/test/chip/001.png") as stored:
        assert np.array_equal(np.asarray(stored), image)
    with Image.open(tmp_path / "granite/ground_truth/chip/001_mask.png") as stored:
        assert stored.mode == "L"
        assert np.array_equal(np.asarray(stored), mask * np.uint8(255))
