"""What a plan says of its data sets: what was found in their folders, and what follows from it. Pure."""

from collections.abc import Mapping

from harness.data import depth
from harness.data.catalog import Source
from harness.data.manifest import Look

Looks = Mapping[tuple[Source, str], Look]


def remarks(looks: Looks) -> list[str]:
    """One line for each category of which something follows from what it holds, then those of deep pictures."""
    lines = []
    for (source, category), found in looks.items():
        follows = consequences(source, found)
        if follows or "test_share" in source.options():
            mark = "" if not follows else "; " if follows.startswith("warning") else ": "
            lines.append(f"{source.name} {category}: {contents(source, found)}{mark}{follows}")
    return lines + depth.remarks({key: found.deep for key, found in looks.items() if found.deep})


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
