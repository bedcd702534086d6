"""What several commands share: options, consoles, and the way from a grid file to a plan."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from dskd.config import ConfigError, require, suggest
from harness import plugins
from harness.grid import LABELS, Grid, Plan, expand, labels_of, matches, read_grid, resolve
from harness.launch.devices import kind_of

GridOption = Annotated[Path, typer.Option("--grid", "-g", help="The grid file (YAML).", show_default=False)]
OutOption = Annotated[
    Path, typer.Option("--out", "-o", help="Results go to the folder OUT/NAME, NAME being the name of the grid.")
]
DevicesOption = Annotated[
    str,
    typer.Option(help="auto (every GPU, else the CPU), cpu, cpu:4 (four workers), cuda, or cuda:0,2 (these GPUs)."),
]
RunsPerDeviceOption = Annotated[int, typer.Option(help="Runs at a time on each device: small ones leave a GPU idle.")]
OnlyOption = Annotated[
    list[str] | None,
    typer.Option("--only", help="Only runs whose label has this value: method=dskd, seed=0; may be given again."),
]
PluginOption = Annotated[
    list[str] | None,
    typer.Option(
        "--plugin",
        metavar="MODULE",
        help="A module with methods, backbones or data sets of your own: its name or .py file; may be given again.",
    ),
]


def results_folder(path: Path, out: Path) -> Path:
    """A results folder as it is, or that of a grid file. Raises ConfigError for a file that is no grid."""
    return out / read_grid(path).name if path.is_file() else path


def console(*, stderr: bool = False) -> Console:
    """Tables keep their width when they go to a file or a pipe."""
    made = Console(stderr=stderr, highlight=False)
    return made if made.is_terminal else Console(stderr=stderr, highlight=False, width=160)


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
    path: Path, devices: str, only: list[str] | None, modules: Iterable[str] | None = None
) -> tuple[Grid, Plan]:
    """Load the plug-ins (`modules` and the installed ones), then read, look and expand, with a progress bar while data
    are read for the first time. Raises ConfigError.
    """
    kind = kind_of(devices)
    rule = parse_only(only)
    plugins.load(modules or ())
    grid = read_grid(path)
    with _reading() as progress:
        facts = resolve(grid, kind, progress)
    plan = expand(grid, facts)
    require(bool(plan.trainings), f"{path}: `exclude` leaves no run")
    if rule:
        trainings = [training for training in plan.trainings if matches(labels_of(training.spec), rule)]
        require(bool(trainings), f"--only: no run of the grid has {' '.join(only or [])}")
        models = {(training.spec.method, training.spec.backbone) for training in trainings}
        plan = Plan(trainings, [bench for bench in plan.benches if (bench.method, bench.backbone) in models])
    return grid, plan


@contextmanager
def _reading() -> Iterator[Any]:
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn()
    terminal = console(stderr=True)
    with Progress(*columns, console=terminal, transient=True, disable=not terminal.is_terminal) as progress:
        tasks: dict[str, Any] = {}

        def report(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = progress.add_task(what)
            progress.update(tasks[what], completed=done, total=total)

        yield report
