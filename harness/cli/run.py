"""`harness run`"""

import importlib.util
import math
import os
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from dskd.config import ConfigError, require
from harness.cli.common import (
    DevicesOption,
    GridOption,
    OnlyOption,
    OutOption,
    PluginOption,
    RunsPerDeviceOption,
    Terminal,
    Unbreakable,
    make_plan,
)
from harness.cli.screen import Screen
from harness.files import write_atomic
from harness.foreign import check_links
from harness.grid import Plan, check_processes
from harness.launch.shards import Planned, Reporter, planned, supervisor_name, write_plan
from harness.launch.slurm import check_submission
from harness.records import Results
from harness.run_folder import ResultsFolder


def run(
    grid: GridOption,
    out: OutOption = "runs",
    devices: DevicesOption = "auto",
    only: OnlyOption = None,
    plugin: PluginOption = None,
    runs_per_device: RunsPerDeviceOption = 1,
    retries: Annotated[
        int, typer.Option(help="Further attempts of a run that crashed, took too long or ran out of memory.")
    ] = 1,
    timeout: Annotated[
        float | None, typer.Option(help="Minutes that a run may take before it is killed; none by default.")
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Do runs again that are done; their records are replaced.")
    ] = False,
    checkpoint_every: Annotated[
        float, typer.Option(metavar="MINUTES", help="How often the state of an unfinished training is saved.")
    ] = 10.0,
    shard: Annotated[
        str | None, typer.Option(metavar="I/N", help="Only part I (from 0) of N of the grid, equal in estimated cost.")
    ] = None,
    nodes: Annotated[
        int, typer.Option(help="In a SLURM job: nodes that each run spans, with equally many processes on each.")
    ] = 1,
) -> None:
    """Run what is missing of a grid on all devices, and print the leaderboard.

    Every run leaves a record the moment it ends; finished runs are skipped by the next call and failed ones tried
    again; a training that was stopped goes on from its last checkpoint, to the same numbers. Several calls may share
    one results folder: they share the work. Ctrl-C once lets running trainings write a checkpoint and keeps what is
    finished; twice stops at once; SIGTERM does the same, SIGHUP and SIGUSR1 what Ctrl-C does once. What is printed
    stands in the results folder's `logs/` too. Exit codes: 0 all done, 1 some runs failed, 2 wrong usage or input,
    130 interrupted.
    """
    from harness.launch import schedule
    from harness.launch.devices import apart, find_slots, whole_machine
    from harness.launch.keeper import ResultsError
    from harness.launch.supervisor import Limits, WorkerError, supervise

    slots = find_slots(devices, runs_per_device)
    _check_options(retries, timeout, checkpoint_every, nodes)
    part, parts = schedule.parse_shard(shard) if shard else (0, 1)
    parsed, plan = make_plan(grid, devices, only, plugin)
    require(
        parsed.tracking is None or importlib.util.find_spec(parsed.tracking) is not None,
        f"tracking: {parsed.tracking} is not installed; run pip install {parsed.tracking} or remove the line",
    )
    whole = planned(plan)
    plan = schedule.shards(plan, parts)[part]
    check_processes(plan, slots[0].kind, len(apart(slots)), nodes)
    results = Results(Path(os.path.realpath(out / parsed.name)))  # `resolve` raises for a loop of links
    check_submission(results.folder)
    _open(results, parsed.text, None if only else whole)
    survey = results.survey()
    damaged, done = results.set_aside({spec.id for spec in schedule.works(plan)}, survey), survey.done
    todo = schedule.remaining(
        plan,
        done,
        results=str(results.folder),
        save=parsed.save,
        device=slots[0].kind,
        force=force,
        grid=parsed.name,
        checkpoint_every_s=60 * checkpoint_every,
        tracking=parsed.tracking,
    )
    rate = schedule.rate_of(results, slots[0].kind)
    costs = [(job, schedule.estimate_s(job, rate, () if force else done)) for job in todo.jobs]
    phases = schedule.phases(costs, slots, whole_machine(slots), nodes)
    terminal = Terminal(file=Unbreakable())
    screen = Screen(terminal, costs, ResultsFolder(results.folder).logs / f"{supervisor_name()}.txt")
    reporter = Reporter(results.folder, shard or "", len(costs))
    screen.say(
        f"{parsed.name}: {todo.left} of {len(plan)} works to do, {todo.done} done; results in {out / parsed.name}"
    )
    aside = [f"{one.folder}: set aside and done again: {one.message}" for one in damaged]
    for remark in [*plan.remarks(), *aside]:
        screen.say((remark, "yellow"))
    try:
        with screen, reporter:
            limits = Limits(retries, None if timeout is None else 60 * timeout)
            interrupted = supervise(phases, (screen.on_event, reporter.on_event), results, limits)
    except KeyboardInterrupt:
        interrupted = True
    except (WorkerError, ResultsError) as error:
        for line in f"error: {error}".splitlines():  # the end of a worker's output has several
            screen.say((line, "red"))
        raise typer.Exit(1) from None
    if interrupted:
        screen.say(("interrupted:", "yellow"), " what is finished is kept; the same command goes on from here")
    _print_outcome(terminal, plan, results)
    raise typer.Exit(130 if interrupted else 1 if screen.failures else 0)


def _check_options(retries: int, timeout: float | None, checkpoint_every: float, nodes: int) -> None:
    """Raises ConfigError for a value that is not possible."""
    require(0 <= retries <= 100, f"--retries: {retries} is not possible; write 0 to 100")
    require(timeout is None or timeout > 0, f"--timeout: {timeout} is not possible; write minutes above 0")
    require(
        0 <= checkpoint_every < math.inf,
        f"--checkpoint-every: {checkpoint_every:g} is not possible; write minutes, 0 for after every step",
    )
    there = int(os.environ.get("SLURM_JOB_NUM_NODES", "1"))
    require(
        1 <= nodes <= there,
        f"--nodes: {nodes} is not possible, there are {there}; "
        + ("write fewer" if there > 1 else "sbatch slurm/multinode.sh"),
    )


def _open(results: Results, grid: bytes, whole: list[Planned] | None) -> None:
    """Make the results folder, with the grid file's very bytes in it and the whole plan, where it is the whole.

    Raises:
        ConfigError: it cannot be written, or lies on a disk without hard links.
    """
    try:
        results.folder.mkdir(parents=True, exist_ok=True)
        write_atomic(ResultsFolder(results.folder).grid, grid)
        if whole is not None:
            write_plan(results.folder, whole)
    except OSError as error:
        raise ConfigError(
            f"--out: {results.folder} cannot be written ({error.strerror}); name another folder"
        ) from None
    check_links(results.folder)


def _print_outcome(terminal: Console, plan: Plan, results: Results) -> None:
    """The table of the plan's runs that have a record, and those that failed with their reason."""
    from harness.launch.schedule import works
    from harness.leaderboard.frame import load
    from harness.leaderboard.render import print_failures, print_sections
    from harness.leaderboard.sections import make_sections
    from harness.leaderboard.table import boards

    done = results.done()
    # A training that is done is not in the table.
    wanted = {spec.id for spec in works(plan) if spec.kind != "train" or spec.id not in done}
    found = load([results.folder], wanted)
    if found.evaluations:
        print_sections(terminal, make_sections(boards(found, allow_mixed=True)))
    print_failures(terminal, found.failures)
