"""How long all metrics of one test set take, beside scikit-learn's two pixel metrics on the same pixels.

    python benchmarks/speed/metrics.py [--images 100] [--size 256]

The target: all metrics of 100 maps of 256 x 256 within 0.5 s. Maps and defects are smooth blobs, 30 images are normal.
"""

import argparse
import statistics
import time
import tracemalloc

import numpy as np
from scipy import ndimage
from sklearn.metrics import average_precision_score, roc_auc_score

from harness.run.metrics import evaluate, regions

REPEATS = 5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=100)
    parser.add_argument("--size", type=int, default=256)
    args = parser.parse_args()
    print(f"{args.images} maps of {args.size} x {args.size}, median of {REPEATS}\n")
    print(
        f"{'defective':>9} {'evaluate':>9} {'+ regions':>9} {'sklearn AUROC+AP':>16} {'ratio':>6}"
        f" {'extra memory':>12} {'max difference':>14}"
    )
    for share in (0.02, 0.2):
        data = example(args.images, args.size, share)
        _, _, maps, masks = data
        found = regions(masks)
        ours, values = timed(lambda data=data, found=found: evaluate(*data, found))
        whole, _ = timed(lambda data=data: evaluate(*data))
        theirs, expected = timed(lambda masks=masks, maps=maps: reference(masks.ravel(), maps.ravel()))
        difference = max(abs(values[name] - expected[name]) for name in expected)
        print(
            f"{masks.mean():>9.1%} {ours:>8.3f}s {whole:>8.3f}s {theirs:>15.3f}s {theirs / whole:>5.1f}x"
            f" {peak_of(lambda data=data: evaluate(*data)) / maps.nbytes:>6.2f} x maps {difference:>14.1e}"
        )


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


def timed(call) -> tuple[float, dict[str, float]]:
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
