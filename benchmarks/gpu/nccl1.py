"""The distributed path on one card: nccl (on a CPU gloo) with one process under torch's launcher.

The harness takes that path for two processes or more only, and nccl refuses two of them on one card; so this calls what
`harness.run.device` calls, in a group of one, and counts what a gloo group of the hosts leaves behind.
"""

import os
import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from sheet import Sheet

GROUPS = 20


def run(sheet: Sheet) -> None:
    """The block."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "1", __file__]
    done = subprocess.run([*command, sheet.kind], capture_output=True, text=True, timeout=sheet.left_s - 1)
    for line in done.stdout.splitlines():
        name, ok, detail = line.split("\t")
        if ok == "-":
            sheet.fact(name, detail)
        else:
            sheet.check(name, ok == "1", detail)
    complaint = (done.stderr.strip().splitlines() or [""])[-1]
    sheet.check("the launcher's process ends well", done.returncode == 0, complaint[:300] if done.returncode else "")
    sheet.say(str(sheet.found["facts"].get(f"{GROUPS} gloo groups", "")))


def told(name: str, ok: bool | None, detail: object = "") -> None:
    print(name, "-" if ok is None else int(ok), detail, sep="\t", flush=True)


def open_things() -> tuple[int, int]:
    """Descriptors and threads of this process."""
    return len(os.listdir("/proc/self/fd")), len(list(Path("/proc/self/task").iterdir()))


def rank(kind: str) -> None:
    """In the launched process."""
    place = torch.device(kind, 0) if kind == "cuda" else torch.device("cpu")
    started = time.perf_counter()
    dist.init_process_group("nccl" if kind == "cuda" else "gloo", timeout=timedelta(minutes=1))
    if kind == "cuda":
        torch.cuda.set_device(place)
    dist.barrier(**({"device_ids": [0]} if kind == "cuda" else {}))
    told("start and first barrier", None, f"{time.perf_counter() - started:.2f} s")
    given = torch.arange(6.0, device=place).view(2, 3)
    gathered = [torch.empty_like(given)]
    dist.gather(given, gathered)
    told("gather", torch.equal(gathered[0], given))
    total = given.clone()
    dist.all_reduce(total)
    told("all_reduce", torch.equal(total, given))
    objects = [{"a": 1}]
    dist.broadcast_object_list(objects, 0, device=place)
    told("broadcast_object_list", objects == [{"a": 1}])
    model = torch.nn.parallel.DistributedDataParallel(
        torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8)).to(place),
        broadcast_buffers=False,
        gradient_as_bucket_view=True,
    )
    model(torch.rand(2, 3, 8, 8, device=place)).square().mean().backward()
    told("a step of DistributedDataParallel", all(bool(p.grad.isfinite().all()) for p in model.parameters()))
    before = open_things()
    for _ in range(GROUPS):
        group = dist.new_group(backend="gloo")
        value = torch.tensor(3)
        dist.all_reduce(value, dist.ReduceOp.MAX, group=group)
    after = open_things()
    told(f"{GROUPS} gloo groups", None, f"descriptors {before[0]} to {after[0]}, threads {before[1]} to {after[1]}")
    dist.destroy_process_group()


if __name__ == "__main__":
    rank(sys.argv[1])
