"""`harness cache`"""

import time
from collections.abc import Sequence
from typing import Annotated

import typer
from rich.table import Table

from dskd.config import require
from dskd.size import size_text
from harness.cli.common import console

DAY_S = 24 * 3600.0


def cache(
    prune: Annotated[
        bool, typer.Option("--prune", help="Remove decoded images, files of `surfaces` and what killed processes left.")
    ] = False,
    older_than: Annotated[
        float,
        typer.Option(
            "--older-than", metavar="DAYS", help="Of these only what was not used for so many days.", show_default=False
        ),
    ] = 0.0,
) -> None:
    """Show what the cache holds, or make it smaller.

    The cache is the folder `$HARNESS_CACHE`, by default `~/.cache/dskd-harness`. It holds what can be made again:
    images decoded and resized (most of it), the files of the built-in data set, and hashes that spare reading files.
    Nothing in it decides a number, and results do not lie there.

    `--prune` keeps what a running worker on this machine has, and the hashes, which are small: without them the next
    plan would read every image. The next run on a pruned category decodes its images again.
    """
    from harness import cache as library
    from harness.data import entries
    from harness.files import cache_root

    require(older_than == 0 or prune, "--older-than: it is for --prune; give both")
    require(0 <= older_than < 1e5, f"--older-than: {older_than:g} is not possible; write a number of days")
    found = library.items()
    terminal = console()
    if prune:
        removed, kept = library.prune(library.prunable(found, older_than * DAY_S))
        terminal.print(f"removed {_count(removed)}, {_size(removed)}", soft_wrap=True)
        if kept:
            terminal.print(f"kept {_count(kept)}, {_size(kept)}, in use by a running process", soft_wrap=True)
        return
    terminal.print(f"cache folder {cache_root()}: {_count(found)}, {_size(found)}", soft_wrap=True)
    if not found:
        return
    terminal.print(_kinds(found))
    pictures = [(item, entries.about(item.path)) for item in found if item.kind == "images" and not item.temporary]
    if pictures:
        terminal.print(_images(pictures))


def _kinds(found: Sequence) -> Table:
    from harness.cache import ABOUT

    table = Table("kind", title="what the cache holds", title_justify="left")
    for column in ("entries", "size"):
        table.add_column(column, justify="right")
    table.add_column("what")
    whole = [item for item in found if not item.temporary]
    for kind in dict.fromkeys(item.kind for item in whole):
        own = [item for item in whole if item.kind == kind]
        table.add_row(kind, str(len(own)), _size(own), ABOUT.get(kind, ""))
    begun = [item for item in found if item.temporary]
    if begun:
        table.add_row("(unfinished)", str(len(begun)), _size(begun), "being written, or left by a killed process")
    return table


def _images(pictures: Sequence) -> Table:
    table = Table("data set", "category", "half", title="decoded images", title_justify="left")
    for column in ("pixels", "images", "size", "last used"):
        table.add_column(column, justify="right")
    for item, about in sorted(pictures, key=lambda pair: -pair[0].used_at):
        names = str(about.get("dataset", "(not known)")), *(str(about.get(key, "")) for key in ("category", "half"))
        numbers = size_text(about.get("size", "")), str(about.get("images", ""))
        used = time.strftime("%Y-%m-%d", time.localtime(item.used_at))
        table.add_row(*names, *numbers, _size([item]), used)
    return table


def _count(found: Sequence) -> str:
    return f"{len(found)} {'entry' if len(found) == 1 else 'entries'}"


def _size(found: Sequence) -> str:
    size, unit = float(sum(item.size for item in found)), "B"
    for larger in ("KB", "MB", "GB", "TB"):
        if size < 1000:
            break
        size, unit = size / 1000, larger
    return f"{size:.0f} {unit}" if unit == "B" or size >= 100 else f"{size:.1f} {unit}"
