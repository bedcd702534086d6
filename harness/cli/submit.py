"""`harness submit`"""

import os
import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from dskd.config import ConfigError, require
from harness import shipped
from harness.cli.common import (
    GridArgument,
    GridOption,
    LimitOption,
    OnlyOption,
    OutOption,
    PluginOption,
    console,
    make_plan,
    the_grid,
)
from harness.files import write_atomic
from harness.foreign import opening
from harness.launch import cluster, pace, slurm
from harness.launch.progress import Planned, planned, write_plan
from harness.launch.submission import Request, Submission, check, check_time, divide
from harness.records import Results, damage_line
from harness.run_folder import ResultsFolder

_RunOptions = Annotated[
    list[str] | None,
    typer.Argument(metavar="[-- RUN OPTIONS]", help="For `harness run` in the jobs: -- --checkpoint-every 5"),
]
_Shards = Annotated[
    str, typer.Option(metavar="auto|N", help="Elements of the array; auto: so many that each has --minutes of work.")
]
_Minutes = Annotated[float, typer.Option(help="Estimated work of a shard with --shards auto.")]
_MaxParallel = Annotated[
    int | None, typer.Option(metavar="M", help="Elements that may run at the same time; all by default.")
]
_Sbatch = Annotated[
    list[str] | None,
    typer.Option(
        metavar="KEY=VALUE",
        help="An option of sbatch: partition=gpu, time=12:00:00; an empty value removes one "
        "(gpus-per-node=); may be given again.",
    ),
]
_Script = Annotated[
    Path, typer.Option(help="The batch script to fill in; the one that ships where this does not exist.")
]
_DryRun = Annotated[bool, typer.Option("--dry-run", help="Print the batch scripts, and their size; submit nothing.")]


def submit(
    grid_file: GridArgument = None,
    run_options: _RunOptions = None,
    grid: GridOption = None,
    out: OutOption = "runs",
    only: OnlyOption = None,
    plugin: PluginOption = None,
    limit: LimitOption = None,
    shards: _Shards = "auto",
    minutes: _Minutes = 60.0,
    max_parallel: _MaxParallel = None,
    sbatch: _Sbatch = None,
    script: _Script = "slurm/sweep.sh",
    dry_run: _DryRun = False,
) -> None:
    """Submit what is missing of a grid to SLURM: one array whose elements are shards, and the leaderboard after it.

    Call it on a login node, in the folder that you would call `harness run` in. Grid, data and weights are checked
    first, as the compute nodes may have no network, and SLURM is asked whether it takes the job. An element that is
    preempted or comes to its time limit writes checkpoints and is requeued. The same command again submits what is
    still missing. `harness status runs/NAME` shows how far it is. Exit codes: 0 submitted, 1 SLURM failed, 2 wrong
    input.
    """
    words = list(run_options or ())
    if str(grid_file).startswith("-"):  # no grid, but the first of the options for the jobs
        grid_file, words = None, [str(grid_file), *words]
    path, chosen = the_grid(grid_file, grid), slurm.parse_options(sbatch or [])
    words = (only or (), plugin or (), [*([] if limit is None else ["--limit", str(limit)]), *words])
    request = Request(str(path), str(out), *words, chosen, shards, minutes, max_parallel)
    check(request)
    _check_grid(path)
    if not dry_run:
        cluster.require_sbatch()
    parsed, whole = make_plan(path, "cpu", None, plugin, limit)
    plan = make_plan(path, "cpu", only, plugin, limit)[1] if only else whole
    results = Results(Path(os.path.realpath(out / parsed.name)))  # a loop of links raises nothing here
    slurm.check_folder(results.folder)
    slurm.check_text("--out", str(out))
    sweep = _template(script)
    options = slurm.merge(slurm.options_of(sweep), chosen)

    survey = results.survey()
    for line in damage_line(survey.damaged):
        console(stderr=True).print(line, soft_wrap=True)
    gpus = slurm.gpus_of(options)
    work = divide(plan, survey.done, pace.learn(results, "cuda" if gpus else "cpu"), request, max(1, gpus))
    if work is None:
        console().print(f"{parsed.name}: nothing to submit, all {len(plan.trainings)} runs are done")
        return
    check_time(options, work)
    arrays = slurm.arrays(work.shards, 1001 if dry_run else cluster.max_array_size())
    last, folder = _template(script.with_name("leaderboard.sh")), ResultsFolder(results.folder)
    made = Submission(parsed.name, folder, secrets.token_hex(4), request, work, arrays, options, sweep, last)
    if dry_run:
        for text in (*made.scripts(), made.leaderboard(["JOB"] * len(arrays))):
            typer.echo(text)
        for line in made.preview():  # apart from the scripts, which may go to a file
            console(stderr=True).print(line, soft_wrap=True)
    else:
        _send(made, planned(whole))


def _send(made: Submission, whole: Sequence[Planned]) -> None:
    """Submit the arrays, one after the other, and the leaderboard; what was submitted is in the journal at any time.

    Raises:
        ConfigError: the results folder cannot be written, or SLURM refuses the job.
        typer.Exit: SLURM failed.
    """
    folder, journal, scripts = made.results.slurm, made.journal_path, made.scripts()
    with opening(made.results.path):
        folder.mkdir(parents=True, exist_ok=True)
        write_plan(made.results.path, whole)
        write_atomic(journal, made.journal())

    def send(part: object, text: str) -> str:
        path = folder / f"{made.mark(part)}.sh"
        write_atomic(path, text)
        if part == 0:
            try:
                cluster.check(str(path))
            except ConfigError:
                for useless in (path, journal):
                    useless.unlink()
                raise
        return cluster.submit(str(path), made.mark(part))

    jobs: list[str] = []
    try:
        for i, text in enumerate(scripts):
            jobs.append(send(i, text))
            write_atomic(journal, made.journal(jobs))
        leaderboard = send("leaderboard", made.leaderboard(jobs))
        write_atomic(journal, made.journal(jobs, leaderboard))
    except cluster.ClusterError as error:
        submitted = ", ".join(jobs) or "nothing"
        text = f"error: sbatch: {error}; submitted: {submitted}; the same command goes on"
        console().print(text, style="red")
        raise typer.Exit(1) from None
    for line in made.summary(jobs, leaderboard):
        console().print(line)


def _check_grid(path: Path) -> None:
    """Raises ConfigError for a grid that the jobs will not find."""
    require(
        os.path.isfile(path) or not os.path.exists(path),
        f"--grid: {path} is no regular file, and the jobs read it later; write the path of a grid file",
    )


def _template(path: Path) -> str:
    """A batch script of the user's, or the shipped one of its name where there is none. Raises ConfigError."""
    if not path.is_file():
        known = path.name if path.name in ("sweep.sh", "leaderboard.sh", "multinode.sh") else "sweep.sh"
        return shipped.text(f"slurm/{known}")
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is no text"
        raise ConfigError(f"--script: {path} cannot be read ({reason}); write a batch script's path") from None
