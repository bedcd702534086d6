"""`harness run`"""

import math
import signal
from typing import Annotated

import typer
from rich.console import Console

from dskd.config import ConfigError, require
from harness.cli.common import DevicesOption, GridOption, OnlyOption, OutOption, PluginOption, console, make_plan
from harness.cli.screen import Screen
from harness.files import write_atomic
from harness.grid import Plan
from harness.records import Results


def run(
    grid: GridOption,
    out: OutOption = "runs",
    devices: DevicesOption = "auto",
    only: OnlyOption = None,
    plugin: PluginOption = None,
    force: Annotated[
        bool, typer.Option("--force", help="Do runs again that are done; their records are replaced.")
    ] = False,
    checkpoint_every: Annotated[
        float, typer.Option(metavar="MINUTES", help="How often the state of an unfinished training is saved.")
    ] = 10.0,
) -> None:
    """Run what is missing of a grid, and print the leaderboard.

    Every run leaves a record the moment it ends; finished runs are skipped by the next call and failed ones tried
    again; a training that was stopped goes on from its last checkpoint, to the same numbers. Ctrl-C keeps what is
    finished. Exit codes: 0 all done, 1 some runs failed, 2 wrong usage or input, 130 interrupted.
    """
    from harness.launch import schedule
    from harness.launch.supervisor import WorkerError, supervise

    require(
        0 <= checkpoint_every < math.inf,
        f"--checkpoint-every: {checkpoint_every:g} is not possible; write minutes, 0 for after every step",
    )
    parsed, plan = make_plan(grid, devices, only, plugin)
    results = Results((out / parsed.name).resolve())
    try:
        results.folder.mkdir(parents=True, exist_ok=True)
        write_atomic(results.folder / "grid.yaml", grid.read_bytes())
    except OSError as error:
        raise ConfigError(
            f"--out: {results.folder} cannot be written ({error.strerror}); name another folder"
        ) from None
    done = results.done()
    todo = schedule.remaining(
        plan,
        done,
        results=str(results.folder),
        save=parsed.save,
        device=devices,
        force=force,
        grid=parsed.name,
        checkpoint_every_s=60 * checkpoint_every,
    )
    terminal = console()
    terminal.print(
        f"{parsed.name}: {todo.left} of {len(plan)} works to do, {todo.done} done; results in {out / parsed.name}"
    )
    rate = schedule.rate_of(results, devices)
    screen = Screen(terminal, [(job, schedule.estimate_s(job, rate, () if force else done)) for job in todo.jobs])
    interrupted = False
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    try:
        with screen:
            supervise(todo.jobs, screen.on_event)
    except KeyboardInterrupt:
        interrupted = True
        terminal.print("[yellow]interrupted:[/] what is finished is kept; the same command goes on from here")
    except WorkerError as error:
        terminal.print(f"error: {error}", style="red", markup=False)
        raise typer.Exit(1) from None
    _print_outcome(terminal, plan, results)
    if interrupted:
        raise typer.Exit(130)
    raise typer.Exit(1 if screen.failures else 0)


def _print_outcome(terminal: Console, plan: Plan, results: Results) -> None:
    """The table of the plan's runs that have a record, and those that failed with their reason."""
    from harness.launch.schedule import works
    from harness.leaderboard.render import print_failures, print_table
    from harness.leaderboard.table import build, load

    wanted = {spec.id for spec in works(plan)}
    found = load([results.folder], wanted)
    if found.evaluations:
        print_table(terminal, build(found))
    print_failures(terminal, found.failures)
