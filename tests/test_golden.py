"""Golden numbers and ids.

When a change moves a number, raise the REVISION that the message names. When an id moves though no number did, finished
runs of users would run again: find another way.
"""

import dataclasses

import pytest
import torch

from dskd import Distiller, get_method
from dskd.methods import METHODS, REVISION
from harness.run.learner import make_optimizers
from harness.spec import BENCH_REVISION, METRIC_REVISION, BenchSpec, Data, EvaluateSpec, TrainSpec, Weights

# At REVISION 1: loss of the first and third step of the recipe's optimizer, then the mean and the maximum of the map.
NUMBERS = {
    "dskd": (3.0246, 2.034, 2.0563, 2.362),
    "stfpm": (2.5931, 2.1662, 0.022735, 0.061118),
    "reverse_distillation": (1.7283, 1.3344, 0.93566, 1.2244),
    "smaller_student": (6.0274, 0.99489, 0.023566, 0.16146),
    "different_family_student": (6.025, 5.6128, 3.5238, 5.3487),
    "two_students": (3.0285, 1.923, 2.0147, 2.286),
    "student_ensemble": (9.0563, 8.3483, 1.255, 1.4284),
}
# At REVISION 1, METRIC_REVISION 1 and BENCH_REVISION 2: ids of a training, its evaluation and its bench.
IDS = {
    "dskd": ("5971c404b9d4edad", "eff10cdd7e317969", "3035c56fb0bca778"),
    "stfpm": ("c3cf13599ece6589", "91e4d0c7bface7be", "8b63fb6454fb5cf0"),
    "reverse_distillation": ("147e99220987a990", "821787617a70ac98", "53a584e22d0be74c"),
    "smaller_student": ("c459e94e34911487", "2151dd95d2183984", "72102989590629d1"),
    "different_family_student": ("33a918a8a21c68f3", "78da0ce9d976834f", "10fac77e3a0050da"),
    "two_students": ("a4d4def7bf0a8b80", "24c5883106ae56b8", "5b0d1a1a03f2fd32"),
    "student_ensemble": ("767122f2744438c9", "839398274468d676", "5c981a6cb7b4b74a"),
}


@pytest.mark.parametrize("name", METHODS)
def test_numbers(name: str) -> None:
    assert REVISION == 1, "the revision was raised: write the new numbers here"
    torch.manual_seed(0)
    model = Distiller(get_method(name), "resnet18")
    images = torch.randn(4, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    (optimizer,) = make_optimizers(model.students, model.method.train)
    losses = []
    for _ in range(3):
        loss = model.loss(images)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    with torch.inference_mode():
        maps = model.eval().anomaly_map(images)
    found = losses[0], losses[2], maps.mean().item(), maps.max().item()
    # Loose enough for another processor's rounding, tight enough for any change of a formula.
    assert found == pytest.approx(NUMBERS[name], rel=0.02), "numbers moved: raise dskd.methods.REVISION"


def test_ids_of_a_category_whose_halves_are_known_apart() -> None:
    """Without `test_manifest` they are those of records from before, of which the ids above are."""
    data = Data("mtd", "magnetic_tile", "0" * 16, test_manifest="1" * 16)
    method = get_method("stfpm")
    train = TrainSpec(method, "resnet18", Weights("a file", "f" * 64), data, seed=1)
    along = TrainSpec(method, "resnet18", Weights("a file", "f" * 64), data, seed=1, evaluate_at=(2,))
    assert train.id == IDS["stfpm"][0]
    assert (EvaluateSpec(train, method.map).id, along.id) == ("34b7964b87cf0586", "2cd389e82714d6a4")


@pytest.mark.parametrize("name", METHODS)
def test_ids(name: str) -> None:
    method = get_method(name)
    train = TrainSpec(method, "resnet18", Weights("a file", "f" * 64), Data("mtd", "magnetic_tile", "0" * 16), seed=1)
    bench = BenchSpec(method, "resnet18", 256, "auto", "a device", 2)
    found = train.id, EvaluateSpec(train, method.map).id, bench.id
    assert (METRIC_REVISION, BENCH_REVISION) == (1, 2), "the revision was raised: write the new ids here"
    assert found == IDS[name]
    train, bench = dataclasses.replace(train, image_size=(256, 256)), dataclasses.replace(bench, image_size=(256, 256))
    assert (train.id, EvaluateSpec(train, method.map).id, bench.id) == IDS[name]
