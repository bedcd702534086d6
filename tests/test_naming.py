"""What a run is called, as a spec and as records hold one, and among the others of its grid."""

import itertools

import pytest

from dskd.config import ConfigError, to_mapping
from dskd.methods import get_method
from harness.grid import expand, resolve
from harness.gridfile import parse
from harness.naming import counted, labels_of, names_of, title, title_of
from harness.spec import BenchSpec, Data, EvaluateSpec, TrainSpec, Weights

SURFACES = {"name": "surfaces", "side": 64, "train": 4, "test_good": 2, "categories": ["granite"]}
GRID = {
    "name": "names",
    "axes": {
        "method": ["dskd", {"name": "dskd", "embedding.source": "teacher", "label": "with the teacher"}, "stfpm"],
        "backbone": [{"name": "resnet18", "label": "R18"}, "resnet34"],
        "dataset": [{**SURFACES, "label": "goods"}],
        "seed": [0, 1],
        "image_size": [64, 96],
    },
    "defaults": {"weights": "random"},
    "evaluate": [{}, {"map.sigma": 1.0, "label": "sharp"}, {"map.sigma": 2.0}],
    "bench": {"seconds": 0.1, "compile": [False, True]},
}


def test_a_spec_and_its_record_have_one_name() -> None:
    method = get_method("stfpm", "common")
    called = (("dataset", "tiles"),)
    train = TrainSpec(method, "resnet18", Weights(), Data("mtd", "tile", "m"), seed=3, called=called)
    bench = BenchSpec(method, "resnet18", 256, "auto", "a device", 2)
    assert title(train) == title(to_mapping(train)) == "stfpm (common) resnet18 tiles/tile seed 3"
    assert title(to_mapping(EvaluateSpec(train, method.map))) == title(train)
    assert title(bench) == title(to_mapping(bench)) == "stfpm (common) resnet18"
    assert labels_of(to_mapping(train)) == labels_of(train) == labels_of(train, called=True) | {"dataset": "mtd"}
    assert title_of("dskd") == "dskd"


def test_of_an_attempt_that_knows_little() -> None:
    assert title({}) == "? ?"
    assert title({"seed": 1, "backbone": "resnet18"}) == "? resnet18"
    assert title({"train": {"method": {"name": "dskd"}, "data": {"name": "a", "category": "b"}}}) == "dskd ? a/b"
    assert names_of([("1", {}), ("2", {"train": {}}), ("3", {})]) == {"1": "? ? [1]", "2": "? ?", "3": "? ? [3]"}


def test_a_name_tells_a_run_from_the_others_of_its_grid() -> None:
    grid = parse(GRID)
    plan = expand(grid, resolve(grid, "cpu"))
    for kind in ("train", "evaluate", "bench"):
        own = [plan.names[spec.id] for spec in plan.works() if spec.kind == kind]
        assert len(own) == len(set(own)) > 0
    assert names_of((spec.id, to_mapping(spec)) for spec in plan.works()) == plan.names
    first = plan.trainings[0]
    assert plan.names[first.spec.id] == "dskd R18 goods/granite seed 0 image_size=64"
    assert [plan.names[each.id].partition("64 ")[2] for each in first.evaluations] == ["", "sharp", "map.sigma=2"]
    assert "dskd R18 image_size=96 compile=True" in plan.names.values()
    assert "stfpm resnet34 goods/granite seed 1 image_size=96" in plan.names.values()
    assert plan.counted() == "24 runs (24 trainings, 72 evaluations), 24 measurements"
    assert counted(1, 0, 1, 0) == "1 run (1 training, 0 evaluations)"
    assert plan.counted({first.evaluations[0].id}) == "1 run (0 trainings, 1 evaluation)"


def test_labels_move_no_id() -> None:
    plain = {**GRID, "axes": GRID["axes"] | {"backbone": ["resnet18", "resnet34"], "dataset": [SURFACES]}}
    plain["axes"]["method"] = ["dskd", {"name": "dskd", "embedding.source": "teacher"}, "stfpm"]
    plain["evaluate"] = [{key: value for key, value in each.items() if key != "label"} for each in GRID["evaluate"]]
    with_labels, without = (expand(grid, resolve(grid, "cpu")) for grid in map(parse, (GRID, plain)))
    assert [spec.id for spec in with_labels.works()] == [spec.id for spec in without.works()]
    pairs = itertools.zip_longest(with_labels.works(), without.works())
    assert all(labels_of(one) == labels_of(other) for one, other in pairs)


@pytest.mark.parametrize(
    ("axes", "message"),
    [
        ({"method": ["stfpm", {"name": "dskd", "label": "stfpm"}]}, "method: the label 'stfpm' is the name of another"),
        (
            {"method": [{"name": "stfpm", "label": "ours"}, {"name": "dskd", "label": "ours"}]},
            "method: two entries are called 'ours'; write a label: of its own",
        ),
        ({"method": [{"name": "stfpm", "label": "a,b"}]}, "method: the label 'a,b' is not possible; write a text"),
        ({"backbone": [{"name": "resnet18", "label": 7}]}, "backbone: the label 7 is not possible; write a text"),
        ({"dataset": [{**SURFACES, "label": ""}]}, "dataset: the label '' is not possible; write a text"),
        ({"dataset": [{**SURFACES, "label": "mtd"}]}, "dataset: the label 'mtd' is the name of another"),
        (
            {"dataset": [{**SURFACES, "label": "a"}, {**SURFACES, "label": "b"}]},
            "dataset: one entry has two labels, 'a' and 'b'; write one",
        ),
    ],
)
def test_a_label_that_misleads_is_refused(axes: dict, message: str) -> None:
    with pytest.raises(ConfigError) as raised:
        resolve(parse(GRID | {"axes": GRID["axes"] | axes}), "cpu")
    assert str(raised.value).startswith(message)
    with pytest.raises(ConfigError, match="evaluate: two entries are called 'sharp'"):
        parse(GRID | {"evaluate": [{"label": "sharp"}, {"map.sigma": 1.0, "label": "sharp"}]})


def test_a_folder_is_called_as_its_root(tmp_path) -> None:
    from tests.conftest import write_mvtec

    first, second = (write_mvtec(tmp_path / name / "images", train=train) for name, train in (("a", 6), ("b", 7)))
    axes = {"method": "stfpm", "backbone": "resnet18", "dataset": [{"name": "folder", "root": str(first)}]}
    grid = parse({"name": "own", "axes": axes, "defaults": {"weights": "random", "image_size": 32}})
    plan = expand(grid, resolve(grid, "cpu"))
    assert next(iter(plan.names.values())) == "stfpm resnet18 images/cloth seed 0"
    assert labels_of(plan.trainings[0].spec)["dataset"] == "folder"
    two = [*axes["dataset"], {"name": "folder", "root": str(second)}]
    with pytest.raises(ConfigError, match=r"dataset: two entries are called 'images' \(.*a/images and .*b/images\)"):
        resolve(parse({"name": "own", "axes": axes | {"dataset": two}, "defaults": {"weights": "random"}}), "cpu")
    two[1] = two[1] | {"label": "others"}
    grid = parse({"name": "own", "axes": axes | {"dataset": two}, "defaults": {"weights": "random", "image_size": 32}})
    names = set(expand(grid, resolve(grid, "cpu")).names.values())
    assert {"stfpm resnet18 images/cloth seed 0", "stfpm resnet18 others/cloth seed 0"} <= names
