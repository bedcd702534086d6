"""A list of image files to what they seem to be: which folders hold normal, abnormal pictures and masks. Pure.

Folders are told by their names (`words`) and by where they lie; what comes out are the patterns of a `folder` entry
(`patterns`), which a user can read and change. Nothing is looked at: who calls this checks the patterns on the disk.
"""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath

from harness.data.catalog import DataError
from harness.data.words import Word, word_of

MOST_LISTED = 8  # folders in a message
BESIDE = re.compile(r"[-_. ](mask|maske|gt|label|seg|truth)$", re.IGNORECASE)  # of a mask's stem beside its image
SPECIAL = re.compile(r"[*?\[\]{}]")


@dataclass(frozen=True)
class Guess:
    """The patterns of an entry `name: folder`, how many images each should match, and a line on each thing that was
    guessed or left out.
    """

    patterns: dict[str, str]
    counts: dict[str, int]
    notes: tuple[str, ...] = ()


@dataclass
class Place:
    """A folder that holds images itself. `at`: the part of its path that says its role."""

    parts: tuple[str, ...]
    names: list[str] = field(default_factory=list)
    words: tuple[Word, ...] = ()
    role: Word = ""
    at: int = 0

    @property
    def split(self) -> Word:
        return next((word for word in self.words if word in ("train", "val", "test")), "")

    @property
    def head(self) -> tuple[str, ...]:
        return self.parts[: self.at + 1]

    @property
    def tail(self) -> tuple[str, ...]:
        return self.parts[self.at + 1 :]

    def take(self, role: Word, at: int) -> None:
        self.role, self.at = role, at


def guess(paths: Iterable[str]) -> Guess:
    """What the image files of a folder seem to be, given as paths relative to it, with `/`.

    Raises:
        DataError: nothing tells normal from abnormal pictures, or no pattern does: what was found, and what to write.
    """
    places = _places(paths)
    _by_words(places)
    _by_split(places)
    notes = _by_neighbours(places)
    by_role = {role: [place for place in places if place.role == role] for role in ("normal", "abnormal", "mask", "")}
    if not by_role["normal"]:
        raise DataError(_undecided(places))
    for place in places:
        if SPECIAL.search("/".join(place.parts)) and place.role:
            raise DataError(
                f"the folder {'/'.join(place.parts)!r} has one of * ? [ ] {{ }} in its name, which mean something in "
                "patterns; rename it"
            )
    return _Composer(places, notes).compose()


def listed(places: Sequence[Place]) -> str:
    """`gut (20 pictures), teile/schlecht (3)`"""
    some = [f"{'/'.join(place.parts) or '.'} ({len(place.names)})" for place in places[:MOST_LISTED]]
    more = f" and {len(places) - MOST_LISTED} more folders" if len(places) > MOST_LISTED else ""
    return ", ".join(some) + more


def _places(paths: Iterable[str]) -> list[Place]:
    found: dict[tuple[str, ...], Place] = {}
    for path in paths:
        *parts, name = PurePosixPath(path).parts
        found.setdefault(tuple(parts), Place(tuple(parts))).names.append(name)
    return [found[key] for key in sorted(found)]


def _by_words(places: Sequence[Place]) -> None:
    """`ground_truth/bad` holds masks, `bad/ok_side` abnormal pictures: masks come first, then what is abnormal."""
    for place in places:
        place.words = tuple(map(word_of, place.parts))
        for role in ("mask", "abnormal", "normal"):
            if role in place.words:
                place.take(role, place.words.index(role))
                break


def _by_split(places: Sequence[Place]) -> None:
    """A training folder without a word in or beside it holds normal pictures: they are what is trained on."""
    told = {place.parts[: i + 1] for place in places if place.role for i, word in enumerate(place.words) if word}
    others = any(place.role in ("normal", "abnormal") or place.split == "test" for place in places)
    for place in places:
        if not place.role and place.split == "train" and others:
            at = place.words.index("train")
            if place.parts[: at + 1] not in told:
                place.take("normal", at)


def _by_neighbours(places: Sequence[Place]) -> list[str]:
    """Where only the normal or only the abnormal pictures are called so, those beside them are the others."""
    normal = [place for place in places if place.role == "normal"]
    abnormal = [place for place in places if place.role == "abnormal"]
    unknown = [place for place in places if not place.role]
    if normal and not abnormal:
        parents = {place.parts[: place.at]: place.at for place in normal if "normal" in place.words}
        beside = [place for place in unknown if any(place.parts[:at] == up for up, at in parents.items())]
        beside = [place for place in beside if len(place.parts) > len(_parent_of(place, parents))]
        if any(place.split == "test" for place in beside):
            beside = [place for place in beside if place.split == "test"]
        for place in beside:
            place.take("abnormal", len(_parent_of(place, parents)))
        if beside:
            return [f"taken as types of defects, since they lie beside the normal pictures: {listed(beside)}"]
    if abnormal and not normal:
        parents = {place.parts[: place.at]: place.at for place in abnormal}
        beside = [place for place in unknown if any(place.parts[:at] == up for up, at in parents.items())]
        names = {place.parts[len(_parent_of(place, parents)) :][:1] for place in beside}
        if len(names) == 1:
            for place in beside:
                place.take("normal", min(len(_parent_of(place, parents)), len(place.parts)))
            return [f"taken as normal, since nothing else lies beside the abnormal pictures: {listed(beside)}"]
    if len(places) == 1 and not normal and not abnormal and unknown:
        unknown[0].take("normal", max(len(unknown[0].parts) - 1, 0))
        return ["nothing says which pictures are normal: all are taken as normal"]
    return []


def _parent_of(place: Place, parents: dict[tuple[str, ...], int]) -> tuple[str, ...]:
    return max((up for up in parents if place.parts[: len(up)] == up), key=len, default=())


def _undecided(places: Sequence[Place]) -> str:
    """What was found where nothing tells normal from abnormal pictures, and what to write."""
    shown = sorted(places, key=lambda place: -len(place.names))
    masks = [place for place in places if place.role == "mask"]
    others = [place for place in places if place.role != "mask"]
    if masks and others:
        return (
            f"no folder says which pictures are normal; it holds {listed(shown)}. Where the masks tell it, write a "
            "table with the columns path, split and mask and give its path; else name them: --normal FOLDER "
            "--abnormal FOLDER"
        )
    return (
        f"no folder says which pictures are normal and which are not; it holds {listed(shown)}. Name them: --normal "
        "FOLDER --abnormal FOLDER (patterns such as '{category}/a'), or --normal '**' where all are normal"
    )


class _Composer:
    """Places with roles to patterns. Positions are parts of a path before the one that says the role."""

    def __init__(self, places: Sequence[Place], notes: Sequence[str]) -> None:
        self.places, self.notes = places, list(notes)
        self.normal = [place for place in places if place.role == "normal"]
        self.test: list[Place] = []
        self.abnormal = [place for place in places if place.role == "abnormal"]
        self.masks = [place for place in places if place.role == "mask"]
        self._divide()
        heads = [place.head for place in (*self.normal, *self.test, *self.abnormal)]
        self.deep = len({place.at for place in (*self.normal, *self.test, *self.abnormal)}) > 1
        self.category: int | None = None  # the position of {category}
        self.values: dict[int, set[str]] = {}  # by position those of all images
        for head in heads:
            for j, part in enumerate(head[:-1]):
                self.values.setdefault(j, set()).add(part)
        unknown = [j for j, values in self.values.items() if len(values) > 1 and not any(map(word_of, values))]
        if unknown and not self.deep:
            self.category = unknown[0]
        self.defects: set[str] = set()

    def compose(self) -> Guess:
        found = {"normal": self._images(self.normal, "normal")}
        if self.test:
            found["test_normal"] = self._images(self.test, "normal")
        if self.abnormal:
            found["abnormal"] = self._images(self.abnormal, "abnormal")
        beside = self._masks_beside(found) if self.abnormal else 0
        if self.masks and self.abnormal:
            found["masks"] = self._mask_pattern()
        if self.deep:
            self.notes.append("folders lie at different depths: all of a name are taken together, as one category")
        counts = {
            key: sum(len(place.names) for place in own)
            for key, own in (("normal", self.normal), ("test_normal", self.test), ("abnormal", self.abnormal))
            if key in found
        }
        if beside:
            counts["abnormal"] -= beside
        left = [place for place in self.places if not place.role]
        if left:
            self.notes.append(f"left out, since their names say nothing: {listed(left)}")
        return Guess(found, counts, tuple(self.notes))

    def _divide(self) -> None:
        """Normal pictures to train on and to test on; those for validation are left out, as no pattern names them."""
        splits = {place.split for place in self.normal}
        if "test" in splits and len(splits) > 1:
            self.test = [place for place in self.normal if place.split == "test"]
            self.normal = [place for place in self.normal if place.split != "test"]
        if "train" in splits and "val" in splits:
            left = [place for place in self.normal if place.split == "val"]
            self.normal = [place for place in self.normal if place.split != "val"]
            self.notes.append(f"left out, since they are for validation: {listed(left)}")

    def _before(self, own: Sequence[Place]) -> list[str]:
        """The parts of a pattern before the one that says the role."""
        if self.deep:
            return ["**"]
        parts = []
        for j in range(own[0].at):
            here = {place.parts[j] for place in own}
            parts.append("{category}" if j == self.category else here.pop() if len(here) == 1 else "*")
        return parts

    def _images(self, own: Sequence[Place], role: Word) -> str:
        parts = self._before(own)
        names = {place.parts[place.at] for place in own if len(place.parts) > place.at}
        if not names:  # pictures beside the folders of the others
            return "/".join([*parts, "*.*"])
        others = {
            place.parts[place.at if place.role else own[0].at]
            for place in self.places
            if place not in own and len(place.parts) > (place.at if place.role else own[0].at)
        }
        last = _fitting(names, others)
        if role == "abnormal" and len(names) > 1:
            strangers = {name for name in others if word_of(name) not in ("normal", "mask")}
            if not strangers & self._beside(own) and not self.deep:
                last, self.defects = "{defect}", names
        if last is None:
            raise DataError(
                f"no pattern tells the {role} pictures from the others ({listed(own)}); put them into folders of one "
                f"name, or write --normal PATTERN --abnormal PATTERN"
            )
        parts.append(last)
        if role == "abnormal" and last != "{defect}" and all(place.tail for place in own):
            parts.append("{defect}")
            self.defects = {place.tail[0] for place in own}
        return "/".join(parts)

    def _beside(self, own: Sequence[Place]) -> set[str]:
        """The names at the place of these ones' role, of all folders."""
        at = own[0].at
        return {place.parts[at] for place in self.places if len(place.parts) > at}

    def _mask_pattern(self) -> str:
        first = self.masks[0]
        categories = self.values.get(self.category, set()) if self.category is not None else set()
        lengths = {place.at for place in self.masks}
        if self.deep or len(lengths) > 1:
            return f"**/{_fitting({place.parts[place.at] for place in self.masks}, set()) or '*'}{self._mask_name()}"
        parts = [self._mask_part({place.parts[j] for place in self.masks}, categories) for j in range(first.at)]
        parts.append(_fitting({place.parts[first.at] for place in self.masks}, set()) or "*")
        for k in range(min(len(place.tail) for place in self.masks)):
            if (part := self._mask_part({place.tail[k] for place in self.masks}, categories))[0] != "{":
                break
            parts.append(part)
        return "/".join(parts) + self._mask_name()

    def _mask_part(self, names: set[str], categories: set[str]) -> str:
        if categories and names <= categories:
            return "{category}"
        if self.defects and names <= self.defects:
            return "{defect}"
        return next(iter(names)) if len(names) == 1 else "*"

    def _mask_name(self) -> str:
        """What stands behind the folder of the masks: nothing where they are called as their images are, with or
        without `_mask`."""
        images = {PurePosixPath(name).stem for place in (*self.normal, *self.abnormal) for name in place.names}
        masks = [PurePosixPath(name).stem for place in self.masks for name in place.names]
        if all(stem in images or stem.removesuffix("_mask") in images for stem in masks):
            return ""
        ends = Counter(
            stem[len(image) :] for stem in masks for image in [stem[:i] for i in range(len(stem))] if image in images
        )
        starts = Counter(
            stem[: -len(image)]
            for stem in masks
            for image in [stem[i:] for i in range(1, len(stem))]
            if image in images
        )
        end, start = (each.most_common(1)[0] if each else ("", 0) for each in (ends, starts))
        if not end[1] and not start[1]:
            return ""
        return f"/**/{{stem}}{end[0]}.*" if end[1] >= start[1] else f"/**/{start[0]}{{stem}}.*"

    def _masks_beside(self, found: dict[str, str]) -> int:
        """Masks in the folder of their images: `x_mask.png` beside `x.jpg`, or `x.png` beside `x.jpg`. How many."""
        ends: Counter[str] = Counter()
        suffixes: Counter[tuple[str, str]] = Counter()
        for place in self.abnormal:
            stems: dict[str, list[str]] = {}
            for name in place.names:
                stems.setdefault(PurePosixPath(name).stem, []).append(PurePosixPath(name).suffix)
            for stem, kinds in stems.items():
                match = BESIDE.search(stem)
                if match and stem[: match.start()] in stems:
                    ends[match[0]] += 1
                if len(kinds) == 2:
                    suffixes[tuple(sorted(kinds))] += 1
        base = found["abnormal"]
        if ends:
            end, count = ends.most_common(1)[0]
            found["masks"] = f"{base}/**/{{stem}}{end}.*"
            return count
        (image, mask), count = suffixes.most_common(1)[0] if suffixes else (("", ""), 0)
        if count and mask.lower() == ".png" and count * 2 == sum(len(place.names) for place in self.abnormal):
            found["abnormal"], found["masks"] = f"{base}/**/*{image}", f"{base}/**/*{mask}"
            return count
        return 0


def _fitting(names: set[str], others: set[str]) -> str | None:
    """A part of a pattern that matches the names and none of the others; None where there is none so simple."""
    if len(names) == 1:
        return next(iter(names))
    first, last = min(names), max(names)
    common = next((first[:i] for i in range(len(first), 0, -1) if last.startswith(first[:i])), "")
    if common and not any(name.startswith(common) for name in others):
        return f"{common}*"
    letters = {name[0] for name in names}
    if letters.isdisjoint(name[0] for name in others) and all(letter.isalnum() for letter in letters):
        return f"[{''.join(sorted(letters))}]*"
    return None
