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
    OnlyOption,
    OutOption,
    PluginOption,
    console,
    make_plan,
    the_grid,
)
from harness.cli.folded import print_folded

if TYPE_CHECKING:
    from harness.data.findings import Looks


def plan(
    grid_file: GridArgument = None,
    grid: GridOption = None,
    out: OutOption = "runs",
    devices: DevicesOption = "auto",
    only: OnlyOption = None,
    plugin: PluginOption = None,
    limit: LimitOption = None,
    list_runs: Annotated[bool, typer.Option("--list", help="One line for each training, with its id.")] = False,
) -> None:
    """Show what `harness run` would do: runs done, failed and to do, and about how long it takes. Nothing is run."""
    from harness.launch import schedule
    from harness.launch.devices import kind_of
    from harness.launch.load import Load
    from harness.migration import earlier_line
    from harness.naming import labels_of, title_of
    from harness.records import Results, damage_line

    path, load, kind = the_grid(grid_file, grid), Load(), kind_of(devices)
    parsed, made = make_plan(path, devices, only, plugin, limit)
    results = Results(out / parsed.name)
    survey = results.survey()
    done, failed = survey.done, survey.failed
    rate = schedule.rate_of(results, kind) / load.look().slowdown(kind)
    rows: dict[tuple[str, ...], Counter[str]] = {}
    seconds: Counter[tuple[str, ...]] = Counter()
    terminal = console()
    for training in made.trainings:
        spec = training.spec
        key = (title_of(spec.method.name, spec.method.recipe), spec.backbone, spec.data.name)
        cost = schedule.estimate_s(training, rate, done)
        ids = [spec.id, *(evaluation.id for evaluation in training.evaluations)]
        state = "done" if done.issuperset(ids) else "failed" if failed.intersection(ids) else "to do"
        rows.setdefault(key, Counter())[state] += 1
        seconds[key] += cost if state != "done" else 0.0
        if list_runs:
            labels = labels_of(spec)
            text = f"{labels['category']} seed {labels['seed']}"
            terminal.print(f"{spec.id}  {state:6}  {' '.join(key)} {text}", soft_wrap=True)
    for bench in made.benches:
        key = (title_of(bench.method.name, bench.method.recipe), bench.backbone, "(throughput)")
        rows.setdefault(key, Counter())["done" if bench.id in done else "to do"] += 1
        seconds[key] += 0.0 if bench.id in done else schedule.estimate_s(bench, rate)
    print_folded(terminal, _runs(parsed.name, rows, seconds), 3)
    print_folded(terminal, images_table(made.chosen_looks()), 2)
    evaluations = sum(len(training.evaluations) for training in made.trainings)
    terminal.print(
        f"{len(made.trainings)} trainings, {evaluations} evaluations, {len(made.benches)} throughput measurements; "
        f"about {schedule.duration(sum(seconds.values()))} to do"
    )
    for remark in made.remarks():
        terminal.print(remark, soft_wrap=True, style="yellow" if "warning" in remark else None)
    earlier = earlier_line(results, done, {spec.id for spec in schedule.works(made)})
    for remark in filter(None, [*earlier, load.remark(kind) if any(seconds.values()) else None]):
        terminal.print(remark, soft_wrap=True, style="yellow")
    for line in damage_line(survey.damaged):
        console(stderr=True).print(line, soft_wrap=True)


def _runs(name: str, rows: Mapping[tuple[str, ...], Counter[str]], seconds: Mapping[tuple[str, ...], float]) -> Table:
    """A row for each method, backbone and data set: how many of its runs are in each state, and the time to do."""
    from harness.launch import schedule

    table = Table("method", "backbone", "data set", title=f"plan of {name}", title_justify="left")
    for column in ("runs", "done", "failed", "to do", "estimated time"):
        table.add_column(column, justify="right")
    for key, counts in rows.items():
        cells = [str(counts[state]) for state in ("done", "failed", "to do")]
        table.add_row(*key, str(counts.total()), *cells, schedule.duration(seconds[key]))
    return table


def images_table(looks: "Looks") -> Table:
    """A row for each category: its images and masks."""
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
        table.add_row(source.name, category, *map(str, counts), row.sizes, row.modes)
    return table
