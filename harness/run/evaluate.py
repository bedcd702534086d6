"""Maps, scores and metrics of trained students on the test images, for several variants over one pass of the
networks: after a training, and along it.
"""

import logging
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dskd.anomaly_map import Calibration, Discrepancies, anomaly_map, calibrate, image_scores
from dskd.distiller import Distiller, needs_features
from harness.data import held_out, images
from harness.run import metrics, operating, streaming
from harness.run.batches import deal, index_of, received, whole_batches
from harness.run.device import Device
from harness.run.memory import largest_that_fits
from harness.run.passes import Look
from harness.run.sections import section
from harness.run_folder import Calibrated, Score
from harness.spec import EvaluateSpec, TrainSpec

log = logging.getLogger(__name__)


class TestSet:
    """The test images of a category with their truth.

    Attributes:
        samples: the N images in their order; labels: bool (N,), whether they are anomalous; known: bool (N,), whether
            each pixel's truth is known: of good images and of those with a mask.
        pixels: uint8 (N, H, W, 3); normal: those of the training images, less those for thresholds.
        calibration: those, which are for thresholds alone; folds: where there are none of those, the further trainings
            by which thresholds are made; calibration_samples: the images that they are made from, in their order.
        masks: bool (N, H, W); regions: the defective ones in them; regions_before: their number before masks were
            resized.
    """

    def __init__(self, category: images.Category, regions: metrics.Regions, spec: TrainSpec) -> None:
        test, train = category.test, category.train
        held = held_out.divide(train.samples, spec).calibration
        self.folds = held_out.divide_by_fold(train.samples, spec) if spec.folds else []
        self.samples = test.samples
        self.labels = np.array([sample.anomalous for sample in self.samples], np.bool_)
        self.known = np.array([sample.known for sample in self.samples], np.bool_)
        self.pixels, self.calibration = np.asarray(test.images), train.images[held]
        self.normal = train.images[np.setdiff1d(train.indices("train"), held)] if len(held) else train.of("train")
        self.calibration_samples = [train.samples[i] for i in (train.indices("train") if self.folds else held)]
        self.masks = np.asarray(test.masks)
        self.regions, self.regions_before = regions, int(test.regions.sum())


@dataclass(frozen=True)
class Inspected:
    """The test images as one variant sees them: float32 `maps` (N, H, W), maybe in a file, float64 `scores` (N,).
    `calibration`: the same of the normal images for thresholds, where there are any; `standardisation`: what its maps
    were standardised by, if they were.
    """

    maps: np.ndarray
    scores: np.ndarray
    calibration: "Inspected | None" = None
    standardisation: Calibration | None = None


def inspect(
    distiller: Distiller,
    pixels: np.ndarray,
    variants: Sequence[EvaluateSpec],
    batch_size: int,
    device: Device,
    report: Callable[[int, int], None],
    normal: np.ndarray,
    scratch: Path | None = None,
    calibration: np.ndarray | None = None,
    look: Look | None = None,
) -> tuple[int, list[Inspected]]:
    """Run the test images (uint8 (N, H, W, 3)) once through the networks and make each variant's maps and scores.

    Batches are all of one size, the last filled up, so that maps do not depend on how the set divides, nor on the
    number of processes: they are dealt to the ranks, and rank 0 gets them all.

    Args:
        batch_size: halved until memory is large enough for it; not so on several processes, where the one that has no
            memory left could not tell the others in time.
        report: called after each batch as (images done, images in all); what it raises ends the pass.
        normal: training images, for the variants whose maps are standardised by them (each rank sees all of these).
        scratch: folder where the maps of variants with `metrics: histogram` lie while they are used; None for the
            system's.
        calibration: the normal images for thresholds, seen after the test images in batches of their own.
        look: how batches pass through the networks; None for plainly, as they do where memory is too small.

    Returns:
        The batch size that it was done with, and on rank 0 what each variant sees.
    """

    sets = [pixels] if calibration is None or not len(calibration) else [pixels, calibration]
    look = look or Look(device)

    def attempt(size: int) -> list[Inspected]:
        if size != batch_size:
            log.warning("out of memory; evaluating in batches of %d", size)
            look.plainly(distiller)
        seen, *held = _inspect(distiller, sets, variants, size, look, report, normal, scratch)
        return [replace(one, calibration=own) for one, own in zip(seen, *held, strict=True)] if held else seen

    return largest_that_fits(batch_size, attempt, least=1 if device.processes == 1 else batch_size)


Through = Callable[[np.ndarray, np.ndarray], Discrepancies]


@torch.inference_mode()
def _inspect(
    distiller: Distiller,
    sets: Sequence[np.ndarray],
    variants: Sequence[EvaluateSpec],
    batch_size: int,
    look: Look,
    report: Callable[[int, int], None],
    normal: np.ndarray,
    scratch: Path | None,
) -> list[list[Inspected]]:
    """Of each set of images what each variant sees."""
    look.begin(distiller)
    device, together = look.device, any(needs_features(variant.map) for variant in variants)

    def through(pixels: np.ndarray, positions: np.ndarray) -> Discrepancies:
        with section("transfer"):
            batch = index_of(pixels[positions], device.place)
        with section("inspect", batch_size):
            return look(distiller, batch, together=together)

    standard = None
    standardised = [variant.map.student_fuse == "error_disagreement" for variant in variants]
    if any(standardised):
        # The last batch is filled up with its last image: of hundreds of images that weighs nothing.
        batches = whole_batches(len(normal), batch_size)
        standard = calibrate(through(normal, positions) for positions, _ in batches)
    found, done, total = [], 0, sum(map(len, sets))
    for pixels in sets:
        rooms = [room(variant, pixels.shape[:3], scratch) for variant in (variants if device.main else ())]
        seen = [
            Inspected(room, np.empty(len(pixels), np.float64), standardisation=standard if own else None)
            for room, own in zip(rooms, standardised, strict=False)
        ]
        for count in _passed(through, pixels, variants, batch_size, device, standard, seen):
            report(done + count, total)
        found.append(seen)
        done += len(pixels)
    return found


def _passed(
    through: Through,
    pixels: np.ndarray,
    variants: Sequence[EvaluateSpec],
    batch_size: int,
    device: Device,
    standard: Calibration | None,
    seen: list[Inspected],
) -> Iterator[int]:
    """Fill what each variant sees of the images, turn by turn of the ranks; how many of them are done after each."""
    count, *size = pixels.shape[:3]

    def keep(rows: dict[int, np.ndarray], sent: list[Callable[[], list[torch.Tensor]]]) -> None:
        with section("transfer"):
            for into_these, arrived in zip(seen, sent, strict=device.main):
                tensors = arrived()
                for rank, into in rows.items():
                    into_these.maps[into] = tensors[rank][: len(into)].numpy()
                    into_these.scores[into] = tensors[device.processes + rank][: len(into)].numpy()

    batches = whole_batches(count, batch_size)
    hands = [deal(len(batches), rank, device.processes) for rank in range(device.processes)]
    last = None  # kept when the next batch has been launched, so that a GPU is at that while the host waits and copies
    for turn, numbers in enumerate(zip(*hands, strict=True), start=1):
        positions, real = batches[numbers[device.rank]]
        found, on_the_way = through(pixels, positions), []  # found: until the next batch
        for variant in variants:
            with section("maps"):
                maps = anomaly_map(found, variant.map, tuple(size), standard)
                scores = torch.zeros(batch_size, dtype=torch.float64, device=device.place)
                scores[:real] = image_scores(maps[:real], variant.score)
                on_the_way.append(_send([*device.gather(maps), *device.gather(scores)]))
        if last:
            keep(*last)
        last = (received(batches, numbers) if device.main else {}), on_the_way
        yield min(count, turn * device.processes * batch_size)
    if last:
        keep(*last)


def _send(tensors: list[torch.Tensor]) -> Callable[[], list[torch.Tensor]]:
    """Start to copy tensors to the host; what is returned waits for the copies, and for nothing that was launched after
    them, and gives them.
    """
    if not tensors or not tensors[0].is_cuda:
        return lambda: tensors
    copies = [torch.empty(each.shape, dtype=each.dtype, pin_memory=True) for each in tensors]
    for copy, each in zip(copies, tensors, strict=True):
        copy.copy_(each, non_blocking=True)
    done = torch.cuda.Event()
    done.record()

    def arrived() -> list[torch.Tensor]:
        done.synchronize()
        return copies

    return arrived


def room(variant: EvaluateSpec, shape: tuple[int, ...], scratch: Path | None) -> np.ndarray:
    """For float32 maps: in memory, or in a file that is gone as soon as nobody has the array. Raises OSError."""
    if variant.metrics == "exact" or not np.prod(shape):
        return np.empty(shape, np.float32)
    with tempfile.TemporaryFile(dir=scratch) as file:
        os.posix_fallocate(file.fileno(), 0, 4 * int(np.prod(shape)))  # else a full disk would kill the process later
        return np.memmap(file, np.float32, "r+", shape=shape)


def measure(seen: Inspected, test: TestSet, spec: EvaluateSpec, place: torch.device) -> dict[str, Any]:
    """All metrics of one variant, with what a reader needs to judge them: counts, and regions that resizing lost;
    and with `metrics: histogram` how far each estimated metric may be from the exact one. Pixel metrics are over the
    images whose truth is known.

    Args:
        place: of the networks; a GPU sorts pixels too.
    """
    given = seen.scores, test.labels, seen.maps, test.masks, test.regions, spec.aupro_limits
    known = None if test.known.all() else test.known
    with section("metrics"):
        if spec.metrics == "histogram":
            values, bounds = streaming.evaluate(*given, known)
        else:
            values, bounds = metrics.evaluate(*given, place if place.type == "cuda" else None, known), {}
    image, pixel = values["image_auroc"], values["pixel_auroc"]
    # A collapsed run must not be averaged silently.
    degenerate = (image is not None and image <= 0.5) or (pixel is not None and pixel < 0.5)
    without = int((~test.known).sum())
    defective = test.masks.any(axis=(1, 2))
    return {
        **values,
        "degenerate": bool(degenerate),
        "test_normal": int((~test.labels).sum()),
        "test_anomalous": int(test.labels.sum()),
        "regions": len(test.regions.sizes),
        "regions_lost": max(0, test.regions_before - len(test.regions.sizes)),
        "anomalous_without_mask": int((test.labels & test.known & ~defective).sum()),
        **({"test_without_mask": without} if without else {}),
        **({"error_bounds": bounds, "bins": streaming.BINS} if spec.metrics == "histogram" else {}),
    }


def decided(seen: Inspected, test: TestSet, spec: EvaluateSpec) -> dict[str, Any]:
    """What a record has beside the metrics: the threshold of F1-max, which knows the test images, and where normal
    images were held out the thresholds that they make, with what comes of these on the test images.
    """
    result: dict[str, Any] = {"image_f1_max_threshold": operating.f1_max_threshold(seen.scores, test.labels)}
    own = seen.calibration
    if own is None:
        return result
    with section("metrics"):
        groups = [held_out.unit_of(one) for one in test.calibration_samples]
        result |= operating.thresholds_of(own.scores, own.maps, groups, spec.false_alarm_rate)
        result |= operating.operating_point(seen.scores, test.samples, result["threshold"])
        marked = operating.marked_share(seen.maps, ~test.labels, result["pixel_threshold"])
    return result | {"pixel_fpr_at_threshold": marked}


def calibrated_of(seen: Inspected, test: TestSet) -> list[Calibrated]:
    """As calibration.csv has them; none where nothing was held out."""
    if seen.calibration is None:
        return []
    pairs = zip(test.calibration_samples, seen.calibration.scores, strict=True)
    return [Calibrated(one.path, one.group, float(score)) for one, score in pairs]


def scores_of(seen: Inspected, test: TestSet) -> list[Score]:
    """As scores.csv has them."""
    pairs = zip(test.samples, seen.scores, strict=True)
    return [Score(one.path, one.defect, one.anomalous, float(score), one.group) for one, score in pairs]


class Along:
    """Metrics along a training, by the method's own map and score: a line for each epoch that it is called after, none
    where there are no test images.

    Args:
        test: gives the test set, when there is something to measure.
        look: as of `inspect`.
    """

    def __init__(self, spec: TrainSpec, device: Device, test: Callable[[], TestSet], look: Look | None = None) -> None:
        self.spec, self.device, self.test, self.look = spec, device, test, look
        self.rows: list[dict[str, Any]] = []
        self.seconds = 0.0

    def __call__(self, epoch: int, settle: Callable[[], Distiller]) -> None:
        started = time.perf_counter()
        spec, device, test = self.spec, self.device, self.test()
        if not len(test.samples):
            return
        variant = EvaluateSpec(spec, spec.method.map, spec.method.score)
        size = spec.eval_batch_size
        given = settle(), test.pixels, [variant], size, device, lambda *_: None, test.normal
        _, inspected = inspect(*given, look=self.look)
        for seen in inspected:
            self.rows.append({"epoch": epoch, **measure(seen, test, variant, device.place)})
        self.seconds += time.perf_counter() - started

    def state_dict(self) -> dict[str, Any]:
        return {"rows": self.rows, "seconds": self.seconds}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.rows, self.seconds = state["rows"], state["seconds"]
