"""Several runs on one GPU at a time, with and without MPS: images per second in sum.

Run as a module this is one of the runs: `python -m harness.doctor.sharing KIND SECONDS [recorded]`. It says `ready`
when it has begun, trains on for so many seconds after a line comes in, and tells its rate.
"""

import itertools
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from harness.doctor.findings import Finding, Where, passed, skipped
from harness.doctor.proven import best
from harness.environment import thread_count
from harness.mps import DAEMON, PIPE_DIRECTORY, TROUBLE, daemon

COUNTS = (1, 2, 4)
SECONDS = 4.0
PATIENCE_S = 120.0  # for so many processes to start, and to train


def runs_per_device(where: Where) -> Finding:
    """What `--runs-per-device auto` and an own MPS daemon rest on: small trainings on the first GPU, by plain steps and
    by recorded ones.
    """
    if where.devices == "cpu":
        return skipped("on a CPU runs would share its threads, which decide numbers")
    if where.quick:
        return skipped("takes minutes: harness doctor without --quick")
    gpu = {"CUDA_VISIBLE_DEVICES": os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]}
    rates: dict[str, dict[int, float]] = {}
    why: list[str] = []

    def measure(around: Mapping[str, str], how: str) -> None:
        rates[f"images_per_s{how}"] = {count: rate("cuda", count, SECONDS, around) for count in COUNTS}
        try:
            found = {count: rate("cuda", count, SECONDS, around, recorded=True) for count in COUNTS}
            rates[f"recorded_images_per_s{how}"] = found
        except TROUBLE as error:
            why.append(f"no recorded steps here ({error})")

    with tempfile.TemporaryDirectory() as empty:  # no daemon is there
        measure(gpu | {PIPE_DIRECTORY: empty}, "")
    try:
        with tempfile.TemporaryDirectory() as folder, daemon(Path(folder)) as own:
            measure(gpu | own, "_with_mps")
    except TROUBLE as error:
        why.append(f"no MPS here ({error if shutil.which(DAEMON) else f'there is no {DAEMON}'})")
    return told(rates, why)


def told(rates: Mapping[str, Mapping[int, float]], why: Sequence[str]) -> Finding:
    """The finding of rates by the number of runs: see `proven.rates_of`. Pure.

    Args:
        why: there are none of other kinds.
    """
    said = []
    for key, found in rates.items():
        how = "recorded " * key.startswith("recorded") + "with MPS " * key.endswith("mps")
        listed = ", ".join(f"{count}: {found[count]:.0f}" for count in sorted(found))
        said.append(f"{how}{listed} (best {best(found)})")
    facts = {key: {str(count): round(value, 1) for count, value in found.items()} for key, found in rates.items()}
    return passed(f"images/s in sum by runs at a time {'; '.join([*said, *dict.fromkeys(why)])}", **facts)


def rate(kind: str, count: int, seconds: float, around: Mapping[str, str], recorded: bool = False) -> float:
    """Images per second in sum of so many equal trainings at the same time, each in a process of its own.

    Raises:
        RuntimeError: one of them did not come to its end.
    """
    command = [sys.executable, "-m", "harness.doctor.sharing", kind, str(seconds), *(["recorded"] if recorded else [])]
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


def main() -> None:
    import numpy as np

    from harness.doctor import compute
    from harness.run.device import open_device
    from harness.run.graphed import WholeSteps

    kind, seconds = sys.argv[1], float(sys.argv[2])
    device = open_device(kind, "auto")
    images, batch = 64, 16
    spec = compute.spec_of("dskd", compute.TRUNKS[0], device, 128 if kind == "cuda" else 32, 100_000, batch)
    teacher, order = compute.teacher_of(compute.TRUNKS[0], device), np.arange(images)
    learner, features = compute.learner_of(spec, teacher, device, images)
    if "recorded" in sys.argv:
        whole = WholeSteps()
        learner, facts = whole.learner(spec, compute.model_of(spec, teacher, device), device, features, images)
        if why := facts().get("graph_failure"):
            sys.exit(why)
    epochs = itertools.count(1)

    def epoch() -> None:
        learner.begin_epoch(features, order, next(epochs))
        for _ in range(images // batch):
            learner.next_step()
        device.synchronize()

    epoch()
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    if not sys.stdin.readline():
        return
    began, done = time.perf_counter(), 0
    while (took := time.perf_counter() - began) < seconds or not done:
        epoch()
        done += images
    sys.stdout.write(f"{json.dumps({'images_per_s': done / took})}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
