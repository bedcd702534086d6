"""Recorded steps of the harness (`compile: graph`) and passes over images that are measured, against those launched one
by one: the same bits, and how fast.

On a CPU the recorder only calls the steps: the logic is tried, and there is nothing to gain.
"""

import itertools
import time
from typing import Any

import numpy as np
import torch
from scene import Pace, Scene, pace
from sheet import Sheet, figures
from torch import Tensor

from dskd import Distiller
from harness.run.features import TeacherFeatures
from harness.run.graphed import GraphedLearner, WholeSteps
from harness.run.learner import Learner
from harness.run.passes import UNRECORDED, Look
from harness.run.recorder import Calls

TARGETS = {"dskd 256": 3000, "stfpm 256": 7500, "dskd 128": 5500}  # images/s of one run, bf16
HOST_MS = 0.2  # of a step, at most
FEW = 10  # steps that the card's queue takes without the host having to wait for it
BITS = [
    ("stfpm", "cosine", ()),
    ("dskd", "constant", ()),
    ("dskd", "cosine", (("train.ema", 0.9), ("train.clip", 0.5))),
]


def run(sheet: Sheet) -> None:
    """The block."""
    bits(sheet, 32 if sheet.small else 64, "fp32" if sheet.small else "bf16")
    rates = {}
    for method, side in (
        [("stfpm", 32)] if sheet.small else [("dskd", 256), ("stfpm", 256), ("dskd", 128), ("stfpm", 128)]
    ):
        name = f"{method} {side}"
        if sheet.enough(f"rate of {name}", 10):
            with sheet.trying(f"rate of {name}"):
                scene = Scene(sheet.kind, method, side, 16 if sheet.small else 1024, 8 if sheet.small else None)
                rates[name] = rate(sheet, scene, name)
                sheet.say(", ".join(f"{key}: {figures(one)} images/s" for key, one in rates.items()))
    if not sheet.small:
        bits(sheet, 128, "fp32")


def bits(sheet: Sheet, side: int, precision: str) -> None:
    for method, schedule, more in BITS[:1] if sheet.small else BITS:
        name = f"{method} {side} {precision}, rate {schedule}{', ema and clip' if more else ''}"
        if sheet.enough(name, 14 if method == "dskd" else 8):
            with sheet.trying(name):
                changes = (("train.schedule", schedule), *more)
                same_bits(sheet, Scene(sheet.kind, method, side, 24, 16, precision, recipe=changes), name)


def same_bits(sheet: Sheet, scene: Scene, name: str) -> None:
    """200 steps, of whole and of incomplete batches: twice launched one by one, and twice recorded."""
    features, epochs = scene.features(), 2 if sheet.small else 100
    expected = trained(scene.learner(), scene, features, epochs)
    again = differing(trained(scene.learner(), scene, features, epochs), expected)
    sheet.check(f"{name}: plain steps are repeatable", not again, listed(again))
    steps = steps_of(sheet)
    for which, seeds in (("recorded steps are plain ones bit for bit", [0]), ("so they are after another run", [1, 0])):
        for seed in seeds:
            learner, failure = recorded(scene, features, steps, seed)
            found = trained(learner, scene, features, epochs)
        other = differing(found, expected)
        sheet.check(f"{name}: {which}", not failure and not other, failure or listed(other))


def steps_of(sheet: Sheet) -> WholeSteps:
    return WholeSteps(lambda _: Calls()) if sheet.small else WholeSteps()


def recorded(scene: Scene, features: TeacherFeatures, steps: WholeSteps, seed: int = 0) -> tuple[Learner, str]:
    """A learner, and why its steps are not recorded."""
    learner, facts = steps.learner(scene.spec, scene.model(seed), scene.device, features, scene.images)
    return learner, facts().get("graph_failure", "")


def trained(learner: Learner, scene: Scene, features: TeacherFeatures, epochs: int) -> dict[str, Tensor]:
    """Losses and tensors that so many epochs end with."""
    draw, losses = np.random.default_rng(0), []
    for epoch in range(1, epochs + 1):
        learner.begin_epoch(features, draw.permutation(scene.images), epoch)
        for _ in range(learner.steps_per_epoch):
            learner.next_step()
        losses.append(learner.total.clone())
        learner.total.zero_()
    measured = learner.measured.students.state_dict()
    found = {**learner.plain.state_dict(), **{f"measured {key}": value for key, value in measured.items()}}
    return {name: value.detach().clone() for name, value in found.items()} | {"losses": torch.stack(losses)}


def differing(found: dict[str, Tensor], expected: dict[str, Tensor]) -> dict[str, float]:
    """Which are not equal bit for bit, with their relative difference; NaN equals nothing."""
    return {key: relative(found[key], expected[key]) for key in expected if not torch.equal(found[key], expected[key])}


def relative(found: Tensor, expected: Tensor) -> float:
    found, expected = found.double(), expected.double()
    return ((found - expected).norm() / expected.norm().clamp_min(1e-30)).item()


def listed(found: dict[str, float]) -> str:
    worst = sorted(found, key=found.get, reverse=True)[:3]
    return f"{len(found)} differ: {', '.join(f'{key} {figures(found[key], 2)}' for key in worst)}" if found else ""


def rate(sheet: Sheet, scene: Scene, name: str) -> float:
    """Images per second of recorded steps, beside plain ones."""
    features = scene.features()
    steps = 8 if sheet.small else 200
    plain = pace_of(scene, scene.learner(), features, steps // 4)
    sheet.row("pace", setting=f"{name}, batch {scene.batch}", steps="plain", **vars(plain[0]), launch_ms=plain[1])
    began = time.perf_counter()
    kept = steps_of(sheet)
    learner, failure = recorded(scene, features, kept)
    scene.device.synchronize()
    took = round(time.perf_counter() - began, 2)
    sheet.check(f"{name}: steps are recorded", isinstance(learner, GraphedLearner), failure)
    found, launch_ms = pace_of(scene, learner, features, steps)
    sheet.row(
        "pace",
        setting=f"{name}, batch {scene.batch}",
        steps="recorded",
        **vars(found),
        launch_ms=launch_ms,
        recording_s=took,
        target_images_per_s=TARGETS.get(name),
        target_launch_ms=HOST_MS,
    )
    passes(sheet, scene, features, kept, learner.measured, name)
    return found.images_per_s


def passes(
    sheet: Sheet, scene: Scene, features: TeacherFeatures, kept: WholeSteps, model: Distiller, name: str
) -> None:
    """Recorded passes over images that are measured, beside plain ones: of held-out images, whose features are kept,
    and of test images; the same discrepancies, and how fast.
    """
    count, (first, second) = 8 if sheet.small else 100, np.split(np.arange(2 * scene.batch) % scene.images, 2)
    for which, is_known in (("held out", True), ("test", False)):
        batches = [(features.pixels[at], features[at] if is_known else ()) for at in (first, second)]
        for look in (plain := Look(scene.device), Look(scene.device, kept.passes)):
            look.begin(model)
            for number in range(UNRECORDED + 1):  # so that it is recorded from here on
                look(model, *batches[number % 2])
            turns = itertools.cycle(batches)
            found = pace(scene, lambda look=look, turns=turns: look(model, *next(turns)), count, count * scene.batch)
            launched = "plain" if look is plain else "recorded"
            sheet.row("passes", setting=f"{name}, batch {scene.batch}", images=which, passes=launched, **vars(found))
        other = 0
        for batch in batches:
            expected = plain(model, *batch)
            seen = look(model, *batch)
            other += sum(not all(map(torch.equal, seen[key], expected[key])) for key in expected)
        why = look.failure or (f"{other} of 2 batches differ" if other else "")
        sheet.check(f"{name}: recorded passes over {which} images are plain ones", look.replayed > 0 and not why, why)


def pace_of(scene: Scene, learner: Learner, features: TeacherFeatures, steps: int) -> tuple[Pace, float]:
    """With beginnings of epochs; and the host's milliseconds for a step whose launch waits for nothing."""
    left, epoch, draw = 0, 0, np.random.default_rng(0)

    def step() -> Any:
        nonlocal left, epoch
        if not left:
            epoch, left = epoch + 1, learner.steps_per_epoch
            learner.begin_epoch(features, draw.permutation(scene.images), epoch)
        left -= 1
        learner.next_step()

    few = min(FEW, steps // 2)
    pace(scene, step, few, 0)
    launch_ms = pace(scene, step, few, 0).host_ms
    return pace(scene, step, steps, steps * scene.batch), launch_ms
