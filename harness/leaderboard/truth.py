"""What test images a metric is of, where not each has a mask, or there are none: lines under a table. Pure."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from dskd.conformal import units_needed
from harness.records import Record
from harness.run_folder import is_at_threshold, is_metric

MOST_NAMED = 5  # categories of one kind in a line
NO_THRESHOLD = "no threshold, as no normal images were held out for one: write `calibrate: 0.2` in the grid"


def notes(evaluations: Iterable[Record], trainings: Iterable[Record], metrics: Sequence[str]) -> list[str]:
    """Why cells are holes, or over fewer test images than there are: one line for each data set and reason.

    Args:
        evaluations: of a table; of those of a category the last one counts.
        trainings: those that were found with them, of which some may have nothing to be scored on.
        metrics: of the table's columns.
    """
    evaluations = list(evaluations)
    localised = any(
        is_metric(metric) and not metric.startswith("image") and not is_at_threshold(metric) for metric in metrics
    )
    last = {_place(record.spec["train"]["data"]): record.result for record in evaluations}
    reasons: dict[tuple[str, str], list[tuple[str, Mapping[str, Any]]]] = {}
    for (dataset, category), result in sorted(last.items()):
        for reason in _reasons(result, localised, "aupimo" in metrics):
            reasons.setdefault((dataset, reason), []).append((category, result))
    lines = []
    for (dataset, reason), found in reasons.items():
        total = {key: sum(result.get(key, 0) for _, result in found) for key in _COUNTS}
        images = total["test_normal"] + total["test_anomalous"]
        known = images - total["test_without_mask"]
        said = reason.format(**total, images=images, known=known)
        lines.append(f"{dataset} {_listed([category for category, _ in found])}: {said}")
    return lines + (_without_threshold(evaluations) if any(map(is_at_threshold, metrics)) else []) + unscored(trainings)


def unscored(trainings: Iterable[Record]) -> list[str]:
    """A line for each data set of which categories were trained that have no test images."""
    found: dict[str, set[str]] = {}
    for record in trainings:
        data = record.spec["data"]
        if data.get("train_images") and data.get("test_images") == 0:
            found.setdefault(data["name"], set()).add(data["category"])
    return [
        f"{name} {_listed(sorted(categories))}: trained and not scored, as there are no test images"
        for name, categories in sorted(found.items())
    ]


_COUNTS = ("test_normal", "test_anomalous", "test_without_mask", "anomalous_without_mask")
_NO_ABNORMAL = "no metric is defined, as there is no abnormal test image"
_NO_NORMAL = "image metrics are undefined, as there is no normal test image"
_NO_MASKS = "pixel metrics are undefined, as none of the {test_anomalous} abnormal test images has a mask"
_SOME_MASKS = (
    "pixel metrics are over {known} of {images} test images, as {test_without_mask} of the {test_anomalous} abnormal "
    "ones have no mask"
)
_FEW = "AUPIMO is undefined, as the normal test images of each have fewer than 100,000 pixels"
_EMPTY = "pixel metrics are undefined, as no mask of the {test_anomalous} abnormal test images has a defective pixel"


def _reasons(result: Mapping[str, Any], localised: bool, by_image: bool) -> list[str]:
    normal, abnormal = result.get("test_normal"), result.get("test_anomalous")
    if normal is None or abnormal is None:  # another program's record
        return []
    if not abnormal:
        return [_NO_ABNORMAL]
    found = [] if normal else [_NO_NORMAL]
    without = result.get("test_without_mask", 0)
    if not localised:
        return found
    if without == abnormal:
        return [*found, _NO_MASKS]
    if result.get("anomalous_without_mask", 0) + without == abnormal:
        return [*found, _EMPTY]
    if by_image and result.get("aupimo", 0) is None:
        found.append(_FEW)
    return [*found, _SOME_MASKS] if without else found


def _without_threshold(evaluations: Iterable[Record]) -> list[str]:
    """A line for each data set and reason why evaluations have no threshold, and what would be right."""
    found: dict[tuple[str, str], dict[str, None]] = {}
    for record in evaluations:
        dataset, category = _place(record.spec["train"]["data"])
        if record.result.get("threshold") is None:
            found.setdefault((dataset, no_threshold(record.result)), {})[category] = None
    return [f"{dataset} {_listed(sorted(own))}: {reason}" for (dataset, reason), own in sorted(found.items())]


def no_threshold(result: Mapping[str, Any]) -> str:
    """Why an evaluation's result has no threshold."""
    rate, groups = result.get("false_alarm_rate"), result.get("calibration_groups")
    if not rate or groups is None:
        return NO_THRESHOLD
    return (
        f"no threshold for a false alarm rate of {rate:g}, which needs {units_needed(rate)} groups of normal images: "
        f"{groups} were there for it; write a larger false_alarm_rate, or give it more (a larger share in `calibrate`, "
        "or more images)"
    )


def _place(data: Mapping[str, Any]) -> tuple[str, str]:
    return data["name"], data["category"]


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else ""
    return ", ".join(names[:MOST_NAMED]) + more
