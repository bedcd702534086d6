"""Pictures of anomaly maps: the image, its mask outlined, the map over it, and the map alone, side by side."""

from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageDraw, PngImagePlugin
from scipy import ndimage

from harness.data.catalog import Sample
from harness.files import write_atomic
from harness.run_folder import MAP_COLOURS, PANELS, picture_name

_COLOURS = np.array(MAP_COLOURS, np.float64)
OUTLINE = (0, 255, 60)
DIMMED = 0.3  # of its brightness, the image on which is written that its mask is not known


def choose(samples: Sequence[Sample], count: int) -> list[int]:
    """Positions of `count` samples, taken in turn from every kind of defect and from the good ones."""
    kinds: dict[str, list[int]] = {}
    for position, sample in enumerate(samples):
        kinds.setdefault(sample.defect, []).append(position)
    turns = [(i, kind, position) for kind, found in sorted(kinds.items()) for i, position in enumerate(found)]
    return sorted(position for _, _, position in sorted(turns)[:count])


def save_maps(
    folder: Path, samples: Sequence[Sample], images: np.ndarray, masks: np.ndarray, maps: np.ndarray, count: int
) -> None:
    """Write `count` of them as PNG, all on one colour scale so that they can be compared. Where no mask is known its
    place says so: an image without an outline would look like a good one.

    Args:
        images: uint8 (N, H, W, 3); masks: bool (N, H, W); maps: float32 (N, H, W), of the samples.
    """
    if not count:
        return
    folder.mkdir(parents=True, exist_ok=True)
    scale = scale_of(maps)
    for position in choose(samples, count):
        image = np.asarray(images[position])
        outlined = _outlined(image, masks[position]) if samples[position].known else _without_mask(image)
        panels = image, outlined, *coloured(image, maps[position], scale)
        name = picture_name(position, samples[position].defect, samples[position].path)
        write_atomic(folder / name, lambda stream, p=panels: save_panels(stream, p))


def scale_of(maps: np.ndarray) -> tuple[float, float]:
    """Of (N, H, W) maps the values of the darkest and of the brightest colour. A quarter of the images reach that: a
    few hot ones must not make every other map dark.
    """
    return float(np.median(maps[:, ::4, ::4])), float(np.percentile(maps.max(axis=(1, 2)), 75))


def coloured(image: np.ndarray, found: np.ndarray, scale: tuple[float, float]) -> tuple[np.ndarray, np.ndarray]:
    """A map (H, W) in colours over its image, uint8 (H, W, 3), and alone. `scale`: as of `scale_of`."""
    low, high = scale
    level = np.clip((found - low) / max(high - low, 1e-12), 0, 1)
    heat = np.stack([np.interp(level, np.linspace(0, 1, 5), _COLOURS[:, i]) for i in range(3)], axis=-1)
    cover = 0.15 + 0.7 * level[..., None]  # little where the score is low, so that the image stays visible
    return ((1 - cover) * image + cover * heat).astype(np.uint8), heat.astype(np.uint8)


def save_panels(stream: BinaryIO, panels: Sequence[np.ndarray]) -> None:
    """Pictures of one size side by side as PNG, which says how many they are."""
    about = PngImagePlugin.PngInfo()
    about.add_text(PANELS, str(len(panels)))
    Image.fromarray(np.concatenate(panels, axis=1)).save(stream, "PNG", pnginfo=about)


def _outlined(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    outlined = image.copy()
    outlined[ndimage.binary_dilation(mask, iterations=2) & ~mask] = OUTLINE
    return outlined


def _without_mask(image: np.ndarray) -> np.ndarray:
    picture = Image.fromarray((DIMMED * image).astype(np.uint8))
    height, width = image.shape[:2]
    size = max(8, min(height, width) // 8)
    ImageDraw.Draw(picture).text((width / 2, height / 2), "no mask", fill=(255, 255, 255), font_size=size, anchor="mm")
    return np.asarray(picture)
