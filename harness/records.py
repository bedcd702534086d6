"""Records: what a run leaves on disk, the only bridge between what runs and what reports.

One folder per run, `<results>/<run id>/`: `record.json` exists only for success and is published by link, so the first
of several attempts wins; a failed attempt is `attempts/<n>.json` with its reason. Whoever reads one comes through
`parse_record` or `Results`: what is not as readers rely on is named as `Damaged`, counts as not done, and is set aside
by the next `harness run`. No torch is imported here.
"""

import dataclasses
import errno
import json
import marshal
import os
import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dskd.config import ConfigError, field_types, to_mapping
from harness import remembered, schema, shapes
from harness.files import publish, write_atomic
from harness.foreign import Damaged, move_aside, read_file
from harness.run_folder import BESIDE_RUNS, RECORD, RunFolder
from harness.shapes import MisfitError, checker, require_shape, require_whole_characters
from harness.spec import Kind
from harness.text import one_line

SCHEMA = 1
_ID = re.compile("[0-9a-f]{16}")  # as `spec.digest` makes them
_RECORD, _FAILURE = checker(schema.RECORD), checker(schema.FAILURE)
_CONTENT = {kind: checker(shape) for kind, shape in schema.CONTENT.items()}


@dataclass(frozen=True)
class Record:
    """The result of one piece of work: what it was (`spec`), what came out (`result`), where and how long.

    `spec` and `result` are plain data: the spec as `to_mapping` gives it, the result with units in its keys.
    """

    kind: Kind
    id: str
    spec: dict[str, Any]
    result: dict[str, Any]
    environment: dict[str, Any]
    started_at: str
    wall_s: float
    grid: str = ""
    schema: int = SCHEMA


@dataclass(frozen=True)
class Failure:
    """An attempt that did not end in a record. `reason`: error, data, diverged, out_of_memory, device (a GPU
    failed, or this process's context on it), crashed, timeout, or interrupted (told to stop; what was trained is in a
    checkpoint, from which the next attempt goes on). Peak memory is that of the process until then, where it is known.
    """

    kind: Kind
    id: str
    spec: dict[str, Any]
    reason: str
    message: str
    traceback: str
    started_at: str
    environment: dict[str, Any]
    attempt: int = 0
    peak_host_memory_mib: float | None = None
    peak_device_memory_mib: float | None = None
    schema: int = SCHEMA


_RECORD_KEYS, _FAILURE_KEYS = (frozenset(field_types(cls)) for cls in (Record, Failure))


class RecordError(MisfitError):
    """A record that does not pass the gate: one line with what is wrong."""


class UnreadableError(RecordError, OSError):
    """A record of which this harness can tell nothing: of another user, on a lost disk, of a newer schema. It may be
    good, so it is never moved.
    """


class FolderError(ConfigError, OSError):
    """A results folder that cannot be listed."""


@dataclass(frozen=True)
class Survey:
    """What lies in a results folder: ids of runs that have a record, of those that have attempts and none, and what is
    damaged.
    """

    done: set[str]
    failed: set[str]
    damaged: list[Damaged]


class Results:
    """One grid's results folder. Only atomic rename, link and create-exclusive are relied on.

    A record that was found good once is not read again to know that it is there, as long as it is the same file (inode,
    time and size), by this object and, in the harness's cache, by others.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._good: dict[str, remembered.Stamp] = {}
        self._recalled = False

    def run_folder(self, run_id: str) -> RunFolder:
        return RunFolder(self.folder / run_id)

    def survey(self) -> Survey:
        """Look at every run. Nothing is written but to the cache. Raises FolderError."""
        found = Survey(set(), set(), [])
        names = self._names()
        if not self._recalled:
            self._recalled, self._good = True, (remembered.recall(self.folder) if names else {}) | self._good
        known = set(self._good)
        for name in names:
            try:
                there = self._passes(name)
            except RecordError as error:
                there = False
                found.damaged.append(Damaged(self.run_folder(name).path, str(error)))
            if there:
                found.done.add(name)
            elif os.path.isdir(f"{self.folder}/{name}/attempts"):
                found.failed.add(name)
        if len(found.done - known) >= remembered.WORTH:
            remembered.remember(self.folder, {run_id: self._good[run_id] for run_id in found.done})
        return found

    def _names(self) -> list[str]:
        """Of what lies in the folder, sorted; empty where it is not there. Raises FolderError."""
        try:
            return sorted(os.listdir(self.folder))
        except (FileNotFoundError, NotADirectoryError):
            return []
        except OSError as error:
            raise FolderError(f"{self.folder} cannot be read ({error.strerror}); name another results folder") from None

    def done(self) -> set[str]:
        """Ids of the runs that have a record which passes."""
        return self.survey().done

    def failed(self) -> set[str]:
        """Ids of the runs that have failed attempts and no record which passes."""
        return self.survey().failed

    def has(self, run_id: str) -> bool:
        """Whether the run has a record that passes. Raises OSError where it cannot be read, so that none can tell."""
        try:
            return self._passes(run_id)
        except UnreadableError as error:
            raise error.__cause__ or error from None
        except RecordError:
            return False

    def publish(self, record: Record, *, replace: bool = False) -> bool:
        """Write the record whole; False if another attempt was first (its record stays, unless `replace`). One that is
        there and does not pass is set aside.

        Raises:
            OSError: it cannot be written, or what is there can be neither read nor moved.
            ValueError: the record would not pass itself.
        """
        path = self.run_folder(record.id).record
        content = json.dumps(to_mapping(record), allow_nan=False)
        parse_record(content)
        if replace:
            if os.path.isdir(path):  # no file can take its place
                self._set_aside(record.id)
            write_atomic(path, content)
            return True
        while not publish(path, content):
            if self.has(record.id):
                return False
            self._set_aside(record.id)
        return True

    def set_aside(self, run_ids: Collection[str] | None = None, seen: Survey | None = None) -> list[Damaged]:
        """Rename the records of these runs (all if None) that do not pass to `record.json.damaged-<n>`, so that they
        can be done again; what was moved, by its new path. What cannot be read or moved stays: its run will tell.
        `seen`: a look that was taken already.
        """
        moved = []
        for damaged in (seen or self.survey()).damaged:
            run_id = damaged.folder.name
            if run_ids is None or run_id in run_ids:
                with suppress(OSError):
                    if not self.has(run_id) and (target := self._set_aside(run_id)):
                        moved.append(Damaged(target, damaged.message))
        return moved

    def fail(self, failure: Failure) -> Failure:
        """Write the attempt under the next free number, which the returned failure has. Raises OSError."""
        folder = self.run_folder(failure.id).attempts
        number = 1 + max(_numbers(folder), default=0)
        while not publish(folder / f"{number}.json", json.dumps(to_mapping(failure) | {"attempt": number})):
            number += 1
        return dataclasses.replace(failure, attempt=number)

    def record(self, run_id: str, known: dict[bytes, Any] | None = None) -> Record | None:
        """The run's record, None if it has none. Raises RecordError for one that does not pass. `known`: see
        `parse_record`.
        """
        found = self._read(run_id)
        return None if found is None else _own(run_id, found[0], known)

    def last_failure(self, run_id: str) -> Failure | None:
        """The newest failed attempt that can be read, None if there is none. Raises nothing."""
        return next((found for found in self._attempts(run_id) if isinstance(found, Failure)), None)

    def __iter__(self) -> Iterator[Record | Failure | Damaged]:
        """Every run's record, else its last failure; what does not pass is given as Damaged. Raises FolderError."""
        return self.items(self._names())

    def items(self, run_ids: Iterable[str]) -> Iterator[Record | Failure | Damaged]:
        """Those of these runs that have left anything, as by `__iter__`."""
        known: dict[bytes, Any] = {}
        for run_id in run_ids:
            try:
                found = self.record(run_id, known)
            except RecordError as error:
                found = Damaged(self.run_folder(run_id).path, str(error))
            if found is not None:
                yield found
            else:
                yield from self._attempts(run_id)

    def _attempts(self, run_id: str) -> Iterator[Failure | Damaged]:
        """The newest attempt that passes, after those newer ones that do not."""
        folder = self.run_folder(run_id).attempts
        for number in sorted(_numbers(folder), reverse=True):
            path = folder / f"{number}.json"
            try:
                yield Failure(**_document(read_file(path)[0], _FAILURE, _FAILURE_KEYS))
                return
            except FileNotFoundError:
                continue
            except (OSError, MisfitError) as error:
                yield Damaged(path, _reason(error))

    def _passes(self, run_id: str) -> bool:
        """Whether the run has a record that passes; it is read only if it is not known. Raises RecordError for one that
        does not pass.
        """
        known = self._good.get(run_id)
        if known is not None:
            try:
                if remembered.stamp(os.stat(f"{self.folder}/{run_id}/{RECORD}")) == known:
                    return True
            except OSError:
                pass
            del self._good[run_id]
        found = self._read(run_id)
        if found is None:
            return False
        _own(run_id, found[0])
        self._good[run_id] = remembered.stamp(found[1])
        return True

    def _read(self, run_id: str) -> tuple[bytes, os.stat_result] | None:
        """What is in a run's record.json, None if it has none. Raises RecordError."""
        path = f"{self.folder}/{run_id}/{RECORD}"  # of 10,000 a Path is slow
        try:
            return read_file(path)
        except MisfitError as error:
            raise RecordError(_reason(error)) from None
        except FileNotFoundError:
            if os.path.islink(path):
                raise RecordError(f"{RECORD} is a link to nothing") from None
            return None
        except NotADirectoryError:  # a file beside the runs, such as grid.yaml
            if _ID.fullmatch(run_id):
                raise RecordError("is a file where the folder of a run should be") from None
            return None
        except OSError as error:
            if run_id in BESIDE_RUNS:
                return None
            kind = RecordError if error.errno == errno.ELOOP else UnreadableError
            raise kind(f"{RECORD} cannot be read ({error.strerror})") from error

    def _set_aside(self, run_id: str) -> Path | None:
        """Move the run's record.json out of the way; None if another supervisor was first. Raises OSError."""
        path = self.run_folder(run_id).record
        target = move_aside(path, "damaged")
        self._good.pop(run_id, None)
        if target is not None:
            with suppress(OSError, MisfitError):  # another one has set it aside and done the run since: it goes back
                _own(run_id, read_file(target)[0])
                os.link(target, path)
                target.unlink()
                return None
        return target


def parse_record(content: str | bytes, known: dict[bytes, Any] | None = None) -> Record:
    """The record that the content is: the one gate through which all of them come.

    `known`: parts of earlier records, of which this one takes over those that are equal. The records of a grid are much
    alike: of 10,000 a third of the memory is left.

    Raises:
        RecordError: content that is no record of a kind that this harness knows, or lacks what readers rely on, or
            holds what no run can have measured. UnreadableError: one of a newer schema.
    """
    content = content.encode(errors="surrogatepass") if isinstance(content, str) else content
    try:
        document = _document(content, _RECORD, _RECORD_KEYS)
        if b"\\u" in content:
            require_whole_characters(document)
        if known is not None:
            _share(document, known)
        require_shape(document, _CONTENT[document["kind"]])
    except UnreadableError:
        raise
    except MisfitError as error:
        raise RecordError(str(error)) from None
    return Record(**document)


def _share(document: dict[str, Any], known: dict[bytes, Any]) -> None:
    """Put the parts that are equal to known ones in their place."""
    spec = document["spec"]
    inner = spec.get("train")
    for mapping, keys in (
        (document, ("environment",)),
        (spec, ("method", "data", "map")),
        (inner if type(inner) is dict else {}, ("method", "data")),
    ):
        for key in keys:
            if key in mapping:
                part = mapping[key]
                mapping[key] = known.setdefault(marshal.dumps(part, 2), part)  # version 2 writes what is equal alike


def damage_line(damaged: Sequence[Damaged]) -> list[str]:
    """What is said of records that do not pass: one line, none where all do."""
    if not damaged:
        return []
    first, more = damaged[0], len(damaged) - 1
    what = f"{more + 1} damaged records count" if more else "a damaged record counts"
    said = f"{what} as not done, and the next `harness run` sets aside what it can and does it again"
    return [f"{said}: {first.folder}: {first.message}" + (f"; and {more} more" if more else "")]


def skipped_lines(skipped: Sequence[Damaged], most: int = 5) -> list[str]:
    """A line for each of the first files that were passed over, and one that counts the others."""
    lines = [f"skipped {each.folder}: {each.message}" for each in skipped[:most]]
    return lines + ([f"skipped {len(skipped) - most} more damaged files"] if len(skipped) > most else [])


def _own(run_id: str, content: bytes, known: dict[bytes, Any] | None = None) -> Record:
    """The record in the folder of this run. Raises RecordError."""
    record = parse_record(content, known)
    if record.id != run_id:
        raise RecordError(f"is the record of run {one_line(record.id)[:16]}, not of this folder")
    return record


def _document(content: bytes, check: shapes.Check, keys: frozenset[str]) -> dict[str, Any]:
    """A document of this schema and no other keys. Raises MisfitError."""
    document = shapes.load(content)
    number = document.get("schema") if isinstance(document, dict) else None
    if type(number) is not int:
        raise MisfitError("not a record: it has no schema")
    if number > SCHEMA:
        raise UnreadableError(f"schema {number} is newer than this harness reads ({SCHEMA}); update it")
    require_shape(document, check)
    if not document.keys() <= keys:
        raise MisfitError(f"unknown key {one_line(repr(min(document.keys() - keys)))[:60]}")
    return document


def _numbers(folder: Path) -> list[int]:
    """Of the attempts in a run's folder of them; empty where there is none or it cannot be listed."""
    try:
        names = os.listdir(folder)
    except OSError:
        return []
    return [int(match[1]) for name in names if (match := re.fullmatch("([0-9]{1,9})[.]json", name))]


def _reason(error: OSError | MisfitError) -> str:
    return str(error) if isinstance(error, MisfitError) else f"cannot be read ({error.strerror})"
