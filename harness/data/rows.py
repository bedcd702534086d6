"""Rows of a table, of whatever format, to samples: what a label and a split may say, what contradicts what. Pure."""

import hashlib
import math
import posixpath
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dskd.config import quoted, require, suggest
from harness.data.catalog import GOOD, DataError, Sample, Source

ANOMALY = "anomaly"  # the defect's name where a label says only that there is one
NORMAL_LABELS = frozenset({"good", "normal", "ok", "0", "false"})
ANOMALOUS_LABELS = frozenset({"1", "true"})  # every other text is a defect's name, but for those that say neither
UNCLEAR_LABELS = frozenset(
    {"nan", "none", "null", "na", "n/a", "unknown", "?", "yes", "no", "y", "n", "t", "f"}
    | {"positive", "negative", "pass", "fail", "free"}
)
SPLITS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}
MOST_NAMED = 3  # rows in one message


@dataclass(frozen=True)
class Row:
    """One image of one category, as its table has it: None for a cell that is empty or a column that is not there.

    `where`: the row in messages (`line 7`); `path`, `masks`: files, relative to the data set's root.
    """

    where: str
    path: str
    split: Any = None
    label: Any = None
    masks: tuple[str, ...] = ()
    group: Any = None


@dataclass(frozen=True)
class Rules:
    """How rows are read.

    Args:
        labelled: there is a column of labels; without one an image is defective where its mask is not empty.
        normal: labels that mean a normal image, beside NORMAL_LABELS; in any case.
        threshold: a pixel is defective where the mask is above it.
        train_share: no split is read; of the normal images this share trains, drawn by a hash of `split_seed` and
            their group (without one: their path), so that a new image moves no other. All the rest is the test set.
    """

    labelled: bool = True
    normal: frozenset[str] = frozenset()
    threshold: int = 0
    train_share: float | None = None
    split_seed: int = 0


Greatest = Callable[[Sequence[str]], Mapping[str, float]]


@dataclass(frozen=True)
class Listed(Source):
    """A data set that is a list of images, with what its entry says of how rows are read.

    Args:
        mask_threshold: a pixel is defective where the mask is above it.
        normal: labels that mean a normal image, beside good, normal, ok, 0 and false.
        train_share: no split is read; this share of the normal images trains, all the rest is the test set.
        split_seed: draws that split; a run's seed never does.
    """

    mask_threshold: int = 0  # type: ignore[misc]  # of the class elsewhere
    normal: tuple[str, ...] = ()
    train_share: float | None = None
    split_seed: int = 0

    def __post_init__(self) -> None:
        where = f"dataset {self.name}"
        require(
            self.mask_threshold >= 0, f"{where}: mask_threshold {self.mask_threshold} is not possible; write 0 or more"
        )
        require(
            self.train_share is None or 0 < self.train_share < 1,
            f"{where}: train_share {self.train_share} is not possible; write a number between 0 and 1, such as 0.8",
        )

    def options(self) -> dict[str, Any]:
        hidden = {"normal", "columns", *(("train_share", "split_seed") if self.train_share is None else ())}
        return {key: value for key, value in super().options().items() if key not in hidden}

    def rules(self, labelled: bool) -> Rules:
        normal = frozenset(word.strip().lower() for word in self.normal)
        return Rules(labelled, normal, self.mask_threshold, self.train_share, self.split_seed)


def to_samples(about: str, rows: Sequence[Row], rules: Rules, greatest: Greatest) -> list[Sample]:
    """The rows of one category as samples, in their order.

    An empty mask of a normal image is left out; a defective image without a mask is one whose truth is unknown at the
    level of pixels.

    Args:
        about: the table, in messages.
        greatest: gives the greatest value of each of the masks, by path; asked only for those that decide something.

    Raises:
        DataError: a label or a split that is not possible, the same path twice, a normal image whose mask is not empty,
            or a defective one that would be trained on: one line, with the first rows and how many there are.
    """
    _refuse_doubles(about, rows)
    labels = [_label(about, row, rules) for row in rows]
    asked = [mask for row, label in zip(rows, labels, strict=True) if label in (None, GOOD) for mask in row.masks]
    tops = greatest(asked) if asked else {}
    marked = [any(tops.get(mask, 0) > rules.threshold for mask in row.masks) for row in rows]
    wrong = [row for row, label, mark in zip(rows, labels, marked, strict=True) if label == GOOD and mark]
    if wrong:
        raise _refused(
            about, wrong, "labelled normal, with a mask that is not empty; correct the label, or remove the mask"
        )
    defects = [label or (ANOMALY if mark else GOOD) for label, mark in zip(labels, marked, strict=True)]
    splits = [_split(about, row, defect, rules) for row, defect in zip(rows, defects, strict=True)]
    trained = [
        row for row, defect, split in zip(rows, defects, splits, strict=True) if defect != GOOD and split != "test"
    ]
    if trained:
        raise _refused(
            about,
            trained,
            "defective and not of the test split, and training takes normal images only; give them the split test, "
            "leave them out, or write train_share: 0.8 in the data set's entry for a new split",
        )
    found = []
    for row, defect, split in zip(rows, defects, splits, strict=True):
        mask, *more = row.masks if defect != GOOD and row.masks else (None,)
        found.append(Sample(row.path, split, defect, mask, text_of(row.group), tuple(more)))
    return found


def inside(about: str, where: str, name: str, root: str) -> str:
    """A file's path as a table has it, relative to the root: `a/./b` is `a/b`, `a\\b` of Windows is `a/b`, and what is
    absolute may lie under the root. Raises DataError for what does not.
    """
    path = name.replace("\\", "/") if "\\" in name and "/" not in name else name
    if posixpath.isabs(path):
        path = posixpath.relpath(path, root)
    path = posixpath.normpath(path)
    if path.split("/")[0] in ("..", "."):
        raise DataError(
            f"{about}, {where}: {quoted(name)} is not in the folder {root}; write root: FOLDER in the data set's "
            "entry, in which all files lie"
        )
    return path


def is_empty(value: Any) -> bool:
    """Whether a cell holds nothing: None, not a number, or a text of blanks."""
    return (
        value is None
        or (isinstance(value, float) and math.isnan(value))
        or (isinstance(value, str) and not value.strip())
    )


def _label(about: str, row: Row, rules: Rules) -> str | None:
    """The defect's name or GOOD; None where the mask tells. Raises DataError."""
    if not rules.labelled:
        return None if row.masks else GOOD
    text = text_of(row.label)
    word = {"0.0": "0", "1.0": "1"}.get(text, text.lower())  # as pandas writes the numbers of a column with empty cells
    if word in NORMAL_LABELS or word in rules.normal:
        return GOOD
    if word in ANOMALOUS_LABELS:
        return ANOMALY
    if word and word not in UNCLEAR_LABELS and not _is_number(word):
        return text
    raise DataError(
        f"{about}, {row.where}: label {quoted(row.label)} is not possible; write good, normal, ok, 0 or false for a "
        "normal image, 1, true or the defect's name for a defective one, or list what else is normal as `normal: "
        "[LABEL]` in the data set's entry"
    )


def _split(about: str, row: Row, defect: str, rules: Rules) -> str:
    if rules.train_share is not None:
        key = f"{rules.split_seed}\0{text_of(row.group) or row.path}"
        drawn = int.from_bytes(hashlib.sha256(key.encode(errors="surrogatepass")).digest()[:8]) / 2**64
        return "train" if defect == GOOD and drawn < rules.train_share else "test"
    split = SPLITS.get(text_of(row.split).lower())
    if split is None:
        raise DataError(
            f"{about}, {row.where}: split {quoted(row.split)} is not possible; {suggest(text_of(row.split), SPLITS)}"
        )
    return split


def _refuse_doubles(about: str, rows: Sequence[Row]) -> None:
    first: dict[str, Row] = {}
    for row in rows:
        other = first.setdefault(row.path, row)
        if other is row:
            continue
        first_split, split = (SPLITS.get(text_of(each.split).lower()) for each in (other, row))
        torn = first_split and split and first_split != split
        what = f"is in the splits {first_split} and {split}" if torn else "is twice"
        raise DataError(f"{about}: {quoted(row.path)} {what} ({other.where}, {row.where}); remove one of them")


def _refused(about: str, rows: Sequence[Row], what: str) -> DataError:
    named = ", ".join(f"{row.where} ({quoted(row.path)})" for row in rows[:MOST_NAMED])
    return DataError(f"{about}: {len(rows)} image(s) {what}; first {named}")


def text_of(value: Any) -> str:
    """A cell as text: 3.0 is `3`, as pandas writes whole numbers of a column with empty cells."""
    if is_empty(value):
        return ""
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value).strip()


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True
