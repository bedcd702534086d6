"""The identity of a category's files: read, checked and hashed once, remembered by path, size and mtime."""

import errno
import hashlib
import io
import json
import os
import stat
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image, UnidentifiedImageError

from harness.data import depth
from harness.data.catalog import PIXEL_REVISION, DataError, Sample, Source, readable
from harness.files import cache_folder, write_cache
from harness.spec import Data, digest
from harness.text import one_line

Progress = Callable[[int, int], None]

STORE = 2  # raised when a fingerprint holds more, so that older ones are made again
KINDS = {
    stat.S_ISDIR: "a folder",
    stat.S_ISFIFO: "a pipe",
    stat.S_ISSOCK: "a socket",
    stat.S_ISCHR: "a device",
    stat.S_ISBLK: "a device",
}


class Print(NamedTuple):
    """The fingerprint of an image file. `kind`: the type of its values if it is deep (`depth.kind_of`), with the least
    and the greatest of them.
    """

    sha256: str
    width: int
    height: int
    kind: str | None = None
    least: float = 0.0
    greatest: float = 0.0


@dataclass(frozen=True)
class Look:
    """A category as a run's spec holds it, and what there is to say of its deep pictures."""

    data: Data
    deep: tuple[depth.Deep, ...] = ()


def describe(source: Source, category: str, progress: Progress | None = None) -> Data:
    """The category as a run's spec holds it: manifest (hash of names, contents, splits and options) and sizes.

    Raises:
        DataError: files that are missing, unpaired, empty or unreadable, or masks of another size than their image.
    """
    return look(source, category, progress).data


def look(source: Source, category: str, progress: Progress | None = None) -> Look:
    """As `describe`, with what there is to say of deep pictures."""
    with readable(source.name):
        samples = source.samples(category)
        fixed = source.fixed_manifest(category)
    _check_names(source, category, samples)
    prints = {} if fixed else _checked(source, samples, progress)
    deep = [prints[sample.path] for sample in samples if prints and prints[sample.path].kind]
    options = {key: str(value) for key, value in source.options().items()}
    # Only there it decides pixels: elsewhere no table should tell runs apart by it.
    if source.range is not None and (deep or fixed):
        options["range"] = depth.text_of(source.range)
    data = Data(
        name=source.name,
        category=category,
        manifest=manifest_of(source, samples, prints, fixed),
        options=tuple(options.items()),
        train_images=sum(sample.split == "train" for sample in samples),
        test_images=sum(sample.split == "test" for sample in samples),
    )
    return Look(data, depth.summary(source, ((each.kind, each.least, each.greatest) for each in deep)))


def manifest_of(source: Source, samples: Sequence[Sample], prints: Mapping[str, Print], fixed: str | None) -> str:
    """The hash of all that decides a category's pixels and labels. Pure.

    Args:
        prints: of every file of the samples, by path.
        fixed: what stands for the files where the source knows it without them (`fixed_manifest`).

    Raises:
        DataError: pictures of floating point values without a `range`.
    """
    if fixed:
        content, deep = fixed, [list(source.range)] if source.range is not None else []
    else:
        rows = [
            [
                sample.path,
                sample.defect,
                sample.split,
                sample.group,
                *(prints[name].sha256 for name in files_of(sample)),
            ]
            for sample in samples
        ]
        content = digest(rows)
        kinds = {kind for sample in samples if (kind := prints[sample.path].kind)}
        deep = [list(bounds) for bounds in sorted({depth.range_of(source, kind) for kind in kinds})]
        # Fractions count as defective since deep pictures are read as what they are.
        deep += ["f32"] if any(prints[mask].kind == "f32" for sample in samples for mask in sample.masks) else []
    return digest([content, PIXEL_REVISION, source.resize, source.mask_threshold, *([deep] if deep else [])])


def _check_names(source: Source, category: str, samples: Sequence[Sample]) -> None:
    """Raises DataError for a name that no JSON, table or page could hold."""
    for name in (category, *(name for sample in samples for name in (*files_of(sample), sample.defect, sample.group))):
        if not name.isascii():
            try:
                name.encode()
            except UnicodeEncodeError:
                raise DataError(
                    f"dataset {source.name}: the name {one_line(name)} is not UTF-8; rename the file or folder"
                ) from None


def _checked(source: Source, samples: Sequence[Sample], progress: Progress | None) -> dict[str, Print]:
    root = source.folder()
    files = sorted({name for sample in samples for name in files_of(sample)})
    prints = Fingerprints(root).of(files, progress, source.max_megapixels)
    for sample in samples:
        for mask in sample.masks:
            if prints[sample.path][1:3] != prints[mask][1:3]:
                image, other = ("x".join(map(str, prints[name][1:3])) for name in (sample.path, mask))
                raise DataError(f"dataset {source.name}: {root / mask} is {other} pixels, its image is {image}")
    return prints


def files_of(sample: Sample) -> list[str]:
    """The image's file and, where there are some, those of its masks."""
    return [sample.path, *sample.masks]


class Fingerprints:
    """What is remembered of the files under one root; one is read again only if its size or mtime changed."""

    def __init__(self, root: Path) -> None:
        self.root = root.resolve()
        self.store = cache_folder("fingerprints") / f"{digest([str(self.root), STORE])}.json"

    def known(self) -> dict[str, list[Any]]:
        """By name: [size, mtime], then the fields of a Print. Empty where nothing, or nothing readable, is stored."""
        try:
            known = json.loads(self.store.read_text())
        except (OSError, ValueError, RecursionError):
            return {}
        return known if isinstance(known, dict) else {}

    def of(
        self, files: Sequence[str], progress: Progress | None = None, max_megapixels: float = Source.max_megapixels
    ) -> dict[str, Print]:
        """Raises DataError for the first file that is empty, no readable image, or has more than `max_megapixels`."""
        known = self.known()
        keys = {name: list(_key(f"{self.root}/{name}")) for name in files}
        new = [name for name in files if not _is_print(known.get(name), keys[name])]
        if new:

            def read(name: str) -> Print:
                return _read(self.root / name, max_megapixels)

            with any_size(), ThreadPoolExecutor(os.cpu_count()) as pool:
                for done, (name, found) in enumerate(zip(new, pool.map(read, new), strict=True), start=1):
                    known[name] = [keys[name], *(found if found.kind else found[:3])]
                    if progress:
                        progress(done, len(new))
            write_cache(self.store, json.dumps(known))
        prints = {name: Print(*known[name][1:]) for name in files}
        for name, each in prints.items():
            check_size(self.root / name, each.width, each.height, max_megapixels)
        return prints

    def forget(self) -> None:
        """Let the next plan read all files again: one had another content than its size and mtime promise."""
        with suppress(OSError):
            self.store.unlink()


def _is_print(row: Any, key: list[int]) -> bool:
    return isinstance(row, list) and len(row) in (4, 1 + len(Print._fields)) and row[0] == key


def _key(path: str) -> tuple[int, int]:
    """Size and mtime of a regular file. Raises DataError for what is none."""
    try:
        found = os.stat(path)
    except OSError as error:
        raise DataError(f"{path} {_why(path, error)}") from None
    _check_regular(path, found)
    return found.st_size, found.st_mtime_ns


def _check_regular(path: str, found: os.stat_result) -> None:
    if not stat.S_ISREG(found.st_mode):
        what = next((name for is_one, name in KINDS.items() if is_one(found.st_mode)), "something else")
        raise DataError(f"{path} is {what}, not an image file; move it out of the data set")


def _why(path: str, error: OSError) -> str:
    if error.errno == errno.ENOENT and os.path.islink(path):
        return (
            f"is a link to {os.readlink(path)}, which is not there; fetch what it stands for (git annex get, dvc pull) "
            "or remove it"
        )
    if error.errno == errno.ELOOP:
        return "is a link that leads back to itself; remove it or put the image there"
    return f"cannot be read ({error.strerror or error})"


def read_file(path: str) -> bytes:
    """All of a regular file. Raises DataError for what cannot be read; a pipe in its place does not block."""
    try:
        with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as stream:
            _check_regular(path, os.fstat(stream.fileno()))
            return stream.read()
    except OSError as error:
        raise DataError(f"{path} {_why(path, error)}") from None


@contextmanager
def any_size() -> Iterator[None]:
    """Lets Pillow open images of any size: `check_size` is the limit here, which a data set's entry can raise."""
    before, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
    try:
        yield
    finally:
        Image.MAX_IMAGE_PIXELS = before


def check_size(path: Path | str, width: int, height: int, max_megapixels: float) -> None:
    """Raises DataError for an image of more pixels, before it is decoded."""
    if width * height > max_megapixels * 1e6:
        need = -(-width * height // 10**6)
        raise DataError(
            f"{path} has {width}x{height} pixels, more than {max_megapixels:g} million; scale it down or write "
            f"max_megapixels: {need} in the data set's entry"
        )


@contextmanager
def decoding(path: Path | str) -> Iterator[None]:
    """Around what Pillow makes of bytes that are in memory already: whatever it raises, the file is no readable image.

    Raises:
        DataError: instead of any other exception but MemoryError.
    """
    try:
        yield
    except (DataError, MemoryError):
        raise
    except UnidentifiedImageError:
        raise DataError(f"{path} is not a readable image (its content is of no known format)") from None
    except Exception as error:  # Pillow raises what its parsers stumble over: a dozen kinds
        reason = one_line(str(error)) or type(error).__name__
        raise DataError(f"{path} is not a readable image ({reason})") from None


def _read(path: Path, max_megapixels: float) -> Print:
    content = read_file(str(path))
    if not content:
        raise DataError(f"{path} is empty; remove it or put the image back")
    with decoding(path), Image.open(io.BytesIO(content)) as image:
        size, kind = image.size, depth.kind_of(image)
        check_size(path, *size, max_megapixels)
        if image.format == "PNG":
            image.verify()  # checks every chunk's sum without decoding
        else:
            image.draft("L", (image.width // 8, image.height // 8))  # a JPEG decodes faster at an eighth
            image.load()
    return Print(hashlib.sha256(content).hexdigest(), *size, *(_extremes(path, content, kind) if kind else ()))


def _extremes(path: Path, content: bytes, kind: str) -> tuple[str, float, float]:
    with decoding(path), Image.open(io.BytesIO(content)) as image:
        values = depth.values_of(image, kind)
        least, greatest = float(values.min()), float(values.max())
    if not (abs(least) < float("inf") and abs(greatest) < float("inf")):
        raise DataError(f"{path} has values that are not finite; put numbers in their place")
    return kind, least, greatest


def file_sha256(path: Path) -> str:
    """sha256 of one large file, remembered by path, size and mtime. Raises OSError for one that cannot be read."""
    store = _sha256_store(path)
    with suppress(OSError, ValueError):
        if len(bytes.fromhex(known := store.read_text())) == hashlib.sha256().digest_size:
            return known
    with path.open("rb") as stream:
        sha256 = hashlib.file_digest(stream, "sha256").hexdigest()
    write_cache(store, sha256)
    return sha256


def forget_sha256(path: Path) -> None:
    """Let the next plan read the file again."""
    with suppress(OSError):
        _sha256_store(path).unlink()


def _sha256_store(path: Path) -> Path:
    path = path.resolve()
    found = path.stat()
    return cache_folder("hashes") / f"{digest([str(path), found.st_size, found.st_mtime_ns])}.txt"
