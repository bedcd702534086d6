"""How long all metrics of one test set take, beside scikit-learn's two pixel metrics on the same pixels.

    python benchmarks/speed/metrics.py [--images 100] [--size 256] [--anomalib]

The target: all metrics of 100 maps of 256 x 256 within 0.5 s. Maps and defects are smooth blobs, 30 images are normal.
With --anomalib its AUROC and AUPRO, and torchmetrics' AUROC and AP, are taken of the same maps, in anomalib's own
environment; the maps are brought to [0, 1] first, since torchmetrics would put other scores through a sigmoid.
"""

import argparse
import statistics
import time
import tracemalloc
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import common
import numpy as np
from scipy import ndimage
from sklearn.metrics import average_precision_score, roc_auc_score

from harness.run import streaming
from harness.run.metrics import evaluate, regions

REPEATS = 5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=100)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--anomalib", action="store_true", help="beside anomalib and torchmetrics too")
    common.add_json(parser)
    args = parser.parse_args()
    rows = []
    print(f"{args.images} maps of {args.size} x {args.size}, median of {REPEATS}\n")
    print(
        f"{'defective':>9} {'evaluate':>9} {'+ regions':>9} {'sklearn AUROC+AP':>16} {'ratio':>6}"
        f" {'extra memory':>12} {'max difference':>14} {'histogram':>9} {'its bound':>9}"
    )
    for share in (0.02, 0.2):
        data = example(args.images, args.size, share)
        _, _, maps, masks = data
        found = regions(masks)
        ours, values = timed(lambda data=data, found=found: evaluate(*data, found))
        whole, _ = timed(lambda data=data: evaluate(*data))
        theirs, expected = timed(lambda masks=masks, maps=maps: reference(masks.ravel(), maps.ravel()))
        difference = max(abs(values[name] - expected[name]) for name in expected)
        binned, (_, bounds) = timed(lambda data=data, found=found: streaming.evaluate(*data, found))
        print(
            f"{masks.mean():>9.1%} {ours:>8.3f}s {whole:>8.3f}s {theirs:>15.3f}s {theirs / whole:>5.1f}x"
            f" {peak_of(lambda data=data: evaluate(*data)) / maps.nbytes:>6.2f} x maps {difference:>14.1e}"
            f" {binned:>8.3f}s {max(bounds.values()):>9.1e}"
        )
        row = {"defective": float(masks.mean()), "ours_s": whole, "sklearn_s": theirs, "difference": difference}
        row |= {"histogram_s": binned, "histogram_bounds": bounds, "values": values}
        rows.append(row | (beside_anomalib(data, whole) if args.anomalib else {}))
    common.save(args.json, {"rows": rows})


def example(images: int, size: int, share: float) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Image scores, labels, maps and masks with that share of defective pixels, in 70 % of the images."""
    rng = np.random.default_rng(0)
    noise, blobs = (smooth(rng.standard_normal((images, size, size), dtype=np.float32), size / s) for s in (64, 16))
    labels = np.arange(images) >= 0.3 * images
    masks = (blobs > np.quantile(blobs[labels], 1 - share / labels.mean())) & labels[:, None, None]
    maps = noise / noise.std() + masks  # AUROC near 0.76
    return maps.max(axis=(1, 2)), labels, maps, masks


def smooth(noise: np.ndarray, sigma: float) -> np.ndarray:
    return ndimage.gaussian_filter(noise, (0, sigma, sigma), mode="wrap")


def reference(labels: np.ndarray, scores: np.ndarray) -> dict[str, float]:
    return {"pixel_auroc": roc_auc_score(labels, scores), "pixel_ap": average_precision_score(labels, scores)}


def beside_anomalib(data: tuple[np.ndarray, ...], ours_s: float) -> dict[str, Any]:
    _, _, maps, masks = data
    scaled = (maps - maps.min()) / (maps.max() - maps.min())
    same = evaluate(*data[:2], scaled, masks)  # rounding may tie scores that differed
    with TemporaryDirectory() as folder:
        np.savez(Path(folder) / "maps.npz", maps=scaled, masks=masks)
        found = common.anomalib("metrics", file=f"{folder}/maps.npz", repeats=REPEATS)
    theirs_s = found["anomalib_auroc_s"] + found["anomalib_aupro_s"]
    print(
        f"{'':9} anomalib AUROC {found['anomalib_auroc_s']:.3f}s + AUPRO {found['anomalib_aupro_s']:.3f}s:"
        f" {theirs_s / ours_s:.1f}x ours for all metrics; torchmetrics AUROC {found['torchmetrics_auroc_s']:.3f}s"
        f" + AP {found['torchmetrics_ap_s']:.3f}s"
    )
    pairs = {"anomalib_auroc": "pixel_auroc", "anomalib_aupro": "aupro_0.30"}
    pairs |= {"torchmetrics_auroc": "pixel_auroc", "torchmetrics_ap": "pixel_ap"}
    apart = {theirs: abs(found[theirs] - same[name]) for theirs, name in pairs.items()}
    print(f"{'':9} differences to ours: " + ", ".join(f"{name} {value:.1e}" for name, value in apart.items()))
    return {"anomalib": found, "anomalib_ratio": theirs_s / ours_s, "anomalib_differences": apart}


def timed(call) -> tuple[float, Any]:
    """Median seconds of a call, and what it returned."""
    seconds = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        value = call()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds), value


def peak_of(call) -> int:
    """Bytes allocated at the peak of a call, beyond what was there before."""
    tracemalloc.start()
    call()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak


if __name__ == "__main__":
    main()
