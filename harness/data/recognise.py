"""What a folder, or a table, is: one of the layouts that a grid can name, or folders that patterns tell apart."""

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any

from dskd.config import ConfigError
from harness.data import patterns
from harness.data.catalog import SOURCES, DataError, Sample, Source, get_source, readable
from harness.data.guess import guess
from harness.data.headers import digest
from harness.data.layouts import OwnFolder
from harness.data.tables import FORMATS, read_table
from harness.data.words import columns_for, word_of
from harness.files import user_path

# Of sets in MVTec AD's layout the categories, by which they are told from a folder of one's own.
CATEGORIES = {
    "mvtec_ad": "bottle cable capsule carpet grid hazelnut leather metal_nut pill screw tile toothbrush transistor wood"
    " zipper",
    "mpdd": "bracket_black bracket_brown bracket_white connector metal_plate tubes",
    "visa": "candle capsules cashew chewinggum fryum macaroni1 macaroni2 pcb1 pcb2 pcb3 pcb4 pipe_fryum",
}
DEFAULT_SHARE = 0.8  # of a table without splits, to train
MOST_DRAWN = 200  # normal pictures of a category, of so few that they are read to know which of them are held out

Entry = dict[str, Any]


@dataclass(frozen=True)
class Recognised:
    """What a folder is.

    Attributes:
        entry: as a grid has it.
        what: in words.
        samples: by category; the normal ones of which a run will hold out `share` are all of the split train.
        notes: a line on each thing that was guessed or is left out.
        others: files that are no pictures, counted by suffix.
    """

    entry: Entry
    source: Source
    what: str
    samples: Mapping[str, Sequence[Sample]]
    notes: tuple[str, ...] = ()
    share: float = 0.0
    others: Mapping[str, int] = field(default_factory=dict)


def recognise(place: str, given: Mapping[str, str] | None = None) -> Recognised:
    """Look at a folder or a table.

    Args:
        place: its path, as the user writes it and as the grid will have it.
        given: the patterns of the user's own, by their key; nothing is guessed then.

    Raises:
        ConfigError: there is nothing at the path, or nothing that can be read as a data set: what was found, and what
            to write.
    """
    path = user_path(place)
    with readable("folder"):
        if path.is_file():
            return _of_table(place, path)
        if not path.is_dir():
            raise DataError(f"--data: there is no folder or table {path}; write the path of your pictures")
        images, others = _files(path)
        if given:
            return replace(_of_patterns(place, dict(given), ()), others=others)
        found, failed = _first(_ways(place, path, images))
        notes = (*found.notes, *(f"not taken: {reason}" for reason in failed))
        return replace(found, notes=notes, others=others if found.source.root else {})


def _files(root: Path) -> tuple[list[str], Counter[str]]:
    images: list[str] = []
    others: Counter[str] = Counter()
    for _, inside, names in patterns.tree(root, ""):
        for name in names:
            if patterns.is_image(name):
                images.append(inside + name)
            elif not name.startswith("."):
                others[PurePosixPath(name).suffix.lower() or name] += 1
    return sorted(images), others


Way = Callable[[], Recognised | None]


def _ways(place: str, path: Path, images: list[str]) -> Iterator[Way]:
    """From the most certain to the least. Each gives None, or raises DataError, where the folder is no such thing."""
    yield lambda: _saved(place, path)
    yield lambda: _published(place)
    yield lambda: _mvtec(place)
    for file in sorted(path.iterdir()):
        if file.is_file() and file.suffix.lower() in FORMATS:
            yield lambda file=file: _of_table(f"{place.rstrip('/')}/{file.name}", file)

    def guessed() -> Recognised:
        if not images:
            raise DataError(f"--data: {path} holds no pictures, no table and no Parquet that can be read")
        try:
            found = guess(images)
        except DataError as error:
            raise DataError(f"--data: {path}: {error}") from None
        return _of_patterns(place, found.patterns, found.notes, found.counts)

    yield guessed


def _first(ways: Iterator[Way]) -> tuple[Recognised, list[str]]:
    """The first way that succeeds, and the reasons of those before it that did not. Raises DataError with all of them
    where none does.
    """
    failed: list[str] = []
    for way in ways:
        try:
            if (found := way()) is not None:
                return found, failed
        except LayoutError:
            raise
        except ConfigError as error:
            failed.append(str(error))
    raise DataError("; ".join(reversed(failed)))


class LayoutError(DataError):
    """What is wrong with a folder whose layout leaves no doubt: no other way is tried."""


def _samples(source: Source) -> dict[str, list[Sample]]:
    return {category: source.samples(category) for category in source.chosen()}


def _published(place: str) -> Recognised | None:
    """A published set: every registered data set that lies in a `root` is asked whether it is this one."""
    for name, cls in SOURCES.items():
        if cls.folder is not Source.folder or name == "folder":
            continue
        try:
            source = get_source({"name": name, "root": place})
            samples = _samples(source)
        except (ConfigError, OSError):
            continue
        if name not in CATEGORIES or samples.keys() <= set(CATEGORIES[name].split()):
            return Recognised({"name": name, "root": place}, source, f"{name}, as it is published", samples)
    return None


def _mvtec(place: str) -> Recognised | None:
    source = get_source({"name": "folder", "root": place})
    try:
        source.available()
    except DataError:
        return None
    try:
        samples = _samples(source)
    except DataError as error:
        raise LayoutError(str(error)) from None
    what = "MVTec AD's layout (train/good, test/<type>, ground_truth/<type>)"
    return Recognised({"name": "folder", "root": place}, source, what, samples)


def _of_patterns(
    place: str, given: dict[str, str], notes: Sequence[str], counts: Mapping[str, int] | None = None
) -> Recognised:
    """Patterns, tried on the disk; masks that do not go with the pictures are left out, and said.

    Raises:
        DataError: a pattern that matches nothing, or not as many pictures as it should.
    """
    source = get_source({"name": "folder", "root": place, **given})
    root = source.folder()
    own = patterns.Patterns(**given)
    try:
        names = patterns.categories(source.name, root, own)
        samples = {name: patterns.samples(source.name, root, own, name) for name in names}
    except DataError as error:
        if counts is None or "masks" not in given:
            raise
        fewer = {key: value for key, value in given.items() if key != "masks"}
        return _of_patterns(place, fewer, [*notes, f"masks are left out: {error}"], counts)
    every = [sample for each in samples.values() for sample in each]
    found = {
        "normal": sum(sample.split == "train" for sample in every),
        "test_normal": sum(sample.split == "test" and not sample.anomalous for sample in every),
        "abnormal": sum(sample.anomalous for sample in every),
    }
    wrong = next((key for key, count in (counts or {}).items() if found[key] != count), None)
    if wrong:
        raise DataError(
            f"--data: {root}: no patterns tell its folders apart ({wrong}: {given[wrong]!r} matches {found[wrong]} "
            f"pictures of {(counts or {})[wrong]}); write --normal PATTERN --abnormal PATTERN"
        )
    what = "folders of normal and abnormal pictures" if "abnormal" in given else "normal pictures only"
    entry = {"name": "folder", "root": place, **given}
    if "abnormal" not in given or "test_normal" in given:
        return Recognised(entry, source, what, samples, tuple(notes))
    if any(sum(not sample.anomalous for sample in each) > MOST_DRAWN for each in samples.values()):
        return Recognised(entry, source, what, samples, tuple(notes), OwnFolder.default_share)
    seed, drawn = _drawn(root, samples)
    if seed:
        entry["split_seed"] = seed
        notes = [*notes, f"split_seed {seed}, as 0 leaves a category without normal pictures on one side"]
    return Recognised(entry, get_source(entry), what, drawn, tuple(notes))


def _drawn(root: Path, samples: Mapping[str, Sequence[Sample]]) -> tuple[int, dict[str, Sequence[Sample]]]:
    """The first seed with which each category has normal pictures to train on and to test on, and what it draws; 0 and
    all to train on where no seed can.
    """
    normal = [sample.path for each in samples.values() for sample in each if sample.split == "train"]
    sha256 = {name: digest(root / name) for name in normal}
    for seed in range(patterns.MOST_SEEDS):
        found = {}
        for category, each in samples.items():
            found[category], other = patterns.hold_out(each, sha256, OwnFolder.default_share, seed)
            if not found[category] and other is None:
                return 0, dict(samples)  # a single picture, or copies of one
        if all(found.values()):
            return seed, found
    return 0, dict(samples)


def _of_table(place: str, file: Path) -> Recognised:
    """A table with a row for each picture, or Parquet that holds the pictures. Raises DataError."""
    stat = file.stat()
    content = read_table(file, f"--data: {file}", (stat.st_size, stat.st_mtime_ns, stat.st_ino))
    columns = columns_for(list(content.columns))
    if content.others and "path" not in columns:
        return _of_hub(place, {"data_files": _parquet(place, file)}, [*content.others, *content.columns])
    entry = {"name": "table", "file": place, **_mapped(columns)}
    return _listed(entry, columns, "a table with a row for each picture")


def _of_hub(place: str, where: Entry, there: list[str]) -> Recognised:
    columns = columns_for(there, "image")
    splits = where.get("data_files", {})
    known = {**columns, "split": ""} if len(splits) > 1 or "path" in where else columns
    entry = {"name": "hub", **where, **_mapped(columns)}
    return _listed(entry, known, f"pictures in {place}, as `datasets` reads them")


def _listed(entry: Entry, columns: Mapping[str, str], what: str) -> Recognised:
    notes = []
    if "split" not in columns:
        entry |= {"train_share": DEFAULT_SHARE}
        notes.append(f"there is no column of splits: {DEFAULT_SHARE:.0%} of the normal pictures train, drawn by a hash")
    source = get_source(entry)
    return Recognised(entry, source, what, _samples(source), tuple(notes))


def _mapped(columns: Mapping[str, str]) -> Entry:
    """`columns`, of those that are called otherwise than their role."""
    other = {role: column for role, column in columns.items() if column != role}
    return {"columns": other} if other else {}


def _parquet(place: str, file: Path) -> dict[str, list[str]]:
    """Of a Parquet file, and those beside it that are called as other splits, the files of each split."""
    folder = place.rpartition("/")[0]
    found: dict[str, list[str]] = {}
    for each in sorted(file.parent.glob(f"*{file.suffix}")):
        split = {"val": "validation", "train": "train", "test": "test"}.get(word_of(each.stem), "")
        if split:
            found.setdefault(split, []).append(f"{folder}/{each.name}" if folder else each.name)
    return found if len(found) > 1 else {"train": [place]}


def _saved(place: str, path: Path) -> Recognised | None:
    """A folder of `save_to_disk`."""
    if not ((path / "dataset_dict.json").is_file() or (path / "state.json").is_file()):
        return None
    info = next(iter(sorted(path.rglob("dataset_info.json"))), None)
    try:
        features = json.loads(info.read_text()).get("features", {}) if info else {}
    except (OSError, ValueError, AttributeError):
        features = {}
    pictures = [name for name, kind in features.items() if isinstance(kind, dict) and kind.get("_type") == "Image"]
    return _of_hub(place, {"path": place}, [*pictures, *(name for name in features if name not in pictures)])
