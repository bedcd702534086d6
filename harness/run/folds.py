"""The further trainings of `calibrate: {folds: K}`, and the normal images as those see them that did not train on them.

They come one after the other before the run's own, by the same spec and seed, and have no record of their own. Each
leaves its students when it ends, so that a job that is stopped goes on in the fold that it was at.
"""

import json
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from safetensors.torch import save as serialize

from dskd.distiller import Distiller
from dskd.teacher import Teacher
from harness import events
from harness.data.held_out import Division
from harness.data.images import Category
from harness.files import write_atomic
from harness.job import TrainJob
from harness.run.attempt import Work
from harness.run.checkpoint import Checkpointing, Interrupted, discard
from harness.run.device import Device
from harness.run.evaluate import Inspected, inspect, room
from harness.run.features import TeacherFeatures
from harness.run.passes import Look
from harness.run.sections import section
from harness.run.train import DivergedError, train
from harness.run.warm import Warm
from harness.run_folder import RunFolder
from harness.spec import EvaluateSpec

log = logging.getLogger(__name__)


def train_folds(
    job: TrainJob,
    work: Work,
    device: Device,
    warm: Warm,
    teacher: Teacher,
    features: TeacherFeatures,
    normal: np.ndarray,
    divisions: Sequence[Division],
) -> list[dict[str, Any]]:
    """Train without each fold in turn and keep the students (`RunFolder.fold`); of each training its facts. A fold that
    an earlier attempt has ended is not trained again. Generators of random numbers end as they were.

    Args:
        features: of the images at the positions `normal`, which `divisions` are of too.

    Raises:
        DivergedError, Interrupted: as `train`; the message names the fold.
    """
    folder, count, found = work.results.run_folder(job.spec.id), len(divisions), []
    for number, division in enumerate(divisions, start=1):
        name, path = f"fold {number} of {count}", folder.fold(number)
        work.emit(events.Phase("train", number, count + 1))
        checkpointing = Checkpointing(folder, f"{job.spec.id} {name}", device, job.checkpoint_every_s, work.stop)
        facts = None if job.force and _is_of_earlier(path, folder) else _finished(path, checkpointing.about)
        if facts is None:
            try:
                model, facts = _trained(job, work, device, warm, teacher, features, normal, division, checkpointing)
            except (DivergedError, Interrupted) as error:
                raise type(error)(f"{name}: {error}") from error
            with section("files"):
                state = {key: value.contiguous() for key, value in model.students.state_dict().items()}
                about = json.dumps({"about": checkpointing.about, "facts": facts})
                write_atomic(path, serialize(state, {"fold": about}))
            discard(folder)
        found.append(facts)
    return found


def _is_of_earlier(path: Path, folder: RunFolder) -> bool:
    """Whether a fold's students are those of a training that has a record, which is now to be done again."""
    try:
        return path.stat().st_mtime_ns <= folder.record.stat().st_mtime_ns
    except FileNotFoundError:
        return False


def _finished(path: Path, about: dict[str, Any]) -> dict[str, Any] | None:
    """The facts of a fold that has ended, under the conditions under which a checkpoint would be used; None else."""
    try:
        with safe_open(path, "pt") as file:
            written = json.loads(file.metadata()["fold"])
        if written["about"] != about:
            raise ValueError(f"it is of {written['about']}, not {about}")
        return written["facts"]
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, KeyError, SafetensorError) as error:
        log.warning("%s cannot be used, the fold is trained anew: %s: %s", path, type(error).__name__, error)
        return None


def _trained(
    job: TrainJob,
    work: Work,
    device: Device,
    warm: Warm,
    teacher: Teacher,
    features: TeacherFeatures,
    normal: np.ndarray,
    division: Division,
    checkpointing: Checkpointing,
) -> tuple[Distiller, dict[str, Any]]:
    spec, chosen = job.spec, division.train
    with torch.random.fork_rng([device.place] if device.place.type == "cuda" else []):
        torch.manual_seed(spec.seed)
        with section("build"):
            model = Distiller(spec.method, spec.backbone, teacher)
            model.students.to(device.place, memory_format=torch.channels_last)
        learner, _ = warm.learner(job, model, features, device, len(chosen))
        curve, kept = train(
            learner,
            features,
            *(np.searchsorted(normal, positions) for positions in (chosen, division.val)),
            lambda step, steps, _: work.step(step, steps),
            checkpointing=checkpointing,
            look=warm.look(device),
        )
    return model, {
        "train_images": len(chosen),
        "held_out_images": len(division.val),
        "calibration_images": len(division.calibration),
        "kept_epoch": kept,
        "loss_last": curve[-1].loss,
        "train_s": max(0.001, round(checkpointing.seconds, 3)),
        **({"resumed": checkpointing.resumed} if checkpointing.resumed else {}),
    }


def inspect_folds(
    distiller: Distiller,
    category: Category,
    divisions: Sequence[Division],
    folder: RunFolder,
    variants: Sequence[EvaluateSpec],
    batch_size: int,
    device: Device,
    report: Callable[[int], None],
    scratch: Path | None,
    look: Look,
) -> list[Inspected]:
    """Each normal image of the training split, in the order of the data set, as the students see it that were trained
    without its fold, for each variant.

    Args:
        distiller: gets the students of one fold after the other.
        batch_size, scratch, look: as of `inspect`; report: called with how many of the images are done.
    """
    pixels, normals, done = category.train.images, category.train.indices("train"), 0
    pooled = [
        Inspected(room(variant, (len(normals), *pixels.shape[1:3]), scratch), np.empty(len(normals), np.float64))
        for variant in variants
    ]
    for number, division in enumerate(divisions, start=1):
        distiller.students.load_state_dict(load_file(folder.fold(number)))
        own, rest = division.calibration, np.setdiff1d(normals, division.calibration)
        rows = np.searchsorted(normals, own)

        def told(count: int, _: int, before: int = done) -> None:
            report(before + count)

        given = distiller, pixels[own], variants, batch_size, device, told, pixels[rest], scratch
        _, seen = inspect(*given, look=look)
        for into, found in zip(pooled, seen, strict=True):
            into.maps[rows], into.scores[rows] = found.maps, found.scores
        done += len(rows)
    return pooled
