"""Files to pixels: each image is decoded and resized once into a uint8 cache on disk, keyed by content.

What is decoded is what was hashed: a file is read once, and an entry is published only if the hashes of what was read
make the manifest that was planned.
"""

import functools
import hashlib
import io
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageOps
from scipy import ndimage

from dskd.size import Size, sides
from harness.data import depth, entries
from harness.data.catalog import DataError, Half, Sample, Source, readable
from harness.data.fingerprints import Fingerprints, Print, any_size, check_size, decoding, read_file
from harness.data.manifest import manifest_of
from harness.environment import core_count
from harness.files import CacheError, cache_folder, new_folder
from harness.spec import Data, digest

if (
    TYPE_CHECKING
):  # with pandas it takes as long to import as half of torch: a worker whose images are in the cache needs none
    import datasets


@dataclass(frozen=True)
class Pixels:
    """One half of a category at one size, memory-mapped.

    `images`: uint8 (N, H, W, 3), in the order of `samples`; `masks`: bool (T, H, W) of those that are test samples, all
    or none, in their order; `regions`: int64 (T,), 8-connected defective regions of each one's mask before it was
    resized. `held`: keeps the entry of the cache from being pruned.
    """

    samples: list[Sample]
    images: np.ndarray
    masks: np.ndarray
    regions: np.ndarray
    held: Any = field(default=None, repr=False, compare=False)

    def indices(self, split: str) -> np.ndarray:
        """Positions in `images` of the split's samples."""
        return np.array([i for i, sample in enumerate(self.samples) if sample.split == split], dtype=np.int64)

    def of(self, split: str) -> np.ndarray:
        """Images of the split: uint8 (N, H, W, 3), in the file itself where they lie there in one piece."""
        found = self.indices(split)
        if len(found) and found[-1] - found[0] + 1 == len(found):
            return np.asarray(self.images[found[0] : found[-1] + 1])
        return self.images[found]


@dataclass(frozen=True)
class Category:
    """One category's pixels at one size: what is trained on or held out, and what is tested on."""

    train: Pixels
    test: Pixels


def as_dataset(source: Source, samples: list[Sample]) -> "datasets.Dataset":
    """The samples as a Hugging Face data set: image, mask (None where nothing is defective), label, defect, split,
    path.
    """
    import datasets

    root = source.folder()
    columns = {
        "image": [str(root / sample.path) for sample in samples],
        "mask": [str(root / sample.mask) if sample.mask else None for sample in samples],
        "label": [int(sample.anomalous) for sample in samples],
        "defect": [sample.defect for sample in samples],
        "split": [sample.split for sample in samples],
        "path": [sample.path for sample in samples],
    }
    features = datasets.Features(
        image=datasets.Image(),
        mask=datasets.Image(),
        label=datasets.ClassLabel(names=["normal", "anomalous"]),
        defect=datasets.Value("string"),
        split=datasets.Value("string"),
        path=datasets.Value("string"),
    )
    return datasets.Dataset.from_dict(columns, features=features)


def load(source: Source, data: Data, size: Size, crop: int = 0) -> Category:
    """The category's pixels at `size`, from the cache or decoded into it; of these the middle square of side `crop`, if
    given.

    Raises:
        DataError: a file changed or vanished since the plan, or cannot be decoded.
        CacheError: the cache cannot be written.
    """
    return Category(
        _load(source, data.category, "train", data.manifest, size, crop),
        _load(source, data.category, "test", data.test_manifest, size, crop),
    )


def _load(source: Source, category: str, half: Half, manifest: str, size: Size, crop: int) -> Pixels:
    folder = cache_folder("images") / digest([manifest, size])
    entry = entries.read(folder, manifest, size)
    if entry is None:
        try:
            _decode(source, category, half, manifest, size, folder)
        except DataError:
            if not source.make_again():
                raise
            _decode(source, category, half, manifest, size, folder)
        entry = entries.read(folder, manifest, size)
    if entry is None:
        raise CacheError(
            f"cache folder {folder} does not hold what was just written to it; set HARNESS_CACHE to another"
        )
    arrays = entry.arrays
    if crop:
        rows, columns = middle(size, crop)
        arrays = arrays | {name: arrays[name][:, rows, columns] for name in ("images", "masks")}
    return Pixels(entry.samples, **arrays, held=entry.held)


def _decode(source: Source, category: str, half: Half, manifest: str, size: Size, folder: Path) -> None:
    """Write an entry of the cache. Raises DataError if it would not be what was planned."""
    with readable(source.name):
        files = _Files(source, category, half)
    samples = files.samples
    tests = [i for i, sample in enumerate(samples) if sample.split == "test"]
    place = {row: position for position, row in enumerate(tests)}
    with new_folder(folder, lambda found: entries.read(found, manifest, size) is not None) as work:
        regions = np.zeros(len(tests), np.int64)
        with (
            entries.Room(work / "images.npy", np.uint8, (len(samples), *sides(size), 3)) as images,
            entries.Room(work / "masks.npy", np.bool_, (len(tests), *sides(size))) as masks,
        ):

            def fill(row: int) -> None:
                sample = samples[row]
                images.put(row, resized(files.image(sample.path), size, source.resize, Image.Resampling.BILINEAR))
                if sample.masks:  # of a training image, too: their hashes are part of the manifest
                    defective = np.logical_or.reduce([files.mask(name) for name in sample.masks])
                    if row in place:
                        regions[place[row]] = ndimage.label(defective, np.ones((3, 3)))[1]
                        small = Image.fromarray(defective.view(np.uint8))
                        small = resized(small, size, source.resize, Image.Resampling.NEAREST)
                        masks.put(place[row], small.view(np.bool_))

            with any_size(), ThreadPoolExecutor(core_count()) as pool:
                list(pool.map(fill, range(len(samples))))
            files.check(manifest)
        np.save(work / "regions.npy", regions)
        of = {"dataset": source.name, "category": category, "half": half, "root": str(files.root)}
        of["pictures"] = _extents([files.prints[sample.path] for sample in samples])
        entries.write(work, folder, of, manifest, size, samples, files.prints)


def _extents(prints: list[Print]) -> dict[str, list[float]]:
    """Least and greatest width, height and aspect (width / height) of pictures."""
    each = {
        "width": [one.width for one in prints],
        "height": [one.height for one in prints],
        "aspect": [one.width / one.height for one in prints],
    }
    return {key: [min(values), max(values)] for key, values in each.items() if values}


def extents(data: Data, size: Size) -> dict[str, list[float]]:
    """Least and greatest width, height and aspect of the category's pictures that are not for tests, once they are in
    the cache; empty where an earlier version put them there.
    """
    return entries.about(cache_folder("images") / digest([data.manifest, size])).get("pictures", {})


class _Files:
    """The files of a half of a category as they are now, each read once: what is decoded is what is hashed."""

    def __init__(self, source: Source, category: str, half: Half) -> None:
        self.source, self.category, self.root = source, category, source.folder()
        self.samples = [sample for sample in source.selected(category) if sample.half == half]
        self.fixed = source.fixed_manifest(category, half)
        self.prints: dict[str, Print] = {}
        if self.fixed:
            self.expected = source.fixed_hashes()
        else:  # as the last plan saw them, which may be a later one than this run's
            rows = Fingerprints(self.root).known().items()
            self.expected = {name: row[1] for name, row in rows if isinstance(row, list) and row[1:]}

    def image(self, name: str) -> Image.Image:
        """In RGB. Raises DataError."""
        return in_rgb(f"{self.root}/{name}", *self._read(name), self.source)

    def mask(self, name: str) -> np.ndarray:
        """Where it is defective: bool (H, W). Raises DataError."""
        picture, kind = self._read(name)
        with decoding(f"{self.root}/{name}"):
            values = depth.values_of(picture, kind) if kind else np.asarray(picture.convert("L"))
            return values > self.source.mask_threshold

    def check(self, manifest: str) -> None:
        """Raises DataError if what was read is not what was planned."""
        if manifest_of(self.source, self.samples, self.prints, self.fixed) != manifest:
            others = (name for name, each in sorted(self.prints.items()) if self._is_other(name, each.sha256))
            name = next(others, None)
            raise self._changed(f"{self.root}/{name}" if name else self.category)

    def _read(self, name: str) -> tuple[Image.Image, str | None]:
        """The picture as its EXIF data turn it, and its type if it is deep."""
        path = f"{self.root}/{name}"
        content = read_file(path)
        sha256 = hashlib.sha256(content).hexdigest()
        if self.fixed and self._is_other(name, sha256):
            raise self._changed(path)
        try:
            checked = self.expected.get(name) == sha256  # by the plan
            picture, kind = decoded(path, content, None if checked else self.source.max_megapixels)
        except DataError:
            if self._is_other(name, sha256):
                raise self._changed(path) from None
            raise
        self.prints[name] = Print(sha256, *picture.size, picture.mode, kind)
        return picture, kind

    def _is_other(self, name: str, sha256: str) -> bool:
        return self.expected.get(name, sha256) != sha256

    def _changed(self, what: str) -> DataError:
        """What to raise. The next plan reads all files again, even where size and mtime say that it need not."""
        Fingerprints(self.root).forget()
        return DataError(f"dataset {self.source.name}: {what} changed since it was planned; run the grid again")


@functools.cache
def _decoder() -> "datasets.Image":
    """Turns a picture as its EXIF data say."""
    import datasets

    return datasets.Image()


def decoded(path: str, content: bytes, max_megapixels: float | None) -> tuple[Image.Image, str | None]:
    """A file's picture as its EXIF data turn it, and its type if it is deep (`depth.kind_of`).

    Args:
        max_megapixels: more of them are refused before anything is decoded; None where that was asked already.

    Raises:
        DataError: no readable picture, or one of too many pixels.
    """
    with decoding(path):
        if max_megapixels is not None:
            with Image.open(io.BytesIO(content)) as head:
                check_size(path, *head.size, max_megapixels)
        picture, kind = _decoder().decode_example({"path": None, "bytes": content}), None
        if depth.is_deep(picture):
            with Image.open(io.BytesIO(content)) as head:  # which the decoded picture has forgotten
                kind = depth.kind_of(head)
    return picture, kind


def in_rgb(path: str, picture: Image.Image, kind: str | None, ranged: depth.Ranged) -> Image.Image:
    """A decoded picture in RGB. Raises DataError for a deep one that its range cannot be brought to 8 bits by."""
    with decoding(path):
        if kind:  # before it is resized, so that it is treated as its copy in 8 bits would be
            picture = depth.eight_bits(picture, kind, depth.range_of(ranged, kind))
        return picture if picture.mode == "RGB" else picture.convert("RGB")


def middle(size: Size, crop: int) -> tuple[slice, slice]:
    """Rows and columns of the middle square of side `crop` in images of `size`; all of them without a crop."""
    if not crop:
        return slice(None), slice(None)
    rows, columns = (slice((side - crop) // 2, (side - crop) // 2 + crop) for side in sides(size))
    return rows, columns


def resized(image: Image.Image, size: Size, resize: str, resampling: Image.Resampling) -> np.ndarray:
    """(H, W, ...) of `size`: stretched (`square`), or with its aspect kept and padded with black (`pad`)."""
    height, width = sides(size)
    if resize == "pad":
        return np.asarray(ImageOps.pad(image, (width, height), method=resampling))
    return np.asarray(image if image.size == (width, height) else image.resize((width, height), resampling))
