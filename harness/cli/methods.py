"""`harness methods`"""

import functools
import re
import types
import typing
from dataclasses import is_dataclass
from typing import Annotated, Any

import typer
import yaml
from rich.table import Table
from rich.text import Text

from dskd.config import ConfigError, field_types, to_mapping
from dskd.methods import ABOUT, METHODS, check_students, get_method
from dskd.size import parse_size, sides, size_text
from dskd.switches import Method, Train
from dskd.tuned import TUNED, TUNED_ON
from harness import plugins
from harness.backbones import remember
from harness.cli.common import ImageSizeOption, PluginOption, console
from harness.cli.folded import print_folded
from harness.gridfile import METHOD_KEYS

OPTIMIZERS = {"adam": "Adam", "sgd": "SGD"}


def methods(
    names: Annotated[
        list[str] | None,
        typer.Argument(metavar="NAME", help="Only these methods; one alone is shown with all its switches."),
    ] = None,
    backbone: Annotated[str, typer.Option(help="The teacher's trunk that the costs are counted for.")] = "resnet18",
    image_size: ImageSizeOption = "256",
    plugin: PluginOption = None,
) -> None:
    """List the methods: their students, what they cost, and the recipe that each was published with.

    Trainable parameters are in millions. GMAC are the multiply-adds, in 1e9, of teacher and students together for one
    image: what an inspection costs. They are counted, not estimated, and nothing is downloaded.

    With one name all switches of that method follow, as the dotted keys that a grid takes, with their values, what
    `recipe: common` makes of those that it changes, which values are possible and what they mean; and its tuned
    recipes.
    """
    plugins.load(plugin or ())
    chosen = [get_method(name) for name in dict.fromkeys(names or METHODS)]
    size = parse_size(image_size, "--image-size")
    table = Table(title=f"methods on {backbone}, images of {size_text(sides(size))}", title_justify="left")
    table.add_column("method")
    table.add_column("students", max_width=24)
    table.add_column("decoder reads")
    for column in ("trainable M", "GMAC"):
        table.add_column(column, justify="right")
    table.add_column("own recipe", max_width=24)
    table.add_column("what it is")
    remarks = []
    with console(stderr=True).status("counting"):
        from dskd.costs import check_size, of_method

        teacher = remember(backbone)
        check_size(backbone, size)
        for method in chosen:
            numbers = ("–", "–")
            try:
                check_students(method, teacher, remember(method.encoder.backbone or backbone))
                costs = of_method(method, backbone, size)
                numbers = (f"{costs.parameters / 1e6:.3f}", f"{costs.gmac:.3f}")
            except ConfigError as error:
                remarks.append(f"{method.name}: {error}")
            cells = (method.name, _students(method), _source(method), *numbers, _recipe(method.train))
            table.add_row(*map(Text, (*cells, ABOUT[method.name])))
    terminal = console()
    print_folded(terminal, table)
    for remark in remarks:
        terminal.print(remark, soft_wrap=True)
    if len(names or []) == 1:
        table, differs = _switches(chosen[0])
        print_folded(terminal, table)
        if not differs:
            terminal.print(f"{chosen[0].name}: `recipe: common` is its own recipe")
        for line in _tuned(chosen[0]):
            terminal.print(line, soft_wrap=True)


def _students(method: Method) -> str:
    """`encoder, decoder`, `3 x encoder` or `encoder (resnet10t)`"""
    encoder = f"{method.encoder.count} x encoder" if method.encoder.count > 1 else "encoder"
    encoder += f" ({method.encoder.backbone})" if method.encoder.backbone else ""
    return ", ".join(encoder if student == "encoder" else student for student in method.students)


def _source(method: Method) -> str:
    if not method.has_decoder:
        return ""
    if method.embedding.kind == "layer4":
        return "encoder's layer4"
    return method.embedding.source


def _recipe(train: Train) -> str:
    """`SGD 0.4, 100 epochs, batch 32`"""
    if train.optimizer == "split":
        optimizer = f"Adam {train.lr:g} and SGD {train.encoder_lr:g}"
    else:
        optimizer = f"{OPTIMIZERS.get(train.optimizer, train.optimizer)} {train.lr:g}"
    schedule = [] if train.schedule == "constant" else [train.schedule]
    return ", ".join([optimizer, *schedule, f"{train.epochs} epochs", f"batch {train.batch_size}"])


def _switches(method: Method) -> tuple[Table, bool]:
    """What a grid can set, with the values of the method's own recipe, and of the common one where they differ, what
    else is possible and what it means; and whether the recipes differ anywhere.
    """
    own, common = (to_mapping(get_method(method.name, recipe)) for recipe in ("own", "common"))
    table = Table(title=f"switches of {method.name}", title_justify="left")
    for column in ("switch", "value", "recipe: common", "possible", "what it is"):
        table.add_column(column)
    about = switches()
    for key in METHOD_KEYS:
        value, other = _written(own, key), _written(common, key)
        if key != "recipe":
            table.add_row(*map(Text, (key, value, "" if other == value else other, *about[key])))
    return table, own != common


def _tuned(method: Method) -> list[str]:
    """A line for each of its tuned recipes: where it differs from the own one."""
    chosen = [(where, recipes[method.name]) for where, recipes in TUNED.items() if method.name in recipes]
    return [
        f"recipe: {TUNED_ON}{where}: {', '.join(f'{key} {_yaml(value)}' for key, value in own.items())}"
        for where, own in chosen
    ]


def switches(config: type = Method, prefix: str = "") -> dict[str, tuple[str, str]]:
    """Of each switch, by its dotted key, the values that are possible, and what its class says of it."""
    said = re.findall(r"^ {8}(\w+): (.*(?:\n {12}.*)*)$", config.__doc__ or "", re.MULTILINE)
    words = {name: " ".join(text.split()) for name, text in said}
    found = {}
    for name, kind in field_types(config).items():
        if is_dataclass(kind):
            found |= switches(kind, f"{prefix}{name}.")
        else:
            found[prefix + name] = _possible(kind), words.get(name, "")
    return found


def _possible(kind: Any) -> str:
    """Values of an annotation, as a grid file has them."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is typing.Literal:
        return ", ".join(map(str, arguments))
    if origin is tuple:
        return f"list of {_possible(arguments[0])}" if Ellipsis in arguments else f"{len(arguments)} numbers"
    if origin in (typing.Union, types.UnionType):
        return " or ".join("null" if each is type(None) else _possible(each) for each in arguments)
    return {bool: "true, false", int: "whole number", float: "number", str: "name"}.get(kind, kind.__name__)


def _written(mapping: dict[str, Any], key: str) -> str:
    """The value of a dotted key as a grid file has it."""
    return _yaml(functools.reduce(lambda value, part: value[part], key.split("."), mapping))


def _yaml(value: Any) -> str:
    return yaml.safe_dump([value], default_flow_style=True, width=1000).strip()[1:-1]
