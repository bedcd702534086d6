"""Where each run of a grid is, from records, supervisors and SLURM. Pure, but for `look`."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from harness.foreign import Damaged
from harness.launch.cluster import snapshot
from harness.launch.progress import Planned, Running, Supervisor, read_plan, read_submissions, read_supervisors
from harness.launch.slurm import meaning
from harness.naming import names_of
from harness.records import Failure, Results

State = Literal["done", "running", "pending", "failed", "to do"]
SILENT_S = 120.0  # a supervisor that has written nothing for so long is gone, unless SLURM says that it runs


@dataclass(frozen=True)
class Run:
    """A run of the grid, or a measurement. `note`: how far, why it waits, or why it failed."""

    id: str
    title: str
    state: State
    note: str = ""
    kind: str = "train"


@dataclass(frozen=True)
class Seen:
    """What is known of a results folder.

    Args:
        done: ids of works that have a record.
        failures: by id the last attempt of works without one.
        supervisors: each with the seconds since it was heard of.
        submissions: journals of `harness submit`, the newest last.
        queue: state and reason by element of SLURM's jobs, None without SLURM.
        damaged: records whose runs are to be done again.
        skipped: other files that were passed over.
    """

    plan: Sequence[Planned]
    done: Collection[str]
    failures: Mapping[str, Failure] = field(default_factory=dict)
    supervisors: Sequence[tuple[Supervisor, float]] = ()
    submissions: Sequence[Mapping[str, Any]] = ()
    queue: Mapping[str, tuple[str, str]] | None = None
    damaged: Sequence[Damaged] = ()
    skipped: Sequence[Damaged] = ()


def look(folder: Path, queue: Mapping[str, tuple[str, str]] | None = None) -> Seen:
    """Read a results folder, and write nothing into it. `queue`: what SLURM said a moment ago; it is asked if None."""
    results, damaged = Results(folder), []
    survey, plan = results.survey(), read_plan(folder, damaged)
    failures = {}
    for item in results.items(sorted(survey.failed)):
        if isinstance(item, Failure):
            failures[item.id] = item
        elif isinstance(item, Damaged) and item not in survey.damaged:
            damaged.append(item)
    if not plan:  # of a harness that wrote none: what there are records of
        names = names_of((one, failure.spec) for one, failure in failures.items())
        plan = [Planned(one, f"{failure.kind} {names[one]}", (one,)) for one, failure in failures.items()]
        others = [*survey.done, *(each.folder.name for each in survey.damaged)]
        plan += [Planned(one, one, (one,)) for one in others if one not in failures]
    submissions, supervisors = read_submissions(folder, damaged), read_supervisors(folder, damaged)
    if queue is None:
        jobs = {job["id"] for one in submissions for job in one["jobs"]}
        queue = snapshot(jobs | {one.job.split("_")[0] for one, _ in supervisors if one.job})
    return Seen(plan, survey.done, failures, supervisors, submissions, queue, survey.damaged, damaged)


def overview(seen: Seen) -> list[Run]:
    """The state of every run of the plan. Pure."""
    live = [one for one, age_s in seen.supervisors if _lives(one, age_s, seen.queue)]
    running = {run.id: f"{_progress(run)}  ({_place(one)})" for one in live for run in one.running}
    submitted = {job["id"] for submission in seen.submissions for job in submission["jobs"]}
    element_of = {
        run_id: f"{job['id']}_{int(number) - job['offset']}"
        for submission in seen.submissions  # the newest last
        for number, run_ids in submission["runs"].items()
        for job in [_job_of(submission, int(number))]
        if job
        for run_id in run_ids
    }
    # Of those that nobody has said who does which: whoever has runs left may come to them.
    others = [one for one in live if one.job.split("_")[0] not in submitted]
    next_in = next((_place(one) for one in others if one.finished + len(one.running) < one.total), None)
    return [_state(run, seen, running.get(run.id), element_of.get(run.id), next_in) for run in seen.plan]


def _state(run: Planned, seen: Seen, progress: str | None, element: str | None, next_in: str | None) -> Run:
    def found(state: State, note: str = "") -> Run:
        return Run(run.id, run.title, state, note, run.kind)

    if all(work in seen.done for work in run.works):
        return found("done")
    if progress:
        return found("running", progress)
    failure = next((seen.failures[work] for work in run.works if work in seen.failures), None)
    failed = failure is not None and failure.reason != "interrupted"
    why = f"{failure.reason}: {failure.message}" if failure else ""
    known = (seen.queue or {}).get(element) if element else None
    means = meaning(known[0]) if known else None
    if means and means.kind == "waiting":
        reason = known[1] if known[1] not in ("", "None") else known[0]
        return found("pending", f"{reason} (job {element}){means.advice and ': ' + means.advice}")
    if failed:
        return found("failed", why)
    if means and means.kind == "running":
        return found("pending", f"next in job {element}")
    if next_in:
        return found("pending", f"next on {next_in}")
    if means:
        why = f"job {element} {known[0].split()[0]}: {means.advice}"
    return found("to do", why)


def _progress(run: Running) -> str:
    return f"{run.phase} {run.note or f'{100 * run.share:.0f} %'}"


def _place(supervisor: Supervisor) -> str:
    return f"{supervisor.host}, job {supervisor.job}" if supervisor.job else supervisor.host


def _lives(supervisor: Supervisor, age_s: float, queue: Mapping[str, tuple[str, str]] | None) -> bool:
    if supervisor.job and queue is not None and supervisor.job in queue:
        return meaning(queue[supervisor.job][0]).kind == "running"
    return age_s <= SILENT_S


def _job_of(submission: Mapping[str, Any], shard: int) -> Mapping[str, Any] | None:
    return max(
        (job for job in submission["jobs"] if job["offset"] <= shard), key=lambda job: job["offset"], default=None
    )
