"""What a worker keeps from job to job: the teacher and its features, the regions of the masks, the compiled and
recorded steps.

The next job often has the same, with another method or seed: jobs of equal `affinity` come one after the other.
"""

from collections.abc import Callable, Hashable
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
import torch

from dskd.distiller import Distiller
from dskd.teacher import Teacher
from harness.job import TrainJob, affinity, is_compiled, is_graphed
from harness.run import metrics
from harness.run.compiled import Forward, Graphs, sizes_of_batches
from harness.run.device import Device
from harness.run.features import TeacherFeatures
from harness.run.graphed import WholeSteps
from harness.run.learner import Learner
from harness.run.passes import Look
from harness.run.sections import section
from harness.spec import TrainSpec, Weights
from harness.weights import check_unchanged

T = TypeVar("T")


class _Last(Generic[T]):
    """What was made last, by the key of all that it depends on."""

    def __init__(self) -> None:
        self.made: dict[Hashable, T] = {}

    def get(self, key: Hashable, make: Callable[[], T]) -> T:
        if key not in self.made:
            self.made.clear()  # before the next one is made: two may not fit
            self.made[key] = make()
        return self.made[key]


class Warm:
    """One for the life of a worker. What it keeps can change no number."""

    def __init__(self) -> None:
        self._teacher: _Last[Teacher] = _Last()
        self._features: _Last[TeacherFeatures] = _Last()
        self._regions: _Last[metrics.Regions] = _Last()
        self._graphs = Graphs()
        self._whole_steps = WholeSteps()

    def teacher(self, backbone: str, path: str | None, weights: Weights, place: torch.device) -> Teacher:
        """On the device. Raises DataError for a file whose content is not that of the plan (`weights`).

        Args:
            path: of its weights, None for random ones.
        """

        def make() -> Teacher:
            if path is not None:
                check_unchanged(Path(path), weights)
            return Teacher(backbone, path or "random").to(place, memory_format=torch.channels_last)

        return self._teacher.get((backbone, path, weights, place), make)

    def features(
        self, job: TrainJob, teacher: Teacher, images: np.ndarray, normal: np.ndarray, device: Device
    ) -> TeacherFeatures:
        """The teacher's features of the normal images.

        Args:
            images: uint8 (N, H, W, 3), the category's that are not for tests; normal: positions among them.
        """
        spec, batch = job.spec, job.spec.process_batch_size

        def make() -> TeacherFeatures:
            self._whole_steps.forget()  # they read the last ones
            with section("transfer"):
                pixels = torch.from_numpy(images[normal]).to(device.place)
            return TeacherFeatures(teacher, pixels, batch, device)

        # Equal affinity is most of it, and all that can be told without looking at images and device.
        own = job.weights_path, spec.image_size, spec.crop, batch, normal.tobytes(), device.precision, device.place
        return self._features.get((affinity(job), own), make)

    def regions(self, spec: TrainSpec, masks: np.ndarray) -> metrics.Regions:
        """The defective regions of the category's masks, bool (N, H, W)."""
        with section("metrics"):
            key = spec.data.test_manifest, spec.image_size, spec.crop
            return self._regions.get(key, lambda: metrics.regions(masks))

    def learner(
        self, job: TrainJob, distiller: Distiller, features: TeacherFeatures, device: Device, images: int
    ) -> tuple[Learner, Callable[[], dict[str, Any]]]:
        """The run's learner, and what tells after the training what the record says of its steps. The model may get
        other students, which are equal to its own.

        Args:
            images: how many are trained on in an epoch.
        """
        if is_graphed(job, device.place.type):
            return self._whole_steps.learner(job.spec, distiller, device, features, images)
        forward, facts = self.forward(job.spec, distiller, features, device, images)
        return Learner(distiller, job.spec, device, images, forward), facts

    def look(self, device: Device) -> Look:
        """How a piece of work passes batches that it measures through the networks."""
        return Look(device, self._whole_steps.passes)

    def forward(
        self, spec: TrainSpec, distiller: Distiller, features: TeacherFeatures, device: Device, images: int
    ) -> tuple[Forward, Callable[[], dict[str, Any]]]:
        """The loss of a step for (model, images, teacher's features), and what tells after the training what the record
        says of it. Where it is compiled the model may get other students, which are equal to its own.

        Args:
            images: how many are trained on in an epoch.
        """
        kind, epochs = device.place.type, spec.method.train.epochs
        batches = sizes_of_batches(kind, epochs, images, spec.process_batch_size)
        if not batches or not is_compiled(spec, kind, device.precision):
            return Distiller.loss, lambda: {"compiled": False}
        compiled = self._graphs.of(spec, distiller, device).begin(batches, distiller, features, device)
        return compiled.forward, compiled.facts
