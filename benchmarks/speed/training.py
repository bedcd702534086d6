"""Training speed of a method's recipe against a plain loop of the same arithmetic, side by side in one process.

    python benchmarks/speed/training.py [--method stfpm] [--images 128] [--epochs 3] [--compile]

A GPU is through 128 images in no time that a clock could tell apart, so there it is 4096 by default.

The plain loop is what one writes by hand: channels_last, bf16 autocast where the harness uses it; once with the
teacher in every step, and once with its features kept, which is the harness's arithmetic and shows what its loop costs
(Accelerate, reports, checkpoints). With --compile all are compiled, by the same backend with the same options (CUDA
graphs on a GPU). Runs alternate; medians and ratios are printed.
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
from harness.run.batches import to_images
from harness.run.compiled import BACKEND, inductor_options
from harness.run.device import open_device
from harness.run.features import TeacherFeatures
from harness.run.learner import Learner, make_optimizers
from harness.run.train import train
from harness.run.warm import Warm
from harness.spec import Data, TrainSpec, Weights

IMAGES = {"cpu": 128, "cuda": 4096}


class Loops:
    """The loops that are compared, on the same images and teacher."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options, self.device = options, open_device("auto", "auto")
        options.images = options.images or IMAGES[self.device.place.type]
        recipe = {"train.epochs": options.epochs, "train.select": "last"}
        self.method = replace(get_method(options.method), recipe)
        shape = (options.images, options.size, options.size, 3)
        self.pixels = torch.randint(256, shape, dtype=torch.uint8, device=self.device.place)
        self.teacher = Teacher("resnet18").to(self.device.place, memory_format=torch.channels_last)
        self.warm = Warm()
        self.warm_up_s: list[float] = []

    def model(self) -> Distiller:
        torch.manual_seed(0)
        made = Distiller(self.method, "resnet18", self.teacher)
        made.students.to(self.device.place, memory_format=torch.channels_last)
        return made

    def features(self) -> TeacherFeatures:
        return TeacherFeatures(self.teacher, self.pixels, self.method.train.batch_size, self.device)

    def plain(self, keep: bool) -> float:
        """Images per second of the loop by hand; `keep`: the teacher's features."""
        options, device, distiller = self.options, self.device, self.model()
        features = self.features() if keep else None
        step = distiller.loss
        if options.compile:
            settings = inductor_options(device.place.type) or None
            step = torch.compile(step, dynamic=False, backend=BACKEND, options=settings)
        (optimizer,) = make_optimizers(distiller.students, self.method.train)
        batch = self.method.train.batch_size
        seconds: list[float] = []
        for _ in range(options.epochs + 1):  # the first compiles and warms up
            device.synchronize()
            started = time.perf_counter()
            for start in range(0, options.images - batch + 1, batch):
                images = to_images(self.pixels[start : start + batch])
                expected = features[np.arange(start, start + batch)] if features else None
                with device.autocast():
                    loss = step(images, expected)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            device.synchronize()
            seconds.append(time.perf_counter() - started)
        first, *rest = seconds
        self.warm_up_s.append(first - statistics.mean(rest))
        return options.images // batch * batch * options.epochs / sum(rest)

    def ours(self) -> float:
        """Features computed and all epochs, as in a run; the features' share shrinks with the recipe's epochs."""
        size, compiled = self.options.size, self.options.compile
        spec = TrainSpec(self.method, "resnet18", Weights(), Data("", "", ""), image_size=size, compile=compiled)
        distiller, features, chosen = self.model(), self.features(), np.arange(self.options.images)
        forward, facts = self.warm.forward(spec, distiller, features, self.device, len(chosen))
        assert facts()["compiled"] is compiled, facts()
        learner = Learner(distiller, spec, self.device, len(chosen), forward)
        curve, _ = train(learner, features, chosen, chosen[:0], lambda *_: None)
        steady = curve[1:] or curve
        return sum(epoch.images for epoch in steady) / sum(epoch.seconds for epoch in steady)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--method", default="stfpm")
    parser.add_argument("--images", type=int, help=f"{IMAGES} by default")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--compile", action="store_true", help="compile all loops")
    common.add_json(parser)
    options = parser.parse_args()
    setup = Loops(options)
    loops = {
        "plain": lambda: setup.plain(False),
        "plain, features kept": lambda: setup.plain(True),
        "harness": setup.ours,
    }
    rates: dict[str, list[float]] = {name: [] for name in loops}
    for _ in range(options.repeats):
        for name, loop in loops.items():
            rates[name].append(loop())
    kind = "compiled" if options.compile else "eager"
    device = setup.device
    setting = f"{options.size}x{options.size}, batch {setup.method.train.batch_size}, {device.precision}"
    print(f"{options.method}, resnet18, {setting}, {device_name(device.place.type)}, torch {torch.__version__}")
    ratios = {}
    for name, found in rates.items():
        title = name if name == "harness" else f"{name}, {kind}"
        ratios[name] = statistics.median(own / other for own, other in zip(rates["harness"], found, strict=True))
        print(f"{title:30} {statistics.median(found):7.1f} images/s  {[round(rate, 1) for rate in found]}")
    for name in list(loops)[:2]:
        print(f"ratio of the harness to {name} (median of pairs): {ratios[name]:.3f}")
    warm_up_s = [round(found, 1) for found in setup.warm_up_s]
    print(f"first epochs of the plain loops took {warm_up_s} s longer than later ones")
    overhead = 1 / ratios["plain, features kept"] - 1
    common.save(
        options.json, {"rates": rates, "ratio": ratios["plain"], "overhead": overhead} | {"warm_up_s": setup.warm_up_s}
    )


if __name__ == "__main__":
    main()
