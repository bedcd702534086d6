"""What several commands share: options, consoles, and the way from a grid file to a plan."""

import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TextIO

import typer
from rich.console import Console, ConsoleOptions, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.segment import Segment
from rich.text import Text

from dskd.config import ConfigError, require, suggest
from harness import plugins
from harness.gridfile import Grid, read_grid, require_limit
from harness.launch.devices import kind_of
from harness.naming import LABELS, labels_of
from harness.text import shown

if TYPE_CHECKING:
    from harness.grid import Plan

GridArgument = Annotated[Path | None, typer.Argument(metavar="GRID", help="The grid file (YAML).", show_default=False)]
GridOption = Annotated[Path | None, typer.Option("--grid", "-g", help="The same as an option.", show_default=False)]
OutOption = Annotated[
    Path, typer.Option("--out", "-o", help="Results go to the folder OUT/NAME, NAME being the name of the grid.")
]
DevicesOption = Annotated[
    str,
    typer.Option(help="auto (every GPU, else the CPU), cpu, cpu:4 (four workers), cuda, or cuda:0,2 (these GPUs)."),
]
RunsPerDeviceOption = Annotated[
    str,
    typer.Option(
        metavar="N|auto",
        help="Runs at a time on each device: small ones leave a GPU idle. auto: what `harness doctor` found best, as "
        "far as memory, cores and the pace of these runs allow.",
    ),
]
NoMpsOption = Annotated[
    bool,
    typer.Option(
        "--no-mps",
        help="Start no MPS daemon for GPUs that several runs share; else `run` does where `harness doctor` found that "
        "it pays.",
    ),
]
OnlyOption = Annotated[
    list[str] | None,
    typer.Option("--only", help="Only runs whose label has this value: method=dskd, seed=0; may be given again."),
]
LimitOption = Annotated[
    int | None,
    typer.Option(
        metavar="N",
        help="A smoke run: N images of a category to train on, and N of each type of defect and of the good ones to "
        "test on. Its results go to NAME-limitN.",
    ),
]
ImageSizeOption = Annotated[
    str,
    typer.Option(metavar="SIZE", help="Of the image that is counted for: a square's side, or HEIGHTxWIDTH as 256x640."),
]
PluginOption = Annotated[
    list[str] | None,
    typer.Option(
        "--plugin",
        metavar="MODULE",
        help="A module with methods, backbones or data sets of your own: its name or .py file; may be given again.",
    ),
]


def the_grid(argument: Path | None, option: Path | None) -> Path:
    """The grid file that a command was given in one of the two ways. Raises ConfigError."""
    require(
        argument is None or option is None,
        f"two grid files are named, {argument} and --grid {option}; name one of them",
    )
    path = option if argument is None else argument
    if path is None:
        raise ConfigError("no grid file is named; write its path, such as benchmarks/grids/quickstart.yaml")
    return path


def results_folder(path: Path, out: Path) -> Path:
    """A results folder as it is, or that of a grid file. Raises ConfigError for a file that is no grid."""
    return out / read_grid(path).name if path.is_file() else path


class Terminal(Console):
    """A console on which text is text: nothing in it is taken for markup, and control characters are shown, not sent.

    Styles come from `Text` or `style=`. Tables keep their width when they go to a file or a pipe.
    """

    def __init__(self, *, stderr: bool = False, file: TextIO | None = None) -> None:
        super().__init__(stderr=stderr, file=file, markup=False, emoji=False, highlight=False)
        if not self.is_terminal:
            self.width = 160

    def render_str(self, text: str, **options: Any) -> Text:
        return super().render_str(shown(text), **options)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterator[Segment]:
        for segment in super().render(renderable, options):
            yield segment if segment.control else segment._replace(text=shown(segment.text))


class Unbreakable:
    """Standard output for what must go on without it: a disk that is full, a pipe that nobody reads, a terminal that is
    gone and an encoding without a sign raise nothing. After the first failure it is silent.
    """

    def __init__(self) -> None:
        self.stream = sys.stdout  # rich puts another one in its place while it shows progress
        self.broken = self.stream is None

    def write(self, text: str) -> int:
        self._try(lambda: self.stream.write(text))
        return len(text)

    def flush(self) -> None:
        self._try(lambda: self.stream.flush())

    def isatty(self) -> bool:
        return not self.broken and self.stream.isatty()

    def fileno(self) -> int:
        return self.stream.fileno()

    @property
    def encoding(self) -> str:
        return getattr(self.stream, "encoding", None) or "utf-8"

    def _try(self, write: Callable[[], object]) -> None:
        if not self.broken:
            try:
                write()
            except (OSError, ValueError):
                self.broken = True
                silence(self.stream)


def silence(stream: TextIO) -> None:
    """Let nothing that is left in the stream's buffer fail once more when the process ends."""
    with suppress(OSError, ValueError), open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), stream.fileno())


def console(*, stderr: bool = False) -> Console:
    return Terminal(stderr=stderr)


def listed(text: str) -> list[str]:
    """`"a, b"` to `["a", "b"]`."""
    return [part.strip() for part in text.split(",") if part.strip()]


def parse_only(only: list[str] | None) -> dict[str, list[str]]:
    """`["method=dskd", "seed=0"]` to a rule for `matches`; the same key again means one or the other."""
    rule: dict[str, list[str]] = {}
    for item in only or []:
        key, equals, value = item.partition("=")
        require(bool(equals), f"--only: {item!r} is not possible; write key=value")
        if key not in LABELS:
            raise ConfigError(f"--only: unknown key {key!r}; {suggest(key, LABELS)}")
        rule.setdefault(key, []).append(value)
    return rule


def make_plan(
    path: Path,
    devices: str,
    only: list[str] | None,
    modules: Iterable[str] | None = None,
    limit: int | None = None,
) -> tuple[Grid, "Plan"]:
    """Load the plug-ins (`modules` and the installed ones), then read, look and expand, with a progress bar while data
    are read for the first time. Raises ConfigError.

    Args:
        limit: what `--limit` says. Such a grid has a name of its own, so that its runs stand in no table of the whole.
    """
    from harness.grid import expand, matches, resolve

    kind = kind_of(devices)
    rule = parse_only(only)
    plugins.load(modules or ())
    grid = read_grid(path)
    if limit is not None:
        require_limit(limit, "--limit")
        grid = replace(grid, limit=limit, name=f"{grid.name}-limit{limit}")
    with reading() as progress:
        facts = resolve(grid, kind, progress)
    plan = expand(grid, facts)
    require(bool(plan.trainings), f"{path}: `exclude` leaves no run")
    if rule:
        # By name or as it is called: what is shown is what one writes.
        trainings = [
            training
            for training in plan.trainings
            if all(
                matches(labels_of(training.spec), one) or matches(labels_of(training.spec, called=True), one)
                for one in ({key: values} for key, values in rule.items())
            )
        ]
        require(bool(trainings), f"--only: no run of the grid has {' '.join(only or [])}")
        models = {(training.spec.method, training.spec.backbone) for training in trainings}
        benches = [bench for bench in plan.benches if (bench.method, bench.backbone) in models]
        plan = replace(plan, trainings=trainings, benches=benches)
    return grid, plan


@contextmanager
def reading() -> Iterator[Any]:
    """A progress bar on a terminal's standard error; gives what is called as (what, done, total)."""
    columns = TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn()
    terminal = console(stderr=True)
    with Progress(*columns, console=terminal, transient=True, disable=not terminal.is_terminal) as progress:
        tasks: dict[str, Any] = {}

        def report(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = progress.add_task(what)
            progress.update(tasks[what], completed=done, total=total)

        yield report
