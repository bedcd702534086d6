"""What surrounds every piece of a job's work: its record, or the attempt that failed with its reason.

What fails on any rank of a run on several processes ends that process, so that the launcher kills the others, which may
be waiting for it for good: see `Work.attempting`.
"""

import functools
import os
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dskd.config import to_mapping
from harness import events
from harness.data.catalog import DataError
from harness.disturbance import disturbance
from harness.environment import describe_environment, utc_now
from harness.files import UNWRITABLE
from harness.job import Job, Stop, TrainJob, failed_attempt
from harness.records import Record, Results
from harness.run.checkpoint import Interrupted
from harness.run.device import Device, is_device_failure
from harness.run.memory import free_memory, is_out_of_memory, peak_memory
from harness.run.train import DivergedError
from harness.spec import Spec

GRACE_S = 5.0  # in which rank 0 tells by itself what another rank failed at too


@dataclass
class Work:
    """What the pieces of one job share: its results folder, the way to tell the supervisor and to be told to stop, and
    the book-keeping.

    Attributes:
        last_step: when the last `Step` was told, in seconds of the monotonic clock.
        published: ids of the pieces that have a record of this job.
    """

    job: Job
    emit: events.Emit
    stop: Stop
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
    def recording(
        self, spec: Spec, device: Device, choose: Callable[[Record], Record] = lambda record: record
    ) -> Iterator[dict[str, Any]]:
        """Publish what the block puts into the dictionary as the spec's record, or what `choose` makes of that record;
        only rank 0 does.
        """
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
            record = choose(record)
            result = record.result
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
                if reason == "interrupted" and self.stop.late:
                    reason, message = "timeout", f"{self.stop.late}; {error}"
                failure = self.results.fail(failed_attempt(spec, reason, message, text, started_at, peaks))
            self.emit(events.Failed(spec.id, failure.reason, failure.message))
            if together:
                raise


def failure_reason(error: BaseException) -> str:
    """The reason that a record of a failure gives, for an exception inside a worker."""
    if is_out_of_memory(error):
        return "out_of_memory"
    if is_device_failure(error):
        return "device"
    if isinstance(error, DataError):
        return "data"
    if isinstance(error, Interrupted):
        return "interrupted"
    return "diverged" if isinstance(error, DivergedError) else "error"


def _headline(result: dict[str, Any]) -> dict[str, Any]:
    """The few values that the screen shows when a record arrives, and what disturbed them."""
    keys = ("image_auroc", "pixel_auroc", "loss_last", "images_per_s")
    why = disturbance(result)
    return {key: result[key] for key in keys if key in result} | ({"disturbed": why} if why else {})
