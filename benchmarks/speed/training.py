"""Training speed of a method's recipe against a plain loop of the same arithmetic, side by side in one process.

    python benchmarks/speed/training.py [--method stfpm] [--images 128] [--epochs 3] [--compile]

The plain loop is what one writes by hand: channels_last, bf16 autocast where the harness uses it, the teacher run in
every step (compiled with --compile). The harness's loop goes through Accelerate and keeps the teacher's features. Runs
alternate; medians and the ratio are printed.
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

import numpy as np
import torch

from dskd import Distiller, Teacher, get_method, replace
from harness.environment import device_name
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
    parser.add_argument("--compile", action="store_true", help="compile the plain loop")
    options = parser.parse_args()
    method = replace(get_method(options.method), {"train.epochs": options.epochs, "train.select": "last"})
    spec = TrainSpec(method, "resnet18", Weights(), Data("", "", ""), image_size=options.size)
    device = open_device("auto", "auto")
    shape = (options.images, options.size, options.size, 3)
    pixels = torch.randint(256, shape, dtype=torch.uint8, device=device.place)
    teacher = Teacher("resnet18").to(device.place, memory_format=torch.channels_last)

    def model() -> Distiller:
        torch.manual_seed(0)
        made = Distiller(method, "resnet18", teacher)
        made.students.to(device.place, memory_format=torch.channels_last)
        return made

    def plain() -> float:
        distiller = model()
        step = torch.compile(distiller.loss) if options.compile else distiller.loss
        (optimizer,) = make_optimizers(distiller.students, method.train)
        batch = method.train.batch_size
        seconds = 0.0
        for epoch in range(options.epochs + 1):  # the first compiles and warms up
            device.synchronize()
            started = time.perf_counter()
            for start in range(0, options.images - batch + 1, batch):
                images = to_images(pixels[start : start + batch])
                with device.autocast():
                    loss = step(images)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            device.synchronize()
            seconds += (time.perf_counter() - started) * (epoch > 0)
        return options.images // batch * batch * options.epochs / seconds

    def ours() -> float:
        """Features computed and all epochs, as in a run; the features' share shrinks with the recipe's epochs."""
        distiller = model()
        features = TeacherFeatures(teacher, pixels, method.train.batch_size, device)
        nobody = np.zeros(0, np.int64)
        curve, _ = train(distiller, spec, features, np.arange(options.images), nobody, device, lambda *_: None)
        steady = curve[1:] or curve
        return sum(epoch.images for epoch in steady) / sum(epoch.seconds for epoch in steady)

    plain_rates, our_rates = [], []
    for _ in range(options.repeats):
        plain_rates.append(plain())
        our_rates.append(ours())
    ratio = statistics.median(ours / plain for ours, plain in zip(our_rates, plain_rates, strict=True))
    kind = "compiled" if options.compile else "eager"
    setting = f"{options.size}x{options.size}, batch {method.train.batch_size}, {device.precision}"
    print(f"{options.method}, resnet18, {setting}, {device_name(device.place.type)}, torch {torch.__version__}")
    for name, rates in ((f"plain loop, {kind}", plain_rates), ("harness", our_rates)):
        print(f"{name:22} {statistics.median(rates):7.1f} images/s  {[round(rate, 1) for rate in rates]}")
    print(f"ratio (median of pairs): {ratio:.2f}")


if __name__ == "__main__":
    main()
