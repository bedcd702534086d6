"""`harness plan`"""

from collections import Counter
from typing import Annotated

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
    table = Table("method", "backbone", "data set", title=f"plan of {parsed.name}", title_justify="left")
    for column in ("runs", "done", "failed", "to do", "estimated time"):
        table.add_column(column, justify="right")
    for key, counts in rows.items():
        cells = [str(counts[state]) for state in ("done", "failed", "to do")]
        table.add_row(*key, str(counts.total()), *cells, schedule.duration(seconds[key]))
    terminal.print(table)
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
