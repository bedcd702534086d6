"""The decoder student's structures and sizes: what they share with the encoder, counted on modules."""

import dataclasses

import pytest
import torch
from torch import nn

from dskd import ConfigError, DecoderStudent, Distiller, get_backbone, get_method, replace
from dskd.backbones import BACKBONES, Backbone
from dskd.inverted import check_decoder, decoder_plan, size
from dskd.switches import Decoder
from dskd.trunk import build_trunk
from harness.spec import Data, TrainSpec, Weights
from tests.dskd.test_distiller import falls_below


def decoder(facts: Backbone, config: Decoder, channels: int | None = None) -> DecoderStudent:
    with torch.device("meta"):
        return DecoderStudent(facts, config, channels)


def parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize("up", ["deconv", "bilinear"])
@pytest.mark.parametrize(("mirror", "of"), [(False, "own"), (False, "encoder"), (True, "own"), (True, "encoder")])
@pytest.mark.parametrize("backbone", BACKBONES)
def test_every_structure_has_the_teachers_shapes_and_the_size_that_was_planned(
    backbone: str, mirror: bool, of: str, up: str
) -> None:
    facts, config = BACKBONES[backbone], Decoder(up=up, mirror=mirror, size=of)
    student = decoder(facts, config)
    maps = student(torch.empty(2, facts.embedding_channels, 2, 3, device="meta"))
    assert [tuple(scale.shape) for scale in maps] == [
        (2, channels, 16 // 2**k, 24 // 2**k) for k, channels in enumerate(facts.channels)
    ]
    found = parameters(student)
    assert found == size(decoder_plan(facts, config, facts.embedding_channels, facts.parameters))
    if of == "encoder":
        assert abs(found / facts.parameters - 1) <= 0.01


Signature = tuple[
    int, tuple[int, int], int, bool
]  # of a convolution: weights, kernel, groups, whether the size changes


def signature(conv: nn.Module, resizes: bool) -> Signature:
    return conv.weight.numel(), tuple(conv.kernel_size), conv.groups, resizes


def convolutions(block: nn.Module) -> list[Signature]:
    """Sorted, since a block's shortcut stands last either way."""
    found = []
    for layer in block.modules():
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
            halves = layer.stride[0] == 2
            # A shortcut's 1x1 has its stride in an upsampling of its own: whether it halves is not compared.
            found.append(signature(layer, halves and layer.kernel_size != (1, 1)))
    return sorted(found)


@pytest.mark.parametrize("backbone", BACKBONES)
def test_a_mirror_is_the_encoder_run_backwards(backbone: str) -> None:
    """Block by block the convolutions of timm's own trunk beyond its first scale, in inverted order."""
    facts = BACKBONES[backbone]
    with torch.device("meta"):
        trunk = build_trunk(facts, deep=True)
    lite = facts.block == "generic"
    stages = list(trunk.blocks[2:]) if lite else [trunk.layer2, trunk.layer3, trunk.layer4]
    forwards = [convolutions(block) for stage in stages for block in stage]
    student = decoder(facts, Decoder(mirror=True), facts.deep_channels)
    backwards = [convolutions(block) for stage in student.stages for block in stage]
    assert backwards == forwards[::-1]
    if backbone == "resnet18":  # with its fourth stage the encoder student is of the mirror's size
        assert parameters(student) / parameters(trunk) == pytest.approx(0.986, abs=5e-4)


def test_a_mirror_up_samples_where_the_encoder_down_samples() -> None:
    for backbone in ("resnet18", "resnet50", "tf_efficientnet_lite0"):
        student = decoder(BACKBONES[backbone], Decoder(mirror=True))
        for stage in student.stages:
            last = [any(isinstance(layer, nn.ConvTranspose2d) for layer in block.modules()) for block in stage]
            assert last == [False] * (len(stage) - 1) + [True]


@pytest.mark.parametrize("backbone", ["resnet18", "resnet50", "tf_efficientnet_lite0"])
@pytest.mark.parametrize("values", [{"decoder.mirror": True}, {"decoder.mirror": True, "decoder.size": "encoder"}])
def test_a_mirror_learns(backbone: str, values: dict) -> None:
    torch.manual_seed(0)
    model = Distiller(replace(get_method("dskd"), values), backbone)
    assert falls_below(0.95, model)
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.students.parameters())


@pytest.mark.parametrize("values", [{"encoder.backbone": "mobilenetv3_large_100"}, {"embedding.kind": "layer4"}])
def test_the_size_is_that_of_the_encoder_student_that_there_is(values: dict) -> None:
    with torch.device("meta"):
        students = Distiller(replace(get_method("dskd"), {"decoder.size": "encoder"} | values), "resnet18").students
    assert abs(parameters(students.decoder) / parameters(students.encoder) - 1) <= 0.01


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"decoder.block_order: mirrored is RD4AD's structure's"):
        replace(get_method("dskd"), {"decoder.mirror": True, "decoder.block_order": "mirrored"})
    other = dataclasses.replace(BACKBONES["tf_efficientnet_lite0"], name="some_net")
    for kind in ("mff_oce", "layer4"):
        method = replace(get_method("dskd"), {"decoder.mirror": True, "embedding.kind": kind})
        with pytest.raises(ConfigError, match=r"decoder.mirror: .* 0 to 2 are known, not of some_net"):
            check_decoder(method, other, other)
    small = get_backbone("mobilenetv3_large_100").name
    method = replace(get_method("dskd"), {"decoder.size": "encoder", "encoder.backbone": small})
    with pytest.raises(ConfigError, match=r"decoder.size: .* has \d+ parameters, a decoder of resnet50"):
        TrainSpec(method, "resnet50", Weights(), Data("x", "y", "z"), 0)  # so a plan refuses it
    with torch.device("meta"), pytest.raises(ConfigError, match=r"decoder.size: the encoder student has"):
        Distiller(method, "resnet50")
