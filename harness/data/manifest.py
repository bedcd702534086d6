"""The identity of a category's files: read, checked and hashed once, remembered by path, size and mtime."""

import hashlib
import io
import json
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from dskd.config import to_mapping
from harness.data.catalog import PIXEL_REVISION, DataError, Sample, Source
from harness.files import cache_folder, write_atomic
from harness.spec import Data, digest

Progress = Callable[[int, int], None]


def describe(source: Source, category: str, progress: Progress | None = None) -> Data:
    """The category as a run's spec holds it: manifest (hash of names, contents, splits and options) and sizes.

    Raises:
        DataError: files that are missing, unpaired, empty or unreadable, or masks of another size than their image.
    """
    samples = source.samples(category)
    content = source.fixed_manifest(category) or _manifest(source, samples, progress)
    options = {key: value for key, value in to_mapping(source).items() if key not in ("root", "categories")}
    return Data(
        name=source.name,
        category=category,
        manifest=digest([content, PIXEL_REVISION, source.resize, source.mask_threshold]),
        options=tuple((key, str(value)) for key, value in options.items()),
        train_images=sum(sample.split == "train" for sample in samples),
        test_images=sum(sample.split == "test" for sample in samples),
    )


def _manifest(source: Source, samples: Sequence[Sample], progress: Progress | None) -> str:
    root = source.folder()
    files = sorted({name for sample in samples for name in files_of(sample)})
    known = Fingerprints(root)
    prints = known.of(files, progress)
    for sample in samples:
        if sample.mask and prints[sample.path][1:] != prints[sample.mask][1:]:
            image, mask = ("x".join(map(str, prints[name][1:])) for name in (sample.path, sample.mask))
            raise DataError(f"dataset {source.name}: {root / sample.mask} is {mask} pixels, its image is {image}")
    rows = [
        [sample.path, sample.defect, sample.split, sample.group, *(prints[name][0] for name in files_of(sample))]
        for sample in samples
    ]
    return digest(rows)


def files_of(sample: Sample) -> list[str]:
    """The image's file and, where there is one, the mask's."""
    return [sample.path, sample.mask] if sample.mask else [sample.path]


class Fingerprints:
    """sha256, width and height of the files under one root; a file is read again only if its size or mtime changed."""

    def __init__(self, root: Path) -> None:
        self.root = root.resolve()
        self.store = cache_folder("fingerprints") / f"{digest(str(self.root))}.json"

    def of(self, files: Sequence[str], progress: Progress | None = None) -> dict[str, tuple[str, int, int]]:
        """Raises DataError for the first file that is empty or no readable image."""
        try:
            known = json.loads(self.store.read_text())
        except (OSError, ValueError):
            known = {}
        stats = {name: os.stat(self.root / name) for name in files}
        keys = {name: [stat.st_size, stat.st_mtime_ns] for name, stat in stats.items()}
        new = [name for name in files if known.get(name, [None])[0] != keys[name]]
        if new:
            with ThreadPoolExecutor(os.cpu_count()) as pool:
                for done, (name, found) in enumerate(zip(new, pool.map(self._read, new), strict=True), start=1):
                    known[name] = [keys[name], *found]
                    if progress:
                        progress(done, len(new))
            write_atomic(self.store, json.dumps(known))
        return {name: tuple(known[name][1:]) for name in files}

    def _read(self, name: str) -> tuple[str, int, int]:
        path = self.root / name
        content = path.read_bytes()
        if not content:
            raise DataError(f"{path} is empty; remove it or put the image back")
        try:
            with Image.open(io.BytesIO(content)) as image:
                size = image.size
                if image.format == "PNG":
                    image.verify()  # checks every chunk's sum without decoding
                else:
                    image.draft("L", (image.width // 8, image.height // 8))  # a JPEG decodes faster at an eighth
                    image.load()
        except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
            raise DataError(f"{path} is not a readable image ({error})") from None
        return hashlib.sha256(content).hexdigest(), *size


def file_sha256(path: Path) -> str:
    """sha256 of one large file, remembered by path, size and mtime."""
    path = path.resolve()
    stat = path.stat()
    store = cache_folder("hashes") / f"{digest([str(path), stat.st_size, stat.st_mtime_ns])}.txt"
    if not store.exists():
        with path.open("rb") as stream:
            write_atomic(store, hashlib.file_digest(stream, "sha256").hexdigest())
    return store.read_text()
