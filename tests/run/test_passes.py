"""Passes over batches that are measured: recorded, by the students that recorded steps train, they are plain ones. The
recorder here only calls them: all but the capture is tried.
"""

import dataclasses
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dskd import Distiller, Teacher
from harness.records import Results
from harness.run import evaluate, passes
from harness.run.device import Device
from harness.run.execute import execute
from harness.run.features import TeacherFeatures
from harness.run.graphed import WholeSteps
from harness.run.passes import Look, Pass
from harness.run.recorder import Calls, Step
from harness.run.train import mean_map, train
from harness.run.warm import Warm
from harness.spec import EvaluateSpec, TrainSpec
from tests.run.test_compiled import job
from tests.run.test_graphed import (  # noqa: F401  (fixtures)
    HELD_OUT,
    Worker,
    device,
    plain,
    recipe,
    recorded,
    same,
)
from tests.run.test_host_waits import Dispatched, on_meta  # noqa: F401  (a fixture)
from tests.run.test_train import PIXELS, spec

IMAGES = PIXELS[:, :32, :32].contiguous().numpy()
Maps = list[tuple[np.ndarray, np.ndarray]]


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Recorded at the first batch of a shape."""
    monkeypatch.setattr(passes, "UNRECORDED", 0)


def variants(run: TrainSpec) -> list[EvaluateSpec]:
    """The method's own map, and one that is standardised by normal images, where there are several students."""
    own = EvaluateSpec(run, run.method.map, run.method.score)
    if run.method.name != "dskd":
        return [own]
    together = dataclasses.replace(run.method.map, student_fuse="error_disagreement")
    return [own, dataclasses.replace(own, map=together)]


def inspected(worker: Worker, model: Distiller, run: TrainSpec, look: Look, size: int = 4) -> Maps:
    """The test images (three batches, the last filled up) and, apart, images for thresholds."""
    given = model, IMAGES, variants(run), size, worker.device, lambda *_: None, IMAGES[:6], None, IMAGES[2:7]
    _, found = evaluate.inspect(*given, look)
    return [(one.maps, one.scores) for each in found for one in (each, each.calibration)]


def measured(worker: Worker, run: TrainSpec) -> tuple[Any, list[Maps], Look]:
    """A training with what it measures: on held-out images in each epoch, on all along it, and after it."""
    worker.learner, look = worker.learner_of(run), worker.look()
    positions, found = np.arange(len(PIXELS)), []
    given = worker.learner, worker.features, positions[HELD_OUT:], positions[:HELD_OUT], lambda *_: None
    curve, kept = train(*given, along=lambda _, settle: found.append(inspected(worker, settle(), run, look)), look=look)
    found.append(inspected(worker, worker.learner.distiller, run, look))
    return ([(epoch.loss, epoch.held_out_map) for epoch in curve], kept), found, look


def equal(found: list[Maps], expected: list[Maps]) -> bool:
    pairs = zip(itertools.chain(*found), itertools.chain(*expected), strict=True)
    return all(np.array_equal(a, b) for own, other in pairs for a, b in zip(own, other, strict=True))


@pytest.mark.parametrize("name", ["sgd, val_normal", "adam, clip, ema, renewed", "split, cosine, val_normal"])
def test_what_is_measured_by_recorded_passes_is_what_plain_ones_measure(
    name: str,
    at_once: None,
    plain: Worker,  # noqa: F811
    recorded: Worker,  # noqa: F811
) -> None:
    run = dataclasses.replace(recipe(name, select="val_normal"), evaluate_at=(1, 3))
    measured(recorded, dataclasses.replace(run, seed=1))
    (curve, found, look), (expected_curve, expected, _) = measured(recorded, run), measured(plain, run)
    assert curve == expected_curve
    assert equal(found, expected)
    together = len(variants(run)) > 1  # two batches of normal images more
    assert look.facts() == {"graphed_passes": 3 * 1 + 3 * (3 + 2 + 2 * together)}
    assert not equal(found[:1], found[1:2])  # the students went on in between
    model = recorded.learner.distiller  # other students than the average's, whatever epoch was kept
    model.students.load_state_dict(Distiller(run.method, run.backbone, model.teacher).students.state_dict())
    assert equal([inspected(recorded, model, run, look)], [inspected(plain, model, run, plain.look())])


def test_few_batches_are_not_worth_a_recording(plain: Worker, recorded: Worker) -> None:  # noqa: F811
    run = recipe("sgd, val_normal", select="last", epochs=1)
    look, expected = measured(recorded, run)[-1], measured(plain, run)[1]
    assert look.facts() == {}
    look = recorded.look()
    found = [inspected(recorded, recorded.learner.distiller, run, look) for _ in range(2)]
    assert equal(found, 2 * expected)
    assert look.facts() == {"graphed_passes": 3 * 5 - passes.UNRECORDED}  # 5 before, in `measured`


class Forgets(Calls):
    """Every call of what is captured but the first."""

    def capture(self, step: Step) -> Step:
        calls = itertools.count()
        return lambda: step() if not next(calls) else None


class FailsAfterSteps(Calls):
    def capture(self, step: Step) -> Step:
        if isinstance(seen := getattr(step, "__self__", None), Pass):
            for tensor in seen.model.students.state_dict().values():
                tensor.zero_()
            raise RuntimeError("no room\nfor it")
        return step


class ForgetsInPasses(Forgets):
    def capture(self, step: Step) -> Step:
        return super().capture(step) if isinstance(getattr(step, "__self__", None), Pass) else step


@pytest.mark.parametrize(
    ("recorder", "says"),
    [
        (FailsAfterSteps, "RuntimeError: no room for it"),
        (ForgetsInPasses, "RuntimeError: discrepancies are not those of a plain pass: encoder"),
    ],
)
def test_a_pass_that_cannot_be_recorded_is_plain(
    recorder: type[Calls],
    says: str,
    at_once: None,
    plain: Worker,  # noqa: F811
    caplog: pytest.LogCaptureFixture,
) -> None:
    worker = Worker(plain.device, plain.features, WholeSteps(lambda _: recorder()))
    for seed in (0, 1):
        run = recipe("sgd, val_normal", seed, epochs=2)
        (curve, found, look), (expected_curve, expected, _) = measured(worker, run), measured(plain, run)
        assert worker.facts["graphed"]
        assert (curve, look.facts()) == (expected_curve, {"pass_failure": says})
        assert equal(found, expected)
    shapes = 2  # of held-out images with the teacher's features, and of test images
    assert caplog.text.count("passes over images cannot be recorded, they are launched one by one") == shapes


def test_a_pass_whose_students_moved_is_not_used_again(
    at_once: None,
    plain: Worker,  # noqa: F811
    recorded: Worker,  # noqa: F811
) -> None:
    run = recipe("sgd, val_normal", epochs=1)
    measured(recorded, run)
    model, look = recorded.learner.distiller, recorded.look()
    norm = next(module for module in model.students.modules() if isinstance(module, torch.nn.BatchNorm2d))
    norm.running_mean = norm.running_mean + 0.5  # as a plug-in may do that does not change it in place
    found = inspected(recorded, model, run, look)
    assert equal([found], [inspected(plain, model, run, plain.look())])
    assert look.facts()["pass_failure"].startswith("RuntimeError: what is recorded knows memory by its address, and it")


def test_other_students_and_other_teachers_are_seen_plainly(
    at_once: None,
    plain: Worker,  # noqa: F811
    recorded: Worker,  # noqa: F811
) -> None:
    run, look = recipe("sgd, val_normal", epochs=1), recorded.look()
    measured(recorded, run)
    measured(plain, recipe("sgd, val_normal", 1, epochs=1))
    torch.manual_seed(1)
    other = Distiller(run.method, run.backbone, Teacher(run.backbone).to(memory_format=torch.channels_last))
    other.students = recorded.learner.distiller.students
    for model in (plain.learner.distiller, other):
        assert equal([inspected(plain, model, run, look)], [inspected(plain, model, run, plain.look())])
    assert look.facts() == {}


def test_without_memory_passes_are_plain_and_give_theirs_back(
    at_once: None,
    plain: Worker,  # noqa: F811
    recorded: Worker,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run, look = recipe("sgd, val_normal", epochs=1), recorded.look()
    measured(recorded, run)
    model = recorded.learner.distiller
    expected = inspected(plain, model, run, plain.look(), 2)
    (whole,) = recorded.steps.kept.values()
    assert whole.passes.kept
    made = evaluate.anomaly_map

    def too_large(found: Any, *rest: Any) -> torch.Tensor:
        if len(found["encoder"][0]) > 2:
            raise MemoryError
        return made(found, *rest)

    monkeypatch.setattr(evaluate, "anomaly_map", too_large)
    assert equal([inspected(recorded, model, run, look)], [expected])
    assert (look.facts(), whole.passes.kept) == ({"graphed_passes": 1}, {})


def test_a_job_says_in_its_records_what_was_replayed(at_once: None, write_grid: Any, tree: Path) -> None:
    found = []
    for steps in (WholeSteps(), WholeSteps(lambda _: Calls())):
        warm = Warm()
        warm._whole_steps = steps
        recipe = {"train.select": "val_normal", "train.ema": 0.5, "evaluate.at": [1]}
        grid = dataclasses.replace(job(write_grid, tree, compile="graph", **recipe), force=True)
        execute(grid, lambda *_: None, warm=warm)
        results = Results(Path(grid.results))
        ids = grid.spec.id, grid.evaluations[0].id
        found.append([results.record(one).result for one in ids])
    (training, evaluation), (own_training, own_evaluation) = found
    assert "graphed_passes" not in training | evaluation
    assert own_training["graphed_passes"] > 1
    assert own_evaluation["graphed_passes"] >= 1
    for key in ("loss_last", "kept_epoch"):
        assert own_training[key] == training[key]
    for key in ("image_auroc", "pixel_auroc", "pixel_ap"):
        assert own_evaluation[key] == evaluation[key]


@pytest.mark.parametrize("kept", [True, False])
@pytest.mark.parametrize("method", ["stfpm", "dskd", "reverse_distillation"])
def test_no_pass_waits_for_the_device(method: str, kept: bool, on_meta: Device) -> None:  # noqa: F811
    """Of held-out images (the teacher's features are kept), and of test images; plain and as it is recorded."""
    run = spec(method)
    model = Distiller(run.method, "resnet18", Teacher("resnet18")).to("meta", memory_format=torch.channels_last)
    features = TeacherFeatures(model.teacher, PIXELS.to("meta"), 4, on_meta, {"device": 1e9, "host": 0.0})
    look, batch = Look(on_meta), np.arange(4)
    given = [features.pixels[:4], *(features[batch] if kept else ())]
    one = Pass(model, on_meta.autocast, given, together=False)
    one.found = one.plain(given)
    model.students.eval()
    with Dispatched() as seen:
        look(model, given[0], given[1:])
        one.step()
    assert not seen.waits
    assert sum(seen.counts.values()) > 100


def test_the_mean_map_is_that_of_plain_passes(at_once: None, plain: Worker, recorded: Worker) -> None:  # noqa: F811
    """Over several batches: each is read before the next one overwrites it."""
    run = recipe("split, cosine, val_normal", epochs=1)
    measured(recorded, run)
    model, positions, found = recorded.learner.measured, np.arange(len(PIXELS)), []
    for look in (plain.look(), recorded.look()):
        found.append(mean_map(model, run, recorded.features, positions, plain.device, look))
    assert found[0] == found[1]
    assert look.facts() == {"graphed_passes": 4}
