"""What the operating system gives: versions, memory, descriptors, and a folder that several processes can share."""

import os
import resource
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

from harness.doctor.findings import Finding, Where, failed, passed, skipped
from harness.environment import describe_environment
from harness.files import publish, write_atomic

LEAST_TORCH = (2, 7)
LEAST_DESCRIPTORS = 1024  # several processes of a run on many GPUs keep a socket for each other and each file
LEAST_MEMORY_GIB = 2.0
LATE_S = 60.0  # of the clock of a shared disk, from which on claims of other machines look left behind
NODES_SEE_S = 60.0


def versions(_: Where) -> Finding:
    about = describe_environment()
    packages = about["packages"]
    torch = tuple(int(part) for part in packages["torch"].split("+")[0].split(".")[:2])
    said = f"Python {about['python']}, torch {packages['torch']}, timm {packages['timm']}, {about['os']}"
    if torch < LEAST_TORCH:
        return failed(said, f"torch {'.'.join(map(str, LEAST_TORCH))} or newer is needed: pip install -U torch")
    return passed(said, **packages)


def memory(where: Where) -> Finding:
    from harness.run.memory import free_host_bytes

    free = free_host_bytes() / 2**30
    said = f"{free:.1f} GiB may still be taken (of the machine, or of the job or container)"
    if free < LEAST_MEMORY_GIB:
        return failed(said, "ask for more: --mem in SLURM, --memory of a container", free_gib=round(free, 2))
    return passed(said, free_gib=round(free, 2))


def descriptors(_: Where) -> Finding:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    said = f"{soft} open files allowed (at most {hard})"
    if soft < LEAST_DESCRIPTORS:
        return failed(said, f"ulimit -n {min(4096, hard)}", open_files=soft)
    return passed(said, open_files=soft)


def file_system(where: Where) -> Finding:
    """What claims and records rest on: a name that one process alone gets, a file that is there whole or not at all,
    and a clock that is ours.
    """
    where.folder.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=where.folder, prefix=".doctor-") as name:
        folder = Path(name)
        first, second = publish(folder / "claim", "one"), publish(folder / "claim", "two")
        if (first, second) != (True, False) or (folder / "claim").read_text() != "one":
            return failed("a name can be given twice", f"{where.folder} keeps no claims: name another --out")
        began = time.perf_counter()
        for _ in range(20):
            write_atomic(folder / "record", b"x" * 4096)
        write_ms = 1000 * (time.perf_counter() - began) / 20
        late_s = time.time() - os.stat(folder / "record").st_mtime
    said = f"{where.folder}: exclusive names and whole files; {write_ms:.1f} ms to write one for good"
    facts = {"write_ms": round(write_ms, 2), "clock_offset_s": round(late_s, 3)}
    if abs(late_s) > LATE_S:
        advice = "set the clocks (NTP): claims of other machines look left behind"
        return failed(f"{said}; its clock differs by {late_s:.0f} s", advice, **facts)
    return passed(f"{said}; clock {late_s:+.2f} s", **facts)


def other_nodes(where: Where) -> Finding:
    """How soon another node of the allocation sees a file."""
    if where.nodes == 1:
        return skipped("one node")
    with TemporaryDirectory(dir=where.folder, prefix=".doctor-") as name:
        path = Path(name).resolve() / "seen"
        code = (
            "import os, sys, time; end = time.time() + float(sys.argv[2])\n"
            "while not os.path.exists(sys.argv[1]) and time.time() < end: time.sleep(.02)\n"
            "print(os.uname().nodename, time.time() if os.path.exists(sys.argv[1]) else 0, flush=True)"
        )
        step = ["srun", "--mpi=none", "--overlap", f"--nodes={where.nodes}", f"--ntasks={where.nodes}"]
        command = [*step, "--ntasks-per-node=1", sys.executable, "-c", code, str(path), str(NODES_SEE_S)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        time.sleep(2)  # until they look: some disks remember for a while that a file was not there
        path.write_text("here")
        written = time.time()
        output = process.communicate(timeout=NODES_SEE_S + 30)[0]
    seen = {row[0]: float(row[1]) for line in output.splitlines() if len(row := line.split()) == 2}
    blind = [node for node, at in seen.items() if not at]
    if len(seen) < where.nodes or blind:
        who = f"not by {', '.join(blind)}" if blind else f"{len(seen)} of {where.nodes} nodes answered: {output[-200:]}"
        return failed(f"a file is not seen by all nodes ({who})", "name a shared folder with --out")
    delay = max(at - written for at in seen.values())
    return passed(f"{where.nodes} nodes see a new file after {max(0.0, delay):.2f} s", seen_after_s=round(delay, 3))
