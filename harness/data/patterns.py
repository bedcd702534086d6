"""Patterns to samples: who has folders of pictures says by patterns which are normal, abnormal and masks.

A pattern is relative to a root and written with `/`: `*`, `?`, `[abc]`, `**` for folders at any depth, and fields in
braces (`{category}/ok/*.jpg`, `gt/{stem}_mask.png`), each of which takes as few characters as it can, of one name. A
folder that a pattern matches stands for all images in it, at any depth. Names that begin with a dot are passed over, of
a file's name with a wildcard upper and lower case are the same, and accents are, however they are encoded.
"""

import difflib
import functools
import hashlib
import os
import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from types import MappingProxyType

from dskd.config import ConfigError, quoted, require, suggest
from harness.data.catalog import GOOD, IMAGE_SUFFIXES, DataError, Sample
from harness.data.words import word_of

ABNORMAL = "abnormal"  # the type of a defect whose pattern has no {defect}
FIELDS = {  # by the key of an entry: the fields that its pattern may have
    "normal": ("category", "group"),
    "test_normal": ("category", "group"),
    "abnormal": ("category", "defect", "group"),
    "masks": ("category", "defect", "group", "stem"),
}
MOST_SEEDS = 1000  # that are tried, where one leaves the training or the test set without normal images
MOST_LISTED = 8  # names of a folder in a message
_FIELD = re.compile(r"\{([^{}]*)\}")
_TOKEN = re.compile(r"(\{[^{}]*\}|\*|\?|\[[^\]]+\])")

Fields = Mapping[str, str]
Found = dict[str, dict[str, str]]  # by the path of an image, relative to the root: the values of the pattern's fields
NONE: Fields = MappingProxyType({})


@dataclass(frozen=True)
class Patterns:
    """Which images of a root are what. `masks` are paired with images by `{stem}`, or by their own stem with or without
    `_mask`, and by the other fields that both patterns have; they are no images then.

    Raises:
        ConfigError: a pattern that is not possible, or one without those that it needs.
    """

    normal: str
    abnormal: str | None = None
    masks: str | None = None
    test_normal: str | None = None

    def __post_init__(self) -> None:
        given = self.given()
        for key, pattern in given.items():
            _check(key, pattern)
            require(
                ("category" in fields_of(pattern)) == ("category" in fields_of(self.normal)),
                f"{key}: {quoted(pattern)}: either all patterns have {{category}} or none; normal is "
                f"{quoted(self.normal)}",
            )
        require(self.abnormal is not None or self.masks is None, "masks: they are of abnormal images; write abnormal")
        for field in fields_of(self.masks or "") - {"stem", *fields_of(self.abnormal or "")}:
            raise ConfigError(f"masks: {{{field}}} is not in abnormal ({quoted(self.abnormal)}); write it there too")

    def given(self) -> dict[str, str]:
        """By key, those that are not None."""
        return {key: value for key in FIELDS if (value := getattr(self, key)) is not None}


def fields_of(pattern: str) -> set[str]:
    return set(_FIELD.findall(pattern))


def _check(key: str, pattern: str) -> None:
    said = f"{key}: {quoted(pattern)} is not possible; "
    require("\\" not in pattern, f"{said}write / between folders")
    parts = PurePosixPath(pattern).parts
    require(bool(pattern.strip()), f"{said}write a pattern such as good/*.jpg, or a folder")
    require(parts[:1] != ("/",) and ".." not in parts, f"{said}patterns are relative to root and stay in it")
    for part in parts:
        require("**" not in part or part == "**", f"{said}** stands alone between two /")
        try:
            _compiled(part, (), is_last=True)
        except re.error as error:
            raise ConfigError(f"{said}{part} cannot be read ({error})") from None
    for field in _FIELD.findall(pattern):
        require(field in FIELDS[key], f"{said}{suggest(field, FIELDS[key])} (in braces)")
    require(not set("{}") & set(_FIELD.sub("", pattern)), f"{said}a brace is not closed")


def categories(name: str, root: Path, patterns: Patterns) -> list[str]:
    """Those of `normal`, sorted; the root's name where it has no `{category}`.

    Raises:
        DataError: of the data set `name`, a pattern that matches no image, or a category without normal images.
    """
    found = {key: find(root, pattern) for key, pattern in patterns.given().items()}
    for key, images in found.items():
        if not images:
            raise DataError(f"dataset {name}: {key}: {_missed(root, patterns.given()[key])}")
    if "category" not in fields_of(patterns.normal):
        return [root.resolve().name]
    own = {key: {fields["category"] for fields in images.values()} for key, images in found.items()}
    for key, others in own.items():
        for category in sorted(others - own["normal"]):
            near = difflib.get_close_matches(category, own["normal"] - others, n=1)
            hint = f"; is it {quoted(near[0])}?" if near else ""
            raise DataError(f"dataset {name}: {key} has a category {quoted(category)}, which normal has not{hint}")
    return sorted(own["normal"])


def samples(name: str, root: Path, patterns: Patterns, category: str) -> list[Sample]:
    """The category's samples, sorted by path: normal images to train, those of `test_normal` and `abnormal` to test.

    Raises:
        DataError: of the data set `name`, an image that two patterns match, or a mask without an image, or one that
            fits several, or that is one too many.
    """
    given = {"category": category} if "category" in fields_of(patterns.normal) else NONE
    found = {key: find(root, pattern, given) for key, pattern in patterns.given().items()}
    masks = found.pop("masks", {})
    images: dict[str, tuple[str, dict[str, str]]] = {}
    for key, own in found.items():
        for path, fields in own.items():
            if path in masks or fields.get("defect") == GOOD:
                continue
            if path in images and word_of(fields.get("defect", "")) == "normal":
                continue  # {defect} beside a folder of normal images, whatever that is called
            if path in images:
                raise DataError(
                    f"dataset {name}: {root / path} is matched by {images[path][0]} and by {key}; let each image be "
                    "matched once"
                )
            images[path] = key, fields
    if not any(key == "normal" for key, _ in images.values()):
        raise DataError(f"dataset {name}: normal: all images of {category} that it matches are masks, too")
    mask_of = _paired(name, root, patterns, images, masks)
    return [
        Sample(
            path,
            "train" if key == "normal" else "test",
            fields.get("defect", ABNORMAL) if key == "abnormal" else GOOD,
            mask_of.get(path),
            fields.get("group", ""),
        )
        for path, (key, fields) in sorted(images.items())
    ]


def hold_out(
    found: Sequence[Sample], sha256: Mapping[str, str], share: float, seed: int
) -> tuple[list[Sample], int | None]:
    """The samples with a share of the normal training images sent to the test set, whole groups together, each by the
    hash of the seed and its content (of a named group its name): whatever is added or renamed moves no other image, and
    images of equal content stay together.

    Args:
        sha256: of the training images, by path.

    Returns:
        The samples; and where either side is empty, the first seed with which none is, or None with no seed.
    """
    normal = [sample for sample in found if sample.split == "train"]
    keys = {sample.path: sample.group or sha256[sample.path] for sample in normal}

    def held(key: str, seed: int) -> bool:
        return int(hashlib.sha256(f"{seed} {key}".encode()).hexdigest()[:13], 16) < share * 16**13

    def divides(seed: int) -> bool:
        return len({held(key, seed) for key in keys.values()}) == 2

    if not divides(seed):
        return [], next(filter(divides, range(MOST_SEEDS)), None)
    test = {path for path, key in keys.items() if held(key, seed)}
    return [replace(sample, split="test") if sample.path in test else sample for sample in found], None


def _paired(
    name: str, root: Path, patterns: Patterns, images: Mapping[str, tuple[str, Fields]], masks: Found
) -> dict[str, str]:
    """The mask of each image that has one, by the image's path. Raises DataError."""
    shared = sorted(fields_of(patterns.masks or "") & {"defect", "group"})
    abnormal: dict[tuple[str, ...], list[str]] = {}
    normal: dict[tuple[str, ...], list[str]] = {}  # some data sets have black masks of these
    for path, (key, fields) in images.items():
        stem = composed(PurePosixPath(path).stem)
        if key == "abnormal":
            abnormal.setdefault((stem, *(fields[field] for field in shared)), []).append(path)
        else:
            normal.setdefault((stem,), []).append(path)
    mask_of: dict[str, str] = {}
    alone: list[str] = []
    for mask, fields in masks.items():
        stem = fields.get("stem") or composed(PurePosixPath(mask).stem)
        stems = [stem] if "stem" in fields else [stem, stem.removesuffix("_mask")]
        rest = tuple(fields[field] for field in shared)
        fitting = next(
            filter(None, [*(abnormal.get((s, *rest)) for s in stems), *(normal.get((s,)) for s in stems)]), []
        )
        if len(fitting) > 1:
            raise DataError(
                f"dataset {name}: the mask {root / mask} fits {len(fitting)} images, {fitting[0]} and {fitting[1]}; "
                "let the patterns of masks and abnormal share {defect} or {group}, or give each image a name of its own"
            )
        if fitting and fitting[0] in mask_of:
            raise DataError(f"dataset {name}: {root / fitting[0]} has two masks, {mask_of[fitting[0]]} and {mask}")
        mask_of |= {fitting[0]: mask} if fitting else {}
        alone += [] if fitting else [mask]
    if alone:
        raise DataError(
            f"dataset {name}: {len(alone)} mask(s) without an image, first {root / alone[0]}; a mask has the name of "
            "its image, with or without _mask, or masks says where it stands: gt/{stem}_label.png"
        )
    return mask_of


def find(root: Path, pattern: str, given: Fields = NONE) -> Found:
    """The image files that the pattern matches, sorted by path.

    Args:
        given: values that fields must have.

    Raises:
        OSError: a folder that cannot be read.
    """
    found: Found = {}
    for path, fields in _descend(root, "", PurePosixPath(pattern).parts, given):
        found.setdefault(path, dict(fields))
    return dict(sorted(found.items()))


def _descend(folder: Path, inside: str, parts: Sequence[str], fields: Fields) -> Iterator[tuple[str, Fields]]:
    """What `parts` match below the folder, whose path in the root is `inside`."""
    part, *rest = parts or ("**",)
    if part == "**":
        for place, prefix, files in tree(folder, inside):
            if rest:
                yield from _descend(place, prefix, rest, fields)
            else:
                yield from ((f"{prefix}{name}", fields) for name in files if is_image(name))
        return
    for name, values in _entries(folder, part, fields, is_last=not rest):
        if (folder / name).is_dir():
            yield from _descend(folder / name, f"{inside}{name}/", rest, {**fields, **values})
        elif not rest and is_image(name):
            yield f"{inside}{name}", {**fields, **values}


def tree(folder: Path, inside: str) -> Iterator[tuple[Path, str, list[str]]]:
    """The folder and all below it, each with its path in the root and its files; once, as links may lead back.

    Raises:
        OSError: a folder that cannot be read.
    """
    seen: set[tuple[int, int]] = set()
    for place, folders, files in os.walk(folder, onerror=_raise, followlinks=True):
        state = os.stat(place)
        if (state.st_dev, state.st_ino) in seen:
            folders.clear()
            continue
        seen.add((state.st_dev, state.st_ino))
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        below = Path(place).relative_to(folder).as_posix()
        yield Path(place), inside if below == "." else f"{inside}{below}/", files


def _raise(error: OSError) -> None:
    raise error


def _entries(folder: Path, part: str, fields: Fields, is_last: bool) -> Iterator[tuple[str, Fields]]:
    """The names in the folder that one part of a pattern matches, with the values of its fields."""
    if not _TOKEN.search(part) and (folder / part).exists():
        yield part, NONE
        return
    compiled = _compiled(part, tuple(sorted(fields.items())), is_last)
    for name in os.listdir(folder):
        if name.startswith(".") and not part.startswith("."):
            continue
        if match := compiled.fullmatch(composed(name)):
            yield name, match.groupdict()


@functools.lru_cache(maxsize=256)
def _compiled(part: str, fields: tuple[tuple[str, str], ...], is_last: bool) -> re.Pattern[str]:
    known, text = dict(fields), ""
    for token in _TOKEN.split(part):
        field = _FIELD.fullmatch(token)
        if token == "*":
            text += ".*"
        elif token == "?":
            text += "."
        elif field and field[1] in known:
            text += re.escape(known[field[1]])
        elif field:
            text += f"(?P<{field[1]}>.+?)" if f"(?P<{field[1]}>" not in text else f"(?P={field[1]})"
        elif _TOKEN.fullmatch(token):
            inner = re.sub(r"([\\^&~|\[])", r"\\\1", token[1:-1])
            text += f"[{'^' if inner[0] == '!' else ''}{inner.removeprefix('!')}]"
        else:
            text += re.escape(composed(token))
    # Cameras write .JPG where people write *.jpg.
    return re.compile(text, re.DOTALL | (re.IGNORECASE if is_last and _TOKEN.search(part) else 0))


def composed(name: str) -> str:
    """The name with its accents as one character each: archives made on a Mac have them as two."""
    return unicodedata.normalize("NFC", name)


def is_image(name: str) -> bool:
    """Whether it is the name of an image file, none of those that a Mac leaves beside them."""
    return not name.startswith(".") and PurePosixPath(name).suffix.lower() in IMAGE_SUFFIXES


def _missed(root: Path, pattern: str) -> str:
    """Why the pattern matches nothing, with what lies where it ends."""
    places, part, names = [(root, NONE)], "", _shown(root)
    where = str(root)
    for part in PurePosixPath(pattern).parts:
        names = sorted({name for place, _ in places for name in _shown(place)})
        where = str(places[0][0]) + (f" and {len(places) - 1} more folders" if len(places) > 1 else "")
        if part == "**":
            break
        matched = [(p / n, {**f, **v}) for p, f in places for n, v in _entries(p, part, f, is_last=False)]
        if not matched:
            break
        places = [(path, fields) for path, fields in matched if path.is_dir()] or places
    near = difflib.get_close_matches(part, names, n=1, cutoff=0.5)
    listed = ", ".join(names[:MOST_LISTED]) + (f" and {len(names) - MOST_LISTED} more" * (len(names) > MOST_LISTED))
    hint = f"did you mean {quoted(near[0])}? " if near and near[0] != part else ""
    return (
        f"{quoted(pattern)} matches no image ({', '.join(sorted(IMAGE_SUFFIXES))}); {hint}{where} holds "
        f"{listed or 'nothing'}"
    )


def _shown(folder: Path) -> list[str]:
    return sorted(name for name in os.listdir(folder) if not name.startswith("."))
