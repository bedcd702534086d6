"""What a device computes: how fast, and whether the same comes out twice, and after an interruption."""

import hashlib
import threading
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch

from dskd import Distiller, Teacher, get_method, replace
from dskd.methods import METHODS
from harness.doctor.findings import Finding, Where, failed, passed
from harness.environment import gpus, thread_count
from harness.run.checkpoint import Checkpointing, Interrupted
from harness.run.device import Device, open_device
from harness.run.features import TeacherFeatures
from harness.run.learner import Learner
from harness.run.train import train
from harness.run_folder import RunFolder
from harness.spec import Data, TrainSpec, Weights

SIDE, IMAGES, BATCH, EPOCHS = 64, 12, 4, 2
TRUNKS = ("resnet18", "tf_efficientnet_lite0")
DIFFERS = "kernels here give other last bits from call to call: numbers of this device are not reproducible"


def devices(where: Where) -> Finding:
    """What NVML lists is what CUDA sees."""
    if where.devices == "cpu":
        device = open_device("cpu", "auto")
        text = f"{device.facts()['device']}, {thread_count()} threads; precision auto is {device.precision}"
        return passed(text, threads=thread_count(), precision=device.precision)
    names = [gpu.name for gpu in gpus()]
    seen = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    said = f"{len(names)} listed by the driver, {len(seen)} seen by CUDA: {', '.join(sorted(set(seen)))}"
    if len(names) != len(seen):
        return failed(said, "compare nvidia-smi with CUDA_VISIBLE_DEVICES; a lost GPU wants a reset", gpus=seen)
    return passed(said, gpus=seen, precision=open_device("cuda", "auto").precision)


def rates(where: Where) -> Finding:
    """Matrix products and copies. They pass: what is slow is for the reader to say."""
    place = torch.device(where.devices)
    size = 8192 if where.devices == "cuda" else 1024
    found = {}
    for name, kind in (("bf16", torch.bfloat16), ("fp32", torch.float32)):
        a = torch.randn(size, size, dtype=kind, device=place)
        seconds = _timed(lambda a=a: a @ a, place)
        found[f"{name}_tflop_per_s"] = round(2 * size**3 / seconds / 1e12, 3)
    block = torch.empty(2**28 if where.devices == "cuda" else 2**26, dtype=torch.uint8, device=place)
    other = torch.empty_like(block)
    found["copy_gb_per_s"] = round(2 * block.numel() / _timed(lambda: other.copy_(block), place) / 1e9, 1)
    units = "TFLOP/s bf16", "TFLOP/s fp32", "GB/s copied"
    said = ", ".join(f"{value:g} {unit}" for value, unit in zip(found.values(), units, strict=True))
    return passed(said, **found)


def _timed(do: Callable[[], object], place: torch.device) -> float:
    """Seconds of one call: the fastest of five."""
    wait = torch.cuda.synchronize if place.type == "cuda" else lambda: None
    best = float("inf")
    for _ in range(6):  # the first one prepares
        began = time.perf_counter()
        do()
        wait()
        best = min(best, time.perf_counter() - began)
    return best


def same_twice(where: Where) -> Finding:
    """Each method is trained twice from one seed."""
    names = ("stfpm", "dskd") if where.quick else tuple(METHODS)
    trunks = TRUNKS[:1] if where.quick else TRUNKS
    device, different = open_device(where.devices, "auto"), []
    for trunk in trunks:
        teacher = teacher_of(trunk, device)
        for name in names:
            spec = spec_of(name, trunk, device)
            if _trained(spec, teacher, device) != _trained(spec, teacher, device):
                different.append(f"{name} {trunk}")
    said = f"{len(names)} methods on {', '.join(trunks)} end with the same bits twice"
    if different:
        return failed(f"not the same twice: {', '.join(different)}", DIFFERS, different=different)
    return passed(said, methods=list(names), backbones=list(trunks))


def same_resumed(where: Where) -> Finding:
    """A training that is stopped after a step and goes on from its checkpoint."""
    names = ("dskd",) if where.quick else ("stfpm", "dskd", "reverse_distillation")
    device, different = open_device(where.devices, "auto"), []
    teacher = teacher_of(TRUNKS[0], device)
    for name in names:
        spec = spec_of(name, TRUNKS[0], device)
        straight = _trained(spec, teacher, device)
        with TemporaryDirectory() as folder:
            stop = threading.Event()
            stop.set()  # after its first step
            place = RunFolder(Path(folder))
            resumed = _trained(spec, teacher, device, Checkpointing(place, spec.id, device, 600.0, stop))
            if resumed is None:
                resumed = _trained(spec, teacher, device, Checkpointing(place, spec.id, device))
        if resumed != straight:
            different.append(name)
    if different:
        return failed(f"resumed is not straight: {', '.join(different)}", DIFFERS, different=different)
    return passed(f"resumed equals straight to the last bit: {', '.join(names)}", methods=list(names))


def spec_of(
    name: str, trunk: str, device: Device, side: int = SIDE, epochs: int = EPOCHS, batch: int = BATCH
) -> TrainSpec:
    method = replace(get_method(name), {"train.epochs": epochs, "train.batch_size": batch, "train.select": "last"})
    return TrainSpec(method, trunk, Weights(), Data("", "", ""), image_size=side, precision=device.precision)


def teacher_of(trunk: str, device: Device) -> Teacher:
    torch.manual_seed(0)
    return Teacher(trunk).to(device.place, memory_format=torch.channels_last)


def learner_of(spec: TrainSpec, teacher: Teacher, device: Device, images: int) -> tuple[Learner, TeacherFeatures]:
    """The students of a training of so many made-up images, and the teacher's features of these."""
    model = model_of(spec, teacher, device)
    return Learner(model, spec, device, images), features_of(spec, teacher, device, images)


def model_of(spec: TrainSpec, teacher: Teacher, device: Device) -> Distiller:
    """As a training begins with it."""
    torch.manual_seed(spec.seed)
    model = Distiller(spec.method, spec.backbone, teacher)
    model.students.to(device.place, memory_format=torch.channels_last)
    return model


def features_of(spec: TrainSpec, teacher: Teacher, device: Device, images: int) -> TeacherFeatures:
    """Of so many made-up images."""
    draw = torch.Generator().manual_seed(1)
    pixels = torch.randint(256, (images, *spec.sides, 3), dtype=torch.uint8, generator=draw).to(device.place)
    return TeacherFeatures(teacher, pixels, spec.method.train.batch_size, device)


def _trained(
    spec: TrainSpec, teacher: Teacher, device: Device, checkpointing: Checkpointing | None = None
) -> str | None:
    """A hash of the losses and of all weights of a training; None if it was told to stop."""
    try:
        return hash_of(*learner_of(spec, teacher, device, IMAGES), IMAGES, checkpointing)
    except Interrupted:
        return None


def hash_of(
    learner: Learner, features: TeacherFeatures, images: int, checkpointing: Checkpointing | None = None
) -> str:
    """Of the losses and of all weights of a training. Raises Interrupted."""
    chosen, none = np.arange(images), np.arange(0)
    curve, _ = train(learner, features, chosen, none, lambda *_: None, checkpointing=checkpointing)
    found = hashlib.sha256(repr([epoch.loss for epoch in curve]).encode())
    for tensor in learner.distiller.students.state_dict().values():
        found.update(np.ascontiguousarray(tensor.detach().cpu().numpy()).tobytes())
    return found.hexdigest()
