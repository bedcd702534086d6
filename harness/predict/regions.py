"""The largest defect of a map, in pixels of the picture that the map was made of."""

import functools
import math
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from harness.predict.content import Preparation


@dataclass(frozen=True)
class Box:
    """In pixels from the upper left corner; right and bottom are where it ends."""

    left: int
    top: int
    right: int
    bottom: int


@dataclass(frozen=True)
class Defect:
    """`box`: in the picture's pixels; `inner`: in the map's; `area`: share of the picture's pixels."""

    box: Box
    inner: Box
    area: float


def largest(found: np.ndarray, threshold: float | None, how: Preparation, size: tuple[int, int]) -> Defect | None:
    """The 8-connected region of most positions above the threshold; None where there is none, or no threshold.

    Args:
        found: (H, W) map; how: pictures became what the networks see; size: width and height of the picture.
    """
    if threshold is None:
        return None
    rows, columns = _of_picture(how, size)
    labels, count = ndimage.label((found > threshold) & rows[:, None] & columns, np.ones((3, 3)))
    if not count:
        return None
    sizes = np.bincount(labels.ravel())[1:]
    which = int(sizes.argmax())
    down, across = ndimage.find_objects(labels)[which]
    inner = Box(across.start, down.start, across.stop, down.stop)
    left, top, right, bottom = how.in_picture((inner.left, inner.top, inner.right, inner.bottom), size)
    box = Box(math.floor(left), math.floor(top), math.ceil(right), math.ceil(bottom))
    wide, high = pixel_size(how, size)
    return Defect(box, inner, min(1.0, float(sizes[which]) * wide * high / (size[0] * size[1])))


@functools.lru_cache(maxsize=1024)
def pixel_size(how: Preparation, size: tuple[int, int]) -> tuple[float, float]:
    """How many of a picture's pixels one of its map is wide and high."""
    height, width = how.sides
    row, column = height // 2, width // 2  # padding is at the edges
    left, top, right, bottom = how.in_picture((column, row, column + 1, row + 1), size)
    return right - left, bottom - top


@functools.lru_cache(maxsize=1024)
def _of_picture(how: Preparation, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Which rows and columns of a map are of the picture, and not of what was put around it."""
    height, width = how.sides
    boxes = [how.in_picture((0, row, width, row + 1), size) for row in range(height)]
    rows = np.array([bottom > top for _, top, _, bottom in boxes], np.bool_)
    boxes = [how.in_picture((column, 0, column + 1, height), size) for column in range(width)]
    return rows, np.array([right > left for left, _, right, _ in boxes], np.bool_)
