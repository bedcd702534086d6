"""Any timm backbone, and students of other trunks."""

import pytest
import torch
from safetensors.torch import save_file

from dskd import ConfigError, Distiller, Teacher, get_backbone, get_method, register_backbone
from dskd.backbones import BACKBONES, TRIED, TRUNKS, Backbone
from dskd.inspection import inspect_backbone
from dskd.methods import METHODS
from dskd.timm_import import timm
from tests.dskd.test_distiller import images


@pytest.mark.parametrize("name", sorted(BACKBONES.keys() - set(TRIED)))
def test_the_table_is_what_inspection_finds(name: str) -> None:
    table, found = BACKBONES[name], inspect_backbone(name)
    assert table == Backbone(**(vars(found) | {"imagenet": table.imagenet, "gmac": table.gmac}))


SMALL = ("resnet18", "efficientnet_b0")
REARRANGED = {"stfpm", "two_students", "student_ensemble"}  # of parts that dskd has too


@pytest.mark.parametrize("backbone", ["resnet18", "resnet50", *TRIED])
def test_every_method_learns_on_backbones_of_every_family(backbone: str) -> None:
    """Forward and backward at 64x64 with a random teacher; on large backbones the methods with parts of their own."""
    teacher = Teacher(backbone)
    facts = get_backbone(backbone)
    for method in (get_method(name) for name in METHODS if backbone in SMALL or name not in REARRANGED):
        if method.encoder.backbone == backbone:
            continue  # refused by a plan: it would not be another family
        torch.manual_seed(0)
        model = Distiller(method, backbone, teacher).train()
        maps, students = model.features(images())
        assert [tuple(scale.shape[1:]) for scale in maps] == [
            (channels, 64 // stride, 64 // stride)
            for channels, stride in zip(facts.channels, facts.strides, strict=True)
        ]
        for pyramid in students.values():
            assert [scale.shape for scale in pyramid] == [scale.shape for scale in maps]
        loss = model.loss(images(), maps)
        loss.backward()
        assert loss.isfinite()
        assert not [name for name, p in model.students.named_parameters() if p.grad is None]
        assert all(p.grad.isfinite().all() for p in model.students.parameters())


@pytest.mark.parametrize("backbone", TRIED)
def test_the_generic_decoder_is_of_the_trunks_scale(backbone: str) -> None:
    with torch.device("meta"):
        students = Distiller(get_method("dskd"), backbone).students
    encoder, decoder = (sum(p.numel() for p in m.parameters()) for m in (students.encoder, students.decoder))
    assert 0.75 < decoder / encoder < 1.25


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("resnet19", "unknown backbone 'resnet19'; did you mean 'resnet18'"),
        ("convnext_tinny", "did you mean 'convnext_tiny'"),
        ("vit_tiny_patch16_224", "its maps have strides 16, 16, 16; three that double are needed"),
        ("swin_tiny_patch4_window7_224", "it does not take images of 256x256"),
        ("inception_v3", "it gives maps of"),
    ],
)
def test_backbones_without_usable_scales_are_refused(name: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as error:
        get_backbone(name)
    assert "\n" not in str(error.value)


def test_the_weights_of_a_whole_model_of_another_family_load(tmp_path) -> None:
    torch.manual_seed(3)
    whole = timm.create_model("regnety_008", pretrained=False).eval()
    save_file(whole.state_dict(), tmp_path / "whole.safetensors")
    teacher = Teacher("regnety_008", tmp_path / "whole.safetensors")
    with torch.inference_mode():
        expected = whole.forward_intermediates(images(), indices=[1, 2, 3], intermediates_only=True)
        for scale, wanted in zip(teacher(images()), expected, strict=True):
            torch.testing.assert_close(scale, wanted)
    state = whole.state_dict()
    del state["s2.b1.conv1.conv.weight"]
    save_file(state, tmp_path / "part.safetensors")
    with pytest.raises(ConfigError, match=r"lacks s2.b1.conv1.conv.weight"):
        Teacher("regnety_008", tmp_path / "part.safetensors")


def test_a_teacher_gets_the_normalisation_that_its_weights_expect() -> None:
    name = "tf_mobilenetv3_large_100"  # trained with mean and deviation 0.5
    facts, teacher = get_backbone(name), Teacher(name)
    assert facts.mean == (0.5, 0.5, 0.5)
    pixels = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    for scale, wanted in zip(teacher((pixels - mean) / std), teacher.trunk((pixels - 0.5) / 0.5), strict=True):
        torch.testing.assert_close(scale, wanted, rtol=1e-3, atol=1e-4)


def test_a_trunk_that_was_registered_and_one_whose_maps_do_not_fit() -> None:
    class Trunk(torch.nn.Module):
        strides = (4, 2, 2)

        def __init__(self) -> None:
            super().__init__()
            channels = (3, 8, 12, 20)
            pairs = zip(channels, channels[1:], self.strides, strict=False)
            self.stages = torch.nn.ModuleList(torch.nn.Conv2d(a, b, stride, stride) for a, b, stride in pairs)

        def forward(self, images: torch.Tensor) -> list[torch.Tensor]:
            maps = []
            for stage in self.stages:
                images = stage(images)
                maps.append(images)
            return maps

    class Odd(Trunk):
        strides = (4, 2, 1)

    try:
        register_backbone("three_convolutions")(Trunk)
        assert get_backbone("three_convolutions").channels == (8, 12, 20)
        Distiller(get_method("dskd"), "three_convolutions").loss(images()).backward()
        with pytest.raises(ConfigError, match="backbone 'three_convolutions' exists already"):
            register_backbone("three_convolutions")(Trunk)
        register_backbone("odd")(Odd)
        with pytest.raises(ConfigError, match="backbone odd: for an image of 256x256 it returns"):
            get_backbone("odd")
    finally:
        for name in ("three_convolutions", "odd"):
            TRUNKS.pop(name, None)
            BACKBONES.pop(name, None)
