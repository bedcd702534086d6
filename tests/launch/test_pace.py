"""How long work takes: what records tell of other sizes, batches, lengths and backbones."""

import dataclasses
import itertools
import random
from pathlib import Path

import pytest

from dskd import get_method, replace
from dskd.config import to_mapping
from harness.data.catalog import get_source
from harness.grid import Training
from harness.launch.pace import PRIOR, Amount, Pace, Seen, estimate_s, fit, learn, learn_from, prior, training
from harness.records import Record, Results
from harness.spec import Data, EvaluateSpec, TrainSpec, Weights

METHODS = ("stfpm", "reverse_distillation", "dskd")


def spec(method: str, backbone: str, size: int, batch: int, epochs: int, images: int) -> TrainSpec:
    chosen = replace(get_method(method), {"train.epochs": epochs, "train.batch_size": batch})
    data = Data("a", "b", "c", train_images=images, test_images=20)
    return TrainSpec(chosen, backbone, Weights(), data, image_size=size)


def grid(backbones: tuple[str, ...], sizes: tuple[int, ...], batch: int, epochs: int, images: int) -> list[TrainSpec]:
    axes = itertools.product(METHODS, backbones, sizes)
    return [spec(method, backbone, size, batch, epochs, images) for method, backbone, size in axes]


def test_the_work_of_a_training_is_that_of_its_pixels_and_its_steps() -> None:
    square = spec("dskd", "resnet18", 256, 2, 10, 8)
    strip = dataclasses.replace(square, image_size=(128, 512))
    assert training(strip) == training(square)
    assert training(dataclasses.replace(strip, crop=128)).gmac == training(square).gmac / 4
    larger = training(spec("dskd", "resnet18", 256, 4, 10, 8))  # a batch of twice the images: half the steps
    assert larger == Amount(training(square).operations / 2, training(square).gmac)


@pytest.mark.parametrize(
    ("method", "size", "batch", "ms"),
    [("stfpm", 256, 32, 9.578), ("dskd", 256, 16, 21.025), ("stfpm", 128, 32, 9.9), ("dskd", 128, 16, 19.273)],
)
def test_before_any_record_a_step_takes_what_it_took_on_an_h100(method: str, size: int, batch: int, ms: float) -> None:
    """benchmarks/results/gpu-nvidia-h100-80gb-hbm3.md, eager steps: nearly the same at a quarter of the pixels."""
    one = replace(get_method(method), {"train.epochs": 1, "train.batch_size": batch, "train.select": "last"})
    data = Data("a", "b", "c", train_images=100 * batch)
    seconds = PRIOR["cuda"].seconds(training(TrainSpec(one, "resnet18", Weights(), data, image_size=size)))
    assert 10 * seconds == pytest.approx(ms, rel=0.15)


@pytest.mark.parametrize("kind", ["cpu", "cuda"])
def test_a_second_grid_is_foretold_from_the_first_within_30_percent(kind: str) -> None:
    """A machine with a host and a device of its own speeds, each trunk of another efficiency, and runs that vary: other
    sizes, batches and lengths.
    """
    draw = random.Random(0)
    truth = {
        "cuda": {"resnet18": Pace(60e-6, 9_000.0, True), "tf_efficientnet_lite0": Pace(60e-6, 700.0, True)},
        "cpu": {"resnet18": Pace(300e-6, 250.0, False), "tf_efficientnet_lite0": Pace(90e-6, 12.0, False)},
    }[kind]

    def measured(one: TrainSpec) -> float:
        return truth[one.backbone].seconds(training(one)) * draw.uniform(0.93, 1.08)

    first = grid(tuple(truth), (64, 256), 8, 5, 40)
    paces = learn_from([Seen(one, training(one), measured(one)) for one in first], PRIOR[kind])
    for one in grid(tuple(truth), (96, 192, 320), 16, 50, 200):
        assert paces.of(one).seconds(training(one)) == pytest.approx(measured(one), rel=0.3), one


def test_an_outlier_moves_little_and_what_records_do_not_tell_stays() -> None:
    host_bound = [spec("dskd", "resnet18", size, 16, 5, 160) for size in (64, 64, 96, 96, 128)]
    seen = [Seen(one, training(one), training(one).operations * 40e-6) for one in host_bound]
    seen.append(Seen(host_bound[0], training(host_bound[0]), 20 * seen[0].seconds))  # beside somebody else's work
    pace = fit(seen, PRIOR["cuda"])
    assert pace.host_s == pytest.approx(40e-6, rel=0.1)
    assert pace.rate == pytest.approx(PRIOR["cuda"].rate, rel=0.1)  # the device never decided
    assert fit([], PRIOR["cuda"]) == PRIOR["cuda"]


def test_a_backbone_without_records_is_foretold_from_those_of_its_kind() -> None:
    true = {"resnet18": Pace(200e-6, 200.0, False), "tf_efficientnet_lite0": Pace(60e-6, 12.0, False)}
    done = grid(tuple(true), (64, 128), 8, 5, 40)
    paces = learn_from(
        [Seen(one, training(one), true[one.backbone].seconds(training(one))) for one in done], PRIOR["cpu"]
    )
    for new, known in (("resnet34", "resnet18"), ("tf_efficientnet_lite1", "tf_efficientnet_lite0")):
        one = spec("stfpm", new, 128, 8, 5, 40)
        assert paces.of(one).seconds(training(one)) == pytest.approx(true[known].seconds(training(one)), rel=0.1)


def test_records_of_the_folder_are_learnt_from_and_those_of_other_devices_are_not(tmp_path: Path) -> None:
    one = spec("stfpm", "resnet18", 64, 8, 5, 40)
    amount = training(one, 30, 10)  # the data set brought images of its own to hold out
    result = {"train_s": 500 * PRIOR["cpu"].seconds(amount), "device_type": "cpu", "train_images": 30}
    result |= {"held_out_images": 10, "epochs": 5, "loss_first": 1.0, "loss_last": 0.5, "images_per_s": 1.0}
    results = Results(tmp_path)
    results.publish(Record("train", one.id, to_mapping(one), result, {}, "2026-01-01T00:00:00+00:00", 1.0))
    assert learn(results, "cpu").of(one).seconds(amount) == pytest.approx(result["train_s"], rel=0.1)
    assert learn(results, "cuda") == prior("cuda")


def test_what_is_done_takes_no_time_and_a_slower_machine_more() -> None:
    one = spec("dskd", "resnet18", 128, 8, 5, 40)
    variants = tuple(EvaluateSpec(one, one.method.map, score) for score in ("max", "mean"))
    run = Training(one, variants, get_source({"name": "surfaces"}), None)
    paces = prior("cpu")
    whole, evaluation = estimate_s(run, paces), estimate_s(run, paces, {one.id})
    nothing = estimate_s(run, paces, {one.id, *(variant.id for variant in variants)})
    assert nothing < evaluation < whole
    assert estimate_s(run, paces.slower(2.0)) > 1.8 * whole
