"""The blocks of a decoder student as plain data, which a plan can count: no torch is imported here.

Three structures: RD4AD's de-ResNet, a generic one for other families, and the encoder run backwards (`decoder.mirror`).
"""

import dataclasses
import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from dskd.backbones import Backbone
from dskd.config import require
from dskd.switches import Decoder, Method

# timm's EfficientNet-Lite beyond scale 1: channels, number of blocks and kernel of the stages that lead to scale 2, 3
# and the fourth map; a stage's first block expands the channels that it gets 6 times, as its others do their own.
_LITE_KERNELS = ((5,), (3, 5), (5, 3))
_LITE: dict[str, tuple[tuple[tuple[int, int], ...], ...]] = {
    "tf_efficientnet_lite0": (((40, 2),), ((80, 3), (112, 3)), ((192, 4), (320, 1))),
    "tf_efficientnet_lite1": (((40, 3),), ((80, 4), (112, 4)), ((192, 5), (320, 1))),
    "tf_efficientnet_lite2": (((48, 3),), ((88, 4), (120, 4)), ((208, 5), (352, 1))),
}
NEAR = 0.01  # how near `size: encoder` must come


@dataclass(frozen=True)
class Conv:
    """A convolution without bias, and the BatchNorm after it.

    Attributes:
        up: doubles the size: `deconv` is a 2x2/2 transposed convolution, `transposed` one of this kernel at stride 2,
            `bilinear` upsampling before, `nearest` upsampling after.
    """

    channels: int
    out: int
    kernel: int
    up: Literal["deconv", "transposed", "bilinear", "nearest"] | None = None
    groups: int = 1

    @property
    def parameters(self) -> int:
        taps = 4 if self.up == "deconv" else self.kernel**2
        return taps * self.channels * self.out // self.groups + 2 * self.out


@dataclass(frozen=True)
class Block:
    """`act(body(x) + shortcut(x))`, with `inner` between the convolutions of the body.

    Attributes:
        shortcut: `identity`, a convolution, or none at all.
    """

    body: tuple[Conv, ...]
    shortcut: Conv | Literal["identity"] | None = "identity"
    act: Literal["relu", "none"] = "relu"
    inner: Literal["relu", "relu6"] = "relu"

    @property
    def parameters(self) -> int:
        convolutions = [*self.body, *([self.shortcut] if isinstance(self.shortcut, Conv) else [])]
        return sum(convolution.parameters for convolution in convolutions)


Plan = list[list[Block]]  # of the three stages, coarsest first


def size(plan: Plan) -> int:
    """Parameters."""
    return sum(block.parameters for stage in plan for block in stage)


def check_decoder(method: Method, teacher: Backbone, student: Backbone) -> None:
    """Raises ConfigError for a decoder student that cannot be made, before any torch is imported.

    Args:
        student: the encoder student's trunk.
    """
    if method.decoder == Decoder():
        return
    parameters = student.parameters
    if method.encoder.backbone:  # and its 1x1 adapters
        parameters += sum((own + 1) * out for own, out in zip(student.channels, teacher.channels, strict=True))
    deep = method.embedding.kind == "layer4"  # the encoder student is larger then, and only its module says how much
    config = dataclasses.replace(method.decoder, size="own") if deep else method.decoder
    decoder_plan(teacher, config, teacher.embedding_channels, parameters)


@functools.lru_cache(maxsize=256)
def decoder_plan(facts: Backbone, config: Decoder, channels: int, encoder_parameters: int) -> Plan:
    """The blocks of a decoder student.

    Args:
        facts: of the teacher's backbone.
        channels: of the decoder's input.
        encoder_parameters: what `size: encoder` has to meet.

    Raises:
        ConfigError: `mirror` for a backbone whose blocks are not known here, or a size that no width meets.
    """
    if config.mirror:
        known = facts.block != "generic" or facts.name in _LITE
        hint = f"not of {facts.name}; leave it out"
        require(known, f"decoder.mirror: the blocks of ResNets and of EfficientNet-Lite 0 to 2 are known, {hint}")
        shape = _mirror_of_lite if facts.block == "generic" else _mirror_of_resnet
    else:
        shape = _generic if facts.block == "generic" else _resnet

    def of_share(share: float) -> Plan:
        return shape(facts, config, channels, share)

    if config.size == "encoder":
        plan = of_share(_share(of_share, encoder_parameters))
        found = size(plan)
        require(
            abs(found / encoder_parameters - 1) <= NEAR,
            f"decoder.size: the encoder student has {encoder_parameters} parameters, a decoder of {facts.name} comes "
            f"no nearer than {found}; leave `size` out",
        )
        return plan
    return of_share(_share(of_share, facts.parameters) if shape is _generic else 1.0)


def _share(plan: Callable[[float], Plan], parameters: int) -> float:
    """Of the inner widths, at which a plan has so many parameters."""
    lowest, highest = 1 / 16, 16.0
    for _ in range(40):
        share = (lowest + highest) / 2
        lowest, highest = (share, highest) if size(plan(share)) < parameters else (lowest, share)
    return highest


def _width(channels: int, share: float) -> int:
    return max(8, round(channels * share))


def _resnet(facts: Backbone, config: Decoder, channels: int, share: float) -> Plan:
    """RD4AD's de-ResNet: each stage is opened by the block that doubles the size."""
    depths = facts.depths if config.block_order == "rd4ad" else facts.depths[::-1]
    plan = []
    for planes, depth in zip((256, 128, 64), depths, strict=True):
        out, width = planes * facts.expansion, _width(_resnet_width(facts, planes), share)
        # Transposed shortcuts alone would outweigh the encoder of a ResNet-50.
        shortcut = Conv(channels, out, 1, config.up if config.size == "own" else "nearest")
        inputs = [(channels, config.up), *[(out, None)] * (depth - 1)]
        if facts.block == "basic":
            bodies = [(Conv(c, width, 3, up), Conv(width, out, 3)) for c, up in inputs]
        else:
            bodies = [(Conv(c, width, 1), Conv(width, width, 3, up), Conv(width, out, 1)) for c, up in inputs]
        plan.append([Block(bodies[0], shortcut), *map(Block, bodies[1:])])
        channels = out
    return plan


def _resnet_width(facts: Backbone, planes: int) -> int:
    """Inner channels of a block."""
    return planes if facts.block == "basic" else planes * facts.base_width // 64


def _generic(facts: Backbone, config: Decoder, channels: int, share: float) -> Plan:
    """Two bottleneck blocks a stage, the last with a linear end."""
    plan = []
    for out in facts.channels[::-1]:
        width = _width(out, share)
        first = Conv(channels, width, 1), Conv(width, width, 3, config.up), Conv(width, out, 1)
        second = Conv(out, width, 1), Conv(width, width, 3), Conv(width, out, 1)
        # Not transposed: at a thousand channels that alone would outweigh the trunk.
        plan.append([Block(first, Conv(channels, out, 1, "nearest")), Block(second, act="none")])
        channels = out
    return plan


def _mirrored_up(config: Decoder) -> Literal["transposed", "bilinear"]:
    """What a strided convolution of the encoder becomes, with the kernel that it has."""
    return "transposed" if config.up == "deconv" else "bilinear"


def _mirror_of_resnet(facts: Backbone, config: Decoder, channels: int, share: float) -> Plan:
    """layer4, layer3 and layer2 backwards: the blocks of one size first, last the one that doubles it."""
    plan = []
    depths = facts.embedding_depth, facts.depths[2], facts.depths[1]
    for planes, depth in zip((512, 256, 128), depths, strict=True):
        wide, out = planes * facts.expansion, planes * facts.expansion // 2
        width = _width(_resnet_width(facts, planes), share)
        stage = []
        for c, up in [(wide, None)] * (depth - 1) + [(out, _mirrored_up(config))]:
            if facts.block == "basic":
                body = Conv(channels, width, 3), Conv(width, c, 3, up)
            else:
                body = Conv(channels, width, 1), Conv(width, width, 3, up), Conv(width, c, 1)
            stage.append(Block(body, Conv(channels, c, 1, "nearest") if up else "identity"))
            channels = c
        plan.append(stage)
    return plan


def _mirror_of_lite(facts: Backbone, config: Decoder, channels: int, share: float) -> Plan:
    """The inverted residuals between two scales backwards, each projecting to what its original was given."""
    source, forwards = facts.channels[0], []
    for stages, kernels in zip(_LITE[facts.name], _LITE_KERNELS, strict=True):
        blocks = []  # what comes in, the kernel, whether it halves the size
        for index, ((out, depth), kernel) in enumerate(zip(stages, kernels, strict=True)):
            blocks += [(source, kernel, index == 0), *[(out, kernel, False)] * (depth - 1)]
            source = out
        forwards.append(blocks)
    plan = []
    for blocks in reversed(forwards):
        stage = []
        for source, kernel, halves in reversed(blocks):
            width, up = _width(6 * source, share), _mirrored_up(config) if halves else None
            body = Conv(channels, width, 1), Conv(width, width, kernel, up, groups=width), Conv(width, source, 1)
            skip = "identity" if channels == source and not halves else None
            stage.append(Block(body, skip, act="none", inner="relu6"))
            channels = source
        plan.append(stage)
    return plan
