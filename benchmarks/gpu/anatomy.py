"""What a plain training step is made of: kernels, how long the device is busy, what the host takes, its waits."""

import warnings
from typing import Any

import torch
from scene import Scene, pace
from sheet import Sheet, figures

PROFILED = 5  # steps


def run(sheet: Sheet) -> None:
    """The block."""
    settings = [("stfpm", 256), ("dskd", 256), ("stfpm", 128), ("dskd", 128)]
    rates = {}
    for ema in (0.0, 0.99):
        for method, side in [("stfpm", 32)] if sheet.small else settings:
            name = f"{method} {side}{', ema' if ema else ''}"
            if sheet.enough(name, 6):
                with sheet.trying(name):
                    rates[name] = anatomy(sheet, method, side, ema)
        sheet.say(", ".join(f"{name}: {figures(found)} images/s" for name, found in rates.items()))


def anatomy(sheet: Sheet, method: str, side: int, ema: float) -> float:
    """One setting's row; its images per second."""
    images, batch = (16, 8) if sheet.small else (1024, None)
    scene = Scene(sheet.kind, method, side, images, batch, recipe=(("train.ema", ema),))
    learner, features, batches = scene.learner(), scene.features(), scene.batches()
    learner.students.train()

    def step() -> Any:
        return learner.step(features, next(batches))

    few, many = (1, 2) if sheet.small else (10, 60)
    pace(scene, step, few, 0)
    found = pace(scene, step, many, many * scene.batch)
    cells = {"setting": f"{method} {side}, batch {scene.batch}", "ema": ema, **vars(found)}
    if scene.place.type == "cuda":
        cells |= kernels(step) | {"waits_a_step": waits(step)}
        sheet.check(f"{method} {side} ema {ema}: no step waits for the device", cells["waits_a_step"] == 0)
    sheet.row("plain steps", **cells)
    return found.images_per_s


def kernels(step: Any) -> dict[str, Any]:
    """Kernels of a step and how long the device is at them, by torch's profiler."""
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    torch.cuda.synchronize()
    with torch.profiler.profile(activities=activities) as profile:
        for _ in range(PROFILED):
            step()
        torch.cuda.synchronize()
    on_device = [
        one
        for one in profile.events()
        if one.device_type == torch.autograd.DeviceType.CUDA
        and not getattr(one, "is_user_annotation", False)  # a span around kernels, as an optimizer's step
        and not one.name.startswith("Optimizer.")
    ]
    spans = sorted((one.time_range.start, one.time_range.end) for one in on_device)
    busy, until = 0.0, float("-inf")
    for start, end in spans:
        busy += max(0.0, end - max(start, until))
        until = max(until, end)
    copies = sum(one.name.startswith(("Memcpy", "Memset")) for one in on_device)
    return {
        "kernels": round((len(on_device) - copies) / PROFILED, 1),
        "copies": round(copies / PROFILED, 1),
        "device_busy_ms": round(busy / 1000 / PROFILED, 3),
    }


def waits(step: Any) -> float:
    """How often a step makes the host wait for the device."""
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            for _ in range(PROFILED):
                step()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return sum("called a synchronizing" in str(one.message) for one in seen) / PROFILED
