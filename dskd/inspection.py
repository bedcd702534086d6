"""Facts about any timm model or plug-in trunk, read off the model itself, without its weights and without memory."""

import dataclasses
import difflib
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from dskd.backbones import BACKBONES, IMAGENET_MEAN, IMAGENET_STD, TRUNKS, Backbone
from dskd.config import ConfigError
from dskd.count import count
from dskd.embedding import DeepFeatureEmbedding
from dskd.students import DecoderStudent, EncoderStudent
from dskd.timm_import import resnet, timm

STRIDES = ((4, 8, 16), (8, 16, 32), (2, 4, 8))  # in order of preference


def inspect_backbone(name: str) -> Backbone:
    """The facts of `dskd.backbones.Backbone`, from a model on the meta device.

    Raises:
        ConfigError: no such model, or one without three maps at strides that double.
    """
    if name in TRUNKS:
        return _with_costs(_of_trunk(name))
    if not timm.is_model(name):
        near = difflib.get_close_matches(name, [*BACKBONES, *timm.list_models()], n=1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise ConfigError(f"unknown backbone {name!r}; {hint}one of: {', '.join(BACKBONES)}, or any timm model")
    try:
        with torch.device("meta"):
            model = timm.create_model(name, pretrained=False)
            features = timm.create_model(name, pretrained=False, features_only=True)
    except Exception as error:  # timm raises many kinds for models that cannot be tapped
        reason = " ".join(str(error).split())[:120]
        raise ConfigError(
            f"backbone {name}: timm makes no features_only model of it ({reason}); choose another one"
        ) from None
    channels, strides = features.feature_info.channels(), features.feature_info.reduction()
    taps, deep = _choose(name, strides)
    config = timm.get_pretrained_cfg(name)
    shape = {"block": "generic", "depths": (2, 2, 2), "embedding_depth": 2} | _resnet_facts(model)
    facts = Backbone(
        name=name,
        channels=tuple(channels[tap] for tap in taps),
        imagenet=f"{config.architecture}.{config.tag}" if config and config.has_weights and config.tag else "",
        gmac=(0.0, 0.0, 0.0),
        parameters=0,
        strides=tuple(strides[tap] for tap in taps),
        taps=taps,
        deep_tap=deep,
        deep_channels=channels[deep] if deep is not None else 0,
        mean=tuple(config.mean) if config else IMAGENET_MEAN,
        std=tuple(config.std) if config else IMAGENET_STD,
        **shape,
    )
    return _with_costs(facts)


def _choose(name: str, strides: Sequence[int]) -> tuple[tuple[int, int, int], int | None]:
    """Indices of the three maps, and of the next one at twice the last stride; of equal strides the last counts."""
    last = {stride: index for index, stride in enumerate(strides)}
    for wanted in STRIDES:
        if last.keys() >= set(wanted):
            return tuple(last[stride] for stride in wanted), last.get(2 * wanted[-1])
    raise ConfigError(
        f"backbone {name}: its maps have strides {', '.join(map(str, strides))}; three that double are needed, "
        "such as 4, 8, 16; choose a convolutional model (`harness backbones` lists some)"
    )


def _resnet_facts(model: nn.Module) -> dict[str, Any]:
    """What the inverted student of a plain ResNet needs to mirror its blocks; nothing for other models."""
    if type(model) is not resnet.ResNet:
        return {}
    blocks = [block for layer in (model.layer1, model.layer2, model.layer3, model.layer4) for block in layer]
    kinds = {type(block) for block in blocks}
    plain = kinds in ({resnet.BasicBlock}, {resnet.Bottleneck})
    if not plain or any(block.se is not None or block.conv2.groups != 1 for block in blocks):
        return {}
    basic = kinds == {resnet.BasicBlock}
    width = model.layer1[0].conv2.out_channels
    out = width if basic else model.layer1[0].conv3.out_channels
    if out != (64 if basic else 256):
        return {}
    return {
        "block": "basic" if basic else "bottleneck",
        "depths": (len(model.layer1), len(model.layer2), len(model.layer3)),
        "embedding_depth": len(model.layer4),
        "base_width": width,
    }


def _of_trunk(name: str) -> Backbone:
    """Facts of a plug-in's trunk, from the shapes that it returns."""
    side = 256
    try:
        with torch.device("meta"):
            maps = TRUNKS[name]().eval()(torch.empty(1, 3, side, side))
    except Exception as error:  # a plug-in's own
        raise ConfigError(f"backbone {name}: {type(error).__name__}: {' '.join(str(error).split())[:200]}") from error
    shapes = [tuple(scale.shape) for scale in maps]
    strides = tuple(side // shape[-1] for shape in shapes)
    wanted = [(1, shape[1], side // stride, side // stride) for shape, stride in zip(shapes, strides, strict=True)]
    if len(shapes) != 3 or shapes != wanted or strides not in STRIDES:
        raise ConfigError(
            f"backbone {name}: for an image of {side}x{side} it returns {', '.join(map(str, shapes))}; three maps "
            "(1, C, H, W) are needed, finest first, at strides that double, such as 4, 8, 16"
        )
    channels = tuple(shape[1] for shape in shapes)
    none = {"imagenet": "", "gmac": (0.0, 0.0, 0.0), "parameters": 0, "taps": (0, 1, 2), "deep_tap": None}
    return Backbone(name, "generic", channels, (2, 2, 2), 2, strides=strides, **none)


def _with_costs(facts: Backbone) -> Backbone:
    """With parameters and multiply-adds, counted on modules made of the facts."""
    with torch.device("meta"), torch.no_grad():
        trunk = EncoderStudent(facts)
        facts = dataclasses.replace(facts, parameters=sum(p.numel() for p in trunk.parameters()))
        value: Any = torch.empty(1, 3, 256, 256)
        costs = []
        for module in (trunk, DeepFeatureEmbedding(facts), DecoderStudent(facts)):
            try:
                macs, value = count(module.eval(), value)
            except Exception as error:
                reason = " ".join(str(error).split())[:160]
                raise ConfigError(f"backbone {facts.name}: it does not take images of 256x256 ({reason})") from None
            costs.append(round(macs / 1e9, 3))
            if module is trunk:
                shapes = [tuple(scale.shape[1:]) for scale in value]
                wanted = [(c, 256 // s, 256 // s) for c, s in zip(facts.channels, facts.strides, strict=True)]
                if shapes != wanted:
                    raise ConfigError(f"backbone {facts.name}: it gives maps of {shapes}, {wanted} are needed")
    return dataclasses.replace(facts, gmac=tuple(costs))
