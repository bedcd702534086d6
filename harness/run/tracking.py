"""Experiment trackers (TensorBoard, MLflow, ...) through Accelerate, never in the way of a run.

A tracker hears what the supervisor hears, on a thread of its own: one that fails, waits for a network or hangs costs a
line in the run's log. Records stay the only result.
"""

import logging
import os
import queue
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from accelerate.tracking import LOGGER_TYPE_TO_CLASS, GeneralTracker

from dskd.config import flat, to_mapping
from harness.events import Emit, Epoch, FromWorker, Recorded
from harness.job import Job, TrainJob, name_of
from harness.records import Results
from harness.run_folder import ResultsFolder

log = logging.getLogger(__name__)
GRACE_S = 30.0  # that the end of a run waits for its tracker


@contextmanager
def tracked(job: Job, emit: Emit) -> Iterator[Emit]:
    """An `emit` that tells the job's tracker too: each epoch's loss and rate, and the metrics of each record.

    What the tracker writes of its own (TensorBoard) lies in `<results>/tracking`. On rank 0 alone.
    """
    if not isinstance(job, TrainJob) or job.tracking is None or os.environ.get("RANK", "0") != "0":
        yield emit
        return
    tracker = _Thread(job)
    epochs = job.spec.method.train.epochs

    def both(event: FromWorker) -> None:
        emit(event)
        try:
            note(event)
        except Exception as error:  # a record that cannot be read back, a thread that cannot start
            log.warning("tracking: %s is not told of `%s`: %s", job.tracking, type(event).__name__, error)

    def note(event: FromWorker) -> None:
        match event:
            case Epoch(epoch, _, loss, images_per_s):
                tracker.put({"loss": loss, "images_per_s": images_per_s}, epoch)
            case Recorded(kind, run_id):
                record = Results(Path(job.results)).record(run_id)
                # Variants of one training stand side by side.
                prefix = kind if len(job.evaluations) < 2 else f"{kind} {run_id}"
                numbers = {key: value for key, value in (record.result if record else {}).items() if _is_number(value)}
                tracker.put({f"{prefix}/{key}": value for key, value in numbers.items()}, epochs)

    try:
        yield both
    finally:
        tracker.end()


class _Thread(threading.Thread):
    """Opens the tracker, hands it what arrives, and closes it."""

    def __init__(self, job: TrainJob) -> None:
        super().__init__(name="tracker", daemon=True)
        self.job = job
        self.values: queue.SimpleQueue[tuple[dict[str, float], int] | None] = queue.SimpleQueue()

    def put(self, values: dict[str, float], step: int) -> None:
        self.values.put((values, step))
        # Not before there is something to tell: Accelerate's trackers ask for its state, which the device decides.
        if self.ident is None:
            self.start()

    def end(self) -> None:
        if self.ident is None:
            return
        self.values.put(None)
        self.join(GRACE_S)
        if self.is_alive():
            log.warning("tracking: %s did not end within %g s; going on without it", self.job.tracking, GRACE_S)

    def run(self) -> None:
        try:
            tracker = _open(self.job)
            try:
                for values, step in iter(self.values.get, None):
                    tracker.log(values, step=step)
            finally:
                tracker.finish()
        except BaseException as error:  # a tracker may even exit
            text = " ".join(str(error).split())[:200]
            log.warning("tracking: %s failed, the run goes on: %s: %s", self.job.tracking, type(error).__name__, text)


def _open(job: TrainJob) -> GeneralTracker:
    name = f"{name_of(job)} {job.spec.id}".replace("/", " ")  # of a slash some trackers make a folder
    kind = LOGGER_TYPE_TO_CLASS[str(job.tracking)]
    match job.tracking:
        case "mlflow":
            tracker = kind(experiment_name=job.grid, run_name=name)
        case "wandb" | "trackio":  # their first name is the project's
            tracker = kind(job.grid, name=name)
        case _:
            own = ResultsFolder(Path(job.results)).tracking
            folder = {"logging_dir": str(own)} if kind.requires_logging_directory else {}
            tracker = kind(name.replace(" ", "_"), **folder)
    tracker.start()
    plain = {  # trackers take nothing else
        key: value if isinstance(value, (bool, int, float, str)) else str(value)
        for key, value in flat(to_mapping(job.spec)).items()
    }
    tracker.store_init_configuration(plain)
    return tracker


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
