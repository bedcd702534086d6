"""What lies in the cache, and what of it can go: all of it can be made again, decoded images take the room."""

import os
import re
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from harness.data import entries
from harness.files import CacheError, cache_root, in_cache, is_left, remove_folder

ABOUT = {
    "images": "decoded images, one entry for each category and size",
    "surfaces": "files of the built-in data set",
    "hub": "images of Hugging Face data sets, as files",
    "fingerprints": "hashes of image files and which masks are empty, one entry for each data set",
    "hashes": "hashes of weights files",
    "weights": "which weights files were checked",
    "backbones": "what was read off timm's models",
    "records": "which records were found whole",
}
LARGE = ("images", "surfaces", "hub")  # the rest is small, and takes a look at every file to make again

# Only what is named so is ours: $HARNESS_CACHE may be a folder that holds other things, too.
_OWN = re.compile(r"[0-9a-f]{16}(\.\w+)?")
_TEMPORARY = re.compile(r"\.[0-9a-f]{16}(\.\w+)?\.[a-z0-9_]{8}")


@dataclass(frozen=True)
class Item:
    """An entry of the cache, a folder or a file. `kind`: the folder that it lies in; `used_at`: seconds since 1970;
    `temporary`: a process is writing it, or was.
    """

    path: Path
    kind: str
    size: int
    used_at: float
    temporary: bool = False


def items(root: Path | None = None) -> list[Item]:
    """All entries, the kinds in order. Raises CacheError for a folder that cannot be read."""
    root = cache_root() if root is None else root
    if not os.path.lexists(root):
        return []
    found = []
    with in_cache(root):
        for folder in sorted(path for path in root.iterdir() if path.is_dir()):
            for path in sorted(folder.iterdir()):
                temporary = bool(_TEMPORARY.fullmatch(path.name))
                if temporary or _OWN.fullmatch(path.name):
                    found.append(Item(path, folder.name, _size(path), _used_at(path), temporary))
    return found


def prunable(found: Iterable[Item], older_than_s: float = 0.0) -> list[Item]:
    """Of the entries the large ones that were not used for so many seconds, and what killed processes left."""
    now = time.time()
    return [item for item in found if _is_left(item) or (_is_large(item) and now - item.used_at >= older_than_s)]


def prune(chosen: Iterable[Item]) -> tuple[list[Item], list[Item]]:
    """Remove entries; (removed, kept because a living process has them). Raises CacheError."""
    removed, kept = [], []
    for item in chosen:
        if not item.temporary and entries.is_used(item.path):
            kept.append(item)
            continue
        with in_cache(item.path.parent):
            remove_folder(item.path)
        if os.path.lexists(item.path):
            raise CacheError(f"cache folder {item.path} cannot be removed; remove it by hand")
        removed.append(item)
    return removed, kept


def _is_large(item: Item) -> bool:
    return item.kind in LARGE and not item.temporary


def _is_left(item: Item) -> bool:
    return item.temporary and is_left(item.path)


def _used_at(path: Path) -> float:
    """A folder's own time is that of its last use; a file's, the later one of reading and writing."""
    try:
        found = os.lstat(path)
    except OSError:
        return time.time()
    return found.st_mtime if path.is_dir() else max(found.st_mtime, found.st_atime)


def _size(path: Path) -> int:
    """Bytes of a file or of all files of a folder; what vanishes meanwhile counts nothing."""
    total = 0
    for each in (path, *path.rglob("*")):
        try:
            total += os.lstat(each).st_size if not each.is_dir() else 0
        except OSError:
            continue
    return total
