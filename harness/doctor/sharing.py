"""Several runs on one GPU at a time, with and without MPS: images per second in sum.

Run as a module this is one of the runs: `python -m harness.doctor.sharing KIND SECONDS`. It says `ready` when it has
begun, trains on for so many seconds after a line comes in, and tells its rate.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from harness.doctor.findings import Finding, Where, passed, skipped
from harness.doctor.proven import best
from harness.environment import thread_count

DAEMON = "nvidia-cuda-mps-control"
COUNTS = (1, 2, 4)
SECONDS = 4.0
PATIENCE_S = 120.0  # for so many processes to start, and to train


def runs_per_device(where: Where) -> Finding:
    """What `--runs-per-device auto` rests on: small eager trainings on the first GPU."""
    if where.devices == "cpu":
        return skipped("on a CPU runs would share its threads, which decide numbers")
    if where.quick:
        return skipped("takes a minute: harness doctor without --quick")
    gpu = {"CUDA_VISIBLE_DEVICES": os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]}
    with tempfile.TemporaryDirectory() as empty:  # no daemon is there
        alone = gpu | {"CUDA_MPS_PIPE_DIRECTORY": empty}
        plain = {count: rate("cuda", count, SECONDS, alone) for count in COUNTS}
    shared, why = {}, ""
    try:
        with tempfile.TemporaryDirectory() as folder, daemon(Path(folder)) as own:
            shared = {count: rate("cuda", count, SECONDS, gpu | own) for count in COUNTS}
    except (OSError, RuntimeError, subprocess.SubprocessError) as error:
        why = f"no MPS here ({error})" if shutil.which(DAEMON) else f"no MPS here (there is no {DAEMON})"
    return told(plain, shared, why)


def told(plain: Mapping[int, float], shared: Mapping[int, float], why: str) -> Finding:
    """The finding of rates by the number of runs, without and with MPS. Pure."""

    def listed(rates: Mapping[int, float]) -> str:
        return ", ".join(f"{count}: {rates[count]:.0f}" for count in sorted(rates))

    after = f"; with MPS {listed(shared)}" if shared else f"; {why}"
    said = f"images/s in sum by runs at a time {listed(plain)}{after}; best {best(plain)}"
    facts = {
        key: {str(count): round(value, 1) for count, value in rates.items()}
        for key, rates in (("images_per_s", plain), ("images_per_s_with_mps", shared))
    }
    return passed(said + (f", with MPS {best(shared)}" if shared else ""), **facts)


def rate(kind: str, count: int, seconds: float, around: Mapping[str, str]) -> float:
    """Images per second in sum of so many equal trainings at the same time, each in a process of its own.

    Raises:
        RuntimeError: one of them did not come to its end.
    """
    command = [sys.executable, "-m", "harness.doctor.sharing", kind, str(seconds)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(max(1, thread_count() // count)), **around}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    processes: list[subprocess.Popen[str]] = []
    limit = threading.Timer(PATIENCE_S, lambda: [process.kill() for process in processes])
    limit.start()
    try:
        processes += [subprocess.Popen(command, env=environment, text=True, **pipes) for _ in range(count)]
        for process in processes:
            _read(process, "ready")
        for process in processes:
            process.stdin.write("\n")
            process.stdin.flush()
        return sum(json.loads(_read(process, "{"))["images_per_s"] for process in processes)
    finally:
        limit.cancel()
        for process in processes:
            with suppress(OSError):
                process.stdin.close()  # it ends by itself: one that is killed may take others of its GPU with it
            with suppress(subprocess.TimeoutExpired):
                process.wait(10)
            process.kill()
            process.wait()
            process.stdout.close()


def _read(process: "subprocess.Popen[str]", beginning: str) -> str:
    """Its next line with that beginning. Raises RuntimeError with its last words if none comes."""
    last = ""
    for line in process.stdout:
        if line.startswith(beginning):
            return line
        last = line.strip() or last
    raise RuntimeError(f"a training beside others ends early: {last[:200]}")


@contextmanager
def daemon(folder: Path) -> Iterator[dict[str, str]]:
    """The environment of clients of an own MPS daemon, which has its pipes and logs in the folder and has ended when
    the block has. The system's is left alone.

    Raises:
        OSError, subprocess.SubprocessError: there is none, or it does not start.
    """
    pipes, logs = folder / "pipes", folder / "logs"
    pipes.mkdir(parents=True)
    logs.mkdir()
    own = {"CUDA_MPS_PIPE_DIRECTORY": str(pipes), "CUDA_MPS_LOG_DIRECTORY": str(logs)}
    how = {"env": os.environ | own, "timeout": 20, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    try:
        subprocess.run([DAEMON, "-d"], check=True, **how)
        yield own
    finally:
        with suppress(OSError, subprocess.SubprocessError):
            subprocess.run([DAEMON], input=b"quit -t 5\n", check=False, **how)
        with suppress(OSError, ValueError):  # if it did not obey
            pid = int((pipes / f"{DAEMON}.pid").read_text())
            if DAEMON.encode() in Path(f"/proc/{pid}/cmdline").read_bytes():
                os.kill(pid, signal.SIGKILL)


def main() -> None:
    import numpy as np

    from harness.doctor import compute
    from harness.run.device import open_device

    kind, seconds = sys.argv[1], float(sys.argv[2])
    device = open_device(kind, "auto")
    images, batch = 64, 16
    spec = compute.spec_of("dskd", compute.TRUNKS[0], device, 128 if kind == "cuda" else 32, 100_000, batch)
    learner, features = compute.learner_of(spec, compute.teacher_of(compute.TRUNKS[0], device), device, images)
    learner.students.train()

    def steps(count: int) -> None:
        for step in range(count):
            learner.step(features, np.arange(batch) + batch * step % images)
        device.synchronize()

    steps(4 if kind == "cuda" else 1)
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    if not sys.stdin.readline():
        return
    began, done = time.perf_counter(), 0
    while (took := time.perf_counter() - began) < seconds or not done:
        steps(4)
        done += 4 * batch
    sys.stdout.write(f"{json.dumps({'images_per_s': done / took})}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
