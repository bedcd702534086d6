"""On a CUDA device: a run end to end, and the same promises as on a CPU."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from harness.run.checkpoint import Interrupted
from tests.launch.test_run import records, run
from tests.run.test_checkpoint import assert_same, go, recipe
from tests.run.test_train import PIXELS, same, spec, trained

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
    from harness.run.device import open_device

    device = open_device("cuda", precision)
    monkeypatch.setattr("tests.run.test_train.PIXELS", PIXELS.cuda())
    run_spec = spec("dskd", train__select="last")
    cached = trained(run_spec, device)[0]
    assert all(same(cached, trained(run_spec, device, keep)[0]) for keep in ("host", "recomputed"))


def test_a_stopped_training_ends_with_the_same_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.run.test_train.PIXELS", PIXELS.cuda())
    for name in ("val_normal", "ema, cosine", "split, one_cycle, clip"):
        options = {"run": recipe(name), "device_type": "cuda", "precision": "bf16"}
        *expected, _ = go(folder=tmp_path / "undisturbed", **options)
        with pytest.raises(Interrupted):
            go(folder=tmp_path / name, steps=4, **options)
        assert_same(go(folder=tmp_path / name, **options), tuple(expected))
