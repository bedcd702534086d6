"""Which records were found good, kept in the harness's cache: of a large grid it takes a second to read them all again.

A cache that cannot be written or read is not used, without a word: it only saves time.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from harness import schema, shapes
from harness.files import cache_folder, write_atomic

WORTH = 200  # records that were read anew: fewer are not worth a file

Stamp = list[int]  # inode, time and size: another content has another one


def stamp(facts: os.stat_result) -> Stamp:
    return [facts.st_ino, facts.st_mtime_ns, facts.st_size]


def recall(results: Path) -> dict[str, Stamp]:
    """By run id, what is remembered of a results folder. What is no stamp in it equals none."""
    with suppress(OSError, RuntimeError, ValueError):
        found = json.loads(_path(results).read_bytes())
        return found if isinstance(found, dict) else {}
    return {}


def remember(results: Path, good: Mapping[str, Stamp]) -> None:
    with suppress(OSError, RuntimeError, ValueError):
        write_atomic(_path(results), json.dumps(good))


def _path(results: Path) -> Path:
    """Of another gate another file: what it let in says nothing here."""
    gate = b"".join(Path(str(module.__file__)).read_bytes() for module in (schema, shapes))
    key = hashlib.sha256(gate + os.fsencode(results.resolve())).hexdigest()[:32]
    return cache_folder("records") / f"{key}.json"
