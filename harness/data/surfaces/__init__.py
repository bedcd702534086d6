"""The built-in data set `surfaces`: procedural photographs of five materials, whole and damaged.

Nothing is downloaded: an image is a function of its category, split, defect and index. A *texture* draws a surface
without damage. A *mark* is a shape and what happens to the surface inside it; its place, size and contrast are random,
from obvious to barely visible. A defect is a mark, and faint harmless marks may lie on any image, so that not every
irregularity is a defect.

Lengths are in pixels of a 256-pixel image whatever the size rendered, angles in radians, colours 0 to 255.
"""

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import scipy  # its ndimage takes a third of a second to import: it comes with the first use
from numpy.random import Generator
from PIL import Image

from harness.data.surfaces.marks import Blob, Mark, Stroke, Thread
from harness.data.surfaces.textures import (
    REFERENCE,
    Surface,
    brushed_metal,
    granite,
    leather,
    paint,
    wood_grain,
    woven_cloth,
)

REVISION: int = 2
"""Raised whenever a change to this package changes pixels."""

MASK_LEVEL = 0.2
"""The cover over which a pixel counts as damaged: fainter rims of a mark cannot be seen."""
MASK_AREA = (0.0012, 0.075)
"""The shares of the image between which the damaged area lies."""


@dataclass(frozen=True)
class Material:
    """A category: how its surface is drawn, the faint marks that are no defects, and its defects."""

    texture: Callable[[Generator, int], Surface]
    harmless: Mark
    defects: dict[str, Mark]


CATEGORIES: dict[str, Material] = {
    "woven_cloth": Material(
        woven_cloth,
        Mark(Thread((60, 300)), (0.93, 0.93, 0.95), count=(0, 2)),
        {
            "missing_thread": Mark(Thread((60, 220)), bare=True, soft=0.3, contrast=(0.5, 1)),
            "hole": Mark(Blob((4.5, 11), rough=0.2), (0.3, 0.28, 0.28), opacity=0.95, soft=0.2, contrast=(0.3, 1)),
            "stain": Mark(Blob((18, 38)), (0.5, 0.38, 0.26), soft=0.7, contrast=(0.45, 1)),
            "snag": Mark(Stroke((60, 140), (18, 30), spread=0.3), pull=9, relief=0.55, contrast=(0.55, 1)),
            "loose_thread": Mark(
                Stroke((60, 160), (4, 6), bend=0.3, jag=0.5), (1.7, 1.7, 1.66), opacity=0.95, contrast=(0.4, 1)
            ),
            "cut": Mark(
                Stroke((45, 110), (4, 7), bend=0.02, jag=0.1),
                (0.3, 0.29, 0.29),
                opacity=0.85,
                relief=0.25,
                contrast=(0.5, 1),
            ),
        },
    ),
    "brushed_metal": Material(
        brushed_metal,
        Mark(Stroke((40, 300), (1.5, 6), spread=0.02, bend=0), (1.12, 1.12, 1.12), contrast=(0.2, 1), count=(0, 4)),
        {
            "scratch": Mark(Stroke((60, 200), (2, 4)), (1.3, 1.3, 1.3), relief=0.3, contrast=(0.25, 1)),
            "dent": Mark(Blob((10, 28), rough=0.04), relief=0.25, contrast=(0.15, 1)),
            "stain": Mark(Blob((16, 38)), (0.86, 0.8, 0.68), soft=0.9, contrast=(0.12, 1)),
            "rust": Mark(Blob((5, 16), rough=0.5), (0.75, 0.52, 0.36), opacity=0.3, count=(1, 3), contrast=(0.07, 0.7)),
            "crack": Mark(Stroke((50, 140), (2, 4), jag=1), (0.5, 0.5, 0.5), relief=0.1, contrast=(0.15, 1)),
            "smudge": Mark(Blob((18, 28), rough=0.08), (0.82, 0.82, 0.82), rings=3, soft=0.8, contrast=(0.2, 1)),
        },
    ),
    "wood_grain": Material(
        wood_grain,
        Mark(Stroke((40, 200), (3, 12), spread=0.03, bend=0.02), (0.88, 0.86, 0.84), soft=1, count=(0, 2)),
        {
            "crack": Mark(Stroke((60, 200), (3.5, 6.5), spread=0.06, jag=0.3), (0.3, 0.26, 0.24), opacity=0.5),
            "knot": Mark(
                Blob((10, 24), spread=0.2, rough=0.06),
                (0.4, 0.34, 0.28),
                opacity=0.5,
                rings=3,
                pull=5,
                contrast=(0.1, 0.8),
            ),
            "stain": Mark(Blob((14, 38)), (0.62, 0.6, 0.64), soft=0.9, contrast=(0.2, 0.9)),
            "scratch": Mark(Stroke((50, 160), (2, 4)), (1.3, 1.36, 1.46), relief=0.3),
            "hole": Mark(Blob((3, 6), rough=0.05), (0.25, 0.2, 0.18), opacity=0.8, count=(2, 5), contrast=(0.2, 1)),
            "dent": Mark(Blob((9, 22), rough=0.06), relief=0.35, contrast=(0.25, 1)),
        },
    ),
    "granite": Material(
        granite,
        Mark(Blob((4, 9), rough=0.3), (0.7, 0.7, 0.71), opacity=0.5, count=(0, 2)),
        {
            "crack": Mark(Stroke((90, 240), (4, 7), jag=1.2), (0.28, 0.26, 0.25), opacity=0.9, contrast=(0.5, 1)),
            "chip": Mark(Blob((13, 26), rough=0.2), (0.66, 0.65, 0.64), opacity=0.95, relief=0.8, contrast=(0.5, 1)),
            "stain": Mark(Blob((16, 38)), (0.7, 0.53, 0.32), soft=0.8, contrast=(0.3, 1)),
            "scratch": Mark(Stroke((90, 220), (4.5, 7.5)), (1.7, 1.7, 1.7), opacity=0.9, contrast=(0.5, 1)),
            "vein": Mark(Stroke((90, 260), (9, 18), jag=0.4), (1.45, 1.42, 1.36), opacity=0.95, contrast=(0.4, 1)),
        },
    ),
    "leather": Material(
        leather,
        Mark(Stroke((40, 160), (4, 10)), relief=0.12, count=(0, 2)),
        {
            "cut": Mark(Stroke((40, 140), (2.5, 4.5)), (0.45, 0.4, 0.38), opacity=0.6, relief=0.35),
            "crease": Mark(Stroke((80, 240), (7, 14), bend=0.1), relief=0.8, pull=3, contrast=(0.35, 1)),
            "stain": Mark(Blob((14, 38)), (0.5, 0.48, 0.51), soft=0.9, contrast=(0.25, 1)),
            "scratch": Mark(
                Stroke((50, 160), (2.2, 4)), (1.55, 1.63, 1.72), opacity=0.4, count=(1, 3), contrast=(0.4, 1)
            ),
            "hole": Mark(Blob((4.5, 8), rough=0.06), (0.3, 0.28, 0.28), opacity=0.9, count=(1, 2), contrast=(0.35, 1)),
            "scuff": Mark(Blob((12, 28), rough=0.4), (1.35, 1.4, 1.48), opacity=0.8, soft=0.7, contrast=(0.35, 1)),
        },
    ),
}

DEFECTS: tuple[str, ...] = tuple(dict.fromkeys(name for material in CATEGORIES.values() for name in material.defects))


def defects_of(category: str) -> tuple[str, ...]:
    """The kinds of defect that `category` has, in the order in which they are written."""
    return tuple(CATEGORIES[category].defects)


def _scene(rng: Generator, category: str, defect: str, size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The colours without the defect and with it, (size, size, 3) each, and its mask, (size, size) bool."""
    material = CATEGORIES[category]
    surface = material.texture(rng, size)
    clean = material.harmless.paint(rng, surface, surface.rgb, material.harmless.depth(rng, surface))
    if defect == "good":
        return clean, clean, np.zeros((size, size), bool)
    mark = material.defects[defect]
    mask = np.zeros((size, size), bool)
    # A mark may come to lie mostly outside the image, or spread too far: then it is drawn again.
    while not MASK_AREA[0] < mask.mean() < MASK_AREA[1]:
        depth = mark.depth(rng, surface)
        mask = mark.cover(depth) > MASK_LEVEL
    return clean, mark.paint(rng, surface, clean, depth), mask


def _photograph(rng: Generator, rgb: np.ndarray) -> np.ndarray:
    """`rgb` as a camera sees it, uint8: uneven light, white balance, focus and sensor noise."""
    size = len(rgb)
    ticks = np.linspace(-1, 1, size, dtype=np.float32)
    light = rng.normal(1, 0.02) + rng.normal(0, 0.025) * ticks[:, None] + rng.normal(0, 0.025) * ticks
    blur = rng.uniform(0.3, 0.6) * size / REFERENCE
    seen = scipy.ndimage.gaussian_filter(rgb, (blur, blur, 0), truncate=2.5) * paint(light, rng.normal(1, 0.004, 3))
    seen += np.float32(rng.uniform(1.5, 3.5)) * rng.standard_normal(seen.shape, np.float32)
    return np.clip(seen + 0.5, 0, 255).astype(np.uint8)


def render(
    category: str, split: str, index: int, defect: str = "good", size: int = 256
) -> tuple[np.ndarray, np.ndarray]:
    """Image `index` of a split and a defect of `category`: (size, size, 3) uint8, and its mask, (size, size) bool."""
    names = (zlib.crc32(name.encode()) for name in (category, split, defect))
    rng = np.random.default_rng([REVISION, *names, index])
    _, damaged, mask = _scene(rng, category, defect, size)
    return _photograph(rng, damaged), mask


def write_tree(
    root: Path,
    categories: Sequence[str],
    *,
    train: int,
    test_good: int,
    test_per_defect: int,
    size: int = 256,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Write `categories` under `root` in the layout of MVTec AD; `progress` is told images written and to write."""
    plan = [(c, "train", "good", i) for c in categories for i in range(train)]
    plan += [(c, "test", "good", i) for c in categories for i in range(test_good)]
    plan += [(c, "test", d, i) for c in categories for d in defects_of(c) for i in range(test_per_defect)]
    for done, (category, split, defect, index) in enumerate(plan, start=1):
        image, mask = render(category, split, index, defect, size)
        files = {root / category / split / defect / f"{index:03}.png": image}
        if defect != "good":
            files[root / category / "ground_truth" / defect / f"{index:03}_mask.png"] = mask.astype(np.uint8) * 255
        for path, pixels in files.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(path, compress_level=1)
        if progress is not None:
            progress(done, len(plan))
