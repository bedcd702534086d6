"""Student-teacher anomaly detection: one `Distiller`, many methods (DSKD, STFPM, reverse distillation, ...).

The names below import torch and timm when they are first used; `dskd.methods`, `dskd.switches`, `dskd.config`,
`dskd.lookup` and the table of `dskd.backbones` never do, but to look up a backbone that is not in the table.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # what editors and type checkers read; a test holds it against _HOMES
    from dskd.backbones import BACKBONES as BACKBONES
    from dskd.backbones import register_backbone as register_backbone
    from dskd.config import ConfigError as ConfigError
    from dskd.config import replace as replace
    from dskd.distiller import Distiller as Distiller
    from dskd.distiller import Students as Students
    from dskd.embedding import DeepFeatureEmbedding as DeepFeatureEmbedding
    from dskd.lookup import get_backbone as get_backbone
    from dskd.methods import METHODS as METHODS
    from dskd.methods import get_method as get_method
    from dskd.methods import register_method as register_method
    from dskd.students import DecoderStudent as DecoderStudent
    from dskd.students import EncoderStudent as EncoderStudent
    from dskd.switches import Method as Method
    from dskd.teacher import Teacher as Teacher
    from dskd.trained import load as load

_HOMES = {
    "METHODS": "methods",
    "BACKBONES": "backbones",
    "ConfigError": "config",
    "DecoderStudent": "students",
    "DeepFeatureEmbedding": "embedding",
    "Distiller": "distiller",
    "EncoderStudent": "students",
    "Method": "switches",
    "Students": "distiller",
    "Teacher": "teacher",
    "get_backbone": "lookup",
    "get_method": "methods",
    "load": "trained",
    "register_backbone": "backbones",
    "register_method": "methods",
    "replace": "config",
}
__all__ = sorted(_HOMES)


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
