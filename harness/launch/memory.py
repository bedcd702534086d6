"""What runs take of a GPU's memory, as records of their like tell, and whether one has room beside others. Pure, but
for `learn`, which reads records.
"""

import itertools
import math
from collections.abc import Collection, Hashable, Iterable, Mapping
from dataclasses import dataclass, field

from dskd.backbones import BACKBONES
from dskd.config import ConfigError, from_mapping
from dskd.lookup import get_backbone
from harness.job import TrainJob, is_graphed, shape_of
from harness.launch.pace import SAMPLE
from harness.records import Record, Results
from harness.spec import TrainSpec

# A record has the peak of torch's allocator. What it holds besides, in pieces that fit nothing, and what CUDA and its
# libraries take of each process: our choice, to be on the safe side.
PIECES, CONTEXT_MIB = 1.1, 600.0
# What autograd keeps of an encoder student and of embedding with decoder, in MiB of a 256x256 image in bf16, and the
# parameters of embedding and decoder: counted by its hooks on a CPU. No GPU's peak was compared with it yet.
KEPT: dict[str, tuple[float, float, int]] = {
    "resnet18": (17.8, 13.3, 15_383_168),
    "resnet34": (23.8, 24.1, 22_171_264),
    "resnet50": (65.7, 77.1, 46_651_392),
    "resnet101": (91.2, 179.1, 47_848_192),
    "wide_resnet50_2": (80.9, 94.4, 83_802_624),
    "tf_efficientnet_lite0": (45.4, 6.7, 983_106),
    "tf_efficientnet_lite1": (59.1, 7.5, 1_273_869),
    "tf_efficientnet_lite2": (61.8, 8.0, 1_494_677),
}
OF_FEATURES = 0.3  # of free memory: more of them are not kept on the device


@dataclass(frozen=True)
class Room:
    """Of device memory, in MiB.

    Attributes:
        needs: of runs by their id, as far as that is known.
        free: by GPU (what names it to CUDA) what was free before the first run.
        estimated: ids of those of whose like there is no record.
    """

    needs: Mapping[str, float] = field(default_factory=dict)
    free: Mapping[str, float] = field(default_factory=dict)
    estimated: frozenset[str] = frozenset()

    def has(self, gpu: str | None, run: str, beside: Collection[str]) -> bool:
        """Whether the run is given to a GPU that is at the runs `beside`: always where it would be alone, or where
        nothing is known of what it takes.
        """
        if not beside or run not in self.needs or gpu not in self.free:
            return True
        return self.needs[run] + sum(self.needs.get(other, 0.0) for other in beside) <= self.free[gpu]

    def most(self) -> tuple[int, str] | None:
        """So many of the largest run have room on each GPU at a time, 1 at least, and why; None where that is not known
        of any.
        """
        if not self.needs or not self.free:
            return None
        free, largest = min(self.free.values()), max(self.needs, key=self.needs.__getitem__)
        need, how = self.needs[largest], "by an estimate" if largest in self.estimated else "by its records"
        words = f"{free / 1024:.1f} GiB free, a run takes about {need / 1024:.1f} GiB {how}"
        return max(1, int(free // need)), words


@dataclass(frozen=True)
class Seen:
    """A training that was done, alike in `key`: the peak of the allocator, and what its images and their features had
    of it; None where the features were not kept on the device, so that more images take no more.
    """

    key: Hashable
    peak_mib: float
    of_images_mib: float | None


def room_of(jobs: Iterable[TrainJob], seen: Collection[Seen], free: Mapping[str, float]) -> Room:
    """The room of jobs on GPUs. Pure.

    What was seen of a shape is what students, optimizer, activations and features take; what more or fewer images have
    of that is counted. Of several that were seen the largest counts.
    """
    alike: dict[Hashable, list[Seen]] = {}
    for one in seen:
        alike.setdefault(one.key, []).append(one)
    needs = {}
    for job in jobs:
        if found := alike.get(_key(job.spec, is_graphed(job, "cuda"))):
            of_images = _of_images_mib(job.spec, job.spec.train_images, job.spec.precision)
            peaks = [
                one.peak_mib + (0.0 if one.of_images_mib is None else of_images - one.of_images_mib) for one in found
            ]
            needs[job.spec.id] = PIECES * max(peaks) + CONTEXT_MIB
    return Room(needs, free)


def with_estimates(room: Room, jobs: Iterable[TrainJob]) -> Room:
    """The room with what is estimated of runs that no record tells of, as far as their backbones are in KEPT. Pure."""
    free = min(room.free.values(), default=math.inf)
    unknown = {job.spec.id: job.spec for job in jobs if job.spec.id not in room.needs}
    found = {run: need for run, spec in unknown.items() if (need := _estimate(spec, free)) is not None}
    return Room({**found, **room.needs}, room.free, frozenset(found))


def _estimate(spec: TrainSpec, free: float) -> float | None:
    """In MiB, of a run in one process: weights (of students with gradients, optimizer and moving average), their copies
    in bf16, the features of the images where they fit, and what autograd keeps of a batch. Switches that change the
    students' layers are not counted.
    """
    method, recipe = spec.method, spec.method.train
    student = method.encoder.backbone or spec.backbone
    if not {spec.backbone, student} <= KEPT.keys():
        return None
    encoders, decoders = method.encoder.count if method.has_encoder else 0, int(method.has_decoder)
    trained = encoders * BACKBONES[student].parameters + decoders * KEPT[spec.backbone][2]
    of_optimizer = 4 if recipe.optimizer == "sgd" else 8
    weights = trained * (4 + 4 + of_optimizer + 4 * bool(recipe.ema) + 2) + 6 * BACKBONES[spec.backbone].parameters
    kept = encoders * KEPT[student][0] + decoders * KEPT[spec.backbone][1]
    kept *= (1 if spec.precision in ("auto", "bf16") else 2) * math.prod(spec.sides) / 256**2
    images = min(_of_images_mib(spec, spec.train_images, spec.precision), OF_FEATURES * free)
    return PIECES * (weights / 2**20 + kept * recipe.batch_size + images) + CONTEXT_MIB


def learn(results: Results) -> list[Seen]:
    """From some of a folder's records of trainings on a GPU."""
    found = (_seen(item) for item in itertools.islice(results, SAMPLE) if isinstance(item, Record))
    return [one for one in found if one is not None]


def _seen(record: Record) -> Seen | None:
    result, kind = record.result, record.kind
    peak = result.get("peak_device_memory_mib")
    if kind != "train" or not peak or result.get("device_type") != "cuda":
        return None
    try:
        spec = from_mapping(TrainSpec, record.spec)
        if spec.backbone not in BACKBONES:
            return None  # other facts would cost an inspection
        images = (result.get("train_images") or 0) + (result.get("held_out_images") or 0)
        kept = result.get("teacher_features") == "device"
        of_images = min(peak, _of_images_mib(spec, images, result.get("precision"))) if kept else None
        return Seen(_key(spec, bool(result.get("graphed"))), peak, of_images)
    except (ConfigError, TypeError, AttributeError, ArithmeticError):
        return None


def _key(spec: TrainSpec, graphed: bool) -> Hashable:
    """What is alike in memory but for the number of images."""
    recipe = spec.method.train
    of_recipe = recipe.optimizer, bool(recipe.ema), recipe.select
    return shape_of(spec), of_recipe, spec.precision, spec.compile is True, graphed, spec.processes, spec.strategy


def _of_images_mib(spec: TrainSpec, images: int, precision: str | None) -> float:
    """Of so many images' pixels and their features, as they lie on the device."""
    facts = get_backbone(spec.backbone)
    sides = [[math.ceil(side / stride) for side in spec.sides] for stride in facts.strides]
    values = sum(channels * math.prod(scale) for channels, scale in zip(facts.channels, sides, strict=True))
    width = 2 if precision in ("auto", "bf16", None) else 4  # auto is bf16 on a GPU that has it
    return images * (width * values + 3 * math.prod(spec.sides)) / 2**20
