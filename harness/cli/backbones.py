"""`harness backbones`"""

import fnmatch
from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

from dskd.backbones import BACKBONES, TRIED, TRUNKS, Backbone
from dskd.config import ConfigError, require
from dskd.size import Size, parse_size, sides, size_text
from harness import plugins
from harness.backbones import remember
from harness.cli.common import ImageSizeOption, PluginOption, console
from harness.cli.folded import print_folded

MOST = 40  # models of one pattern: inspecting one takes a second the first time


def backbones(
    names: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="NAME",
            help="Any timm models or plug-in trunks; a name may be a shell pattern in quotes: 'regnet*'.",
        ),
    ] = None,
    image_size: ImageSizeOption = "256",
    plugin: PluginOption = None,
) -> None:
    """List backbones: the three maps that are tapped, and what trunk, embedding and decoder cost.

    Without names: those that were tried here. Any timm model with three maps at strides that double can be a grid's
    `backbone`, and `harness backbones 'regnet*'` shows which ones of a family can.

    The trunk is the teacher, and the encoder student too; its parameters, in millions, end at the third map. GMAC are
    multiply-adds, in 1e9, for one image. The last number is the decoder student's parameters by the trunk's: 1 means
    that the two students are of one scale. Models are built without weights, so nothing is downloaded.
    """
    plugins.load(plugin or ())
    size = parse_size(image_size, "--image-size")
    notes = console(stderr=True)
    rows: list[tuple[str, ...]] = []
    remarks: list[str] = []
    with notes.status("importing timm") as status:
        exact, matched = _named(names or [*BACKBONES, *TRIED, *TRUNKS], remarks)
        unusable, refusals = [], []
        listed = list(dict.fromkeys([*exact, *matched]))
        for i, name in enumerate(listed, start=1):
            status.update(f"{i}/{len(listed)} {name}")
            try:
                facts = remember(name)
            except ConfigError:
                if name in exact:
                    raise
                unusable.append(name)
                continue
            try:
                numbers = _numbers(facts, size)
            except ConfigError as error:
                refusals.append(str(error))
                numbers = ("–",) * 5
            scales = (", ".join(map(str, values)) for values in (facts.channels, facts.strides))
            rows.append((name, *scales, *numbers, facts.imagenet or "–"))
        if rows and len(refusals) == len(rows):  # a table of dashes says nothing
            raise ConfigError(refusals[0])
    if unusable:
        remarks.append(
            f"{len(unusable)} matching models cannot be a trunk (no three maps at strides that double, or another size "
            f"than 256x256): {', '.join(unusable)}"
        )
    terminal = console()
    if rows:
        print_folded(terminal, _table(rows, size))
    for remark in [*refusals, *remarks]:
        terminal.print(remark, soft_wrap=True)


def _named(names: list[str], remarks: list[str]) -> tuple[list[str], list[str]]:
    """The exact names, and those that the patterns match. Raises ConfigError for a pattern that matches nothing."""
    exact: list[str] = []
    matched: list[str] = []
    for name in names:
        if not any(sign in name for sign in "*?["):
            exact.append(name)
            continue
        from dskd.timm_import import timm

        found = [*fnmatch.filter(TRUNKS, name), *timm.list_models(name)]
        require(bool(found), f"no timm model matches {name!r}; write a name, or a pattern such as 'regnet*'")
        if len(found) > MOST:
            remarks.append(f"{name}: {len(found) - MOST} of {len(found)} models left out; write a narrower pattern")
        matched += found[:MOST]
    return exact, matched


def _numbers(facts: Backbone, size: Size) -> tuple[str, ...]:
    from dskd.costs import of_backbone

    costs = of_backbone(facts, size)
    trunk, decoder = costs["trunk"].parameters, costs["decoder"].parameters
    gmac = (f"{part.gmac:.3f}" for part in costs.values())
    return (f"{trunk / 1e6:.3f}", *gmac, f"{decoder / trunk:.2f}")


def _table(rows: list[tuple[str, ...]], size: Size) -> Table:
    title = f"backbones, images of {size_text(sides(size))}"
    table = Table("backbone", "channels", "strides", title=title, title_justify="left")
    for column in ("trunk\nM", "trunk\nGMAC", "embedding\nGMAC", "decoder\nGMAC", "decoder :\ntrunk"):
        table.add_column(column, justify="right")
    table.add_column("ImageNet weights", overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row))
    return table
