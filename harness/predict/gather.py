"""Which pictures: folders, patterns and files as a user names them, each file once, as it is when it is found."""

import glob
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from dskd.config import ConfigError, require
from harness.data.catalog import IMAGE_SUFFIXES
from harness.data.patterns import is_image, tree
from harness.text import number_of


class Found(NamedTuple):
    """A file by its absolute path, with size (bytes) and modification time (ns since 1970) as they were when it was
    found; None where nothing could be asked.
    """

    path: str
    bytes: int | None
    mtime_ns: int | None


def check(given: Sequence[str], watch: bool) -> None:
    """Raises ConfigError where nothing can come of a name: no such file or folder, a pattern that matches nothing.

    Args:
        watch: a pattern may match nothing yet.
    """
    for text in given:
        if os.path.lexists(text):
            continue
        if not glob.has_magic(text):
            raise ConfigError(f"{text} is no file, folder or pattern; name what is there ('-' reads names)")
        require(watch or bool(glob.glob(text, recursive=True)), f"{text} matches nothing; put a pattern in quotes")


def pictures(given: Iterable[str], apart: Path) -> Iterator[Found]:
    """The picture files in folders (searched to any depth, links followed once, names with a dot in front passed over)
    and of patterns, and every file that is named itself; sorted within each folder and pattern. A name with nothing
    behind it is given too: what reads it says why.

    Args:
        given: as a user wrote them.
        apart: the folder that predictions are written to, of which nothing is taken.

    Raises:
        OSError: a folder that cannot be read.
    """
    own = os.path.realpath(apart)
    for text in given:
        if os.path.isdir(text):
            yield from _within(text, own)
        elif not os.path.lexists(text) and glob.has_magic(text):
            for match in sorted(glob.iglob(text, recursive=True)):
                if os.path.isdir(match):
                    yield from _within(match, own)
                elif is_image(os.path.basename(match)) and not _inside(os.path.dirname(match), own):
                    yield as_it_is(match)
        else:
            yield as_it_is(text)


def once(found: Iterable[Found]) -> Iterator[Found]:
    """Each path once: patterns and folders may overlap."""
    seen: set[int] = set()  # hashes, since millions of paths are much
    for each in found:
        mark = hash(each.path)
        if mark not in seen:
            seen.add(mark)
            yield each


def count(given: Sequence[str], apart: Path) -> int:
    """How many pictures there are. Raises ConfigError for a folder that cannot be read, and where there are none."""
    try:
        total = sum(1 for _ in once(pictures(given, apart)))
    except OSError as error:
        raise ConfigError(f"{error.filename} cannot be read ({error.strerror})") from None
    endings = ", ".join(sorted(IMAGE_SUFFIXES))
    what = given[0] if len(given) == 1 else f"what is named ({number_of(len(given), 'place')})"
    require(total > 0, f"no picture in {what}; files with these endings are taken: {endings}")
    return total


def _within(folder: str, own: str) -> Iterator[Found]:
    for place, _, files in tree(Path(folder), ""):
        if not _inside(place, own):
            yield from (as_it_is(os.path.join(place, name)) for name in sorted(files) if is_image(name))


def _inside(place: str | Path, own: str) -> bool:
    return os.path.join(os.path.realpath(place), "").startswith(os.path.join(own, ""))


def as_it_is(path: str) -> Found:
    """The file as it is now."""
    path = os.path.abspath(path)
    try:
        state = os.stat(path)
    except (OSError, ValueError):  # a name with a NUL, from standard input
        return Found(path, None, None)
    return Found(path, state.st_size, state.st_mtime_ns)
