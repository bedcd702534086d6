"""What a worker keeps from job to job is what it would make again."""

import dataclasses
import gc
import weakref

import numpy as np
import pytest
import torch

from dskd import Teacher, replace
from harness.job import TrainJob, affinity
from harness.run.device import open_device
from harness.run.features import TeacherFeatures
from harness.run.warm import Warm
from tests.run.test_train import PIXELS, spec

RUN = spec()
BATCH_OF_3 = replace(RUN.method, {"train.batch_size": 3})
DATA = dataclasses.replace(RUN.data, manifest="other")


def job(weights: str | None = None, **changes: object) -> TrainJob:
    return TrainJob(dataclasses.replace(RUN, **changes), (), {}, weights, "")


@pytest.mark.parametrize(
    ("other", "images", "taken_over"),
    [
        (job(seed=1, method=spec("dskd").method), 5, True),
        (job(method=BATCH_OF_3), 5, False),
        (job(data=DATA), 5, False),
        (job(image_size=96, crop=64), 5, False),  # of equal affinity, as the side is the same
        (job("weights.safetensors"), 5, False),
        (job(), 4, False),
    ],
)
def test_features_are_taken_over_by_jobs_of_equal_affinity(other: TrainJob, images: int, taken_over: bool) -> None:
    threads, device, warm = torch.get_num_threads(), open_device("cpu", "fp32"), Warm()
    torch.set_num_threads(threads)
    teacher, normal = Teacher("resnet18"), np.arange(5)
    first = warm.features(job(), teacher, PIXELS.numpy(), normal, device)
    second = warm.features(other, teacher, PIXELS.numpy(), normal[:images], device)
    assert (second is first) == taken_over
    assert affinity(other) == affinity(job()) or not taken_over
    assert warm.features(other, teacher, PIXELS.numpy(), normal[:images], device) is second


def test_features_that_are_kept_hold_nothing_of_the_run_that_made_them() -> None:
    device = open_device("cpu", "fp32")
    accelerator = weakref.ref(device.accelerator)
    kept = TeacherFeatures(Teacher("resnet18"), PIXELS, 2, device)
    del device
    gc.collect()
    assert accelerator() is None
    assert kept[np.arange(2)][0].shape[0] == 2


def test_recorded_steps_go_before_the_features_that_they_read() -> None:
    device, warm = open_device("cpu", "fp32"), Warm()
    teacher, normal = Teacher("resnet18"), np.arange(5)
    warm.features(job(), teacher, PIXELS.numpy(), normal, device)
    warm._whole_steps.kept["a shape"] = "why it is not recorded"
    warm.features(job(seed=1), teacher, PIXELS.numpy(), normal, device)
    assert warm._whole_steps.kept
    warm.features(job(data=DATA), teacher, PIXELS.numpy(), normal, device)
    assert not warm._whole_steps.kept
