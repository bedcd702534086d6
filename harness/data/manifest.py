"""The identity of a category: what is in it, checked, and the hashes of its halves."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from harness.data import depth, doubles
from harness.data.catalog import PIXEL_REVISION, DataError, Half, Sample, Source, readable
from harness.data.doubles import Doubles
from harness.data.fingerprints import Fingerprints, Print, Progress
from harness.spec import Data, digest
from harness.text import one_line

HALVES: tuple[Half, ...] = ("train", "test")


@dataclass(frozen=True)
class Look:
    """A category as a run's spec holds it, and what it was made from: `samples`, the `prints` of their files by path
    (empty where the source stands for its files, see `fixed_manifest`), what there is to say of deep pictures, and the
    images that it holds twice.
    """

    data: Data
    samples: tuple[Sample, ...] = ()
    prints: Mapping[str, Print] = field(default_factory=dict)
    deep: tuple[depth.Deep, ...] = ()
    twice: Doubles = field(default_factory=Doubles)


def describe(source: Source, category: str, progress: Progress | None = None) -> Data:
    """The category as a run's spec holds it: the manifests of its halves (hashes of names, contents, splits and
    options) and sizes.

    Raises:
        DataError: files that are missing, unpaired, empty or unreadable, masks of another size than their image, or a
            normal image's with defective pixels, or images that stand in both halves.
    """
    return look(source, category, progress).data


def look(source: Source, category: str, progress: Progress | None = None) -> Look:
    """As `describe`, with what it was made from."""
    with readable(source.name):
        source.prepare(category, progress)
        samples = source.selected(category)
        fixed = {half: source.fixed_manifest(category, half) for half in HALVES}
    _check_names(source, category, samples)
    prints = {} if any(fixed.values()) else _checked(source, samples, progress)
    twice = doubles.find(samples, prints) if prints else Doubles()
    doubles.check(source, category, twice)
    deep = [prints[sample.path] for sample in samples if prints and prints[sample.path].kind]
    options = {key: str(value) for key, value in source.options().items()}
    # Only there it decides pixels: elsewhere no table should tell runs apart by it.
    if source.range is not None and (deep or not prints):
        options["range"] = depth.text_of(source.range)
    if source.limit:
        options["limit"] = str(source.limit)
    halves = {half: [sample for sample in samples if sample.half == half] for half in HALVES}
    manifests = {half: manifest_of(source, chosen, prints, fixed[half]) for half, chosen in halves.items()}
    data = Data(
        name=source.name,
        category=category,
        manifest=manifests["train"],
        options=tuple(options.items()),
        train_images=sum(sample.split == "train" for sample in samples),
        test_images=len(halves["test"]),
        test_manifest=manifests["test"],
    )
    found = depth.summary(source, ((each.kind, each.least, each.greatest) for each in deep))
    return Look(data, tuple(samples), prints, found, twice)


def earlier_manifest(source: Source, category: str) -> str:
    """The one hash of both halves by which records knew the category before `Data.test_manifest`.

    Raises:
        DataError: as `describe`.
    """
    samples, fixed = source.samples(category), source.earlier_manifest(category)
    return manifest_of(source, samples, {} if fixed else _checked(source, samples, None), fixed)


def manifest_of(source: Source, samples: Sequence[Sample], prints: Mapping[str, Print], fixed: str | None) -> str:
    """The hash of all that decides the pixels and labels of a category, or of a half of it. Pure.

    Args:
        prints: of every file of the samples, by path.
        fixed: what stands for the files where the source knows it without them (`fixed_manifest`).

    Raises:
        DataError: pictures of floating point values without a `range`.
    """
    if fixed:
        content, deep = fixed, [list(source.range)] if source.range is not None else []
    else:
        rows = [
            [
                sample.path,
                sample.defect,
                sample.split,
                sample.group,
                *(prints[name].sha256 for name in files_of(sample)),
            ]
            for sample in samples
        ]
        content = digest(rows)
        kinds = {kind for sample in samples if (kind := prints[sample.path].kind)}
        deep = [list(bounds) for bounds in sorted({depth.range_of(source, kind) for kind in kinds})]
        # Fractions count as defective since deep pictures are read as what they are.
        deep += ["f32"] if any(prints[mask].kind == "f32" for sample in samples for mask in sample.masks) else []
    # A limit is a protocol of its own, also where there are no more images.
    more = [*([deep] if deep else []), *([["limit", source.limit]] if source.limit else [])]
    return digest([content, PIXEL_REVISION, source.resize, source.mask_threshold, *more])


def _check_names(source: Source, category: str, samples: Sequence[Sample]) -> None:
    """Raises DataError for a name that no JSON, table or page could hold."""
    for name in (category, *(name for sample in samples for name in (*files_of(sample), sample.defect, sample.group))):
        if not name.isascii():
            try:
                name.encode()
            except UnicodeEncodeError:
                raise DataError(
                    f"dataset {source.name}: the name {one_line(name)} is not UTF-8; rename the file or folder"
                ) from None


def _checked(source: Source, samples: Sequence[Sample], progress: Progress | None) -> dict[str, Print]:
    root = source.folder()
    files = sorted({name for sample in samples for name in files_of(sample)})
    masks = {mask for sample in samples for mask in sample.masks}
    prints = Fingerprints(root).of(files, progress, source.max_megapixels, masks)
    pairs = [(sample.path, mask) for sample in samples for mask in sample.masks]
    other = [(image, mask) for image, mask in pairs if prints[image][1:3] != prints[mask][1:3]]
    if other:
        image, mask = ("x".join(map(str, prints[name][1:3])) for name in other[0])
        raise DataError(
            f"dataset {source.name}: {root / other[0][1]} is {mask} pixels, its image is {image}"
            + (f"; so are {len(other) - 1} more" if len(other) > 1 else "")
        )
    for sample in samples:
        if not sample.anomalous and any(prints[mask].greatest > source.mask_threshold for mask in sample.masks):
            raise DataError(
                f"dataset {source.name}: {root / sample.path} is a normal image, but its mask "
                f"{root / sample.masks[0]} has defective pixels; move the image to the abnormal ones, or correct the "
                "mask"
            )
    return prints


def files_of(sample: Sample) -> list[str]:
    """The image's file and, where there are some, those of its masks."""
    return [sample.path, *sample.masks]
