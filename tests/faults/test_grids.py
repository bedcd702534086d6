"""Grid files and options that cannot be meant: one line and exit code 2, before any work. Rows: faults.md, area F."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml

from dskd.config import ConfigError, coerce, quoted, suggest
from harness.gridfile import read_grid
from tests.faults.commands import harness, refusal

WriteGrid = Callable[..., Path]
SECONDS = 30


class HangError(BaseException):
    """No Exception: nothing that the command handles."""


@contextmanager
def within(seconds: int) -> Iterator[None]:
    """A hang becomes a failure, of the command that hangs and not of the whole suite."""

    def stop(*_: object) -> None:
        raise HangError(f"still at it after {seconds} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def bomb(item: str, anchored: str, base: str = "1") -> str:
    """Nine levels, each of ten aliases of the one before: 10^9 values from some hundred bytes."""
    lines = [f"l0: &a0 {base}"]
    for level in range(1, 10):
        lines.append(f"l{level}: &a{level} " + item.format(",".join([anchored.format(f"*a{level - 1}")] * 10)))
    return "\n".join(lines) + "\n"


BOMB = bomb("[{}]", "{}")
KEYS = bomb("{{{}}}", "{}").replace("*a", "k: *a")  # as values of one key: refused as written twice
MERGED = "l0: &a0 {x: 1}\n" + "".join(
    f"l{n}: &a{n}\n  <<: [{','.join([f'*a{n - 1}'] * 10)}]\n  k{n}: 1\n" for n in range(1, 10)
)

DOCUMENTS = [
    pytest.param(BOMB, "more than 100000 values", id="alias-bomb-beside-the-keys"),
    pytest.param(BOMB + "name: x\naxes: *a9\n", "more than 100000 values", id="alias-bomb-as-axes"),
    pytest.param(
        BOMB + "name: x\naxes: {method: [dskd], backbone: [resnet18], dataset: *a9}\n",
        "more than 100000 values",
        id="alias-bomb-as-dataset",
    ),
    pytest.param(BOMB + "name: *a9\n", "more than 100000 values", id="alias-bomb-as-name"),
    pytest.param(MERGED, "more than 100000 values", id="alias-bomb-of-merge-keys"),
    pytest.param("name: " + "9" * 5000, "5000 characters", id="integer-of-5000-digits"),
    pytest.param("name: x\naxes: &a {method: *a}", "names nothing that ended before it", id="alias-within-itself"),
    pytest.param("name: x\naxes: 2026-13-45", "is not YAML: month must be", id="no-date"),
    pytest.param("name: !!int x\n", "the tag 'tag:yaml.org,2002:int' is not possible", id="tag"),
    pytest.param("name: 0b_\n", "is not YAML: invalid literal", id="no-binary-number"),
    pytest.param("- " * 40_000 + "a", "more than 32 lists within each other", id="deep"),
    pytest.param("name: x\nname: y\n", "the key 'name' is written twice, line 1 and line 2; leave", id="key-twice"),
    pytest.param(
        "name: x\naxes: {a: [b}", "is not YAML: while parsing a flow sequence, line 2, col", id="no-file-in-it"
    ),
    pytest.param("x: " + "1:" * 3000 + "1\n", "6001 characters", id="number-to-the-base-60"),
    pytest.param("x" * 1_100_000, "is more than 1048576 bytes", id="large-file"),
]


@pytest.mark.parametrize(("text", "message"), DOCUMENTS)
def test_documents(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "grid.yaml"
    path.write_text(text)
    with within(SECONDS):
        assert message in refusal("plan", "--grid", path)


SECTIONS = [
    pytest.param({"axes": {"method": [{"name": ["stfpm"]}]}}, "method: the name ['stfpm']", id="method-name-a-list"),
    pytest.param(
        {"axes": {"dataset": [{"name": ["folder"]}]}}, "dataset: the name ['folder']", id="dataset-name-a-list"
    ),
    pytest.param({"evaluate": [{"aupro_limits": 5}]}, "aupro_limits: 5 is not possible", id="aupro-limits-a-number"),
    pytest.param(
        {"evaluate": [{"aupro_limits": ["a"]}]}, "aupro_limits: 'a' is not possible", id="aupro-limits-of-text"
    ),
    pytest.param({"name": ".."}, "name: '..' is not possible", id="name-of-the-working-folder"),
    pytest.param({"name": "."}, "name: '.' is not possible", id="name-of-the-results-folder"),
    pytest.param({"name": ".hidden"}, "name: '.hidden' is not possible", id="name-hidden"),
    pytest.param({"name": "n" * 300}, "name: 'nnn", id="name-too-long-for-a-folder"),
    pytest.param({"axes": {"seed": [2**64]}}, "seed: 18446744073709551616 is not possible", id="seed-too-large"),
    pytest.param({"axes": {"seed": [-(2**63) - 1]}}, "seed: -9223372036854775809 is not", id="seed-too-small"),
    pytest.param({"axes": {"dataset": [5]}}, "dataset: 5 is not possible", id="dataset-a-number"),
    pytest.param({"axes": {"method": [["stfpm"]]}}, "method: ['stfpm'] is not possible", id="method-a-list"),
    pytest.param({"save": {1: 2}}, "unknown key 'save.1'", id="key-a-number"),
    pytest.param({"save": {"maps": 10**30}}, "save.maps: 1000", id="maps-too-many"),
    pytest.param({"defaults": {"image_size": 10**30}}, "image_size: 1000", id="image-size-30-digits"),
    pytest.param(
        {"defaults": {"image_size": 3_200_000}}, "image_size: 3200000 is not possible", id="image-size-absurd"
    ),
    pytest.param({"defaults": {"image_size": -32}}, "image_size: -32 is not possible", id="image-size-negative"),
    pytest.param({"defaults": {"image_size": [256]}}, "write a whole number or [HEIGHT, WIDTH]", id="one-side"),
    pytest.param({"defaults": {"image_size": [256, 640, 3]}}, "image_size: [256, 640, 3] is not", id="three-sides"),
    pytest.param({"defaults": {"image_size": [256, "x"]}}, "image_size: [256, 'x'] is not possible", id="side-a-text"),
    pytest.param({"defaults": {"image_size": [256, 0]}}, "image_size: [256, 0] is not possible", id="side-of-0"),
    pytest.param({"defaults": {"image_size": "256x640"}}, "or [HEIGHT, WIDTH]", id="sides-as-tables-have-them"),
    pytest.param({"axes": {"image_size": [[250, 640]]}}, "multiple of 32; write [256, 640]", id="sides-of-no-decoder"),
    pytest.param({"defaults": {"crop": -32}}, "crop: -32 is not possible", id="crop-negative"),
    pytest.param({"defaults": {"train.epochs": 10**18}}, "train.epochs: 1000000000000000000 is", id="epochs-absurd"),
    pytest.param({"defaults": {"train.batch_size": 10**18}}, "batch_size: 1000000000000000000", id="batch-size-absurd"),
    pytest.param({"defaults": {"eval.batch_size": 10**30}}, "eval.batch_size: 1000", id="eval-batch-size-absurd"),
    pytest.param(
        {"defaults": {"train.lr": 10**400}}, "is not YAML: a number of too many digits", id="rate-of-400-digits"
    ),
    pytest.param({"bench": {"batch_sizes": [10**12]}}, "bench.batch_sizes: [1000000000000]", id="bench-batch-absurd"),
    pytest.param({"defaults": {"image_size": ["x" * 4000] * 100}}, "image_size: ['xxx", id="a-long-value-is-shortened"),
    pytest.param(
        {"axes": {"seed": list(range(2000)), "train.lr": [n / 1000 for n in range(1, 1000)]}},
        "axes: they combine to 1,998,000 runs",
        id="more-runs-than-anyone-means",
    ),
]


@pytest.mark.parametrize("command", ["plan", "submit"])
@pytest.mark.parametrize(("sections", "message"), SECTIONS)
def test_values(sections: dict, message: str, command: str, write_grid: WriteGrid, tree: Path, tmp_path: Path) -> None:
    options = ["--out", tmp_path / "runs", *(["--dry-run"] if command == "submit" else [])]
    with within(SECONDS):
        assert message in refusal(command, "--grid", write_grid(tree, **sections), *options)
    assert not (tmp_path / "runs").exists()


def test_a_name_of_dots_writes_over_nothing(
    write_grid: WriteGrid, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`harness run` used to replace the user's own grid.yaml by the grid that it was given."""
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    Path("grid.yaml").write_text("mine")
    assert "name: '..'" in refusal("run", "--grid", write_grid(name=".."))
    assert Path("grid.yaml").read_text() == "mine"


def test_a_device_without_an_end() -> None:
    with within(SECONDS):
        assert "/dev/zero is more than 1048576 bytes" in refusal("plan", "--grid", "/dev/zero")


def test_a_pipe_is_read_once_and_its_bytes_are_kept(write_grid: WriteGrid) -> None:
    """`harness run --grid <(cat grid.yaml)` used to leave an empty grid.yaml beside the results."""
    content = b"# mine\n" + write_grid().read_bytes()
    reading, writing = os.pipe()
    os.write(writing, content)
    os.close(writing)
    try:
        grid = read_grid(Path(f"/dev/fd/{reading}"))
    finally:
        os.close(reading)
    assert (grid.name, grid.text) == ("tiny", content)


@pytest.mark.slow
def test_a_run_from_a_pipe_leaves_the_grid(write_grid: WriteGrid, tree: Path, tmp_path: Path) -> None:
    path, out = write_grid(tree), tmp_path / "runs"
    command = f"'{sys.executable}' -m harness run --grid <(cat '{path}') --out '{out}' --devices cpu"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (out / "tiny" / "grid.yaml").read_bytes() == path.read_bytes()


@pytest.mark.parametrize("seed", [-(2**63), -1, 0, 2**64 - 1])
def test_seeds_that_generators_take_stay_possible(seed: int, write_grid: WriteGrid, tree: Path, tmp_path: Path) -> None:
    done = harness("plan", "--grid", write_grid(tree, axes={"seed": [seed]}), "--out", tmp_path, "--list")
    assert done.code == 0, done.err
    assert f"seed {seed}" in done.out


DEVICES = [
    pytest.param("cpu:99999999999", id="workers-without-end"),
    pytest.param("cpu:" + "9" * 5000, id="workers-of-5000-digits"),
    pytest.param("cuda:" + "9" * 5000, id="a-gpu-of-5000-digits"),
]


@pytest.mark.parametrize("devices", DEVICES)
def test_devices(devices: str, write_grid: WriteGrid, tmp_path: Path) -> None:
    assert "--devices: " in refusal("run", "--grid", write_grid(), "--out", tmp_path / "runs", "--devices", devices)


def test_values_in_messages_are_short_whatever_they_are() -> None:
    assert quoted("a") == "'a'"
    assert len(quoted(["x" * 1000])) < 250
    assert quoted(10**5000) == "a very large int"
    nested: list = []
    nested.append(nested)
    assert quoted(nested) == "[[...]]"
    assert len(suggest("x" * 10**6, [f"category {n}" for n in range(10_000)])) < 1100
    with pytest.raises(ConfigError, match="lr: a very large int is not possible; write a number"):
        coerce(10**5000, float, "lr")


def test_limits_of_aupro_that_are_whole_numbers_keep_their_ids(write_grid: WriteGrid, tree: Path) -> None:
    """1 and 1.0 are two ids: results folders from before hold the first."""
    from harness.grid import expand, resolve

    ids = set()
    for limit in ("1", "1.0"):
        path = write_grid(tree, evaluate=[{"aupro_limits": [yaml.safe_load(limit)]}])
        grid = read_grid(path)
        ids.add(expand(grid, resolve(grid, "cpu")).trainings[0].evaluations[0].id)
    assert len(ids) == 2
