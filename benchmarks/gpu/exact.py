"""Metrics that the device sorts are those of the host, and how fast it sorts."""

import statistics
import time

import numpy as np
import torch
from sheet import Sheet

from harness.run.device import open_device
from harness.run.metrics import evaluate


def run(sheet: Sheet) -> None:
    """The block."""
    device = open_device(sheet.kind, "fp32")
    sizes = (6, 32) if sheet.small else (64, 256)
    for name, levels in (("many ties", 40), ("no ties", None)):
        with sheet.trying(name):
            given = test_set(*sizes, levels)
            started = time.perf_counter()
            on_host = evaluate(**given)
            host_s, started = time.perf_counter() - started, time.perf_counter()
            on_device = evaluate(**given, place=device.place)
            device_s = time.perf_counter() - started
            sheet.check(f"{name}: the device's metrics are the host's", on_device == on_host, str(on_device)[:200])
            sheet.row(
                "metrics", set=name, pixels=given["maps"].size, host_s=round(host_s, 3), device_s=round(device_s, 3)
            )
    count = 10**5 if sheet.small else 10**8
    with sheet.trying("sort"):
        scores, seconds = torch.rand(count, device=device.place), []
        for _ in range(4):
            device.synchronize()
            started = time.perf_counter()
            scores.sort()
            device.synchronize()
            seconds.append(time.perf_counter() - started)
        sheet.say(f"{count:.0e} float32 sorted in {statistics.median(seconds[1:]):.4f} s")


def test_set(images: int, side: int, levels: int | None) -> dict[str, np.ndarray]:
    draw = np.random.default_rng(0)
    masks = np.zeros((images, side, side), bool)
    for number in range(images // 2, images):
        row, column = draw.integers(0, side - side // 4, 2)
        masks[number, row : row + side // 4, column : column + side // 4] = True
    maps = (0.7 * draw.random(masks.shape) + 0.3 * masks).astype(np.float32)
    if levels:
        maps = np.floor(levels * maps).astype(np.float32)
    return {"image_scores": maps.max(axis=(1, 2)), "labels": masks.any(axis=(1, 2)), "maps": maps, "masks": masks}
