"""`harness methods`, `backbones` and `datasets`: numbers are counted, and bad input is one line.

In this process, because importing torch for each command would take longer than all that is tested here.
"""

import dataclasses
import importlib
import re
import sys
from collections.abc import Callable, Iterator

import pytest
import torch
import yaml
from torch import Tensor, nn

from dskd.backbones import BACKBONES, TRUNKS
from dskd.config import ConfigError, replace
from dskd.costs import of_backbone, of_method
from dskd.methods import ABOUT, METHODS, get_method
from harness import grid  # noqa: F401  (it registers the data sets)
from harness.cli import main
from harness.cli.methods import switches
from harness.data.catalog import SOURCES, get_source
from harness.data.references import REFERENCES
from harness.gridfile import METHOD_KEYS

Harness = Callable[..., str]


@pytest.fixture(autouse=True)
def as_at_start() -> Iterator[None]:
    """What a command inspects stays known to the process: here until the end of the test."""
    before = dict(BACKBONES)
    yield
    BACKBONES.clear()
    BACKBONES.update(before)


@pytest.fixture
def harness(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Harness:
    """Run a command; gives what it printed, or its error where `expect` is 2."""

    def call(*arguments: object, expect: int = 0) -> str:
        monkeypatch.setattr(sys, "argv", ["harness", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        out, error = capsys.readouterr()
        assert (ended.value.code or 0) == expect, out + error
        return error if expect else out

    return call


class Eighths(nn.Module):
    """A trunk at strides 8, 16, 32, of a convolution each."""

    def __init__(self) -> None:
        super().__init__()
        sizes = ((3, 8, 8), (8, 16, 2), (16, 32, 2))
        self.stages = nn.ModuleList(nn.Conv2d(i, o, stride, stride) for i, o, stride in sizes)

    def forward(self, images: Tensor) -> list[Tensor]:
        maps = []
        for stage in self.stages:
            images = stage(images)
            maps.append(images)
        return maps


def row(output: str, name: str) -> list[str]:
    """The cells of the first line of the named row."""
    (line,) = [line for line in output.splitlines() if line.startswith(f"│ {name} ")]
    return [cell.strip() for cell in line.strip("│").split("│")]


def test_costs_are_those_that_are_known() -> None:
    for name in ("resnet18", "resnet50"):
        costs = of_backbone(name)
        assert costs["trunk"].parameters == BACKBONES[name].parameters
        assert [part.gmac for part in costs.values()] == pytest.approx(BACKBONES[name].gmac, abs=5e-4)
    assert of_backbone("resnet18")["decoder"].parameters == 3_703_168
    whole, quarter = (of_method(METHODS["dskd"], "resnet18", side) for side in (256, 128))
    assert whole.parameters == quarter.parameters == 18_165_952
    assert whole.gmac == pytest.approx(4 * quarter.gmac)
    assert of_method(METHODS["dskd"], "resnet18", (128, 512)).gmac == pytest.approx(whole.gmac)


def test_costs_follow_the_switches() -> None:
    dskd = of_method(METHODS["dskd"], "resnet18", 64)
    for key, value in (("embedding.kind", "mff_1x1"), ("decoder.up", "bilinear"), ("embedding.source", "both")):
        changed = of_method(replace(METHODS["dskd"], {key: value}), "resnet18", 64)
        assert changed.gmac != dskd.gmac, key


def test_methods_lists_all_with_their_numbers(harness: Harness) -> None:
    output = harness("methods")
    assert all(name in output for name in METHODS)
    assert row(output, "dskd")[1:5] == ["encoder, decoder", "encoder", "18.166", "6.155"]
    assert row(output, "stfpm")[1:6] == ["encoder", "", "2.783", "3.664", "SGD 0.4, 100 epochs, batch"]
    assert row(output, "reverse_distillation")[1:5] == ["decoder", "teacher", "15.383", "4.323"]
    assert row(output, "student_ensemble")[1] == "3 x encoder"
    assert row(output, "smaller_student")[1] == "encoder (resnet10t)"
    assert "switches of" not in output


def test_one_method_is_shown_with_its_switches(harness: Harness) -> None:
    output = harness("methods", "stfpm")
    assert "dskd" not in output
    assert ABOUT["stfpm"][:20] in output
    assert row(output, "embedding.source")[:4] == ["embedding.source", "encoder", "", "encoder, teacher, both"]
    assert row(output, "students")[:4] == ["students", "[encoder]", "", "list of encoder, decoder"]
    assert row(output, "train.lr") == ["train.lr", "0.4", "0.005", "number", "learning rate, with `split` of its Adam."]
    assert row(output, "map.scale_fuse")[:4] == ["map.scale_fuse", "mul", "sum", "sum, mul"]
    assert row(output, "embedding.blocks")[3] == "whole number or null"
    assert "\nrecipe: tuned_on_mtd: train.lr 0.675, " in output
    assert "`recipe: common` is its own recipe" in harness("methods", "dskd")
    both = harness("methods", "dskd", "stfpm")
    assert "embedding.source" not in both
    assert "reverse_distillation" not in both


def test_every_switch_is_explained() -> None:
    found = switches()
    assert not [key for key in METHOD_KEYS if key != "recipe" and not all(found[key])]


def test_a_method_that_cannot_go_with_the_backbone_says_why(harness: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(TRUNKS, "eighths", Eighths)
    output = harness("methods", "dskd", "smaller_student", "--backbone", "eighths", "--image-size", "128")
    assert row(output, "smaller_student")[3:5] == ["–", "–"]
    assert "\nsmaller_student: encoder.backbone: the maps of resnet10t have strides [4, 8, 16]" in output
    assert float(row(output, "dskd")[4]) > 0
    error = harness("methods", "--backbone", "eighths", "--image-size", "96", expect=2)
    assert error == "error: image size 96 is not possible, eighths with a decoder needs a multiple of 64; write 128\n"
    mixed = harness("backbones", "resnet18", "eighths", "--image-size", "96")
    assert row(mixed, "eighths")[2:] == ["8, 16, 32", *["–"] * 6]
    assert row(mixed, "resnet18")[4] == "0.258"
    assert "\nimage size 96 is not possible, eighths with a decoder needs a multiple of 64" in mixed


def test_students_of_a_plugin_that_fail_are_a_remark(harness: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    from dskd.distiller import Students
    from dskd.methods import STUDENTS

    class Broken(Students):
        def forward(self, images: Tensor, teacher: list[Tensor]) -> dict[str, list[Tensor]]:
            raise RuntimeError("not\ntoday")

    monkeypatch.setitem(METHODS, "mine", replace(get_method("stfpm"), {"name": "mine"}))
    monkeypatch.setitem(ABOUT, "mine", "a [bold]broken[/bold] one")
    monkeypatch.setitem(STUDENTS, "mine", Broken)
    output = harness("methods", "mine", "--image-size", "64")
    assert "a [bold]broken[/bold] one" in output
    assert "\nmine: it cannot be counted on resnet18 at 64x64 (not today)\n" in output


def test_backbones_lists_channels_costs_and_weights(harness: Harness) -> None:
    output = harness("backbones", "resnet18", "mobilenetv3_large_100")
    numbers = ["2.783", "1.832", "0.931", "1.560", "1.33"]
    assert row(output, "resnet18") == ["resnet18", "64, 128, 256", "4, 8, 16", *numbers, "resnet18.tv_in1k"]
    assert row(output, "mobilenetv3_large_100")[1] == "24, 40, 112"
    for size in ("128", "64x256"):
        output = harness("backbones", "resnet18", "--image-size", size)
        assert row(output, "resnet18")[4:7] == ["0.458", "0.233", "0.390"]
    assert "images of 64x256" in output
    assert "images of 64x256" in harness("methods", "stfpm", "--image-size", "64x256")


def test_backbones_lists_by_default_the_table_the_tried_and_the_plugins(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = importlib.import_module("harness.cli.backbones")
    for name in set(BACKBONES) - {"resnet18", "resnet34"}:
        monkeypatch.delitem(BACKBONES, name)
    monkeypatch.setattr(module, "TRIED", ("mobilenetv3_large_100", "resnet18"))
    monkeypatch.setitem(TRUNKS, "eighths", Eighths)
    lines = harness("backbones", "--image-size", "64").splitlines()
    names = [line.split("│")[1].strip() for line in lines if line.startswith("│")]
    assert names == ["resnet18", "resnet34", "mobilenetv3_large_100", "eighths"]


def test_backbones_takes_patterns(harness: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    module = importlib.import_module("harness.cli.backbones")
    output = harness("backbones", "regnetx_00[24]", "--image-size", "64")
    assert row(output, "regnetx_002")[1] == "24, 56, 152"
    assert row(output, "regnetx_004")[2] == "4, 8, 16"
    assert "left out" not in output
    monkeypatch.setattr(module, "MOST", 2)
    output = harness("backbones", "resnet18", "vit_tiny_patch16_*", "--image-size", "64")
    assert "\n2 matching models cannot be a trunk" in output
    assert re.search(r"\nvit_tiny_patch16_\*: \d+ of \d+ models left out; write a narrower pattern\n", output)
    assert row(output, "resnet18")[1] == "64, 128, 256"


def test_datasets_lists_what_can_be_read(harness: Harness) -> None:
    output = harness("datasets")
    assert all(f"│ {name} " in output for name in SOURCES)
    assert set(REFERENCES) <= set(SOURCES)
    assert "\nbtad: https://avires.dimi.uniud.it/papers/btad/btad.zip\n" in output
    assert row(output, "mvtec_loco")[2] == "CC BY-NC-SA 4.0"


def test_one_data_set_is_shown_with_what_its_entry_takes(harness: Harness) -> None:
    output = harness("datasets", "ksdd2")
    assert "`10301 (copy).png`" in output
    assert f"\ncite: {REFERENCES['ksdd2'].citation}\n" in output
    for name in SOURCES:
        output = harness("datasets", name)
        (line,) = [line for line in output.splitlines() if line.startswith("in a grid: ")]
        (entry,) = yaml.safe_load(line.partition("dataset: ")[2])
        assert get_source(entry).name == name  # what is printed can be copied
        assert all(f"\n  {field.name}: " in output for field in dataclasses.fields(SOURCES[name]))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["datasets", "vsa"], "unknown dataset 'vsa'; did you mean 'visa'"),
        (["methods", "dsdk"], "unknown method 'dsdk'; did you mean 'dskd'"),
        (["methods", "--backbone", "resnet81"], "unknown backbone 'resnet81'; did you mean 'resnet18'"),
        (
            ["methods", "--image-size", "250"],
            "image size 250 is not possible, resnet18 with a decoder needs a multiple",
        ),
        (["methods", "--image-size", "250x640"], "image size 250x640 is not possible, resnet18 with a decoder"),
        (["backbones", "resnet18", "--image-size", "250x640"], "needs a multiple of 32; write 256x640"),
        (["methods", "--image-size", "256x"], "--image-size: '256x' is not possible; write a side such as 256, or"),
        (["methods", "--plugin", "gone.py"], "--plugin: there is no file"),
        (["backbones", "resnet81"], "unknown backbone 'resnet81'; did you mean 'resnet18'"),
        (["backbones", "regnat*"], "no timm model matches 'regnat*'"),
        (["backbones", "vit_tiny_patch16_224"], "its maps have strides 16, 16, 16"),
        (["backbones", "resnet18", "--image-size", "250"], "needs a multiple of 32; write 256"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(harness: Harness, arguments: list[str], message: str) -> None:
    error = harness(*arguments, expect=2)
    assert message in error
    assert error.startswith("error: ")
    assert error.count("\n") == 1, error


def test_sizes_that_a_trunk_refuses_are_config_errors() -> None:
    with pytest.raises(ConfigError, match="image size 0 is not possible"):
        of_method(METHODS["stfpm"], "resnet18", 0)
    with pytest.raises(ConfigError, match="does not take images of 320x320"):
        of_backbone("maxvit_pico_rw_256", 320)


def test_counting_leaves_the_random_numbers_alone() -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    of_method(METHODS["dskd"], "resnet18", 64)
    assert torch.equal(torch.get_rng_state(), before)
