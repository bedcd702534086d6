"""From a job to records: what a worker does with one piece of work, whatever goes wrong.

A run on several processes is executed by all of them, and rank 0 writes. What fails there on any rank ends that
process, so that the launcher kills the others, which may be waiting for it for good: see `_Work.attempting`.
"""

import functools
import logging
import os
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from safetensors.torch import save as serialize

from dskd.config import to_mapping
from dskd.distiller import Distiller
from dskd.teacher import Teacher
from harness import events
from harness.data import builtin, images, layouts  # noqa: F401  (they register their data sets)
from harness.data.catalog import DataError, get_source
from harness.environment import describe_environment, utc_now
from harness.files import UNWRITABLE, write_atomic
from harness.job import BenchJob, Job, TrainJob, failed_attempt
from harness.records import Record, Results
from harness.run import pictures
from harness.run.checkpoint import Checkpointing, Interrupted, discard
from harness.run.compiled import forward_of
from harness.run.device import Device, free_memory, is_out_of_memory, open_device, peak_memory, reset_peak_memory
from harness.run.features import TeacherFeatures
from harness.run.profile import section
from harness.run.testset import Along, TestSet, kept_last
from harness.run.throughput import throughput
from harness.run.tracking import tracked
from harness.run.train import DivergedError, Epoch, train
from harness.run_folder import write_curve, write_metrics, write_scores
from harness.spec import Spec, TrainSpec
from harness.weights import check_unchanged

log = logging.getLogger(__name__)
GRACE_S = 5.0  # in which rank 0 tells by itself what another rank failed at too


def execute(job: Job, emit: events.Emit, stop: threading.Event | None = None) -> None:
    """Do the job's work and publish a record, or an attempt with its reason, for each piece of it.

    Args:
        emit: called with what is to be told of it.
        stop: once it is set the job ends as `interrupted`: a training after its step, with a checkpoint from which the
            next one goes on; an evaluation after its batch. A throughput measurement is short and finishes.
    """
    with tracked(job, emit) as told:
        _execute(job, _Work(job, told, stop or threading.Event()))


def _execute(job: Job, work: "_Work") -> None:
    with work.attempting():
        if isinstance(job, BenchJob):
            device = open_device(job.device, job.spec.precision)
            work.emit(events.Phase("bench"))
            with work.recording(job.spec, device) as result:
                result |= throughput(job.spec, device)
        else:
            device = open_device(job.device, job.spec.precision, job.spec.processes, job.spec.strategy)
            work.started_at = device.agree(work.started_at)
            _train_and_evaluate(job, work, device)
            device.wait()  # for rank 0 to finish its evaluations: the next job begins together


def _train_and_evaluate(job: TrainJob, work: "_Work", device: Device) -> None:
    spec = job.spec
    work.emit(events.Phase("data"))
    source = get_source(job.source)
    with section("decode"), device.accelerator.local_main_process_first():  # it decodes, the others find the cache
        category = images.load(source, spec.data, spec.image_size, spec.crop)
    torch.manual_seed(spec.seed)
    with section("build"):
        teacher = _teacher(spec.backbone, job.weights_path, spec.weights.sha256, device.place)
        distiller = Distiller(spec.method, spec.backbone, teacher)
        distiller.students.to(device.place, memory_format=torch.channels_last)
    folder = work.results.run_folder(spec.id)
    weights = folder.students
    saved, why = _saved_students(job, work, weights, distiller)
    if device.agree(saved is None):
        if why and device.main:
            log.warning("%s cannot be used (%s); training again", weights, why)
        try:
            with work.recording(spec, device) as result:
                result |= _train(job, work, device, distiller, category)
        except DivergedError:  # it would again from its checkpoint; after other failures the next attempt goes on there
            if device.main:
                discard(folder.path)
            raise
    elif saved is None:
        raise RuntimeError(f"{weights} cannot be used by this process: {why or 'it sees no record of the training'}")
    else:
        distiller.students.load_state_dict(saved)
    if device.main:
        discard(folder.path)
    if job.evaluations:
        _evaluate(job, work, device, distiller, category)
    if device.main and not job.save.weights:
        weights.unlink(missing_ok=True)


def _saved_students(
    job: TrainJob, work: "_Work", path: Path, distiller: Distiller
) -> tuple[dict[str, torch.Tensor] | None, str]:
    """The students of an earlier training that has a record, None if it is to be done; and what is wrong with the file.

    They are compared before they are used: half of them in place would be another beginning for the next training.
    """
    if job.force or not path.exists() or not work.results.has(job.spec.id):
        return None, ""
    try:
        saved = load_file(path)
    except (OSError, ValueError, SafetensorError) as error:
        return None, " ".join(f"{type(error).__name__}: {error}".split())
    own = distiller.students.state_dict()
    if {key: value.shape for key, value in saved.items()} != {key: value.shape for key, value in own.items()}:
        return None, "its tensors are not those of these students"
    return saved, ""


def _train(
    job: TrainJob, work: "_Work", device: Device, distiller: Distiller, category: images.Category
) -> dict[str, Any]:
    spec, recipe = job.spec, job.spec.method.train
    reset_peak_memory()
    chosen, held_out = category.indices("train"), category.indices("val")
    if recipe.select == "last":
        held_out = held_out[:0]
    elif not len(held_out):  # the data set brings no validation normals of its own
        chosen, held_out = images.hold_out(category.samples, chosen, recipe.holdout)
        if not len(held_out):
            raise DataError(f"{spec.data.category}: too few normal images to hold any out; set train.select: last")
    normal = np.sort(np.concatenate([chosen, held_out]))
    work.emit(events.Phase("teacher"))
    features = _features(distiller.teacher, spec, category, normal, device, job.weights_path)
    work.emit(events.Phase("train"))

    def report(step: int, steps: int, epoch: Epoch | None) -> None:
        if epoch is None:
            work.step(step, steps)
        else:
            loss, rate = round(epoch.loss, 6), round(epoch.images / epoch.seconds, 1)
            work.emit(events.Epoch(epoch.epoch, recipe.epochs, loss, rate))

    positions = np.searchsorted(normal, chosen), np.searchsorted(normal, held_out)
    along = Along(spec, device, category)
    folder = work.results.run_folder(spec.id)
    checkpointing = Checkpointing(folder.path, spec.id, device, job.checkpoint_every_s, work.stop, {"along": along})
    forward, compiling = forward_of(spec, distiller, features, device)
    curve, kept = train(distiller, spec, features, *positions, device, report, along, checkpointing, forward)
    seconds = checkpointing.seconds - along.seconds
    if device.main:
        with section("files"):
            if along.rows:
                write_metrics(folder, along.rows)
            state = {key: value.contiguous() for key, value in distiller.students.state_dict().items()}
            write_atomic(folder.students, serialize(state))
            write_curve(folder, [to_mapping(epoch) for epoch in curve])
    # The first epoch warms up caches and allocator; a run of one epoch has no other.
    steady = curve[1:] or curve
    return {
        "epochs": recipe.epochs,
        "kept_epoch": kept,
        "loss_first": curve[0].loss,
        "loss_last": curve[-1].loss,
        "train_images": len(chosen),
        "held_out_images": len(held_out),
        "images_per_s": round(sum(epoch.images for epoch in steady) / sum(epoch.seconds for epoch in steady), 3),
        "train_s": max(0.001, round(seconds, 3)),  # 0 would be no time that anything can be divided by
        **({"resumed": checkpointing.resumed} if checkpointing.resumed else {}),
        "teacher_features": features.kept,
        **compiling,
        "parameters_students": sum(p.numel() for p in distiller.students.parameters()),
        **_scale(distiller),
        **peak_memory(),
        **device.facts(),
    }


def _scale(distiller: Distiller) -> dict[str, float]:
    """Whether the students are of the same scale: the decoder's parameters for each one of the encoder's (or, without
    one, the teacher's).
    """
    encoder, decoder = distiller.students.encoder, distiller.students.decoder
    if decoder is None:
        return {}
    counts = [sum(p.numel() for p in module.parameters()) for module in (decoder, encoder or distiller.teacher)]
    return {"decoder_to_encoder_parameters": round(counts[0] / counts[1], 3)}


def _evaluate(job: TrainJob, work: "_Work", device: Device, distiller: Distiller, category: images.Category) -> None:
    work.emit(events.Phase("evaluate"))
    test = TestSet(category, job.spec, device)
    started = time.perf_counter()

    def report(done: int, total: int) -> None:
        work.step(done, total)
        if device.most(work.stop.is_set()) and done < total:
            raise Interrupted(f"stopped after {done} of {total} test images; the next call evaluates them again")

    inspected, lowered = test.inspect(distiller, job.evaluations, device, report, work.results.folder)
    shared_s = (time.perf_counter() - started) / len(job.evaluations)
    if not device.main:
        return
    for evaluation, seen in zip(job.evaluations, inspected, strict=True):
        with work.attempting(evaluation), work.recording(evaluation, device) as result:
            result |= test.measure(seen, evaluation) | {"inspect_s": round(shared_s, 3)} | lowered | device.facts()
            folder = work.results.run_folder(evaluation.id)
            with section("files"):
                if job.save.scores:
                    write_scores(folder, test.scored(seen))
                pictures.save_maps(folder.maps, test.samples, test.pixels, test.masks, seen.maps, job.save.maps)


@functools.lru_cache(maxsize=1)
def _teacher(backbone: str, path: str | None, sha256: str | None, device: torch.device) -> Teacher:
    """The worker's teacher: it never changes, so the next run of the same backbone and weights takes it as it is.
    Raises DataError for a file whose content is not that of the plan.
    """
    if path is not None:
        check_unchanged(Path(path), sha256)
    return Teacher(backbone, path or "random").to(device, memory_format=torch.channels_last)


_last_features: dict[tuple[Any, ...], TeacherFeatures] = {}  # see `kept_last`


def _features(
    teacher: Teacher,
    spec: TrainSpec,
    category: images.Category,
    normal: np.ndarray,
    device: Device,
    weights: str | None,
) -> TeacherFeatures:
    """The teacher's features of the normal images."""
    batch = spec.process_batch_size
    key = (
        spec.backbone,
        spec.weights,
        weights,
        spec.data.manifest,
        spec.image_size,
        spec.crop,
        device.precision,
        batch,
    )
    key = (*key, normal.tobytes(), device.place)

    def make() -> TeacherFeatures:
        with section("transfer"):
            pixels = torch.from_numpy(category.images[normal]).to(device.place)
        return TeacherFeatures(teacher, pixels, batch, device)

    return kept_last(_last_features, key, make)


@dataclass
class _Work:
    """What the pieces of one job share: its results folder, the way to tell the supervisor and to be told to stop, and
    the book-keeping.
    """

    job: Job
    emit: events.Emit
    stop: threading.Event
    started_at: str = field(default_factory=utc_now)
    last_step: float = 0.0
    published: set[str] = field(default_factory=set)

    @functools.cached_property
    def results(self) -> Results:
        return Results(Path(self.job.results))

    def step(self, done: int, total: int) -> None:
        """Tell how far the phase is, at most four times a second: the screen needs no more."""
        now = time.monotonic()
        if done == total or now - self.last_step >= 0.25:
            self.last_step = now
            self.emit(events.Step(done, total))

    @contextmanager
    def recording(self, spec: Spec, device: Device) -> Iterator[dict[str, Any]]:
        """Publish what the block puts into the dictionary as the spec's record; only rank 0 does."""
        started_at, clock = utc_now(), time.perf_counter()
        result: dict[str, Any] = {}
        yield result
        wall_s = round(time.perf_counter() - clock, 3)
        if device.main:
            record = Record(
                kind=spec.kind,
                id=spec.id,
                spec=to_mapping(spec),
                result=result,
                environment=describe_environment(),
                started_at=started_at,
                wall_s=wall_s,
                grid=self.job.grid,
            )
            self.results.publish(record, replace=self.job.force)
        self.published.add(spec.id)
        self.emit(events.Recorded(spec.kind, spec.id, wall_s, _headline(result)))

    def _is_done(self, spec: Spec) -> bool:
        try:
            return spec.id in self.published or (not self.job.force and self.results.has(spec.id))
        except OSError:  # nobody can tell
            return False

    @contextmanager
    def attempting(self, spec: Spec | None = None) -> Iterator[None]:
        """Turn what goes wrong in the block into a failed attempt, and let the worker live on.

        Not so where several processes do the job together, since the others may wait for the one that fails: it writes
        the attempt and raises, its process ends, and the launcher kills the others. What all ranks fail at, rank 0
        tells (they give it GRACE_S to, and are killed in it); what another rank fails at alone, rank 0 learns from
        their broken connection, and passes on what that rank wrote.

        Args:
            spec: what is attempted, by rank 0 alone; None for the job, where a failure is put down to its first piece
                that is not done.
        """
        started_at = utc_now()
        try:
            yield
        except Exception as error:
            peaks = peak_memory()
            with suppress(Exception):
                free_memory()
            together = spec is None and isinstance(self.job, TrainJob) and self.job.spec.processes > 1
            rank = int(os.environ.get("RANK", "0")) if together else 0  # there may be no device to ask
            if rank:
                time.sleep(GRACE_S)
            if spec is None:
                started_at = self.started_at  # that of all ranks
                spec = next((spec for spec in self.job.works if not self._is_done(spec)), self.job.spec)
            if isinstance(error, OSError) and error.errno in UNWRITABLE:  # no run after this one could be kept
                self.emit(events.Unwritable(error.strerror))
            failure = self.results.last_failure(spec.id) if together else None
            if failure is None or failure.started_at != started_at:
                message = (f"process {rank}: " if rank else "") + " ".join(f"{type(error).__name__}: {error}".split())
                text = "".join(traceback.format_exception(error))
                reason = failure_reason(error)
                failure = self.results.fail(failed_attempt(spec, reason, message, text, started_at, peaks))
            self.emit(events.Failed(spec.id, failure.reason, failure.message))
            if together:
                raise


def failure_reason(error: BaseException) -> str:
    """The reason that a record of a failure gives, for an exception inside a worker."""
    if is_out_of_memory(error):
        return "out_of_memory"
    if isinstance(error, DataError):
        return "data"
    if isinstance(error, Interrupted):
        return "interrupted"
    return "diverged" if isinstance(error, DivergedError) else "error"


def _headline(result: dict[str, Any]) -> dict[str, Any]:
    """The few values that the screen shows when a record arrives."""
    return {key: result[key] for key in ("image_auroc", "pixel_auroc", "loss_last", "images_per_s") if key in result}
