"""Tables to samples: CSV, JSON lines and Parquet with a row for each image."""

import csv
import functools
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar, Literal

from dskd.config import quoted, suggest
from harness.data import fingerprints
from harness.data.catalog import DataError, Sample, readable, register_dataset
from harness.data.rows import Listed, Row, inside, is_empty, text_of, to_samples
from harness.files import user_path

FORMATS = {".csv": "csv", ".tsv": "csv", ".jsonl": "jsonl", ".ndjson": "jsonl", ".parquet": "parquet"}
DELIMITERS = ",;\t"

Cells = Mapping[str, Any]


@dataclass(frozen=True)
class Content:
    """A table as it lies on disk: its columns of texts and numbers, for each row where it is (`line 7`) and its cells,
    and the columns that hold more than that.
    """

    columns: tuple[str, ...]
    rows: tuple[tuple[str, Cells], ...]
    others: tuple[str, ...] = ()


@dataclass(frozen=True)
class Columns:
    """The column of each role; an empty name stands for the column that is called as the role, if there is one."""

    path: str = ""
    split: str = ""
    label: str = ""
    mask: str = ""
    category: str = ""
    group: str = ""


@register_dataset("table")
@dataclass(frozen=True)
class Table(Listed):
    """A CSV, JSON lines or Parquet file with a row for each image: path, split, label, mask, category, group.

    Paths are relative to `root`, by default the table's folder. Only path, one of label and mask, and split (or
    `train_share`) are needed. `columns` maps those that are called otherwise. Samples have the order of the table.

    split: train, val or test (also training; valid, validation, dev; testing). label: good, normal, ok, 0 or false for
    a normal image, 1, true or the defect's name for a defective one; other numbers and words that may mean either
    (yes, none, pass, ...) are refused, unless `normal: [WORD]` names them. Without labels an image is defective where
    its mask is not empty. mask: empty cells where nothing is defective, or where the defective pixels are not known.
    category: without such a column there is one, called as the file. Rows of one group show one object: they are not
    torn apart where the harness draws a split.
    """

    duplicates: Literal["refuse", "keep"] = "refuse"
    file: str = ""
    columns: Columns = field(default_factory=Columns)

    expected: ClassVar[str] = (
        "a .csv, .jsonl or .parquet file with the columns path, split, label, mask, category, group"
    )

    def options(self) -> dict[str, Any]:
        return {key: value for key, value in super().options().items() if key != "file"}

    def folder(self) -> Path:
        return super().folder() if self.root else self._file().parent

    def available(self) -> list[str]:
        content = self._content()
        named = self._named(content)
        if not content.rows:
            raise DataError(f"{self._about()} holds no rows; write one for each image")
        return list(dict.fromkeys(category for category, _, _ in self._by_category(content, named)))

    def samples(self, category: str) -> list[Sample]:
        with readable(self.name):
            about, content, root = self._about(), self._content(), self.folder()
            named, base = self._named(content), str(root.absolute())
            mine = [row[1:] for row in self._by_category(content, named) if row[0] == category]
            rows = [
                _row(about, base, where, {role: cells.get(column) for role, column in named.items()})
                for where, cells in mine
            ]
            _check_files(about, rows, root)
        read = functools.partial(fingerprints.greatest, root, max_megapixels=self.max_megapixels)
        return to_samples(about, rows, self.rules("label" in named), read)

    def _about(self) -> str:
        return f"dataset {self.name}: {self._file()}"

    def _file(self) -> Path:
        if not self.file:
            raise DataError(f"dataset {self.name}: `file` is missing; write {{name: {self.name}, file: PATH.csv}}")
        file = user_path(self.file)
        if self.root and not file.is_absolute() and not file.exists():
            file = user_path(self.root) / file
        if not file.is_file():
            raise DataError(
                f"dataset {self.name}: there is no file {file}; write the path of a .csv, .jsonl or .parquet"
            )
        return file

    def _content(self) -> Content:
        file = self._file()
        found = file.stat()
        return read_table(file, f"dataset {self.name}: {file}", (found.st_size, found.st_mtime_ns, found.st_ino))

    def _named(self, content: Content) -> dict[str, str]:
        path = self.columns.path or "path"
        if path in content.others or (path not in content.columns and content.others):
            raise DataError(
                f"{self._about()} holds its images itself ({', '.join(content.others)}); write "
                f"{{name: hub, data_files: {{train: [{self._file()}]}}}}"
            )
        return columns_of(self._about(), content.columns, self.columns, self.train_share is None)

    def _by_category(self, content: Content, named: Mapping[str, str]) -> Iterator[tuple[str, str, Cells]]:
        """Each row as (category, where, cells)."""
        about, column, alone = self._about(), named.get("category"), self._file().stem
        for where, cells in content.rows:
            yield alone if column is None else _needed(about, where, cells.get(column), "category"), where, cells


def _row(about: str, root: str, where: str, cell: Cells) -> Row:
    """`cell`: by role."""
    mask = cell.get("mask")
    return Row(
        where,
        inside(about, where, _needed(about, where, cell["path"], "path"), root),
        cell.get("split"),
        cell.get("label"),
        () if is_empty(mask) else (inside(about, where, _needed(about, where, mask, "mask"), root),),
        cell.get("group"),
    )


def columns_of(about: str, there: tuple[str, ...], columns: Any, split_needed: bool) -> dict[str, str]:
    """By role the column that it has, of those that are there; `columns`: a dataclass with a field for each role, whose
    first is that of the images. Raises DataError for one that is not there, with the near match.
    """
    named: dict[str, str] = {}
    roles = [each.name for each in fields(columns)]
    for role in roles:
        wanted = getattr(columns, role)
        if wanted and wanted not in there:
            raise DataError(f"{about} has no column {quoted(wanted)} (columns.{role}); {suggest(wanted, there)}")
        if wanted or role in there:
            named[role] = wanted or role
    listed = suggest(roles[0], there) if there else "there are none"
    if roles[0] not in named:
        raise DataError(f"{about} has no column {roles[0]!r}; write columns: {{{roles[0]}: NAME}}: {listed}")
    if "split" not in named and split_needed:
        raise DataError(
            f"{about} has no column 'split'; write columns: {{split: NAME}} ({suggest('split', there)}), or "
            "train_share: 0.8 to draw a split"
        )
    if not named.keys() & {"label", "mask"}:
        raise DataError(
            f"{about} has no column 'label' or 'mask'; write columns: {{label: NAME}}: {suggest('label', there)}"
        )
    return named


@functools.lru_cache(maxsize=4)
def read_table(path: Path, about: str, signature: tuple[int, ...]) -> Content:
    """Read a table, once for each `signature` of its file. Raises DataError for another format or a damaged file."""
    form = FORMATS.get(path.suffix.lower())
    if form is None:
        raise DataError(f"{about} is no table that can be read; write a file that ends in {', '.join(FORMATS)}")
    try:
        return {"csv": _csv, "jsonl": _jsonl, "parquet": _parquet}[form](path, about)
    except UnicodeDecodeError:
        raise DataError(f"{about} is not UTF-8; save it as UTF-8") from None


def _csv(path: Path, about: str) -> Content:
    """Separated by commas, semicolons or tabs, whichever the first line has most of. Every cell is text."""
    with path.open(newline="", encoding="utf-8-sig") as stream:
        head = stream.readline()
        stream.seek(0)
        delimiter = max(DELIMITERS, key=head.count)
        reader = csv.reader(stream, delimiter=delimiter, strict=True)
        rows = []
        try:
            columns = tuple(name.strip() for name in next(reader, []))
            for cells in reader:
                if len(cells) not in (0, len(columns)):
                    raise DataError(
                        f"{about}, line {reader.line_num}: {len(cells)} cells, the first line has {len(columns)}; put "
                        "quotes around a cell that holds the separator"
                    )
                if cells:
                    rows.append((f"line {reader.line_num}", dict(zip(columns, cells, strict=True))))
        except csv.Error as error:
            raise DataError(f"{about}, line {reader.line_num}: it is no CSV ({error}); mend the line") from None
    _refuse_equal(about, columns)
    return Content(columns, tuple(rows))


def _jsonl(path: Path, about: str) -> Content:
    rows = []
    columns: dict[str, None] = {}
    with path.open(encoding="utf-8-sig") as stream:
        for number, line in enumerate(stream, start=1):
            if not line.strip():
                continue
            try:
                cells = json.loads(line)
            except (ValueError, RecursionError):
                cells = None
            if not isinstance(cells, dict):
                raise DataError(f'{about}, line {number}: it is no JSON object; write {{"path": "a.png", ...}}')
            columns |= dict.fromkeys(cells)
            rows.append((f"line {number}", cells))
    return Content(tuple(columns), tuple(rows))


def _parquet(path: Path, about: str) -> Content:
    """Columns of texts and numbers; images within the file are those of the data set `hub`."""
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            plain = [each.name for each in file.schema_arrow if not _holds_bytes(pyarrow.types, each.type)]
            rows = file.read(columns=plain).to_pylist()
            left = tuple(name for name in file.schema_arrow.names if name not in plain)
    except (pyarrow.ArrowException, OSError) as error:
        reason = " ".join(str(error).split())[:200]
        raise DataError(f"{about} is no Parquet that can be read ({reason}); write it anew") from None
    _refuse_equal(about, tuple(plain))
    return Content(tuple(plain), tuple((f"row {number}", cells) for number, cells in enumerate(rows, start=1)), left)


def _holds_bytes(types: Any, kind: Any) -> bool:
    return types.is_nested(kind) or types.is_binary(kind) or types.is_large_binary(kind)


def _refuse_equal(about: str, columns: tuple[str, ...]) -> None:
    twice = next((name for position, name in enumerate(columns) if name in columns[:position]), None)
    if twice is not None:
        raise DataError(f"{about} has two columns {quoted(twice)}; rename one of them")


def _needed(about: str, where: str, value: Any, role: str) -> str:
    if is_empty(value) or isinstance(value, (dict, list)):
        raise DataError(f"{about}, {where}: {role} {quoted(value)} is not possible; write a text")
    return value if isinstance(value, str) else text_of(value)


def _check_files(about: str, rows: list[Row], root: Path) -> None:
    """Raises DataError for files that are not there."""
    gone = [
        (row, name) for row in rows for name in (row.path, *row.masks) if not os.path.lexists(os.path.join(root, name))
    ]
    if gone:
        row, name = gone[0]
        raise DataError(
            f"{about}: {len(gone)} of its files are not there, first {root / name} ({row.where}); paths start from the "
            "table's folder, or from `root` in the data set's entry"
        )
