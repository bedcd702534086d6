"""Files that others may have written or damaged: read with care, and moved out of the way."""

import itertools
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dskd.config import ConfigError
from harness import shapes
from harness.shapes import MisfitError, require_shape

MOST_BYTES = 1 << 26  # of a file that is read whole: what is larger is none of ours


@dataclass(frozen=True)
class Damaged:
    """A run whose record does not pass, by its folder, or another file that does not; and why, in one line."""

    folder: Path
    message: str


def read_file(path: str | os.PathLike[str]) -> tuple[bytes, os.stat_result]:
    """A file's content and facts. Raises OSError, and MisfitError for what is no regular file or too large for us."""
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # a pipe would be waited for
    try:
        facts = os.fstat(handle)
        if not stat.S_ISREG(facts.st_mode):
            kind = "a folder" if stat.S_ISDIR(facts.st_mode) else "no regular file"
            raise MisfitError(f"{os.path.basename(path)} is {kind}")
        if facts.st_size > MOST_BYTES:
            raise MisfitError(f"{os.path.basename(path)} has {facts.st_size} bytes, {MOST_BYTES} at most are expected")
        content = os.read(handle, facts.st_size)
        while part := os.read(handle, 1 << 16):  # a file system may give less at a time than is asked for
            content += part
        return content, facts
    finally:
        os.close(handle)


def read_json(path: Path, check: shapes.Check) -> Any:
    """The document of a file beside the records, of which `checker` gives the check.

    Raises:
        FileNotFoundError: there is none.
        MisfitError: it cannot be read, or is not as its readers rely on.
    """
    try:
        document = shapes.load(read_file(path)[0])
    except FileNotFoundError:
        raise
    except OSError as error:
        raise MisfitError(f"cannot be read ({error.strerror})") from None
    require_shape(document, check)
    return document


def log_tail(path: Path, most_bytes: int = 16_384) -> str:
    """The last lines of a log, of so many bytes at most; empty where there is none or it cannot be read. Lines are
    whole, unless the last one alone is longer.
    """
    with suppress(OSError):
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with open(handle, "rb") as stream:
            size = stream.seek(0, os.SEEK_END)
            stream.seek(max(0, size - most_bytes))
            content = stream.read(most_bytes)
        _, newline, rest = content.partition(b"\n")
        return (rest if size > most_bytes and newline and rest else content).decode(errors="replace")
    return ""


def move_aside(path: Path, why: str) -> Path | None:
    """Rename a file or folder to the first free `<name>.<why>-<n>`; None if it is gone. Raises OSError."""
    try:
        is_folder = stat.S_ISDIR(os.lstat(path).st_mode)
        for number in itertools.count(1):
            target = path.with_name(f"{path.name}.{why}-{number}")
            with suppress(FileExistsError):  # a name of our own first: a rename would replace what another one moved
                target.mkdir() if is_folder else target.touch(exist_ok=False)
                break
        try:
            os.rename(path, target)
        except BaseException:
            target.rmdir() if is_folder else target.unlink()
            raise
    except FileNotFoundError:
        return None
    return target


@contextmanager
def opening(results: Path) -> Iterator[None]:
    """Raises ConfigError where the first files in a results folder cannot be written."""
    try:
        yield
    except OSError as error:
        raise ConfigError(f"--out: {results} cannot be written ({error.strerror}); name another folder") from None


def check_links(folder: Path) -> None:
    """Raises ConfigError for a results folder on a disk that cannot hard-link, by which records are published."""
    first, second = (folder / f".links-{os.uname().nodename}-{os.getpid()}-{part}" for part in "ab")
    try:
        with opening(folder):
            first.write_bytes(b"")
        try:
            os.link(first, second)
        except OSError as error:
            raise ConfigError(
                f"--out: {folder} is on a disk without hard links ({error.strerror}), by which records are published; "
                "name a folder on another disk"
            ) from None
    finally:
        for path in (first, second):
            with suppress(OSError):
                path.unlink()
