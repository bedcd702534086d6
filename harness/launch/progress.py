"""What supervisors are at, for others to read: `shards/<id>.json` in the results folder, and the plan, `plan.json`."""

import json
import os
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, Self, TypeVar

from dskd.config import ConfigError, from_mapping
from harness import events, schema
from harness.environment import utc_now
from harness.files import write_atomic
from harness.foreign import Damaged, read_json
from harness.grid import Plan
from harness.job import Job
from harness.launch.cluster import check_submission, slurm_id
from harness.launch.slurm import SUBMISSION
from harness.run_folder import ResultsFolder, note
from harness.shapes import MisfitError, checker
from harness.text import one_line

EVERY_S = 5.0
_MAPPING, _LIST, _SUBMISSION = map(checker, (dict, list, schema.SUBMISSION))
T = TypeVar("T")


@dataclass
class Running:
    """A run that is on: its phase, and how far that is (0 to 1)."""

    id: str
    phase: str
    share: float = 0.0
    note: str = ""


@dataclass
class Supervisor:
    """A supervisor at work: where it is, and how far.

    Args:
        job: SLURM's id of it (`12` or `12_3`), empty outside of SLURM.
        part: of the plan that is its own, as `--shard` names it; empty for the whole.
        total, finished: so many jobs it had at its start, and has done.
    """

    id: str
    host: str
    job: str
    part: str
    total: int
    started_at: str
    finished: int = 0
    failed: int = 0
    running: tuple[Running, ...] = ()


def supervisor_name() -> str:
    """What tells this supervisor from the others that share a results folder now."""
    job, host = slurm_id(), os.uname().nodename
    return f"{job}-{host}" if job else f"{host}-{os.getpid()}"


class Reporter:
    """Hears the supervisor's events and replaces its file at most every EVERY_S; removes it at the end."""

    def __init__(self, results: Path, part: str, total: int) -> None:
        job, host, name = slurm_id(), os.uname().nodename, supervisor_name()
        self.path = ResultsFolder(results).shards / f"{name}.json"
        self.told = Supervisor(name, host, job, part, total, utc_now())
        self.running: dict[str, Running] = {}
        self.written = 0.0

    def __enter__(self) -> Self:
        self._write()
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(OSError):  # a disk that is lost is the supervisor's to tell
            self.path.unlink()
        with suppress(OSError):
            self.path.parent.rmdir()

    def on_event(self, job: Job, event: events.Event) -> None:
        run_id = job.spec.id
        run = self.running.get(run_id)
        match event:
            case events.Phase():
                self.running[run_id] = Running(run_id, event.shown)
            case events.Step(done, total) if run:
                run.share = round(done / total, 3)
            case events.Epoch(epoch, epochs) if run:
                run.share = round(epoch / epochs, 3)
                run.note = f"epoch {epoch}/{epochs}"
            case events.Failed(reason=reason):
                self.told.failed += reason != "interrupted"
            case events.Retrying() | events.Finished():  # what a job still tells after that does not bring it back
                self.told.finished += isinstance(event, events.Finished)
                self.running.pop(run_id, None)
        if time.monotonic() - self.written >= EVERY_S:
            self._write()

    def _write(self) -> None:
        self.written = time.monotonic()
        self.told.running = tuple(self.running.values())
        with suppress(OSError):
            write_atomic(self.path, json.dumps(asdict(self.told)))


def read_supervisors(results: Path, damaged: list[Damaged] | None = None) -> list[tuple[Supervisor, float]]:
    """Each supervisor's file with the seconds since it was written; one that cannot be used is put into `damaged`."""
    folder = ResultsFolder(results).shards
    found = _read(folder, lambda path: from_mapping(Supervisor, read_json(path, _MAPPING)), damaged)
    return [(one, time.time() - written) for one, written in found]


@dataclass(frozen=True)
class Planned:
    """A run with the ids of all its works (its training and its evaluations), or a measurement (`bench`)."""

    id: str
    title: str
    works: tuple[str, ...]
    kind: Literal["train", "bench"] = "train"


def planned(plan: Plan) -> list[Planned]:
    runs = [
        Planned(run.spec.id, plan.names[run.spec.id], (run.spec.id, *(one.id for one in run.evaluations)))
        for run in plan.trainings
    ]
    return runs + [Planned(spec.id, plan.names[spec.id], (spec.id,), spec.kind) for spec in plan.benches]


def write_plan(results: Path, runs: Sequence[Planned]) -> None:
    """The runs and measurements of a whole grid, for who counts what is missing; not written again by every shard."""
    path, content = ResultsFolder(results).plan, json.dumps([asdict(run) for run in runs]).encode()
    with suppress(OSError):
        if path.read_bytes() == content:
            return
    write_atomic(path, content)


def read_plan(results: Path, damaged: list[Damaged] | None = None) -> list[Planned]:
    """Empty where none was written, or where it cannot be used: then it is put into `damaged`."""
    path = ResultsFolder(results).plan
    try:
        return [from_mapping(Planned, run) for run in read_json(path, _LIST)]
    except FileNotFoundError:
        return []
    except ValueError as error:
        _note(damaged, path, error)
        return []


def read_submissions(results: Path, damaged: list[Damaged] | None = None) -> list[dict[str, Any]]:
    """What `harness submit` left, the newest last; one that cannot be used is put into `damaged`."""
    found = _read(ResultsFolder(results).slurm, _submission, damaged)
    return [document for document, _ in sorted(found, key=lambda pair: pair[1])]


def written_shards(results: Path) -> dict[int, list[str]] | None:
    """What each shard does, by `schedule.written_names`, as it stands in the journal that this job was submitted with;
    None outside of a job of `harness submit`. Raises ConfigError.
    """
    token = os.environ.get(SUBMISSION)
    if token is None:
        return None
    check_submission(results)
    try:
        return {int(number): names for number, names in _submission(results / token)["runs"].items()}
    except (OSError, ValueError) as error:
        reason = one_line(str(getattr(error, "strerror", None) or error))
        raise ConfigError(f"{results / token} does not say what this job does ({reason}); submit again") from None


def _submission(path: Path) -> dict[str, Any]:
    document = read_json(path, _SUBMISSION)
    if not all(number.isdecimal() for number in document["runs"]):
        raise MisfitError("runs: its keys are not the numbers of shards")
    return document


def _read(folder: Path, read: Callable[[Path], T], damaged: list[Damaged] | None) -> list[tuple[T, float]]:
    """What `read` makes of each JSON file of a folder, by name, and when it was written."""
    found = []
    for path in sorted(folder.glob("*.json")):
        try:
            found.append((read(path), path.stat().st_mtime))
        except OSError:  # it was removed this moment
            continue
        except ValueError as error:
            _note(damaged, path, error)
    return found


def _note(damaged: list[Damaged] | None, path: Path, error: ValueError) -> None:
    if damaged is not None:
        note(damaged, path, one_line(str(error)))
