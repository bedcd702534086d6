"""Records from before the halves of a category had a hash each, brought to the ids of today.

A training was then of all images of its category, test images too, and its id with it. Nothing else moved, so a record
whose images are those that a grid finds today is the same work under another id.
"""

import dataclasses
import shutil
from collections import Counter
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from dskd.config import ConfigError, from_mapping, to_mapping
from harness.data.manifest import earlier_manifest
from harness.grid import Plan
from harness.records import Record, Results
from harness.spec import Data, EvaluateSpec, TrainSpec

Known = Mapping[tuple[str, str, str], Data]  # by name, category and the one hash of before
_SPECS: dict[str, type[TrainSpec] | type[EvaluateSpec]] = {"train": TrainSpec, "evaluate": EvaluateSpec}


def is_earlier(record: Record) -> bool:
    """Whether it is a training or an evaluation from before."""
    return record.kind != "bench" and not record.spec.get("train", record.spec)["data"].get("test_manifest")


def earlier_line(results: Results, done: Collection[str], planned: Collection[str]) -> list[str]:
    """What is said where finished runs that a plan does not know are from before; one line, or none."""
    some = sorted(set(done).difference(planned))[:20]
    if any(isinstance(item, Record) and is_earlier(item) for item in results.items(some)):
        return [f"records of an earlier version count as not done: `harness migrate {results.folder}` brings them over"]
    return []


def known_data(plan: Plan) -> Known:
    """The categories of a plan by what records from before called them: their images are read.

    Raises:
        DataError: images that are missing or damaged.
    """
    found = {(training.source, training.spec.data.category): training.spec.data for training in plan.trainings}
    return {
        (data.name, data.category, earlier_manifest(source, data.category)): data for (source, _), data in found.items()
    }


def migrated(record: Record, known: Known) -> Record | str:
    """The record as it would be written today, or why there is none. Pure.

    Args:
        record: one that `is_earlier`.
    """
    training = record.spec.get("train", record.spec)
    before = training["data"]
    today = known.get((before["name"], before["category"], before["manifest"]))
    if today is None:
        return "its images are not those that the grid finds today"
    try:
        spec = from_mapping(_SPECS[record.kind], record.spec)
    except ConfigError as error:
        return f"its settings are not known any more ({error})"
    if spec.id != record.id:
        return "it is of another revision of the methods or metrics"
    data = {**before, "manifest": today.manifest, "test_manifest": today.test_manifest}
    moved = {**training, "data": data}
    content: dict[str, Any] = {**record.spec, "train": moved} if record.kind == "evaluate" else moved
    return dataclasses.replace(
        record,
        id=from_mapping(_SPECS[record.kind], content).id,
        spec=to_mapping(content),
        result=record.result | {"migrated_from": record.id},
    )


def migrate(results: Results, known: Known) -> tuple[int, Counter[str]]:
    """Bring the folder's records to the ids of today, with all that lies beside them; how many, and why others stayed.

    The new folder is whole before the old one goes, so a call that is stopped is repeated. Raises OSError.
    """
    moved, left = 0, Counter[str]()
    for record in [item for item in results if isinstance(item, Record) and is_earlier(item)]:
        new = migrated(record, known)
        if isinstance(new, str):
            left[new] += 1
            continue
        old, target = results.run_folder(record.id), results.run_folder(new.id)
        _link(old.path, target.path, without=old.record)
        if not results.publish(new):
            left["it was done again since, under the id of today"] += 1
            continue
        shutil.rmtree(old.path)
        moved += 1
    return moved, left


def _link(source: Path, target: Path, without: Path) -> None:
    """The same files in another folder; those that are there stay."""
    for path in source.rglob("*"):
        place = target / path.relative_to(source)
        if path != without and path.is_file() and not place.exists():
            place.parent.mkdir(parents=True, exist_ok=True)
            place.hardlink_to(path)


def claimed(results: Results) -> Path | None:
    """A run that some supervisor is at, or was when it died; None if there is none."""
    return next((path.parent for path in results.folder.glob("*/claim.json")), None)
