"""Data sets of the `datasets` library to samples: from the Hugging Face hub, local files, or a folder of save_to_disk.

Their images are written once into the cache, byte by byte, as files that are named by their content; from there on they
are read as those of any folder. What identifies an image is so its bytes, wherever it came from.
"""

import functools
import os
import re
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from dskd.config import require, to_mapping
from harness.data import export, fingerprints
from harness.data.catalog import DataError, Sample, readable, register_dataset
from harness.data.rows import Listed, Row, to_samples
from harness.files import user_path
from harness.spec import digest

FORMATS = {".parquet": "parquet", ".arrow": "arrow"}
_PART = re.compile(r"-\d+-of-\d+$")
_SPLIT = re.compile(r"[-_. ]?(train|test|val|validation)$")


@dataclass(frozen=True)
class HubColumns:
    """The column of each role; an empty name stands for the column that is called as the role, if there is one."""

    image: str = ""
    split: str = ""
    label: str = ""
    mask: str = ""
    category: str = ""
    group: str = ""


@dataclass(frozen=True)
class DataFiles:
    """Files of each split, as patterns: of the repository, or of this machine where no repository is named."""

    train: tuple[str, ...] = ()
    validation: tuple[str, ...] = ()
    test: tuple[str, ...] = ()

    def given(self) -> dict[str, list[str]]:
        return {split: names for split, names in to_mapping(self).items() if names}


@register_dataset("hub")
@dataclass(frozen=True)
class Hub(Listed):
    """A data set with images in it, as `datasets` reads it: `repo: OWNER/NAME`, `path` of a folder of save_to_disk, or
    `data_files`, local Parquet.

    Image and mask are columns of images. The split is the column `split`, else what the data set's split is called
    (`train`, `bottle.test`); the category is the column `category`, else what stands before the split's name, else the
    data set's name. `categories` and `data_files` keep what is not asked for from being fetched or written.

    Args:
        repo: on the hub; `config`, `revision` and `data_files` are passed on to `datasets.load_dataset`.
    """

    repo: str = ""
    config: str | None = None
    revision: str | None = None
    path: str = ""
    data_files: DataFiles = field(default_factory=DataFiles)
    columns: HubColumns = field(default_factory=HubColumns)

    expected: ClassVar[str] = "columns image, label or mask, and where there are some split, category, group"

    def __post_init__(self) -> None:
        super().__post_init__()
        require(not self.root, "dataset hub: it takes no `root`; write `path` for a folder of save_to_disk")
        require(
            not (self.path and (self.repo or self.data_files.given())),
            "dataset hub: `path` goes with neither `repo` nor `data_files`; write one of them",
        )

    def options(self) -> dict[str, Any]:
        hidden = ("repo", "config", "revision", "path", "data_files")
        return {key: value for key, value in super().options().items() if key not in hidden}

    def folder(self) -> Path:
        """The folder in the cache, written now if it is not there. Raises DataError and CacheError."""
        return export.written(self._key(), self._write)

    def available(self) -> list[str]:
        return list(export.index(self.folder())["rows"])

    def samples(self, category: str) -> list[Sample]:
        with readable(self.name):
            root = self.folder()
            found = export.index(root)
        rows = [Row(where, *cells[:3], tuple(cells[3]), cells[4]) for where, *cells in found["rows"][category]]
        read = functools.partial(fingerprints.greatest, root, max_megapixels=self.max_megapixels)
        return to_samples(self._about(), rows, self.rules(found["labelled"]), read)

    def make_again(self) -> bool:
        return export.mend(self._key(), self._write)

    def _about(self) -> str:
        return f"dataset {self.name}: {self.repo or self.path or next(iter(self._local()), 'data_files')}"

    def _key(self) -> str:
        """Of what decides the files that are written: sizes and times of local data, what is asked of the hub."""
        asked = [self.repo, self.config, self.revision, to_mapping(self.data_files), to_mapping(self.columns)]
        drawn = self.train_share is not None
        with readable(self.name):
            files = [] if self.repo else [[str(path), *_stamp(path)] for path in self._local()]
        return digest([*asked, sorted(self.categories), drawn, files])

    def _local(self) -> list[Path]:
        """The local files, in order. Raises DataError where there are none."""
        if self.repo:
            return []
        if self.path:
            folder = user_path(self.path).absolute()
            if not ((folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file()):
                raise DataError(
                    f"dataset {self.name}: {folder} is no folder of datasets' save_to_disk; write its path, or "
                    "data_files: {train: [PATTERN.parquet]} for Parquet"
                )
            return sorted(path for path in folder.rglob("*") if path.is_file())
        given = self.data_files.given()
        require(
            bool(given),
            f"dataset {self.name}: write repo: OWNER/NAME, path: FOLDER or data_files: {{train: [PATTERN.parquet]}}",
        )
        return [path for patterns in given.values() for pattern in patterns for path in _matches(self.name, pattern)]

    def _write(self, work: Path) -> None:
        drawn = self.train_share is not None
        found = export.Found(self._about(), self._splits(work), self.columns, self._named(), drawn)
        export.write(work, found, self.categories)

    def _named(self) -> str:
        """The category where nothing else tells it; `bottle` for data/bottle.train-00000-of-00001.parquet."""
        stem = "" if self.repo or self.path else _PART.sub("", self._local()[0].stem)
        return os.path.basename(self.repo or self.path.rstrip("/")) or _SPLIT.sub("", stem) or stem

    def _splits(self, work: Path) -> dict[str, Any]:
        """By name the data set's splits (`datasets.Dataset`); what is prepared of local files goes to `work`."""
        from harness.network import is_offline, reachable

        if self.repo and not is_offline():
            from huggingface_hub import constants

            if not reachable(constants.ENDPOINT):
                raise DataError(
                    f"dataset {self.name}: {self.repo} is not in the cache and the hub cannot be reached; plan once "
                    "where there is a network, set HF_HUB_OFFLINE=1 to take what `datasets` has in its own cache, or "
                    "fetch the Parquet files and write data_files: {train: [PATTERN]} without `repo`"
                )
        import datasets

        if not sys.stderr.isatty():
            datasets.disable_progress_bars()
        try:
            if self.path:
                found = datasets.load_from_disk(str(user_path(self.path)))
            elif self.repo:
                files = self.data_files.given() or None
                found = datasets.load_dataset(self.repo, self.config, data_files=files, revision=self.revision)
            else:
                files = {
                    split: [str(path) for pattern in patterns for path in _matches(self.name, pattern)]
                    for split, patterns in self.data_files.given().items()
                }
                kind = FORMATS[self._local()[0].suffix.lower()]
                found = datasets.load_dataset(kind, data_files=files, cache_dir=str(work / export.PREPARED))
        except DataError:
            raise
        except Exception as error:  # the library raises many kinds; each means that the data cannot be had
            reason = " ".join(str(error).split())[:300]
            raise DataError(
                f"{self._about()} cannot be loaded by `datasets` ({type(error).__name__}: {reason})"
            ) from None
        return dict(found) if isinstance(found, dict) else {"": found}


def _matches(name: str, pattern: str) -> list[Path]:
    """The local files of a pattern, sorted. Raises DataError where there are none, or those of another format."""
    path = user_path(pattern).absolute()
    found = sorted(path.parent.glob(path.name)) or ([path] if path.is_file() else [])
    if not found:
        raise DataError(
            f"dataset {name}: data_files: no file matches {path}; write a path or a pattern of Parquet files"
        )
    other = next((each for each in found if each.suffix.lower() not in FORMATS), None)
    if other is not None:
        raise DataError(
            f"dataset {name}: data_files: {other} is not of {', '.join(FORMATS)}; a list of files is `table`'s"
        )
    return found


def _stamp(path: Path) -> tuple[int, int]:
    found = path.stat()
    return found.st_size, found.st_mtime_ns
