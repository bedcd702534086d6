"""The worker process: `python -m harness.launch.worker`, started by a supervisor; takes jobs until it is told to leave.

The message to stop (`harness.job.encode_stop`) and the signals USR1 and TERM end the job it is at as `interrupted`;
after TERM it leaves, which its event `Done` tells.
"""

import ctypes
import gc
import json
import logging
import os
import queue
import signal
import sys
import threading
import time
from collections.abc import Collection, Sequence
from pathlib import Path

from harness import events
from harness.job import Stop, decode, decode_stop
from harness.launch import channel
from harness.run_folder import RunFolder

PR_SET_PDEATHSIG = 1
ALIVE_EVERY_S = 10.0
FROM_EVERY_RANK = events.Ready | events.Done | events.Alive | events.Failed | events.Unwritable  # the rest rank 0 tells
LEAVE = b""  # among the jobs: there are no more


def die_with_parent() -> None:
    """Ask the kernel to kill this process when its parent dies, however it dies."""
    parent = os.getppid()
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died before the call
        os._exit(1)


def pin() -> None:
    """Stay on the cores that the supervisor dealt to this rank. Before torch counts them."""
    shares = json.loads(os.environ.get(channel.CPUS, "[]"))
    rank, ranks = (int(os.environ.get(name, start)) for name, start in (("LOCAL_RANK", "0"), ("LOCAL_WORLD_SIZE", "1")))
    if shares:
        os.sched_setaffinity(0, cores_of(shares[rank], rank, ranks, os.sched_getaffinity(0)))


def cores_of(share: Sequence[int], rank: int, ranks: int, own: Collection[int]) -> Collection[int]:
    """The cores for a rank of so many on its node. Pure.

    Args:
        share: what it was dealt; on another node than the supervisor's these may be cores of somebody else.
        own: those that it may run on.
    """
    if set(share) <= set(own):
        return share
    mine = sorted(own)[len(own) * rank // ranks : len(own) * (rank + 1) // ranks]
    return mine or own


def listen(connection: channel.Connection, stop: Stop) -> queue.SimpleQueue[bytes]:
    """The jobs as they come in, LEAVE after the last; `stop` is set where the one that is on shall end."""
    jobs: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    signals: queue.SimpleQueue[int] = queue.SimpleQueue()

    def read() -> None:
        while True:
            try:
                message = connection.recv_bytes()
            except (EOFError, OSError):
                os._exit(0)  # the supervisor is gone: nobody waits for a result, and what is published is published
            late = decode_stop(message)
            stop.late = late or ""
            if late is not None:
                stop.set()
            else:
                stop.clear()  # that was meant for the job before; in this order none for the new one is missed
                jobs.put(message)

    def obey() -> None:
        while True:
            if signals.get() == signal.SIGTERM:
                jobs.put(LEAVE)  # before the job is stopped: no other one begins after it
            stop.set()

    for number in (signal.SIGUSR1, signal.SIGTERM):
        # Unlike an event's lock, this queue may be used wherever a signal comes in, within another one's handler too.
        signal.signal(number, lambda number, _frame: signals.put(number))
    for target in (read, obey):
        threading.Thread(target=target, daemon=True).start()
    return jobs


def main() -> None:
    die_with_parent()
    pin()
    connection = channel.connect()
    stop = Stop()
    jobs = listen(connection, stop)
    sending = threading.Lock()

    def emit(event: events.FromWorker) -> None:
        if channel.rank() == 0 or isinstance(event, FROM_EVERY_RANK):
            with sending:
                connection.send_bytes(events.encode(event))

    def live() -> None:
        while True:
            time.sleep(ALIVE_EVERY_S)
            emit(events.Alive())

    threading.Thread(target=live, daemon=True).start()

    # Imported after the hello: torch and friends take seconds, in which the supervisor already knows this worker. What
    # they make stays, and looking through it for cycles again and again took a quarter of that time.
    gc.disable()
    from harness import plugins
    from harness.run.execute import execute
    from harness.run.warm import Warm

    plugins.load(plugins.handed_down())  # a job may name what they bring
    gc.freeze()
    gc.enable()
    logging.basicConfig(format="%(asctime)s %(message)s")
    logging.getLogger("harness").setLevel(logging.INFO)
    warm = Warm()
    emit(events.Ready())
    for message in iter(jobs.get, LEAVE):
        job = decode(message)
        log_to(RunFolder(Path(job.results) / job.spec.id).log)
        execute(job, emit, stop, warm)
        emit(events.Done(leaving=not jobs.empty()))  # the next job comes after this event


def log_to(path: Path) -> None:
    """Send this process's output, that of C libraries too, to the end of the run's log."""
    path.parent.mkdir(parents=True, exist_ok=True)
    sys.stdout.flush()
    sys.stderr.flush()
    if path.is_symlink():  # nobody's other file is written to
        path.unlink()
    log = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW, 0o644)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.close(log)


if __name__ == "__main__":
    main()
