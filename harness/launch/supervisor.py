"""The supervisor: fills the devices with workers, hands each its next job, and outlives whatever becomes of them."""

import dataclasses
import errno
import os
import signal
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from harness.environment import utc_now
from harness.files import UNWRITABLE
from harness.launch import channel
from harness.launch.claims import Claims
from harness.launch.devices import Slot
from harness.launch.group import Group, start
from harness.launch.job import Job, TrainJob, encode, failed_attempt, group_of
from harness.launch.schedule import Item, Phase, affinity, take
from harness.launch.slurm import this_node
from harness.records import Results

OnEvent = Callable[[Job, dict[str, Any]], None]
STILLBORN = 2  # groups in a row that die before they take a job: then it is not the jobs' fault
HUNG_S = 60.0  # a worker shows that it lives every few seconds, whatever it computes
TOUCH_S = 10.0  # between two signs of life of this supervisor, and looks for what others left behind
# Reasons that another attempt may not meet again: neither the data nor the recipe will have changed.
RETRIED = frozenset({"crashed", "timeout", "out_of_memory", "interrupted"})


class WorkerError(RuntimeError):
    """Workers cannot start at all; the message has the end of their output."""


class ResultsError(RuntimeError):
    """The results folder cannot be written any more; what is finished is intact."""


@dataclasses.dataclass(frozen=True)
class Limits:
    """`retries`: further attempts of a run after a reason of RETRIED; `timeout_s`: of one job, None for none."""

    retries: int = 1
    timeout_s: float | None = None


def supervise(phases: Sequence[Phase], on_event: OnEvent, results: Results, limits: Limits = Limits()) -> bool:
    """Do the jobs of the phases, one phase after the other, on all their places at once.

    A worker that dies, hangs or takes too long costs the job it was at and is replaced. A first SIGINT or SIGTERM lets
    running trainings write a checkpoint and end, a second one stops at once; SIGUSR1 (a scheduler's warning, which its
    SIGTERM follows) is never the second. Waits on connections and pidfds.

    Args:
        on_event: called as (job, event) with what workers emit, with `failed` or `retrying` where a run did not end
            well, and with `finished` when nothing more will be heard of the job.

    Returns:
        Whether it was interrupted.

    Raises:
        WorkerError: workers die before they take a job.
        ResultsError: the results folder cannot be written (full, read-only, gone).
        KeyboardInterrupt: the second signal.
    """
    with tempfile.TemporaryDirectory(prefix="harness-") as scratch, _interrupts() as interrupts:
        spans = any(slot.node for phase in phases for place in phase.places for slot in place)
        door = channel.Door(this_node() if spans else None)
        try:
            for phase in phases:
                supervisor = _Supervisor(phase, on_event, results, limits, door, Path(scratch), interrupts)
                try:
                    supervisor.run()
                except OSError as error:
                    if error.errno not in UNWRITABLE | {errno.EACCES, errno.EPERM, errno.EIO}:
                        raise
                    raise _unwritable(results, error.strerror) from error
                finally:
                    supervisor.end()
                if supervisor.stopping:
                    return True
        finally:
            door.close()
    return False


def _unwritable(results: Results, why: str) -> ResultsError:
    return ResultsError(f"results folder {results.folder} cannot be written ({why}); what is finished is kept")


@contextmanager
def _interrupts() -> Iterator[int]:
    """A descriptor that is readable after SIGUSR1, SIGINT or SIGTERM; the second of the last two raises
    KeyboardInterrupt.
    """
    read_end, write_end = os.pipe()
    count = 0

    def note(number: int, _: object) -> None:
        nonlocal count
        count += number != signal.SIGUSR1
        if count > 1:
            raise KeyboardInterrupt
        os.write(write_end, b"1")

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)}
    try:
        yield read_end
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        os.close(read_end)
        os.close(write_end)


class _Supervisor:
    """One phase: its pending jobs, and what runs on each place."""

    def __init__(
        self,
        phase: Phase,
        on_event: OnEvent,
        results: Results,
        limits: Limits,
        door: channel.Door,
        scratch: Path,
        interrupts: int,
    ) -> None:
        self.places: list[tuple[Slot, ...]] = list(phase.places)
        self.jobs: dict[int, Job] = dict(enumerate(job for job, _ in phase.jobs))
        self.pending = {i: Item(seconds, affinity(job)) for i, (job, seconds) in enumerate(phase.jobs)}
        self.elsewhere: dict[int, Item] = {}  # claimed by another supervisor
        self.groups: list[Group | None] = [None] * len(self.places)
        self.last: list[object] = [None] * len(self.places)
        self.attempts: dict[int, int] = {}
        self.on_event, self.results, self.limits = on_event, results, limits
        self.door, self.scratch, self.interrupts = door, scratch, interrupts
        self.claims = Claims(results.folder)
        self.stopping = False
        self.stillborn = 0
        self.looked = time.monotonic()

    def run(self) -> None:
        while True:
            if not self.stopping:
                self._hand_out()
            busy = any(group is not None and group.job is not None for group in self.groups)
            if not busy and (self.stopping or not (self.pending or self.elsewhere)):
                return
            self._next_events()

    def end(self) -> None:
        """Kill what is left of the workers: idle ones, or all of them after an error."""
        for group in filter(None, self.groups):
            group.kill()
            if group.job is not None:
                self.claims.release(group.job.spec.id)

    def _hand_out(self) -> None:
        """Give each idle group a job, and start groups where there are more jobs than groups that could take one."""
        waiting = sum(group is not None and group.job is None and not group.is_ready for group in self.groups)
        for place, group in enumerate(self.groups):
            if not self.pending:
                return
            if group is None:
                if waiting < len(self.pending):
                    first = self.jobs[take(self.pending, self.last[place])]
                    self.groups[place] = start(self.places[place], group_of(first), self.door, self.scratch)
                    waiting += 1
            elif group.job is None and group.is_ready:
                self._give(place, group)

    def _give(self, place: int, group: Group) -> None:
        while self.pending:
            # What the group can do without being replaced, if there is any of it.
            same = {i: item for i, item in self.pending.items() if group_of(self.jobs[i]) == group.kind}
            number = take(same or self.pending, self.last[place])
            job, item = self.jobs[number], self.pending[number]
            if not same:
                group.kill()
                self.groups[place] = start(self.places[place], group_of(job), self.door, self.scratch)
                return
            del self.pending[number]
            if not self.claims.take(job.spec.id):
                self.elsewhere[number] = item
                continue
            if not job.force and self._is_done(job):  # by another supervisor, since this one looked
                self._finish(number, job)
                continue
            self.last[place] = item.affinity
            group.give(number, job, encode(job))
            return

    def _is_done(self, job: Job) -> bool:
        return all((self.results.run_folder(spec.id) / "record.json").exists() for spec in job.works)

    def _next_events(self) -> None:
        sources: dict[Any, Group | None] = {self.door: None, self.interrupts: None}
        for group in filter(None, self.groups):
            sources |= dict.fromkeys((group.pidfd, *group.connections.values()), group)
        ready = wait(list(sources), timeout=self._patience())
        if self.interrupts in ready:
            os.read(self.interrupts, 1)
            self._stop()
        if self.door in ready:
            self._let_in(*self.door.take())
        for source in ready:
            group = sources[source]
            if group is None or group not in self.groups:  # it died of an earlier event of this round
                continue
            if source == group.pidfd or not self._hear(group, source):
                self._bury(group, "crashed", None)
        self._look_around()

    def _patience(self) -> float:
        """Seconds until something is to be looked at even if nothing happens."""
        ends = [group.started for group in self.groups if group is not None and group.job is not None]
        if self.limits.timeout_s is None or not ends:
            return TOUCH_S
        return min(TOUCH_S, max(0.05, min(ends) + self.limits.timeout_s - time.monotonic()))

    def _stop(self) -> None:
        self.stopping = True
        for place, group in enumerate(self.groups):
            if group is None:
                continue
            if group.job is None:
                group.kill()
                self.groups[place] = None
            else:
                group.stop()
                self.on_event(group.job, {"event": "stopping"})

    def _let_in(self, connection: Connection, hello: dict[str, Any]) -> None:
        for group in filter(None, self.groups):
            if hello.get("group") == group.token:
                group.admit(connection, hello)
                return
        connection.close()  # of a worker that died since

    def _hear(self, group: Group, connection: Connection) -> bool:
        """Handle the next event of one rank; False if it is gone."""
        try:
            event = channel.receive(connection)
        except (EOFError, OSError):
            return False
        group.heard = time.monotonic()
        kind, job, number = event["event"], group.job, group.number
        if kind == "ready":
            group.ranks_ready += 1
            self.stillborn = 0
        elif kind == "unwritable":
            raise _unwritable(self.results, event["message"])
        elif kind == "finished":
            if group.rank_finished():
                retry = group.failed & RETRIED if not self.stopping else set()
                group.job = None
                self._finish(number, job, again=bool(retry) and self._may_retry(number))
                # Somebody else told it to leave; or what ran it out of memory may be left in it for the next job.
                if event.get("leaving") or "out_of_memory" in group.failed:
                    self.groups[self.groups.index(group)] = None
                    group.kill()
        elif kind == "failed":
            group.failed.add(event["reason"])
            self._tell_failure(number, job, event)
        elif kind != "alive" and job is not None:
            group.begun = True
            self.on_event(job, event)
        return True

    def _may_retry(self, number: int) -> bool:
        return self.attempts.get(number, 0) < self.limits.retries

    def _tell_failure(self, number: int, job: Job, event: dict[str, Any]) -> None:
        retry = event["reason"] in RETRIED and self._may_retry(number) and not self.stopping
        self.on_event(job, event | {"event": "retrying" if retry else "failed"})

    def _finish(self, number: int, job: Job, again: bool = False) -> None:
        self.claims.release(job.spec.id)
        if again:
            self.attempts[number] = self.attempts.get(number, 0) + 1
            if isinstance(job, TrainJob) and not job.force:
                done = self.results.done()
                left = tuple(spec for spec in job.evaluations if spec.id not in done)
                self.jobs[number] = dataclasses.replace(job, evaluations=left)
            self.pending[number] = Item(0.0, affinity(job))  # after what was not tried yet
        else:
            self.on_event(job, {"event": "finished"})

    def _bury(self, group: Group, reason: str, why: str | None) -> None:
        """Reap a dead group and put down in its job's attempts how it died."""
        self.groups[self.groups.index(group)] = None
        how = group.reap() if why is None else why
        group.kill()
        if not group.is_ready:
            self.stillborn += 1
            if self.stillborn >= STILLBORN:
                raise WorkerError(f"workers cannot start; the end of their output:\n{group.output()}")
        if group.job is None:
            return
        job, number = group.job, group.number
        if not group.begun and group.process.returncode == 0:  # it left while the job was on its way
            self.claims.release(job.spec.id)
            self.pending[number] = Item(0.0, affinity(job))
            return
        done = self.results.done()
        spec = next((spec for spec in job.works if job.force or spec.id not in done), None)
        told = bool(group.failed)  # of several processes the one that failed has put down why, and ended the others
        if spec is not None and not told:  # the one it was at; those after it were not tried
            log = self.results.run_folder(job.spec.id) / "log.txt"
            text = log.read_text(errors="replace") if log.exists() else ""
            failure = self.results.fail(failed_attempt(spec, reason, how, text, utc_now(), group.peaks))
            event = {"event": "failed", "id": spec.id, "reason": reason, "message": failure.message}
            self._tell_failure(number, job, event)
        retry = spec is not None and not self.stopping and (not told or bool(group.failed & RETRIED))
        self._finish(number, job, again=retry and self._may_retry(number))

    def _look_around(self) -> None:
        """Now and then: groups that hang or take too long, and runs that other supervisors have left or finished."""
        now = time.monotonic()
        most = self.limits.timeout_s
        for group in list(filter(None, self.groups)):
            if most is not None and group.job is not None and now - group.started > most:
                self._bury(group, "timeout", f"took more than the {most:g} s that --timeout gives")
            elif now - group.heard > HUNG_S:
                self._bury(group, "timeout", f"gave no sign of life for {HUNG_S:g} s")
        if now - self.looked >= TOUCH_S:
            self.looked = now
            self.claims.touch()
            if not self.pending:
                self.pending, self.elsewhere = self.elsewhere, {}
