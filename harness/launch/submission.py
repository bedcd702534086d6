"""What `harness submit` makes of a plan: shards, batch scripts and a journal. Pure: others read, write and submit."""

import json
import math
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dskd.config import quoted, require
from harness.grid import Plan, Training
from harness.launch import pace, schedule, slurm
from harness.naming import title
from harness.run_folder import ResultsFolder


@dataclass(frozen=True)
class Request:
    """What the user asks for.

    Args:
        grid, out: paths, as the jobs are to be given them.
        only, plugins, run_options: words for `harness run` in the jobs.
        options: of sbatch, as `slurm.parse_options` gives them.
        shards: elements of the array, or "auto": so many that each has about `minutes` of work.
        max_parallel: elements that may run at the same time, None for all.
    """

    grid: str
    out: str
    only: Sequence[str]
    plugins: Sequence[str]
    run_options: Sequence[str]
    options: Mapping[str, str | None]
    shards: str
    minutes: float
    max_parallel: int | None


def check(request: Request) -> None:
    """Raises ConfigError for numbers that are not possible, and for words that a batch script cannot hold."""
    most = schedule.MOST_SHARDS
    require(
        request.max_parallel is None or request.max_parallel >= 1,
        f"--max-parallel: {request.max_parallel} is not possible; write 1 or more",
    )
    require(0 < request.minutes < math.inf, f"--minutes: {request.minutes:g} is not possible; write minutes above 0")
    require(
        request.shards == "auto"
        or (re.fullmatch("[1-9][0-9]{0,5}", request.shards) is not None and int(request.shards) <= most),
        f"--shards: {quoted(request.shards)} is not possible; write auto, or how many elements the array is to have, "
        f"up to {most}",
    )
    words = {"--only": request.only, "--plugin": request.plugins, "RUN OPTIONS": request.run_options}
    for what, values in {"--grid": [request.grid], **words}.items():
        for value in values:
            slurm.check_text(what, value)


@dataclass(frozen=True)
class Work:
    """What is left of a plan, in shards.

    Args:
        count: of shards, those with nothing left too.
        shards: those with something left, by number what they do, as `schedule.written_names` names it.
        seconds: about how long each run that is left takes, by its id.
        longest: the training that takes most of them.
        workers: runs of a shard at the same time.
    """

    count: int
    shards: dict[int, list[str]]
    seconds: dict[str, float]
    longest: Training
    workers: int


def divide(plan: Plan, done: Collection[str], paces: pace.Paces, request: Request, workers: int) -> Work | None:
    """What is left of the plan (all of it with `--force` for the jobs) in shards of about equal time; None where no
    training is left.
    """
    done = frozenset() if "--force" in request.run_options else done

    def is_left(run: Training) -> bool:
        return not done.issuperset([run.spec.id, *(one.id for one in run.evaluations)])

    trainings = [run for run in plan.trainings if is_left(run)]
    if not trainings:
        return None
    seconds = {run.spec.id: pace.estimate_s(run, paces, done) for run in trainings}
    longest = max(trainings, key=lambda run: seconds[run.spec.id])
    seconds |= {bench.id: pace.estimate_s(bench, paces) for bench in plan.benches}
    if request.shards == "auto":
        count = slurm.shard_count(list(seconds.values()), 60 * request.minutes, workers)
    else:
        count = int(request.shards)
    left = replace(plan, trainings=trainings)
    cut = schedule.shards(left, count, lambda run: pace.estimate_s(run, paces, done))
    shards = {number: names for number, part in enumerate(cut) if (names := schedule.written_names(part))}
    return Work(count, shards, seconds, longest, workers)


def check_time(options: Mapping[str, str | None], work: Work) -> None:
    """Raises ConfigError for a time limit that no requeue could help. `options`: of sbatch, the script's with them."""
    limit, longest = options.get("time"), work.seconds[work.longest.spec.id]
    warning = slurm.warning_s(options.get("signal"))
    require(
        limit is None or slurm.seconds_of(limit) >= longest + warning,
        f"--sbatch time={limit}: the longest run, {title(work.longest.spec)}, takes about "
        f"{schedule.duration(longest)}, and the signal to stop comes {warning} s before the end; "
        f"write time={slurm.time_of(1.5 * longest + warning + 300)}",
    )


@dataclass(frozen=True)
class Submission:
    """All of a submission but the ids of its jobs, which SLURM gives.

    Args:
        name: the grid's.
        token: tells it from others of the same results folder.
        options: of sbatch, the script's with those of the request over them.
        sweep, last: the batch scripts of the arrays and of the leaderboard, before they are filled in.
    """

    name: str
    results: ResultsFolder
    token: str
    request: Request
    work: Work
    arrays: Sequence[slurm.Array]
    options: Mapping[str, str | None]
    sweep: str
    last: str

    def mark(self, part: object) -> str:
        """By which an array, by its number, or the `leaderboard` is found in SLURM's queue."""
        return f"harness-{self.token}-{part}"

    @property
    def journal_path(self) -> Path:
        return self.results.slurm / f"{self.token}.json"

    def scripts(self) -> list[str]:
        """Of each array."""
        texts = []
        for i, array in enumerate(self.arrays):
            own = {
                "job-name": self.request.options.get("job-name") or self.name,
                "array": array.spec(self.request.max_parallel),
                "comment": self.mark(i),
                "output": slurm.directive(str(self.results.slurm / "%A_%a.out")),
            }
            environment = {
                "SHARDS": str(self.work.count),
                "SHARD_OFFSET": str(array.offset),
                "OUT": self.request.out,
                "LOGS": str(self.results.slurm),
                slurm.SUBMISSION: str(self.journal_path.relative_to(self.results.path)),
            }
            texts.append(slurm.render(self.sweep, {**self.options, **own}, environment, self._arguments()))
        return texts

    def leaderboard(self, jobs: Sequence[str]) -> str:
        """The script of the job that starts when these have ended."""
        shared = {key: self.options[key] for key in slurm.SHARED_WITH_LEADERBOARD if key in self.options}
        own = {
            "dependency": f"afterany:{':'.join(jobs)}",
            "output": slurm.directive(str(self.results.leaderboard)),
            "comment": self.mark("leaderboard"),
        }
        options = slurm.merge(slurm.options_of(self.last), shared) | own
        return slurm.render(self.last, options, {}, [str(self.results.path)])

    def journal(self, jobs: Sequence[str] = (), leaderboard: str | None = None) -> str:
        """Which shard has which runs, and the jobs so far: of the first arrays, and of the leaderboard."""
        own = [{"id": job, "offset": array.offset} for job, array in zip(jobs, self.arrays, strict=False)]
        note: dict[str, Any] = {"shards": self.work.count, "jobs": own, "leaderboard": leaderboard}
        return json.dumps(note | {"runs": self.work.shards})

    def size(self) -> str:
        """How much there is to do, in a line."""
        count, seconds = self.work.count, sum(self.work.seconds.values()) / self.work.workers
        left, runs = len(self.work.shards), len(self.work.seconds)
        elements = f"{left} of {count} shards" if left < count else f"{count} shard{'s' * (count > 1)}"
        return f"{self.name}: {runs} run{'s' * (runs > 1)} in {elements}, about {schedule.duration(seconds)} of work"

    def preview(self) -> list[str]:
        """What would be submitted, and what a cluster may miss, a line each."""
        longest = self.work.seconds[self.work.longest.spec.id]
        limit = f"time limit {self.options.get('time') or 'the default of the partition'}"
        unset = [key for key in ("partition", "account") if not self.options.get(key)]
        asked = " ".join(f"--sbatch {key}=NAME" for key in unset)
        missing = f"no {' and no '.join(unset)} is set: where there is no default write {asked}"
        return [
            f"{self.size()}; the longest run takes about {schedule.duration(longest)}, {limit}",
            *([missing] if unset else []),
            "nothing was submitted; the same command without --dry-run does so",
        ]

    def summary(self, jobs: Sequence[str], leaderboard: str) -> list[str]:
        """What was submitted and how to go on, a line each."""
        where = ResultsFolder(Path(self.request.out) / self.name)
        return [
            f"{self.size()}; jobs {', '.join(jobs)}, leaderboard {leaderboard}",
            f"watch:        harness status {where.path} --watch",
            f"logs:         {where.slurm}",
            f"leaderboard:  {where.leaderboard}, when all have ended",
            f"stop:         scancel {' '.join([*jobs, leaderboard])}",
        ]

    def _arguments(self) -> list[str]:
        """Of the batch script: the grid, and what follows it."""
        words = {"--only": self.request.only, "--plugin": self.request.plugins}
        options = [word for option, values in words.items() for value in values for word in (option, value)]
        return [self.request.grid, *options, *self.request.run_options]
