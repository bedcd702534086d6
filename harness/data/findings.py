"""What a plan says of its data sets: what was found in their folders, and what follows from it. Pure."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from harness.data import depth, doubles
from harness.data.catalog import Source
from harness.data.fingerprints import Print
from harness.data.manifest import Look
from harness.text import number_of

Looks = Mapping[tuple[Source, str], Look]

FEW_TO_TRAIN, FEW_TO_TEST = 10, 5  # images below which a plan warns: our choice
MODES = {"1": "1 bit", "L": "grey", "LA": "grey with alpha", "P": "palette", "RGBA": "RGB with alpha"}


@dataclass(frozen=True)
class Row:
    """A category in a plan's table of images: how many of each kind, and as people write them their sizes and modes,
    empty where the source stands for its files.
    """

    train: int
    held_out: int
    good: int
    abnormal: int
    masks: int
    sizes: str
    modes: str


def row(found: Look) -> Row:
    splits = Counter(sample.split for sample in found.samples)
    abnormal = sum(sample.anomalous for sample in found.samples if sample.split == "test")
    images = [found.prints[sample.path] for sample in found.samples] if found.prints else []
    return Row(
        splits["train"],
        splits["val"],
        splits["test"] - abnormal,
        abnormal,
        sum(sample.mask is not None for sample in found.samples),
        sizes(images),
        modes(images),
    )


def sizes(images: Iterable[Print]) -> str:
    """`400x300`, or `230x283 to 403x388, mostly 373x312`: width and height, by area."""
    counts = Counter((each.width, each.height) for each in images)
    ordered = sorted(counts, key=lambda size: (size[0] * size[1], size))
    texts = [f"{width}x{height}" for width, height in (*ordered[:1], *ordered[1:][-1:])]
    most = max(ordered, key=counts.__getitem__, default=None)
    often = f", mostly {most[0]}x{most[1]}" if len(ordered) > 1 and counts[most] > 1 else ""
    return " to ".join(texts) + often


def modes(images: Iterable[Print]) -> str:
    """`RGB`, or `RGB 40, grey 2`."""
    counts = Counter(f"{each.kind[1:]} bit" if each.kind else MODES.get(each.mode, each.mode) for each in images)
    return ", ".join(mode if len(counts) == 1 else f"{mode} {count}" for mode, count in counts.most_common())


def remarks(looks: Looks) -> list[str]:
    """One line for each category of which something follows from what it holds, then those of single pictures."""
    lines = []
    for (source, category), found in looks.items():
        follows = consequences(source, found)
        if follows or "test_share" in source.options():
            mark = "" if not follows else "; " if follows.startswith("warning") else ": "
            lines.append(f"{source.name} {category}: {contents(source, found)}{mark}{follows}")
    for (source, category), found in looks.items():
        lines += [f"warning: {source.name} {category}: {said}" for said in warnings(found)]
        if same := doubles.harmless(found.twice):
            lines.append(f"{source.name} {category}: {same}")
    return lines + depth.remarks({key: found.deep for key, found in looks.items() if found.deep})


def warnings(found: Look) -> list[str]:
    """What makes a result of the category doubtful, beside what `consequences` says."""
    said, kinds = [], Counter((sample.half, sample.anomalous) for sample in found.samples)
    train, good, abnormal = kinds["train", False], kinds["test", False], kinds["test", True]
    if train < FEW_TO_TRAIN:
        said.append(f"{number_of(train, 'image')} to train on: too few to learn what is normal")
    if good and abnormal and min(good, abnormal) < FEW_TO_TEST:
        step = 100 / (good * abnormal)
        said.append(
            f"only {good} normal and {abnormal} abnormal images to test: one pair of them moves image AUROC by "
            f"{step:.3g} %"
        )
    flat = [sample.path for sample in found.samples if found.prints and found.prints[sample.path].flat]
    if flat:
        said.append(f"{number_of(len(flat), 'picture')} of one colour, first {flat[0]}: is that what the camera saw?")
    return said + doubles.spoiling(found.twice)


def contents(source: Source, found: Look) -> str:
    """`96 normal images to train; to test 24 normal (test_share 0.2, split_seed 0) and 14 abnormal without masks`"""
    test = [sample for sample in found.samples if sample.split == "test"]
    abnormal = [sample for sample in test if sample.anomalous]
    without = sum(not sample.known for sample in abnormal)
    drawn = {key: value for key, value in source.options().items() if key in ("test_share", "split_seed")}
    how = f" ({', '.join(f'{key} {value}' for key, value in drawn.items())})" if "test_share" in drawn else ""
    text = f"{len(found.samples) - len(test)} normal images to train"
    if not test:
        return text
    text += f"; to test {len(test) - len(abnormal)} normal{how} and {len(abnormal)} abnormal"
    if not without:
        return text
    return f"{text} without masks" if without == len(abnormal) else f"{text}, {without} of them without a mask"


def consequences(source: Source, found: Look) -> str:
    """What follows for the metrics; empty where each of them is what anybody expects."""
    test = [sample for sample in found.samples if sample.split == "test"]
    if not test:
        return "warning: no test images: it is trained and nothing is scored"
    abnormal = [sample for sample in test if sample.anomalous]
    if not abnormal:
        return "warning: no abnormal test image: no metric is defined"
    said = [] if len(abnormal) < len(test) else ["warning: no normal test image: image metrics are undefined"]
    known = [sample for sample in test if sample.known]
    if not any(sample.anomalous for sample in known):
        said.append("pixel metrics are undefined")
    elif len(known) < len(test):
        said.append(f"pixel metrics are over the {len(known)} test images whose truth is known")
    prints = [found.prints[sample.mask] for sample in abnormal if sample.mask and sample.mask in found.prints]
    empty = sum(each.greatest <= source.mask_threshold for each in prints)
    if empty:
        said.append(f"the masks of {empty} abnormal images are empty, all their pixels count as normal")
    return "; ".join(said)
