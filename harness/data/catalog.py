"""What a data set must hold, and the registry of those that a grid can name. No torch is imported here."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar

from dskd.config import ConfigError, from_mapping, require, suggest, to_mapping
from harness.files import user_path

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp"})
GOOD = "good"
PIXEL_REVISION = 2  # raised by hand when a fix changes what is decoded or resized; part of every manifest


class DataError(ConfigError):
    """A data set that is not what its grid entry says: one line with what was expected and what was found."""


Half = Literal["train", "test"]  # of a category: what is trained on or held out, and what is tested on


@dataclass(frozen=True)
class Sample:
    """One image of a category. Paths are relative to the source's root; `mask` is None where nothing is defective, and
    of an anomalous image where nobody said which of its pixels are (`known`).

    `group`: images of one physical object share it, and are never split between training and held-out normals.
    `more_masks`: of an image with several; a pixel is defective where any of them says so.
    """

    path: str
    split: Literal["train", "val", "test"]
    defect: str = GOOD
    mask: str | None = None
    group: str = ""
    more_masks: tuple[str, ...] = ()

    @property
    def anomalous(self) -> bool:
        return self.defect != GOOD

    @property
    def half(self) -> Half:
        return "test" if self.split == "test" else "train"

    @property
    def known(self) -> bool:
        """Whether each pixel's truth is known: of a good image, and of one with a mask."""
        return self.mask is not None or not self.anomalous

    @property
    def masks(self) -> tuple[str, ...]:
        """All of its masks; none where nothing is defective."""
        return (self.mask, *self.more_masks) if self.mask else ()


@dataclass(frozen=True)
class Source(ABC):
    """A data set as a grid entry describes it; the fields of a subclass are the keys that its entry takes.

    Args:
        root: the folder of the data set.
        categories: those to run, none given for all.
        resize: `square` stretches an image to the run's size, whatever that is; `pad` keeps its aspect and
            pads with black.
        range: the values that become black and white in pictures of more than 8 bits; None for all that their file's
            type can hold. Pictures of 8 bits are left alone.
        max_megapixels: no file may have more; it is there because a small file can decode to an image that no memory
            holds.
        duplicates: whether a plan refuses images that stand in training and in test with the same bytes, or as normal
            and as abnormal ones; a published data set is measured as it is, and the plan says it.
        limit: so many images of a category at most to train on, to hold out, and to test on of each type of defect and
            of the good ones; 0 for all.
    """

    root: str = ""
    categories: tuple[str, ...] = ()
    resize: Literal["square", "pad"] = "square"
    range: tuple[float, float] | None = None
    max_megapixels: float = 1000.0
    duplicates: Literal["refuse", "keep"] = "keep"
    limit: int = 0

    name: ClassVar[str]
    mask_threshold: ClassVar[int] = 0  # a pixel is defective where the mask is above it
    leaves_pictures: ClassVar[bool] = False  # whether its layout has some that are never read

    def folder(self) -> Path:
        """The folder that holds the data. Raises DataError if there is none."""
        if not self.root:
            raise DataError(f"dataset {self.name}: `root` is missing; write {{name: {self.name}, root: /path/to/it}}")
        folder = user_path(self.root, f"dataset {self.name}: root")
        with readable(self.name):
            if not folder.is_dir():
                raise DataError(f"dataset {self.name}: root {folder} is not a folder")
        return folder

    @abstractmethod
    def available(self) -> list[str]:
        """The categories that the folder holds. Raises DataError for a folder of another layout."""

    @abstractmethod
    def samples(self, category: str) -> list[Sample]:
        """The category's samples in a fixed order. Raises DataError for what is missing or left over."""

    def selected(self, category: str) -> list[Sample]:
        """Those of `samples` that `limit` leaves. Raises DataError as it does."""
        samples = self.samples(category)
        return limited(samples, self.limit) if self.limit else samples

    def options(self) -> dict[str, Any]:
        """Of the keys of its entry those that records and tables show: what decides what is measured, not where the
        files lie.
        """
        hidden = ("root", "categories", "range", "max_megapixels", "duplicates", "limit")
        return {key: value for key, value in to_mapping(self).items() if key not in hidden}

    def prepare(self, category: str, progress: Callable[[int, int], None] | None = None) -> None:  # noqa: B027
        """Called before `samples` by who can show how far it is: read what `samples` will need, where that takes long.

        Args:
            progress: called as (files read, files in all).
        """

    def fixed_manifest(self, category: str, half: Half) -> str | None:
        """What identifies the content of a half of the category where that is known without reading its files, else
        None.
        """
        return None

    def earlier_manifest(self, category: str) -> str | None:
        """As `fixed_manifest`, of both halves: what it was before each had one."""
        return None

    def fixed_hashes(self) -> Mapping[str, str]:
        """sha256 by path of files that no plan hashes (`fixed_manifest`), where they are known: no other content is
        decoded.
        """
        return {}

    def make_again(self) -> bool:
        """Write the data set's files anew, where it can do so, after they were found damaged; whether it did."""
        return False

    def chosen(self) -> list[str]:
        """The categories to run. Raises DataError for one that does not exist or a folder that cannot be read."""
        with readable(self.name):
            available = self.available()
        for category in self.categories:
            if category not in available:
                raise DataError(f"dataset {self.name}: unknown category {category!r}; {suggest(category, available)}")
        return list(self.categories) or available


def limited(samples: Sequence[Sample], limit: int) -> list[Sample]:
    """At most so many of each split and, in testing, of each type of defect: spread evenly over their order, so that
    the same are chosen everywhere and not all of one object. Pure.
    """
    classes: dict[tuple[str, str], list[int]] = {}
    for place, sample in enumerate(samples):
        classes.setdefault((sample.split, sample.defect), []).append(place)
    chosen = {
        places[i * len(places) // limit] if len(places) > limit else place
        for places in classes.values()
        for i, place in enumerate(places[:limit])
    }
    return [sample for place, sample in enumerate(samples) if place in chosen]


@contextmanager
def readable(name: str) -> Iterator[None]:
    """Around what looks into the folders of the data set `name`: an OSError becomes a DataError."""
    try:
        yield
    except OSError as error:
        where = error.filename or "its folder"
        raise DataError(f"dataset {name}: {where} cannot be read ({error.strerror or error})") from None


SOURCES: dict[str, type[Source]] = {}
S = TypeVar("S", bound=type[Source])


def register_dataset(name: str) -> Callable[[S], S]:
    """Class decorator: make a Source, a frozen dataclass, known to grids under `name`.

    Raises:
        ConfigError: a name that is taken.
    """

    def add(cls: S) -> S:
        require(name not in SOURCES, f"dataset {name!r} exists already; choose another name")
        cls.name = name
        SOURCES[name] = cls
        return cls

    return add


def get_source(entry: str | Mapping[str, Any], limit: int | None = None) -> Source:
    """The source of a grid entry: a name, or a mapping with `name` and the keys of that source.

    Args:
        limit: the grid's; of the entry's own and this one the lower counts.

    Raises:
        ConfigError: unknown name or key (with the near match), or a value that is not possible.
    """
    entry = {"name": entry} if isinstance(entry, str) else dict(entry)
    name = entry.pop("name", None)
    require(name is not None, f"dataset: {entry} has no `name`; one of: {', '.join(SOURCES)}")
    if not isinstance(name, str) or name not in SOURCES:
        raise ConfigError(f"unknown dataset {name!r}; {suggest(name, SOURCES)}")
    if entry.get("categories") == "all":
        del entry["categories"]
    source = from_mapping(SOURCES[name], entry, f"dataset {name}")
    low, high = source.range or (0, 1)
    require(low < high, f"dataset {name}: range [{low:g}, {high:g}] is not possible; write [LOW, HIGH] with LOW < HIGH")
    require(
        source.limit == 0 or source.limit >= 2,
        f"dataset {name}: limit {source.limit} is not possible; write 2 or more, or 0 for all",
    )
    require(
        source.max_megapixels > 0,
        f"dataset {name}: max_megapixels {source.max_megapixels:g} is not possible; write a number above 0",
    )
    lowest = min(filter(None, (source.limit, limit)), default=0)
    return source if lowest == source.limit else replace(source, limit=lowest)


def entry_of(source: Source) -> dict[str, Any]:
    """The inverse of `get_source`, as plain data."""
    return {"name": source.name, **to_mapping(source)}
