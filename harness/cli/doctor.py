"""`harness doctor`"""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table
from rich.text import Text

from dskd.config import ConfigError, require
from harness.cli.common import DevicesOption, console
from harness.files import write_atomic
from harness.text import as_json

if TYPE_CHECKING:
    from harness.doctor.findings import Finding

STYLES = {"PASS": "green", "FAIL": "bold red", "SKIPPED": "dim"}


def _row(found: "Finding") -> Table:
    """A finding on a terminal of any width: printed as it comes, so each is a table of its own."""
    row = Table.grid(padding=(0, 1))
    for width in (7, 15, None):
        row.add_column(width=width, no_wrap=width is not None, overflow="fold")
    row.add_row(Text(found.state, STYLES[found.state]), found.name, f"{found.said}  {found.seconds:.1f} s")
    if found.advice:
        row.add_row("", "", Text(found.advice, "yellow"))
    return row


def doctor(
    out: Annotated[
        Path, typer.Option("--out", "-o", help="Where results will go: is that folder fit for them?")
    ] = Path("runs"),
    devices: DevicesOption = "auto",
    nodes: Annotated[int, typer.Option(help="In a SLURM job: nodes that are examined together.")] = 1,
    quick: Annotated[bool, typer.Option("--quick", help="Within a minute: two methods, one backbone.")] = False,
    json_file: Annotated[Path | None, typer.Option("--json", help="A file for the findings as JSON.")] = None,
) -> None:
    """Let this machine prove itself, before a grid relies on it: on a laptop, a GPU node, or within a SLURM job.

    Versions; the GPUs that the driver and CUDA see; rates of matrix products and copies; whether trainings end with the
    same bits twice, after an interruption and by steps recorded as CUDA graphs; how many runs a GPU carries at a time,
    with and without MPS; processes that talk to each other and are killed; memory, open files and the results folder.
    Each is PASS, FAIL with what to do about it, or SKIPPED with the reason. What was proven is remembered for this
    device and these versions. Exit codes: 0, 1 where something failed, 2 for wrong input.
    """
    from harness.doctor import checks
    from harness.doctor.findings import Where, examine, remember, remembered, report
    from harness.launch.cluster import node_count
    from harness.launch.devices import find_slots

    slots = find_slots(devices)
    there = node_count()
    require(1 <= nodes <= there, f"--nodes: {nodes} is not possible, there are {there}; ask SLURM for more")
    gpus = [slot.visible for slot in slots if slot.kind == "cuda"]
    where = Where(slots[0].kind, len(gpus), out, nodes, quick)
    if gpus:
        os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(map(str, gpus))  # before CUDA is started
    terminal, findings = console(), []
    if before := remembered(where.devices):
        states = [found["state"] for found in before["findings"]]
        terminal.print(f"last examined {before['made_at'][:16]}: {states.count('FAIL')} of {len(states)} checks failed")
    for found in examine(checks.of(where), where):
        findings.append(found)
        terminal.print(_row(found))
    document = report(findings, where)
    remember(document)
    if json_file is not None:
        try:
            write_atomic(json_file, as_json(document, indent=1))
        except OSError as error:
            raise ConfigError(f"--json: {json_file} cannot be written ({error.strerror})") from None
    count = sum(found.state == "FAIL" for found in findings)
    terminal.print(f"{count} of {len(findings)} checks failed" if count else "nothing failed")
    raise typer.Exit(1 if count else 0)
