"""`harness plan`"""

from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from harness.cli.common import (
    DevicesOption,
    GridArgument,
    GridOption,
    LimitOption,
    NoMpsOption,
    OnlyOption,
    OutOption,
    PluginOption,
    RunsPerDeviceOption,
    console,
    make_plan,
    the_grid,
)
from harness.cli.folded import print_folded
from harness.doctor.proven import count_of
from harness.launch.devices import kind_of

if TYPE_CHECKING:
    from harness.data.catalog import Source
    from harness.data.findings import Looks
    from harness.spec import BenchSpec, TrainSpec


def plan(
    grid_file: GridArgument = None,
    grid: GridOption = None,
    out: OutOption = "runs",
    devices: DevicesOption = "auto",
    only: OnlyOption = None,
    plugin: PluginOption = None,
    limit: LimitOption = None,
    runs_per_device: RunsPerDeviceOption = "1",
    no_mps: NoMpsOption = False,
    list_runs: Annotated[
        bool, typer.Option("--list", help="One line for each training, evaluation and measurement, with its id.")
    ] = False,
) -> None:
    """Show what `harness run` would do: runs done, failed and to do, and about how long it takes. Nothing is run."""
    from harness.cli import sharing
    from harness.launch import pace, schedule
    from harness.launch.load import Load
    from harness.migration import earlier_line
    from harness.naming import labels_of
    from harness.records import Results, damage_line

    path, load, wanted = the_grid(grid_file, grid), Load(), count_of(runs_per_device)
    kind = kind_of(devices)
    parsed, made = make_plan(path, devices, only, plugin, limit)
    results = Results(out / parsed.name)
    survey = results.survey()
    done, failed = survey.done, survey.failed
    paces = pace.learn(results, kind).slower(load.look().slowdown(kind))
    rows: dict[tuple[str, ...], Counter[str]] = {}
    seconds: Counter[tuple[str, ...]] = Counter()
    terminal = console()
    for training in made.trainings:
        spec = training.spec
        key = (*_model(spec, made.names[spec.id]), labels_of(spec, called=True)["dataset"])
        cost = pace.estimate_s(training, paces, done)
        ids = [spec.id, *(evaluation.id for evaluation in training.evaluations)]
        state = "done" if done.issuperset(ids) else "failed" if failed.intersection(ids) else "to do"
        rows.setdefault(key, Counter())[state] += 1
        seconds[key] += cost if state != "done" else 0.0
    for bench in made.benches:
        key = (*_model(bench, made.names[bench.id]), "(throughput)")
        rows.setdefault(key, Counter())["done" if bench.id in done else "to do"] += 1
        seconds[key] += 0.0 if bench.id in done else pace.estimate_s(bench, paces)
    for spec in made.works() if list_runs else ():
        state = "done" if spec.id in done else "failed" if spec.id in failed else "to do"
        terminal.print(f"{spec.id}  {state:6}  {spec.kind:8}  {made.names[spec.id]}", soft_wrap=True)
    print_folded(terminal, _runs(parsed.name, rows, seconds), 3)
    called = {training.source: labels_of(training.spec, called=True)["dataset"] for training in made.trainings}
    print_folded(terminal, images_table(made.chosen_looks(), called), 2)
    left = made.counted({spec.id for spec in made.works()} - done)
    terminal.print(f"{made.counted()}; to do: {left}, about {schedule.duration(sum(seconds.values()))}", soft_wrap=True)
    shared = sharing.lines(wanted, devices, made.trainings, done, results, paces, no_mps)
    for remark in [*shared, *made.remarks()]:
        terminal.print(remark, soft_wrap=True, style="yellow" if "warning" in remark else None)
    earlier = earlier_line(results, done, {spec.id for spec in made.works()})
    for remark in filter(None, [*earlier, load.remark(kind) if any(seconds.values()) else None]):
        terminal.print(remark, soft_wrap=True, style="yellow")
    for line in damage_line(survey.damaged):
        console(stderr=True).print(line, soft_wrap=True)


def _runs(name: str, rows: Mapping[tuple[str, ...], Counter[str]], seconds: Mapping[tuple[str, ...], float]) -> Table:
    """A row for each method, backbone and data set: how many of its runs are in each state, and the time to do."""
    from harness.launch import schedule

    table = Table("method", "backbone", "data set", title=f"plan of {name}", title_justify="left")
    for column in ("count", "done", "failed", "to do", "estimated time"):
        table.add_column(column, justify="right")
    for key, counts in rows.items():
        cells = [str(counts[state]) for state in ("done", "failed", "to do")]
        table.add_row(*key, str(counts.total()), *cells, schedule.duration(seconds[key]))
    return table


def images_table(looks: "Looks", called: "Mapping[Source, str] | None" = None) -> Table:
    """A row for each category: its images and masks. `called`: what data sets are, where that is not their name."""
    from harness.data import findings

    rows = {key: findings.row(found) for key, found in looks.items()}
    table = Table("data set", "category", title="images", title_justify="left")
    held_out = any(row.held_out for row in rows.values())
    for column in ("to train", *(["held out"] if held_out else []), "good to test", "abnormal", "masks"):
        table.add_column(column, justify="right")
    table.add_column("width x height")
    table.add_column("mode")
    for (source, category), row in rows.items():
        counts = row.train, *([row.held_out] if held_out else []), row.good, row.abnormal, row.masks
        table.add_row((called or {}).get(source, source.name), category, *map(str, counts), row.sizes, row.modes)
    return table


def _model(spec: "TrainSpec | BenchSpec", name: str) -> tuple[str, str]:
    """The method, with its recipe and what tells it from others of the grid, and the backbone, as they are called."""
    from harness.naming import labels_of, title, title_of

    labels = labels_of(spec, called=True)
    differing = name.removeprefix(title(spec)).partition(" [")[0]  # behind it what tells other images apart
    return title_of(labels["method"], labels["recipe"]) + differing, labels["backbone"]
