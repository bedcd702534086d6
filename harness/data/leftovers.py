"""Pictures that lie among those of a data set and are not read: people lose them without a word."""

import os
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path, PurePosixPath

from harness.data.catalog import IMAGE_SUFFIXES, Source

# Pictures that are not read, whatever the layout: they want to be converted.
FOREIGN_SUFFIXES = frozenset(
    f".{name}"
    for name in (
        *("heic", "heif", "gif", "avif", "jxl", "jp2", "tga", "pgm", "ppm", "exr", "hdr", "npy", "npz", "mat"),
        *("dng", "cr2", "cr3", "nef", "arw"),
    )
)


def look(source: Source, used: Collection[str]) -> str:
    """What is left over beside the files `used`, in words; empty where nothing is, or where nothing can be read.

    Args:
        used: images and masks, relative to the source's folder. The folder that holds all of them is searched.
    """
    if not used or source.leaves_pictures or source.limit:
        return ""
    below = os.path.commonpath([os.path.dirname(name) for name in used])
    return text_of(sorted(name for name in _pictures(source.folder(), below) if name not in used))


def text_of(names: Iterable[str]) -> str:
    """`3 .png are not read, first bad/0.png; 2 .heic cannot be read, first a.heic: convert them to .png`. Pure."""
    first: dict[str, str] = {}
    counts: Counter[str] = Counter()
    for name in names:
        suffix = PurePosixPath(name).suffix.lower()
        first.setdefault(suffix, name)
        counts[suffix] += 1
    said = []
    for suffix, count in counts.most_common():
        foreign = suffix in FOREIGN_SUFFIXES
        verb = "cannot be" if foreign else "is not" if count == 1 else "are not"
        advice = ": convert them to .png" if foreign else ""
        said.append(f"{count} {suffix} {verb} read, first {first[suffix]}{advice}")
    return "; ".join(said)


def _pictures(root: Path, below: str) -> Iterator[str]:
    start = len(str(root)) + 1
    for place, folders, files in os.walk(root / below):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        inside = f"{place[start:]}/" if len(place) > len(str(root)) else ""
        for name in files:
            if not name.startswith(".") and PurePosixPath(name).suffix.lower() in IMAGE_SUFFIXES | FOREIGN_SUFFIXES:
                yield f"{inside}{name}"
