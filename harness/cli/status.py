"""`harness status`"""

import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from dskd.config import require
from harness.cli.common import OutOption, console, results_folder

if TYPE_CHECKING:
    from harness.launch.overview import Run

ASK_EVERY_S = 30.0  # of SLURM's controller, which serves a whole cluster
LINES = 20
STATES = ("done", "running", "pending", "failed", "to do")


def status(
    runs: Annotated[list[Path], typer.Argument(help="Results folders (runs/NAME), or grid files.", show_default=False)],
    out: OutOption = "runs",
    watch: Annotated[bool, typer.Option("--watch", help="Show it until no run is running or pending.")] = False,
    every: Annotated[float, typer.Option(metavar="SECONDS", help="Between two looks of --watch.")] = 5.0,
) -> None:
    """Show where the runs of a grid are: done, running and how far, pending and why, failed and why.

    Reads the records and what running supervisors write beside them; for jobs of SLURM it asks squeue, and sacct where
    there is accounting, at most every 30 seconds. It works without SLURM too, and from any machine that sees the
    folder. Exit codes: 0 all done, 1 some failed or missing, 2 wrong input.
    """
    from harness.launch.overview import look, overview
    from harness.records import damage_line, skipped_lines

    require(0.1 <= every <= 3600, f"--every: {every:g} is not possible; write 0.1 to 3600 seconds")
    folders = [results_folder(path, Path(out)) for path in runs]
    for folder in folders:
        require(folder.is_dir(), f"{folder} is not a folder; write a results folder such as runs/NAME")
    asked, queues = -ASK_EVERY_S, {}

    def view() -> tuple[Group, Counter[str]]:
        nonlocal asked, queues
        if time.monotonic() - asked >= ASK_EVERY_S:
            asked, queues = time.monotonic(), {}
        parts, total = [], Counter()
        for folder in folders:
            seen = look(folder, queues.get(folder))
            queues[folder] = seen.queue or {}
            found = overview(seen)
            total += Counter(run.state for run in found)
            parts += _render(folder.name, found)
            parts += [Text(f" {line}") for line in (*damage_line(seen.damaged), *skipped_lines(seen.skipped))]
        return Group(*parts), total

    terminal = console()
    shown, total = view()
    if watch and terminal.is_terminal:
        with Live(shown, console=terminal, auto_refresh=False) as live:
            while total["running"] + total["pending"]:
                time.sleep(every)
                shown, total = view()
                live.update(shown, refresh=True)
    else:
        terminal.print(shown)
        while watch and total["running"] + total["pending"]:
            time.sleep(every)
            before = total
            shown, total = view()
            if total != before:
                terminal.print(shown)
    raise typer.Exit(0 if total.total() == total["done"] else 1)


def _counted(found: list["Run"]) -> str:
    """`3 runs (2 done, 1 failed), 1 measurement (to do)`"""
    from harness.naming import counted

    parts = []
    for kind, word in (("train", "runs"), ("bench", "measurements")):
        states = Counter(run.state for run in found if run.kind == kind)
        known = [f"{states[state]} {state}" for state in STATES if states[state]]
        parts += [f"{counted(**{word: states.total()})} ({', '.join(known)})"] if known else []
    return ", ".join(parts) or "no runs"


def _render(name: str, found: list["Run"]) -> list[Text | Table]:
    lines: list[Text | Table] = [Text(f"{name}: {_counted(found)}", style="bold")]
    running = [run for run in found if run.state == "running"]
    if running:
        table = Table(box=None, show_header=False, padding=(0, 2, 0, 1))
        for run in running[:LINES]:
            table.add_row(Text(run.id, style="dim"), Text(run.title), Text(run.note))
        lines.append(table)
    for state in ("pending", "to do", "failed"):
        notes = Counter(run.note for run in found if run.state == state and run.note)
        for note, count in notes.most_common(LINES):
            example = next(run for run in found if run.state == state and run.note == note)
            what = f"{count} of them" if count > 1 else f"{example.title} [{example.id}]"
            lines.append(Text(f" {state}: {what}: {note}"))
        if len(notes) > LINES:
            lines.append(Text(f" {state}: and {len(notes) - LINES} more"))
    if len(running) > LINES:
        lines.append(Text(f" running: and {len(running) - LINES} more"))
    return lines
