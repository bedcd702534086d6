"""How fast a model inspects images, on a device that does nothing else. docs/protocol.md says what is timed."""

import io
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image

from dskd.anomaly_map import anomaly_map, gaussian_filter, image_scores
from dskd.config import replace
from dskd.count import count
from dskd.distiller import Distiller
from dskd.size import sides
from harness.run.batches import to_images
from harness.run.device import Device
from harness.run.machine import Watch
from harness.run.memory import largest_that_fits, peak_memory, reset_peak_memory
from harness.spec import BENCH_REVISION, BenchSpec

WARM_UP = 10  # passes at least; and a fifth of the measured time
LEAST = 10  # passes timed at least
INPUTS = 4  # distinct batches in turn, so that no cache serves one input again and again
BURST = 8  # passes between two looks at the clock where the device may run ahead
STAGES = ("model", "map_score", "smoothing", "transfer", "decode")  # each interval holds those before it
MOST_SHAPES = 64  # batch sizes of one compiled model
PERCENTILES = (50, 90, 95, 99)


@torch.inference_mode()
def throughput(spec: BenchSpec, device: Device) -> dict[str, Any]:
    """Single-stream latency, offline throughput of each batch size with the best of them, and where the time goes.

    Weights are random: speed does not depend on them. A batch that memory is too small for is halved until it is not,
    and the record says so (`lowered_from`); one that was measured already is not measured again.
    """
    watch = Watch(device.place)
    reset_peak_memory()
    model = _Model(spec, device)
    gmac = model.gmac()
    draw = np.random.default_rng(0)
    single = _Batches(draw, 1, model)
    started = time.perf_counter()
    single.stages(0)  # compiles
    first_pass_s = time.perf_counter() - started
    latency = _latency(single, spec.seconds)
    offline: list[dict[str, Any]] = []
    best: _Batches = single

    def measured(size: int) -> tuple[_Batches, dict[str, Any]]:
        batches = _Batches(draw, size, model)
        return batches, _offline(batches, spec.seconds, watch)

    for asked in spec.batch_sizes:
        _, (batches, found) = largest_that_fits(asked, measured)
        if all(batches.size != earlier["batch_size"] for earlier in offline):
            offline.append(found if batches.size == asked else found | {"lowered_from": asked})
            if found["images_per_s"] >= max(one["images_per_s"] for one in offline):
                best = batches
    fastest = max(offline, key=lambda one: one["images_per_s"])
    energy = fastest.get("energy_per_1000_images_j")
    teacher, students = (
        sum(p.numel() for p in module.parameters()) for module in (model.distiller.teacher, model.distiller.students)
    )
    return {
        "protocol": BENCH_REVISION,
        "images_per_s": fastest["images_per_s"],
        "best_batch_size": fastest["batch_size"],
        "single_stream": latency,
        "offline": offline,
        "best_batch_stages": {"batch_size": best.size, **_latency(best, spec.seconds)["stages"]},
        **({} if energy is None else {"energy_per_1000_images_j": energy}),
        **({"first_pass_s": round(first_pass_s, 3)} if spec.compile else {}),
        "gmac": gmac,
        "parameters_teacher": teacher,
        "parameters_students": students,
        **peak_memory(),
        **watch.read(),
        **device.facts(),
    }


class _Model:
    """The model as it is deployed, in steps that can be timed apart."""

    def __init__(self, spec: BenchSpec, device: Device) -> None:
        method = replace(spec.method, {"encoder.init": "random"})  # as all weights here
        self.device, self.sides = device, sides(spec.image_size)
        self.distiller = Distiller(method, spec.backbone).to(device.place, memory_format=torch.channels_last).eval()
        self.map = replace(method.map, {"sigma": 0, "sigma_share": 0})
        self.sigma = method.map.sigma_of(self.sides)
        self.score = method.score
        self.discrepancies: Callable[..., Any] = self.distiller.discrepancies
        if spec.compile:
            torch._dynamo.reset()
            # torch keeps 8 graphs of a function and then runs eager without a word: a bench is compiled or fails.
            torch._dynamo.config.recompile_limit = MOST_SHAPES
            torch._dynamo.config.fail_on_recompile_limit_hit = True
            self.discrepancies = torch.compile(self.distiller.discrepancies, dynamic=False)

    def inspect(self, pixels: torch.Tensor, mark: Callable[[], None]) -> tuple[torch.Tensor, torch.Tensor]:
        """uint8 (B, H, W, 3) on the device to maps and scores on it; `mark` after model, map and smoothing."""
        with self.device.autocast():
            found = self.discrepancies(to_images(pixels))
        mark()
        maps = anomaly_map(found, self.map, self.sides)
        mark()
        if self.sigma:
            maps = gaussian_filter(maps, self.sigma)
        mark()
        return maps, image_scores(maps, self.score)

    def gmac(self) -> float:
        """1e9 multiply-adds of teacher and students for one image, by torch's counter (convolutions, products)."""
        images = torch.zeros(1, 3, *self.sides, device=self.device.place)
        macs, _ = count(self.distiller.discrepancies, images)
        return round(macs / 1e9, 3)


class _Batches:
    """INPUTS distinct batches of one size, as files' bytes on the host and as pixels on the device."""

    def __init__(self, draw: np.random.Generator, size: int, model: _Model) -> None:
        self.size, self.model = size, model
        self.files = [[_png(draw, model.sides) for _ in range(min(size, 8))] for _ in range(INPUTS)]
        self.pixels = [self._decode(number).to(model.device.place) for number in range(INPUTS)]

    def _decode(self, number: int) -> torch.Tensor:
        files = self.files[number % INPUTS]
        images = [Image.open(io.BytesIO(files[i % len(files)])).convert("RGB") for i in range(self.size)]
        return torch.from_numpy(np.stack([np.asarray(image) for image in images]))

    def once(self, number: int) -> None:
        """From pixels on the device to scores on it; the device may still be at it."""
        self.model.inspect(self.pixels[number % INPUTS], lambda: None)

    def stages(self, number: int) -> list[float]:
        """Seconds of one pass by STAGES, each with those before it."""
        device = self.model.device
        times = _Times(device)
        device.synchronize()
        started = time.perf_counter()
        decoded = self._decode(number)
        sent = time.perf_counter()
        pixels = decoded.to(device.place)
        times.mark()
        maps, scores = self.model.inspect(pixels, times.mark)
        times.mark()
        maps.cpu(), scores.cpu()
        device.synchronize()
        ended = time.perf_counter()
        model, made, smoothed, scored = times.read()
        on_device = model + made + scored + smoothed
        return [model, model + made + scored, on_device, max(on_device, ended - sent), max(on_device, ended - started)]


@dataclass
class _Times:
    """Moments on the device's own clock: CUDA's events, which no host has to wait for, or the host's clock."""

    device: Device

    def __post_init__(self) -> None:
        self.moments: list[Any] = []

    def mark(self) -> None:
        if self.device.place.type == "cuda":
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            self.moments.append(event)
        else:
            self.moments.append(time.perf_counter())

    def read(self) -> list[float]:
        """Seconds between the moments."""
        pairs = zip(self.moments[:-1], self.moments[1:], strict=True)
        if self.device.place.type == "cuda":
            return [before.elapsed_time(after) / 1000 for before, after in pairs]
        return [after - before for before, after in pairs]


def _latency(batches: _Batches, seconds: float) -> dict[str, Any]:
    """Percentiles and standard deviation of passes one after the other, pixels on the device to scores on it; and the
    median of each of STAGES.
    """
    _at_least(WARM_UP, seconds / 5, batches.stages)
    passes = np.array(_at_least(LEAST, seconds, batches.stages)) * 1000
    inspected = passes[:, STAGES.index("smoothing")]
    return {
        **{f"latency_p{p}_ms": round(float(np.percentile(inspected, p)), 4) for p in PERCENTILES},
        "latency_std_ms": round(float(inspected.std(ddof=1)), 4),
        "iterations": len(passes),
        "stages": {
            f"{name}_ms": round(float(value), 4) for name, value in zip(STAGES, np.median(passes, axis=0), strict=True)
        },
    }


def _at_least(passes: int, seconds: float, one: Callable[[int], Any]) -> list[Any]:
    """What passes give, for at least so many and so long."""
    found: list[Any] = []
    started = time.perf_counter()
    while len(found) < passes or time.perf_counter() - started < seconds:
        found.append(one(len(found)))
    return found


def _offline(batches: _Batches, seconds: float, watch: Watch) -> dict[str, Any]:
    """Images per second with passes back to back: the device is waited for once in BURST of them."""
    device = batches.model.device

    def burst(number: int) -> None:
        for i in range(BURST if device.place.type == "cuda" else 1):
            batches.once(number * BURST + i)
        device.synchronize()

    _at_least(WARM_UP, seconds / 5, burst)
    with watch.energy() as energy:
        started = time.perf_counter()
        bursts = _at_least(LEAST, seconds, burst)
        took = time.perf_counter() - started
    images = batches.size * len(bursts) * (BURST if device.place.type == "cuda" else 1)
    found = {"batch_size": batches.size, "images_per_s": round(images / took, 3), "iterations": len(bursts)}
    return found | ({"energy_per_1000_images_j": round(energy[0] / images * 1000, 2)} if energy else {})


def _png(draw: np.random.Generator, size: tuple[int, int]) -> bytes:
    """A texture-like image as a PNG file: noise over several scales, neither flat nor incompressible."""
    height, width = size
    grains = ((4, 4), (16, 16), size)
    small = [Image.fromarray(draw.integers(256, size=(*grain, 3), dtype=np.uint8)) for grain in grains]
    layers = [np.asarray(image.resize((width, height), Image.Resampling.BILINEAR), np.float32) for image in small]
    mixed = 0.5 * layers[0] + 0.4 * layers[1] + 0.1 * layers[2]
    stream = io.BytesIO()
    Image.fromarray(mixed.astype(np.uint8)).save(stream, "PNG")
    return stream.getvalue()
