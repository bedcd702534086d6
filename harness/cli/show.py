"""`harness show`"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
import yaml
from rich import box
from rich.table import Table
from rich.text import Text

from dskd.config import ConfigError, require, suggest
from harness.cli.common import OutOption, console

if TYPE_CHECKING:
    from harness.records import Failure, Record

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
    if "=" in run and "/" not in run:
        found = _having(run, Path(out))
        if len(found) > 1:
            return _list(found)
        run = str(found[0].folder)
    return _show(_find(run, out))


def _show(folder: Path) -> None:
    from harness.foreign import Damaged, log_tail
    from harness.leaderboard.truth import no_threshold
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
        if found.kind == "evaluate" and isinstance(found, Record) and found.result.get("threshold") is None:
            terminal.print(no_threshold(found.result), soft_wrap=True, style="yellow")
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


@dataclass(frozen=True)
class _Hit:
    """A piece of work that was found, with its name among those of its results folder."""

    item: "Record | Failure"
    name: str
    folder: Path


def _having(text: str, out: Path) -> list[_Hit]:
    """What has a record or a failed attempt under `out` and all of the labels or settings. Raises ConfigError."""
    from harness.leaderboard.frame import load, names_in
    from harness.naming import LABELS, kind_of, labels_of, recorded_settings

    wanted = dict(_pair(part) for part in text.split(","))
    require(out.is_dir(), f"{out} is not a folder; --out names the folder of results")
    found = load([out])
    names = names_in(found)
    hits, known = [], {"kind", *LABELS}
    of_settings = bool(wanted.keys() - known)
    for item in (*found.trainings, *found.evaluations, *found.benches, *found.failures):
        about = recorded_settings(item.spec) if of_settings else {}
        known |= about.keys()
        labels = {"kind": kind_of(item.spec)} | labels_of(item.spec)
        if labels["kind"] == "bench":  # a model's speed is of no training
            about = {key: value for key, value in about.items() if not key.startswith(("train.", "loss."))}
        both = about | labels, about | labels | labels_of(item.spec, called=True)
        if all(any(str(one.get(key)) == value for one in both) for key, value in wanted.items()):
            hits.append(_Hit(item, names[item.id], found.folders[item.id].path))
    for key in wanted:
        require(key in known, f"show: unknown key {key!r}; {suggest(key, known)}")
    require(bool(hits), f"nothing in {out} has {text}; `harness plan --grid GRID --list` lists what a grid has")
    return sorted(hits, key=lambda hit: (hit.folder.parent, hit.name, hit.item.kind))


def _pair(part: str) -> tuple[str, str]:
    key, equals, value = part.partition("=")
    require(bool(equals), f"show: {part!r} is not possible; write key=value,key=value or an id")
    return key.strip(), value.strip()


def _list(hits: list[_Hit]) -> None:
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
