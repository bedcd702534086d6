"""Recorded steps in jobs: who records, what the record says, and that a step takes nothing from the host."""

import dataclasses
import importlib
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dskd import Distiller, Teacher, replace
from dskd.config import ConfigError
from harness.cli.common import make_plan
from harness.doctor import recorded as doctor
from harness.doctor.proven import graphs, known
from harness.job import decode, encode, is_compiled, is_graphed
from harness.launch import schedule
from harness.run import graphed
from harness.run.device import Device, open_device
from harness.run.features import TeacherFeatures
from harness.run.graphed import GraphedLearner, WholeSteps
from harness.run.passes import Pass
from harness.run.recorder import Calls, Step
from harness.run.warm import Warm
from harness.spec import Save
from tests.faults.commands import refusal
from tests.run.test_compiled import job, trained
from tests.run.test_host_waits import Dispatched, on_meta  # noqa: F401  (a fixture)
from tests.run.test_train import PIXELS, spec

WriteGrid = Callable[..., Path]


def _fused_sgd(params: Any, grads: Any, buffers: Any, *, lr: Any, **_: Any) -> None:
    """As a GPU's: one operation, which reads the rate where it lies."""
    assert isinstance(lr, torch.Tensor)
    torch._foreach_add_(buffers, grads)


def _fused_adam(params: Any, grads: Any, *rest: Any, lr: Any, **_: Any) -> None:
    assert isinstance(lr, torch.Tensor)
    torch._foreach_add_(params, grads)


@pytest.mark.parametrize(("method", "changes"), [("stfpm", {"schedule": "cosine"}), ("dskd", {"optimizer": "split"})])
def test_a_step_takes_nothing_from_the_host(
    method: str,
    changes: dict[str, Any],
    on_meta: Device,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for room, name in (("sgd", "SGD"), ("adam", "Adam")):
        module = importlib.import_module(f"torch.optim.{room}")
        monkeypatch.setattr(torch.optim, name, getattr(module, name))
        monkeypatch.setattr(module, "_device_dtype_check_for_fused", lambda *_, **__: None)
    monkeypatch.setattr(torch, "_fused_sgd_", _fused_sgd)
    monkeypatch.setattr(torch, "_fused_adam_", _fused_adam)
    monkeypatch.setattr("harness.run.graphed.WholeStep._record", lambda *_: None)
    recipe = {"select": "last", "ema": 0.9, "clip": 0.1} | changes
    run = spec(method, **{f"train__{key}": value for key, value in recipe.items()})
    model = Distiller(run.method, "resnet18", Teacher("resnet18")).to("meta", memory_format=torch.channels_last)
    features = TeacherFeatures(model.teacher, PIXELS.to("meta"), 4, on_meta, {"device": 1e9, "host": 0.0})
    learner, _ = WholeSteps(lambda _: Calls()).learner(run, model, on_meta, features, 6)
    assert isinstance(learner, GraphedLearner)
    for size in learner.whole.sizes:
        learner.whole.step(size)
        with Dispatched() as seen:
            learner.whole.step(size)
        assert not seen.waits
        assert sum(seen.counts.values()) > 200


def test_a_job_that_records_its_steps_has_the_numbers_of_one_that_does_not(
    write_grid: WriteGrid, tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, expected = trained(job(write_grid, tree, compile=False), warm=Warm())
    warm = Warm()
    warm._whole_steps = WholeSteps(lambda _: Calls())
    for seed in (1, 0):
        result, losses = trained(job(write_grid, tree, seed, compile="graph"), warm=warm)
    assert (result["compiled"], result["graphed"], result["graphed_batches"]) == (False, True, [4, 2])
    assert losses == expected
    assert "step" not in result
    (whole,) = warm._whole_steps.kept.values()
    assert whole.features is next(iter(warm._features.made.values()))
    again = dataclasses.replace(job(write_grid, tree, compile="graph"), force=True)
    monkeypatch.setattr(Device, "steps", {"step": 2})  # as on a GPU
    result, losses = trained(again, warm=Warm())  # on a CPU nothing records
    assert (result["graphed"], result["graph_failure"]) == (False, "nothing records steps on a cpu")
    assert result["step"] == 2
    assert losses == expected


def test_who_records_steps(write_grid: WriteGrid, tree: Path) -> None:
    plain = job(write_grid, tree)
    forced = job(write_grid, tree, compile="graph")
    assert forced.spec.id != plain.spec.id == job(write_grid, tree, compile="auto").spec.id
    assert (is_graphed(forced, "cuda"), is_compiled(forced.spec, "cuda", "bf16")) == (True, False)
    assert not is_graphed(plain, "cuda")
    proven = dataclasses.replace(plain, graphs=("constant", "one_cycle"))
    assert decode(encode(proven)) == proven
    assert is_graphed(proven, "cuda")
    assert not is_graphed(proven, "cpu")
    cosine = replace(plain.spec.method, {"train.schedule": "cosine"})
    for changes in ({"method": cosine}, {"compile": False}, {"compile": True}, {"processes": 2}):
        assert not is_graphed(dataclasses.replace(proven, spec=dataclasses.replace(plain.spec, **changes)), "cuda")
    _, plan = make_plan(write_grid(tree), "cpu", None, None)
    options = {"results": "", "save": Save(), "device": "cuda", "force": True, "grid": "", "checkpoint_every_s": 1.0}
    (training,) = schedule.remaining(plan, (), graphs=["constant"], **options).jobs
    assert training.graphs == ("constant",)


def test_what_cannot_be_recorded_is_refused(write_grid: WriteGrid, tree: Path) -> None:
    grid = write_grid(tree, defaults={"compile": "graph"})
    told = refusal("run", grid, "--devices", "cpu")
    assert told == "compile: graph needs CUDA devices; write compile: auto"
    with pytest.raises(ConfigError, match="compile: graph is for a run of one process and this has processes: 2"):
        job(write_grid, tree, compile="graph", processes=2)


def test_auto_says_what_it_rests_on() -> None:
    unproven = "steps: launched one by one (that recorded ones are the same bit for bit is not proven on this GPU with "
    for damaged in (None, {}, {"schedules": 3}, {"schedules": []}, {"schedules": [None]}):
        assert known(damaged) == ((), f"{unproven}these versions: harness doctor)")
    found = {"schedules": ["constant", "cosine"], "made_at": "2026-11-26T12:00:00+00:00"}
    line = "steps: recorded as CUDA graphs, the same bit for bit (harness doctor on 2026-11-26: constant, cosine)"
    assert known(found) == (("constant", "cosine"), line)
    assert graphs("cpu") == ((), "")


class SoonStale(Calls):
    """A pass is right when it is compared and once more."""

    def capture(self, step: Step) -> Step:
        calls = itertools.count()
        is_pass = isinstance(getattr(step, "__self__", None), Pass)
        return (lambda: step() if next(calls) < 3 else None) if is_pass else step


def test_the_doctor_compares_each_schedule(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "SCHEDULES", ("constant", "cosine"))
    monkeypatch.setattr(doctor, "RECIPES", doctor.RECIPES[:1])
    rates = graphed.rates_of

    def wrong(students: Any, recipe: Any, steps: int) -> list[np.ndarray]:
        factor = 1 if recipe.schedule == "constant" else 1.001
        return [factor * one for one in rates(students, recipe, steps)]

    monkeypatch.setattr(graphed, "rates_of", wrong)
    device = open_device("cpu", "fp32")
    found = doctor.compared(device, WholeSteps(lambda _: Calls()), 1, doctor.RECIPES)
    assert (found.state, found.facts) == ("PASS", {"schedules": ["constant"]})
    assert found.said.endswith("rates constant; not so cosine: stfpm: it ends with other bits")
    found = doctor.compared(device, WholeSteps(lambda _: SoonStale()), 1, doctor.RECIPES)
    assert "constant: stfpm: recorded passes see other discrepancies" in found.said
    found = doctor.compared(device, WholeSteps(), 1, doctor.RECIPES)
    assert (found.state, found.facts) == ("FAIL", {})
    assert "constant: stfpm: nothing records steps on a cpu" in found.said
