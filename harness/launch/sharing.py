"""What bounds the number of runs that gain from one GPU: its memory, the host's cores, and how busy it is. Pure."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from harness.job import TrainJob
from harness.launch.memory import Room
from harness.launch.pace import Paces, training


@dataclass(frozen=True)
class Bound:
    """At most so many runs at a time, and why."""

    most: int
    why: str


def bounds(
    jobs: Sequence[TrainJob], paces: Paces, room: Room, cores: int, gpus: int, recorded: bool = False
) -> list[Bound]:
    """Of runs at a time on each of so many GPUs, for jobs that each have one process there.

    A run takes a core to launch its steps one by one. Several help as far as the device waits for their hosts: where a
    host needs n times the device's time for a step n runs fill it, and one does where the device is the slower.

    Args:
        recorded: steps will be launched whole, which leaves the host nothing to wait for: then memory alone bounds, and
            has to be known.
    """
    most = room.most()
    found = [] if most is None else [Bound(most[0], f"memory: {most[1]}")]
    if recorded:
        return found or [Bound(1, "memory: what runs with recorded steps take is not known yet")]
    many = f"{gpus} GPUs" if gpus > 1 else "1 GPU"
    found.append(Bound(max(1, cores // gpus), f"cores: {cores} for {many}, a run takes one to launch its steps"))
    host = device = 0.0
    for job in jobs:
        pace, amount = paces.of(job.spec), training(job.spec)
        host += amount.operations * pace.host_s
        device += amount.gmac / pace.rate
    if device > 0:
        why = f"pace: the device is about {min(device / host, 1):.0%} of a step's time at work"
        found.append(Bound(max(1, math.ceil(host / device)), why))
    return found
