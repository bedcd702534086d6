"""`harness submit`"""

import itertools
import json
import math
import os
import re
import secrets
from pathlib import Path
from typing import Annotated

import typer

from dskd.config import ConfigError, quoted, require
from harness.cli.common import GridOption, OnlyOption, OutOption, PluginOption, console, make_plan
from harness.cli.screen import duration
from harness.grid import Training


def submit(
    grid: GridOption,
    run_options: Annotated[
        list[str] | None,
        typer.Argument(metavar="[-- RUN OPTIONS]", help="For `harness run` in the jobs: -- --checkpoint-every 5"),
    ] = None,
    out: OutOption = "runs",
    only: OnlyOption = None,
    plugin: PluginOption = None,
    shards: Annotated[
        str,
        typer.Option(metavar="auto|N", help="Elements of the array; auto: so many that each has --minutes of work."),
    ] = "auto",
    minutes: Annotated[float, typer.Option(help="Estimated work of a shard with --shards auto.")] = 60.0,
    max_parallel: Annotated[
        int | None, typer.Option(metavar="M", help="Elements that may run at the same time; all by default.")
    ] = None,
    sbatch: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY=VALUE",
            help="An option of sbatch: partition=gpu, time=12:00:00; an empty value removes one "
            "(gpus-per-node=); may be given again.",
        ),
    ] = None,
    script: Annotated[
        Path, typer.Option(help="The batch script to fill in; the one that ships where this does not exist.")
    ] = "slurm/sweep.sh",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the batch scripts; submit nothing.")] = False,
) -> None:
    """Submit what is missing of a grid to SLURM: one array whose elements are shards, and the leaderboard after it.

    Call it on a login node, in the folder that you would call `harness run` in. Grid, data and weights are checked
    first, as the compute nodes may have no network, and SLURM is asked whether it takes the job. An element that is
    preempted or comes to its time limit writes checkpoints and is requeued. The same command again submits what is
    still missing. `harness status runs/NAME` shows how far it is. Exit codes: 0 submitted, 1 SLURM failed, 2 wrong
    input.
    """
    from harness.files import write_atomic
    from harness.launch import cluster, schedule, slurm
    from harness.launch.shards import planned, write_plan
    from harness.records import Results, damage_line
    from harness.run_folder import ResultsFolder

    options = slurm.parse_options(sbatch or [])
    _check_numbers(shards, minutes, max_parallel)
    _check_words(grid, {"--only": only, "--plugin": plugin, "RUN OPTIONS": run_options})
    if not dry_run:
        cluster.require_sbatch()
    parsed, whole = make_plan(grid, "cpu", None, plugin)
    plan = make_plan(grid, "cpu", only, plugin)[1] if only else whole
    results = Results(Path(os.path.realpath(out / parsed.name)))  # a loop of links raises nothing here
    slurm.check_folder(results.folder)
    slurm.check_text("--out", str(out))
    sweep = _template(script)
    merged = slurm.merge(slurm.options_of(sweep), options)

    survey = results.survey()
    done = survey.done
    for line in damage_line(survey.damaged):
        console(stderr=True).print(line, soft_wrap=True)
    gpus = slurm.gpus_of(merged)
    rate = schedule.rate_of(results, "cuda" if gpus else "cpu")
    seconds = {run.spec.id: schedule.estimate_s(run, rate, done) for run in plan.trainings if _is_left(run, done)}
    seconds |= {bench.id: schedule.estimate_s(bench, rate) for bench in plan.benches}
    terminal = console()
    if not any(_is_left(run, done) for run in plan.trainings):
        terminal.print(f"{parsed.name}: nothing to submit, all {len(plan.trainings)} runs are done")
        return
    workers = max(1, gpus)
    count = int(shards) if shards != "auto" else slurm.shard_count(list(seconds.values()), 60 * minutes, workers)
    parts = schedule.shards(plan, count)
    left = [i for i, part in enumerate(parts) if any(_is_left(run, done) for run in part.trainings) or part.benches]
    _check_time(merged, [(seconds[run.spec.id], run) for run in plan.trainings if _is_left(run, done)])

    token = secrets.token_hex(4)
    folder = ResultsFolder(results.folder).slurm
    arguments = [str(grid), *itertools.chain.from_iterable(("--only", one) for one in only or ())]
    arguments += [*itertools.chain.from_iterable(("--plugin", one) for one in plugin or ()), *(run_options or ())]
    arrays = slurm.arrays(left, 1001 if dry_run else cluster.max_array_size())
    scripts = {}
    for i, array in enumerate(arrays):
        mark = f"harness-{token}-{i}"
        own = merged | {
            "job-name": options.get("job-name") or parsed.name,
            "array": array.spec(max_parallel),
            "comment": mark,
        }
        own |= {"output": slurm.directive(str(folder / "%A_%a.out"))}
        environment = {"SHARDS": str(count), "SHARD_OFFSET": str(array.offset), "OUT": str(out), "LOGS": str(folder)}
        environment |= {slurm.SUBMISSION: f"slurm/{token}.json"}
        scripts[mark] = slurm.render(sweep, own, environment, arguments)
    last_text = _template(script.with_name("leaderboard.sh"))
    shared = {key: merged[key] for key in slurm.SHARED_WITH_LEADERBOARD if key in merged}
    last_options = slurm.merge(slurm.options_of(last_text), shared)

    def leaderboard(jobs: list[str]) -> str:
        mine = {"output": slurm.directive(str(ResultsFolder(results.folder).leaderboard))}
        mine |= {"comment": f"harness-{token}-leaderboard"}
        own = last_options | {"dependency": f"afterany:{':'.join(jobs)}"} | mine
        return slurm.render(last_text, own, {}, [str(results.folder)])

    if dry_run:
        for text in (*scripts.values(), leaderboard(["JOB"] * len(scripts))):
            typer.echo(text)
        return

    note = {"shards": count, "jobs": [], "leaderboard": None}
    note["runs"] = {i: [run.spec.id for run in parts[i].trainings] for i in left}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_plan(results.folder, planned(whole))
        write_atomic(folder / f"{token}.json", json.dumps(note))
    except OSError as error:
        raise ConfigError(
            f"--out: {results.folder} cannot be written ({error.strerror}); name another folder"
        ) from None
    try:
        for array, (mark, text) in zip(arrays, scripts.items(), strict=True):
            path = folder / f"{mark}.sh"
            write_atomic(path, text)
            if not note["jobs"]:
                try:
                    cluster.check(str(path))
                except ConfigError:
                    for useless in (path, folder / f"{token}.json"):
                        useless.unlink()
                    raise
            note["jobs"].append({"id": cluster.submit(str(path), mark), "offset": array.offset})
            write_atomic(folder / f"{token}.json", json.dumps(note))
        jobs = [job["id"] for job in note["jobs"]]
        path = folder / f"harness-{token}-leaderboard.sh"
        write_atomic(path, leaderboard(jobs))
        note["leaderboard"] = cluster.submit(str(path), f"harness-{token}-leaderboard")
        write_atomic(folder / f"{token}.json", json.dumps(note))
    except cluster.ClusterError as error:
        submitted = ", ".join(job["id"] for job in note["jobs"]) or "nothing"
        terminal.print(f"error: sbatch: {error}; submitted: {submitted}; the same command goes on", style="red")
        raise typer.Exit(1) from None
    elements = f"{len(left)} of {count} shards" if len(left) < count else f"{count} shard{'s' * (count > 1)}"
    terminal.print(
        f"{parsed.name}: {len(seconds)} runs in {elements}, about {duration(sum(seconds.values()) / workers)} of work; "
        f"jobs {', '.join(jobs)}, leaderboard {note['leaderboard']}"
    )
    where = out / parsed.name
    terminal.print(f"watch:        harness status {where} --watch")
    terminal.print(f"logs:         {where}/slurm")
    terminal.print(f"leaderboard:  {where}/leaderboard.txt, when all have ended")
    terminal.print(f"stop:         scancel {' '.join([*jobs, note['leaderboard']])}")


def _check_numbers(shards: str, minutes: float, max_parallel: int | None) -> None:
    from harness.launch.schedule import MOST_SHARDS

    require(
        max_parallel is None or max_parallel >= 1, f"--max-parallel: {max_parallel} is not possible; write 1 or more"
    )
    require(0 < minutes < math.inf, f"--minutes: {minutes:g} is not possible; write minutes above 0")
    require(
        shards == "auto" or (re.fullmatch("[1-9][0-9]{0,5}", shards) is not None and int(shards) <= MOST_SHARDS),
        f"--shards: {quoted(shards)} is not possible; write auto, or how many elements the array is to have, up to "
        f"{MOST_SHARDS}",
    )


def _check_words(grid: Path, words: dict[str, list[str] | None]) -> None:
    """What is written into the batch scripts, and that the jobs will find the grid."""
    from harness.launch.slurm import check_text

    for what, values in {"--grid": [str(grid)], **words}.items():
        for value in values or ():
            check_text(what, value)
    require(
        os.path.isfile(grid) or not os.path.exists(grid),
        f"--grid: {grid} is no regular file, and the jobs read it later; write the path of a grid file",
    )


def _template(path: Path) -> str:
    """A batch script of the user's, or the shipped one of its name where there is none. Raises ConfigError."""
    from harness import shipped

    if not path.is_file():
        known = path.name if path.name in ("sweep.sh", "leaderboard.sh", "multinode.sh") else "sweep.sh"
        return shipped.text(f"slurm/{known}")
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is no text"
        raise ConfigError(f"--script: {path} cannot be read ({reason}); write a batch script's path") from None


def _is_left(run: Training, done: set[str]) -> bool:
    return not done.issuperset([run.spec.id, *(one.id for one in run.evaluations)])


def _check_time(options: dict[str, str | None], runs: list[tuple[float, Training]]) -> None:
    """Raises ConfigError for a time limit that no requeue could help."""
    from harness.launch.shards import title
    from harness.launch.slurm import seconds_of, time_of, warning_s

    limit, (longest, run) = options.get("time"), max(runs, key=lambda pair: pair[0])
    warning = warning_s(options.get("signal"))
    require(
        limit is None or seconds_of(limit) >= longest + warning,
        f"--sbatch time={limit}: the longest run, {title(run.spec)}, takes about {duration(longest)}, and the signal "
        f"to stop comes {warning} s before the end; write time={time_of(1.5 * longest + warning + 300)}",
    )
