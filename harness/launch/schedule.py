"""What is to be done, in which order, and about how long it takes. Pure, but for `rate_of`, which reads records."""

import itertools
from collections.abc import Collection, Iterable
from dataclasses import dataclass

from dskd.backbones import BACKBONES, get_backbone
from dskd.config import from_mapping
from dskd.switches import Method
from harness.data.catalog import entry_of
from harness.environment import gpu_names
from harness.grid import Plan, Training
from harness.launch.job import BenchJob, Job, TrainJob
from harness.records import Record, Results
from harness.spec import BenchSpec, EvaluateSpec, Save, Spec, TrainSpec

# Multiply-adds in 1e9 per second that a training reaches, before any record tells better (our measurements: 2 cores
# with avx512_bf16; the GPU's is a guess that the first record replaces).
RATE = {"cpu": 110.0, "cuda": 20_000.0}
FIXED_S = 0.5  # of a run: data, metrics, files


@dataclass(frozen=True)
class Todo:
    """The jobs that are left of a plan, and which of its works are done."""

    jobs: list[Job]
    done: int
    left: int


def remaining(
    plan: Plan,
    done: Collection[str],
    *,
    results: str,
    save: Save,
    device: str,
    force: bool,
    grid: str,
    checkpoint_every_s: float,
) -> Todo:
    """Jobs for what has no record (all with `force`): trainings with their evaluations first, then bench."""
    jobs: list[Job] = []
    for training in plan.trainings:
        missing = tuple(spec for spec in training.evaluations if force or spec.id not in done)
        if missing or force or training.spec.id not in done:
            jobs.append(
                TrainJob(
                    spec=training.spec,
                    evaluations=missing,
                    source=entry_of(training.source),
                    weights_path=training.weights_path,
                    results=results,
                    save=save,
                    device=device,
                    force=force,
                    grid=grid,
                    checkpoint_every_s=checkpoint_every_s,
                )
            )
    jobs += [BenchJob(spec, results, device, force, grid) for spec in plan.benches if force or spec.id not in done]
    left = sum(force or spec.id not in done for job in jobs for spec in job.works)
    return Todo(jobs, len(plan) - left, left)


def works(plan: Plan) -> Iterable[Spec]:
    """Every piece of work of the plan."""
    for training in plan.trainings:
        yield training.spec
        yield from training.evaluations
    yield from plan.benches


def estimate_s(job: Job | Training | BenchSpec, rate: float, done: Collection[str] = ()) -> float:
    """About how many seconds the work takes at `rate` (1e9 multiply-adds per second); what is `done` takes none."""
    spec = job if isinstance(job, BenchSpec) else job.spec
    if isinstance(spec, BenchSpec):
        return FIXED_S + 1.5 * spec.seconds * len(spec.batch_sizes)
    total = FIXED_S
    if spec.id not in done:
        total += training_gmac(spec) / rate
    if any(evaluation.id not in done for evaluation in job.evaluations):
        total += evaluation_gmac(spec, job.evaluations) / rate
    return total


def training_gmac(spec: TrainSpec) -> float:
    """Multiply-adds (1e9) of a training: forward and backward of the students every epoch, the teacher once."""
    teacher, students = _gmac(spec.method, spec.backbone, spec.side)
    return spec.data.train_images * (teacher + 3 * students * spec.method.train.epochs)


def evaluation_gmac(spec: TrainSpec, evaluations: Collection[EvaluateSpec]) -> float:
    """Multiply-adds (1e9) of one pass over the test images; map and metrics of a variant count as half a pass."""
    return spec.data.test_images * sum(_gmac(spec.method, spec.backbone, spec.side)) * (1 + len(evaluations) / 2)


def _gmac(method: Method, backbone: str, side: int) -> tuple[float, float]:
    """Of the teacher and of the students, about: switches that make the embedding lighter are not counted."""
    trunk, embedding, decoder = get_backbone(backbone).gmac
    encoder = get_backbone(method.encoder.backbone or backbone).gmac[0] * method.encoder.count
    area = (side / 256) ** 2
    return trunk * area, (encoder * method.has_encoder + (embedding + decoder) * method.has_decoder) * area


def _student_trunk(record: Record) -> str:
    return record.spec["method"].get("encoder", {}).get("backbone") or record.spec["backbone"]


SAMPLE = 60  # records read to learn a rate


def rate_of(results: Results, devices: str) -> float:
    """1e9 multiply-adds per second of a training on this device: the median of some records, RATE if there is none."""
    device_type = "cuda" if devices != "cpu" and gpu_names() else "cpu"
    rates = sorted(
        training_gmac(from_mapping(TrainSpec, item.spec)) / item.result["train_s"]
        for item in itertools.islice(results, SAMPLE)
        if isinstance(item, Record)
        and item.kind == "train"
        and item.result["device_type"] == device_type
        and {item.spec["backbone"], _student_trunk(item)} <= BACKBONES.keys()  # other facts would cost an inspection
    )
    return rates[len(rates) // 2] if rates else RATE[device_type]
