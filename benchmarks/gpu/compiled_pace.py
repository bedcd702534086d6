"""How long the harness's compiled steps take to compile, and how fast they are, beside plain ones."""

import time
from typing import Any

from scene import Scene, pace
from sheet import Sheet, figures

import harness.run.compiled
from harness.run.compiled import Compiled


def run(sheet: Sheet) -> None:
    """The block."""
    if sheet.small:
        harness.run.compiled.BACKEND = "aot_eager"
    rates = {}
    for method, side, needs_s in [("stfpm", 32, 5)] if sheet.small else [("stfpm", 256, 30), ("dskd", 128, 45)]:
        name = f"{method} {side}"
        if sheet.enough(name, needs_s):
            with sheet.trying(name):
                rates[name] = compiled(sheet, method, side)
                sheet.say(", ".join(f"{key}: {figures(found)} images/s" for key, found in rates.items()))


def compiled(sheet: Sheet, method: str, side: int) -> float:
    scene = Scene(sheet.kind, method, side, 16 if sheet.small else 1024, 8 if sheet.small else None)
    learner, features, batches = scene.learner(), scene.features(), scene.batches()
    started = time.perf_counter()
    made = Compiled(learner.distiller.students, scene.device)
    made.begin([scene.batch], learner.distiller, features, scene.device)
    seconds = time.perf_counter() - started
    learner.forward = made.forward
    learner.students.train()

    def step() -> Any:
        return learner.step(features, next(batches))

    few, many = (1, 2) if sheet.small else (10, 120)
    pace(scene, step, few, 0)
    found = pace(scene, step, many, many * scene.batch)
    sheet.row(
        "compiled steps of the harness",
        setting=f"{method} {side}, batch {scene.batch}, {scene.precision}",
        compile_s=round(seconds, 1),
        **vars(found),
        **made.facts(),
    )
    sheet.check(f"{method} {side}: compiled", not made.failure, made.failure)
    return found.images_per_s
