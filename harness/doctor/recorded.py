"""Whether steps recorded as CUDA graphs end with the bits of plain ones, and recorded passes over images that are
measured see those of plain passes, which `compile: auto` rests on.
"""

from dataclasses import replace as with_fields
from typing import Any

import numpy as np

from dskd import Distiller, replace
from harness.doctor.compute import BATCH, TRUNKS, features_of, hash_of, model_of, spec_of, teacher_of
from harness.doctor.findings import Finding, Where, failed, passed, skipped
from harness.run.device import Device, open_device
from harness.run.features import TeacherFeatures
from harness.run.graphed import WholeSteps
from harness.run.learner import Learner
from harness.run.passes import UNRECORDED, Look
from harness.run.recorder import equal
from harness.spec import TrainSpec

SCHEDULES = ("constant", "cosine", "one_cycle")
# Each optimizer, and all that a step may do besides.
RECIPES: tuple[tuple[str, dict[str, Any]], ...] = (
    ("stfpm", {}),
    ("dskd", {"train.clip": 0.5, "train.ema": 0.9}),
    ("dskd", {"train.optimizer": "split"}),
)
IMAGES, EPOCHS, QUICK_EPOCHS = 10, 20, 4  # an epoch is two whole batches and an incomplete one


def recorded_steps(where: Where) -> Finding:
    """Trainings with each schedule of the rate."""
    if where.devices == "cpu":
        return skipped("steps are recorded on a GPU")
    epochs, recipes = (QUICK_EPOCHS, RECIPES[:2]) if where.quick else (EPOCHS, RECIPES)
    return compared(open_device(where.devices, "auto"), WholeSteps(), epochs, recipes)


def compared(
    device: Device, steps: WholeSteps, epochs: int, recipes: tuple[tuple[str, dict[str, Any]], ...] = RECIPES
) -> Finding:
    """The finding: with which schedules all recipes end with the bits of plain steps."""
    teacher = teacher_of(TRUNKS[0], device)
    features = features_of(spec_of("dskd", TRUNKS[0], device), teacher, device, IMAGES)
    other: dict[str, str] = {}
    for schedule in SCHEDULES:
        for name, changes in recipes:
            spec = spec_of(name, TRUNKS[0], device, epochs=epochs)
            spec = with_fields(spec, method=replace(spec.method, {**changes, "train.schedule": schedule}))
            if schedule not in other and (why := _differs(spec, features, device, steps)):
                other[schedule] = f"{name}: {why}"
    proven = [schedule for schedule in SCHEDULES if schedule not in other]
    details = "; ".join(f"{schedule}: {why}" for schedule, why in other.items())
    if not proven:
        return failed(f"recorded steps are not plain ones: {details}", "compile: auto stays with plain steps")
    said = f"{epochs} epochs of {len(recipes)} recipes end with the bits and the maps of plain steps"
    said += f", rates {', '.join(proven)}"
    return passed(said + (f"; not so {details}" if other else ""), schedules=proven)


def _differs(spec: TrainSpec, features: TeacherFeatures, device: Device, steps: WholeSteps) -> str:
    """What tells a training by recorded steps, in which another seed was trained before, from a plain one; and then its
    maps.
    """
    before = with_fields(spec, seed=spec.seed + 1)
    hash_of(_learner(before, features, device, steps)[0], features, IMAGES)
    learner, failure = _learner(spec, features, device, steps)
    if failure:
        return failure
    plain = Learner(model_of(spec, features.teacher, device), spec, device, IMAGES)
    same = hash_of(learner, features, IMAGES) == hash_of(plain, features, IMAGES)
    if not same:
        return "it ends with other bits"
    models = [learner.distiller] if learner.measured is learner.distiller else [learner.measured, learner.distiller]
    return next((why for model in models if (why := _sees_other(model, features, device, steps))), "")


def _sees_other(model: Distiller, features: TeacherFeatures, device: Device, steps: WholeSteps) -> str:
    """What tells recorded passes from plain ones: of held-out images and of test images, batch after batch."""
    look, plain = Look(device, steps.passes), Look(device)
    look.begin(model)
    for is_known in (True, False):
        for number in range(UNRECORDED + 3):
            positions = (number + np.arange(BATCH)) % IMAGES
            given = model, features.pixels[positions], features[positions] if is_known else ()
            found, expected = look(*given), plain(*given)
            if not all(all(map(equal, found[name], expected[name])) for name in expected):
                return "recorded passes see other discrepancies"
    return look.failure or ("" if look.replayed else "its passes are not recorded")


def _learner(spec: TrainSpec, features: TeacherFeatures, device: Device, steps: WholeSteps) -> tuple[Learner, str]:
    learner, facts = steps.learner(spec, model_of(spec, features.teacher, device), device, features, IMAGES)
    return learner, facts().get("graph_failure", "")
