"""`harness datasets`"""

import dataclasses
import inspect
from collections.abc import Iterator
from typing import Annotated, Any

import typer
import yaml
from rich.table import Table
from rich.text import Text

from dskd.config import ConfigError, suggest, to_mapping
from harness import plugins
from harness.cli.common import PluginOption, console


def datasets(
    names: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="NAME", help="Only these; one alone is shown with its layout and all keys of its entry."
        ),
    ] = None,
    plugin: PluginOption = None,
) -> None:
    """List the data sets that a grid can name: what each expects to find, its licence and its homepage.

    Nothing is downloaded: fetch a data set from its homepage, accept its licence there, and give its folder as `root`.
    Pictures of your own are read from folders (`folder`), from a table with a row for each (`table`), or from Parquet
    and the Hugging Face hub (`hub`).

    With one name: its layout and what is known to be odd in it, the keys of its entry with their defaults, an entry to
    copy into a grid, and the paper to cite.
    """
    from harness import grid  # noqa: F401  (it registers the data sets)
    from harness.data.catalog import SOURCES
    from harness.data.references import REFERENCES

    plugins.load(plugin or ())
    for name in names or ():
        if name not in SOURCES:
            raise ConfigError(f"unknown dataset {name!r}; {suggest(name, SOURCES)}")
    own = [name for name in SOURCES if name not in REFERENCES]
    chosen = list(dict.fromkeys(names or [*own, *sorted(REFERENCES)]))
    terminal = console()
    if len(names or ()) == 1:
        for line in _details(SOURCES[chosen[0]], REFERENCES.get(chosen[0])):
            terminal.print(line, soft_wrap=True)
        return
    table = Table(title="data sets", title_justify="left", show_lines=True)
    table.add_column("data set", no_wrap=True)
    table.add_column("what it is", overflow="fold", max_width=76)
    table.add_column("licence", max_width=30)
    for name in chosen:
        about = _about(SOURCES[name]).partition("\n\n")[0]
        licence = REFERENCES[name].licence if name in REFERENCES else ""
        table.add_row(*map(Text, (name, " ".join(about.split()), licence)))
    terminal.print(table)
    for name in chosen:
        if name in REFERENCES:
            terminal.print(f"{name}: {REFERENCES[name].homepage}", soft_wrap=True)


def _about(source: type) -> str:
    """The docstring of a data set, or of a plug-in without one nothing."""
    own = source.__dict__.get("__doc__") or ""
    return "" if own.startswith(f"{source.__name__}(") else inspect.cleandoc(own)  # a dataclass writes one of its own


def _details(source: Any, reference: Any) -> Iterator[str]:
    yield source.name
    yield from (f"  {line}".rstrip() for line in _about(source).splitlines())
    if expected := getattr(source, "expected", ""):
        yield f"layout: {expected}"
    yield "keys of its entry:"
    given = {field.name: _default(field) for field in dataclasses.fields(source)}
    yield from (f"  {key}: {_written(value)}" for key, value in given.items())
    where = "root" if "file" not in given and "repo" not in given else "file" if "file" in given else "data_files"
    example = {"root": "/path/to/it", "file": "/path/to/it.csv", "data_files": {"train": ["/path/to/it/*.parquet"]}}
    needs = {} if source.name == "surfaces" else {where: example[where]}
    yield f"in a grid: dataset: [{_written({'name': source.name, **needs})}]"
    if reference:
        yield f"homepage: {reference.homepage}"
        yield f"licence: {reference.licence}"
        yield f"cite: {reference.citation}"


def _default(field: Any) -> Any:
    value = field.default if field.default is not dataclasses.MISSING else field.default_factory()
    return to_mapping(value)


def _written(value: Any) -> str:
    """As a grid file has it."""
    return yaml.safe_dump([value], default_flow_style=True, width=1000, sort_keys=False).strip()[1:-1]
