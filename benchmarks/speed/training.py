"""Training speed of a method's recipe against a plain loop of the same arithmetic, side by side in one process.

    python benchmarks/speed/training.py [--method stfpm] [--images 128] [--epochs 3] [--compile]

The plain loop is what one writes by hand: channels_last, bf16 autocast where the harness uses it; once with the
teacher in every step, and once with its features kept, which is the harness's arithmetic and shows what its loop costs
(Accelerate, reports, checkpoints). Both are compiled with --compile. Runs alternate; medians and ratios are printed.
"""

import argparse
import os
import statistics
import subprocess
import sys
import time

from harness.launch.group import MALLOC

if __name__ == "__main__" and "GLIBC_TUNABLES" not in os.environ:  # as a worker is started
    sys.exit(subprocess.run([sys.executable, *sys.argv], env=MALLOC | dict(os.environ)).returncode)

import common
import numpy as np
import torch

from dskd import Distiller, Teacher, get_method, replace
from harness.environment import device_name
from harness.run.compiled import forward_of
from harness.run.device import open_device, to_images
from harness.run.features import TeacherFeatures
from harness.run.train import make_optimizers, train
from harness.spec import Data, TrainSpec, Weights


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--method", default="stfpm")
    parser.add_argument("--images", type=int, default=128)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--compile", action="store_true", help="compile all loops")
    common.add_json(parser)
    options = parser.parse_args()
    method = replace(get_method(options.method), {"train.epochs": options.epochs, "train.select": "last"})
    spec = TrainSpec(method, "resnet18", Weights(), Data("", "", ""), image_size=options.size, compile=options.compile)
    device = open_device("auto", "auto")
    shape = (options.images, options.size, options.size, 3)
    pixels = torch.randint(256, shape, dtype=torch.uint8, device=device.place)
    teacher = Teacher("resnet18").to(device.place, memory_format=torch.channels_last)

    def model() -> Distiller:
        torch.manual_seed(0)
        made = Distiller(method, "resnet18", teacher)
        made.students.to(device.place, memory_format=torch.channels_last)
        return made

    def plain(keep: bool) -> float:
        distiller = model()
        features = TeacherFeatures(teacher, pixels, method.train.batch_size, device) if keep else None
        step = torch.compile(distiller.loss) if options.compile else distiller.loss
        (optimizer,) = make_optimizers(distiller.students, method.train)
        batch = method.train.batch_size
        seconds: list[float] = []
        for _ in range(options.epochs + 1):  # the first compiles and warms up
            device.synchronize()
            started = time.perf_counter()
            for start in range(0, options.images - batch + 1, batch):
                images = to_images(pixels[start : start + batch])
                expected = features[np.arange(start, start + batch)] if features else None
                with device.autocast():
                    loss = step(images, expected)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            device.synchronize()
            seconds.append(time.perf_counter() - started)
        first, *rest = seconds
        warm_up_s.append(first - statistics.mean(rest))
        return options.images // batch * batch * options.epochs / sum(rest)

    def ours() -> float:
        """Features computed and all epochs, as in a run; the features' share shrinks with the recipe's epochs."""
        distiller = model()
        features = TeacherFeatures(teacher, pixels, method.train.batch_size, device)
        nobody = np.zeros(0, np.int64)
        forward, facts = forward_of(spec, distiller, features, device)
        assert facts["compiled"] is options.compile, facts
        chosen = np.arange(options.images)
        curve, _ = train(distiller, spec, features, chosen, nobody, device, lambda *_: None, forward=forward)
        steady = curve[1:] or curve
        return sum(epoch.images for epoch in steady) / sum(epoch.seconds for epoch in steady)

    warm_up_s: list[float] = []
    loops = {"plain": lambda: plain(False), "plain, features kept": lambda: plain(True), "harness": ours}
    rates: dict[str, list[float]] = {name: [] for name in loops}
    for _ in range(options.repeats):
        for name, loop in loops.items():
            rates[name].append(loop())
    kind = "compiled" if options.compile else "eager"
    setting = f"{options.size}x{options.size}, batch {method.train.batch_size}, {device.precision}"
    print(f"{options.method}, resnet18, {setting}, {device_name(device.place.type)}, torch {torch.__version__}")
    ratios = {}
    for name, found in rates.items():
        title = name if name == "harness" else f"{name}, {kind}"
        ratios[name] = statistics.median(ours / other for ours, other in zip(rates["harness"], found, strict=True))
        print(f"{title:30} {statistics.median(found):7.1f} images/s  {[round(rate, 1) for rate in found]}")
    for name in list(loops)[:2]:
        print(f"ratio of the harness to {name} (median of pairs): {ratios[name]:.3f}")
    print(f"first epochs of the plain loops took {[round(found, 1) for found in warm_up_s]} s longer than later ones")
    overhead = 1 / ratios["plain, features kept"] - 1
    common.save(
        options.json, {"rates": rates, "ratio": ratios["plain"], "overhead": overhead} | {"warm_up_s": warm_up_s}
    )


if __name__ == "__main__":
    main()
