"""Compiled training steps: close to the plain ones, one graph for all runs of a shape, and never in a run's way."""

import csv
import dataclasses
import functools
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._inductor import compile_fx

from dskd import methods
from dskd.config import ConfigError, replace
from dskd.distiller import Students
from harness.job import TrainJob, is_compiled
from harness.records import Results
from harness.run import compiled
from harness.run.checkpoint import Interrupted
from harness.run.execute import execute
from harness.run.warm import Warm
from harness.spec import Data, TrainSpec
from tests.conftest import write_mvtec
from tests.run.small import SMALL
from tests.run.test_checkpoint import StopAfter, job_of
from tests.run.test_train import spec

WriteGrid = Callable[..., Path]


@pytest.fixture(autouse=True)
def no_graphs(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As in a new worker; by a backend that compiles at once, where a test does not want the real one."""
    monkeypatch.setattr(sys.modules[__name__], "execute", functools.partial(execute, warm=Warm()))
    monkeypatch.setattr(compiled, "BACKEND", "aot_eager")
    yield
    torch._dynamo.reset()


def job(write_grid: WriteGrid, tree: Path, seed: int = 0, backbone: str = SMALL, **defaults: object) -> TrainJob:
    # 6 images: a whole batch and an incomplete one.
    defaults = {"train.batch_size": 4, "train.epochs": 2} | defaults
    return job_of(write_grid(tree, axes={"seed": [seed], "backbone": [backbone]}, defaults=defaults), every_s=600.0)


def trained(done: TrainJob, stop: Any = None, **options: Any) -> tuple[dict[str, Any], list[float]]:
    """The training's record, and its losses."""
    execute(done, lambda *_, **__: None, stop, **options)
    folder = Results(Path(done.results)).run_folder(done.spec.id).path
    record = Results(Path(done.results)).record(done.spec.id)
    if record is None:
        raise Interrupted
    return record.result, [float(row["loss"]) for row in csv.DictReader((folder / "curve.csv").open(newline=""))]


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
@pytest.mark.parametrize(("precision", "backbone"), [("fp32", "resnet18"), ("bf16", SMALL)])
def test_losses_are_those_of_plain_steps(
    backend: str, precision: str, backbone: str, write_grid: WriteGrid, tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compiled, "BACKEND", backend)
    result, expected = trained(job(write_grid, tree, backbone=backbone, precision=precision))
    assert result["compiled"] is False
    result, losses = trained(job(write_grid, tree, backbone=backbone, precision=precision, compile=True))
    assert (result["compiled"], result["graphs"]) == (True, 1)
    assert losses == pytest.approx(expected, rel=0.05 if precision == "bf16" else 1e-3)


def test_statistics_taken_anew_leave_compiled_steps_as_they_are(write_grid: WriteGrid, tree: Path) -> None:
    losses = {}
    for renew in (True, False, True):  # the third trains the students of the first, in place
        done = job(write_grid, tree, **{"compile": True, "train.renew_batch_norm": renew, "train.epochs": 3})
        done = dataclasses.replace(done, force=True)
        result, found = trained(done)
        assert (result["compiled"], result["graphs"]) == (True, 1)
        assert losses.setdefault(renew, found) == found
    assert losses[True] == losses[False]


@pytest.fixture
def compilations(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The sizes of batches that were compiled so far."""
    found, tried = [], compiled._try

    def spy(*args: Any) -> None:
        found.append(args[3])
        tried(*args)

    monkeypatch.setattr(compiled, "_try", spy)
    return found


def alone(done: TrainJob) -> list[float]:
    """The losses that the training has in a worker of its own."""
    return trained(TrainJob(**vars(done) | {"force": True}), warm=Warm())[1]


def test_runs_of_one_shape_share_a_graph(write_grid: WriteGrid, tree: Path, compilations: list[int]) -> None:
    for seed in range(4):
        result, losses = trained(job(write_grid, tree, seed, compile=True, **{"train.epochs": 1 + seed % 2}))
        assert (result["compiled"], result["graphs"]) == (True, 1)
    assert len(compilations) == 1
    assert losses == alone(job(write_grid, tree, seed, compile=True, **{"train.epochs": 2}))


@pytest.mark.slow
def test_a_worker_keeps_several_shapes(
    write_grid: WriteGrid, tree: Path, compilations: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = [job(write_grid, tree, seed, compile=True, image_size=side) for seed in (0, 1) for side in (32, 64)]
    found = [trained(one) for one in jobs]
    assert [(result["graphs"], result["compiled_batches"]) for result, _ in found] == [(1, [4])] * 4
    assert len(compilations) == 2
    monkeypatch.setattr(compiled, "MOST_SHAPES", 1)  # each is compiled anew after the other
    warm = Warm()
    again = [trained(TrainJob(**vars(one) | {"force": True}), warm=warm) for one in jobs]
    assert [result["graphs"] for result, _ in again] == [1] * 4
    assert len(compilations) == 2 + 4
    assert [losses for _, losses in again] == [losses for _, losses in found]
    assert found[-1][1] == alone(jobs[-1])


class OfItsSeed(Students):
    """Students that differ in more than their weights: in a buffer that is not saved."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.register_buffer("gain", 0.5 + torch.rand(()), persistent=False)

    def forward(self, *args: Any) -> Any:
        return {name: [scale * self.gain for scale in scales] for name, scales in super().forward(*args).items()}


class SaysSo(OfItsSeed):
    state_is_all = True


class ByAttribute(SaysSo):
    """In what is no buffer; its parent has said something only of itself."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.factor = self.gain.item()

    def forward(self, *args: Any) -> Any:
        return {name: [scale * self.factor for scale in scales] for name, scales in super().forward(*args).items()}


@pytest.mark.parametrize(("students", "count"), [(OfItsSeed, 2), (SaysSo, 1), (ByAttribute, 2)])
def test_students_of_plug_ins_share_nothing_unless_they_say_so(
    students: type,
    count: int,
    write_grid: WriteGrid,
    tree: Path,
    compilations: list[int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(methods.STUDENTS, "stfpm", students)
    jobs = [job(write_grid, tree, seed, compile=True) for seed in (0, 1)]
    found = [trained(one) for one in jobs]
    assert len(compilations) == count
    assert all(result["compiled"] for result, _ in found)
    assert found[1][1] == alone(jobs[1])


@pytest.mark.slow
def test_an_incomplete_batch_has_a_graph_where_that_pays(
    write_grid: WriteGrid, tree: Path, tmp_path: Path, compilations: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = compiled.sizes_of_batches
    assert sizes("cuda", 999, 20, 8) == sizes("cpu", 10_000, 20, 8) == sizes("cuda", 1000, 24, 8) == [8]
    assert (sizes("cuda", 1000, 20, 8), sizes("cuda", 1, 4, 8), sizes("cpu", 1000, 4, 8)) == ([8, 4], [4], [])
    monkeypatch.setattr(compiled, "TAIL_PAYS", {"cpu": 2})
    _, expected = trained(job(write_grid, tree))
    result, losses = trained(job(write_grid, tree, compile=True))
    assert (result["compiled"], result["compiled_batches"], result["graphs"]) == (True, [4, 2], 2)
    assert losses == pytest.approx(expected, rel=1e-3)
    other = job(write_grid, write_mvtec(tmp_path / "other", train=7), compile=True)  # the same shape, another last one
    result, losses = trained(other)
    assert (result["compiled_batches"], result["graphs"], compilations) == ([4, 3], 3, [4, 2, 3])
    assert losses == alone(other)


def test_a_stopped_training_goes_on_to_the_same_numbers(write_grid: WriteGrid, tree: Path, tmp_path: Path) -> None:
    wanted = {"compile": True, "train.epochs": 3}
    _, expected = trained(job(write_grid, tree, **wanted))
    (tmp_path / "again").mkdir()
    stopped = job(write_grid, tree, **wanted)
    stopped = TrainJob(**vars(stopped) | {"results": str(tmp_path / "again")})
    with pytest.raises(Interrupted):
        trained(stopped, StopAfter(3))
    result, losses = trained(stopped)
    assert result["resumed"] == 1
    assert losses == expected


def test_without_a_compiler_the_training_runs_plain(
    write_grid: WriteGrid, tree: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    _, expected = trained(job(write_grid, tree))

    def fail(*_: object) -> None:
        raise RuntimeError("no compiler\nwas found")

    monkeypatch.setattr(compiled, "BACKEND", fail)
    for seed in (0, 1):
        result, losses = trained(job(write_grid, tree, seed, compile=True))
        assert result["compiled"] is False
        assert "no compiler was found" in result["compile_failure"]
        assert seed or losses == expected
    assert caplog.text.count("compiling failed, batches of 4 run without") == 1


def test_graphs_are_counted_when_the_training_is_over(
    write_grid: WriteGrid, tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    factor = {"of the loss": 1}

    class Changing(StopAfter):
        def is_set(self) -> bool:
            factor["of the loss"] = 2
            return super().is_set()

    monkeypatch.setattr(compiled, "_loss", lambda model, *args: model.loss(*args) * factor["of the loss"])
    assert trained(job(write_grid, tree, compile=True), Changing(1000))[0]["graphs"] == 2


@pytest.mark.parametrize(
    ("lost", "says"),
    [
        (1.0, r"\d+ of \d+ parameters get no gradient from a compiled step: encoder.trunk.conv1.weight, encoder"),
        (0.5, "the gradient of a compiled step is 0.5 of its norm away from that of a plain one"),
        (None, "the loss of a compiled step is .*, that of a plain one"),
    ],
)
def test_a_graph_that_computes_another_step_is_not_used(
    lost: float | None, says: str, write_grid: WriteGrid, tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(model: Any, images: torch.Tensor, teacher: Any) -> torch.Tensor:
        loss = model.loss(images, teacher)
        if not torch.compiler.is_compiling():
            return loss
        return loss * 1.01 if lost is None else lost * loss.detach() + (1 - lost) * loss

    _, expected = trained(job(write_grid, tree))
    monkeypatch.setattr(compiled, "_loss", wrong)
    result, losses = trained(job(write_grid, tree, compile=True))
    assert result["compiled"] is False
    assert re.search(says, result["compile_failure"])
    assert losses == expected


@pytest.mark.slow
def test_an_incomplete_batch_whose_graph_computes_another_step_runs_plain(
    write_grid: WriteGrid, tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(model: Any, images: torch.Tensor, teacher: Any) -> torch.Tensor:
        factor = 2 if torch.compiler.is_compiling() and len(images) == 2 else 1
        return model.loss(images, teacher) * factor

    _, expected = trained(job(write_grid, tree, compile=True))
    monkeypatch.setattr(compiled, "TAIL_PAYS", {"cpu": 1})
    monkeypatch.setattr(compiled, "_loss", wrong)
    again = job(write_grid, tree, compile=True)
    result, losses = trained(TrainJob(**vars(again) | {"force": True}), warm=Warm())
    assert (result["compiled"], result["compiled_batches"]) == (True, [4])
    assert "the loss of a compiled step is" in result["compile_failure"]
    assert losses == expected


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:dynamo_pgo force disabled")
def test_on_a_gpu_no_sum_depends_on_a_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    options = compiled.inductor_options("cuda")
    assert options == torch._inductor.list_mode_options("reduce-overhead") | {"deterministic": True}
    seen = []
    inner = compile_fx._compile_fx_inner

    def spy(*args: Any, **kwargs: Any) -> Any:
        seen.append(torch._inductor.config.deterministic)
        return inner(*args, **kwargs)

    monkeypatch.setattr(compile_fx, "_compile_fx_inner", spy)
    del options["triton.cudagraphs"]  # of which a CPU knows nothing
    with torch._inductor.config.patch(force_disable_caches=True):
        torch.compile(lambda x: (x.sin() * x).sum(), options=options)(torch.ones(4, requires_grad=True)).backward()
    assert seen == [True, True]  # forward and backward
    monkeypatch.setattr(torch._inductor, "list_options", lambda: ["triton.cudagraphs"])
    assert compiled.inductor_options("cuda") == {"triton.cudagraphs": True}
    assert compiled.inductor_options("cpu") == {}


def test_auto_is_decided_by_passes_and_device(monkeypatch: pytest.MonkeyPatch) -> None:
    def comes_to(precision: str = "bf16", epochs: int = 100, **changes: object) -> bool:
        method = replace(spec().method, {"train.epochs": epochs})
        run = TrainSpec(method, "resnet18", spec().weights, Data("x", "y", "z", train_images=300), **changes)
        return is_compiled(run, "cpu", precision)

    monkeypatch.setattr("harness.job.cpu_flags", lambda: {"amx_bf16"})
    assert comes_to()
    assert comes_to("auto")  # which is bf16 there
    assert not comes_to(epochs=50)
    assert not comes_to(image_size=128)
    assert not comes_to("fp32")
    assert comes_to(epochs=1, compile=True)
    assert not comes_to(compile=False)
    assert not comes_to(processes=2, epochs=1000)
    monkeypatch.setattr("harness.job.cpu_flags", set)
    assert not comes_to()


def test_settings(write_grid: WriteGrid, tree: Path) -> None:
    plain = job(write_grid, tree).spec
    assert plain.id == job(write_grid, tree, compile="auto").spec.id != job(write_grid, tree, compile=True).spec.id
    with pytest.raises(ConfigError, match="compile: true is for a run of one process"):
        job(write_grid, tree, compile=True, processes=2)
    with pytest.raises(ConfigError, match="compile: 'yes' is not possible; one of: auto, True, False"):
        job(write_grid, tree, compile="yes")
