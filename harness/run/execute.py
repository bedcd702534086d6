"""From a job to records: what a worker does with one piece of work, whatever goes wrong.

A run on several processes is executed by all of them, and rank 0 writes.
"""

import dataclasses
import functools
import logging
import shutil
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from safetensors.torch import save as serialize

from dskd.config import to_mapping
from dskd.distiller import Distiller
from harness import events
from harness.data import builtin, held_out, hub, images, layouts, presets, tables  # noqa: F401  (they register their data sets)
from harness.data.catalog import DataError, get_source
from harness.disturbance import disturbed_less
from harness.files import write_atomic
from harness.job import BenchJob, Job, Stop, TrainJob
from harness.records import Record, RecordError
from harness.run import pictures
from harness.run.attempt import Work
from harness.run.checkpoint import Checkpointing, Interrupted, discard
from harness.run.device import Device, open_device
from harness.run.evaluate import Along, TestSet, calibrated_of, decided, inspect, measure, scores_of
from harness.run.folds import inspect_folds, train_folds
from harness.run.machine import wait_for_quiet
from harness.run.memory import peak_memory, reset_peak_memory
from harness.run.passes import Look
from harness.run.sections import section
from harness.run.throughput import throughput
from harness.run.tracking import tracked
from harness.run.train import DivergedError, Epoch, train
from harness.run.warm import Warm
from harness.run_folder import RunFolder, write_calibration, write_curve, write_metrics, write_scores
from harness.spec import TrainSpec

log = logging.getLogger(__name__)
MOST_PATIENCE_S = 20.0  # with a machine that others keep busy, before throughput is measured (our choice)


def execute(job: Job, emit: events.Emit, stop: Stop | None = None, warm: Warm | None = None) -> None:
    """Do the job's work and publish a record, or an attempt with its reason, for each piece of it.

    Args:
        emit: called with what is to be told of it.
        stop: once it is set the job ends as `interrupted`, where it is late as `timeout`: a training after its step,
            with a checkpoint from which the next one goes on; an evaluation after its batch. A throughput measurement
            is short and finishes.
        warm: what this process keeps from job to job; None for nothing.
    """
    with tracked(job, emit) as told:
        work = Work(job, told, stop or Stop())
        with work.attempting():
            if isinstance(job, BenchJob):
                _bench(job, work)
            else:
                device = open_device(job.device, job.spec.precision, job.spec.processes, job.spec.strategy)
                work.started_at = device.agree(work.started_at)
                _train_and_evaluate(job, work, device, warm or Warm())
                device.wait()  # for rank 0 to finish its evaluations: the next job begins together


def _bench(job: BenchJob, work: Work) -> None:
    spec, device = job.spec, open_device(job.device, job.spec.precision)
    work.emit(events.Phase("bench"))
    earlier = None
    if job.again:
        with suppress(RecordError):
            earlier = work.results.record(spec.id)
    wait_for_quiet(device.place, min(MOST_PATIENCE_S, 2 * spec.seconds), lambda said: work.emit(events.Noted(said)))
    with work.recording(spec, device, lambda later: quieter(earlier, later)) as result:
        result |= throughput(spec, device)


def quieter(earlier: Record | None, later: Record) -> Record:
    """Of two records of one measurement the one that was disturbed less, the later one if they are equal, with how many
    there were. Pure.
    """
    if earlier is None:
        return later
    chosen = earlier if disturbed_less(earlier.result, later.result) else later
    count = 1 + earlier.result.get("measurements", 1)
    return dataclasses.replace(chosen, result=chosen.result | {"measurements": count})


def _train_and_evaluate(job: TrainJob, work: Work, device: Device, warm: Warm) -> None:
    spec = job.spec
    work.emit(events.Phase("data"))
    source = get_source(job.source)
    with section("decode"), device.one_on_each_node_first():  # it decodes, the others find the cache
        category = images.load(source, spec.data, spec.image_size, spec.crop)
    torch.manual_seed(spec.seed)
    with section("build"):
        teacher = warm.teacher(spec.backbone, job.weights_path, spec.weights, device.place)
        distiller = Distiller(spec.method, spec.backbone, teacher)
        distiller.students.to(device.place, memory_format=torch.channels_last)
    regions = functools.partial(warm.regions, spec, np.asarray(category.test.masks))
    test = functools.cache(lambda: TestSet(category, regions(), spec))
    folder = work.results.run_folder(spec.id)
    saved, why = _saved_students(job, work, folder, distiller)
    if device.agree(saved is None):
        if why and device.main:
            log.warning("%s; training again", why)
        try:
            with work.recording(spec, device) as result:
                result |= _train(job, work, device, warm, distiller, category, test)
        except DivergedError:  # it would again from its checkpoint; after other failures the next attempt goes on there
            if device.main:
                discard(folder)
            raise
    elif saved is None:
        raise RuntimeError(why or f"{folder.students} cannot be used: this process sees no record of the training")
    else:
        distiller.students.load_state_dict(saved)
    if device.main:
        discard(folder)
    if job.evaluations:
        work.emit(events.Phase("evaluate"))
        _evaluate(job, work, warm.look(device), distiller, category, test())
    if device.main and not job.save.weights:
        folder.students.unlink(missing_ok=True)
        shutil.rmtree(folder.folds, ignore_errors=True)


def _saved_students(
    job: TrainJob, work: Work, folder: RunFolder, distiller: Distiller
) -> tuple[dict[str, torch.Tensor] | None, str]:
    """The students of an earlier training that has a record, None if it is to be done; and what is wrong with a file,
    of them or of a fold's.

    They are compared before they are used: half of them in place would be another beginning for the next training.
    """
    if job.force or not folder.students.exists() or not work.results.has(job.spec.id):
        return None, ""
    own, saved = distiller.students.state_dict(), None
    for path in [*(folder.fold(number + 1) for number in range(job.spec.folds)), folder.students]:
        try:
            saved = load_file(path)
        except (OSError, ValueError, SafetensorError) as error:
            return None, " ".join(f"{path} cannot be used: {type(error).__name__}: {error}".split())
        if {key: value.shape for key, value in saved.items()} != {key: value.shape for key, value in own.items()}:
            return None, f"{path} cannot be used: its tensors are not those of these students"
    return saved, ""


def _train(
    job: TrainJob,
    work: Work,
    device: Device,
    warm: Warm,
    distiller: Distiller,
    category: images.Category,
    test: Callable[[], TestSet],
) -> dict[str, Any]:
    """Train the students in place and write the run's files; the training's result."""
    spec, epochs = job.spec, job.spec.method.train.epochs
    reset_peak_memory()
    division, folds = _divided(spec, category.train)
    chosen, val = division.train, division.val
    normal = np.sort(np.concatenate([chosen, val]))
    work.emit(events.Phase("teacher"))
    features = warm.features(job, distiller.teacher, category.train.images, normal, device)
    of_folds = train_folds(job, work, device, warm, distiller.teacher, features, normal, folds)
    work.emit(events.Phase("train", len(folds) + 1, len(folds) + 1))

    def report(step: int, steps: int, epoch: Epoch | None) -> None:
        if epoch is None:
            work.step(step, steps)
        else:
            loss, rate = round(epoch.loss, 6), round(epoch.images / epoch.seconds, 1)
            work.emit(events.Epoch(epoch.epoch, epochs, loss, rate))

    positions = np.searchsorted(normal, chosen), np.searchsorted(normal, val)
    look = warm.look(device)
    along = Along(spec, device, test, look)
    folder = work.results.run_folder(spec.id)
    checkpointing = Checkpointing(folder, spec.id, device, job.checkpoint_every_s, work.stop, {"along": along})
    learner, of_steps = warm.learner(job, distiller, features, device, len(chosen))
    curve, kept = train(learner, features, *positions, report, along, checkpointing, look)
    seconds = checkpointing.seconds - along.seconds
    resumed = sum((each.get("resumed", 0) for each in of_folds), checkpointing.resumed)
    if device.main:
        _write(folder, distiller, curve, along.rows)
    # The first epoch warms up caches and allocator; a run of one epoch has no other.
    steady = curve[1:] or curve
    return {
        "epochs": epochs,
        "kept_epoch": kept,
        "loss_first": curve[0].loss,
        "loss_last": curve[-1].loss,
        "train_images": len(chosen),
        "held_out_images": len(val),
        **({"calibration_images": len(division.calibration)} if spec.held_out_share else {}),
        **({"folds": of_folds} if folds else {}),
        **({"pictures": extents} if (extents := images.extents(spec.data, spec.image_size)) else {}),
        "images_per_s": round(sum(epoch.images for epoch in steady) / sum(epoch.seconds for epoch in steady), 3),
        "train_s": max(0.001, round(seconds, 3)),  # 0 would be no time that anything can be divided by
        **({"resumed": resumed} if resumed else {}),
        "teacher_features": features.kept,
        **(device.steps | of_steps()),
        **look.facts(),
        **_sizes(distiller),
        **peak_memory(),
        **device.facts(),
    }


def _divided(spec: TrainSpec, train: images.Pixels) -> tuple[held_out.Division, list[held_out.Division]]:
    """For the run's own training, and for those by folds. Raises DataError for too few images to hold out what the spec
    asks for; plans say so before.
    """
    own = held_out.divide(train.samples, spec)
    folds = held_out.divide_by_fold(train.samples, spec) if spec.folds else []
    if spec.method.train.select == "val_normal" and not all(len(each.val) for each in (own, *folds)):
        raise DataError(f"{spec.data.category}: too few normal images to hold any out; set train.select: last")
    if spec.calibrate and not all(len(each.calibration) for each in (folds or [own])):
        raise DataError(f"{spec.data.category}: too few normal images to hold any out; set calibrate: 0")
    return own, folds


def _write(folder: RunFolder, distiller: Distiller, curve: list[Epoch], along: list[dict[str, Any]]) -> None:
    with section("files"):
        if along:
            write_metrics(folder, along)
        state = {key: value.contiguous() for key, value in distiller.students.state_dict().items()}
        write_atomic(folder.students, serialize(state))
        write_curve(folder, [to_mapping(epoch) for epoch in curve])


def _sizes(distiller: Distiller) -> dict[str, float]:
    """The students' parameters, and whether they are of the same scale: the decoder's for each one of the encoder's
    (or, without one, the teacher's).
    """

    def size(module: torch.nn.Module) -> int:
        return sum(p.numel() for p in module.parameters())

    students = distiller.students
    sizes: dict[str, float] = {"parameters_students": size(students)}
    if students.decoder is not None:
        ratio = size(students.decoder) / size(students.encoder or distiller.teacher)
        sizes["decoder_to_encoder_parameters"] = round(ratio, 3)
    return sizes


def _evaluate(
    job: TrainJob, work: Work, look: Look, distiller: Distiller, category: images.Category, test: TestSet
) -> None:
    device = look.device
    started, total = time.perf_counter(), len(test.samples) + len(test.calibration_samples)

    def report(done: int, _: int = 0) -> None:
        work.step(done, total)
        if device.most(work.stop.is_set()) and done < total:
            raise Interrupted(f"stopped after {done} of {total} images; the next call evaluates them again")

    asked, scratch, folder = job.spec.eval_batch_size, work.results.folder, work.results.run_folder(job.spec.id)
    given = distiller, test.pixels, job.evaluations, asked, device, report, test.normal, scratch, test.calibration
    size, inspected = inspect(*given, look)
    if test.folds:
        by_folds = inspect_folds(
            distiller,
            category,
            test.folds,
            folder,
            job.evaluations,
            size,
            device,
            lambda done: report(len(test.samples) + done),
            scratch,
            look,
        )
        inspected = [dataclasses.replace(own, calibration=of) for own, of in zip(inspected, by_folds, strict=True)]
    shared_s = (time.perf_counter() - started) / len(job.evaluations)
    lowered = {} if size == asked else {"lowered_batch_size": size}
    if not device.main:
        return
    for evaluation, seen in zip(job.evaluations, inspected, strict=True):
        with work.attempting(evaluation), work.recording(evaluation, device) as result:
            result |= measure(seen, test, evaluation, device.place) | decided(seen, test, evaluation)
            result |= {"inspect_s": round(shared_s, 3)}
            result |= lowered | look.facts() | device.facts()
            result |= {"standardisation": seen.standardisation} if seen.standardisation else {}
            folder = work.results.run_folder(evaluation.id)
            with section("files"):
                if job.save.scores:
                    write_scores(folder, scores_of(seen, test))
                if calibrated := calibrated_of(seen, test):
                    write_calibration(folder, calibrated)
                pictures.save_maps(folder.maps, test.samples, test.pixels, test.masks, seen.maps, job.save.maps)
