"""Maps, scores and metrics of trained students on the test images, for several variants over one pass of the
networks.
"""

import os
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dskd.anomaly_map import Discrepancies, anomaly_map, calibrate, image_scores
from dskd.distiller import Distiller, needs_features
from harness.run import metrics, streaming
from harness.run.device import Device, to_images, whole_batches
from harness.run.profile import section
from harness.spec import EvaluateSpec


@dataclass(frozen=True)
class Inspected:
    """The test images as one variant sees them: float32 `maps` (N, S, S), maybe in a file, float64 `scores` (N,)."""

    maps: np.ndarray
    scores: np.ndarray


@torch.inference_mode()
def inspect(
    distiller: Distiller,
    images: np.ndarray,
    variants: Sequence[EvaluateSpec],
    batch_size: int,
    device: Device,
    report: Callable[[int, int], None],
    normal: np.ndarray,
    scratch: Path | None = None,
) -> list[Inspected]:
    """Run the test images (uint8 (N, S, S, 3)) once through the networks and make each variant's maps and scores.

    Batches are of exactly `batch_size`, the last filled up, so that maps do not depend on how the set divides, nor on
    the number of processes: batch i is rank i % k's, and rank 0 gets them all. The other ranks end with an empty list.

    Args:
        report: called after each batch as (images done, images in all); what it raises ends the pass.
        normal: training images, for the variants whose maps are standardised by them (each rank sees all of these).
        scratch: folder where the maps of variants with `metrics: histogram` lie while they are used; None for the
            system's.

    Raises:
        RuntimeError: an image that did not arrive, or twice.
    """
    distiller.students.eval()
    together = any(needs_features(variant.map) for variant in variants)

    def discrepancies(images: np.ndarray, positions: np.ndarray) -> Discrepancies:
        with section("transfer"):
            pixels = torch.from_numpy(images[positions]).to(device.place)
        with section("inspect", batch_size), device.autocast():
            batch = to_images(pixels)
            return distiller.discrepancies(batch, together=together)

    calibration = None
    if any(variant.map.student_fuse == "error_disagreement" for variant in variants):
        # The last batch is filled up with its last image: of hundreds of images that weighs nothing.
        batches = whole_batches(len(normal), batch_size)
        calibration = calibrate(discrepancies(normal, positions) for positions, _ in batches)
    count, side = images.shape[:2]
    kept = variants if device.main else ()
    maps = [_room(variant, (count, side, side), scratch) for variant in kept]
    scores = [np.empty(count, np.float64) for _ in kept]
    arrived = np.zeros(count, np.int64)
    batches = whole_batches(count, batch_size)
    for turn in range(0, len(batches), device.processes):
        # In the last turn a rank may have no batch of its own: it repeats the last one, which rank 0 leaves out.
        number = min(turn + device.rank, len(batches) - 1)
        positions, real = batches[number]
        found = discrepancies(images, positions)
        sent = [int(each) for each in device.gather(torch.tensor(number, device=device.place))]
        rows = {rank: batches[each][0][: batches[each][1]] for rank, each in enumerate(sent) if each not in sent[:rank]}
        for place, variant in enumerate(variants):
            with section("maps"):
                made = anomaly_map(found, variant.map, (side, side), calibration)
                score = torch.zeros(batch_size, dtype=torch.float64, device=device.place)
                score[:real] = image_scores(made[:real], variant.score)
                all_maps, all_scores = device.gather(made), device.gather(score)
            with section("transfer"):
                for rank, into in rows.items():
                    maps[place][into] = all_maps[rank][: len(into)].cpu().numpy()
                    scores[place][into] = all_scores[rank][: len(into)].cpu().numpy()
        for into in rows.values():
            arrived[into] += 1
        report(min(count, (turn + device.processes) * batch_size), count)
    if device.main and not (arrived == 1).all():
        raise RuntimeError(f"{int((arrived != 1).sum())} of {count} images did not arrive once from the processes")
    return [Inspected(*pair) for pair in zip(maps, scores, strict=True)]


def _room(variant: EvaluateSpec, shape: tuple[int, ...], scratch: Path | None) -> np.ndarray:
    """For float32 maps: in memory, or in a file that is gone as soon as nobody has the array. Raises OSError."""
    if variant.metrics == "exact" or not np.prod(shape):
        return np.empty(shape, np.float32)
    with tempfile.TemporaryFile(dir=scratch) as file:
        os.posix_fallocate(file.fileno(), 0, 4 * int(np.prod(shape)))  # else a full disk would kill the process later
        return np.memmap(file, np.float32, "r+", shape=shape)


def measure(
    inspected: Inspected,
    labels: np.ndarray,
    masks: np.ndarray,
    spec: EvaluateSpec,
    regions: metrics.Regions,
    regions_before: int,
    place: torch.device | None = None,
) -> dict[str, Any]:
    """All metrics of one variant, with what a reader needs to judge them: counts, and regions that resizing lost
    (of `regions_before`); and with `metrics: histogram` how far each estimated metric may be from the exact one.
    `place`: of the networks; a GPU sorts pixels too.
    """
    test_set = inspected.scores, labels, inspected.maps, masks, regions, spec.aupro_limits
    with section("metrics"):
        if spec.metrics == "histogram":
            values, bounds = streaming.evaluate(*test_set)
        else:
            gpu = place if place is not None and place.type == "cuda" else None
            values, bounds = metrics.evaluate(*test_set, gpu), {}
    image, pixel = values["image_auroc"], values["pixel_auroc"]
    # A collapsed run must not be averaged silently.
    degenerate = (image is not None and image <= 0.5) or (pixel is not None and pixel < 0.5)
    with_mask = masks.any(axis=(1, 2))
    return {
        **values,
        "degenerate": bool(degenerate),
        "test_normal": int((~labels).sum()),
        "test_anomalous": int(labels.sum()),
        "regions": len(regions.sizes),
        "regions_lost": max(0, regions_before - len(regions.sizes)),
        "anomalous_without_mask": int((labels & ~with_mask).sum()),
        **({"error_bounds": bounds, "bins": streaming.BINS} if spec.metrics == "histogram" else {}),
    }
