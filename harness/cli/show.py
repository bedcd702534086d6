"""`harness show`"""

from pathlib import Path
from typing import Annotated

import typer
import yaml
from rich import box
from rich.table import Table
from rich.text import Text

from dskd.config import ConfigError
from harness.cli.common import OutOption, console

LOG_LINES = 20


def show(
    run: Annotated[str, typer.Argument(help="A run's id, the start of one, or its folder.", show_default=False)],
    out: OutOption = "runs",
) -> None:
    """Show one run: its spec and result, or the reason why it failed, and the end of its log."""
    from harness.foreign import Damaged, log_tail
    from harness.records import Failure, Record, Results, skipped_lines
    from harness.run_folder import RunFolder, read_metrics

    folder = _find(run, out)
    files = RunFolder(folder)
    terminal = console()
    items = list(Results(folder.parent).items([folder.name]))
    # A record that does not pass, or attempts of which the newest that does is last.
    found = items[-1] if items else None
    if found is None:
        raise ConfigError(f"{folder} has neither a record nor a failed attempt")
    if isinstance(found, Damaged):
        terminal.print(f"{found.folder} is damaged: {found.message}", soft_wrap=True)
        terminal.print(_consequence(found.folder == folder), soft_wrap=True)
    else:
        state = "done" if isinstance(found, Record) else f"failed ({found.reason}, attempt {found.attempt})"
        head = f"{found.kind} {found.id}: {state}, {found.started_at}  "
        terminal.print(Text.assemble(head, (str(folder), "dim")), soft_wrap=True)
        sections = {"spec": found.spec, "environment": found.environment}
        if isinstance(found, Record):
            sections["result"] = found.result
        for title, content in sections.items():
            terminal.rule(title, align="left")
            terminal.print(yaml.safe_dump(content, sort_keys=False, default_flow_style=None, width=100), end="")
    skipped = [item for item in items[:-1] if isinstance(item, Damaged)]
    along = read_metrics(files, skipped)
    if along:
        terminal.rule(f"metrics along the training ({files.metrics})", align="left")
        terminal.print(_metrics(along))
    if isinstance(found, Failure):
        terminal.rule("reason", align="left")
        peak = found.peak_host_memory_mib
        memory = "" if peak is None else f"peak memory {peak:.0f} MiB\n"
        terminal.print(f"{found.message}\n{memory}{found.traceback}")
    for line in skipped_lines(skipped):
        terminal.print(line, soft_wrap=True)
    log = log_tail(files.log).splitlines()
    if log:
        terminal.rule(f"log (last {LOG_LINES} lines of {files.log})", align="left")
        terminal.print("\n".join(log[-LOG_LINES:]))


def _consequence(is_record: bool) -> str:
    from harness.run_folder import RECORD

    again = f"sets it aside ({RECORD}.damaged-1) and does the run again" if is_record else "does the run again"
    return f"The run counts as not done: the next `harness run` of its grid {again}."


def _metrics(rows: list[dict[str, float | None]]) -> Table:
    """Epoch and the leaderboard's metrics, in %."""
    from harness.leaderboard.frame import METRICS, SHOWN

    table = Table("epoch", *(METRICS[key] for key in SHOWN), box=box.SIMPLE_HEAD, pad_edge=False)
    for row in rows:
        values = (row.get(key) for key in SHOWN)
        cells = ["undefined" if value is None else f"{100 * value:.1f}" for value in values]
        table.add_row(str(row["epoch"]), *cells)
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
