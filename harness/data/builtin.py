"""The built-in data set `surfaces` as a source: written once as a folder in MVTec AD's layout, then read as one."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from dskd.config import require
from harness.data import surfaces
from harness.data.catalog import register_dataset
from harness.data.layouts import MVTecAD
from harness.files import cache_folder, new_folder
from harness.spec import digest


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
        """The folder in the cache, written now if it is not there."""
        folder = cache_folder("surfaces") / self._content()
        if not folder.exists():
            counts = {"train": self.train, "test_good": self.test_good, "test_per_defect": self.test_per_defect}
            with new_folder(folder) as work:
                surfaces.write_tree(work, list(surfaces.CATEGORIES), **counts, size=self.side)
        return folder

    def available(self) -> list[str]:
        return list(surfaces.CATEGORIES)

    def fixed_manifest(self, category: str) -> str:
        # Not of the files: their bytes follow the PNG library, their last bits the processor.
        return digest([self._content(), category])

    def _content(self) -> str:
        return digest([surfaces.REVISION, self.train, self.test_good, self.test_per_defect, self.side])
