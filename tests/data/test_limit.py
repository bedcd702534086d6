"""A smoke run of few images: which ones, and that its numbers stand apart from those of all."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dskd.config import ConfigError
from harness.data import images
from harness.data.catalog import Sample, get_source, limited
from harness.data.manifest import describe
from harness.grid import expand, resolve
from harness.gridfile import parse, read_grid
from harness.leaderboard.frame import load
from harness.leaderboard.table import boards
from harness.records import Results
from tests.conftest import SURFACES, write_mvtec
from tests.faults.commands import harness, refusal

WriteGrid = Callable[..., Path]
CLASSES = [("train", "good"), ("val", "good"), ("test", "good"), ("test", "hole"), ("test", "cut")]


@settings(derandomize=True)
@given(st.lists(st.sampled_from(CLASSES), max_size=60), st.integers(1, 20))
def test_at_most_so_many_of_each_class_in_their_order(classes: list[tuple[str, str]], limit: int) -> None:
    samples = [Sample(f"{i}.png", *each) for i, each in enumerate(classes)]
    chosen = limited(samples, limit)
    assert Counter((each.split, each.defect) for each in chosen) == {
        each: min(count, limit) for each, count in Counter(classes).items()
    }
    assert chosen == [each for each in samples if each in chosen]


def test_those_of_one_object_are_not_all_that_is_chosen() -> None:
    samples = [Sample(f"{i:02d}.png", "train", group=f"tile {i // 6}") for i in range(60)]
    assert len({each.group for each in limited(samples, 5)}) == 5


@pytest.mark.parametrize("name", ["folder", "surfaces"])
def test_a_limit_is_a_protocol_of_its_own(name: str, tmp_path: Path) -> None:
    folder = {"name": name, "root": str(write_mvtec(tmp_path, "granite", 12))}
    entry = SURFACES | {"test_per_defect": 3} if name == "surfaces" else folder
    source = get_source(entry | {"limit": 2})
    limited_data, whole = describe(source, "granite"), describe(get_source(entry), "granite")
    assert limited_data.train_images == 2
    assert dict(limited_data.options)["limit"] == "2"
    assert "limit" not in dict(whole.options)
    more = describe(get_source(entry | {"limit": 1000}), "granite")  # that cuts nothing
    for half in ("manifest", "test_manifest"):
        assert len({getattr(data, half) for data in (limited_data, whole, more)}) == 3
    category = images.load(source, limited_data, 32)
    assert len(category.train.images) == 2
    assert Counter(sample.defect for sample in category.test.samples).most_common()[-1][1] == 2


def test_the_lower_one_of_grid_and_data_set_counts(write_grid: WriteGrid, tree: Path) -> None:
    for own, of_grid, counts in ((3, None, 3), (3, 2, 2), (2, 3, 2), (None, 4, 4)):
        dataset = {"name": "folder", "root": str(tree)} | ({"limit": own} if own else {})
        sections = {"limit": of_grid} if of_grid else {}
        grid = read_grid(write_grid(tree, axes={"dataset": [dataset]}, **sections))
        (training,) = expand(grid, resolve(grid, "cpu")).trainings
        assert training.spec.data.train_images == counts


@pytest.mark.usefixtures("without_workers")
def test_a_smoke_run_stands_in_no_table_of_the_whole(write_grid: WriteGrid, tree: Path, tmp_path: Path) -> None:
    out, grid = tmp_path / "runs", write_grid(tree)
    for options in ([], ["--limit", 2]):
        done = harness("run", grid, "--out", out, "--devices", "cpu", *options)
        assert done.code == 0, done
    (board,) = boards(load([out / "tiny-limit2"]))
    assert board.shared["data.limit"] == "2"
    assert "data.limit" not in boards(load([out / "tiny"]))[0].shared
    for record in Results(out / "tiny-limit2"):  # as if both had been run in one folder
        Results(out / "tiny").publish(record)
    with pytest.raises(ConfigError, match=r"mixed protocols: data.limit is not set and 2; write --where"):
        boards(load([out / "tiny"]))


@pytest.mark.parametrize("limit", [0, 1, -3, "two", 2.5])
def test_limits_that_are_none(limit: object, write_grid: WriteGrid, tree: Path) -> None:
    grid = write_grid(tree)
    if isinstance(limit, int):
        assert f"--limit: {limit} is not possible; write 2 or more" in refusal("plan", grid, "--limit", limit)
    with pytest.raises(ConfigError, match=f"limit: '?{limit}'? is not possible"):
        parse({"name": "x", "axes": {"method": "dskd", "backbone": "resnet18", "dataset": "mtd"}, "limit": limit})
