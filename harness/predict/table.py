"""The table of predictions, which is the journal too: what is in it is done, and a batch of lines is appended and
synced as one. A line that a killed process left cut off is dropped at the next start.
"""

import csv
import fcntl
import hashlib
import io
import json
import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

from dskd.config import ConfigError, require
from harness.files import write_atomic
from harness.predict.gather import Found
from harness.text import as_json, csv_cell, one_line

FORMATS = ("csv", "jsonl")
STATE = "predict.json"  # beside the table: which model and rate it is of
SCHEMA = 1
MOST_WORST = 24  # pictures with the highest scores that are kept at hand
SPARE = 4  # so many times as many are kept while lines come: a later one of a file replaces an earlier
_NS = 10**9


class Line(NamedTuple):
    """A picture as the table has it; what is not known is None.

    Attributes:
        path: absolute; score: of the image; p_value: how rarely a normal image scores so high; anomalous: whether the
            score is above the threshold.
        left, top, right, bottom: the box of the largest defect in the picture's pixels, right and bottom behind it.
        area: that defect's share of the picture; width, height: of the picture, as its EXIF data turn it.
        bytes, mtime: of the file: with the path the key by which it is known as done.
        error: why it could not be read; empty for all others.
    """

    path: str
    score: float | None = None
    p_value: float | None = None
    anomalous: bool | None = None
    left: int | None = None
    top: int | None = None
    right: int | None = None
    bottom: int | None = None
    area: float | None = None
    width: int | None = None
    height: int | None = None
    bytes: int | None = None
    mtime: str = ""
    heatmap: str = ""
    error: str = ""


def mtime_text(ns: int | None) -> str:
    """ISO 8601 in UTC, with all nanoseconds: no number of a spreadsheet or of JavaScript holds these."""
    if ns is None:
        return ""
    seconds, rest = divmod(ns, _NS)
    try:
        return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%S}.{rest:09d}Z"
    except (OverflowError, ValueError, OSError):  # years that no calendar here has
        return f"{seconds}.{rest:09d}"


def key(path: str, size: int | None, mtime: str) -> int:
    """By which a file is known again. A number, since there may be millions."""
    text = f"{one_line(path)}\0{size}\0{mtime}"
    return int.from_bytes(hashlib.blake2b(text.encode(errors="surrogatepass"), digest_size=12).digest())


def key_of(found: Found) -> int:
    return key(found.path, found.bytes, mtime_text(found.mtime_ns))


@dataclass
class Summary:
    """Of a whole table, in memory that does not grow with it: the number of its lines, and those with the highest
    scores, each path by its last line.
    """

    lines: int = 0
    anomalous: int = 0
    unread: int = 0
    kept: dict[str, Line] = field(default_factory=dict)

    def add(self, line: Line) -> None:
        self.lines += 1
        self.anomalous += bool(line.anomalous)
        self.unread += bool(line.error)
        self.kept.pop(line.path, None)
        if line.score is not None:
            self.kept[line.path] = line
        if len(self.kept) > 2 * SPARE * MOST_WORST:
            self.kept = {each.path: each for each in self._first(SPARE * MOST_WORST)}

    @property
    def worst(self) -> list[Line]:
        """The highest scores, at most MOST_WORST."""
        return self._first(MOST_WORST)

    def _first(self, count: int) -> list[Line]:
        return sorted(self.kept.values(), key=lambda line: (-(line.score or 0.0), line.path))[:count]


class Journal:
    """The table in a folder, open for one process.

    Args:
        folder: made if it is not there; output: csv or jsonl.
        state: what all lines of one table have in common (model, rate); kept beside it.

    Attributes:
        done: keys of the files that are in the table; failed: those of them that could not be read.
        summary: of its lines.

    Raises:
        ConfigError: the folder holds predictions of another model, rate or format, or a table that is none of these,
            another process is at it, or it cannot be written.
    """

    def __init__(self, folder: Path, output: str, state: dict[str, Any]) -> None:
        self.folder, self.output = folder, output
        self.path = folder / f"predictions.{output}"
        self.done: set[int] = set()
        self.failed: set[int] = set()
        self.summary = Summary()
        self.state = {"schema": SCHEMA, "format": output} | state
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._file = self._open()
        except OSError as error:
            raise ConfigError(f"--out: {folder} cannot be written ({error.strerror}); name another folder") from None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        self._file.close()

    def keep(self, **more: Any) -> None:
        """Write down what further belongs to this table. Raises ConfigError."""
        self.state |= more
        self._kept(lambda: write_atomic(self.folder / STATE, as_json(self.state, indent=2) + "\n"))

    def append(self, lines: Sequence[Line]) -> None:
        """All of them or, if this process is killed, maybe the first ones: in one write, then synced.

        Raises:
            ConfigError: the disk is full or lost.
        """
        content = "".join(map(self._text, lines)).encode()
        self._kept(lambda: self._write(content))
        for line in lines:
            self._note(line)

    def _open(self) -> io.FileIO:
        if os.path.lexists(self.path) and not (self.folder / STATE).exists() and self.path.stat().st_size:
            raise ConfigError(f"{self.path} is there without its {STATE}; name another folder, or remove it")
        self._check_state()
        file = io.FileIO(os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644), "r+")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            raise ConfigError(f"another `harness predict` is writing {self.path}; name another folder") from None
        except OSError:
            pass  # a file system without locks
        try:
            self._go_on(file)
        except BaseException:
            file.close()
            raise
        return file

    def _check_state(self) -> None:
        """Against the one that lies there; the first process writes it."""
        path = self.folder / STATE
        try:
            known = json.loads(path.read_text())
        except FileNotFoundError:
            write_atomic(path, as_json(self.state, indent=2) + "\n")
            return
        except ValueError:
            known = None
        if not isinstance(known, dict):
            raise ConfigError(f"{path} is damaged; name another folder, or remove it together with the table")
        for name, value in self.state.items():
            was = known.get(name)
            if was != value:
                raise ConfigError(
                    f"--out: {self.folder} holds predictions of another {name} ({_plain(was)}, now {_plain(value)}); "
                    "name another folder"
                )
        self.state = known

    def _go_on(self, file: io.FileIO) -> None:
        """Drop a cut last line, and learn what is in the table; write the head of a new one."""
        end = 0
        with open(self.path, "rb") as stream:
            for number, content in enumerate(stream, start=1):
                if not content.endswith(b"\n"):
                    break
                line = self._parsed(content, number)
                end += len(content)
                if line:
                    self._note(line)
        if os.fstat(file.fileno()).st_size > end:
            os.ftruncate(file.fileno(), end)
        if not end and self.output == "csv":
            os.write(file.fileno(), (",".join(Line._fields) + "\n").encode())
        os.fsync(file.fileno())
        with suppress(OSError):  # so that the name is on the disk too, where that can be asked for
            folder = os.open(self.folder, os.O_RDONLY)
            os.fsync(folder)
            os.close(folder)

    def _note(self, line: Line) -> None:
        self.summary.add(line)
        if line.bytes is None:  # a file that was not there is asked for again
            return
        mark = key(line.path, line.bytes, line.mtime)
        self.done.add(mark)
        if line.error:
            self.failed.add(mark)

    def _write(self, content: bytes) -> None:
        rest = memoryview(content)
        while rest:
            rest = rest[self._file.write(rest) :]
        os.fsync(self._file.fileno())

    def _kept(self, write: Callable[[], None]) -> None:
        try:
            write()
        except OSError as error:
            raise ConfigError(
                f"{self.folder} cannot be written ({error.strerror or error}); what was written stays, and the same "
                "command goes on from there"
            ) from None

    def _text(self, line: Line) -> str:
        if self.output == "jsonl":
            return as_json({name: None if value == "" else value for name, value in line._asdict().items()}) + "\n"
        text = io.StringIO()
        cells = [int(value) if isinstance(value, bool) else value for value in line]
        csv.writer(text, lineterminator="\n").writerow([csv_cell(cell) for cell in cells])
        return text.getvalue()

    def _parsed(self, content: bytes, number: int) -> Line | None:
        """None for the head of a CSV."""
        try:
            if self.output == "jsonl":
                return Line(**{name: value for name, value in json.loads(content).items() if value is not None})
            (cells,) = csv.reader([content.decode()], strict=True)
            if number == 1:
                require(cells == list(Line._fields), "")
                return None
            return _typed(dict(zip(Line._fields, cells, strict=True)))
        except (ValueError, TypeError, csv.Error, ConfigError):
            raise ConfigError(
                f"line {number} of {self.path} is not as predict writes it; repair or remove it, or name another folder"
            ) from None


def _typed(cells: dict[str, str]) -> Line:
    def value(name: str, text: str) -> Any:
        if name in ("path", "mtime", "heatmap", "error"):
            return text
        if name == "anomalous":
            return text == "1"
        return float(text) if name in ("score", "p_value", "area") else int(text)

    return Line(**{name: value(name, text) for name, text in cells.items() if text})


def _plain(value: Any) -> str:
    return one_line(str(value))
