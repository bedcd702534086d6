"""Files that several rooms write: always whole, never half. And the cache: what can be made again."""

import errno
import fcntl
import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from dskd.config import ConfigError

Content = str | bytes | Callable[[BinaryIO], object]

UNWRITABLE = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS})  # a disk that is full or lost


LOCK = ".lock"  # in a temporary folder, held by the process that fills it
LEFT_S = 24 * 3600.0  # after which a temporary folder counts as left where no lock can tell

# The name of a temporary file or folder is that of what it becomes, between a dot and eight random characters.
TEMPORARY = ".*.????????"


class CacheError(ConfigError):
    """A cache folder that cannot be used: one line with the folder, the reason and what to do."""


_VARIABLE = re.compile(r"\$(?:[A-Za-z0-9_]+|\{[^}]*\})")


def user_path(text: str, where: str = "") -> Path:
    """A path as users write it: `~` and environment variables (`$DATA/mtd`) are filled in.

    Args:
        where: begins the message: the key that the text is a value of.

    Raises:
        ConfigError: a variable that is not set, unless there is a file or folder of that very name.
    """
    path = os.path.expanduser(os.path.expandvars(text))
    unset = [name for name in dict.fromkeys(_VARIABLE.findall(text)) if os.path.expandvars(name) == name]
    if unset and not os.path.lexists(path):
        said = f"{', '.join(unset)} {'is' if len(unset) == 1 else 'are'} not set"
        raise ConfigError(f"{where}{': ' * bool(where)}{said}, in {text}; set the variable or write the path itself")
    return Path(path)


def cache_root() -> Path:
    """The folder of all caches: $HARNESS_CACHE, else a folder of its own under the user's cache folder. It may not be
    there yet.

    Raises:
        CacheError: nothing says where the user's home is.
    """
    base = os.environ.get("HARNESS_CACHE") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "dskd-harness"
    root = user_path(str(base), "cache folder")
    if root.parts[:1] and root.parts[0].startswith("~"):
        raise CacheError(f"cache folder {root}: this home folder is not known; set HARNESS_CACHE to a folder")
    return root


def cache_folder(name: str) -> Path:
    """A folder of the cache for one kind of what can be made again. Raises CacheError."""
    folder = cache_root() / name
    with in_cache(folder):
        folder.mkdir(parents=True, exist_ok=True)
    return folder


@contextmanager
def in_cache(folder: Path) -> Iterator[None]:
    """Around what is done in a folder of the cache: an OSError becomes a CacheError, so that none takes it for one of
    the results folder.
    """
    try:
        yield
    except OSError as error:
        raise CacheError(
            f"cache folder {folder} cannot be used ({error.strerror or error}); set HARNESS_CACHE to a folder with "
            "room, or free some with `harness cache --prune`"
        ) from error


def write_cache(path: Path, content: Content) -> None:
    """As `write_atomic`, for a file of the cache. Raises CacheError."""
    with in_cache(path.parent):
        write_atomic(path, content)


@contextmanager
def new_folder(folder: Path, good: Callable[[Path], bool] = Path.exists) -> Iterator[Path]:
    """A temporary folder of the cache to fill, which becomes `folder` when the block ends well.

    What lies at `folder` by then stays if it is `good`: another process was faster. Else it is replaced; those who have
    its files open keep them. What killed processes left beside it is removed first.

    Raises:
        CacheError: an OSError in the block or around it.
    """
    with in_cache(folder.parent):
        remove_left(folder.parent)
        work = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
        try:
            work.chmod(0o755)  # a cache may be shared
            with _locked(work):
                yield work
                (work / LOCK).unlink(missing_ok=True)
                _put(work, folder, good)
        finally:
            shutil.rmtree(work, ignore_errors=True)


def _put(work: Path, folder: Path, good: Callable[[Path], bool]) -> None:
    for attempt in range(5):  # others may put theirs there in between
        try:
            return os.rename(work, folder)
        except OSError:
            if not os.path.lexists(folder) or attempt == 4:
                raise
        if good(folder):
            return None
        remove_folder(folder)


def remove_folder(folder: Path) -> None:
    """Remove a folder of the cache, or a file in its place: at once for whoever looks, then piece by piece."""
    aside = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        with suppress(FileNotFoundError):
            os.rename(folder, aside / "old")
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def remove_left(parent: Path) -> None:
    """Remove the temporary folders in `parent` whose process has ended."""
    for work in parent.glob(TEMPORARY):
        if work.is_dir() and is_left(work):
            shutil.rmtree(work, ignore_errors=True)


def is_left(work: Path) -> bool:
    """Whether the process that fills the temporary folder has ended, as its lock says; after LEFT_S where no lock can
    tell: there is none, the file system has no locks, or they may not reach the machine of that process.
    """
    try:
        with (work / LOCK).open("r+") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if lock.read() == _machine():
                return True
    except BlockingIOError:
        return False
    except (OSError, ValueError):
        pass
    return time.time() - last_change(work) > LEFT_S


def last_change(path: Path) -> float:
    """The latest modification time in a file or folder; now, if it vanishes meanwhile."""
    try:
        return max(os.lstat(each).st_mtime for each in (path, *path.rglob("*")))
    except OSError:
        return time.time()


@contextmanager
def _locked(work: Path) -> Iterator[None]:
    """The lock appears under its name only when it is held, so that it is never seen free while its process lives."""
    new = work / f"{LOCK}.new"
    with new.open("w") as lock:
        with suppress(OSError):  # no locks on this file system: age must tell
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            lock.write(_machine())
            lock.flush()
            os.rename(new, work / LOCK)
        new.unlink(missing_ok=True)
        yield


def _machine() -> str:
    """What processes that see each other's locks for certain have in common: one kernel."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return os.uname().nodename


def write_atomic(path: Path, content: Content) -> None:
    """Write to a temporary name in the same folder, then rename: a reader sees the old content or the new.

    `content`: or a function that writes it to the stream that it is given, for what is too large to be held twice.
    """
    os.replace(_temporary(path, content), path)


def publish(path: Path, content: Content) -> bool:
    """Write `path` whole if it does not exist; False if another process was first, whose content stays."""
    temporary = _temporary(path, content)
    try:
        os.link(temporary, path)
    except FileExistsError:
        return False
    finally:
        temporary.unlink()
    return True


def _temporary(path: Path, content: Content) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as stream:
            if callable(content):
                content(stream)
            else:
                stream.write(content.encode() if isinstance(content, str) else content)
            os.fchmod(stream.fileno(), 0o644)
            stream.flush()
            os.fsync(stream.fileno())
    except BaseException:
        os.unlink(name)
        raise
    return Path(name)
