"""Decoded images on disk: an entry of the cache holds pixels, masks and samples of one category at one size.

An entry knows the hash of its content. A process checks it once, and again when a file of it is another one: what is
cut, exchanged, foreign or without a hash (those of earlier versions) is not used, but decoded anew by `images`.
"""

import fcntl
import hashlib
import json
import math
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from dskd.size import Size, simplest
from harness.data.catalog import Sample
from harness.data.fingerprints import Print
from harness.data.manifest import files_of
from harness.environment import core_count
from harness.spec import digest

FILE = "entry.json"  # all that the arrays do not hold: manifest, size, samples, hashes
ARRAYS = ("images", "masks", "regions")
PIECE = 1 << 20  # bytes that are hashed at a time

Signature = tuple[tuple[int, ...], ...]
_checked: dict[Path, tuple[Signature, list[Sample]]] = {}  # by this process


@dataclass(frozen=True)
class Entry:
    """A checked entry, memory-mapped. `held`: locked while it lives, so that `harness cache --prune` lets it be."""

    samples: list[Sample]
    arrays: dict[str, np.ndarray]
    held: BinaryIO


class Room:
    """A new .npy file whose rows are put in any order, by any thread; those that are not put are zeros.

    All of it is allocated before the first row, so that a full disk is told before the work. Rows are written and not
    mapped: a page fault for every 4 KiB takes longer, and a disk that fails would kill the process.

    Raises:
        OSError: the disk is full or fails, in every method.
    """

    def __init__(self, path: Path, kind: type[np.generic], shape: tuple[int, ...]) -> None:
        self.kind, self.shape = np.dtype(kind), shape
        self.stream = path.open("wb")
        header = {"descr": np.lib.format.dtype_to_descr(self.kind), "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(self.stream, header)
        self.stream.flush()
        self.start, self.step = self.stream.tell(), math.prod(shape[1:]) * self.kind.itemsize
        os.posix_fallocate(self.stream.fileno(), 0, self.start + shape[0] * self.step)

    def put(self, row: int, values: np.ndarray) -> None:
        """Write one row; `values` has the shape and the type of one."""
        if (values.shape, values.dtype) != (self.shape[1:], self.kind):
            raise ValueError(f"a row is {self.shape[1:]} {self.kind}, not {values.shape} {values.dtype}")
        content, place = memoryview(np.ascontiguousarray(values)).cast("B"), self.start + row * self.step
        while content:
            written = os.pwrite(self.stream.fileno(), content, place)
            content, place = content[written:], place + written

    def __enter__(self) -> "Room":
        return self

    def __exit__(self, failure: type[BaseException] | None, *_: object) -> None:
        with self.stream:
            if failure is None:
                os.fsync(self.stream.fileno())


def write(
    work: Path,
    folder: Path,
    of: Mapping[str, Any],
    manifest: str,
    size: Size,
    samples: Sequence[Sample],
    prints: Mapping[str, Print],
) -> None:
    """Complete the folder `work`, which holds the arrays and becomes `folder`. `of`: names for people.

    Raises OSError.
    """
    document = {
        **of,
        "manifest": manifest,
        "size": size,
        "samples": [astuple(sample) for sample in samples],
        "files": {name: prints[name].sha256 for sample in samples for name in files_of(sample)},
        "sha256": {},
    }
    for name in ARRAYS:
        with (work / f"{name}.npy").open("rb") as stream:
            document["sha256"][name] = _sha256(stream)
    (work / FILE).write_text(json.dumps(document | {"digest": digest(document)}))
    files = FILE, *(f"{name}.npy" for name in ARRAYS)
    _checked[folder] = tuple(_signature(os.stat(work / name)) for name in files), list(samples)


def read(folder: Path, manifest: str, size: Size) -> Entry | None:
    """The entry in `folder` if there is one whose content is what its hashes say, of this manifest and size."""
    held = None
    try:
        held = (folder / FILE).open("rb")
        with suppress(OSError):  # no locks on this file system
            fcntl.flock(held, fcntl.LOCK_SH | fcntl.LOCK_NB)
        with ExitStack() as stack:
            streams = {name: stack.enter_context((folder / f"{name}.npy").open("rb")) for name in ARRAYS}
            signature = tuple(_signature(os.fstat(stream.fileno())) for stream in (held, *streams.values()))
            before, samples = _checked.get(folder, (None, []))
            if before != signature:
                samples = _samples(held, streams, manifest, size)
                _checked[folder] = signature, samples
            arrays = {name: _mapped(stream) for name, stream in streams.items()}
        with suppress(OSError):  # the time of its last use
            os.utime(folder)
        return Entry(samples, arrays, held)
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        if held is not None:
            held.close()
        return None


def about(folder: Path) -> dict[str, Any]:
    """What an entry is of, unchecked, as `write` was told; empty where that is not known."""
    try:
        document = json.loads((folder / FILE).read_bytes())
        return document | {"images": len(document["samples"])}
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return {}


def is_used(folder: Path) -> bool:
    """Whether a living process has the entry, as far as locks on its file system tell."""
    try:
        with (folder / FILE).open("rb") as held:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        pass
    return False


def _samples(held: BinaryIO, streams: Mapping[str, BinaryIO], manifest: str, size: Size) -> list[Sample]:
    """Raises ValueError, KeyError or TypeError for an entry that is not what it should be."""
    document = json.loads(held.read())
    content = {key: value for key, value in document.items() if key != "digest"}
    if (document["digest"], document["manifest"], simplest(document["size"])) != (digest(content), manifest, size):
        raise ValueError("another entry, or a damaged one")
    for name, stream in streams.items():
        if _sha256(stream) != document["sha256"][name]:
            raise ValueError(f"{name} is not what was written")
    return [Sample(*sample[:5], *map(tuple, sample[5:])) for sample in document["samples"]]


def _sha256(stream: BinaryIO) -> str:
    """Of the hashes of a file's pieces: the cores share large files."""

    def of_piece(start: int) -> bytes:
        return hashlib.sha256(os.pread(stream.fileno(), PIECE, start)).digest()

    size = os.fstat(stream.fileno()).st_size
    with ThreadPoolExecutor(core_count()) as pool:
        return hashlib.sha256(b"".join(pool.map(of_piece, range(0, size, PIECE)))).hexdigest()


def _signature(found: os.stat_result) -> tuple[int, ...]:
    # The last one tells a new file that got an old one's number and time.
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


def _mapped(stream: BinaryIO) -> np.ndarray:
    """The array of a .npy file that is open: its name may lead to another file by now."""
    stream.seek(0)
    np.lib.format.read_magic(stream)
    shape, _, kind = np.lib.format.read_array_header_1_0(stream)
    return np.memmap(stream, kind, "r", stream.tell(), shape)
