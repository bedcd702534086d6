"""`harness search`"""

import functools
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
import yaml
from rich.table import Table

from dskd.config import ConfigError, require, suggest
from harness.cli.common import DevicesOption, OutOption, PluginOption, Terminal, make_plan, reading
from harness.environment import describe_environment
from harness.files import write_atomic
from harness.foreign import opening
from harness.gridfile import beginning, parse, read_document
from harness.records import RecordError, Results
from harness.text import number_of

if TYPE_CHECKING:
    from harness import search as library
    from harness.grid import Plan


def search(
    file: Annotated[Path, typer.Argument(metavar="SEARCH", help="A grid file with a section `search:` (YAML).")],
    out: OutOption = "runs",
    devices: DevicesOption = "auto",
    plugin: PluginOption = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check everything, show the rungs, run nothing.")] = False,
) -> None:
    """Search a recipe for each method, all under one budget: trials that are halved from rung to rung.

    Each rung is an ordinary grid, OUT/NAME/rung-N.yaml, with its records in OUT/NAME/rung-N, which every other command
    reads. The same command goes on where it was stopped. At the end OUT/NAME/choice.yaml has what was chosen, as
    entries of a grid's `method:`, with the criterion, the budget and the data that it was chosen on. Nothing but the
    records of the rungs is read. Exit codes: 0 chosen, 1 a method has no whole trial, 2 wrong usage or input, 130
    interrupted.
    """
    from harness import search as library

    _, document = read_document(file)
    with beginning(file):
        found, rest = library.parse(document)
        name = parse(rest).name
        left = library.trials(found, rest["axes"]["method"])
    folder, screen = out / name, Terminal()
    with tempfile.TemporaryDirectory() as scratch:  # a plan is of a file, and what is refused leaves none behind
        grid = Path(scratch) / "rung-1.yaml"
        grid.write_bytes(_yaml(library.rung_grid(found, rest, 0, left)))
        with beginning(file):
            _, plan = make_plan(grid, devices, None, plugin)
            _check(found, plan)
    screen.print("\n".join(_budget(found, plan)), soft_wrap=True)
    if dry_run:
        return
    outcomes: list[library.Outcome] = []
    for rung in range(found.rungs):
        grid = folder / f"rung-{rung + 1}.yaml"
        with opening(folder):
            folder.mkdir(parents=True, exist_ok=True)
            write_atomic(grid, _yaml(library.rung_grid(found, rest, rung, left)))
        if rung:  # the first one's is made
            with beginning(file):
                _, plan = make_plan(grid, devices, None, plugin)
        length = number_of(found.length(rung), "epoch")
        screen.print(f"rung {rung + 1} of {found.rungs}: {number_of(len(left), 'trial')} of {length}")
        _run(grid, folder, devices, plugin)
        outcomes += _outcomes(found, rung, left, plan, Results(folder / grid.stem))
        left = library.survivors(found, rung, outcomes) if rung + 1 < found.rungs else left
    chosen = library.choices(found, outcomes)
    where = folder / "choice.yaml"
    write_atomic(where, _yaml(_choice(file, found, plan, chosen)))
    _print(screen, found, outcomes, where)
    missing = {trial.method for trial in left} - {each.trial.method for each in chosen}
    if missing:
        screen.print(f"no trial of {', '.join(sorted(missing))} is whole: its runs failed", style="red")
    raise typer.Exit(1 if missing else 0)


class _Plain(yaml.SafeDumper):
    """Writes a list that occurs twice out twice."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _yaml(content: dict[str, Any]) -> bytes:
    return yaml.dump(content, Dumper=_Plain, sort_keys=False, allow_unicode=True).encode()


def _run(grid: Path, folder: Path, devices: str, plugin: list[str] | None) -> None:
    """A rung, as `harness run` does it. Its trial lacks a run that failed; an interruption ends the search."""
    from harness.cli.run import run

    try:
        run(grid_file=grid, out=folder, devices=devices, plugin=plugin, table=False)  # one of all trials tells little
    except typer.Exit as end:
        if end.exit_code not in (0, 1):
            raise


def _check(found: "library.Search", plan: "Plan") -> None:
    """Raises ConfigError for a metric that the runs will not have, or images of `search.report` among the plan's."""
    from harness.axes import source_of
    from harness.data.doubles import common
    from harness.data.manifest import look
    from harness.leaderboard.frame import LOWER, METRICS

    limits = {limit for run in plan.trainings for each in run.evaluations for limit in each.aupro_limits}
    seeds = {run.spec.seed for run in plan.trainings}
    require(
        not found.spread or len(seeds) > 1,
        "search.spread: a spread over seeds needs two of them or more; write axes.seed: [0, 1, 2]",
    )
    possible = [*(key for key in METRICS if key not in LOWER), *(f"aupro_{limit:.2f}" for limit in sorted(limits))]
    for metric in found.metrics:
        if metric not in possible:
            raise ConfigError(f"search.metrics: unknown metric {metric!r}; {suggest(metric, possible)}")
    for entry in found.report:
        source = source_of(entry)
        with reading() as progress:
            report = functools.partial(progress, f"reading {source.name}")
            looks = [look(source, category, report) for category in source.chosen()]
        same = common(plan.looks.values(), looks)
        require(
            not same,
            f"search.report: {source.name} and the data that choose have {same}: what images chose cannot be reported "
            "on them; leave one of the two data sets out",
        )


def _budget(found: "library.Search", plan: "Plan") -> list[str]:
    """What is searched, and how many images each method sees."""
    called = {dict(run.spec.called)["method"] for run in plan.trainings}
    methods, count = len({label.rpartition(" trial ")[0] for label in called}), len(called)
    seen = sum(run.spec.train_images for run in plan.trainings) // count  # by one trial in one epoch, with all seeds
    images = sum(found.size(rung) * found.length(rung) for rung in range(found.rungs)) * seen
    rungs = [
        f"{number_of(found.size(rung), 'trial')} of {number_of(found.length(rung), 'epoch')}"
        for rung in range(found.rungs)
    ]
    return [
        f"{number_of(methods, 'method')}, each with {', '.join(rungs)}: about {images:,} images seen by each, "
        f"{number_of(len(plan.trainings) // count, 'training')} for a trial",
        f"best by the {found.criterion}; drawn: {', '.join(found.space)}",
    ]


def _outcomes(
    found: "library.Search", rung: int, left: Sequence["library.Trial"], plan: "Plan", results: Results
) -> list["library.Outcome"]:
    """What the records of a rung say, of each trial and each of the file's `evaluate` entries."""
    from harness import search as library

    trials = {trial.label: trial for trial in left}
    values: dict[tuple[str, Any], dict[int, list[float]]] = {}  # by label and variant, by seed
    for run in plan.trainings:
        for evaluation in run.evaluations:
            key = dict(run.spec.called)["method"], library.variant_of(evaluation)
            own = values.setdefault(key, {}).setdefault(run.spec.seed, [])
            with suppress(RecordError):
                record = results.record(evaluation.id)
                given = [record.result.get(metric) for metric in found.metrics] if record else []
                own += [float(value) for value in given if value is not None]
    return [
        library.Outcome(trials[label], rung, variant, tuple(map(tuple, own.values())))
        for (label, variant), own in values.items()
    ]


def _choice(file: Path, found: "library.Search", plan: "Plan", chosen: Sequence["library.Outcome"]) -> dict[str, Any]:
    """What `choice.yaml` holds: the entries, and all that a reader must know to take them for what they are."""
    from harness import search as library

    about = describe_environment()
    return {
        "chosen_on": sorted({run.spec.data.name for run in plan.trainings}),
        "categories": list(dict.fromkeys(run.spec.data.category for run in plan.trainings)),
        "by": found.criterion,
        "budget": _budget(found, plan)[0],
        "search": file.name,
        "commit": about["commit"],
        "date": date.today().isoformat(),
        "hardware": about["cpu"],
        "versions": {name: about["packages"].get(name, "unknown") for name in ("torch", "timm", "numpy")},
        "method": [library.chosen_entry(each, found) for each in chosen],
        "reached": {
            each.trial.method: {"mean": round(each.mean, 5), "trial": each.trial.number, "rung": each.rung + 1}
            for each in chosen
        },
    }


def _print(screen: Terminal, found: "library.Search", outcomes: Sequence["library.Outcome"], where: Path) -> None:
    """By method the finalists in each rung, with what was chosen, and how to use it."""
    from harness import search as library

    chosen = library.choices(found, outcomes)
    for choice in chosen:
        table = Table(
            title=f"{choice.trial.method}: mean of {', '.join(found.metrics)} in %, by its best map and score"
        )
        table.add_column("trial")
        for rung in range(found.rungs):
            table.add_column(number_of(found.length(rung), "epoch"), justify="right")
        own = [each for each in outcomes if each.trial.method == choice.trial.method]
        for number in dict.fromkeys(each.trial.number for each in own):
            cells = []
            for rung in range(found.rungs):
                here = [each for each in own if each.trial.number == number and each.rung == rung]
                best = min(here, key=lambda each: found.rank(each, here), default=None)
                sign = " *" if best is choice else ""
                cells.append("" if best is None else f"{100 * best.mean:.1f} ± {100 * best.deviation:.1f}{sign}")
            table.add_row("own recipe" if number == 0 else str(number), *cells)
        screen.print(table)
        entry = library.chosen_entry(choice, found)
        screen.print(f"chosen: {', '.join(f'{key}: {value}' for key, value in entry.items())}", soft_wrap=True)
    screen.print(
        "by each trial's best map and score; ±: standard deviation over seeds; * chosen. The best of many is too good "
        f"on what chose it: report it on other data. Entries for a grid: {where}",
        soft_wrap=True,
    )
