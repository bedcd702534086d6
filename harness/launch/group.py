"""A group of worker processes: one, or the ranks of one run under torch's launcher, on several nodes through srun."""

import json
import os
import re
import secrets
import select
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, TypeVar

from harness import plugins
from harness.environment import WAITING
from harness.events import Failed
from harness.foreign import log_tail
from harness.job import STOP, GroupKind, Job
from harness.launch import channel, cluster, slurm
from harness.launch.devices import Slot
from harness.launch.load import PASSIVE, Load
from harness.launch.schedule import Item
from harness.launch.verdict import DEVICE_FAILURES

T = TypeVar("T")

# A training step allocates and frees the same large tensors again and again. By default glibc maps and unmaps each of
# them, and the kernel clears every page every time: kept on the heap, in huge pages, a step on a CPU is a tenth faster.
# For a GPU's worker it would keep the memory of its host for nothing.
TUNABLES = {"hugetlb": 1, "mmap_max": 0, "trim_threshold": 2**34, "top_pad": 2**26}
MALLOC = {"GLIBC_TUNABLES": ":".join(f"glibc.malloc.{name}={value}" for name, value in TUNABLES.items())}
WORKER = ["-m", "harness.launch.worker"]
# Of a torchrun, MPI or `accelerate launch` around this call: a worker would take itself for one of their ranks. A group
# of several has a launcher of its own, which sets them.
OF_LAUNCHERS = re.compile(
    "(LOCAL_|GROUP_|ROLE_)?(RANK|WORLD_SIZE)$|MASTER_|TORCHELASTIC_|PMIX?_|OMPI_|MV2_|ACCELERATE_"
)
STEP_ENDS_S = 20.0
KILLED_S = 30.0  # until a killed process is taken for one that cannot be
HUNG_S = 60.0  # a worker shows that it lives every few seconds, whatever it computes
START_S = 600.0  # until the first sign of life of all ranks: from a cold network disk Python takes minutes to start


class Group:
    """Processes that take the same jobs, one after the other. `kind`: what a job must want to be given to it."""

    def __init__(
        self,
        process: "subprocess.Popen[bytes]",
        token: str,
        kind: GroupKind,
        log: Path,
        spans: bool = False,
        passive: bool = False,
    ) -> None:
        self.process, self.token, self.kind, self.log, self.spans = process, token, kind, log, spans
        self.passive = passive  # whether its threads wait so
        self.step: str | None = None
        self.pidfd = os.pidfd_open(process.pid)
        self.connections: dict[int, Connection] = {}
        self.heard: dict[int, float] = {}  # of each rank the last sign of life
        self.told: dict[int, list[Failed]] = {}  # by rank what nobody was told of yet
        self.pids: set[int] = set()
        self.ready: set[int] = set()  # ranks that can take a job
        self.number = -1
        self.job: Job | None = None
        self.failed: set[str] = set()
        self.unfinished = 0
        self.peaks: dict[str, float] = {}  # of memory, when it is dead
        self.begun = False  # with the job that it has
        self.attempts: dict[str, int] = {}  # failed ones of its job's works, when it got that job
        self.foreign: str | None = None  # what came of it that is no event
        self.started = time.monotonic()

    @property
    def is_ready(self) -> bool:
        return len(self.ready) == self.kind.processes

    def admit(self, connection: Connection, hello: dict[str, Any]) -> None:
        self.connections[hello["rank"]] = connection
        self.pids.add(hello["pid"])
        self.step = hello.get("step")
        self.heard[hello["rank"]] = time.monotonic()

    def rank_of(self, connection: Connection) -> int:
        return next(rank for rank, own in self.connections.items() if own is connection)

    def silent(self, now: float) -> str | None:
        """Why it is taken for hung, by a time of the monotonic clock; None while it is not."""
        if len(self.heard) < self.kind.processes:
            late = now - self.started > START_S
            return f"did not start within {START_S:g} s" if late else None
        rank, heard = min(self.heard.items(), key=lambda pair: pair[1])
        who = f"process {rank} " if self.kind.processes > 1 else ""
        return f"{who}gave no sign of life for {HUNG_S:g} s" if now - heard > HUNG_S else None

    def give(self, number: int, job: Job, message: bytes) -> None:
        self.number, self.job, self.failed, self.unfinished = number, job, set(), self.kind.processes
        self.begun, self.told = False, {}
        self.started = time.monotonic()
        self._send(message)

    def rank_finished(self) -> bool:
        """Whether it was the last one."""
        self.unfinished -= 1
        return self.unfinished == 0

    def stop(self) -> None:
        """Ask the ranks to end what they are at."""
        self._send(STOP)

    def reap(self) -> str:
        """How it died, with its own exit code if it is on its way out and not that of our kill."""
        code = self._wait(5)
        if code is None:
            return "the worker closed its connection"
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"exited with {code}"
        hint = " (the kernel does that when memory runs out)" if code == -signal.SIGKILL else ""
        return f"the worker {how}{hint}"

    def kill(self) -> bool:
        """All processes at once; they have nothing to clean up that a record would miss. To be called once.

        Returns:
            Whether they ended: one that hangs in the kernel, with a GPU that is lost, does not, and is left behind.
        """
        if self.spans:
            self._kill_step()
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        if self.kind.processes > 1 and not self.spans:  # ranks under a launcher have sessions of their own
            for pid in self.pids:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        code = self._wait(KILLED_S)
        os.close(self.pidfd)
        for connection in self.connections.values():
            connection.close()
        return code is not None

    def _kill_step(self) -> None:
        """On all nodes, where the pids are of other machines; killing srun would leave the ranks to find out."""
        if self._wait(0) is None:
            if self.step is None:
                self.process.terminate()  # srun passes it on
            else:
                step = f"{os.environ['SLURM_JOB_ID']}.{self.step}"
                subprocess.run(["scancel", "--signal=KILL", step], stderr=subprocess.DEVNULL, check=False)
            self._wait(STEP_ENDS_S)

    def _wait(self, seconds: float) -> int | None:
        """The process's exit code, None if it does not end in time. With it comes its peak memory."""
        if self.process.returncode is None and select.select([self.pidfd], [], [], seconds)[0]:
            _, status, usage = os.wait4(self.process.pid, 0)
            self.process.returncode = os.waitstatus_to_exitcode(status)
            self.peaks["peak_host_memory_mib"] = round(usage.ru_maxrss / 1024, 1)
        return self.process.returncode

    def output(self) -> str:
        """The end of what it wrote before its first job."""
        return log_tail(self.log).strip()[-2000:]

    def _send(self, message: bytes) -> None:
        for connection in self.connections.values():
            with suppress(OSError):  # it died since: the next event says so
                connection.send_bytes(message)


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
        unlucky: the runs in a row in which its device failed, by number, with their methods.
        is_stuck: a process of it could not be killed.
    """

    slots: tuple[Slot, ...]
    group: Group | None = None
    last: Item | None = None
    stillborn: int = 0
    proven: bool = False
    unlucky: dict[int, object] = field(default_factory=dict)
    is_stuck: bool = False

    def clear(self) -> None:
        """Kill its group, if it has one."""
        group, self.group = self.group, None
        if group is not None and not group.kill():
            self.is_stuck = True

    @property
    def is_broken(self) -> bool:
        """Whether its device is: one run that fails may itself be what breaks a device's context, wherever it is."""
        return len(self.unlucky) >= DEVICE_FAILURES

    @property
    def trouble(self) -> str:
        """What is wrong with it; empty where nothing is known to be."""
        if self.is_stuck:
            return "a process there hangs in the kernel and cannot be killed (a lost GPU, a disk that does not answer)"
        return "its device failed in two different runs in a row, see their attempts" if self.is_broken else ""

    @property
    def is_given_up(self) -> bool:
        return self.is_stuck or self.is_broken or self.stillborn >= (STILLBORN_LATER if self.proven else STILLBORN)

    def offered(self, pending: Mapping[int, T], jobs: Mapping[int, Job], places: "Sequence[Place]") -> Mapping[int, T]:
        """Of the pending jobs those that it may take now, to find out soon whether a device or a run is at fault.

        After a failure of its device that is a run of another method if there is one, else another run; the same one
        only if no other place is left on which it did not fail yet.
        """
        if not self.unlucky:
            return pending
        others = [place for place in places if place is not self and not place.is_given_up]
        doubts = {
            number: 2 if number in self.unlucky else int(jobs[number].spec.method in self.unlucky.values())
            for number in pending
            if number not in self.unlucky or all(number in place.unlucky for place in others)
        }
        least = min(doubts.values(), default=0)
        return {number: pending[number] for number, doubt in doubts.items() if doubt == least}

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


def launcher(processes: int, nodes: int = 1) -> list[str]:
    """The command that starts so many ranks, equally many on each node of the job; what they run follows it."""
    if nodes > 1:
        host, port = cluster.this_node(), cluster.free_port(int(os.environ["SLURM_JOB_ID"]))
        return slurm.launcher(sys.executable, nodes, processes // nodes, host, port)
    return [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]


def start(slots: tuple[Slot, ...], kind: GroupKind, door: channel.Door, scratch: Path, passive: bool = False) -> Group:
    """Start a group on the slots, a rank on each. It connects to the door with the group's token in its hello.

    Args:
        passive: its threads wait so.
    """
    token = secrets.token_hex(8)
    log = scratch / f"{token}.log"
    around = {name: value for name, value in os.environ.items() if not OF_LAUNCHERS.match(name)}
    threads = min(slot.threads for slot in slots)
    # Inductor would start a process of its own for each of up to 32 cores.
    ours = {"TORCHINDUCTOR_COMPILE_THREADS": str(threads)} | (MALLOC if slots[0].kind == "cpu" else {})
    environment = ours | around | door.environment() | plugins.environment()
    environment[channel.GROUP] = token
    environment[channel.CPUS] = json.dumps([slot.cpus for slot in slots])
    environment["OMP_NUM_THREADS"] = str(threads)
    environment |= PASSIVE if passive else {}
    nodes = len({slot.node for slot in slots})
    if nodes == 1 or not slots[0].visible:  # on several nodes it is for SLURM to say
        # Empty for a CPU: DeepSpeed would take a GPU that it sees.
        environment["CUDA_VISIBLE_DEVICES"] = ",".join(slot.visible or "" for slot in slots) if slots[0].visible else ""
    command = [*(launcher(kind.processes, nodes) if kind.processes > 1 else [sys.executable]), *WORKER]
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,  # Ctrl-C in the terminal reaches the supervisor alone, which decides
            env=environment,
        )
    return Group(process, token, kind, log, nodes > 1, passive)
