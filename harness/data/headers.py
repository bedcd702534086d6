"""A first look at a category from the headers of its files: nothing is decoded, and few files are read whole."""

import hashlib
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from PIL import ExifTags, Image

from harness.data import depth, doubles
from harness.data.catalog import Sample, Source
from harness.data.fingerprints import TURNED, Print, Progress, any_size
from harness.data.manifest import Look
from harness.environment import core_count
from harness.spec import Data
from harness.text import one_line

MOST_NAMED = 3
PART = 4096  # bytes that tell most files of equal size apart


def first_look(
    source: Source, category: str, samples: Sequence[Sample], share: float = 0.0, progress: Progress | None = None
) -> tuple[Look, list[str]]:
    """What `manifest.look` finds, as far as headers tell it: sizes, modes and doubled pictures, no hashes of halves.

    Args:
        share: of the normal images, which a run will hold out: so many, not those, are of the split test here.

    Returns:
        The look, and the reasons of files whose headers cannot be read, by name.
    """
    root = source.folder()
    names = [sample.path for sample in samples]
    found, failed = _headers(root, names, progress)
    hashes = same(root, {name: size for name, (_, size) in found.items()})
    prints = {name: each._replace(sha256=hashes.get(name, name)) for name, (each, _) in found.items()}
    readable = [sample for sample in samples if sample.path in prints]
    twice = doubles.find(readable, prints)
    normal = [sample.path for sample in readable if sample.split == "train"]
    held = set(normal[: round(len(normal) * share)])
    shown = tuple(replace(sample, split="test") if sample.path in held else sample for sample in readable)
    test = sum(sample.split == "test" for sample in shown)
    train = sum(sample.split == "train" for sample in shown)
    data = Data(source.name, category, "", train_images=train, test_images=test)
    return Look(data, shown, prints, twice=twice), failed


def _headers(
    root: Path, names: Sequence[str], progress: Progress | None
) -> tuple[dict[str, tuple[Print, int]], list[str]]:
    """By name the fingerprint less its hash, and the file's size; and a text on each file that has none."""
    found: dict[str, tuple[Print, int]] = {}
    failed: list[str] = []
    with any_size(), ThreadPoolExecutor(core_count()) as pool:
        headers = pool.map(lambda name: _header(root / name), names)
        for done, (name, header) in enumerate(zip(names, headers, strict=True), start=1):
            if isinstance(header, str):
                failed.append(f"{name} ({header})")
            else:
                found[name] = header
            if progress:
                progress(done, len(names))
    return found, failed


def _header(path: Path) -> tuple[Print, int] | str:
    try:
        size = os.path.getsize(path)
        if not size:
            return "it is empty"
        with Image.open(path) as image:
            width, height = image.size
            # Behind the pixels of a PNG there may be EXIF data, too: a run turns it, a first look does not.
            if image.format != "PNG" or "exif" in image.info:
                turned = image.getexif().get(ExifTags.Base.Orientation, 1) >= TURNED
                width, height = (height, width) if turned else (width, height)
            return Print("", width, height, image.mode, depth.kind_of(image)), size
    except Exception as error:  # Pillow raises what its parsers stumble over: a dozen kinds
        return one_line(str(error)) or type(error).__name__


def same(root: Path, sizes: Mapping[str, int]) -> dict[str, str]:
    """The sha256 of files that may be the same: of those with equal size and equal bytes in their middle. `sizes`: in
    bytes, by name.
    """
    asked = _alike({name: str(size) for name, size in sizes.items()})
    with ThreadPoolExecutor(core_count()) as pool:
        middles = dict(
            zip(asked, pool.map(lambda name: digest(root / name, sizes[name] // 2, PART), asked), strict=True)
        )
        asked = _alike(middles)
        return dict(zip(asked, pool.map(lambda name: digest(root / name), asked), strict=True))


def _alike(keys: Mapping[str, str]) -> list[str]:
    counts = Counter(keys.values())
    return [name for name, key in keys.items() if counts[key] > 1]


def digest(path: Path, start: int = 0, length: int = -1) -> str:
    """sha256 of the bytes of a file from `start`; of one that cannot be read its name, which no other has."""
    try:
        with path.open("rb") as stream:
            stream.seek(start)
            return hashlib.sha256(stream.read(length)).hexdigest()
    except OSError:
        return str(path)


def failed_line(failed: Sequence[str]) -> str:
    """`2 files cannot be read, first ...`; empty where all can."""
    if not failed:
        return ""
    more = f" and {len(failed) - MOST_NAMED} more" if len(failed) > MOST_NAMED else ""
    return f"files that are no pictures that can be read: {', '.join(failed[:MOST_NAMED])}{more}"
