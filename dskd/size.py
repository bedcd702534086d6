"""Sizes of images: the side of a square, or height and width. No torch is imported here."""

import re
from typing import Annotated, Any

from dskd.config import ConfigError, quoted

Size = int | Annotated[tuple[int, int], "[HEIGHT, WIDTH]"]  # pixels


def sides(size: Size) -> tuple[int, int]:
    """(height, width) in pixels. Raises ValueError for a list of another length, as JSON may hold one."""
    if isinstance(size, (list, tuple)):
        height, width = size
        return height, width
    return size, size


def simplest(size: Size) -> Size:
    """A square by its one side, so that [256, 256] is 256 and has its ids; else (height, width).

    Raises ValueError as `sides` does.
    """
    height, width = sides(size)
    return height if height == width else (height, width)


def size_text(size: Any) -> str:
    """`256` or `256x640` (height x width): as tables, conditions and messages of commands have it. Takes anything: a
    file of others may hold it.
    """
    return "x".join(map(str, size)) if isinstance(size, (list, tuple)) else str(size)


def parse_size(text: str, option: str) -> Size:
    """The inverse of `size_text`, of what was written behind `option`. Raises ConfigError."""
    found = re.fullmatch(r"([0-9]{1,6})(?:x([0-9]{1,6}))?", text)
    if found is None:
        raise ConfigError(f"{option}: {quoted(text)} is not possible; write a side such as 256, or 256x640")
    return simplest((int(found[1]), int(found[2] or found[1])))
