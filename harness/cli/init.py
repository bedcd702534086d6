"""`harness init`"""

import os
import re
import shlex
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
import yaml

from dskd.config import ConfigError, quoted, require
from dskd.size import size_text
from harness import starter
from harness.files import publish, user_path, write_atomic
from harness.text import one_line

if TYPE_CHECKING:
    from harness.data.findings import Looks
    from harness.data.recognise import Recognised
    from harness.grid import Plan

GRID = "grid.yaml"  # of `harness init` alone
MAY_STRETCH = 0.1  # of the pictures, before it is said


def init(
    folder: Annotated[
        Path | None, typer.Argument(metavar="[DIR]", help="Where to; made if it is not there.", show_default=".")
    ] = None,
    data: Annotated[
        str | None,
        typer.Option("--data", metavar="DIR", help="A folder of pictures, or a table of them: write a grid for it."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", metavar="GRID", help="The grid file of --data; by default the folder's name."),
    ] = None,
    check: Annotated[
        bool,
        typer.Option("--check", help="With --data: read all pixels; find damaged, constant and nearly same pictures."),
    ] = False,
    normal: Annotated[
        str | None, typer.Option(metavar="PATTERN", help="With --data: the normal pictures, where names do not tell.")
    ] = None,
    abnormal: Annotated[str | None, typer.Option(metavar="PATTERN", help="The defective ones.")] = None,
    masks: Annotated[str | None, typer.Option(metavar="PATTERN", help="Their masks.")] = None,
) -> None:
    """Write the files to start from: for pictures of your own a grid that is ready to run, else what ships.

    `harness init --data DIR` looks at a folder, says what it is (layout, categories, counts, sizes, masks) and writes a
    commented grid for it. Nothing is run, and nothing in the folder is changed; a grid that is there stays.

    `harness init [DIR]` copies the batch scripts for SLURM (`slurm/`), the grids of the public data sets
    (`benchmarks/grids/`) and one to fill in (`grid.yaml`). Files that are there stay as they are; those that differ
    from what ships are named.
    """
    given = {key: value for key, value in (("normal", normal), ("abnormal", abnormal), ("masks", masks)) if value}
    if data is not None:
        require(folder is None, f"--data writes one grid; write --out for its place, without {quoted(str(folder))}")
        require(not given or "normal" in given, f"--{next(iter(given), '')} goes with --normal; write both")
        _of_data(data, out, check, given)
        return
    require(
        out is None and not check and not given,
        "--out, --check, --normal, --abnormal and --masks go with --data DIR; write it, or name the folder alone",
    )
    _copy(Path(".") if folder is None else folder)


def _copy(folder: Path) -> None:
    from harness import shipped, weights

    backbone, name, _ = weights.at_hand()
    own = starter.text(starter.placeholder(starter.Teacher(backbone, name)))
    files = [(place, source.read_bytes()) for source, place in shipped.files()]
    written, kept = 0, []
    for place, content in [*files, (Path(GRID), own.encode())]:
        target = folder / place
        try:
            if os.path.lexists(target):
                if not target.is_file() or target.read_bytes() != content:
                    kept.append(place)
                continue
            target.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(target, content)
            target.chmod(0o755 if target.suffix == ".sh" else 0o644)
            written += 1
        except OSError as error:
            raise ConfigError(f"{target} cannot be written ({error.strerror}); name another folder") from None
    typer.echo(f"{written} files written to {one_line(str(folder))}")
    for place in kept:
        typer.echo(f"kept {place}, which differs from the one that ships")
    typer.echo(
        f"next: harness init --data FOLDER, which writes a grid for your pictures; or fill in "
        f"{one_line(str(folder / GRID))} and type harness run {one_line(str(folder / GRID))}"
    )


def _of_data(data: str, out: Path | None, check: bool, given: Mapping[str, str]) -> None:
    from harness import grid, plugins  # noqa: F401  (the first registers the data sets)
    from harness.cli.common import console, reading
    from harness.cli.folded import print_folded
    from harness.cli.plan import images_table
    from harness.data import findings
    from harness.data.recognise import recognise
    from harness.launch.schedule import duration

    name = _name(data)
    target = Path(f"{name}.yaml") if out is None else out
    taken = ConfigError(f"{target} is there already and stays as it is; write --out with another name")
    if os.path.lexists(target):
        raise taken
    plugins.load(())
    with reading() as progress:
        found = recognise(data, given)
        _check_names(found)
        looks, said = _looks(found, check, progress)
    chosen, made, seconds = _fitting(name, found, looks)
    chosen = replace(chosen, about=_about(data, found, target, duration(seconds)))
    terminal = console()
    terminal.print(f"{data}: {found.what}", soft_wrap=True)
    for key, value in found.entry.items():
        if key not in ("name", "root"):
            terminal.print(f"  {key}: {starter.written(value)}", soft_wrap=True)
    print_folded(terminal, images_table(made.chosen_looks()), 2)
    remarks = [*findings.remarks(made.chosen_looks()), *_refused(found, looks), *_fit(chosen, looks)]
    for line in [*found.notes, *_others(found), *said, *remarks]:
        terminal.print(line, soft_wrap=True, style="yellow" if "warning" in line else None)
    try:
        if not publish(target, starter.text(chosen)):
            raise taken
    except OSError as error:
        raise ConfigError(f"{target} cannot be written ({error.strerror}); write --out with another place") from None
    epochs = f"{chosen.epochs} epochs" if chosen.epochs else "the published recipes"
    terminal.print(
        f"wrote {target}: {len(made.trainings)} trainings ({', '.join(starter.METHODS)}; {len(starter.SEEDS)} seeds), "
        f"{chosen.teacher.backbone} ({chosen.teacher.weights}), size {size_text(chosen.size)}, {epochs}; about "
        f"{duration(seconds)} on this machine",
        soft_wrap=True,
    )
    terminal.print(f"next: harness run {shlex.quote(str(target))}", soft_wrap=True)


def _name(data: str) -> str:
    """Of the grid: that of the folder, or of the table without its suffix, with what no name may have as _."""
    path = user_path(data).resolve()
    name = path.stem if path.is_file() else path.name
    return re.sub(r"[^\w.-]+", "_", name).strip("._-")[:80] or "mine"


def _check_names(found: "Recognised") -> None:
    """Raises ConfigError for a name that no grid could hold, and a run would refuse."""
    names = [sample.path for own in found.samples.values() for sample in own]
    for name in (found.entry.get("root", ""), *found.samples, *names):
        if not name.isascii():
            try:
                name.encode()
            except UnicodeEncodeError:
                raise ConfigError(f"--data: the name {name} is not UTF-8; rename the file or folder") from None


def _about(data: str, found: "Recognised", target: Path, time: str) -> tuple[str, ...]:
    command, run = (
        one_line(f"harness {words}") for words in (f"init --data {shlex.quote(data)}", f"run --grid {target}")
    )
    return (
        f"`{command}` wrote this, {date.today()}: {found.what}.",
        f"To run it, about {time} on the machine where it was written: {run}",
    )


def _others(found: "Recognised") -> list[str]:
    counts = sorted(found.others.items(), key=lambda each: -each[1])
    return [f"other files, which are not read: {', '.join(f'{n} {suffix}' for suffix, n in counts)}"] if counts else []


def _looks(found: "Recognised", check: bool, progress: Callable[[str, int, int], None]) -> tuple["Looks", list[str]]:
    """What each category holds, and what there is to say beside what a plan says of it."""
    from harness.data.headers import failed_line, first_look

    looks, said, failed = {}, [], []
    for category, samples in found.samples.items():
        report = _report(progress, category)
        looks[found.source, category], unread = first_look(found.source, category, samples, found.share, report)
        failed += unread
    if failed:
        said.append(f"warning: {failed_line(failed)}")
    if check:
        for category in found.samples:
            said += _checked(found, category, looks, progress)
    elif found.share:
        said.append("pictures are held out by their content: `harness plan` has the exact counts")
    return looks, said


def _refused(found: "Recognised", looks: "Looks") -> list[str]:
    from harness.data import doubles

    if found.source.duplicates == "keep" or not any(doubles.spoiling(look.twice) for look in looks.values()):
        return []
    return [
        "a run refuses pictures that stand on both sides: remove one of each, or write duplicates: keep in the grid"
    ]


def _report(progress: Callable[[str, int, int], None], category: str) -> Callable[[int, int], None]:
    return lambda done, total: progress(f"looking at {category}", done, total)


def _checked(found: "Recognised", category: str, looks: dict, progress: Callable[[str, int, int], None]) -> list[str]:
    """A line on what ends a run, and one on pictures of both halves that are nearly the same."""
    from harness.data import alike
    from harness.data.catalog import DataError
    from harness.data.manifest import look

    source = found.source
    try:
        kept = replace(source, duplicates="keep")  # they are said, and the others found, too
        looks[source, category] = seen = look(kept, category, _report(progress, f"{category}, whole"))
        small = alike.thumbnails(source.folder(), [each.path for each in seen.samples], _report(progress, "pixels"))
    except DataError as error:
        return [f"warning: a run will end with: {error}"]
    halves = [
        {each.path: values for each in seen.samples if each.half == half and (values := small[each.path]) is not None}
        for half in ("train", "test")
    ]
    pairs = alike.pairs(*halves)
    return [f"{'warning: ' if pairs else ''}{source.name} {category}: {alike.line(pairs, len(halves[1]))}"]


def _fitting(name: str, found: "Recognised", looks: "Looks") -> tuple[starter.Starter, "Plan", float]:
    """A grid that takes a sensible time here, its plan, and that time in seconds."""
    from harness import weights
    from harness.launch import pace
    from harness.launch.devices import kind_of
    from harness.launch.load import Load
    from harness.records import Results

    load, kind = Load(), kind_of("auto")
    teacher = starter.Teacher(*weights.at_hand())
    for short, epochs in starter.CPU_CHOICES if kind == "cpu" else ((starter.SHORT, None),):
        size, _ = starter.common_size(_sizes(looks), short)
        chosen = starter.Starter(name, found.entry, size, teacher, epochs)
        made = _plan(chosen, looks)
        works = [*made.trainings, *made.benches]
        # By an idle machine: what others do at the moment must not decide what is trained.
        if sum(pace.estimate_s(work, pace.prior(kind)) for work in works) <= starter.BUDGET_S:
            break
    paces = pace.learn(Results(Path("runs") / name), kind).slower(load.look().slowdown(kind))
    seconds = sum(pace.estimate_s(work, paces) for work in works)
    return chosen, made, seconds


def _plan(chosen: starter.Starter, looks: "Looks") -> "Plan":
    """Of the grid as it will be read. Raises ConfigError."""
    from harness.grid import Facts, expand
    from harness.gridfile import parse
    from harness.spec import Weights

    categories: dict = {}
    for (source, _), found in looks.items():
        categories.setdefault(source, []).append(found.data)
    weights = {(chosen.teacher.weights, chosen.teacher.backbone): (Weights(chosen.teacher.weights), None)}
    return expand(parse(yaml.safe_load(starter.text(chosen))), Facts(categories, weights, "", 1, looks=dict(looks)))


def _sizes(looks: "Looks") -> list[tuple[int, int]]:
    prints = [look.prints[each.path] for look in looks.values() for each in look.samples if each.path in look.prints]
    return [(each.width, each.height) for each in prints]


def _fit(chosen: starter.Starter, looks: "Looks") -> list[str]:
    """What there is to say of the size and of the teacher."""
    short = min(chosen.size) if isinstance(chosen.size, tuple) else chosen.size
    _, share = starter.common_size(_sizes(looks), short)
    said = [chosen.teacher.remark] if chosen.teacher.remark else []
    if share > MAY_STRETCH:
        said.append(
            f"{share:.0%} of the pictures have another aspect than {size_text(chosen.size)} and are stretched; "
            "resize: pad in the grid keeps it"
        )
    return said
