"""Names of backbones to their facts: the table's, or those of another model, which is inspected once."""

from dskd.backbones import BACKBONES, Backbone


def get_backbone(name: str | Backbone) -> Backbone:
    """The named backbone's facts; one that is not in the table is inspected once, which imports torch and timm.

    Raises:
        ConfigError: a name that does not exist, with the near match, or a model without three usable scales.
    """
    if isinstance(name, Backbone):
        return name
    if name not in BACKBONES:
        from dskd.inspection import inspect_backbone

        BACKBONES[name] = inspect_backbone(name)
    return BACKBONES[name]
