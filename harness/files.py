"""Files that several rooms write: always whole, never half."""

import errno
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

Content = str | bytes | Callable[[BinaryIO], object]

UNWRITABLE = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS})  # a disk that is full or lost


def user_path(text: str) -> Path:
    """A path as users write it: `~` and environment variables (`$DATA/mtd`) are filled in."""
    return Path(os.path.expandvars(text)).expanduser()


def cache_folder(name: str) -> Path:
    """A folder for what can be made again: under $HARNESS_CACHE, else under the user's cache folder."""
    base = os.environ.get("HARNESS_CACHE") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "dskd-harness"
    folder = user_path(str(base)) / name
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """A temporary folder to fill, which becomes `folder` when the block ends well.

    If another process made `folder` meanwhile, with the same content by its name, that one stays.
    """
    work = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        work.chmod(0o755)  # a cache may be shared
        yield work
        os.rename(work, folder)
    except OSError:
        if not folder.exists():
            raise
    finally:
        shutil.rmtree(work, ignore_errors=True)


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
