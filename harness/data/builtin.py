"""The built-in data set `surfaces` as a source: written once as a folder in MVTec AD's layout, then read as one."""

import hashlib
import json
import os
from collections.abc import Collection, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Literal

from dskd.config import require
from harness.data.catalog import Half, Sample, register_dataset
from harness.data.layouts import MVTecAD
from harness.files import cache_folder, new_folder
from harness.spec import digest

HASHES = "hashes.json"  # beside the categories: sha256 of every file, by path


@register_dataset("surfaces")
@dataclass(frozen=True)
class Surfaces(MVTecAD):
    """Procedural textures with defects: nothing to download, the same pixels everywhere.

    Args:
        train: normal training images of a category.
        test_good: normal test images of a category.
        test_per_defect: test images of each kind of defect.
        side: width and height of the files in pixels.
    """

    resize: Literal["square"] = "square"
    train: int = 48
    test_good: int = 16
    test_per_defect: int = 6
    side: int = 256

    def __post_init__(self) -> None:
        require(not self.root, "dataset surfaces: it is built in and takes no `root`; remove it")
        counts = self.train, self.test_good, self.test_per_defect
        require(
            min(counts) >= 1, f"dataset surfaces: train, test_good, test_per_defect {counts}: write 1 or more of each"
        )
        require(32 <= self.side <= 2048, f"dataset surfaces: side {self.side} is not possible; write 32 to 2048")

    def folder(self) -> Path:
        """The folder in the cache, written now if it is not there. Raises CacheError."""
        folder = self._folder()
        if not (folder / HASHES).exists():  # those of earlier versions have none
            self._write(folder)
        with suppress(OSError):  # the time of its last use
            os.utime(folder)
        return folder

    def samples(self, category: str) -> list[Sample]:
        if not _is_whole(self.folder(), [category]):
            self._write(self._folder())
        return super().samples(category)

    def make_again(self) -> bool:
        if not _is_intact(self._folder()):
            self._write(self._folder())
        return True

    def fixed_hashes(self) -> Mapping[str, str]:
        return _hashes(self.folder())

    def _folder(self) -> Path:
        return cache_folder("surfaces") / self._content()

    def _write(self, folder: Path) -> None:
        surfaces = _surfaces()
        counts = {"train": self.train, "test_good": self.test_good, "test_per_defect": self.test_per_defect}
        with new_folder(folder, _is_intact) as work:
            surfaces.write_tree(work, list(surfaces.CATEGORIES), **counts, size=self.side)
            (work / HASHES).write_text(
                json.dumps({name: _sha256(work / name) for name in sorted(_names(work, surfaces.CATEGORIES))})
            )

    def available(self) -> list[str]:
        return list(_surfaces().CATEGORIES)

    def fixed_manifest(self, category: str, half: Half) -> str:
        # Not of the files: their bytes follow the PNG library, their last bits the processor.
        counts = [self.train] if half == "train" else [self.test_good, self.test_per_defect]
        return digest([_surfaces().REVISION, half, *counts, self.side, category])

    def earlier_manifest(self, category: str) -> str:
        return digest([self._content(), category])

    def _content(self) -> str:
        return digest([_surfaces().REVISION, self.train, self.test_good, self.test_per_defect, self.side])


def _surfaces() -> ModuleType:
    """Imported where it is used: with numpy and scipy it takes longer than a plan that needs none of them."""
    from harness.data import surfaces

    return surfaces


def _names(folder: Path, categories: Iterable[str]) -> set[str]:
    """All images under the categories' folders, by path."""
    start = len(str(folder)) + 1
    places = (place for category in categories for place in os.walk(f"{folder}/{category}"))
    return {f"{place[start:]}/{name}" for place, _, names in places for name in names}


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _hashes(folder: Path) -> dict[str, str]:
    """As they were written with the files; empty where that is not known."""
    try:
        found = json.loads((folder / HASHES).read_text())
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _is_whole(folder: Path, categories: Collection[str]) -> bool:
    """Whether no file of the categories is missing and none was added."""
    names = _names(folder, categories)
    return bool(names) and names == {name for name in _hashes(folder) if name.split("/")[0] in categories}


def _is_intact(folder: Path) -> bool:
    """Whether every file is what was written."""
    try:
        if not _is_whole(folder, _surfaces().CATEGORIES):
            return False
        return all(_sha256(folder / name) == known for name, known in _hashes(folder).items())
    except OSError:
        return False
