"""How fast a finished run looks at new pictures: `model.predict` beside what decoding and the networks alone allow.

    python benchmarks/speed/predict.py [--pictures FOLDER] [--weights FILE] [--method stfpm] [--images 2000]
        [--size 256] [--repeats 3]

The target: 90 % of 1 / (1 / rate of the networks + time to decode / cores), on PNG files. The three are measured in
turn in each repeat. A run of one epoch is made first, of synthetic textures, which without --pictures are looked at.
"""

import argparse
import resource
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import common
import numpy as np
import yaml
from decoding import write_images
from PIL import Image

SAMPLE = 128  # pictures that the networks, and the decoder, are timed on alone


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=Path, help="files that are copied as PNG, again and again")
    parser.add_argument("--weights", default="random", help="of the teacher")
    parser.add_argument("--method", default="stfpm")
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=3)
    common.add_json(parser)
    args = parser.parse_args()
    with TemporaryDirectory() as work:
        folder = Path(work)
        write_images(folder / "data", 40, args.size)
        paths = copies(args.pictures or folder / "data", folder / "png", args.images)
        found = [measured(trained(folder, args), paths) for _ in range(args.repeats)]
    print(f"{args.method}, {args.size} x {args.size}, {args.images} PNG files, seconds a picture\n")
    print(f"{'decode':>10}{'networks':>10}{'predict':>10}{'share':>8}{'peak MiB':>10}")
    for one in found:
        print(f"{one['decode_s']:>10.5f}{one['networks_s']:>10.5f}{one['predict_s']:>10.5f}", end="")
        print(f"{one['share']:>8.3f}{one['peak_mib']:>10.0f}")
    median = statistics.median(one["share"] for one in found)
    print(f"\nmedian share of the possible rate: {median:.3f} (target: 0.9)\n{common.machine()}")
    common.save(args.json, {"method": args.method, "size": args.size, "images": args.images, "passes": found})


def copies(source: Path, folder: Path, count: int) -> list[str]:
    folder.mkdir()
    files = sorted(path for path in source.rglob("*") if path.suffix.lower() in (".png", ".jpg", ".jpeg", ".bmp"))
    for number in range(count):
        with Image.open(files[number % len(files)]) as picture:
            picture.save(folder / f"{number:05d}.png")
    return sorted(map(str, folder.iterdir()))


def trained(folder: Path, args: argparse.Namespace) -> Path:
    """The folder of an evaluation; made by the first call."""
    grid = {
        "name": "speed",
        "axes": {"method": [args.method], "backbone": ["resnet18"], "seed": [0]},
        "defaults": {"image_size": args.size, "weights": args.weights, "train.epochs": 1, "train.select": "last"},
    }
    grid["axes"]["dataset"] = [{"name": "folder", "root": str(folder / "data")}]
    if not (folder / "runs").exists():
        (folder / "speed.yaml").write_text(yaml.safe_dump(grid))
        common.harness("run", str(folder / "speed.yaml"), "--out", str(folder / "runs"), "--devices", "cpu")
    return next(path.parent for path in folder.glob("runs/speed/*/scores.csv"))


def measured(run: Path, paths: list[str]) -> dict[str, float]:
    import dskd
    from harness.environment import core_count
    from harness.predict.model import read

    model = dskd.load(run)
    preparation, sample = model.content.preparation, paths[:SAMPLE]
    pixels = np.stack([read(path, preparation).pixels for path in sample])
    model.inspect(pixels)  # the first pass warms up
    decode = seconds(lambda: [read(path, preparation) for path in sample]) / len(sample)
    networks = seconds(lambda: model.inspect(pixels)) / len(sample)
    predict = seconds(lambda: [one.score for one in model.predict(paths)]) / len(paths)
    return {
        "decode_s": decode,
        "networks_s": networks,
        "predict_s": predict,
        "share": (networks + decode / core_count()) / predict,
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
