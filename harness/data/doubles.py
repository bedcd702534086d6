"""Pictures that a category holds more than once, byte for byte: what that spoils. Pure."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from harness.data.catalog import DataError, Sample, Source
from harness.text import number_of

Pair = tuple[str, str]  # the paths of two images of equal bytes


@dataclass(frozen=True)
class Doubles:
    """Pairs of images of equal bytes: one of the training and one of the test half, a normal and an abnormal one of the
    test half, and the others, which only weigh twice. Each image stands once as the second of a pair.
    """

    across: tuple[Pair, ...] = ()
    contradicting: tuple[Pair, ...] = ()
    within: tuple[Pair, ...] = ()


def find(samples: Sequence[Sample], prints: Mapping[str, Any]) -> Doubles:
    """Those of a category, in its order. `prints`: of its files by path, each with a `sha256`."""
    kinds: dict[str, list[Pair]] = {"across": [], "contradicting": [], "within": []}
    seen: dict[str, Sample] = {}
    for sample in sorted(samples, key=lambda sample: (sample.half == "test", sample.anomalous)):
        first = seen.setdefault(prints[sample.path].sha256, sample)
        if first is sample:
            continue
        kind = "across" if first.half != sample.half else "within"
        kind = "contradicting" if kind == "within" and first.anomalous != sample.anomalous else kind
        kinds[kind].append((first.path, sample.path))
    return Doubles(**{kind: tuple(pairs) for kind, pairs in kinds.items()})


def check(source: Source, category: str, found: Doubles) -> None:
    """Raises DataError for what would make a test meaningless, unless the entry says `duplicates: keep`."""
    if source.duplicates == "keep":
        return
    for said in spoiling(found):
        raise DataError(
            f"dataset {source.name}: {category}: {said}; keep one of each, or write duplicates: keep in the entry"
        )


def spoiling(found: Doubles) -> list[str]:
    """What is wrong with them, a text for each kind."""
    said = []
    if found.across:
        said.append(f"{_images(found.across, 'stands', 'stand')} in training and in test with the same bytes, ")
    if found.contradicting:
        said.append(f"{_images(found.contradicting, 'is', 'are')} both normal and abnormal with the same bytes, ")
    pairs = [each for each in (found.across, found.contradicting) if each]
    return [f"{text}first {own[0][0]} and {own[0][1]}" for text, own in zip(said, pairs, strict=True)]


def harmless(found: Doubles) -> str:
    """What there is to say of the others; empty where there are none."""
    if not found.within:
        return ""
    first, second = found.within[0]
    return f"{_images(found.within, 'is', 'are')} there twice, first {first} and {second}"


def _images(pairs: Sequence[Pair], one: str, several: str) -> str:
    return number_of(len(pairs), f"image {one}", f"images {several}")


def common(first: Iterable[Any], second: Iterable[Any]) -> str:
    """What categories of two data sets have in common, in words: empty where they share no image.

    Args:
        first: `Look`s (`harness.data.manifest`). Built-in images are known by their manifests, those of a half.
    """
    first, second = list(first), list(second)
    known = {each.prints[sample.path].sha256: sample.path for each in first if each.prints for sample in each.samples}
    same = [
        sample.path
        for each in second
        if each.prints
        for sample in each.samples
        if each.prints[sample.path].sha256 in known
    ]
    if same:
        return f"{number_of(len(same), 'image')} in common, first {same[0]}"
    halves = {half for each in first for half in (each.data.manifest, each.data.test_manifest)}
    equal = [each for each in second if halves & {each.data.manifest, each.data.test_manifest}]
    return f"the images of {equal[0].data.category} in common" if equal else ""
