"""The supervisor: fills the devices with workers, hands each its next job, and outlives whatever becomes of them."""

import dataclasses
import logging
import math
import os
import tempfile
import time
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from harness import events
from harness.job import Job, TrainJob, encode, group_of
from harness.launch import channel
from harness.launch.audience import Audience, OnEvent
from harness.launch.cluster import this_node
from harness.launch.group import Group, start
from harness.launch.interrupts import interrupts
from harness.launch.keeper import Keeper
from harness.launch.load import Load
from harness.launch.place import Place, places_of
from harness.launch.schedule import Item, Phase, item_of, take
from harness.launch.verdict import REPLACED, Cases, Limits
from harness.records import Results

log = logging.getLogger(__name__)
END_S = 5.0  # for workers that are asked to stop before all are killed
TOUCH_S = 10.0  # between two signs of life of this supervisor, and looks for what others left behind


class WorkerError(RuntimeError):
    """No place is left that can work; the message says why the last one was given up."""


def supervise(
    phases: Sequence[Phase], listeners: Sequence[OnEvent], results: Results, limits: Limits, load: Load | None = None
) -> bool:
    """Do the jobs of the phases, one phase after the other, on all their places at once.

    A worker that dies, hangs, takes too long or sends what is no event costs the job it was at and is replaced; a place
    where none can start, or whose device fails, is given up. A first SIGINT or SIGTERM lets running trainings write a
    checkpoint and end, a second one stops at once; SIGHUP and SIGUSR1 are never the second. Waits on connections and
    pidfds.

    Args:
        listeners: called as (job, event) with what workers tell of a job, and what becomes of it (`harness.events`).
            What one of them raises is logged and hurts nothing.
        load: what others do on the machine; one whose watch began a while ago need not wait for a first look.

    Returns:
        Whether it was interrupted.

    Raises:
        WorkerError: every place is given up.
        ResultsError: the results folder cannot be written (full, read-only, gone).
        KeyboardInterrupt: the second signal.
    """
    with tempfile.TemporaryDirectory(prefix="harness-") as scratch, interrupts() as signals:
        spans = any(slot.node for phase in phases for place in phase.places for slot in place)
        door = channel.Door(this_node() if spans else None)
        load = load or Load()
        try:
            for phase in phases:
                supervisor = _Supervisor(phase, listeners, results, limits, load, door, Path(scratch), signals)
                with phase.around:
                    try:
                        supervisor.run()
                    finally:
                        supervisor.end()
                if supervisor.stopping:
                    return True
        finally:
            door.close()
            if door.strangers:
                log.warning("%d connections without the key of this call were refused", door.strangers)
    return False


class _Supervisor:
    """One phase: its pending jobs, and what runs on each place."""

    def __init__(
        self,
        phase: Phase,
        listeners: Sequence[OnEvent],
        results: Results,
        limits: Limits,
        load: Load,
        door: channel.Door,
        scratch: Path,
        signals: int,
    ) -> None:
        self.places, self.room = places_of(phase.places), phase.room
        self.jobs: dict[int, Job] = dict(enumerate(job for job, _ in phase.jobs))
        self.pending = {i: item_of(job, seconds) for i, (job, seconds) in enumerate(phase.jobs)}
        self.elsewhere: dict[int, Item] = {}  # claimed by another supervisor
        self.cases = Cases(limits)
        self.audience, self.results, self.limits, self.load = Audience(listeners), results, limits, load
        self.door, self.scratch, self.signals = door, scratch, signals
        self.keeper = Keeper(results)
        self.claims = self.keeper.claims
        self.stopping = False
        self.looked = time.monotonic()

    @property
    def groups(self) -> list[Group]:
        return [place.group for place in self.places if place.group is not None]

    def run(self) -> None:
        while True:
            if not self.stopping:
                self._hand_out()
            busy = any(group.job is not None for group in self.groups)
            if not busy and (self.stopping or not (self.pending or self.elsewhere)):
                return
            if not busy and not self.pending:
                self.audience.remind([self.jobs[number] for number in self.elsewhere], self.claims.holder)
            self._next_events()

    def end(self) -> None:
        """Kill what is left of the workers: idle ones, or after an error all, which are asked to stop before."""
        busy = [group for group in self.groups if group.job is not None]
        if busy and not self.stopping:  # else they were asked, and who calls twice wants no more waiting
            for group in busy:
                group.stop()
            until = time.monotonic() + END_S
            for group in busy:
                group.wait_for_end(until)
        for place, group in [(place, place.group) for place in self.places if place.group is not None]:
            place.clear()
            if group.job is not None:
                self.claims.release(group.job.spec.id)

    def _hand_out(self) -> None:
        """Give each idle group a job, and start groups where there are more jobs than groups that could take one."""
        waiting = sum(group.job is None and not group.is_ready for group in self.groups)
        for place in self.places:
            group, offered = place.group, self._offered(place)
            if group is None:
                if waiting < len(offered) and not place.is_given_up:
                    self._start(place, self.jobs[take(offered, place.last)])
                    waiting += 1
            elif group.job is None and group.is_ready:
                self._give(place, group)
                if place.is_in_the_way(self.pending, self.jobs, self.places, self.room):
                    place.clear()

    def _offered(self, place: Place) -> Mapping[int, Item]:
        return place.offered(self.pending, self.jobs, self.places, self.cases.suspects, self.room)

    def _start(self, place: Place, job: Job) -> None:
        place.group = None
        passive = place.waits_passively(self._look())
        try:
            place.group = start(place.slots, group_of(job), self.door, self.scratch, passive)
        except OSError as error:  # no process, descriptor or room for temporary files
            self._count_stillborn(place, job, str(error))

    def _look(self) -> Load:
        workers = {pid for group in self.groups if not group.spans for pid in (group.process.pid, *group.pids)}
        return self.load.look(workers, sum(slot.threads for place in self.places for slot in place.slots))

    def _give(self, place: Place, group: Group) -> None:
        while offered := self._offered(place):
            # What the group can do without being replaced, if there is any of it.
            same = {i: item for i, item in offered.items() if group_of(self.jobs[i]) == group.kind}
            number = take(same or offered, place.last)
            job, item = self.jobs[number], self.pending[number]
            if not same or group.passive != place.waits_passively(self._look()):
                place.clear()
                if not place.is_stuck:
                    self._start(place, job)
                return self._judge(place, job, group)
            del self.pending[number]
            if not self._claim(number, job, item):
                continue
            place.last = item
            group.attempts = self.keeper.attempts_of(job)
            group.give(number, job, encode(job))
            for other in place.neighbours(self.places):
                if other.job is not None:
                    other.group.shared = group.shared = True
            return

    def _claim(self, number: int, job: Job, item: Item) -> bool:
        """Claim the job's run; False where another supervisor is at it or has done it since this one looked, or where
        its folder or its record cannot be used.
        """
        try:
            if not self.keeper.claim(job.spec.id):
                self.elsewhere[number] = item
                return False
            done = not job.force and all(self.results.has(spec.id) for spec in job.works)
        except OSError as error:
            folder = self.results.run_folder(job.spec.id).path
            message = f"{folder} cannot be used ({error.strerror or error}); move it away"
            self.audience.tell(job, events.Failed(job.spec.id, "error", message))
            done = True
        if done:
            self._finish(number, job)
        return not done

    def _next_events(self) -> None:
        sources: dict[Any, Group | None] = {self.door: None, self.signals: None}
        for group in self.groups:
            sources |= dict.fromkeys((group.pidfd, *group.connections.values()), group)
        ready = wait(list(sources), timeout=self._patience())
        if self.signals in ready:
            os.read(self.signals, 1)
            self._stop()
        if self.door in ready:
            self._let_in(*self.door.take())
        for source in ready:
            group = sources[source]
            if group is None or group not in self.groups:  # it died of an earlier event of this round
                continue
            if source == group.pidfd or not self._hear(group, source):
                self._bury(group, "crashed", None, source)
        self._look_around()

    def _patience(self) -> float:
        """Seconds until something is to be looked at even if nothing happens."""
        until = min((group.waits_until(self.limits.timeout_s) for group in self.groups), default=math.inf)
        return min(TOUCH_S, max(0.05, until - time.monotonic()))

    def _stop(self) -> None:
        self.stopping = True
        for group in self.groups:
            if group.job is None:
                self._place_of(group).clear()
            else:
                group.stop()
                self.audience.tell(group.job, events.Stopping())

    def _place_of(self, group: Group) -> Place:
        return next(place for place in self.places if place.group is group)

    def _let_in(self, connection: Connection, hello: dict[str, Any]) -> None:
        for group in self.groups:
            free = set(range(group.kind.processes)) - group.connections.keys()
            if hello.get("group") == group.token and hello["rank"] in free:
                group.admit(connection, hello)
                return
        connection.close()  # of a worker that died since

    def _hear(self, group: Group, connection: Connection) -> bool:
        """Handle the next event of one rank; False if nothing more will come of it."""
        rank = group.rank_of(connection)
        try:
            event = channel.receive(connection)
        except events.ForeignMessage as error:
            group.foreign = f"process {rank} sent {error}"
            return False
        except (EOFError, OSError):
            return False
        group.heard[rank] = time.monotonic()
        place, job, number = self._place_of(group), group.job, group.number
        match event:
            case events.Ready():
                group.ready.add(rank)
                if group.is_ready:
                    place.stillborn, place.proven = 0, True
            case events.Unwritable(message):
                raise self.keeper.unwritable(message)
            case events.Alive():
                pass
            case _ if job is None:
                pass  # an echo of the job before
            case events.Done(leaving):
                if group.rank_finished():
                    self._tell_failures(place, group)
                    group.job = None
                    self._finish(number, job, again=self._is_tried_again(number, group.failed))
                    if leaving or not REPLACED.isdisjoint(group.failed):  # leaving: somebody else told it to
                        place.clear()
                    self._judge(place, job, group)
            case events.Failed():
                group.told.setdefault(rank, []).append(event)
                if group.kind.processes == 1:
                    self._tell_failures(place, group)
            case _:
                group.begun = True
                self.audience.tell(job, event)
        return True

    def _is_tried_again(self, number: int, reasons: Collection[str]) -> bool:
        return self.cases.is_tried_again(number, reasons, self.stopping)

    def _tell_failure(self, number: int, job: Job, event: events.Failed) -> None:
        again = self._is_tried_again(number, [event.reason])
        self.audience.tell(job, events.Retrying(**vars(event)) if again else event)

    def _tell_failures(self, place: Place, group: Group) -> None:
        """What its processes failed at. Of several process 0 tells, any other one where that could not any more."""
        for event in group.told.get(0) or [event for told in group.told.values() for event in told][:1]:
            if event.reason == "device" and "device" not in group.failed:
                self.cases.device_failed(place.device, group.number, group.job.spec.method, group.shared)
                self._renew_idle_workers(place)
            group.failed.add(event.reason)
            self._tell_failure(group.number, group.job, event)
        group.told.clear()

    def _renew_idle_workers(self, place: Place) -> None:
        """On a device that failed: what they hold of it may have failed too."""
        for other in place.neighbours(self.places):
            if other.group is not None and other.job is None and other.group.number >= 0:
                other.clear()

    def _judge(self, place: Place, job: Job, group: Group) -> None:
        """What a job that is over says of the device. Raises WorkerError where no place is left."""
        if not group.failed:
            place.device.unlucky.clear()
            place.device.doubtful = False
        if place.trouble:
            self._leave_out(place, job, place.trouble)

    def _finish(self, number: int, job: Job, again: bool = False) -> None:
        self.claims.release(job.spec.id)
        if again:
            self.cases.count(number)
            if isinstance(job, TrainJob) and not job.force:
                done = self.results.done()
                left = tuple(spec for spec in job.evaluations if spec.id not in done)
                self.jobs[number] = dataclasses.replace(job, evaluations=left)
            self.pending[number] = item_of(job, 0.0)  # after what was not tried yet
        else:
            self.audience.tell(job, events.Finished())

    def _bury(self, group: Group, reason: str, why: str | None, source: object = None) -> None:
        """Reap a dead group and put down in its job's attempts how it died.

        Args:
            why: None where it died by itself; source: then the connection that ended first, or the pidfd.
        """
        # Of several processes one that ends without a word was killed, whatever the others make of that.
        vanished = isinstance(source, Connection) and group.rank_of(source) not in group.told
        if why is None and group.foreign is None:  # what it sent before it died is heard
            for connection in list(group.connections.values()):
                with suppress(OSError):
                    while connection.poll() and self._hear(group, connection):
                        pass
        if group not in self.groups:
            return
        place = self._place_of(group)
        how = why or group.foreign or group.reap()
        place.clear()
        if not group.is_ready:
            self._count_stillborn(place, group.job or next(iter(self.jobs.values())), how, group.output())
        if group.job is None:
            if place.is_stuck and group.is_ready:
                self._leave_out(place, next(iter(self.jobs.values())), place.trouble)
            return
        job, number = group.job, group.number
        if not group.begun and group.process.returncode == 0:  # it left while the job was on its way
            self.claims.release(job.spec.id)
            self.pending[number] = item_of(job, 0.0)
            return
        if not vanished:
            self._tell_failures(place, group)
        told = bool(group.failed) and group.kind.processes > 1  # that one has put down why, and ended the others
        done = self.results.done()
        spec = next((spec for spec in job.works if job.force or spec.id not in done), None)
        if spec is not None and not told:  # the one it was at; those after it were not tried
            message = self.keeper.put_down(spec, job, group.attempts, reason, how, group.peaks)
            self._tell_failure(number, job, events.Failed(spec.id, reason, message))
            group.failed.add(reason)
        self._finish(number, job, again=spec is not None and self._is_tried_again(number, group.failed))
        self._judge(place, job, group)

    def _count_stillborn(self, place: Place, job: Job, how: str, output: str = "") -> None:
        """Of a group that could not start for the job. Raises WorkerError where no place is left."""
        place.stillborn += 1
        if place.is_given_up:
            self._leave_out(
                place, job, f"workers cannot start: {how}; the end of their output:\n{output or '(nothing)'}"
            )

    def _leave_out(self, place: Place, job: Job, why: str) -> None:
        if all(one.is_given_up for one in self.places):
            raise WorkerError(f"{place.name} is left out, and no other place is left: {why}")
        self.audience.tell(job, events.GivenUp(f"{place.name} is left out: {why}"))

    def _look_around(self) -> None:
        """Now and then: groups that hang or take too long, and runs that other supervisors have left or finished."""
        now = time.monotonic()
        for group in self.groups:
            if why := group.overdue(now, self.limits.timeout_s):
                self._bury(group, "timeout", why)
        if now - self.looked >= TOUCH_S:
            self.looked = now
            self._look()
            self.claims.touch()
            if not self.pending:
                self.pending, self.elsewhere = self.elsewhere, {}
