"""`harness predict`"""

import logging
import os
import select
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Self

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from dskd.config import ConfigError, require, suggest
from harness import plugins
from harness.cli.common import PluginOption, console
from harness.cli.find import ModelArgument, RunsOption, WeightsOption, model_path
from harness.cli.screen import Pace
from harness.files import write_atomic
from harness.launch.interrupts import interrupts
from harness.launch.schedule import duration
from harness.text import number_of, one_line

if TYPE_CHECKING:
    from harness.predict.gather import Found
    from harness.predict.work import Tally, Work

STDIN = "-"
WORST = "worst.html"
LINE_EVERY_S = 10.0  # where there is no terminal: between two lines of progress
PAGE_EVERY_S = 60.0  # while watching: between two pages, if other pictures are the worst


PathsArgument = Annotated[
    list[str],
    typer.Argument(
        metavar="PATHS",
        help="Folders (searched to any depth), patterns in quotes, files, or - for names on standard input.",
        show_default=False,
    ),
]
IntoOption = Annotated[
    Path,
    typer.Option("--out", "-o", metavar="DIR", help="Predictions go here; what is there already is not done again."),
]
HeatmapsOption = Annotated[
    bool, typer.Option("--heatmaps", help="A picture for each in DIR/heatmaps: itself, the map over it, the map alone.")
]
WatchOption = Annotated[
    bool, typer.Option("--watch", help="Go on with what arrives in the folders, until Ctrl-C or a TERM signal.")
]
RateOption = Annotated[
    float | None,
    typer.Option(
        help="False alarm rate of the decisions, such as 0.01: one of 100 good pictures; the run's by default."
    ),
]
TableOption = Annotated[str, typer.Option("--format", help="csv (predictions.csv) or jsonl (predictions.jsonl).")]
DeviceOption = Annotated[str, typer.Option(help="auto (a GPU, else the CPU), cpu, cuda or cuda:1.")]


def predict(
    run: ModelArgument,
    paths: PathsArgument,
    out: IntoOption,
    heatmaps: HeatmapsOption = False,
    watch: WatchOption = False,
    rate: RateOption = None,
    output: TableOption = "csv",
    weights: WeightsOption = None,
    device: DeviceOption = "auto",
    runs: RunsOption = Path("runs"),
    plugin: PluginOption = None,
) -> None:
    """Score pictures with a trained model: how anomalous each one is, whether that is more than normal, and where.

    DIR/predictions.csv gets a line for each picture as it is done: score, p-value, decision, the box of the largest
    defect and its share of the picture, or why the picture could not be read. DIR/worst.html shows the highest scores.
    Decisions and p-values need a run that held out normal images (calibrate: 0.2 in its grid); scores do not.

    Ctrl-C, and even a killed process, lose nothing that was written: the same command goes on from there.

    Exit codes: 0 all done, or --watch was stopped; 1 some pictures could not be read; 2 wrong usage or input; 130
    interrupted.
    """
    from harness.predict.gather import check, count
    from harness.predict.table import FORMATS, Journal

    if output not in FORMATS:
        raise ConfigError(f"--format: {output!r} is not possible; {suggest(output, FORMATS)}")
    require(not (watch and STDIN in paths), "--watch looks into folders; leave - out")
    given = [path for path in paths if path != STDIN]
    check(given, watch)
    total = None if watch or STDIN in paths else count(given, out)
    plugins.load(plugin or ())
    terminal = console()
    with _notes(terminal, decides=rate is not None):
        path = model_path(run, runs)
        from harness.predict.model import load  # from here on torch is needed
        from harness.predict.work import Work, thresholds_of

        model = load(path, weights, device)

        thresholds = thresholds_of(model.content, rate)
        state = {"model": model.about["evaluation"], "rate": thresholds.rate}
        with Journal(out, output, state) as journal, interrupts() as stop, _Screen(terminal, total) as screen:
            work = Work(model, journal, thresholds, heatmaps, screen.on_picture, lambda: _waited(stop, 0))
            stopped, page = _work(work, given, watch, STDIN in paths, stop, screen)
    _conclude(terminal, work, screen.seconds, page)
    if stopped and not watch:
        terminal.print("interrupted; the same command goes on from here", soft_wrap=True)
        raise typer.Exit(130)
    if work.tally.unread and not watch:
        raise typer.Exit(1)


def _work(
    work: "Work", given: Sequence[str], watch: bool, from_stdin: bool, stop: int, screen: "_Screen"
) -> tuple[bool, str]:
    """Whether it was stopped, and the page that was written."""
    if work.thresholds.note:
        screen.say(work.thresholds.note)
    if watch:
        _watch(work, given, stop, screen)
    else:
        work.take(_found(given, from_stdin, work.journal.folder, stop))
    stopped, screen.seconds = _waited(stop, 0), time.monotonic() - screen.left.began
    return stopped, _write_page(work, screen) if watch or not stopped else ""


def _found(given: Sequence[str], from_stdin: bool, out: Path, stop: int) -> "Iterator[Found]":
    from harness.predict.gather import once, pictures

    return once(pictures(chain(given, _names(stop) if from_stdin else ()), out))


def _names(stop: int) -> Iterator[str]:
    """Lines of standard input as names, until it ends or `stop` can be read."""
    stream, rest = sys.stdin.fileno(), b""
    while not _waited(stop, None, stream):
        content = os.read(stream, 1 << 16)
        *lines, rest = (rest + content).split(b"\n")
        if not content:
            lines, rest = [rest], b""
        yield from (os.fsdecode(line) for each in lines if (line := each.rstrip(b"\r")))
        if not content:
            return


def _waited(stop: int, seconds: float | None, *others: int) -> bool:
    """Whether `stop` can be read, after so many seconds at most (None: until it or one of the others can be)."""
    return stop in select.select([stop, *others], [], [], seconds)[0]


def _watch(work: "Work", given: Sequence[str], stop: int, screen: "_Screen") -> None:
    from harness.predict.watch import watch

    shown_at, shown = time.monotonic(), work.journal.summary.worst

    def wait(seconds: float) -> bool:
        nonlocal shown_at, shown
        worst = work.journal.summary.worst
        if worst != shown and time.monotonic() - shown_at >= PAGE_EVERY_S:
            _write_page(work, screen)
            shown_at, shown = time.monotonic(), worst
        return _waited(stop, seconds)

    screen.say(f"watching {', '.join(given)}; Ctrl-C ends it")
    watch(given, work.journal.folder, work.journal.done, work.take, wait, screen.say)


def _write_page(work: "Work", screen: "_Screen") -> str:
    """Its path; empty where it could not be made. One that is newer than the table stays."""
    path = work.journal.folder / WORST
    if path.exists() and path.stat().st_mtime_ns > work.journal.path.stat().st_mtime_ns:
        return str(path)
    try:
        from harness.predict.worst import render
    except ModuleNotFoundError as error:
        screen.say(f"no {WORST}: {error.name} is not installed; pip install 'dskd-harness[report]' brings it")
        return ""
    try:
        write_atomic(path, render(work))
    except OSError as error:
        raise ConfigError(f"{path} cannot be written ({error.strerror or error}); the table is whole") from None
    return str(path)


def _conclude(terminal: Console, work: "Work", seconds: float, page: str) -> None:
    """What a call came to, and where it lies."""
    tally = work.tally
    if tally.done:
        read = tally.done - tally.failed
        parts = [f"{tally.anomalous:,} anomalous, {read - tally.anomalous:,} normal"] if work.thresholds.decides else []
        parts += [f"{tally.failed:,} could not be read (column error)"] if tally.failed else []
        pace = f"{number_of(tally.done, 'picture')} in {duration(seconds)}, {tally.done / seconds:,.1f} images/s"
        terminal.print(pace + (f": {', '.join(parts)}" if parts else ""), soft_wrap=True)
    else:
        terminal.print("no new picture")
    if tally.passed:
        earlier = tally.unread - tally.failed
        unread = f", {earlier:,} of them as not readable" if earlier else ""
        terminal.print(f"{number_of(tally.passed, 'picture')} in the table before{unread}", soft_wrap=True)
    files = [str(work.journal.path), *([str(work.heatmaps)] if work.heatmaps else []), *([page] if page else [])]
    terminal.print("  ".join(files), soft_wrap=True)


class _Screen:
    """On a terminal a bar with images/s; elsewhere a line every LINE_EVERY_S seconds.

    Args:
        total: how many pictures there are; None where nobody can tell.
    """

    def __init__(self, terminal: Console, total: int | None) -> None:
        self.terminal, self.total = terminal, total
        columns = [TextColumn("{task.description}", markup=False), BarColumn(bar_width=24)]
        columns += [TextColumn("{task.fields[note]}", markup=False)]
        self.progress = Progress(*columns, console=terminal, transient=True, disable=not terminal.is_terminal)
        self.task = self.progress.add_task("pictures", total=total, note="")
        self.left = Pace()
        self.shown = self.last_line = time.monotonic()
        self.done, self.seconds = 0, 0.0

    def __enter__(self) -> Self:
        self.progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.progress.stop()

    def say(self, line: str) -> None:
        self.terminal.print(one_line(line), soft_wrap=True)

    def on_picture(self, tally: "Tally") -> None:
        now = time.monotonic()
        self.done = tally.done
        if now - self.shown < 0.1:
            return
        self.shown = now
        come = tally.done + tally.passed
        known = f"{come:,} of {self.total:,}" if self.total else f"{come:,}"
        note = f"{known}  {self.speed:,.0f} images/s"
        if tally.unread:
            note += f"  {tally.unread:,} not read"
        left = self.left.left_s(come / self.total, now) if self.total else None
        if left:
            note += f"  about {duration(left)} left"
        self.progress.update(self.task, completed=come, note=note)
        if not self.terminal.is_terminal and now - self.last_line >= LINE_EVERY_S:
            self.last_line = now
            self.say(f"  {note}")

    @property
    def speed(self) -> float:
        """Images/s since it began."""
        return self.done / max(time.monotonic() - self.left.began, 1e-9)


class _Notes(logging.Handler):
    """What the model has to say, as text on the console: its lines name files of others."""

    def __init__(self, terminal: Console, decides: bool) -> None:
        super().__init__()
        self.terminal, self.decides = terminal, decides

    def emit(self, record: logging.LogRecord) -> None:
        line = record.getMessage()
        if not (self.decides and line.startswith("no decisions")):  # of the run's own rate, where another is asked for
            self.terminal.print(one_line(line), soft_wrap=True)


@contextmanager
def _notes(terminal: Console, decides: bool) -> Iterator[None]:
    log, handler = logging.getLogger("harness.predict"), _Notes(terminal, decides)
    log.addHandler(handler)
    before, log.propagate = log.propagate, False
    try:
        yield
    finally:
        log.propagate = before
        log.removeHandler(handler)
