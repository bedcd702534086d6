"""Maps, scores and metrics of trained students on the test images, for several variants over one pass of the
networks.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from dskd.anomaly_map import Discrepancies, anomaly_map, calibrate, image_scores
from dskd.distiller import Distiller, needs_features
from harness.run import metrics
from harness.run.device import Device, to_images, whole_batches
from harness.run.profile import section
from harness.spec import EvaluateSpec


@dataclass(frozen=True)
class Inspected:
    """The test images as one variant sees them: `maps` float32 (N, S, S), `scores` float64 (N,)."""

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
) -> list[Inspected]:
    """Run the test images (uint8 (N, S, S, 3)) once through the networks and make each variant's maps and scores.

    Batches are of exactly `batch_size`, the last filled up, so that maps do not depend on how the set divides, nor on
    the number of processes: batch i is rank i % k's, and rank 0 gets them all. The other ranks end with an empty list.

    Args:
        report: called after each batch as (images done, images in all); what it raises ends the pass.
        normal: training images, for the variants whose maps are standardised by them (each rank sees all of these).

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
    kept = len(variants) if device.main else 0
    maps = [np.empty((count, side, side), np.float32) for _ in range(kept)]
    scores = [np.empty(count, np.float64) for _ in range(kept)]
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


def measure(
    inspected: Inspected,
    labels: np.ndarray,
    masks: np.ndarray,
    spec: EvaluateSpec,
    regions: metrics.Regions,
    regions_before: int,
) -> dict[str, Any]:
    """All metrics of one variant, with what a reader needs to judge them: counts, and regions that resizing lost
    (of `regions_before`).
    """
    with section("metrics"):
        values = metrics.evaluate(inspected.scores, labels, inspected.maps, masks, regions, spec.aupro_limits)
    image, pixel = values["image_auroc"], values["pixel_auroc"]
    # A collapsed run must not be averaged silently.
    degenerate = (image is not None and image <= 0.5) or (pixel is not None and pixel < 0.5)
    anomalous = masks[labels].any(axis=(1, 2))
    return {
        **values,
        "degenerate": bool(degenerate),
        "test_normal": int((~labels).sum()),
        "test_anomalous": int(labels.sum()),
        "regions": len(regions.sizes),
        "regions_lost": max(0, regions_before - len(regions.sizes)),
        "anomalous_without_mask": int((~anomalous).sum()),
    }
