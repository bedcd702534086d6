"""Where groups of workers run, and what their failures say of the device there."""

import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from harness.environment import WAITING
from harness.job import Job
from harness.launch.devices import Slot
from harness.launch.group import Group
from harness.launch.load import Load
from harness.launch.memory import Room
from harness.launch.schedule import Item
from harness.launch.verdict import Device

T = TypeVar("T")
UNKNOWN = Room()

# Groups in a row that die before they can take a job, until their place is given up: one where none ever could, and
# one where some did.
STILLBORN, STILLBORN_LATER = 2, 5


@dataclass
class Place:
    """Slots that a group of workers runs on, one group after the other.

    Args:
        last: what was done there last.
        stillborn: so many groups in a row could not start.
        proven: whether one ever could.
        is_stuck: a process of it could not be killed.
    """

    slots: tuple[Slot, ...]
    device: Device = field(default_factory=Device)
    group: Group | None = None
    last: Item | None = None
    stillborn: int = 0
    proven: bool = False
    is_stuck: bool = False

    def clear(self) -> None:
        """Kill its group, if it has one."""
        group, self.group = self.group, None
        if group is not None and not group.kill():
            self.is_stuck = True

    @property
    def job(self) -> int | None:
        """The number of the job that its group is at."""
        return None if self.group is None or self.group.job is None else self.group.number

    @property
    def trouble(self) -> str:
        """What is wrong with it; empty where nothing is known to be."""
        if self.is_stuck:
            return "a process there hangs in the kernel and cannot be killed (a lost GPU, a disk that does not answer)"
        return "its device failed in two different runs in a row, see their attempts" if self.device.is_broken else ""

    @property
    def is_given_up(self) -> bool:
        return bool(self.trouble) or self.stillborn >= (STILLBORN_LATER if self.proven else STILLBORN)

    def neighbours(self, places: "Sequence[Place]") -> "list[Place]":
        """The other places on its device."""
        return [place for place in places if place.device is self.device and place is not self]

    def beside(self, places: "Sequence[Place]") -> set[int]:
        """The numbers of the jobs that its device is at in other places."""
        return {place.job for place in self.neighbours(places)} - {None}

    def offered(
        self,
        pending: Mapping[int, T],
        jobs: Mapping[int, Job],
        places: "Sequence[Place]",
        suspects: Collection[int] = frozenset(),
        room: Room = UNKNOWN,
    ) -> Mapping[int, T]:
        """Of the pending jobs those that it may take now, to find out soon whether a device or a run is at fault.

        After a failure of its device that is a run of another method if there is one, else another run; the same one
        only if no other device is left on which it did not fail yet. `suspects` have a device for themselves. What has
        no `room` beside others waits.
        """
        beside = self.beside(places)
        if self.is_given_up or (beside and (self.device.doubtful or not beside.isdisjoint(suspects))):
            return {}
        unlucky = self.device.unlucky
        others = [place.device for place in places if place.device is not self.device and not place.is_given_up]
        doubts = {
            number: 2 if number in unlucky else int(jobs[number].spec.method in unlucky.values())
            for number in self.fitting(pending, jobs, places, room)
            if not (beside and number in suspects)
            and (number not in unlucky or all(number in device.unlucky for device in others))
        }
        least = min(doubts.values(), default=0)
        return {number: pending[number] for number, doubt in doubts.items() if doubt == least}

    def fitting(
        self, pending: Iterable[int], jobs: Mapping[int, Job], places: "Sequence[Place]", room: Room
    ) -> list[int]:
        """Of the pending jobs those whose memory there is room for beside the others on its device."""
        gpu, beside = self.slots[0].visible, [jobs[number].spec.id for number in self.beside(places)]
        return [number for number in pending if room.has(gpu, jobs[number].spec.id, beside)]

    def is_in_the_way(
        self, pending: Collection[int], jobs: Mapping[int, Job], places: "Sequence[Place]", room: Room
    ) -> bool:
        """Whether its worker is idle since no pending job has room there: it keeps memory of what it did before, which
        others are given.
        """
        is_idle = self.group is not None and self.group.job is None and self.group.number >= 0
        return is_idle and bool(pending) and not self.fitting(pending, jobs, places, room)

    @property
    def name(self) -> str:
        return ", ".join(slot.name for slot in self.slots)

    @property
    def threads(self) -> int:
        """Of each process of a group."""
        return min(slot.threads for slot in self.slots)

    def waits_passively(self, load: Load) -> bool:
        """Whether a group that is started now should: see `harness.launch.load`. On a GPU it is the GPU that works, and
        what the user has set stays.
        """
        free = not any(name in os.environ for name in WAITING)
        return load.passive and free and self.threads > 1 and self.slots[0].kind == "cpu"


def places_of(places: Sequence[tuple[Slot, ...]]) -> list[Place]:
    """One of each tuple of slots; those on the same GPUs share what is known of them."""
    devices: dict[object, Device] = {}
    names = [tuple((slot.name, slot.node) for slot in slots) for slots in places]
    return [Place(slots, devices.setdefault(name, Device())) for name, slots in zip(names, places, strict=True)]
