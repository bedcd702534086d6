"""Records: what a run leaves on disk, the only bridge between what runs and what reports.

One folder per run, `<results>/<run id>/`: `record.json` exists only for success and is published by link, so the first
of several attempts wins; a failed attempt is `attempts/<n>.json` with its reason. No torch is imported here.
"""

import dataclasses
import json
import marshal
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dskd.config import from_mapping, to_mapping
from harness.files import publish, write_atomic
from harness.spec import Kind

SCHEMA = 1


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
    """An attempt that did not end in a record. `reason`: error, data, diverged, out_of_memory, crashed, timeout, or
    interrupted (told to stop; what was trained is in a checkpoint, from which the next attempt goes on). Peak memory is
    that of the process until then, where it is known.
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


@dataclass(frozen=True)
class Damaged:
    """A run folder whose record cannot be read."""

    folder: Path
    message: str


class Results:
    """One grid's results folder. Only atomic rename, link and create-exclusive are relied on."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def run_folder(self, run_id: str) -> Path:
        return self.folder / run_id

    def done(self) -> set[str]:
        """Ids of the runs that have a record; no record is read."""
        if not self.folder.is_dir():
            return set()
        with os.scandir(self.folder) as entries:
            return {entry.name for entry in entries if os.path.exists(os.path.join(entry.path, "record.json"))}

    def failed(self) -> set[str]:
        """Ids of the runs that have failed attempts and no record."""
        folders = self.folder.glob("*/attempts") if self.folder.is_dir() else []
        return {folder.parent.name for folder in folders} - self.done()

    def publish(self, record: Record, *, replace: bool = False) -> bool:
        """Write the record whole; False if another attempt was first (its record stays, unless `replace`)."""
        path = self.run_folder(record.id) / "record.json"
        content = json.dumps(to_mapping(record), allow_nan=False)
        if replace:
            write_atomic(path, content)
            return True
        return publish(path, content)

    def fail(self, failure: Failure) -> Failure:
        """Write the attempt under the next free number, which the returned failure has."""
        folder = self.run_folder(failure.id) / "attempts"
        number = 1 + max((int(path.stem) for path in folder.glob("*.json") if path.stem.isdigit()), default=0)
        while not publish(folder / f"{number}.json", json.dumps(to_mapping(failure) | {"attempt": number})):
            number += 1
        return dataclasses.replace(failure, attempt=number)

    def record(self, run_id: str, known: dict[bytes, Any] | None = None) -> Record | None:
        """The run's record, None if it has none. Raises ValueError for a damaged one. `known`: see `parse_record`."""
        try:
            with open(os.path.join(self.folder, run_id, "record.json"), "rb") as stream:  # of 10,000 a Path is slow
                return parse_record(stream.read(), known)
        except FileNotFoundError:
            return None

    def last_failure(self, run_id: str) -> Failure | None:
        """The newest failed attempt of a run without a record, None if there is none."""
        folder = self.run_folder(run_id) / "attempts"
        attempts = sorted((path for path in folder.glob("*.json") if path.stem.isdigit()), key=lambda p: int(p.stem))
        return from_mapping(Failure, json.loads(attempts[-1].read_text())) if attempts else None

    def __iter__(self) -> Iterator[Record | Failure | Damaged]:
        """Every run's record, else its last failure; a record that cannot be read is given as Damaged."""
        return self.items(sorted(os.listdir(self.folder)) if self.folder.is_dir() else [])

    def items(self, run_ids: Iterable[str]) -> Iterator[Record | Failure | Damaged]:
        """Those of these runs that have left anything, as by `__iter__`."""
        known: dict[bytes, Any] = {}
        for run_id in run_ids:
            try:
                found = self.record(run_id, known) or self.last_failure(run_id)
            except NotADirectoryError:
                continue
            except (ValueError, TypeError) as error:
                found = Damaged(self.run_folder(run_id), str(error))
            if found is not None:
                yield found


def parse_record(content: str | bytes, known: dict[bytes, Any] | None = None) -> Record:
    """Raises ValueError or TypeError for content that is no record or of a newer schema.

    `known`: parts of earlier records, of which this one takes over those that are equal. The records of a grid are much
    alike: of 10,000 a third of the memory is left.
    """
    document = json.loads(content)
    if not isinstance(document, Mapping) or "schema" not in document:
        raise ValueError("not a record")
    if document["schema"] > SCHEMA:
        raise ValueError(f"schema {document['schema']} is newer than this harness reads ({SCHEMA}); update it")
    record = Record(**document)  # a TypeError for keys that are missing or unknown
    return record if known is None else _shared(record, known)


def _shared(record: Record, known: dict[bytes, Any]) -> Record:
    def share(part: Any) -> Any:
        return known.setdefault(marshal.dumps(part, 2), part)  # version 2 writes what is equal alike

    def of(spec: dict[str, Any]) -> dict[str, Any]:
        return spec | {key: share(spec[key]) for key in ("method", "data", "map") if key in spec}

    spec = of(record.spec)
    if "train" in spec:
        spec["train"] = of(spec["train"])
    return dataclasses.replace(record, spec=spec, environment=share(record.environment))
