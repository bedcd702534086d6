"""What a supervisor sends a worker, as JSON: a job, or that it shall stop."""

import json
import math
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from dskd.config import difference, from_mapping, to_mapping
from harness.environment import cpu_flags, describe_environment
from harness.naming import title
from harness.records import Failure
from harness.spec import BenchSpec, EvaluateSpec, Save, Spec, TrainSpec


@dataclass(frozen=True)
class TrainJob:
    """One training and those of its evaluations that are missing; a training that is done is loaded, not repeated.

    Args:
        source: the data set's entry in the grid.
        weights_path: the teacher's file on this machine, None for random weights.
        results: the results folder.
        force: do it again although there are records.
        grid: the grid's name.
        checkpoint_every_s: seconds from one save of the unfinished training to the next.
        tracking: the experiment tracker that hears of it, as the grid names it.
        names: by id those of its works, as the grid's `Plan` has them.
        graphs: schedules of the rate with which recorded steps are proven here to be plain ones bit for bit, so that
            `compile: auto` records them.
    """

    spec: TrainSpec
    evaluations: tuple[EvaluateSpec, ...]
    source: dict[str, Any]
    weights_path: str | None
    results: str
    save: Save = field(default_factory=Save)
    device: str = "auto"
    force: bool = False
    grid: str = ""
    checkpoint_every_s: float = 600.0
    tracking: str | None = None
    names: dict[str, str] = field(default_factory=dict)
    graphs: tuple[str, ...] = ()

    kind: ClassVar[str] = "train"

    @property
    def works(self) -> tuple[Spec, ...]:
        return (self.spec, *self.evaluations)


@dataclass(frozen=True)
class BenchJob:
    """One throughput measurement. `again`: there is one that was disturbed, and the quieter one stays."""

    spec: BenchSpec
    results: str
    device: str = "auto"
    force: bool = False
    grid: str = ""
    names: dict[str, str] = field(default_factory=dict)
    again: bool = False

    kind: ClassVar[str] = "bench"

    @property
    def works(self) -> tuple[Spec, ...]:
        return (self.spec,)


Job = TrainJob | BenchJob


@dataclass(frozen=True)
class GroupKind:
    """What a group of workers is for all its life: Accelerate keeps a process's device, precision and distribution."""

    device: str
    precision: str
    processes: int = 1
    strategy: str = "ddp"


def name_of(job: Job, run_id: str = "") -> str:
    """What one of its works is called; its training or measurement without an id."""
    return job.names.get(run_id or job.spec.id) or title(job.spec)


def group_of(job: Job) -> GroupKind:
    if isinstance(job, BenchJob):
        return GroupKind(job.device, job.spec.precision)
    return GroupKind(job.device, job.spec.precision, job.spec.processes, job.spec.strategy)


def affinity(job: Job) -> tuple[object, ...]:
    """Jobs of equal affinity share what a worker keeps from job to job: images, teacher and its features."""
    if isinstance(job, BenchJob):
        return (job.spec.backbone, job.spec.image_size, job.spec.precision)
    spec = job.spec
    data = spec.data.name, spec.data.category, spec.data.manifest  # whatever they are tested on
    return (spec.backbone, spec.weights, data, spec.sides, spec.precision, spec.method.train.batch_size)


# Passes of a 256x256 image from which `compile: auto` compiles, by kind of device. With AMX a step of 25 ms an image
# gets a tenth shorter and compiling takes up to a minute; other CPUs gain 4 % at most, and no GPU was measured yet.
PAYS = {"amx": 25_000}


def is_compiled(spec: TrainSpec, device: str, precision: str) -> bool:
    """Whether the training's steps are: `compile: auto` is decided by the recipe's passes and the kind of device, never
    by a clock, so that a resumed or repeated training gets the same.

    Args:
        device: its type; precision: the resolved one, or `auto`, which is bf16 on a CPU with AMX.
    """
    if spec.compile != "auto":
        return spec.compile is True
    has_amx = device == "cpu" and precision in ("auto", "bf16") and "amx_bf16" in cpu_flags()
    passes = spec.method.train.epochs * spec.train_images * math.prod(spec.sides) / 256**2
    return spec.processes == 1 and passes >= PAYS.get("amx" if has_amx else "", math.inf)


def is_graphed(job: TrainJob, device: str) -> bool:
    """Whether the training's steps are to be recorded as CUDA graphs: they then have the numbers of plain ones.

    Args:
        device: its type.
    """
    spec = job.spec
    if spec.compile != "auto":
        return spec.compile == "graph"
    return device == "cuda" and spec.processes == 1 and spec.method.train.schedule in job.graphs


def shape_of(spec: TrainSpec) -> tuple[object, ...]:
    """What the graphs of compiled steps depend on, on one device at one precision."""
    method = {key: value for key, value in difference(spec.method).items() if key not in ("map", "score", "train")}
    return repr(method), spec.backbone, spec.process_batch_size, spec.sides


MESSAGE_CHARACTERS, TRACEBACK_CHARACTERS = 500, 2000  # attempts stay small; a run's log has the rest
_KINDS: dict[str, type[Job]] = {"train": TrainJob, "bench": BenchJob}


class Stop(threading.Event):
    """Set where the job that is on shall end. `late`: how it has used up its time, if that is why."""

    late = ""


def encode_stop(late: str = "") -> bytes:
    """Beside jobs: the one that is on shall end. `late`: see `Stop`."""
    return json.dumps({"kind": "stop", "late": late}).encode()


def decode_stop(message: bytes) -> str | None:
    """The `late` of `encode_stop`, None for a job."""
    return json.loads(message)["late"] if message.startswith(b'{"kind": "stop"') else None


def encode(job: Job) -> bytes:
    return json.dumps({"kind": job.kind, "job": to_mapping(job)}).encode()


def decode(message: bytes) -> Job:
    """The job of a message that is no stop. It may name what plug-ins bring: they are loaded before."""
    document = json.loads(message)
    return from_mapping(_KINDS[document["kind"]], document["job"])


def failed_attempt(
    spec: Spec, reason: str, message: str, traceback: str, started_at: str, peaks: Mapping[str, float]
) -> Failure:
    """What `Results.fail` writes when a piece of work did not end in a record; of the traceback its end is kept.

    `peaks`: what is known of peak memory, by `Failure`'s fields.
    """
    return Failure(
        kind=spec.kind,
        id=spec.id,
        spec=to_mapping(spec),
        reason=reason,
        message=message[:MESSAGE_CHARACTERS],
        traceback=traceback[-TRACEBACK_CHARACTERS:],
        started_at=started_at,
        environment=describe_environment(),
        **peaks,
    )
