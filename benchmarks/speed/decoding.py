"""How long reading a data set for the first time takes: hashing its files for the plan, decoding them for a run.

    python benchmarks/speed/decoding.py [--images 1000] [--side 256] [--size 256] [--repeats 10] [--mtd ROOT]
        [--before CHECKOUT] [--pil]

The target: not slower than the checkout given by --before, in turn with it. Each pass is a process of its own with a
new cache; importing is not counted. The files were read before, so no disk is measured. The images are
synthetic textures, half of them PNG and half JPEG; with --mtd those of Magnetic Tile Defects. --pil: in turn with a
loop of Pillow in one thread over the same files, whose pixels must be the same (the target with two cores: its time is
at least 1.6 times that of `decode`, which hashes the files and writes the cache, too).
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import common
import numpy as np
from PIL import Image, ImageOps

PARTS = ("plan", "decode", "again", "sum")  # `again`: a run that finds the decoded images; not part of the sum


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--side", type=int, default=256, help="of the files")
    parser.add_argument("--size", type=int, default=256, help="that they are decoded to")
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--mtd", type=Path, metavar="ROOT", help="decode Magnetic Tile Defects instead")
    parser.add_argument("--before", type=Path, metavar="CHECKOUT", help="in turn with this checkout")
    parser.add_argument("--pil", action="store_true", help="in turn with a loop of Pillow")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    common.add_json(parser)
    args = parser.parse_args()
    if args.child:
        print(json.dumps(measured(json.loads(args.child), args.size, args.pil)))
        return
    sides = {"now": common.ROOT} | ({"before": args.before.resolve()} if args.before else {})
    with TemporaryDirectory() as work:
        if args.mtd:
            entry, what = {"name": "mtd", "root": str(args.mtd.resolve())}, "Magnetic Tile Defects"
        else:
            write_images(Path(work) / "data", args.images, args.side)
            entry = {"name": "folder", "root": str(Path(work) / "data")}
            what = f"{args.images} images of {args.side} x {args.side}"
        passes = {side: [] for side in sides}
        for _ in range(args.repeats):
            for side, checkout in sides.items():
                passes[side].append(in_process(checkout, entry, args.size, args.pil))
    found = {
        side: {part: statistics.median(each[part] for each in all_) for part in PARTS} for side, all_ in passes.items()
    }
    print(f"{what}, decoded to {args.size} x {args.size}, median of {args.repeats}, seconds\n")
    print(f"{'':8}" + "".join(f"{part:>10}" for part in PARTS))
    for side, parts in found.items():
        print(f"{side:8}" + "".join(f"{parts[part]:>10.3f}" for part in PARTS))
    if args.before:
        print(f"{'ratio':8}" + "".join(f"{found['now'][part] / found['before'][part]:>10.3f}" for part in PARTS))
    if args.pil:
        ratios = [each["pil"] / each["decode"] for each in passes["now"]]
        seconds = statistics.median(each["pil"] for each in passes["now"])
        print(f"Pillow in one thread: {seconds:.3f}; {statistics.median(ratios):.2f} times decode's, pass by pass")
    common.save(args.json, {"what": what, "medians": found, "passes": passes})


def write_images(root: Path, count: int, side: int) -> None:
    """Textures with noise, so that they compress as photographs do: 90 % to train, the rest to test."""
    draw = np.random.default_rng(0)
    for i in range(count):
        smooth = np.asarray(Image.fromarray(draw.integers(60, 200, (9, 9, 3), np.uint8)).resize((side, side)))
        pixels = (smooth + draw.normal(0, 5, (side, side, 1))).clip(0, 255).astype(np.uint8)
        folder = root / "texture" / ("train" if i < 0.9 * count else "test") / "good"
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(folder / f"{i:05d}.{('png', 'jpg')[i % 2]}")


def in_process(checkout: Path, entry: dict[str, str], size: int, with_pil: bool) -> dict[str, float]:
    with TemporaryDirectory() as cache:
        environment = os.environ | {"PYTHONPATH": str(checkout), "HARNESS_CACHE": cache}
        command = [sys.executable, __file__, "--size", str(size), "--child", json.dumps(entry)]
        command += ["--pil"] if with_pil else []
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
        if done.returncode:
            sys.exit(f"{checkout} failed:\n{done.stderr[-3000:]}")
        return json.loads(done.stdout.splitlines()[-1])


def measured(entry: dict[str, str], size: int, with_pil: bool) -> dict[str, Any]:
    from harness.data import builtin, images, layouts  # noqa: F401  (they register their data sets)
    from harness.data.catalog import get_source
    from harness.data.manifest import describe

    source = get_source(entry)
    (category,) = source.chosen()
    clock = [time.perf_counter()]
    data = describe(source, category)
    clock.append(time.perf_counter())
    images.load(source, data, size)
    clock.append(time.perf_counter())
    found = images.load(source, data, size)
    clock.append(time.perf_counter())
    plan, decode, again = np.diff(clock)
    seconds = {"plan": plan, "decode": decode, "again": again, "sum": plan + decode}
    if with_pil:
        began = time.perf_counter()
        pixels = [by_pillow(source.folder() / sample.path, size) for sample in found.train.samples]
        pixels += [by_pillow(source.folder() / sample.path, size) for sample in found.test.samples]
        seconds["pil"] = time.perf_counter() - began
        assert np.array_equal(np.stack(pixels), np.concatenate([found.train.images, found.test.images]))
    return seconds


def by_pillow(path: Path, size: int) -> np.ndarray:
    with Image.open(path) as image:
        upright = ImageOps.exif_transpose(image).convert("RGB")
        return np.asarray(upright.resize((size, size), Image.Resampling.BILINEAR))


if __name__ == "__main__":
    main()
