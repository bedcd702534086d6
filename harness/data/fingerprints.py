"""The fingerprints of image files: each is read, checked and hashed once, and remembered by path, size and mtime."""

import errno
import hashlib
import io
import json
import os
import stat
import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from harness.data import depth
from harness.data.catalog import DataError, Source
from harness.environment import core_count
from harness.files import cache_folder, write_cache
from harness.spec import digest
from harness.text import one_line

Progress = Callable[[int, int], None]

STORE = 4  # raised when a fingerprint holds more, so that older ones are made again
MOST_NAMED = 10  # files that cannot be used; the others are counted
FLAT_PNG_BYTES, FLAT_PNG_PIXELS_A_BYTE = 4096, 25  # a compressed PNG of one colour is not larger
TURNED = 5  # the least of EXIF's orientations that exchange width and height
KINDS = {
    stat.S_ISDIR: "a folder",
    stat.S_ISFIFO: "a pipe",
    stat.S_ISSOCK: "a socket",
    stat.S_ISCHR: "a device",
    stat.S_ISBLK: "a device",
}


class Print(NamedTuple):
    """The fingerprint of an image file. `width`, `height`: pixels as its EXIF data turn it; `mode`: Pillow's, of the
    file. `kind`: the type of its values if it is deep (`depth.kind_of`). `least`, `greatest`: of the values of a deep
    picture, and of a mask's grey ones. `flat`: all pixels are of one colour (not asked of masks).
    """

    sha256: str
    width: int
    height: int
    mode: str = ""
    kind: str | None = None
    least: float = 0.0
    greatest: float = 0.0
    flat: bool = False


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
        self,
        files: Sequence[str],
        progress: Progress | None = None,
        max_megapixels: float = Source.max_megapixels,
        masks: Collection[str] = (),
    ) -> dict[str, Print]:
        """Raises DataError for files that are empty, no readable image, or have more than `max_megapixels`: the first
        ones by name, and how many they are.

        Args:
            masks: those of the files whose least and greatest value is asked for.
        """
        known = self.known()
        keys = {name: list(_key(f"{self.root}/{name}")) for name in files}
        new = [name for name in files if not _is_print(known.get(name), keys[name], name in masks)]
        if new:
            failed: dict[str, DataError] = {}

            def read(name: str) -> Print | DataError:
                try:
                    return _read(self.root / name, max_megapixels, name in masks)
                except DataError as error:
                    return error

            with any_size(), ThreadPoolExecutor(core_count()) as pool:
                for done, (name, found) in enumerate(zip(new, pool.map(read, new), strict=True), start=1):
                    if isinstance(found, DataError):
                        failed[name] = found
                    else:
                        known[name] = [keys[name], *(found if found.flat or found.kind or name in masks else found[:4])]
                    if progress:
                        progress(done, len(new))
            write_cache(self.store, json.dumps(known))
            if failed:
                raise _unusable(failed)
        prints = {name: Print(*known[name][1:]) for name in files}
        for name, each in prints.items():
            check_size(self.root / name, each.width, each.height, max_megapixels)
        return prints

    def forget(self) -> None:
        """Let the next plan read all files again: one had another content than its size and mtime promise."""
        with suppress(OSError):
            self.store.unlink()


def greatest(root: Path, masks: Sequence[str], max_megapixels: float) -> dict[str, float]:
    """The greatest value of each mask, as `images` reads masks: grey of 8 bits, deep pictures as they are.

    Raises:
        DataError: as `Fingerprints.of`.
    """
    prints = Fingerprints(root).of(masks, max_megapixels=max_megapixels, masks=frozenset(masks))
    return {name: each.greatest for name, each in prints.items()}


def _unusable(failed: Mapping[str, DataError]) -> DataError:
    """The first failure, with the names of the first others and how many they are."""
    first, *others = failed
    if not others:
        return failed[first]
    named = ", ".join(others[: MOST_NAMED - 1]) + (", ..." if len(others) >= MOST_NAMED else "")
    return DataError(f"{failed[first]}; {len(others)} more files cannot be used: {named}")


def _is_print(row: Any, key: list[int], whole: bool) -> bool:
    lengths = (1 + len(Print._fields), *(() if whole else (5,)))  # a row without the values that few files have
    return isinstance(row, list) and len(row) in lengths and row[0] == key


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


@dataclass
class _Limit:
    """Pillow's limit of pixels while some are within `any_size`: so many, and what it was before."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    within: int = 0
    before: int | None = None


_LIMIT = _Limit()


@contextmanager
def any_size() -> Iterator[None]:
    """Lets Pillow open images of any size: `check_size` is the limit here, which a data set's entry can raise. Threads
    may be within at the same time: the last one puts Pillow's own limit back.
    """
    with _LIMIT.lock:
        if not _LIMIT.within:
            _LIMIT.before, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        _LIMIT.within += 1
    try:
        yield
    finally:
        with _LIMIT.lock:
            _LIMIT.within -= 1
            if not _LIMIT.within:
                Image.MAX_IMAGE_PIXELS = _LIMIT.before


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


def _read(path: Path, max_megapixels: float, is_mask: bool) -> Print:
    content = read_file(str(path))
    if not content:
        raise DataError(f"{path} is empty; remove it or put the image back")
    with decoding(path), Image.open(io.BytesIO(content)) as image:
        check_size(path, *image.size, max_megapixels)
        size, mode, kind = _upright(image, content), image.mode, depth.kind_of(image)
        if image.format == "PNG":
            pixels = image.width * image.height
            image.verify()  # checks every chunk's sum without decoding
            may_be_flat = len(content) < FLAT_PNG_BYTES + pixels / FLAT_PNG_PIXELS_A_BYTE
        else:
            image.draft("L", (image.width // 8, image.height // 8))  # a JPEG decodes faster at an eighth
            image.load()
            may_be_flat = kind is None and _is_flat(image)
    values = _extremes(path, content, kind) if kind or is_mask else (0.0, 0.0)
    flat = values[0] == values[1] if kind else may_be_flat and not is_mask and _is_flat_file(path, content)
    return Print(hashlib.sha256(content).hexdigest(), *size, mode, kind, *values, flat)


def _is_flat_file(path: Path, content: bytes) -> bool:
    with decoding(path), Image.open(io.BytesIO(content)) as image:
        return _is_flat(image)


def _is_flat(image: Image.Image) -> bool:
    """Whether each channel has one value."""
    extremes = image.getextrema()
    return all(low == high for low, high in (extremes if isinstance(extremes[0], tuple) else (extremes,)))


def _upright(image: Image.Image, content: bytes) -> tuple[int, int]:
    """Width and height of a picture, opened, as its EXIF data turn it. Decoded only where there is no other way to
    tell.
    """
    if image.format == "PNG":  # which may have them behind its pixels
        if not any(mark in content for mark in (b"eXIf", b"Raw profile type exif", b"tiff:Orientation")):
            return image.size
    elif image.getexif().get(ExifTags.Base.Orientation, 1) < TURNED:
        return image.size
    elif image.format != "TIFF":  # which is turned by loading it
        return image.height, image.width
    with Image.open(io.BytesIO(content)) as decoded:
        return ImageOps.exif_transpose(decoded).size


def _extremes(path: Path, content: bytes, kind: str | None) -> tuple[float, float]:
    """The least and the greatest value of a deep picture, or of any other one in grey."""
    with decoding(path), Image.open(io.BytesIO(content)) as image:
        if kind is None:
            return image.convert("L").getextrema()
        values = depth.values_of(image, kind)
        least, greatest = float(values.min()), float(values.max())
    if not (abs(least) < float("inf") and abs(greatest) < float("inf")):
        raise DataError(f"{path} has values that are not finite; put numbers in their place")
    return least, greatest


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
