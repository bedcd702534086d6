"""Images within `datasets` to files in the cache: bytes as they are, named by content, with an index of the rows."""

import hashlib
import io
import json
import os
import shutil
from collections.abc import Callable, Container, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from harness.data.catalog import DataError
from harness.data.fingerprints import any_size, decoding, read_file
from harness.data.rows import SPLITS, is_empty, text_of
from harness.data.tables import columns_of
from harness.files import cache_folder, in_cache, new_folder, remove_folder

INDEX = "index.json"
ROW = 6  # what a row of it has
PREPARED = "prepared"  # of `datasets`, removed when all is written
SUFFIXES = {"PNG": ".png", "JPEG": ".jpg", "BMP": ".bmp", "TIFF": ".tif", "WEBP": ".webp", "GIF": ".gif", "PPM": ".ppm"}
DIGITS = 20  # of the sha256 in a file's name

Write = Callable[[Path], None]


@dataclass(frozen=True)
class Found:
    """A data set as `datasets` has it.

    Args:
        about: what it is called in messages.
        splits: by name, each a `datasets.Dataset`.
        columns: the entry's, with a field for each role.
        named: the category where nothing else tells it.
        drawn: no split is read.
    """

    about: str
    splits: Mapping[str, Any]
    columns: Any
    named: str
    drawn: bool


def written(key: str, write: Write) -> Path:
    """The folder of that key, filled by `write` if it is not there. Raises CacheError and what `write` raises."""
    folder = cache_folder("hub") / key
    if not _rows(folder):
        _fill(folder, write)
    with suppress(OSError):  # the time of its last use
        os.utime(folder)
    return folder


def mend(key: str, write: Write) -> bool:
    """Write a folder anew in which a file is missing or not what was written; whether there was one."""
    folder = cache_folder("hub") / key
    if _is_intact(folder):
        return False
    with in_cache(folder.parent):
        remove_folder(folder)
    _fill(folder, write)
    return True


def index(folder: Path) -> dict[str, Any]:
    """What was exported: `labelled`, whether there is a column of labels; `rows`, by category (all there are), each
    as [where, file, split, label, files of masks, group].
    """
    return json.loads((folder / INDEX).read_text())


def write(work: Path, found: Found, chosen: tuple[str, ...]) -> None:
    """Write the images of the chosen categories (none: all) and the index into `work`.

    Raises:
        DataError: columns that are not there or hold no images, or an image that is none.
    """
    rows: dict[str, dict[str, list[Any]]] = {}  # by category and file
    categories: dict[str, None] = {}
    labelled = False
    for name, split in found.splits.items():
        prefix, kind = _parts(name)
        roles = columns_of(found.about, tuple(split.column_names), found.columns, not found.drawn and kind is None)
        labelled = labelled or "label" in roles
        undecoded = _undecoded(found.about, split, roles)
        texts = {role: _texts(split, column) for role, column in roles.items() if role not in ("image", "mask")}
        of_row = texts.get("category") or [prefix or found.named] * len(split)
        categories |= dict.fromkeys(of_row)
        for row, category in enumerate(of_row):
            if chosen and category not in chosen:
                continue
            where = f"row {row + 1} of {name}" if name else f"row {row + 1}"
            if not category:
                raise DataError(f"{found.about}, {where}: its category is empty; write a text")
            cells, files = undecoded[row], rows.setdefault(category, {})
            image = _alone(work, _image(work, found.about, where, cells[roles["image"]]), files)
            mask = cells.get(roles.get("mask", ""))
            masks = [] if mask is None else [_image(work, found.about, where, mask)]
            split_of, label, group = (
                texts[role][row] if role in texts else None for role in ("split", "label", "group")
            )
            files[image] = [where, image, split_of or kind, label, masks, group]
    shutil.rmtree(work / PREPARED, ignore_errors=True)
    document = {"labelled": labelled, "rows": {name: list(rows.get(name, {}).values()) for name in categories}}
    (work / INDEX).write_text(json.dumps(document))


def _fill(folder: Path, write: Write) -> None:
    with new_folder(folder, _is_intact) as work:
        write(work)


def _parts(name: str) -> tuple[str, str | None]:
    """`bottle.test` to its category and split; None where a split's name says neither train, validation nor test."""
    prefix, _, last = name.rpartition(".")
    split = SPLITS.get(last.lower())
    return prefix, split


def _undecoded(about: str, split: Any, roles: Mapping[str, str]) -> Any:
    """The split with images as bytes or paths. Raises DataError for columns that hold no images."""
    import datasets

    pictures = [roles[role] for role in ("image", "mask") if role in roles]
    for column in pictures:
        feature = split.features[column]
        if isinstance(feature, datasets.Image):
            split = split.cast_column(column, datasets.Image(decode=False))
        elif not (isinstance(feature, dict) and "bytes" in feature) and getattr(feature, "dtype", "") != "binary":
            raise DataError(f"{about}: column {column!r} holds no images ({feature}); a list of files is `table`'s")
    return split.select_columns(pictures)


def _texts(split: Any, column: str) -> list[str]:
    """A column's cells as text, classes by their names."""
    import datasets

    feature, cells = split.features[column], split[column]
    if isinstance(feature, datasets.ClassLabel):
        return ["" if is_empty(cell) or cell < 0 else feature.int2str(cell) for cell in cells]
    return [text_of(cell) for cell in cells]


def _image(work: Path, about: str, where: str, cell: Any) -> str:
    """Write one image, if it is not there; its name. Raises DataError."""
    content, path = (cell.get("bytes"), cell.get("path")) if isinstance(cell, dict) else (cell, None)
    if not content and path:
        content = read_file(path)
    if not content:
        raise DataError(f"{about}, {where}: there is no image; leave the row out")
    with decoding(f"{about}, {where}"), any_size(), Image.open(io.BytesIO(content)) as image:
        suffix = SUFFIXES.get(image.format or "", ".img")
    name = f"images/{hashlib.sha256(content).hexdigest()[:DIGITS]}{suffix}"
    target = work / name
    if not target.exists():
        target.parent.mkdir(exist_ok=True)
        target.write_bytes(content)
    return name


def _alone(work: Path, name: str, used: Container[str]) -> str:
    """A name for an image that has none of the same bytes before it in its category: `NAME-2.png` for the second."""
    place, number = name, 1
    while place in used:
        number += 1
        path = Path(name)
        place = f"images/{path.stem}-{number}{path.suffix}"
    if place != name and not (work / place).exists():
        shutil.copyfile(work / name, work / place)
    return place


def _rows(folder: Path) -> list[list[Any]]:
    """All rows of an index; none where it is not there, or damaged."""
    try:
        return [row for each in index(folder)["rows"].values() for row in each if len(row) == ROW]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return []


def _is_intact(folder: Path) -> bool:
    """Whether every file that the index names is there with the content that its name says."""
    rows = _rows(folder)
    try:
        return bool(rows) and all(
            _is_whole(folder / name) for name in {name for row in rows for name in (row[1], *row[4])}
        )
    except (OSError, TypeError):
        return False


def _is_whole(path: Path) -> bool:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:DIGITS] == path.stem.partition("-")[0]
