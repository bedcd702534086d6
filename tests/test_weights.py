"""Where a teacher's weights come from: the hub's cache, a file, nothing."""

import re
import subprocess
import sys
from pathlib import Path

import huggingface_hub
import pytest
import torch
from safetensors.torch import save_file

from dskd import Teacher
from dskd.config import ConfigError
from harness.weights import locate


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A hub cache that holds timm's resnet18 as `hf download` leaves it."""
    folder = tmp_path / "models--timm--resnet18.tv_in1k"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text("0" * 40)
    snapshot = folder / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    save_file(Teacher("resnet18").trunk.state_dict(), snapshot / "model.safetensors")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.file_download.constants.HF_HUB_CACHE", str(tmp_path))
    return snapshot / "model.safetensors"


def test_imagenet_weights_come_from_the_hubs_cache(hub: Path) -> None:
    weights, path = locate("imagenet", "resnet18")
    assert weights.name == "imagenet"
    assert len(weights.sha256) == 64
    assert Path(path).samefile(hub)
    file_weights, _ = locate(str(hub), "resnet18")
    assert file_weights.sha256 == weights.sha256
    with pytest.raises(ConfigError, match="imagenet for resnet34 is not in the local cache"):
        locate("imagenet", "resnet34")


def test_without_a_network_it_is_said_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setattr("harness.weights.reachable", lambda _: False)
    with pytest.raises(ConfigError, match="the hub cannot be reached; where there is a network run `hf download"):
        locate("imagenet", "resnet18")


@pytest.mark.parametrize("name", ["teacher.pth", "it's a teacher.pt"])
def test_a_pickle_is_named_and_the_line_that_converts_it_works(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save(Teacher("resnet18").trunk.state_dict(), name)
    with pytest.raises(ConfigError, match="is a pickle of PyTorch") as refused:
        locate(name, "resnet18")
    command, made = re.search(r"once with (python -c .*) and write weights: (.*)$", str(refused.value)).groups()
    subprocess.run(f"{sys.executable}{command.removeprefix('python')}", shell=True, check=True)
    assert locate(made, "resnet18")[0].sha256


def test_the_path_behind_a_variable_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("THERE", "/gone/weights")
    with pytest.raises(ConfigError, match=r"'\$THERE' is not possible \(no file /gone/weights\)"):
        locate("$THERE", "resnet18")


def test_random_weights_need_no_file() -> None:
    assert locate("random", "resnet50")[1] is None
