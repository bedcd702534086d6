"""Pictures of anomaly maps: which samples, and what is in them."""

from pathlib import Path

import numpy as np
from PIL import Image

from harness.data.catalog import Sample
from harness.run.pictures import OUTLINE, choose, save_maps
from harness.run_folder import MAP_COLOURS, PANELS

KINDS = ["good"] * 5 + ["hole"] * 3 + ["cut"]
SAMPLES = [Sample(f"{i}.png", "test", kind, None if kind == "good" else "mask.png") for i, kind in enumerate(KINDS)]


def test_every_kind_has_its_turn() -> None:
    assert choose(SAMPLES, 3) == [0, 5, 8]
    assert choose(SAMPLES, 5) == [0, 1, 5, 6, 8]
    assert choose(SAMPLES, 99) == list(range(9))


def test_pictures_of_four_panels(tmp_path: Path) -> None:
    images = np.full((9, 32, 32, 3), 90, np.uint8)
    masks, maps = np.zeros((9, 32, 32), bool), np.zeros((9, 32, 32), np.float32)
    masks[5:, 10:20, 10:20] = True
    maps[masks] = 1.0
    save_maps(tmp_path, SAMPLES, images, masks, maps, 3)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["0000_good_0.png", "0005_hole_5.png", "0008_cut_8.png"]
    picture = np.asarray(Image.open(tmp_path / names[1])).astype(int)
    assert picture.shape == (32, 128, 3)
    assert Image.open(tmp_path / names[1]).info[PANELS] == "4"
    assert (picture[15, 96 + 15] == MAP_COLOURS[-1]).all()
    assert (picture[2, 96 + 2] == MAP_COLOURS[0]).all()
    assert (picture[:, :32] == 90).all()
    assert (picture[8, 32 + 15] == OUTLINE).all()  # around the defect, not on it
    assert (picture[15, 32 + 15] == 90).all()
    assert picture[15, 64 + 15].sum() > picture[2, 64 + 2].sum() + 200  # brighter where the score is high
    save_maps(tmp_path / "none", SAMPLES, images, masks, maps, 0)
    assert not (tmp_path / "none").exists()


def test_where_no_mask_is_known_the_picture_says_so(tmp_path: Path) -> None:
    images = np.full((2, 64, 64, 3), 90, np.uint8)
    samples = [Sample("0.png", "test", "hole"), Sample("1.png", "test")]
    save_maps(tmp_path, samples, images, np.zeros((2, 64, 64), bool), np.zeros((2, 64, 64), np.float32), 2)
    pictures = (np.asarray(Image.open(path)) for path in sorted(tmp_path.iterdir()))
    unknown, good = (picture[:, 64:128] for picture in pictures)
    assert (good == 90).all()
    assert (unknown[:8] == 27).all()
    assert (unknown[24:40] > 100).any()  # the words
