"""`harness run`"""

import importlib.util
import math
import os
import shlex
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from dskd.config import require
from harness.cli.common import (
    DevicesOption,
    GridArgument,
    GridOption,
    LimitOption,
    NoMpsOption,
    OnlyOption,
    OutOption,
    PluginOption,
    RunsPerDeviceOption,
    Terminal,
    Unbreakable,
    make_plan,
    the_grid,
)
from harness.cli.screen import Screen
from harness.cli.sharing import share
from harness.disturbance import is_measured_again
from harness.doctor.proven import count_of, graphs
from harness.files import write_atomic
from harness.foreign import Damaged, check_links, opening
from harness.grid import Plan, check_processes
from harness.gridfile import Grid
from harness.job import Job
from harness.launch import pace, schedule
from harness.launch.cluster import check_submission, node_count
from harness.launch.devices import Kind, Slot, apart, find_slots, gpus_of, whole_machine
from harness.launch.index import write_index
from harness.launch.load import Load
from harness.launch.progress import Reporter, planned, supervisor_name, write_plan, written_shards
from harness.launch.verdict import Limits
from harness.migration import earlier_line
from harness.mps import Daemons
from harness.records import RecordError, Results
from harness.run_folder import ResultsFolder
from harness.text import number_of, one_line

_Retries = Annotated[
    int, typer.Option(help="Further attempts of a run that crashed, took too long or ran out of memory.")
]
_Timeout = Annotated[
    float | None, typer.Option(help="Minutes that a run may take before it is stopped; none by default.")
]
_Force = Annotated[bool, typer.Option("--force", help="Do runs again that are done; their records are replaced.")]
_CheckpointEvery = Annotated[
    float, typer.Option(metavar="MINUTES", help="How often the state of an unfinished training is saved.")
]
_Shard = Annotated[
    str | None, typer.Option(metavar="I/N", help="Only part I (from 0) of N of the grid, equal in estimated cost.")
]
_Nodes = Annotated[
    int, typer.Option(help="In a SLURM job: nodes that each run spans, with equally many processes on each.")
]
_Table = Annotated[bool, typer.Option("--table/--no-table", help="Print the leaderboard at the end.")]


def run(
    grid_file: GridArgument = None,
    grid: GridOption = None,
    out: OutOption = "runs",
    devices: DevicesOption = "auto",
    only: OnlyOption = None,
    plugin: PluginOption = None,
    limit: LimitOption = None,
    runs_per_device: RunsPerDeviceOption = "1",
    retries: _Retries = 1,
    timeout: _Timeout = None,
    force: _Force = False,
    checkpoint_every: _CheckpointEvery = 10.0,
    shard: _Shard = None,
    nodes: _Nodes = 1,
    no_mps: NoMpsOption = False,
    table: _Table = True,
) -> None:
    """Run what is missing of a grid on all devices, and print the leaderboard.

    Every run leaves a record the moment it ends; finished runs are skipped by the next call and failed ones tried
    again; a training that was stopped goes on from its last checkpoint, to the same numbers. Several calls may share
    a results folder and its work. Ctrl-C once lets running trainings write a checkpoint and keeps what is finished;
    twice stops at once; SIGTERM does the same, SIGHUP and SIGUSR1 what Ctrl-C does once. What is printed stands in
    the folder's `logs/` too. Exit codes: 0 all done, 1 some runs failed, 2 wrong usage or input, 130 interrupted.
    """
    path, load, at_a_time = the_grid(grid_file, grid), Load(), count_of(runs_per_device)
    slots = find_slots(devices, at_a_time or 1)
    _check_options(retries, timeout, checkpoint_every, nodes)
    part, parts = schedule.parse_shard(shard) if shard else (0, 0)
    parsed, whole = make_plan(path, devices, only, plugin, limit)
    _check_tracking(parsed.tracking)
    plan = _part(whole, part, parts, out / parsed.name) if parts else whole
    check_processes(plan, slots[0].kind, len(apart(slots)), nodes)
    where = out / parsed.name
    results = _open(where, parsed.text, None if only else whole)
    survey, wanted = results.survey(), {spec.id for spec in plan.works()}
    damaged, done = results.set_aside(wanted, survey), survey.done
    disturbed = _disturbed(results, plan, done, load)
    todo = _todo(parsed, plan, results, done, disturbed, slots[0].kind, force, checkpoint_every)
    paces = _paces(todo.jobs, results, slots[0].kind, load)
    costs = [(job, pace.estimate_s(job, paces, () if force else done)) for job in todo.jobs]
    sharing, room = share(at_a_time, gpus_of(slots), todo.jobs, results, paces, no_mps)
    screen = _screen(costs, results)
    screen.say(f"{parsed.name}: {plan.counted()}; to do: {plan.counted(todo.left)}; results in {where}")
    earlier = earlier_line(results, done, wanted) if todo.jobs else []
    again = [] if force else _disturbed_lines(disturbed)
    for remark in filter(None, [*plan.remarks(), *_aside(damaged), *earlier, *again, load.remark(slots[0].kind)]):
        screen.say((remark, "yellow"))
    for line in filter(None, [*sharing.lines, graphs(slots[0].kind)[1] if todo.jobs else ""]):
        screen.say(line)
    reporter = Reporter(results.folder, shard or "", len(costs))
    limits = Limits(retries, None if timeout is None else 60 * timeout)
    slots = find_slots(devices, sharing.count)
    with Daemons(gpus_of(slots) if sharing.own else ()) as own:
        phases = schedule.phases(costs, _served(slots, own, screen), whole_machine(slots), nodes, room, own)
        interrupted = _supervise(phases, screen, reporter, results, limits, load)
    _write_index(results, None if only else whole, bool(todo.jobs))
    _print_outcome(screen.console, plan, results, where, table)
    raise typer.Exit(130 if interrupted else 1 if screen.failures else 0)


def _part(whole: Plan, number: int, count: int, folder: Path) -> Plan:
    """A shard: as `harness submit` has written it down, in a job of it, else cut here. Raises ConfigError."""
    written = written_shards(Path(os.path.realpath(folder)))
    return schedule.shards(whole, count)[number] if written is None else schedule.written_shard(whole, written, number)


def _disturbed(results: Results, plan: Plan, done: set[str], load: Load) -> dict[str, bool]:
    """Of the plan's measurements that are done and were disturbed, by id whether they are made once more now."""
    found = {}
    for spec in plan.benches:
        if spec.id in done:
            with suppress(RecordError):
                record = results.record(spec.id)
                if record is not None and record.result.get("disturbed"):
                    look = load.look()
                    found[spec.id] = is_measured_again(record.result, look.foreign / look.cores)
    return found


def _disturbed_lines(disturbed: Mapping[str, bool]) -> list[str]:
    """What is said of measurements that were disturbed: those that are made again, and those that stay for now."""
    again, left = sum(disturbed.values()), len(disturbed) - sum(disturbed.values())
    lines = (
        [f"throughput of {number_of(again, 'model')} was disturbed: measured once more, and the quieter result stays"]
        if again
        else []
    )
    more = "others are still at work: a call on a quieter machine measures again"
    return lines + ([f"throughput of {number_of(left, 'model')} was disturbed, and {more}"] if left else [])


def _todo(
    grid: Grid,
    plan: Plan,
    results: Results,
    done: set[str],
    disturbed: Mapping[str, bool],
    kind: Kind,
    force: bool,
    checkpoint_every: float,
) -> schedule.Todo:
    return schedule.remaining(
        plan,
        done,
        results=str(results.folder),
        save=grid.save,
        device=kind,
        force=force,
        grid=grid.name,
        checkpoint_every_s=60 * checkpoint_every,
        tracking=grid.tracking,
        again={run_id for run_id, more in disturbed.items() if more},
        graphs=graphs(kind)[0],
    )


def _screen(costs: Sequence[tuple[Job, float]], results: Results) -> Screen:
    log = ResultsFolder(results.folder).logs / f"{supervisor_name()}.txt"
    return Screen(Terminal(file=Unbreakable()), costs, log)


def _paces(jobs: Sequence[Job], results: Results, kind: Kind, load: Load) -> pace.Paces:
    return pace.learn(results, kind).slower(load.look().slowdown(kind)) if jobs else pace.prior(kind)


def _served(slots: Sequence[Slot], daemons: Daemons, screen: Screen) -> list[Slot]:
    """The slots with the daemons of their GPUs; what has none is said."""
    for gpu, why in daemons.failures.items():
        screen.say((f"MPS: none on {gpu} ({why})", "yellow"))
    return [replace(slot, pipes=daemons.pipes.get(slot.visible or "", "")) for slot in slots]


def _supervise(
    phases: Sequence[schedule.Phase],
    screen: Screen,
    reporter: Reporter,
    results: Results,
    limits: Limits,
    load: Load,
) -> bool:
    """Do the phases; whether it was interrupted, which is said. Raises typer.Exit where it cannot go on."""
    from harness.launch.keeper import ResultsError
    from harness.launch.supervisor import WorkerError, supervise

    try:
        with screen, reporter:
            interrupted = supervise(phases, (screen.on_event, reporter.on_event), results, limits, load)
    except KeyboardInterrupt:
        interrupted = True
    except (WorkerError, ResultsError) as error:
        for line in f"error: {error}".splitlines():  # the end of a worker's output has several
            screen.say((line, "red"))
        raise typer.Exit(1) from None
    if interrupted:
        screen.say(("interrupted:", "yellow"), " what is finished is kept; the same command goes on from here")
    return interrupted


def _check_options(retries: int, timeout: float | None, checkpoint_every: float, nodes: int) -> None:
    """Raises ConfigError for a value that is not possible."""
    require(0 <= retries <= 100, f"--retries: {retries} is not possible; write 0 to 100")
    require(timeout is None or timeout > 0, f"--timeout: {timeout} is not possible; write minutes above 0")
    require(
        0 <= checkpoint_every < math.inf,
        f"--checkpoint-every: {checkpoint_every:g} is not possible; write minutes, 0 for after every step",
    )
    there = node_count()
    require(
        1 <= nodes <= there,
        f"--nodes: {nodes} is not possible, there are {there}; "
        + ("write fewer" if there > 1 else "sbatch slurm/multinode.sh"),
    )


def _check_tracking(tracker: str | None) -> None:
    require(
        tracker is None or importlib.util.find_spec(tracker) is not None,
        f"tracking: {tracker} is not installed; run pip install {tracker} or remove the line",
    )


def _open(folder: Path, grid: bytes, whole: Plan | None) -> Results:
    """Make the results folder, with the grid file's very bytes in it and the whole plan, where it is the whole.

    Raises:
        ConfigError: it cannot be written, lies on a disk without hard links, or is not the one that was submitted for.
    """
    results = Results(Path(os.path.realpath(folder)))  # `resolve` raises for a loop of links
    check_submission(results.folder)
    with opening(results.folder):
        results.folder.mkdir(parents=True, exist_ok=True)
        write_atomic(ResultsFolder(results.folder).grid, grid)
        if whole is not None:
            write_plan(results.folder, planned(whole))
    check_links(results.folder)
    return results


def _aside(damaged: Sequence[Damaged]) -> list[str]:
    return [f"{one.folder}: set aside and done again: {one.message}" for one in damaged]


def _write_index(results: Results, whole: Plan | None, changed: bool) -> None:
    """Of the whole plan, where that is known and the index would be another."""
    if whole is not None and (changed or not ResultsFolder(results.folder).index.exists()):
        write_index(results, whole)


def _print_outcome(terminal: Console, plan: Plan, results: Results, where: Path, table: bool) -> None:
    """The table of the plan's runs that have a record, if it is wanted, with how to go on; and those that failed, with
    their reason.
    """
    from harness.leaderboard.frame import load
    from harness.leaderboard.render import print_failures, print_sections
    from harness.leaderboard.sections import make_sections
    from harness.leaderboard.table import boards
    from harness.leaderboard.truth import unscored

    done = results.done()
    # A training that is done is not in the table, unless it has nothing to be scored on.
    wanted = {spec.id for spec in plan.works() if spec.kind != "train" or spec.id not in done}
    wanted |= {training.spec.id for training in plan.trainings if not training.evaluations}
    found = load([results.folder], wanted)
    if table and found.evaluations:
        print_sections(terminal, make_sections(boards(found, allow_mixed=True)))
    elif table:
        for line in unscored(found.trainings):
            terminal.print(line, soft_wrap=True)
    print_failures(terminal, found.failures, plan.names)
    if table and found.evaluations:
        shown = one_line(shlex.quote(str(where)))
        terminal.print(f"next: harness report {shown}    one page of charts, curves and anomaly maps", soft_wrap=True)
        terminal.print(f"      harness leaderboard {shown} --table all    how sure it is", soft_wrap=True)
