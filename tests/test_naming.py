"""What a run is called, as a spec and as records hold one."""

from dskd.config import to_mapping
from dskd.methods import get_method
from harness.naming import labels_of, title, title_of
from harness.spec import BenchSpec, Data, EvaluateSpec, TrainSpec, Weights


def test_a_spec_and_its_record_have_one_name() -> None:
    method = get_method("stfpm", "common")
    train = TrainSpec(method, "resnet18", Weights(), Data("mtd", "tile", "m"), seed=3)
    bench = BenchSpec(method, "resnet18", 256, "auto", "a device", 2)
    assert title(train) == title(to_mapping(train)) == "stfpm (common) resnet18 mtd/tile seed 3"
    assert title(to_mapping(EvaluateSpec(train, method.map))) == title(train)
    assert title(bench) == title(to_mapping(bench)) == "stfpm (common) resnet18"
    assert labels_of(to_mapping(train)) == labels_of(train)
    assert title_of("dskd") == "dskd"


def test_of_an_attempt_that_knows_little() -> None:
    assert title({}) == "? ?"
    assert title({"seed": 1, "backbone": "resnet18"}) == "? resnet18"
    assert title({"train": {"method": {"name": "dskd"}, "data": {"name": "a", "category": "b"}}}) == "dskd ? a/b"
