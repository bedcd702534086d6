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
from harness.cli.find import Hit, find, having, is_labels

LOG_LINES = 20


def show(
    run: Annotated[
        str,
        typer.Argument(help="An id, the start of one, a folder, or labels: method=dskd,seed=0.", show_default=False),
    ],
    out: OutOption = "runs",
) -> None:
    """Show one piece of work: its spec and result, or the reason why it failed, and the end of its log.

    Of labels (`method=dskd,seed=0`, with `kind=train`, `evaluate` or `bench`, or a setting such as `train.lr=0.1`) a
    line for each piece of work that has them all, with its folder and what lies there; the whole of it where it is one.
    """
    if is_labels(run):
        found = having(run, Path(out))
        if len(found) > 1:
            return _list(found)
        run = str(found[0].folder)
    return _show(find(run, out))


def _show(folder: Path) -> None:
    from harness.foreign import Damaged, log_tail
    from harness.records import Failure, Record, Results, skipped_lines
    from harness.run_folder import RunFolder, read_metrics

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


def _list(hits: list[Hit]) -> None:
    from harness.records import Record

    terminal = console()
    for hit in hits:
        state = "done" if isinstance(hit.item, Record) else "failed"
        terminal.print(Text.assemble(f"{hit.item.kind:8}  {state:6}  ", (hit.name, "bold")), soft_wrap=True)
        files = " ".join(sorted(path.name for path in hit.folder.iterdir() if not path.name.startswith(".")))
        terminal.print(Text.assemble(f"  {hit.folder}  ", (files, "dim")), soft_wrap=True)


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
