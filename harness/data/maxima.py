"""Which masks are empty: the greatest value of each, read once and remembered by path, size and mtime."""

import io
import json
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from PIL import Image

from harness.data import depth
from harness.data.fingerprints import any_size, check_size, decoding, read_file
from harness.files import cache_folder, write_cache
from harness.spec import digest


def greatest(root: Path, names: Sequence[str], max_megapixels: float) -> dict[str, float]:
    """The greatest value of each mask, as `images` reads masks: grey of 8 bits, deep pictures as they are.

    Raises:
        DataError: a file that cannot be read, is no image or has more than `max_megapixels`.
    """
    root = root.resolve()
    store = cache_folder("maxima") / f"{digest([str(root)])}.json"
    known = _known(store)
    found: dict[str, float] = {}
    new: dict[str, list[int]] = {}
    for name in names:
        key = _key(root / name)
        row = known.get(name)
        if key and isinstance(row, list) and row[:2] == key and len(row) == 3 and isinstance(row[2], (int, float)):
            found[name] = row[2]
        else:
            new[name] = key

    def read(name: str) -> float:
        return greatest_of(f"{root}/{name}", read_file(f"{root}/{name}"), max_megapixels)

    if new:
        with any_size(), ThreadPoolExecutor(os.cpu_count()) as pool:
            found |= dict(zip(new, pool.map(read, new), strict=True))
        write_cache(store, json.dumps(known | {name: [*key, found[name]] for name, key in new.items() if key}))
    return found


def greatest_of(path: str, content: bytes, max_megapixels: float) -> float:
    """Of one mask's file. Raises DataError as `greatest`; `path` is for messages."""
    with decoding(path), Image.open(io.BytesIO(content)) as image:
        check_size(path, *image.size, max_megapixels)
        kind = depth.kind_of(image)
        return float(depth.values_of(image, kind).max()) if kind else float(image.convert("L").getextrema()[1])


def _known(store: Path) -> dict[str, object]:
    try:
        known = json.loads(store.read_text())
    except (OSError, ValueError, RecursionError):
        return {}
    return known if isinstance(known, dict) else {}


def _key(path: Path) -> list[int]:
    """Size and mtime; nothing where `read_file` will say what is wrong."""
    try:
        found = os.stat(path)
    except OSError:
        return []
    return [found.st_size, found.st_mtime_ns]
