"""On a CUDA device: a run end to end, and the same promises as on a CPU."""

import dataclasses
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import ndimage

from dskd import Teacher
from dskd.anomaly_map import gaussian_filter
from harness.records import Results
from harness.run.checkpoint import Interrupted
from harness.run.device import open_device
from harness.run.execute import execute
from harness.run.graphed import WholeSteps
from harness.run.metrics import evaluate
from harness.run.train import train
from harness.run.warm import Warm
from tests.launch.test_run import records, run
from tests.run import test_graphed, test_passes
from tests.run.test_checkpoint import assert_same, go, job_of, recipe
from tests.run.test_metrics import example
from tests.run.test_train import PIXELS, assert_kept_features_are_recomputed_ones, same, spec, trained

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]


def test_a_grid_runs_on_the_gpu(tree: Path, write_grid: Callable[..., Path]) -> None:
    grid = write_grid(tree, defaults={"precision": "auto"}, bench={"batch_sizes": [1, 4], "seconds": 0.2})
    run(grid, "--devices", "cuda")
    (training,) = records(grid, "train").values()
    assert (training.result["device_type"], training.result["precision"]) == ("cuda", "bf16")
    assert training.result["peak_device_memory_mib"] > 0
    (bench,) = records(grid, "bench").values()
    assert bench.result["device"] == torch.cuda.get_device_name()


@pytest.mark.parametrize("precision", ["fp32", "tf32", "bf16"])
def test_the_teacher_cache_cannot_change_a_number(precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    device = open_device("cuda", precision)
    monkeypatch.setattr("tests.run.test_train.PIXELS", PIXELS.cuda())
    run_spec = spec("dskd", train__select="last")
    cached = trained(run_spec, device)[0]
    assert all(same(cached, trained(run_spec, device, keep)[0]) for keep in ("host", "recomputed"))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("batch", [16, 32])
@pytest.mark.parametrize("backbone", ["resnet18", "wide_resnet50_2"])
def test_kept_features_are_recomputed_ones(backbone: str, batch: int, precision: str) -> None:
    assert_kept_features_are_recomputed_ones(open_device("cuda", precision), backbone, 256, batch)


@pytest.mark.parametrize("ema", [0.0, 0.9])
@pytest.mark.parametrize("keep", ["device", "host", "recomputed"])
def test_the_host_waits_for_the_gpu_once_an_epoch(keep: str, ema: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.run.test_train.PIXELS", PIXELS.cuda())
    monkeypatch.setattr("tests.run.test_train.train", watched)
    device = open_device("cuda", "bf16")
    try:
        trained(spec("dskd", train__select="last", train__epochs=3, train__ema=ema), device, keep)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def watched(*args: Any, **options: Any) -> Any:
    """`train`, in which waiting is an error from an epoch's first step to its last; the first epoch warms up."""
    *args, _ = args
    steps_per_epoch = 3

    def report(step: int, _steps: int, epoch: object) -> None:
        within = step > steps_per_epoch and step % steps_per_epoch and epoch is None
        torch.cuda.set_sync_debug_mode("error" if within else "default")

    return train(*args, report, **options)


def test_smoothing_is_scipys_whatever_precision_the_networks_have() -> None:
    open_device("cuda", "tf32")
    maps = torch.rand(3, 96, 64, generator=torch.Generator().manual_seed(0))
    expected = np.stack([ndimage.gaussian_filter(one, 4) for one in maps.numpy()])
    np.testing.assert_allclose(gaussian_filter(maps.cuda(), 4).cpu().numpy(), expected, atol=1e-5)
    assert torch.backends.cuda.matmul.allow_tf32


def test_metrics_sorted_by_the_gpu_are_those_of_the_host() -> None:
    assert evaluate(**example(), place=torch.device("cuda")) == evaluate(**example())


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_compiled_steps_are_close_to_plain_ones(precision: str, tree: Path, write_grid: Callable[..., Path]) -> None:
    losses = []
    for compiled in (False, True):
        defaults = {"precision": precision, "train.epochs": 3, "train.batch_size": 4, "compile": compiled}
        run(write_grid(tree, defaults=defaults), "--devices", "cuda", "--force")
    for record in records(tree.parent / "grid.yaml", "train").values():
        losses.append(record.result["loss_last"])
        assert record.result["step"] == 2
        assert record.result["compiled"] is record.spec["compile"], record.result
        if record.result["compiled"]:
            assert (record.result["deterministic"], record.result["cudagraph_skips"]) == (True, 0)
            assert record.result["compiled_batches"] == [4]
    assert losses[0] == pytest.approx(losses[1], rel=0.05)


def test_on_a_gpu_a_worker_keeps_shapes_and_incomplete_batches(
    write_grid: Callable[..., Path], tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("harness.run.compiled.TAIL_PAYS", {"cuda": 1})
    recipe = {"train.batch_size": 4, "train.epochs": 2, "compile": True}
    found, warm = [], Warm()
    for seed, method in itertools.product((0, 1, 0), ("stfpm", "reverse_distillation")):
        grid = write_grid(tree, axes={"seed": [seed], "method": [method]}, defaults=recipe)
        job = dataclasses.replace(job_of(grid), device="cuda", force=True)
        execute(job, lambda *_: None, warm=warm)
        found.append(Results(Path(job.results)).record(job.spec.id).result)
    facts = [(result["compiled_batches"], result["graphs"], result["cudagraph_skips"]) for result in found]
    assert facts == [([4, 2], 2, 0)] * 6
    losses = [result["loss_last"] for result in found]
    assert losses[:2] == losses[4:]  # whatever was trained in between


def test_a_stopped_training_ends_with_the_same_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.run.test_train.PIXELS", PIXELS.cuda())
    for name in ("val_normal", "ema, cosine", "split, one_cycle, clip"):
        options = {"run": recipe(name), "device_type": "cuda", "precision": "bf16"}
        *expected, _ = go(folder=tmp_path / "undisturbed", **options)
        with pytest.raises(Interrupted):
            go(folder=tmp_path / name, steps=4, **options)
        assert_same(go(folder=tmp_path / name, **options), tuple(expected))


@pytest.fixture
def on_the_gpu(monkeypatch: pytest.MonkeyPatch) -> Callable[..., test_graphed.Worker]:
    """A worker on the GPU, which keeps `steps`."""
    teacher = Teacher("resnet18").to("cuda", memory_format=torch.channels_last)
    monkeypatch.setattr(test_graphed, "BACKBONE", "resnet18")
    monkeypatch.setattr(test_graphed, "PIXELS", PIXELS.cuda())
    monkeypatch.setattr(test_graphed, "teacher", lambda: teacher)

    def worker(precision: str, steps: WholeSteps | None) -> test_graphed.Worker:
        device = open_device("cuda", precision)
        return test_graphed.Worker(device, test_graphed.features_of(device), steps)

    return worker


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("name", test_graphed.RECIPES)
def test_graphed_steps_are_plain_ones_bit_for_bit(name: str, precision: str, on_the_gpu: Callable[..., Any]) -> None:
    """204 steps of whole and incomplete batches, in graphs in which another seed was trained before."""
    plain, graphed = on_the_gpu(precision, None), on_the_gpu(precision, WholeSteps())
    graphed.train(test_graphed.recipe(name, 1, epochs=1))
    run = test_graphed.recipe(name, epochs=68)
    found = graphed.train(run)
    assert graphed.facts == {"compiled": False, "graphed": True, "graphed_batches": [3, 2]}
    assert test_graphed.same(found, plain.train(run))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("name", ["adam, clip, ema, renewed", "split, cosine, val_normal"])
def test_replayed_passes_are_plain_ones_bit_for_bit(
    name: str, precision: str, on_the_gpu: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between steps that share the memory of their recordings: of held-out images, along a training and after it."""
    monkeypatch.setattr("harness.run.passes.UNRECORDED", 0)
    plain, graphed = on_the_gpu(precision, None), on_the_gpu(precision, WholeSteps())
    run = dataclasses.replace(test_graphed.recipe(name, select="val_normal"), evaluate_at=(1, 3))
    test_passes.measured(graphed, dataclasses.replace(run, seed=1))
    (curve, found, look), (expected_curve, expected, _) = (
        test_passes.measured(worker, run) for worker in (graphed, plain)
    )
    assert graphed.facts["graphed"]
    assert list(look.facts()) == ["graphed_passes"]
    assert curve == expected_curve
    assert test_passes.equal(found, expected)


def test_no_graphed_step_waits_and_runs_of_a_shape_take_no_more_memory(on_the_gpu: Callable[..., Any]) -> None:
    worker, reserved = on_the_gpu("bf16", WholeSteps()), []

    def report(step: int, _steps: int, epoch: object) -> None:
        within = step % 3 and epoch is None
        torch.cuda.set_sync_debug_mode("error" if within else "default")

    try:
        for seed in range(10):
            worker.train(test_graphed.recipe("sgd, clip, ema, cosine", seed), report=report)
            reserved.append(torch.cuda.memory_reserved())
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert worker.facts["graphed"]
    assert reserved[-1] == reserved[2]
