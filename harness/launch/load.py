"""How busy others keep the cores, and what follows from it for the workers and for the time that a plan takes.

OpenMP's threads wait for each other at the end of every operation. By default they spin, which is fastest while each
has a core of its own; where others take a core they spin against the thread that they wait for, and a training comes to
a tenth of its rate and less. Waiting passively costs a fifth on an idle machine and nothing beside a load. The library
reads its setting once, when the process starts. Nothing of it moves a number.
"""

import os
import time
from collections.abc import Collection

from harness.environment import cpu_seconds
from harness.launch.devices import Kind

PASSIVE = {"OMP_WAIT_POLICY": "passive"}
# Cores' worth of others' work from which workers wait passively, and below which they spin again (our measurements,
# benchmarks/results/waiting.md; two bounds, so that a load about one of them replaces no worker again and again).
BUSY_CORES, QUIET_CORES = 0.3, 0.15
LOOK_S = 10.0  # at least, between two looks: shorter ones would follow every burst
FIRST_LOOK_S = 0.3
SLOWER = 1.25  # of passive waiting


def crowding(foreign: float, cores: int, threads: int) -> float:
    """Of the `foreign` cores' worth of work that others do, what finds no core free beside `threads` of ours. Pure."""
    return max(0.0, foreign - max(0, cores - threads))


def waits_passively(crowd: float, before: bool) -> bool:
    """Whether workers should wait passively; `before`: whether they did. Pure."""
    return crowd > (QUIET_CORES if before else BUSY_CORES)


class Load:
    """Watches, from its construction on, how many of the cores that this process may use others keep busy.

    Attributes:
        foreign: cores' worth of others' work at the last look; 0 where that cannot be read.
        passive: whether workers that are started now should wait passively.
    """

    def __init__(self) -> None:
        self.cores = len(os.sched_getaffinity(0))
        self.foreign, self.passive = 0.0, False
        self._looks = 0
        self._at, self._busy = time.monotonic(), self._others(())

    def look(self, workers: Collection[int] = (), threads: int | None = None) -> "Load":
        """Look again, if it is time to: what others did since the last look.

        Args:
            workers: pids of this call's processes that are alive now.
            threads: that they compute with, in all; None for as many as there are cores.
        """
        since = time.monotonic() - self._at
        if self._looks and since < LOOK_S:
            return self
        if since < FIRST_LOOK_S:
            time.sleep(FIRST_LOOK_S - since)
        at, busy = time.monotonic(), self._others(workers)
        if busy is not None and self._busy is not None:
            self.foreign = min(self.cores, max(0.0, (busy - self._busy) / (at - self._at)))
        self._at, self._busy, self._looks = at, busy, self._looks + 1
        crowd = crowding(self.foreign, self.cores, self.cores if threads is None else threads)
        self.passive = waits_passively(crowd, self.passive)
        return self

    def slowdown(self, kind: Kind) -> float:
        """By which factor work on all cores takes longer than on an idle machine, if the others stay: each thread gets
        its fair share of the cores. 1 for a GPU, which has the work.
        """
        busy = kind == "cpu" and waits_passively(self.foreign, False)
        return SLOWER * (1 + self.foreign / self.cores) if busy else 1.0

    def remark(self, kind: Kind) -> str | None:
        """For a plan whose estimate has the `slowdown`."""
        if self.slowdown(kind) == 1:
            return None
        return (
            f"others use {self.foreign:.1f} of the {self.cores} cores: times are estimated for what they leave, and "
            "throughput measured beside them is marked as disturbed"
        )

    def _others(self, workers: Collection[int]) -> float | None:
        """Seconds that others than this process, its children that ended and `workers` have kept the cores busy."""
        busy = cpu_seconds(os.sched_getaffinity(0))
        if busy is None:
            return None
        return busy[0] - sum(os.times()[:4]) - sum(map(_seconds_of, workers))


def _seconds_of(pid: int) -> float:
    """CPU time of a process and of its children that ended; 0 for one that is gone."""
    try:
        with open(f"/proc/{pid}/stat") as stream:
            fields = stream.read().rsplit(")", 1)[1].split()
    except OSError:
        return 0.0
    return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")
