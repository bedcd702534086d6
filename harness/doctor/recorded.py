"""Whether steps recorded as CUDA graphs end with the bits of plain ones, which `compile: auto` rests on."""

from dataclasses import replace as with_fields
from typing import Any

from dskd import replace
from harness.doctor.compute import TRUNKS, features_of, hash_of, model_of, spec_of, teacher_of
from harness.doctor.findings import Finding, Where, failed, passed, skipped
from harness.run.device import Device, open_device
from harness.run.features import TeacherFeatures
from harness.run.graphed import WholeSteps
from harness.run.learner import Learner
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
    equal = [schedule for schedule in SCHEDULES if schedule not in other]
    details = "; ".join(f"{schedule}: {why}" for schedule, why in other.items())
    if not equal:
        return failed(f"recorded steps are not plain ones: {details}", "compile: auto stays with plain steps")
    said = f"{epochs} epochs of {len(recipes)} recipes end with the bits of plain steps, rates {', '.join(equal)}"
    return passed(said + (f"; not so {details}" if other else ""), schedules=equal)


def _differs(spec: TrainSpec, features: TeacherFeatures, device: Device, steps: WholeSteps) -> str:
    """What tells a training by recorded steps, in which another seed was trained before, from a plain one."""
    before = with_fields(spec, seed=spec.seed + 1)
    hash_of(_learner(before, features, device, steps)[0], features, IMAGES)
    learner, failure = _learner(spec, features, device, steps)
    if failure:
        return failure
    plain = Learner(model_of(spec, features.teacher, device), spec, device, IMAGES)
    same = hash_of(learner, features, IMAGES) == hash_of(plain, features, IMAGES)
    return "" if same else "it ends with other bits"


def _learner(spec: TrainSpec, features: TeacherFeatures, device: Device, steps: WholeSteps) -> tuple[Learner, str]:
    learner, facts = steps.learner(spec, model_of(spec, features.teacher, device), device, features, IMAGES)
    return learner, facts().get("graph_failure", "")
