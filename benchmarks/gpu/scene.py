"""One training setting on the device: teacher, images, features, students; what the blocks of `prove.py` train."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional

from dskd import Distiller, Teacher, get_method, replace
from harness.run.device import Device, open_device
from harness.run.features import TeacherFeatures
from harness.run.learner import Learner
from harness.spec import Data, TrainSpec, Weights

EPOCHS = 100
KEEP = {"device": {"device": float("inf"), "host": 0.0}, "host": {"device": 0.0, "host": float("inf")}}
KEEP["recomputed"] = {"device": 0.0, "host": 0.0}


@dataclass
class Scene:
    """Args:
    kind: of the device, `cuda` or `cpu`.
    images: how many there are to train on; made up, smooth, the same on every machine.
    batch: None for the recipe's own.
    recipe: switches of the method that differ, as `train.ema`.
    """

    kind: str
    method: str
    side: int
    images: int
    batch: int | None = None
    precision: str = "bf16"
    backbone: str = "resnet18"
    recipe: tuple[tuple[str, object], ...] = ()

    def __post_init__(self) -> None:
        self.device: Device = open_device(self.kind, self.precision)
        changes = {"train.epochs": EPOCHS, "train.select": "last", **dict(self.recipe)}
        changes |= {} if self.batch is None else {"train.batch_size": self.batch}
        self.config = replace(get_method(self.method), changes)
        self.batch = self.config.train.batch_size
        self.place = self.device.place
        self.teacher = Teacher(self.backbone).to(self.place, memory_format=torch.channels_last)
        self.pixels = pixels(self.images, self.side).to(self.place)
        self.spec = TrainSpec(
            self.config,
            self.backbone,
            Weights(),
            Data("", "", ""),
            image_size=self.side,
            precision=self.precision,
            compile=True,
        )

    def model(self, seed: int = 0) -> Distiller:
        torch.manual_seed(seed)
        made = Distiller(self.config, self.backbone, self.teacher)
        made.students.to(self.place, memory_format=torch.channels_last).train()
        return made

    def features(self, keep: str = "device") -> TeacherFeatures:
        return TeacherFeatures(self.teacher, self.pixels, self.batch, self.device, KEEP[keep])

    def learner(self, seed: int = 0) -> Learner:
        return Learner(self.model(seed), self.spec, self.device, self.images)

    def batches(self, seed: int = 0) -> Iterator[np.ndarray]:
        """Positions of the batches, epoch after epoch, the last of each incomplete where the images ask for it."""
        order = np.random.default_rng(seed)
        while True:
            shuffled = order.permutation(self.images)
            yield from (shuffled[start : start + self.batch] for start in range(0, self.images, self.batch))


def pixels(images: int, side: int) -> torch.Tensor:
    """uint8 (N, side, side, 3): noise over several scales; after 128 images they come again."""
    draw, distinct = torch.Generator().manual_seed(0), min(images, 128)
    total = torch.zeros(distinct, 3, side, side)
    for size, weight in ((4, 0.6), (16, 0.3), (side, 0.1)):
        noise = torch.rand(distinct, 3, size, size, generator=draw)
        total += weight * functional.interpolate(noise, side, mode="bilinear", align_corners=False)
    made = (255 * total).to(torch.uint8).permute(0, 2, 3, 1).contiguous()
    return made[torch.arange(images) % distinct]


@dataclass
class Pace:
    """How fast steps were."""

    ms: float
    host_ms: float
    images_per_s: float


def pace(scene: Scene, step: Callable[[], object], steps: int, images: int) -> Pace:
    """Time `steps` calls of `step`, which train on `images` images together. `host_ms`: CPU time of this process for a
    step until the last one is launched, all threads; waiting for the device is not in it.
    """
    scene.device.synchronize()
    started, cpu = time.perf_counter(), time.process_time()
    for _ in range(steps):
        step()
    launched = time.process_time() - cpu
    scene.device.synchronize()
    took = time.perf_counter() - started
    return Pace(round(1000 * took / steps, 3), round(1000 * launched / steps, 3), round(images / took, 1))
