"""Deep pictures, of more than 8 bits a value: one rule for what becomes black and what white.

The data set's `range` [low, high] is mapped to 0..255 in equal steps, by default all that the file's type can hold (an
unsigned picture of 16 bits: 0..65535). The type is told by the format, never by the pixels, so that two pictures of one
data set are always mapped alike. Pillow opens colour pictures of 16 bits as 8: they are not deep here.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from PIL import Image

from harness.data.catalog import DataError, Source

if TYPE_CHECKING:  # numpy comes with the first deep picture: most plans need none of it
    import numpy as np

Range = tuple[float, float]

BITS, FORMAT, SIGNED = 258, 339, 2  # tags of TIFF files, and the value of the second
STRIP = 1 << 22  # values that are mapped at a time: eight bytes each
ENOUGH = 1 / 8  # of the range, which the values of a category should fill


@dataclass(frozen=True)
class Deep:
    """The deep pictures of a category with one range: how many, their least and greatest value, and how many of them
    have values outside of the range.
    """

    range: Range
    files: int
    least: float
    greatest: float
    clipped: int


def is_deep(image: Image.Image) -> bool:
    """Whether the picture, opened or decoded, has more than 8 bits a value: its mode is I, I;16 (of any kind) or F."""
    return image.mode[0] in "IF"


def kind_of(image: Image.Image) -> str | None:
    """The type of a file's values where it is deep, from a picture as Pillow opened it: `u16`, `i16`, `u12`, `u32`,
    `i32`, `f32`; else None.
    """
    if not is_deep(image):
        return None
    if image.mode == "F":
        return "f32"
    if image.format == "TIFF":
        tags = image.tag_v2
        bits = tags.get(BITS, (16 if image.mode.startswith("I;16") else 32,))[0]
        return f"{'i' if tags.get(FORMAT, (1,))[0] == SIGNED else 'u'}{bits}"
    # Before Pillow 11 a grey PNG of 16 bits has the mode I; so has a PGM file in every version.
    return "u16" if image.mode.startswith("I;16") or image.format in ("PNG", "PPM") else "i32"


class Ranged(Protocol):
    """What knows the range of its deep pictures, such as a `Source`; `name`: of the data set."""

    @property
    def name(self) -> str: ...

    @property
    def range(self) -> Range | None: ...


def range_of(source: Ranged, kind: str) -> Range:
    """What is mapped to 0..255. Raises DataError for floating point values without a `range`."""
    if source.range is not None:
        return source.range
    if kind == "f32":
        raise DataError(
            f"dataset {source.name}: it has pictures of floating point values, whose black and white nothing tells; "
            "write range: [LOW, HIGH] in its entry"
        )
    bits = int(kind[1:])
    return (-(2.0 ** (bits - 1)), 2.0 ** (bits - 1) - 1) if kind[0] == "i" else (0.0, 2.0**bits - 1)


def values_of(image: Image.Image, kind: str) -> "np.ndarray":
    """The values (H, W) of a deep picture as the file means them."""
    import numpy as np

    values = np.asarray(image)
    return values.view(np.uint32) if kind == "u32" and values.dtype == np.int32 else values


def eight_bits(image: Image.Image, kind: str, bounds: Range) -> Image.Image:
    """The picture with `bounds` mapped to 0..255 (mode L), rounded; what lies outside is clipped. Raises ValueError for
    values that are not finite.
    """
    import numpy as np

    values = values_of(image, kind)
    if values.dtype.itemsize == 2:
        every = np.arange(65536).astype(np.uint16).view(values.dtype.newbyteorder("=")).astype(np.float64)
        return Image.fromarray(_mapped(every, bounds)[values.astype(values.dtype.newbyteorder("=")).view(np.uint16)])
    if kind == "f32" and not np.isfinite(values).all():
        raise ValueError("it has values that are not finite")
    flat, mapped = values.reshape(-1), np.empty(values.size, np.uint8)
    for start in range(0, values.size, STRIP):
        mapped[start : start + STRIP] = _mapped(flat[start : start + STRIP].astype(np.float64), bounds)
    return Image.fromarray(mapped.reshape(values.shape))


def _mapped(values: "np.ndarray", bounds: Range) -> "np.ndarray":
    import numpy as np

    low, high = bounds
    return np.rint((values.clip(low, high) - low) * 255 / (high - low)).astype(np.uint8)


def summary(source: Source, pictures: Iterable[tuple[str, float, float]]) -> tuple[Deep, ...]:
    """What a plan tells of deep pictures, each given as its type, least and greatest value. Raises as `range_of`."""
    groups: dict[Range, list[tuple[float, float]]] = {}
    for kind, least, greatest in pictures:
        groups.setdefault(range_of(source, kind), []).append((least, greatest))
    found = []
    for (low, high), each in sorted(groups.items()):
        least, greatest = min(least for least, _ in each), max(greatest for _, greatest in each)
        clipped = sum(least < low or greatest > high for least, greatest in each)
        found.append(Deep((low, high), len(each), least, greatest, clipped))
    return tuple(found)


def remarks(found: Mapping[tuple[Source, str], tuple[Deep, ...]]) -> list[str]:
    """One line for each category and range with deep pictures: the values, what is clipped, and a better `range`."""
    lines = []
    for (source, category), groups in found.items():
        of_source = [deep for (other, _), each in found.items() if other == source for deep in each]
        least, greatest = min(deep.least for deep in of_source), max(deep.greatest for deep in of_source)
        better = text_of((least, max(greatest, least + 1)))
        for deep in groups:
            low, high = deep.range
            line = (
                f"{source.name} {category}: {deep.files} deep pictures, range {text_of(deep.range)}, values from "
                f"{_number(deep.least)} to {_number(deep.greatest)}"
            )
            if deep.clipped:
                line += f"; warning: values of {deep.clipped} of them lie outside and are clipped"
            if deep.greatest - deep.least < ENOUGH * (high - low):
                line += f"; warning: they fill less than an eighth of it, write range: {better} in the data set's entry"
            lines.append(line)
    return lines


def text_of(bounds: Range) -> str:
    """As a grid writes it: `[0, 65535]`."""
    return f"[{', '.join(map(_number, bounds))}]"


def _number(value: float) -> str:
    return str(int(value)) if float(value).is_integer() else repr(float(value))
