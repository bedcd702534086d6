"""Files to pixels: each image is decoded and resized once into a uint8 cache on disk, keyed by content."""

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import datasets
import numpy as np
from PIL import Image, ImageOps
from scipy import ndimage

from harness.data.catalog import DataError, Sample, Source
from harness.files import cache_folder, new_folder
from harness.spec import Data, digest


@dataclass(frozen=True)
class Category:
    """One category's pixels at one size, memory-mapped.

    `images`: uint8 (N, S, S, 3), in the order of `samples`; `masks`: bool (T, S, S) of the T test samples, in their
    order; `regions`: int64 (T,), 8-connected defective regions of each test sample's mask before it was resized.
    """

    samples: list[Sample]
    images: np.ndarray
    masks: np.ndarray
    regions: np.ndarray

    def indices(self, split: str) -> np.ndarray:
        """Positions in `images` of the split's samples."""
        return np.array([i for i, sample in enumerate(self.samples) if sample.split == split], dtype=np.int64)

    def of(self, split: str) -> np.ndarray:
        """Images of the split: uint8 (N, S, S, 3), in the file itself where they lie there in one piece."""
        found = self.indices(split)
        if len(found) and found[-1] - found[0] + 1 == len(found):
            return np.asarray(self.images[found[0] : found[-1] + 1])
        return self.images[found]

    def test_samples(self) -> list[Sample]:
        return [sample for sample in self.samples if sample.split == "test"]


def as_dataset(source: Source, samples: list[Sample]) -> datasets.Dataset:
    """The samples as a Hugging Face data set: image, mask (None where nothing is defective), label, defect, split,
    path.
    """
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


def load(source: Source, data: Data, size: int, crop: int = 0) -> Category:
    """The category's pixels at `size`, from the cache or decoded into it; of these the middle of side `crop`, if given.

    Raises:
        DataError: a file changed or vanished since the plan.
    """
    samples = source.samples(data.category)
    folder = cache_folder("images") / digest([data.manifest, size])
    if not (folder / "images.npy").exists():
        _decode(source, samples, size, folder)
    arrays = {name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in ("images", "masks", "regions")}
    if crop:
        middle = slice((size - crop) // 2, (size - crop) // 2 + crop)
        arrays |= {name: arrays[name][:, middle, middle] for name in ("images", "masks")}
    category = Category(samples, **arrays)
    if len(category.images) != len(samples):
        raise DataError(f"dataset {source.name}: {data.category} changed since it was planned; run the grid again")
    return category


def _decode(source: Source, samples: list[Sample], size: int, folder: Path) -> None:
    rows = as_dataset(source, samples)
    tests = [i for i, sample in enumerate(samples) if sample.split == "test"]
    with new_folder(folder) as work:
        images = np.lib.format.open_memmap(work / "images.npy", "w+", np.uint8, (len(samples), size, size, 3))
        masks = np.lib.format.open_memmap(work / "masks.npy", "w+", np.bool_, (len(tests), size, size))
        regions = np.zeros(len(tests), np.int64)
        place = {row: position for position, row in enumerate(tests)}

        def fill(row: int) -> None:
            try:
                sample = rows[row]
            except OSError as error:
                raise DataError(f"{samples[row].path}: {error}") from None
            images[row] = _resized(sample["image"].convert("RGB"), size, source.resize, Image.Resampling.BILINEAR)
            if row in place and sample["mask"] is not None:
                mask = sample["mask"].convert("L")
                defective = np.asarray(mask) > source.mask_threshold
                regions[place[row]] = ndimage.label(defective, np.ones((3, 3)))[1]
                small = _resized(mask, size, source.resize, Image.Resampling.NEAREST)
                masks[place[row]] = small > source.mask_threshold

        with ThreadPoolExecutor(os.cpu_count()) as pool:
            list(pool.map(fill, range(len(samples))))
        images.flush()
        masks.flush()
        np.save(work / "regions.npy", regions)


def _resized(image: Image.Image, size: int, resize: str, resampling: Image.Resampling) -> np.ndarray:
    if resize == "pad":
        return np.asarray(ImageOps.pad(image, (size, size), method=resampling))
    return np.asarray(image.resize((size, size), resampling))


def hold_out(samples: list[Sample], train: np.ndarray, share: float) -> tuple[np.ndarray, np.ndarray]:
    """Split the training positions into those to train on and held-out normals, whole groups together.

    Drawn by a fixed seed, so that all runs of a category hold out the same images. Where the data set brings validation
    normals of its own (MVTec 3D-AD) there is no need for this.
    """
    draw = np.random.default_rng(0)
    groups = np.array([samples[i].group or samples[i].path for i in train])
    names = draw.permutation(np.unique(groups))
    held: set[str] = set()
    count = 0
    for name in names:
        if count >= share * len(train) or len(held) + 1 == len(names):
            break
        held.add(name)
        count += int((groups == name).sum())
    out = np.isin(groups, list(held))
    return train[~out], train[out]
