"""A worker without torch for tests of the supervisor: it speaks the channel as `harness.launch.worker` does, publishes
nothing, and at the runs of the seeds that FAKE names (JSON: seed to behaviour) it misbehaves.

FAKE["start"] is what it does at its first starts instead of connecting, as often as the file FAKE["count"] has lines.
FAKE["broken"]: on devices of so many threads every run fails; FAKE["log"]: a file for (process, threads, seed) of each;
FAKE["after"]: until so many of such devices are in it the other runs wait. FAKE["mps"]: a file that a run of the
behaviour "poison" touches when FAKE["clients"] runs have begun, which breaks the device of every worker that was there.
FAKE["pipes"]: a file for (process, kind, pipes of MPS) of each job. A run of the behaviour "takes:S" takes S seconds.
"""

import json
import os
import signal
import sys
import time
from pathlib import Path

from harness import events
from harness.job import decode, decode_stop
from harness.launch import channel
from harness.launch.worker import die_with_parent, log_to

HOW = json.loads(os.environ.get("FAKE", "{}"))


def main() -> None:
    die_with_parent()
    _start()
    connection = channel.connect()

    def send(event: events.FromWorker) -> None:
        connection.send_bytes(events.encode(event))

    send(events.Ready())
    begun = 0.0
    while True:
        try:
            message = connection.recv_bytes()
        except EOFError:
            return
        if decode_stop(message) is not None:
            continue
        job = decode(message)
        begun = begun or time.time()  # with its device
        how = HOW.get(str(getattr(job.spec, "seed", job.kind)), "good")
        if "pipes" in HOW:
            with open(HOW["pipes"], "a") as log:
                log.write(f"{os.getpid()} {job.kind} {os.environ.get('CUDA_MPS_PIPE_DIRECTORY')}\n")
        if "log" in HOW:
            with open(HOW["log"], "a") as log:
                log.write(f"{os.getpid()} {os.environ['OMP_NUM_THREADS']} {job.spec.seed}\n")
        log_to(Path(job.results) / job.spec.id / "log.txt")
        send(events.Phase("train"))
        if how == "slow":
            late = _wait_for_stop(connection)
            if "log" in HOW:
                with open(HOW["log"], "a") as log:
                    log.write(f"{os.getpid()} stopped {job.spec.seed}\n")
            send(events.Failed(job.spec.id, "timeout" if late else "interrupted", f"{late}stopped at epoch 1"))
        elif how == "full":
            time.sleep(0.5)
            send(events.Unwritable("No space left on device"))
        elif how == "deaf":
            time.sleep(60)
        elif how.startswith("fail:"):
            send(events.Failed(job.spec.id, "error", how.removeprefix("fail:")))
        elif how == "device" or HOW.get("broken") == os.environ["OMP_NUM_THREADS"]:
            send(events.Failed(job.spec.id, "device", "CUDA error: device-side assert triggered"))
        elif how.startswith("bytes:"):
            connection.send_bytes(how.removeprefix("bytes:").encode("latin-1"))
        elif how == "log":
            with (Path(job.results) / job.spec.id / "log.txt").open("ab") as log:
                log.truncate(2**31)  # a hole: no disk is needed for it
            os.kill(os.getpid(), signal.SIGKILL)
        elif "mps" in HOW and not _shares_the_device(how == "poison", begun):
            send(events.Failed(job.spec.id, "device", "CUDA error: the MPS client was terminated"))
        else:
            time.sleep(float(how.removeprefix("takes:")) if how.startswith("takes:") else 0.0)
            _wait_for_failures()
            send(events.Epoch(1, 1, 0.5, 10.0))
            send(events.Recorded("train", job.spec.id, 0.1, {"loss_last": 0.5}))
        send(events.Done())


def _start() -> None:
    counter = Path(HOW["count"]) if "count" in HOW else None
    if counter is None or not counter.exists():
        return
    lines = counter.read_text().splitlines()
    if lines:
        counter.write_text("".join(f"{line}\n" for line in lines[1:]))
        sys.stderr.write("the library cannot be loaded\n")
        sys.stderr.flush()
        os.kill(os.getpid(), signal.SIGKILL)


def _shares_the_device(poison: bool, begun: float) -> bool:
    """Be a client of MPS until all are at work and the poison has come; False if it has ended all clients since
    `begun`.
    """
    ended, deadline = Path(HOW["mps"]), time.monotonic() + 30

    def everybody() -> bool:
        return len(Path(HOW["log"]).read_text().splitlines()) >= HOW["clients"]

    while time.monotonic() < deadline and not (everybody() if poison else ended.exists()):
        time.sleep(0.02)
    if poison:
        time.sleep(0.1)  # the clock of files is coarse
        ended.touch()
        return False
    return not (ended.exists() and ended.stat().st_mtime > begun)


def _wait_for_failures() -> None:
    deadline = time.monotonic() + 60
    while "after" in HOW and time.monotonic() < deadline:
        if [line.split()[1] for line in Path(HOW["log"]).read_text().splitlines()].count(HOW["broken"]) >= HOW["after"]:
            return
        time.sleep(0.02)


def _wait_for_stop(connection: channel.Connection) -> str:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if connection.poll(0.2) and (late := decode_stop(connection.recv_bytes())) is not None:
            return late
    return ""


if __name__ == "__main__":
    main()
