"""Our AUPIMO against anomalib's on the same maps of real images, image by image.

anomalib needs a virtual environment of its own: benchmarks/checks/anomalib_stfpm.py says how it is made. Then:

    PYTHONPATH=. OMP_NUM_THREADS=1 ANOMALIB_VENV/bin/python benchmarks/checks/anomalib_aupimo.py \\
        --weights RESNET18.safetensors --mtd FOLDER

Trains STFPM for some steps on normal images of Magnetic Tile Defects and takes its maps of others. anomalib's own grid
is of 300,000 thresholds over the range of the normal scores: its area is an approximation, by as much as the first row
differs. In the others its thresholds are every normal score near the bounds and the next number above it, and bounds
are whole numbers of pixels: then both are the same sum. Prints a Markdown table and exits 1 if a difference is above
its tolerance, or the control's is not. Downloads nothing; takes 8 GB of memory.
"""

import argparse
import math
import platform
import sys
from importlib.metadata import version
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from anomalib_stfpm import OUR_METHOD, read_images, train  # whose imports are in the order that anomalib needs
from PIL import Image

# isort: split
from anomalib.metrics.pimo import functional

from dskd.distiller import Distiller
from harness.run.pimo import BOUNDS, aupimo

EXACT, GRID = 1e-9, 0.02  # of shares: what rounding may do, and what a grid of thresholds may
KINDS = ("MT_Blowhole", "MT_Break", "MT_Crack", "MT_Fray", "MT_Uneven")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, required=True, help="safetensors file of ResNet-18 in timm's names")
    parser.add_argument("--mtd", type=Path, required=True, help="folder of Magnetic Tile Defects")
    parser.add_argument("--steps", type=int, nargs="+", default=[3, 60], help="of training, with rows for each")
    parser.add_argument("--normal", type=int, default=60, help="normal images to test on")
    parser.add_argument("--defective", type=int, default=8, help="of each kind of defect")
    parser.add_argument("--image-size", type=int, default=256)
    args = parser.parse_args()
    good = sorted((args.mtd / "MT_Free/Imgs").glob("*.jpg"))
    bad = [path for kind in KINDS for path in sorted((args.mtd / kind / "Imgs").glob("*.jpg"))[: args.defective]]
    tested = [*good[32 : 32 + args.normal], *bad]
    masks = np.stack([read_mask(path, args.image_size, path in bad) for path in tested])
    kept = np.array([path not in bad for path in tested]) | masks.any(axis=(1, 2))  # anomalib takes others for normal
    training, images = read_images(good[:32], args.image_size), read_images(tested, args.image_size)[kept]
    masks, labels = masks[kept], masks[kept].any(axis=(1, 2))
    torch.manual_seed(0)
    model, done, passed = Distiller(OUR_METHOD, "resnet18", args.weights), 0, True
    packages = [f"{name} {version(name)}" for name in ("anomalib", "torch", "numpy")]
    print(f"{int((~labels).sum())} normal and {int(labels.sum())} defective images of {args.image_size}x", end="")
    print(f"{args.image_size}; {', '.join([*packages, f'Python {platform.python_version()}'])}\n")
    print("| maps | thresholds | bounds | ours, mean | anomalib's, mean | largest difference | allowed | good |")
    print("| --- | --- | --- | ---: | ---: | ---: | --- | --- |")
    for steps in args.steps:
        train(model, model.loss, training, steps - done)
        done = steps
        with torch.no_grad():
            maps = torch.cat([model.eval().anomaly_map(batch) for batch in images.split(8)]).numpy()
        passed &= compare(f"after {steps} steps", maps, labels, masks)
    sys.exit(0 if passed else 1)


def read_mask(path: Path, size: int, defective: bool) -> np.ndarray:
    if not defective:
        return np.zeros((size, size), bool)
    return np.asarray(Image.open(path.with_suffix(".png")).convert("L").resize((size, size), Image.NEAREST)) > 0


def compare(name: str, maps: np.ndarray, labels: np.ndarray, masks: np.ndarray) -> bool:
    pixels = maps[~labels].size
    whole = math.ceil(BOUNDS[0] * pixels) / pixels, math.floor(BOUNDS[1] * pixels) / pixels
    wider = whole[0], 10 * whole[1]
    ours = aupimo(maps, labels, masks, bounds=whole)
    rows = [
        ("300,000", BOUNDS, aupimo(maps, labels, masks), theirs(maps, masks, BOUNDS), GRID),
        ("every score", whole, ours, theirs(maps, masks, whole, thresholds_of(maps[~labels], whole)), EXACT),
        ("every score", wider, ours, theirs(maps, masks, wider, thresholds_of(maps[~labels], wider)), -EXACT),
    ]
    passed = True
    for thresholds, bounds, mine, anomalib, allowed in rows:
        largest = float(np.abs(mine - anomalib).max())
        control = allowed < 0
        good = largest > -allowed if control else largest <= allowed
        passed &= good
        label = f"{name}; control: ours within other bounds" if control else name
        print(
            f"| {label} | {thresholds} | {bounds[0]:.3g} to {bounds[1]:.3g} | {mine.mean():.6f} | "
            f"{anomalib.mean():.6f} | {largest:.1e} | {'>' if control else '≤'} {abs(allowed):.0e} | "
            f"{'yes' if good else '**NO**'} |",
            flush=True,
        )
    return passed


def thresholds_of(normal: np.ndarray, bounds: tuple[float, float]) -> torch.Tensor:
    """Ascending: the normal scores of ranks around the bounds, each with the next number above it."""
    highest = np.sort(normal.ravel())[-math.ceil(bounds[1] * normal.size) - 10 :]
    return torch.from_numpy(np.unique(np.append(highest, np.nextafter(highest, np.float32(np.inf)))))


def theirs(
    maps: np.ndarray, masks: np.ndarray, bounds: tuple[float, float], thresholds: torch.Tensor | None = None
) -> np.ndarray:
    """anomalib's AUPIMO of each image with a defect, with its own grid of thresholds or with those given."""
    given = functional._get_linspaced_thresholds if thresholds is None else mock.Mock(return_value=thresholds)
    with mock.patch.object(functional, "_get_linspaced_thresholds", given):
        *_, classes, scores, _ = functional.aupimo_scores(
            torch.from_numpy(maps), torch.from_numpy(masks), fpr_bounds=bounds, force=True
        )
    return scores[classes == 1].numpy()


if __name__ == "__main__":
    main()
