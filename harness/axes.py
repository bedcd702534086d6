"""Values of the axes `method`, `backbone` and `dataset`: a name, or a mapping with one and settings of its own."""

from collections.abc import Mapping
from typing import Any

from dskd.config import quoted, require
from dskd.methods import get_method
from harness.data.catalog import Source, get_source
from harness.gridfile import METHOD_KEYS, SETTABLE, Settings, flat_settings, require_mapping


def method_entry(entry: Any) -> tuple[str, Settings]:
    """Name and settings of a method axis value: `dskd` or `{name: dskd, embedding.source: teacher}`."""
    name = _entry_name(entry, "method")
    if isinstance(entry, str):
        return get_method(name).name, {}
    settings = {key: value for key, value in entry.items() if key != "name"}
    return get_method(name).name, flat_settings(settings, METHOD_KEYS, f"method {name}")


def backbone_entry(entry: Any) -> tuple[str, Settings]:
    """Name and settings of a backbone axis value: `resnet18` or `{name: resnet18, weights: resnet18.safetensors}`. The
    name is not looked up.
    """
    if not isinstance(entry, Mapping):
        require(isinstance(entry, str), f"backbone: {quoted(entry)} is not possible; write a name such as resnet18")
        return entry, {}
    name = _entry_name(entry, "backbone")
    settings = {key: value for key, value in entry.items() if key != "name"}
    return name, flat_settings(settings, SETTABLE, f"backbone {name}")


def source_of(entry: Any, limit: int | None = None) -> Source:
    """Of a data set axis value; `limit`: the grid's."""
    _entry_name(entry, "dataset")
    return get_source(entry, limit)


def _entry_name(entry: Any, axis: str) -> str:
    """Of an axis value that is a name, or a mapping with one."""
    if isinstance(entry, str):
        return entry
    require_mapping(entry, axis)
    require("name" in entry, f"{axis}: {quoted(dict(entry))} has no `name`")
    name = entry["name"]
    require(isinstance(name, str), f"{axis}: the name {quoted(name)} is not possible; write a text")
    return name
