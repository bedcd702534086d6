"""`index.csv` in a results folder: what lies where, for people and their scripts. Nothing of the harness reads it."""

import csv
import io
import os
from collections.abc import Iterator, Mapping, Set
from contextlib import suppress

from harness.files import write_atomic
from harness.grid import Plan
from harness.naming import LABELS, labels_of
from harness.records import Results
from harness.run_folder import ResultsFolder
from harness.text import csv_cell

COLUMNS = ("id", "kind", "name", *LABELS, "state", "folder", "files")


def rows(plan: Plan, done: Set[str], failed: Set[str], files: Mapping[str, str]) -> Iterator[dict[str, object]]:
    """One for each piece of work of the plan: its labels as they are called, `done`, `failed` or `to do`, its folder
    within the results folder and what is there (`files`, by id). Pure.
    """
    for spec in plan.works():
        state = "done" if spec.id in done else "failed" if spec.id in failed else "to do"
        about = {"id": spec.id, "kind": spec.kind, "name": plan.names[spec.id], **labels_of(spec, called=True)}
        yield about | {"state": state, "folder": spec.id if spec.id in files else "", "files": files.get(spec.id, "")}


def write_index(results: Results, plan: Plan) -> None:
    """Of the whole plan, as it stands now; a disk that takes no file any more is told by what must be written."""
    survey = results.survey()
    files = {}
    for spec in plan.works():
        with suppress(OSError):
            names = sorted(os.listdir(results.run_folder(spec.id).path))
            files[spec.id] = " ".join(name for name in names if not name.startswith("."))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for row in rows(plan, survey.done, survey.failed, files):
        writer.writerow(csv_cell(row.get(column, "")) for column in COLUMNS)
    with suppress(OSError):
        write_atomic(ResultsFolder(results.folder).index, text.getvalue())
