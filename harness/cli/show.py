"""`harness show`"""

import csv
from pathlib import Path
from typing import Annotated

import typer
import yaml
from rich import box
from rich.table import Table

from dskd.config import ConfigError
from harness.cli.common import OutOption, console

LOG_LINES = 20


def show(
    run: Annotated[str, typer.Argument(help="A run's id, the start of one, or its folder.", show_default=False)],
    out: OutOption = "runs",
) -> None:
    """Show one run: its spec and result, or the reason why it failed, and the end of its log."""
    from harness.records import Record, Results

    folder = _find(run, out)
    results = Results(folder.parent)
    terminal = console()
    record, failure = results.record(folder.name), results.last_failure(folder.name)
    found = record or failure
    if found is None:
        raise ConfigError(f"{folder} has neither a record nor a failed attempt")
    state = "done" if isinstance(found, Record) else f"failed ({found.reason}, attempt {found.attempt})"
    terminal.print(f"{found.kind} {found.id}: {state}, {found.started_at}  [dim]{folder}[/]", soft_wrap=True)
    sections = {"spec": found.spec, "environment": found.environment}
    if isinstance(found, Record):
        sections["result"] = found.result
    for title, content in sections.items():
        terminal.rule(title, align="left")
        terminal.print(
            yaml.safe_dump(content, sort_keys=False, default_flow_style=None, width=100), markup=False, end=""
        )
    along = folder / "metrics.csv"
    if along.exists():
        terminal.rule(f"metrics along the training ({along})", align="left")
        terminal.print(_metrics(along))
    if not isinstance(found, Record):
        terminal.rule("reason", align="left")
        peak = found.peak_host_memory_mib
        memory = "" if peak is None else f"peak memory {peak:.0f} MiB\n"
        terminal.print(f"{found.message}\n{memory}{found.traceback}", markup=False)
    log = folder / "log.txt"
    if log.exists() and log.stat().st_size:
        terminal.rule(f"log (last {LOG_LINES} lines of {log})", align="left")
        terminal.print("\n".join(log.read_text(errors="replace").splitlines()[-LOG_LINES:]), markup=False)


def _metrics(path: Path) -> Table:
    """Epoch and the leaderboard's metrics, in %."""
    from harness.leaderboard.frame import METRICS, SHOWN

    table = Table("epoch", *(METRICS[key] for key in SHOWN), box=box.SIMPLE_HEAD, pad_edge=False)
    with path.open(newline="") as stream:
        for row in csv.DictReader(stream):
            cells = [f"{100 * float(row[key]):.1f}" if row.get(key) else "undefined" for key in SHOWN]
            table.add_row(row["epoch"], *cells)
    return table


def _find(run: str, out: Path) -> Path:
    if ("/" in run or run == ".") and Path(run).is_dir():
        return Path(run).resolve()
    found = sorted(path for path in out.glob(f"*/{run}*") if path.is_dir()) if run.isalnum() else []
    if not found:
        raise ConfigError(
            f"no run {run!r} in {out}; `harness plan --grid GRID --list` lists ids, --out names the folder"
        )
    if len({path.name for path in found}) > 1:
        raise ConfigError(f"{run!r} is the start of {len(found)} runs: {', '.join(path.name for path in found[:5])}")
    return found[0].resolve()
