"""Student-teacher anomaly detection: one `Distiller`, many methods (DSKD, STFPM, reverse distillation, ...).

The names below import torch and timm when they are first used; `dskd.methods`, `dskd.switches`, `dskd.config` and the
table of `dskd.backbones` never do.
"""

import importlib

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
    "get_backbone": "backbones",
    "get_method": "methods",
    "register_backbone": "backbones",
    "register_method": "methods",
    "replace": "config",
}
__all__ = sorted(_HOMES)


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
