"""Processes of one run: whether they find each other, how fast they talk, and how a killed one ends them.

Run as a module this is one of the processes, under torch's launcher: `python -m harness.doctor.ranks KIND SCENE`.
"""

import json
import os
import re
import signal
import subprocess
import sys
import time
from importlib.util import find_spec

from harness.doctor.findings import Finding, Where, failed, passed, skipped
from harness.launch.group import launcher
from harness.prerequisites import deepspeed_trouble

JOBS = 30
MIB = 64
PATIENCE_S = 240.0
NETWORK = (
    "set NCCL_SOCKET_IFNAME and GLOO_SOCKET_IFNAME to the network that joins the nodes, NCCL_DEBUG=INFO tells more"
)


def together(where: Where) -> Finding:
    """All processes add up a block of numbers, then do 30 jobs in one group."""
    count = _count(where)
    if count < 2:
        return skipped("one GPU on one node: nothing to talk to")
    code, output = _launch(where, "talk")
    rows = re.findall(r"^(\{.*\})$", output, re.MULTILINE)
    if code or not rows:
        return failed(f"{count} processes do not come to an end: {_end(output)}", NETWORK)
    facts = json.loads(rows[-1])
    if facts["descriptors_added"] or facts["threads_added"]:
        return failed(f"{JOBS} jobs leave descriptors or threads behind", "please report it", **facts)
    bus = round(facts["gb_per_s"] * 2 * (count - 1) / count, 3)  # what crosses each link, as nccl-tests counts it
    rates = f"{facts['gb_per_s']:.2f} GB/s of sums ({bus:.2f} GB/s a link)"
    return passed(
        f"{count} processes over {facts['backend']}: {rates}, {JOBS} jobs in one group", **facts, bus_gb_per_s=bus
    )


def killed(where: Where) -> Finding:
    """One process is killed; the others must not wait for it."""
    if _count(where) < 2:
        return skipped("one process")
    began = time.perf_counter()
    code, output = _launch(where, "kill")
    seconds = time.perf_counter() - began
    if code == 0 or seconds > PATIENCE_S:
        return failed(f"a killed process is not noticed: {_end(output)}", "run with --timeout, so that no run waits")
    return passed(
        f"a killed process ends the others ({seconds:.0f} s with their start)", ended_after_s=round(seconds, 1)
    )


def deepspeed(where: Where) -> Finding:
    if find_spec("deepspeed") is None:
        return skipped("not installed (pip install 'dskd-harness[deepspeed]')")
    if trouble := deepspeed_trouble(where.devices):
        said, _, advice = trouble.partition("; ")
        return failed(f"strategy: deepspeed_... {said}", advice)
    environment = os.environ | ({"DS_ACCELERATOR": "cpu"} if where.devices == "cpu" else {})
    command = [sys.executable, "-c", "import deepspeed; print('version', deepspeed.__version__)"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=PATIENCE_S)
    if done.returncode:
        return failed(f"it cannot be imported: {_end(done.stderr)}", "strategy: ddp needs none of it")
    return passed(f"DeepSpeed {done.stdout.split()[-1]} can be imported")


def _count(where: Where) -> int:
    return where.nodes * (where.gpus if where.devices == "cuda" else 2)


def _launch(where: Where, scene: str) -> tuple[int, str]:
    """Exit code and output."""
    command = [*launcher(_count(where), where.nodes), "-m", "harness.doctor.ranks", where.devices, scene]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    try:
        done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=PATIENCE_S)
    except subprocess.TimeoutExpired as error:
        return 124, str(error.stdout or error)
    return done.returncode, done.stdout + done.stderr


def _end(output: str) -> str:
    lines = [line.strip() for line in output.splitlines() if "Error" in line or "error" in line]
    return (lines or [output.strip()[-200:]])[-1][:300]


def main() -> None:
    import torch
    import torch.distributed

    from harness.run.device import open_device

    kind, scene = sys.argv[1:]
    processes = int(os.environ["WORLD_SIZE"])
    device = open_device(kind, "fp32", processes)
    if scene == "kill":
        if device.rank == processes - 1:
            os.kill(os.getpid(), signal.SIGKILL)
        device.wait()
        time.sleep(PATIENCE_S)
        return
    block = torch.full((MIB * 2**18,), 1.0, device=device.place)
    seconds = []
    for _ in range(4):
        device.wait()
        block.fill_(1.0)
        device.synchronize()
        began = time.perf_counter()
        device.sum(block)
        device.synchronize()
        seconds.append(time.perf_counter() - began)
    assert float(block[0]) == processes, f"the sum is {float(block[0])}, not {processes}"
    held = []
    for job in range(JOBS):
        again = open_device(kind, "fp32", processes)
        assert again.most(job + again.rank) == job + processes - 1
        again.wait()
        held.append((len(os.listdir("/proc/self/fd")), len(os.listdir("/proc/self/task"))))
    if device.main:
        facts = {
            "processes": processes,
            "backend": torch.distributed.get_backend(),
            "gb_per_s": round(block.numel() * 4 / min(seconds) / 1e9, 3),
            "descriptors_added": held[-1][0] - held[0][0],
            "threads_added": held[-1][1] - held[0][1],
        }
        sys.stdout.write(f"{json.dumps(facts)}\n")
        sys.stdout.flush()
    device.wait()
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
