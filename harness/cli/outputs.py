"""Files that a command is told to write: asked about before any work, and never in the place of what is no file."""

import os
import stat
from pathlib import Path

from dskd.config import ConfigError, require


def check_file(option: str, path: Path) -> None:
    """Raises ConfigError unless `path` is a regular file or can become one: what is written by renaming would put a
    file in the place of a device (/dev/null), a pipe or a link to nothing. Its folder may be missing.
    """
    try:
        try:
            mode = os.stat(path).st_mode
        except FileNotFoundError:
            require(not os.path.islink(path), f"{option}: {path} is a link to nothing; name another file")
            return
    except OSError as error:
        raise ConfigError(f"{option}: {path} cannot be written ({error.strerror}); name another file") from None
    require(not stat.S_ISDIR(mode), f"{option}: {path} is a folder; write a file such as {path / 'FILE'}")
    require(stat.S_ISREG(mode), f"{option}: {path} is no regular file; name another file")
