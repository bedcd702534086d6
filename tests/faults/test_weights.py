"""Weights that no run could use are refused by the plan, in one line. Rows: faults.md, area I and section 16."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from dskd import Teacher
from dskd.config import ConfigError
from harness.data.catalog import DataError
from harness.files import cache_folder
from harness.spec import digest
from harness.weights import locate
from tests.faults.commands import refusal
from tests.faults.denial import as_anyone

WriteGrid = Callable[..., Path]


@pytest.fixture
def weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Sound weights of a resnet18, in a cache and a folder of their own."""
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "weights.safetensors"
    save_file(Teacher("resnet18").trunk.state_dict(), path)
    return path


def spoil(path: Path, key: str, value: float) -> None:
    state = {**Teacher("resnet18").trunk.state_dict(), "fc.weight": torch.zeros(1000, 512)}
    state[key] = state[key].clone()
    state[key].view(-1)[0] = value
    save_file(state, path)


@pytest.mark.parametrize(
    ("key", "value"),
    [("layer2.0.conv1.weight", float("nan")), ("bn1.running_var", float("inf")), ("conv1.weight", float("-inf"))],
)
def test_values_that_are_not_finite(
    key: str, value: float, weights: Path, tree: Path, write_grid: WriteGrid, monkeypatch: pytest.MonkeyPatch
) -> None:
    grid = write_grid(tree, defaults={"weights": str(weights)})
    spoil(weights, key, value)
    assert f"weights: {weights} has values that are not finite in {key};" in refusal("plan", "--grid", grid)


def test_values_that_the_teacher_does_not_have_do_not_count(weights: Path) -> None:
    spoil(weights, "fc.weight", float("nan"))
    assert locate(str(weights), "resnet18")[0].sha256


def test_what_an_earlier_version_checked_is_checked_again(weights: Path) -> None:
    import hashlib

    spoil(weights, "conv1.weight", float("nan"))
    known = digest([hashlib.sha256(weights.read_bytes()).hexdigest(), "resnet18"])
    (cache_folder("weights") / f"{known}.txt").write_text("checked")
    with pytest.raises(ConfigError, match="not finite"):
        locate(str(weights), "resnet18")


def test_weights_exchanged_after_the_plan(weights: Path) -> None:
    """Of equal size and time, so that only the content tells."""
    from harness.weights import check_unchanged

    found, path = locate(str(weights), "resnet18")
    check_unchanged(Path(path), found)
    like = weights.stat()
    spoil(weights, "conv1.weight", 1.0)
    os.truncate(weights, like.st_size)
    os.utime(weights, ns=(like.st_atime_ns, like.st_mtime_ns))
    with pytest.raises(DataError, match="changed since it was planned; run the grid again"):
        check_unchanged(Path(path), found)
    with pytest.raises(ConfigError, match="not a readable safetensors file"):
        locate(str(weights), "resnet18")


@pytest.mark.parametrize("content", ["", "0" * 63, "g" * 64])
def test_a_damaged_hash_is_made_again(content: str, weights: Path) -> None:
    found, _ = locate(str(weights), "resnet18")
    (store,) = cache_folder("hashes").iterdir()
    store.write_text(content)
    assert locate(str(weights), "resnet18")[0] == found


@pytest.mark.parametrize(
    ("make", "words"),
    [
        pytest.param(Path.mkdir, "is not a file", id="folder"),
        pytest.param(os.mkfifo, "is not a file", id="pipe"),
        pytest.param(lambda path: path.symlink_to(path.name), "Too many levels of symbolic links", id="link-loop"),
        pytest.param(lambda path: (path.write_text("x"), path.chmod(0)), "Permission denied", id="may-not-be-read"),
    ],
)
def test_paths_that_are_no_file(
    make: Callable[[Path], object], words: str, weights: Path, tree: Path, write_grid: WriteGrid
) -> None:
    weights.unlink()
    make(weights)
    with as_anyone():
        line = refusal("plan", "--grid", write_grid(tree, defaults={"weights": str(weights)}))
    assert str(weights) in line
    assert words in line


def test_a_path_that_is_too_long(weights: Path) -> None:
    with pytest.raises(ConfigError, match="File name too long"):
        locate(f"/tmp/{'x' * 300}", "resnet18")


def test_a_run_whose_weights_were_exchanged_fails_for_its_data(weights: Path) -> None:
    """Beyond the list: the file is another one when the worker loads it than when the plan hashed it."""
    from harness.run.warm import Warm

    found, _ = locate(str(weights), "resnet18")
    spoil(weights, "conv1.weight", 1.0)
    with pytest.raises(DataError, match="changed since it was planned"):
        Warm().teacher("resnet18", str(weights), found, torch.device("cpu"))
