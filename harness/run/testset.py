"""The test images of a category with their truth, as evaluations and metrics along a training go over them."""

import functools
import logging
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from dskd.distiller import Distiller
from harness.data import images
from harness.run import metrics
from harness.run.device import Device, free_memory, is_out_of_memory
from harness.run.evaluate import Inspected, inspect, measure
from harness.run.profile import section
from harness.run_folder import Score
from harness.spec import EvaluateSpec, TrainSpec

log = logging.getLogger(__name__)
T = TypeVar("T")

# What the last run had, by all that it depends on: the next one often has the same (another method or seed).
_last_regions: dict[tuple[Any, ...], metrics.Regions] = {}


def kept_last(last: dict[tuple[Any, ...], T], key: tuple[Any, ...], make: Callable[[], T]) -> T:
    """What was made for this key, if that was the last one; else it is made, and the last one given up."""
    if key not in last:
        last.clear()  # before the next one is made: two may not fit
        last[key] = make()
    return last[key]


class TestSet:
    """The test images of a category with their truth."""

    def __init__(self, category: images.Category, spec: TrainSpec, device: Device) -> None:
        key = (spec.data.manifest, spec.image_size, spec.crop)
        self.place = device.place
        self.samples = category.test_samples()
        self.pixels = category.of("test")
        self.masks = np.asarray(category.masks)
        self.labels = np.array([sample.anomalous for sample in self.samples])
        with section("metrics"):
            self.regions = kept_last(_last_regions, key, lambda: metrics.regions(self.masks))
        self.regions_before = int(category.regions.sum())
        self.normal = category.of("train")

    def inspect(
        self,
        distiller: Distiller,
        variants: Sequence[EvaluateSpec],
        device: Device,
        report: Callable[[int, int], None],
        scratch: Path | None = None,
    ) -> tuple[list[Inspected], dict[str, int]]:
        """What the variants see; and for the record the batch size, if memory was too small for the one asked for.

        Several processes do not lower it: the one that has no memory left could not tell the others in time.
        """
        asked = batch_size = variants[0].train.eval_batch_size
        while True:
            try:
                seen = inspect(distiller, self.pixels, variants, batch_size, device, report, self.normal, scratch)
                return seen, {} if batch_size == asked else {"lowered_batch_size": batch_size}
            except (MemoryError, RuntimeError) as error:
                if not is_out_of_memory(error) or batch_size == 1 or device.processes > 1:
                    raise
            batch_size //= 2
            log.warning("out of memory; evaluating in batches of %d", batch_size)
            free_memory()

    def scored(self, seen: Inspected) -> list[Score]:
        """As scores.csv has them."""
        pairs = zip(self.samples, seen.scores, strict=True)
        return [Score(one.path, one.defect, one.anomalous, float(score)) for one, score in pairs]

    def measure(self, seen: Inspected, variant: EvaluateSpec) -> dict[str, Any]:
        return measure(seen, self.labels, self.masks, variant, self.regions, self.regions_before, self.place)


class Along:
    """Metrics along a training, by the method's own map and score: a line for each epoch that it is called after."""

    def __init__(self, spec: TrainSpec, device: Device, category: images.Category) -> None:
        self.spec, self.device, self.category = spec, device, category
        self.rows: list[dict[str, Any]] = []
        self.seconds = 0.0

    @functools.cached_property
    def test(self) -> TestSet:
        return TestSet(self.category, self.spec, self.device)

    def __call__(self, epoch: int, distiller: Distiller) -> None:
        started = time.perf_counter()
        variant = EvaluateSpec(self.spec, self.spec.method.map, self.spec.method.score)
        inspected, _ = self.test.inspect(distiller, [variant], self.device, lambda *_: None)
        for seen in inspected:
            self.rows.append({"epoch": epoch, **self.test.measure(seen, variant)})
        self.seconds += time.perf_counter() - started

    def state_dict(self) -> dict[str, Any]:
        return {"rows": self.rows, "seconds": self.seconds}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.rows, self.seconds = state["rows"], state["seconds"]
