"""What is to be done, in which order, and about how long it takes. Pure, but for `rate_of`, which reads records."""

import heapq
import itertools
import math
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

from dskd.backbones import BACKBONES
from dskd.config import ConfigError, from_mapping, quoted, require
from dskd.lookup import get_backbone
from harness.data.catalog import entry_of
from harness.grid import Plan, Training
from harness.job import BenchJob, Job, TrainJob, group_of
from harness.launch.devices import Slot, apart
from harness.records import Record, Results
from harness.spec import BenchSpec, EvaluateSpec, Save, TrainSpec

# Multiply-adds in 1e9 per second that a training reaches, before any record tells better (our measurements: 2 cores
# with avx512_bf16; the GPU's is a guess that the first record replaces).
RATE = {"cpu": 110.0, "cuda": 20_000.0}
MOST_SHARDS = 100_000
FIXED_S = 0.5  # of a run: data, metrics, files


@dataclass(frozen=True)
class Item:
    """A pending job as the scheduler sees it."""

    seconds: float
    affinity: object


@dataclass(frozen=True)
class Phase:
    """Jobs with their estimated seconds, and the places that can be at them at the same time, each of some slots."""

    jobs: list[tuple[Job, float]]
    places: list[tuple[Slot, ...]]


def phases(jobs: Sequence[tuple[Job, float]], slots: Sequence[Slot], whole: Slot, nodes: int = 1) -> list[Phase]:
    """Runs of many processes first, each on as many slots; then the others; then bench, one by one, on `whole`. Pure.

    With `nodes` above 1 each run is on equally many slots of every node, which are alike. `grid.check_processes` has
    seen that there are enough devices.
    """
    found = []
    for processes in sorted({group_of(job).processes for job, _ in jobs}, reverse=True):
        chosen = [pair for pair in jobs if isinstance(pair[0], TrainJob) and group_of(pair[0]).processes == processes]
        usable = slots if processes == 1 else apart(slots)
        size = processes // nodes  # of a place, on each node
        places = [tuple(usable[i * size : (i + 1) * size]) for i in range(len(usable) // size)]
        if nodes > 1:
            places = [tuple(replace(slot, node=node) for node in range(nodes) for slot in place) for place in places]
        found.append(Phase(chosen, places))
    found.append(Phase([pair for pair in jobs if isinstance(pair[0], BenchJob)], [(whole,)]))
    return [phase for phase in found if phase.jobs]


@dataclass(frozen=True)
class Todo:
    """The jobs that are left of a plan, and the ids of the works that they are of."""

    jobs: list[Job]
    left: frozenset[str]


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
    tracking: str | None = None,
    again: Collection[str] = (),
) -> Todo:
    """Jobs for what has no record (all with `force`): trainings with their evaluations first, then bench.

    Args:
        again: ids of measurements that are done and made once more all the same; they are not counted as left.
    """
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
                    tracking=tracking,
                    names={spec.id: plan.names.get(spec.id, "") for spec in (training.spec, *missing)},
                )
            )
    for spec in plan.benches:
        more = not force and spec.id in done and spec.id in again
        if force or more or spec.id not in done:
            names = {spec.id: plan.names.get(spec.id, "")}
            jobs.append(BenchJob(spec, results, device, force or more, grid, names, more))
    return Todo(jobs, frozenset(spec.id for job in jobs for spec in job.works if force or spec.id not in done))


def parse_shard(text: str) -> tuple[int, int]:
    """`2/8` to (2, 8): the third of eight. Raises ConfigError."""
    match = re.fullmatch(r"([0-9]{1,6})/([0-9]{1,6})", text)
    require(
        match is not None and int(match[2]) <= MOST_SHARDS,
        f"--shard: {quoted(text)} is not possible; write INDEX/COUNT: 0/8 to 7/8, COUNT up to {MOST_SHARDS}",
    )
    index, count = int(match[1]), int(match[2])
    require(count >= 1, f"--shard: {text} has no shards; write 0/1 for all runs")
    require(index < count, f"--shard: {text} is out of range; {count} shards are 0/{count} to {count - 1}/{count}")
    return index, count


def shards(plan: Plan, count: int) -> list[Plan]:
    """The plan in `count` parts of about equal cost, the longest run first to the part with the least. Pure.

    Neither what is done nor what was measured plays a part, nor the machine: all who ask get the same parts. With as
    many runs as parts or more none is empty.
    """
    runs: list[Training | BenchSpec] = [*plan.trainings, *plan.benches]
    cost = [estimate_s(run, RATE["cpu"]) for run in runs]
    loads = [(0.0, part) for part in range(count)]
    part_of = {}
    for i in sorted(range(len(runs)), key=lambda i: -cost[i]):
        load, part = heapq.heappop(loads)
        part_of[i] = part
        heapq.heappush(loads, (load + cost[i], part))
    parts = [replace(plan, trainings=[], benches=[]) for _ in range(count)]
    for i, run in enumerate(runs):
        part = parts[part_of[i]]
        (part.benches if isinstance(run, BenchSpec) else part.trainings).append(run)
    return parts


def estimate_s(job: Job | Training | BenchSpec, rate: float, done: Collection[str] = ()) -> float:
    """About how many seconds the work takes at `rate` (1e9 multiply-adds per second); what is `done` takes none."""
    spec = job if isinstance(job, BenchSpec) else job.spec
    if isinstance(spec, BenchSpec):
        return FIXED_S + 1.2 * spec.seconds * (2 + len(spec.batch_sizes))
    total = FIXED_S
    if spec.id not in done:
        total += training_gmac(spec) / rate
    if any(evaluation.id not in done for evaluation in job.evaluations):
        total += evaluation_gmac(spec, job.evaluations) / rate
    return total


def training_gmac(spec: TrainSpec) -> float:
    """Multiply-adds (1e9) of a training: forward and backward of the students every epoch, the teacher once."""
    teacher, students = _gmac(spec)
    return spec.train_images * (teacher + 3 * students * spec.method.train.epochs)


def evaluation_gmac(spec: TrainSpec, evaluations: Collection[EvaluateSpec]) -> float:
    """Multiply-adds (1e9) of one pass over the test images and those for thresholds; map and metrics of a variant count
    as half a pass.
    """
    seen = spec.data.test_images + spec.data.train_images - spec.train_images
    return seen * sum(_gmac(spec)) * (1 + len(evaluations) / 2)


def _gmac(spec: TrainSpec) -> tuple[float, float]:
    """Of the teacher and of the students, about: switches that make the embedding lighter are not counted."""
    method = spec.method
    trunk, embedding, decoder = get_backbone(spec.backbone).gmac
    encoder = get_backbone(method.encoder.backbone or spec.backbone).gmac[0] * method.encoder.count
    area = math.prod(spec.sides) / 256**2
    return trunk * area, (encoder * method.has_encoder + (embedding + decoder) * method.has_decoder) * area


def _student_trunk(record: Record) -> str:
    return record.spec["method"].get("encoder", {}).get("backbone") or record.spec["backbone"]


def take(pending: Mapping[int, Item], last: object) -> int:
    """Which of the pending jobs a free worker does next, by its key in `pending`. Pure; never none of several.

    The longest of the affinity that it did `last`; else the longest of the affinity with the most work left. A worker
    is never left idle while jobs are pending, so the whole takes at most their sum over the workers plus the longest.
    """
    work: dict[object, float] = {}
    for item in pending.values():
        work[item.affinity] = work.get(item.affinity, 0.0) + item.seconds
    chosen = last if last in work else max(work, key=work.__getitem__)
    return max((key for key, item in pending.items() if item.affinity == chosen), key=lambda key: pending[key].seconds)


SAMPLE = 60  # records read to learn a rate


def rate_of(results: Results, device_type: str) -> float:
    """1e9 multiply-adds per second of a training on `cpu` or `cuda`: the median of some records, RATE without any."""
    found = (_rate(item, device_type) for item in itertools.islice(results, SAMPLE) if isinstance(item, Record))
    rates = sorted(rate for rate in found if rate is not None)
    return rates[len(rates) // 2] if rates else RATE[device_type]


def _rate(record: Record, device_type: str) -> float | None:
    """None for what tells nothing of the device, or only to another commit: a switch or a value that is not known."""
    seconds = record.result.get("train_s")
    if record.kind != "train" or seconds is None or record.result.get("device_type") != device_type:
        return None
    try:
        if not {record.spec["backbone"], _student_trunk(record)} <= BACKBONES.keys():
            return None  # other facts would cost an inspection
        return training_gmac(from_mapping(TrainSpec, record.spec)) / seconds or None
    except (ConfigError, TypeError, AttributeError, ArithmeticError):
        return None


def duration(seconds: float) -> str:
    """`45 s`, `12 min`, `3 h 05 min`"""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d} min"
