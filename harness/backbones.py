"""What is known of backbones outside the table, remembered on disk: a plan must not import torch to know it again."""

import functools
import importlib.metadata
import json
from contextlib import suppress
from pathlib import Path

import dskd
from dskd.backbones import BACKBONES, TRUNKS, Backbone
from dskd.config import ConfigError, from_mapping, to_mapping
from dskd.lookup import get_backbone
from harness.files import cache_folder, write_cache
from harness.spec import digest


def remember(name: str) -> Backbone:
    """The named backbone's facts: from the table, from an earlier inspection, or inspected now.

    Raises:
        ConfigError: a name that does not exist, with the near match, or a model without three usable scales.
    """
    if not isinstance(name, str):
        raise ConfigError(f"backbone: {name!r} is not possible; write a name such as resnet18")
    if name in BACKBONES or name in TRUNKS:  # a plug-in's may have changed since
        return get_backbone(name)
    store = cache_folder("backbones") / f"{digest([name, _version()])}.json"
    with suppress(OSError, ValueError):  # not there, or damaged: a ConfigError is a ValueError
        BACKBONES[name] = from_mapping(Backbone, json.loads(store.read_text()))
    if name not in BACKBONES:
        write_cache(store, json.dumps(to_mapping(get_backbone(name))))
    return BACKBONES[name]


@functools.cache
def _version(package: Path = Path(dskd.__file__).parent) -> list[str]:
    """What the facts depend on: timm, torch, which counts, and the package that reads them off a model, whole, so that
    no module can be forgotten.
    """
    sources = (digest(path.read_text("utf-8")) for path in sorted(package.rglob("*.py")))
    return [*map(importlib.metadata.version, ("timm", "torch")), *sources]
