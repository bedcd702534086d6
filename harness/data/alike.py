"""Pictures that are nearly the same: another compression, size or exposure of one scene, where it was copied.

A picture becomes 1,024 bits: it is brought to 32x32 grey values, the mean picture of its category is taken off (what
all pictures of a product share says nothing), and a bit says whether a value is above the picture's median. Two
pictures are nearly the same where at most one bit in twelve differs; of two that have nothing to do with each other
half of them do. Our choice; what it finds in a data set whose copies are known is in docs/data.md.
"""

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image, ImageOps

from harness.data import depth
from harness.data.fingerprints import Progress, any_size, decoding
from harness.environment import core_count

if TYPE_CHECKING:
    import numpy as np

SIDE = 32
MOST_DIFFERENT = SIDE * SIDE // 12  # bits
MOST_NAMED = 3
ENOUGH = 8  # pictures, before their mean says what they share
BLOCK = 1024  # pictures that are compared at a time


def thumbnails(root: Path, names: Sequence[str], progress: Progress | None = None) -> "dict[str, np.ndarray | None]":
    """By name the picture as float32 (32, 32), decoded whole; None for a constant one.

    Raises:
        DataError: a file that cannot be decoded.
    """
    found = {}
    with any_size(), ThreadPoolExecutor(core_count()) as pool:
        small = pool.map(lambda name: _thumbnail(root / name), names)
        for done, (name, values) in enumerate(zip(names, small, strict=True), start=1):
            found[name] = values
            if progress:
                progress(done, len(names))
    return found


def line(found: Sequence[tuple[str, str, int]], tested: int) -> str:
    """What there is to say of `pairs`, of so many test pictures."""
    how = f"at most {MOST_DIFFERENT} of {SIDE * SIDE} bits of a {SIDE}x{SIDE} outline differ"
    if not found:
        return f"no test picture is nearly the same as one of training ({how})"
    named = "; ".join(f"{train} and {test}" for train, test, _ in found[:MOST_NAMED])
    are = "is" if len(found) == 1 else "are"
    return (
        f"{len(found)} of {tested} test pictures {are} nearly the same as one of training ({how}), first "
        f"{named}; where they show one object, give them a group"
    )


def _thumbnail(path: Path) -> "np.ndarray | None":
    import numpy as np

    with decoding(path), Image.open(path) as image:
        kind = depth.kind_of(image)
        if kind:
            values = depth.values_of(image, kind).astype(np.float32)
            low, high = float(values.min()), float(values.max())
            grey = Image.fromarray(values)
        else:
            grey = image.convert("L")
            low, high = grey.getextrema()
        grey = ImageOps.exif_transpose(_with_exif(grey, image))
    if low == high:
        return None
    return np.asarray(grey.resize((SIDE, SIDE), Image.Resampling.BOX), np.float32)


def _with_exif(grey: Image.Image, image: Image.Image) -> Image.Image:
    grey.getexif().load(image.getexif().tobytes())
    return grey


def pairs(train: "Mapping[str, np.ndarray]", test: "Mapping[str, np.ndarray]") -> list[tuple[str, str, int]]:
    """Of each test picture the train picture that is nearest to it, where they are nearly the same: (train, test, bits
    that differ), the nearest first.

    Args:
        train, test: by name values of (32, 32), of one category.
    """
    import numpy as np

    if not train or not test:
        return []
    first, second = np.stack(list(train.values())), np.stack(list(test.values()))
    every = np.concatenate([first, second])
    mean = every.mean(0) if len(every) >= ENOUGH else np.zeros((SIDE, SIDE), np.float32)
    known, asked = (_signs(values, mean) for values in (first, second))
    names, found = list(train), []
    for start in range(0, len(asked), BLOCK):
        agree = asked[start : start + BLOCK] @ known.T  # equal bits less different ones
        nearest = agree.argmax(1)
        different = (SIDE * SIDE - agree[np.arange(len(agree)), nearest]) / 2
        for name, near, bits in zip(list(test)[start : start + BLOCK], nearest, different, strict=True):
            if bits <= MOST_DIFFERENT:
                found.append((names[near], name, round(float(bits))))
    return sorted(found, key=lambda pair: pair[2])


def _signs(values: "np.ndarray", mean: "np.ndarray") -> "np.ndarray":
    """float32 (N, 1024) of -1 and 1."""
    import numpy as np

    rest = (values / values.mean((1, 2), keepdims=True).clip(1e-9) * mean.mean() - mean).reshape(len(values), -1)
    if not mean.any():
        rest = values.reshape(len(values), -1)
    return np.where(rest > np.median(rest, 1, keepdims=True), np.float32(1), np.float32(-1))
