"""Folders to samples: the layouts of MVTec AD, MVTec 3D-AD (RGB) and Magnetic Tile Defects."""

import random
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from dskd.config import ConfigError, require
from harness.data.catalog import GOOD, IMAGE_SUFFIXES, DataError, Sample, Source, register_dataset
from harness.data.fingerprints import Fingerprints
from harness.data.patterns import Patterns, categories, composed, hold_out, samples


@register_dataset("mvtec_ad")
@dataclass(frozen=True)
class MVTecAD(Source):
    """MVTec AD: `<category>/train/good`, `test/<type>`, `ground_truth/<type>/<image>_mask.png`."""

    expected: ClassVar[str] = "<category>/train/good, <category>/test/<type>, <category>/ground_truth/<type>"
    may_lack: ClassVar[bool] = False  # masks, or all test images

    def available(self) -> list[str]:
        root = self.folder()
        if (root / "train" / GOOD).is_dir():  # the root is itself one category
            return [root.resolve().name]
        categories = [folder.name for folder in folders_in(root) if (folder / "train" / GOOD).is_dir()]
        if not categories:
            raise wrong_layout(self, root, self.expected)
        return categories

    def samples(self, category: str) -> list[Sample]:
        root = self.folder()
        base = root if (root / "train" / GOOD).is_dir() else root / category
        train = [Sample(relative(path, root), "train") for path in image_files(base / "train" / GOOD, self.name)]
        truth, test = base / "ground_truth", base / "test"
        if self.may_lack:
            _check_types(self, truth, test)
        return train + _test_samples(
            self, root, test, lambda kind: test / kind, lambda kind: truth / kind, "<image>_mask.png", self.may_lack
        )


@register_dataset("folder")
@dataclass(frozen=True)
class OwnFolder(MVTecAD):
    """A folder of your own: in MVTec AD's layout, where masks may lack, or as `normal` and the other patterns say
    (`harness.data.patterns`).

    Without normal images for testing a share of them is held out, drawn by `split_seed`, never by a run's seed. Without
    abnormal images there is nothing to score.

    Args:
        mask_threshold: a pixel is defective where the mask is above it.
        normal: the normal images, those to train on; abnormal: those to test on; masks: of these, each as a pattern.
        test_normal: the normal images to test on, as a pattern.
        test_share: of the normal images, to test on; 0.2 by default where there is no `test_normal`.
    """

    duplicates: Literal["refuse", "keep"] = "refuse"
    mask_threshold: int = 0
    normal: str | None = None
    abnormal: str | None = None
    masks: str | None = None
    test_normal: str | None = None
    test_share: float | None = None
    split_seed: int = 0

    may_lack: ClassVar[bool] = True
    default_share: ClassVar[float] = 0.2

    def __post_init__(self) -> None:
        said = f"dataset {self.name}: "
        require(self.mask_threshold >= 0, f"{said}mask_threshold {self.mask_threshold}: write 0 or more")
        if self.normal is None:
            others = ("abnormal", "masks", "test_normal", "test_share")
            given = next((key for key in others if getattr(self, key) is not None), None)
            require(given is None, f"{said}{given} needs the pattern of the normal images; write normal, too")
            return
        try:
            self._patterns()
        except ConfigError as error:
            raise ConfigError(f"{said}{error}") from None
        if self.test_share is not None:
            require(self.test_normal is None, f"{said}test_share goes without test_normal; remove one of them")
            require(self.abnormal is not None, f"{said}test_share: without abnormal images there is nothing to score")
            require(
                0 < self.test_share < 1,
                f"{said}test_share {self.test_share:g} is not possible; write 0.2, say: a share",
            )

    def options(self) -> dict[str, Any]:
        found = super().options()
        for key in ("normal", "abnormal", "masks", "test_normal", "test_share", "split_seed"):
            del found[key]
        if not self.mask_threshold:
            del found["mask_threshold"]
        return found | ({"test_share": self._share(), "split_seed": self.split_seed} if self._draws() else {})

    def available(self) -> list[str]:
        patterns = self._patterns()
        return super().available() if patterns is None else categories(self.name, self.folder(), patterns)

    def prepare(self, category: str, progress: Callable[[int, int], None] | None = None) -> None:
        if (patterns := self._patterns()) and self._draws():
            self._sha256(samples(self.name, self.folder(), patterns, category), progress)

    def samples(self, category: str) -> list[Sample]:
        patterns = self._patterns()
        if patterns is None:
            return super().samples(category)
        found = samples(self.name, self.folder(), patterns, category)
        if not self._draws() or not any(sample.anomalous for sample in found):
            return found
        drawn, seed = hold_out(found, self._sha256(found), self._share(), self.split_seed)
        if not drawn:
            raise DataError(
                f"dataset {self.name}: of the normal images of {category} test_share {self._share():g} and split_seed "
                f"{self.split_seed} leave none to train on or none to test on; write "
                + (f"split_seed: {seed}" if seed is not None else "test_normal: PATTERN, or add images")
            )
        return drawn

    def _patterns(self) -> Patterns | None:
        if self.normal is None:
            return None
        return Patterns(self.normal, self.abnormal, self.masks, self.test_normal)

    def _draws(self) -> bool:
        return self.normal is not None and self.abnormal is not None and self.test_normal is None

    def _share(self) -> float:
        return self.default_share if self.test_share is None else self.test_share

    def _sha256(self, found: list[Sample], progress: Callable[[int, int], None] | None = None) -> dict[str, str]:
        files = [sample.path for sample in found if sample.split == "train"]
        prints = Fingerprints(self.folder()).of(files, progress, self.max_megapixels)
        return {name: each.sha256 for name, each in prints.items()}


@register_dataset("mvtec_3d_ad")
@dataclass(frozen=True)
class MVTec3DAD(Source):
    """MVTec 3D-AD: `<category>/{train,validation,test}/<type>/{rgb,gt}/NNN.png`; RGB only, `xyz` is not read.

    The validation normals are the held-out ones of a recipe that selects its epoch on normals.
    """

    modality: Literal["rgb"] = "rgb"

    expected: ClassVar[str] = "<category>/{train,validation,test}/<type>/rgb, .../gt"
    leaves_pictures: ClassVar[bool] = True  # of depth

    def available(self) -> list[str]:
        root = self.folder()
        categories = [folder.name for folder in folders_in(root) if (folder / "train" / GOOD / "rgb").is_dir()]
        if not categories:
            raise wrong_layout(self, root, self.expected)
        return categories

    def samples(self, category: str) -> list[Sample]:
        root = self.folder()
        base = root / category
        samples = [
            Sample(relative(path, root), "train") for path in image_files(base / "train" / GOOD / "rgb", self.name)
        ]
        validation = base / "validation" / GOOD / "rgb"
        if validation.is_dir():
            samples += [Sample(relative(path, root), "val") for path in image_files(validation, self.name)]
        test = base / "test"
        return samples + _test_samples(
            self, root, test, lambda kind: test / kind / "rgb", lambda kind: test / kind / "gt", "NNN.png"
        )


@register_dataset("mtd")
@dataclass(frozen=True)
class MagneticTile(Source):
    """Magnetic Tile Defects: `MT_<type>/Imgs/*.jpg` with masks `*.png` of equal name; one category.

    The images are about 210 tiles, each taken under several exposures with neighbouring numbers in the file name.
    `split: tile` sends whole tiles of MT_Free to training until it holds 80 % of them; `split: image` draws single
    images, so that 97 % of the test normals have another exposure of their tile in training: for comparison with
    published rows only. By eye 6 of the 186 test normals of `tile` still have another exposure in training, with a
    farther number. Drawn by `split_seed`, never by a run's seed. The split of the DSKD paper is not known.

    Known deviations of the public files: four MT_Uneven masks are empty; their images stay anomalous.
    """

    split: Literal["tile", "image"] = "tile"
    split_seed: int = 0

    expected: ClassVar[str] = "MT_Free/Imgs/*.jpg and MT_<defect>/Imgs/*.jpg with *.png masks of equal name"
    mask_threshold: ClassVar[int] = 127  # mask edges are grey: above 0 would inflate the areas 1.5 times and more
    leaves_pictures: ClassVar[bool] = True  # empty masks of the good images
    largest_step: ClassVar[int] = 150  # a larger gap between sorted numbers starts a new tile
    train_share: ClassVar[float] = 0.8

    def available(self) -> list[str]:
        root = self.folder()
        if not (root / "MT_Free" / "Imgs").is_dir():
            raise wrong_layout(self, root, self.expected)
        return ["magnetic_tile"]

    def samples(self, category: str) -> list[Sample]:
        root = self.folder()
        found: list[tuple[Path, Path, str]] = []
        for folder in folders_in(root):
            if not folder.name.startswith("MT_"):
                continue
            defect = GOOD if folder.name == "MT_Free" else folder.name.removeprefix("MT_").lower()
            files = image_files(folder / "Imgs", self.name)
            images = [path for path in files if path.suffix.lower() != ".png"]
            masks = {path.stem: path for path in files if path.suffix.lower() == ".png"}
            pair_masks(self, root, images, masks, "test", defect, folder / "Imgs" / "<image>.png")
            found += [(path, masks[path.stem], defect) for path in images]
        groups = self._tiles([path for path, _, _ in found])
        free = [path for path, _, defect in found if defect == GOOD]
        train = self._train_images(free, groups)
        return [
            Sample(
                relative(path, root),
                "train" if path in train else "test",
                defect,
                None if defect == GOOD else relative(mask, root),
                f"{groups[path]:04d}",
            )
            for path, mask, defect in found
        ]

    def _tiles(self, paths: list[Path]) -> dict[Path, int]:
        """The tile of each image: runs of numbers without a gap above `largest_step`."""
        numbers = {}
        for path in paths:
            match = re.search(r"num_(\d+)$", path.stem)
            if match is None:
                raise DataError(f"dataset {self.name}: {path} has no number; expected a name like exp1_num_4727.jpg")
            numbers[path] = int(match[1])
        tiles, tile, last = {}, -1, -self.largest_step - 1
        for path in sorted(paths, key=lambda path: (numbers[path], path.name)):
            tile += numbers[path] - last > self.largest_step
            tiles[path], last = tile, numbers[path]
        return tiles

    def _train_images(self, free: list[Path], groups: dict[Path, int]) -> set[Path]:
        draw = random.Random(self.split_seed)
        units: dict[object, list[Path]] = {}
        for path in free:
            units.setdefault(groups[path] if self.split == "tile" else path, []).append(path)
        keys = sorted(units)
        draw.shuffle(keys)
        train: set[Path] = set()
        for key in keys:
            if len(train) >= self.train_share * len(free):
                break
            train.update(units[key])
        return train


def _test_samples(
    source: Source,
    root: Path,
    test: Path,
    images_of: Callable[[str], Path],
    masks_of: Callable[[str], Path],
    mask_name: str,
    may_lack: bool = False,
) -> list[Sample]:
    """The samples of every type (`good` or a defect) under the folder `test`; the callables give a type's folders.

    Args:
        may_lack: masks, or all of the images.
    """
    samples: list[Sample] = []
    for kind in (folder.name for folder in folders_in(test)):
        images = image_files(images_of(kind), source.name)
        if kind == GOOD:
            samples += [Sample(relative(path, root), "test") for path in images]
            continue
        truth = masks_of(kind)
        files = image_files(truth, source.name) if truth.is_dir() else []
        masks = {composed(path.stem.removesuffix("_mask")): path for path in files}
        samples += pair_masks(source, root, images, masks, "test", kind, truth / mask_name, may_lack)
    if not samples and not may_lack:
        raise DataError(f"dataset {source.name}: {test} holds no test images")
    return samples


def pair_masks(
    source: Source,
    root: Path,
    images: list[Path],
    masks: dict[str, Path],
    split: str,
    defect: str,
    wanted: Path,
    may_lack: bool = False,
) -> list[Sample]:
    """Samples of images with their masks, by their composed stem. Raises DataError for a mask that stands alone, and
    for such an image unless masks `may_lack`.
    """
    alone = [path for path in images if composed(path.stem) not in masks]
    if alone and not may_lack:
        hint = " (name: folder takes images without masks)" if isinstance(source, MVTecAD) else ""
        raise DataError(
            f"dataset {source.name}: {len(alone)} image(s) without a mask, first {alone[0]}; expected {wanted}{hint}"
        )
    stems = {composed(path.stem) for path in images}
    left = [mask for stem, mask in masks.items() if stem not in stems]
    if left:
        raise DataError(f"dataset {source.name}: {len(left)} mask(s) without an image, first {left[0]}")
    return [
        Sample(
            relative(path, root),
            split,
            defect,
            relative(mask, root) if (mask := masks.get(composed(path.stem))) else None,
        )
        for path in images
    ]


def _check_types(source: Source, truth: Path, test: Path) -> None:
    """Raises DataError where a type has no masks and masks have no type: they may be one that is spelt in two ways."""
    types, masks = ({folder.name for folder in folders_in(place)} - {GOOD} for place in (test, truth))
    if types - masks and masks - types:
        without, left = sorted(types - masks)[0], sorted(masks - types)[0]
        raise DataError(
            f"dataset {source.name}: {test / without} has no masks and {truth / left} no images; give both folders one "
            "name, or move the masks away"
        )


def folders_in(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []


def image_files(folder: Path, dataset: str) -> list[Path]:
    """The image files of a folder, sorted. Raises DataError if there is none."""
    paths = sorted(path for path in folder.iterdir() if _is_image(path)) if folder.is_dir() else []
    if not paths:
        state = "holds no images" if folder.is_dir() else "does not exist"
        raise DataError(f"dataset {dataset}: {folder} {state} ({', '.join(sorted(IMAGE_SUFFIXES))})")
    return paths


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith("._")  # a Mac leaves such beside images


def relative(path: Path, root: Path) -> str:
    return path.relative_to(root).as_posix()


def wrong_layout(source: Source, root: Path, expected: str) -> DataError:
    names = [path.name for path in sorted(root.iterdir())]
    found = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "") if names else "nothing"
    return DataError(f"dataset {source.name}: {root} has another layout; expected {expected}; found {found}")
