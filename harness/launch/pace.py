"""About how long work takes: operations that the host launches, multiply-adds that the device does, and the pace of
both, learnt from records. Pure, but for `learn`, which reads records.
"""

import itertools
import math
from collections.abc import Collection, Hashable, Iterable, Mapping
from dataclasses import dataclass, field, replace

from dskd.backbones import BACKBONES
from dskd.config import ConfigError, from_mapping
from dskd.lookup import get_backbone
from dskd.switches import Train
from harness.grid import Training
from harness.job import Job
from harness.launch.devices import Kind
from harness.records import Record, Results
from harness.spec import BenchSpec, TrainSpec

FIXED_S = 0.5  # of a run: data, students, files
# Of a step (forward, backward, optimizer), as torch's dispatcher counts them in bf16: within 15 % for stfpm,
# reverse_distillation, dskd and three encoder students on resnet18, 34, 50, 101 and tf_efficientnet_lite0.
A_CONVOLUTION, A_STUDENT = 16, 110  # with its BatchNorm and activation; with its loss and optimizer
OF_A_GENERIC_TRUNK = 33  # convolutions; tf_efficientnet_lite0 has so many, and those of other families are not known
FORWARD = 0.3  # of a step's operations
METRICS_S = 3e-8  # of a pixel of a test image and a variant (our measurement on one core)
SAMPLE = 200  # records read to learn from


@dataclass(frozen=True)
class Amount:
    """Of work: `operations` that the host launches one by one, and `gmac`, multiply-adds in 1e9, of the device."""

    operations: float
    gmac: float

    def __add__(self, other: "Amount") -> "Amount":
        return Amount(self.operations + other.operations, self.gmac + other.gmac)


@dataclass(frozen=True)
class Pace:
    """How fast a model's work is done.

    Attributes:
        host_s: seconds of an operation that are there whatever its size. On a CPU they hold what does not grow with
            images, such as the optimizer's way through the parameters.
        rate: 1e9 multiply-adds per second.
        overlaps: the host launches while the device computes (a GPU), so the slower of them decides.
    """

    host_s: float
    rate: float
    overlaps: bool

    def seconds(self, amount: Amount) -> float:
        host, device = amount.operations * self.host_s, amount.gmac / self.rate
        return max(host, device) if self.overlaps else host + device

    def slower(self, factor: float) -> "Pace":
        return replace(self, host_s=self.host_s * factor, rate=self.rate / factor)


# Before any record tells better, of our measurements: one core with avx512_bf16; an H100, whose host took 23 to 27 us
# an operation whatever its size, and which did 15,000 to 39,000 when it had not to wait (benchmarks/results).
PRIOR: dict[Kind, Pace] = {"cpu": Pace(150e-6, 110.0, False), "cuda": Pace(26e-6, 30_000.0, True)}


@dataclass(frozen=True)
class Paces:
    """The pace of each model: learnt from its own records, else from those of its trunk or its kind, else from all."""

    general: Pace
    learnt: Mapping[Hashable, Pace] = field(default_factory=dict)

    def of(self, spec: TrainSpec) -> Pace:
        known = (self.learnt[key] for key in reversed(keys_of(spec)) if key in self.learnt)
        return next(known, self.general)

    def slower(self, factor: float) -> "Paces":
        return Paces(self.general.slower(factor), {key: pace.slower(factor) for key, pace in self.learnt.items()})


def prior(kind: Kind) -> Paces:
    """Without any record."""
    return Paces(PRIOR[kind])


def keys_of(spec: TrainSpec) -> list[Hashable]:
    """What is alike in pace, the wider first: a kind of trunk, a model on it, a trunk, a model on that (with its
    optimizer). No size, no batch and no length: those are in the amount.
    """
    method, student = spec.method, spec.method.encoder.backbone or spec.backbone
    alike = spec.precision, spec.compile, spec.processes
    kind = *alike, get_backbone(spec.backbone).block, get_backbone(student).block
    trunk = *alike, spec.backbone, student
    model = method.name, method.encoder, method.embedding, method.decoder, method.train.optimizer
    return [kind, (*kind, *model), trunk, (*trunk, *model)]


START_OF = (None, 0, 0, 2)  # by level of `keys_of`, the wider one that its fit starts from


def estimate_s(job: Job | Training | BenchSpec, paces: Paces, done: Collection[str] = ()) -> float:
    """About how many seconds the work takes; what is `done` takes none."""
    spec = job if isinstance(job, BenchSpec) else job.spec
    if isinstance(spec, BenchSpec):
        return FIXED_S + 1.2 * spec.seconds * (2 + len(spec.batch_sizes))
    pace, total = paces.of(spec), FIXED_S
    if spec.id not in done:
        along = len(spec.evaluate_at) * _evaluation_s(spec, 1, pace)
        total += pace.seconds(training(spec)) + pace.seconds(features(spec)) + along
        total += spec.folds * pace.seconds(training_of_a_fold(spec)) if spec.folds else 0
    if any(evaluation.id not in done for evaluation in job.evaluations):
        total += _evaluation_s(spec, len(job.evaluations), pace)
    return total


def _evaluation_s(spec: TrainSpec, variants: int, pace: Pace) -> float:
    pixels = spec.data.test_images * math.prod(spec.sides)
    return pace.seconds(inspection(spec)) + variants * METRICS_S * pixels


def training(spec: TrainSpec, chosen: int | None = None, held_out: int | None = None) -> Amount:
    """Of one of its processes: forward and backward of the students for `chosen` images every epoch, and forward for
    the held-out ones by which an epoch is selected. By default as many as the recipe makes of the training images.
    """
    recipe, students = spec.method.train, _gmac(spec)[1]
    if chosen is None or held_out is None:
        held_out = _held_out(spec.train_images, recipe)
        chosen = spec.train_images - held_out
    steps, looks = math.ceil(chosen / recipe.batch_size), math.ceil(held_out / recipe.batch_size)
    gmac = students * (3 * chosen + looks * recipe.batch_size) / spec.processes
    return Amount(recipe.epochs * operations(spec) * (steps + FORWARD * looks), recipe.epochs * gmac)


def training_of_a_fold(spec: TrainSpec) -> Amount:
    """Of one of the further trainings of `calibrate: {folds: K}`, each of which is without another fold."""
    images = round(spec.train_images * (1 - 1 / spec.folds))
    held_out = _held_out(images, spec.method.train)
    return training(spec, images - held_out, held_out)


def features(spec: TrainSpec) -> Amount:
    """Of the teacher's features of all training images, once."""
    batches = math.ceil(spec.train_images / spec.method.train.batch_size)
    images = batches * spec.process_batch_size
    return Amount(batches * FORWARD * A_CONVOLUTION * _convolutions(spec.backbone)[0], images * _gmac(spec)[0])


def inspection(spec: TrainSpec) -> Amount:
    """Of one pass of teacher and students over the test images and those for thresholds."""
    images = spec.data.test_images + spec.data.train_images - spec.train_images
    batches = math.ceil(images / spec.eval_batch_size / spec.processes)
    if spec.folds:  # each normal image by the students of one fold
        images += spec.train_images
        batches += spec.folds * math.ceil(spec.train_images / spec.folds / spec.eval_batch_size)
    teacher = A_CONVOLUTION * _convolutions(spec.backbone)[0]
    gmac = sum(_gmac(spec)) * batches * min(spec.eval_batch_size, images)
    return Amount(batches * FORWARD * (operations(spec) + teacher), gmac)


def operations(spec: TrainSpec) -> float:
    """Of a training step, about: see A_CONVOLUTION."""
    method = spec.method
    encoder = method.encoder.count if method.has_encoder else 0
    trunk = _convolutions(method.encoder.backbone or spec.backbone)[0]
    _, embedding, decoder = _convolutions(spec.backbone)
    convolutions = encoder * trunk + method.has_decoder * (embedding + decoder)
    return A_CONVOLUTION * convolutions + A_STUDENT * (encoder + method.has_decoder)


def _convolutions(backbone: str) -> tuple[int, int, int]:
    """Of the trunk up to its third scale, of the embedding and of the decoder, about."""
    facts = get_backbone(backbone)
    of_block = 3 if facts.block == "bottleneck" else 2
    decoder = 3 + of_block * sum(facts.depths)
    trunk = OF_A_GENERIC_TRUNK if facts.block == "generic" else decoder
    return trunk, 4 + of_block * facts.embedding_depth, decoder


def _gmac(spec: TrainSpec) -> tuple[float, float]:
    """Forward of the teacher and of the students for an image, in 1e9 multiply-adds, about: switches that make the
    embedding lighter are not counted.
    """
    method = spec.method
    trunk, embedding, decoder = get_backbone(spec.backbone).gmac
    encoder = get_backbone(method.encoder.backbone or spec.backbone).gmac[0] * method.encoder.count
    area = math.prod(spec.sides) / 256**2
    return trunk * area, (encoder * method.has_encoder + (embedding + decoder) * method.has_decoder) * area


def _held_out(images: int, recipe: Train) -> int:
    return round(recipe.holdout * images) if recipe.select == "val_normal" else 0


@dataclass(frozen=True)
class Seen:
    """A training that was done: `seconds` for an `amount`."""

    spec: TrainSpec
    amount: Amount
    seconds: float


def learn(results: Results, kind: Kind) -> Paces:
    """From some of a folder's records of trainings on this kind of device; without any what is known before."""
    found = (_seen(item, kind) for item in itertools.islice(results, SAMPLE) if isinstance(item, Record))
    return learn_from([one for one in found if one is not None], PRIOR[kind])


def learn_from(seen: Iterable[Seen], start: Pace) -> Paces:
    """The pace of all, and starting from it those of ever narrower groups (`keys_of`). Pure."""
    seen = list(seen)
    general = fit(seen, start)
    learnt: dict[Hashable, Pace] = {}
    for level, wider in enumerate(START_OF):
        groups: dict[Hashable, list[Seen]] = {}
        for one in seen:
            groups.setdefault(keys_of(one.spec)[level], []).append(one)
        for key, group in groups.items():
            learnt[key] = fit(group, general if wider is None else learnt[keys_of(group[0].spec)[wider]])
    return Paces(general, learnt)


PULL = 0.1  # to the start, of what one record pulls


def fit(seen: Collection[Seen], start: Pace) -> Pace:
    """The pace that explains what was seen with the least misfit (a sum of factors, so that short runs count like long
    ones and an outlier like any other), and of those the one nearest to `start`: what records do not tell, such as the
    rate of a GPU that always waits for its host, stays. Pure; our choice: a pattern search over the two logarithms.
    """

    def pace_at(host: float, rate: float) -> Pace:
        return replace(start, host_s=start.host_s * 2**host, rate=start.rate * 2**rate)

    def misfit(at: tuple[float, float]) -> float:
        pace = pace_at(*at)
        errors = (math.log2(one.seconds / pace.seconds(one.amount)) for one in seen)
        return sum(map(_size, errors)) + PULL * sum(map(_size, at))

    best, step = (0.0, 0.0), 4.0
    least = misfit(best)
    while seen and step > 0.02:
        around = [(best[0] + i * step, best[1] + j * step) for i in (-1, 0, 1) for j in (-1, 0, 1)]
        nearest = min(around, key=misfit)
        if misfit(nearest) < least:
            best, least = nearest, misfit(nearest)
        else:
            step /= 2
    return pace_at(*best)


def _size(error: float) -> float:
    """|error|, but smooth at 0, where a search would get stuck in a crease."""
    return math.hypot(error, 0.05)


def _seen(record: Record, kind: Kind) -> Seen | None:
    """None for what tells nothing of the device, or only to another commit: a switch or a value that is not known."""
    result = record.result
    if record.kind != "train" or result.get("train_s") is None or result.get("device_type") != kind:
        return None
    try:
        if not {record.spec["backbone"], _student_trunk(record)} <= BACKBONES.keys():
            return None  # other facts would cost an inspection
        spec = from_mapping(TrainSpec, record.spec)
        amount = training(spec, result.get("train_images"), result.get("held_out_images"))
        return Seen(spec, amount, result["train_s"]) if amount.gmac > 0 else None
    except (ConfigError, TypeError, AttributeError, ArithmeticError):
        return None


def _student_trunk(record: Record) -> str:
    return record.spec["method"].get("encoder", {}).get("backbone") or record.spec["backbone"]
