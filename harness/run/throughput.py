"""How fast a model inspects images: forward pass and map, on a device that does nothing else."""

import time
from typing import Any

import numpy as np
import torch

from dskd.anomaly_map import image_scores
from dskd.config import replace
from dskd.distiller import Distiller
from harness.run.device import Device, PeakMemory, free_memory, is_out_of_memory, to_images
from harness.spec import BenchSpec

WARM_UP = 3  # batches at least; and a fifth of the measured time
LEAST = 5  # batches timed at least
INPUTS = 4  # distinct batches in turn, so that no cache serves one input again and again


@torch.inference_mode()
def throughput(spec: BenchSpec, device: Device) -> dict[str, Any]:
    """Latency percentiles in ms and images per second for each batch size, and the best of them.

    Timed: normalisation, teacher, students, map with its smoothing, image score, with the pixels (uint8) on the device
    already and the scores left there. Not timed: decoding, copies to and from the device. Weights are random: speed
    does not depend on them. A batch that memory is too small for is halved until it is not, and the record says so
    (`lowered_from`); one that was measured already is not measured again.
    """
    method = replace(spec.method, {"encoder.init": "random"})  # as all weights here
    distiller = Distiller(method, spec.backbone).to(device.place, memory_format=torch.channels_last).eval()
    memory = PeakMemory(device)
    draw = torch.Generator().manual_seed(0)
    batches: list[dict[str, Any]] = []
    for asked in spec.batch_sizes:
        size, times = _time_largest(asked, distiller, spec, draw, device)
        lowered = {} if size == asked else {"lowered_from": asked}
        if lowered and any(batch["batch_size"] == size for batch in batches):
            continue
        p50, p95 = np.percentile(times, [50, 95]) * 1000
        batches.append(
            {
                "batch_size": size,
                "images_per_s": round(size * len(times) / sum(times), 3),
                "latency_p50_ms": round(float(p50), 4),
                "latency_p95_ms": round(float(p95), 4),
                "iterations": len(times),
                **lowered,
            }
        )
    best = max(batches, key=lambda batch: batch["images_per_s"])
    parameters = {
        "parameters_teacher": sum(p.numel() for p in distiller.teacher.parameters()),
        "parameters_students": sum(p.numel() for p in distiller.students.parameters()),
    }
    sizes = {"images_per_s": best["images_per_s"], "best_batch_size": best["batch_size"]}
    return sizes | {"batches": batches} | parameters | memory.read() | device.facts()


def _time_largest(
    size: int, distiller: Distiller, spec: BenchSpec, draw: torch.Generator, device: Device
) -> tuple[int, list[float]]:
    """`_time` of the first of `size`, `size` / 2, ... that memory is large enough for."""
    while True:
        try:
            shape = (size, spec.image_size, spec.image_size, 3)
            inputs = [torch.randint(256, shape, dtype=torch.uint8, generator=draw) for _ in range(INPUTS)]
            return size, _time(distiller, [pixels.to(device.place) for pixels in inputs], spec.seconds, device)
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error) or size == 1:
                raise
        inputs = []
        size //= 2
        free_memory()


def _time(distiller: Distiller, inputs: list[torch.Tensor], seconds: float, device: Device) -> list[float]:
    """Seconds of each pass, for at least `seconds` and LEAST passes after warming up."""

    def one(number: int) -> float:
        device.synchronize()
        started = time.perf_counter()
        images = to_images(inputs[number % len(inputs)])
        with device.autocast():
            maps = distiller.anomaly_map(images)
        image_scores(maps, distiller.method.score)
        device.synchronize()
        return time.perf_counter() - started

    def at_least(passes: int, duration: float) -> list[float]:
        times: list[float] = []
        while len(times) < passes or sum(times) < duration:
            times.append(one(len(times)))
        return times

    at_least(WARM_UP, seconds / 5)
    return at_least(LEAST, seconds)
