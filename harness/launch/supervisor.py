"""The supervisor: starts workers, hands each its next job, hears what becomes of it, and outlives whatever they do."""

import os
import signal
import subprocess
import sys
import tempfile
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from harness import plugins
from harness.environment import utc_now
from harness.launch import channel
from harness.launch.job import Job, encode, failed_attempt
from harness.records import Results

OnEvent = Callable[[Job, dict[str, Any]], None]
STILLBORN = 2  # workers in a row that die before they take a job: then it is not the jobs' fault

# A training step allocates and frees the same large tensors again and again. By default glibc maps and unmaps each of
# them, and the kernel clears every page every time: kept on the heap, in huge pages, a step on a CPU is a tenth faster.
TUNABLES = {"hugetlb": 1, "mmap_max": 0, "trim_threshold": 2**34, "top_pad": 2**26}
MALLOC = {"GLIBC_TUNABLES": ":".join(f"glibc.malloc.{name}={value}" for name, value in TUNABLES.items())}


class WorkerError(RuntimeError):
    """Workers cannot start at all; the message has the end of their output."""


def group_of(job: Job) -> tuple[str, str]:
    """Jobs of one group can follow each other in one worker: Accelerate keeps device and precision for a process's
    life.
    """
    return job.device, job.spec.precision


@dataclass
class _Worker:
    process: subprocess.Popen[bytes]
    pidfd: int
    log: Path
    group: tuple[str, str]
    connection: Connection | None = None
    ready: bool = False
    job: Job | None = None

    def kill(self) -> None:
        """The whole process group at once; a worker has nothing to clean up that a record would miss."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        os.close(self.pidfd)
        if self.connection is not None:
            self.connection.close()


def supervise(jobs: Iterable[Job], on_event: OnEvent) -> None:
    """Do the jobs in their order in one worker process at a time.

    A worker that dies costs the job it was at and is replaced. Waits on connections and pidfds; nothing is polled.

    Args:
        on_event: called as (job, event) with what the worker emits, and with `failed` if it died.

    Raises:
        WorkerError: workers die before they take a job.
    """
    pending = deque(jobs)
    stillborn = 0
    worker: _Worker | None = None
    with tempfile.TemporaryDirectory(prefix="harness-") as scratch:
        door = channel.Door()
        try:
            while pending or (worker is not None and worker.job is not None):
                if worker is not None and worker.job is None and worker.group != group_of(pending[0]):
                    worker.kill()
                    worker = None
                if worker is None:
                    worker = _start(door, Path(scratch) / "worker.log", group_of(pending[0]))
                if worker.ready and worker.job is None:
                    worker.job = pending.popleft()
                    with suppress(OSError):  # it died since: the next event says so, and the job is what it was at
                        worker.connection.send_bytes(encode(worker.job))
                if _next_event(worker, door, on_event):
                    continue
                dead, worker = worker, None
                stillborn = 0 if dead.ready else stillborn + 1
                _bury(dead, on_event)
                if stillborn >= STILLBORN:
                    tail = dead.log.read_text(errors="replace")[-2000:].strip()
                    raise WorkerError(f"workers cannot start; the end of their output:\n{tail}")
        finally:
            if worker is not None:
                worker.kill()
            door.close()


def _start(door: channel.Door, log: Path, group: tuple[str, str]) -> _Worker:
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "harness.launch.worker"],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,  # Ctrl-C in the terminal reaches the supervisor alone, which decides
            env=MALLOC | dict(os.environ) | door.environment() | plugins.environment(),
        )
    return _Worker(process, os.pidfd_open(process.pid), log, group)


def _next_event(worker: _Worker, door: channel.Door, on_event: OnEvent) -> bool:
    """Wait for the next thing to happen and handle it; False if it is the worker's death."""
    ready = wait([worker.pidfd, worker.connection or door])
    if worker.connection is None and door in ready:
        connection, hello = door.take()
        if hello["pid"] == worker.process.pid:
            worker.connection = connection
        else:  # of a worker that died since
            connection.close()
        return True
    if worker.connection in ready:
        try:
            event = channel.receive(worker.connection)
        except (EOFError, OSError):
            return False
        if event["event"] == "ready":
            worker.ready = True
            return True
        job = worker.job
        if event["event"] == "finished":
            worker.job = None
        on_event(job, event)
        return True
    return worker.pidfd not in ready


def _bury(worker: _Worker, on_event: OnEvent) -> None:
    """Reap a dead worker and put down in its job's attempts how it died."""
    with suppress(subprocess.TimeoutExpired):
        worker.process.wait(timeout=5)  # its own exit code, if it is on its way out, and not that of our kill
    worker.kill()
    if worker.job is None:
        return
    code = worker.process.returncode
    how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"exited with {code}"
    hint = " (the kernel does that when memory runs out)" if code == -signal.SIGKILL else ""
    results = Results(Path(worker.job.results))
    done = results.done()
    for spec in worker.job.works:
        if spec.id in done and not worker.job.force:
            continue
        log = results.run_folder(worker.job.spec.id) / "log.txt"
        text = log.read_text(errors="replace") if log.exists() else ""
        failure = results.fail(failed_attempt(spec, "crashed", f"the worker {how}{hint}", text, utc_now()))
        on_event(worker.job, {"event": "failed", "id": spec.id, "reason": "crashed", "message": failure.message})
        break  # the one it was at; those after it were not tried
    on_event(worker.job, {"event": "finished"})
