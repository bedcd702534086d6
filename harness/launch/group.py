"""A group of worker processes: one, or the ranks of one run under torch's launcher, on several nodes through srun."""

import json
import math
import os
import re
import secrets
import select
import signal
import subprocess
import sys
import time
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from harness import plugins
from harness.events import Done, Failed, ForeignMessage
from harness.foreign import log_tail
from harness.job import GroupKind, Job, encode_stop
from harness.launch import channel, cluster, slurm
from harness.launch.devices import Slot
from harness.launch.load import PASSIVE
from harness.mps import PIPE_DIRECTORY

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
GRACE_S = {"late": 30.0, "hung": 5.0}  # from being asked to stop until it is killed: a step, and a checkpoint's save
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
        self.shared = False  # its device with others, at any time of that job
        self.ends: tuple[float, str] | None = None  # when it is killed, and why, since it was asked to stop
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
        self.begun, self.shared, self.told, self.ends = False, False, {}, None
        self.started = time.monotonic()
        self._send(message)

    def rank_finished(self) -> bool:
        """Whether it was the last one."""
        self.unfinished -= 1
        if self.unfinished == 0:
            self.ends = None
        return self.unfinished == 0

    def stop(self) -> None:
        """Ask the ranks to end what they are at."""
        self._send(encode_stop())

    def overdue(self, now: float, timeout_s: float | None) -> str | None:
        """Why it is to be killed now; None while it is not. What takes too long, or gives no sign of life, is asked to
        stop first: a client of MPS that is killed at work may take all others of its GPU with it.
        """
        if self.ends is None:
            silent = self.silent(now)
            late = self.job is not None and timeout_s is not None and now - self.started > timeout_s
            if silent and self.job is None:
                return silent
            if late or silent:
                why = silent or f"took more than the {timeout_s:g} s that --timeout gives"
                self.ends = now + GRACE_S["hung" if silent else "late"], why
                self._send(encode_stop(why))
        return self.ends[1] if self.ends is not None and now >= self.ends[0] else None

    def waits_until(self, timeout_s: float | None) -> float:
        """The monotonic time at which `overdue` may answer otherwise, whatever happens."""
        if self.ends is not None:
            return self.ends[0]
        return math.inf if self.job is None or timeout_s is None else self.started + timeout_s

    def wait_for_end(self, until: float) -> None:
        """Of the job that its ranks were asked to stop, at most until that monotonic time."""
        for connection in self.connections.values():
            with suppress(EOFError, OSError, ForeignMessage):
                while connection.poll(max(0.0, until - time.monotonic())):
                    if isinstance(channel.receive(connection), Done):
                        break

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
    environment |= {PIPE_DIRECTORY: slots[0].pipes} if slots[0].pipes else {}
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
