"""The trunk of a backbone: what the teacher and the encoder student are made of."""

from torch import nn

from dskd.backbones import TRUNKS, Backbone
from dskd.config import require
from dskd.timm_import import efficientnet, mobilenetv3, timm

CUTTABLE = (efficientnet.EfficientNetFeatures, mobilenetv3.MobileNetV3Features)


def build_trunk(facts: Backbone, deep: bool = False) -> nn.Module:
    """The backbone up to its third scale with random weights; `trunk(images)` returns three maps, finest first.

    Shapes at 256x256 for resnet18: (B, 64, 64, 64), (B, 128, 32, 32), (B, 256, 16, 16).

    Args:
        deep: a fourth map, at twice the last stride, too.

    Raises:
        ConfigError: `deep` where there is no such map.
    """
    require(not deep or facts.deep_tap is not None, f"backbone {facts.name} has no fourth map for a `layer4`")
    if facts.name in TRUNKS:
        return TRUNKS[facts.name]()
    taps = (*facts.taps, facts.deep_tap) if deep else facts.taps
    # timm zeroes the last BatchNorm of each block of a ResNet by default; the official STFPM student (torchvision) does
    # not.
    init = {"zero_init_last": False} if facts.block != "generic" else {}
    trunk = timm.create_model(facts.name, pretrained=False, features_only=True, out_indices=taps, **init)
    if isinstance(trunk, CUTTABLE):  # these run on after their last tap
        trunk.blocks = trunk.blocks[: max(trunk._stage_out_idx)]
    return trunk
