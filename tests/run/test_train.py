"""Training inside a worker: the same numbers whatever is cached, selection by held-out normals, divergence."""

import copy
import dataclasses
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from dskd import Distiller, Teacher, get_method, replace
from harness.run.batches import to_images, whole_batches
from harness.run.device import Device, open_device
from harness.run.evaluate import inspect
from harness.run.features import TeacherFeatures
from harness.run.learner import Average, Learner, make_optimizers, scheduler
from harness.run.train import DivergedError, Epoch, mean_map, train
from harness.spec import Data, EvaluateSpec, TrainSpec, Weights
from tests.run.small import SMALL

PIXELS = torch.randint(256, (11, 64, 64, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.fixture(params=["fp32", "bf16"])
def device(request: pytest.FixtureRequest) -> Iterator[Device]:
    threads = torch.get_num_threads()
    yield open_device("cpu", request.param)
    torch.set_num_threads(threads)


def spec(method: str = "stfpm", seed: int = 0, backbone: str = "resnet18", **values: object) -> TrainSpec:
    changes = {key.replace("__", "."): value for key, value in values.items()}
    recipe = replace(get_method(method), {"train.epochs": 2, "train.batch_size": 4} | changes)
    return TrainSpec(recipe, backbone, Weights(), Data("x", "y", "z"), seed, image_size=64)


def trained(
    run: TrainSpec, device: Device, keep: str = "device", held_out: int = 0, **options: object
) -> tuple[Distiller, list[Epoch], int]:
    torch.manual_seed(run.seed)
    model = Distiller(run.method, run.backbone, Teacher(run.backbone))
    model.to(device.place, memory_format=torch.channels_last)
    budgets = {"device": 0.0, "host": 0.0} | {keep: 1e9}
    features = TeacherFeatures(model.teacher, PIXELS, run.method.train.batch_size, device, budgets)
    assert features.kept == keep
    positions = np.arange(len(PIXELS))
    chosen, held = positions[: len(PIXELS) - held_out], positions[len(PIXELS) - held_out :]
    learner = Learner(model, run, device, len(chosen))
    curve, kept = train(learner, features, chosen, held, lambda *_: None, **options)
    return model, curve, kept


def same(first: Distiller, second: Distiller) -> bool:
    pairs = zip(first.students.state_dict().values(), second.students.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


def assert_kept_features_are_recomputed_ones(device: Device, backbone: str, side: int, batch: int) -> None:
    """In a whole and in an incomplete batch, in another order than they were kept in."""
    pixels = np.random.default_rng(0).integers(256, size=(2 * batch + 3, side, side, 3), dtype=np.uint8)
    teacher = Teacher(backbone).to(device.place, memory_format=torch.channels_last)
    order, found = np.random.default_rng(0).permutation(len(pixels)), {}
    for keep in ("recomputed", "device", "host"):
        budgets = {"device": 0.0, "host": 0.0} | {keep: 1e12}
        features = TeacherFeatures(teacher, torch.from_numpy(pixels).to(device.place), batch, device, budgets)
        assert features.kept == keep
        found[keep] = [scale for positions in (order[:batch], order[-3:]) for scale in features[positions]]
    for keep in ("device", "host"):
        assert all(map(torch.equal, found[keep], found["recomputed"])), keep


@pytest.mark.parametrize(("backbone", "batch"), [("resnet18", 4), ("wide_resnet50_2", 5)])
def test_kept_features_are_recomputed_ones(backbone: str, batch: int, device: Device) -> None:
    assert_kept_features_are_recomputed_ones(device, backbone, 32, batch)


@pytest.mark.parametrize(("height", "width"), [(64, 64), (32, 64)])
def test_the_mean_map_is_that_of_all_positions(height: int, width: int) -> None:
    device, run = open_device("cpu", "fp32"), dataclasses.replace(spec(), image_size=(height, width))
    torch.manual_seed(0)
    model, pixels = Distiller(run.method, "resnet18", Teacher("resnet18")).eval(), PIXELS[:, :height, :width]
    features = TeacherFeatures(model.teacher, pixels, run.method.train.batch_size, device)
    with torch.inference_mode():
        expected = model.anomaly_map(to_images(pixels[:6])).mean().item()
    assert mean_map(model, run, features, np.arange(6), device) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(
    ("method", "backbone"), [("stfpm", "resnet18"), ("dskd", SMALL), ("reverse_distillation", SMALL)]
)
def test_the_teacher_cache_cannot_change_a_number(method: str, backbone: str, device: Device) -> None:
    run = spec(method, backbone=backbone, train__select="last")
    cached, curve, _ = trained(run, device)
    for keep in ("host", "recomputed"):
        other, again, _ = trained(run, device, keep)
        assert same(cached, other)
        assert [epoch.loss for epoch in curve] == [epoch.loss for epoch in again]


def test_the_seed_decides() -> None:
    device = open_device("cpu", "fp32")
    first, second = (
        trained(spec(seed=seed, backbone=SMALL, train__epochs=1, train__select="last"), device)[0] for seed in (0, 1)
    )
    assert not same(first, second)


def test_the_epoch_with_the_lowest_map_on_held_out_normals_is_kept() -> None:
    device = open_device("cpu", "fp32")
    model, curve, kept = trained(spec(backbone=SMALL, train__epochs=4, train__lr=0.05), device, held_out=3)
    maps = [epoch.held_out_map for epoch in curve]
    assert kept == 1 + int(np.argmin(maps))
    batch = to_images(PIXELS[-3:])
    with torch.inference_mode():
        assert model.anomaly_map(batch).mean().item() == pytest.approx(min(maps), rel=1e-4)
    *_, last = trained(spec(backbone=SMALL, train__select="last"), device)
    assert last == 2


def test_metrics_along_a_training_change_nothing_and_see_the_epochs_model() -> None:
    device = open_device("cpu", "fp32")
    run, seen = spec(backbone=SMALL, train__select="last", train__epochs=3), {}
    plain, *_ = trained(run, device)
    along = dataclasses.replace(run, evaluate_at=(2, 3))
    watched, *_ = trained(along, device, along=lambda epoch, settle: seen.update({epoch: mean_of_maps(settle())}))
    assert same(plain, watched)
    assert list(seen) == [2, 3]
    assert seen[3] == mean_of_maps(watched) != seen[2]


def mean_of_maps(model: Distiller) -> float:
    model.students.eval()
    with torch.inference_mode():
        return model.anomaly_map(to_images(PIXELS)).mean().item()


def test_the_average_of_the_students_is_what_is_kept() -> None:
    device = open_device("cpu", "fp32")
    states = []
    for epochs in (1, 2):  # one step an epoch
        recipe = {"backbone": SMALL, "train__select": "last", "train__batch_size": 11, "train__epochs": epochs}
        states.append(trained(spec(**recipe), device)[0].students.state_dict())
    averaged = trained(spec(**recipe, train__ema=0.75), device)[0].students.state_dict()
    for key in ("encoder.trunk.conv1.weight", "encoder.trunk.bn1.running_mean"):
        torch.testing.assert_close(averaged[key], 0.75 * states[0][key] + 0.25 * states[1][key])


def test_the_average_is_torchs_bit_for_bit_and_takes_over_its_checkpoints() -> None:
    torch.manual_seed(0)
    students = Distiller(get_method("dskd"), SMALL).students.to(memory_format=torch.channels_last)
    theirs = AveragedModel(students, multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=True)
    ours = Average(students, 0.9)
    for step in range(8):
        with torch.no_grad():
            for tensor in students.state_dict().values():
                tensor.add_(torch.randn_like(tensor) if tensor.is_floating_point() else 1)
        theirs.update_parameters(students)
        ours.update(students)
        if step in (0, 3):  # resumed from what either has saved
            saved = copy.deepcopy((theirs if step else ours).state_dict())
            ours = Average(students, 0.9)
            ours.load_state_dict(saved)
    counters = {key for key, value in students.state_dict().items() if not value.is_floating_point()}
    expected, found = theirs.state_dict(), ours.state_dict()
    assert list(found) == list(expected)
    for key, value in found.items():
        counter = key.removeprefix("module.") in counters
        assert torch.equal(value, students.state_dict()[key.removeprefix("module.")] if counter else expected[key])
    assert counters


@pytest.mark.parametrize(
    ("schedule", "expected"), [("cosine", [1, 0.798, 0.508, 0]), ("one_cycle", [0.04, 1, 0.812, 0])]
)
def test_schedules_of_the_learning_rate(schedule: str, expected: list[float]) -> None:
    recipe = replace(get_method("dskd").train, {"schedule": schedule, "lr": 1})
    (optimizer,) = make_optimizers(torch.nn.Linear(1, 1), recipe)
    steps = scheduler(optimizer, recipe, 101)
    rates = []
    for _ in range(101):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        steps.step() if len(rates) < 101 else None
    assert [rates[0], rates[30], rates[50], rates[-1]] == pytest.approx(expected, abs=0.01)
    assert optimizer.param_groups[0]["betas"] == (0.5, 0.999)


def test_clip_bounds_each_step_and_split_has_two_optimizers() -> None:
    device = open_device("cpu", "fp32")
    one_step = {"backbone": SMALL, "train__select": "last", "train__batch_size": 11, "train__epochs": 1}
    torch.manual_seed(0)
    before = Distiller(get_method("stfpm"), SMALL).students.state_dict()
    after = trained(spec(**one_step, train__clip=1e-3, train__weight_decay=0.0), device)[0].students
    moved = sum((p - before[name]).square().sum() for name, p in after.named_parameters()) ** 0.5
    assert moved.item() == pytest.approx(0.4 * 1e-3, rel=0.01)  # SGD's first step: lr times the clipped gradient
    students = Distiller(get_method("dskd"), SMALL).students
    sgd, adam = make_optimizers(students, replace(get_method("dskd").train, {"optimizer": "split"}))
    assert (type(sgd), sgd.param_groups[0]["lr"]) == (torch.optim.SGD, 0.4)
    assert (type(adam), adam.param_groups[0]["lr"]) == (torch.optim.Adam, 0.005)
    assert len(sgd.param_groups[0]["params"]) == len(list(students.encoder.parameters()))
    assert sum(len(o.param_groups[0]["params"]) for o in (sgd, adam)) == len(list(students.parameters()))
    trained(spec("dskd", **one_step, train__optimizer="split"), device)


def test_divergence_stops_the_run() -> None:
    run = spec("dskd", backbone=SMALL, train__optimizer="sgd", train__lr=1e30, train__epochs=5)
    with pytest.raises(DivergedError, match=r"the loss of epoch \d is"):
        trained(run, open_device("cpu", "fp32"))


def test_maps_do_not_depend_on_how_the_test_set_divides() -> None:
    device = open_device("cpu", "fp32")
    run = spec("dskd")
    model = Distiller(run.method, "resnet18")
    variants = [EvaluateSpec(run, run.method.map), EvaluateSpec(run, replace(run.method.map, {"sigma": 0}), "mean")]
    _, whole = inspect(model, PIXELS.numpy(), variants, 4, device, lambda *_: None, PIXELS.numpy())
    _, part = inspect(model, PIXELS.numpy()[:5], variants, 4, device, lambda *_: None, PIXELS.numpy())
    for all_, few in zip(whole, part, strict=True):
        assert np.array_equal(all_.maps[:5], few.maps)
        assert np.array_equal(all_.scores[:5], few.scores)
    assert np.allclose(whole[0].scores, whole[0].maps.max(axis=(1, 2)))
    assert np.allclose(whole[1].scores, whole[1].maps.mean(axis=(1, 2)))


def test_whole_batches_cover_everything_once() -> None:
    for count in (1, 4, 5, 11):
        batches = whole_batches(count, 4)
        assert all(len(positions) == 4 for positions, _ in batches)
        assert [p for positions, real in batches for p in positions[:real]] == list(range(count))
