"""`harness profile`"""

import contextlib
import os
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from dskd.config import ConfigError, require
from harness import events
from harness.cli.common import (
    DevicesOption,
    GridArgument,
    GridOption,
    OnlyOption,
    PluginOption,
    console,
    make_plan,
    the_grid,
)
from harness.cli.outputs import check_file
from harness.job import TrainJob, name_of

if TYPE_CHECKING:
    from harness.run.profile import Profile


def profile(
    grid_file: GridArgument = None,
    grid: GridOption = None,
    devices: DevicesOption = "auto",
    only: OnlyOption = None,
    plugin: PluginOption = None,
    trace: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Also write torch's trace, for chrome://tracing or ui.perfetto.dev."),
    ] = None,
) -> None:
    """Do one run of a grid, the first that --only leaves, and show where its time goes and what the device can do.

    Nothing is kept of the run. Sections are timed by waiting for the device at their ends, which makes the run itself
    slower on a GPU. A section's share of the matrix rate says how near it is to what the device computes at best, its
    share of the copy rate how near to what its memory moves at best: what is far from both waits for something else.
    """
    from harness.launch import schedule
    from harness.launch.devices import find_slots
    from harness.spec import Save

    path = the_grid(grid_file, grid)
    if trace is not None:
        check_file("--trace", trace)
        require(trace.absolute().parent.is_dir(), f"--trace: the folder of {trace} is not there; make it")
    slot = find_slots(devices)[0]
    parsed, plan = make_plan(path, devices, only, plugin)
    if slot.visible:
        os.environ["CUDA_VISIBLE_DEVICES"] = slot.visible
    with TemporaryDirectory() as folder:
        options = {"save": Save(), "device": slot.kind, "force": True, "grid": parsed.name, "checkpoint_every_s": 1e9}
        job = next(iter(schedule.remaining(plan, (), results=folder, **options).jobs))
        require(
            job.spec.processes == 1,
            f"processes: {job.spec.processes}: harness profile does runs of one process; write processes: 1",
        )
        terminal = console()
        terminal.print(f"profile of {name_of(job)}, {job.spec.method.train.epochs} epochs ...")
        found = _take(job, trace)
    terminal.print(_table(found))
    facts = found.facts
    terminal.print(
        f"{found.wall_s:.2f} s in all; {facts['device']}, {facts['precision']}, {facts['threads']} threads: "
        f"matrix rate {found.matrix_flop_per_s / 1e9:.1f} GFLOP/s, copy rate {found.copy_bytes_per_s / 1e9:.1f} GB/s"
    )


def _take(job: TrainJob, trace: Path | None) -> "Profile":
    """Do the job in this process. Raises ConfigError if it fails."""
    import torch

    from harness.run.execute import execute
    from harness.run.profile import take_profile

    failures: list[str] = []

    def emit(event: events.FromWorker) -> None:
        if isinstance(event, events.Failed):
            failures.append(f"{event.reason}: {event.message}")

    with torch.profiler.profile() if trace else contextlib.nullcontext() as traced:
        found = take_profile(job, lambda job: execute(job, emit))
    if failures:
        raise ConfigError(f"the run failed: {failures[0]}")
    if trace:
        traced.export_chrome_trace(str(trace))
    return found


def _table(found: "Profile") -> Table:
    table = Table("section")
    for name in ("seconds", "share", "calls", "GFLOP/s", "of matrix rate", "GB/s", "of copy rate"):
        table.add_column(name, justify="right")
    for line in found.lines:
        cells = [f"{line.seconds:.3f}", f"{100 * line.seconds / found.wall_s:.1f} %", str(line.calls)]
        for reached, best in ((line.flop_per_s, found.matrix_flop_per_s), (line.bytes_per_s, found.copy_bytes_per_s)):
            cells += ["", ""] if reached is None else [f"{reached / 1e9:.1f}", f"{100 * reached / best:.0f} %"]
        table.add_row(line.name, *cells)
    return table
