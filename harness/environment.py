"""What machine, versions and commit produced a record. No torch is imported: a plan asks for the device too."""

import functools
import importlib.metadata
import os
import platform
import re
import subprocess
from collections.abc import Collection
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from harness import plugins

PACKAGES = ("torch", "accelerate", "timm", "datasets", "numpy", "pillow", "dskd-harness")


@dataclass(frozen=True)
class Gpu:
    uuid: str
    name: str


@functools.cache
def gpus() -> list[Gpu]:
    """The NVIDIA GPUs that CUDA_VISIBLE_DEVICES leaves, in its order, as the driver tells them; empty without one."""
    if not Path("/proc/driver/nvidia").exists() and not Path("/dev/nvidiactl").exists():
        return []
    try:
        query = ["nvidia-smi", "--query-gpu=index,uuid,name", "--format=csv,noheader"]
        rows = subprocess.run(query, capture_output=True, text=True, timeout=20, check=True).stdout.splitlines()
    except (OSError, subprocess.SubprocessError):
        return []
    found = [[cell.strip() for cell in row.split(",", 2)] for row in rows if row.count(",") >= 2]
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return [Gpu(uuid, name) for _, uuid, name in found]
    wanted = [entry.strip() for entry in visible.split(",") if entry.strip()]
    return [Gpu(row[1], row[2]) for entry in wanted for row in found if entry == row[0] or row[1].startswith(entry)]


@functools.cache
def cpu_name() -> str:
    try:
        match = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        match = None
    return match[1].strip() if match else platform.processor() or platform.machine()


@functools.cache
def cpu_flags() -> frozenset[str]:
    try:
        match = re.search(r"^flags\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        match = None
    return frozenset(match[1].split()) if match else frozenset()


def device_name(device: str = "auto") -> str:
    """Of the first device that runs use: the GPU's model, else the processor's. `device`: auto, cpu or cuda."""
    found = gpus() if device != "cpu" else []
    return found[0].name if found else cpu_name()


def utc_now() -> str:
    """As records write it: 2026-01-31T12:00:00+00:00."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def thread_count() -> int:
    """Threads to compute with: the cores that this process may run on, or OMP_NUM_THREADS where that is set."""
    wanted = os.environ.get("OMP_NUM_THREADS", "")
    return int(wanted) if wanted.isdigit() and int(wanted) > 0 else len(os.sched_getaffinity(0))


# Variables by which OpenMP libraries are told how threads wait: the standard's, GNU's and Intel's.
WAITING = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")


def openmp_waiting() -> str | None:
    """How this process's threads wait for each other: `spin` (OpenMP's default), `passive`, or what the environment
    says in another way; None where it computes with one thread.
    """
    if thread_count() == 1:
        return None
    given = {name: os.environ[name] for name in WAITING if name in os.environ}
    if given == {"OMP_WAIT_POLICY": "passive"}:
        return "passive"
    return " ".join(f"{name}={value}" for name, value in given.items()) or "spin"


def cpu_seconds(cores: Collection[int] = ()) -> tuple[float, float] | None:
    """Seconds since the start of the machine that these cores (none given: all) have been busy, and in all; None where
    nothing tells.
    """
    names = {f"cpu{core}" for core in cores} or {"cpu"}
    try:
        rows = [line.split() for line in Path("/proc/stat").read_text().splitlines()]
        ticks = [[int(cell) for cell in row[1:9]] for row in rows if row and row[0] in names]
    except (OSError, ValueError):
        return None
    total, idle = sum(map(sum, ticks)), sum(row[3] + row[4] for row in ticks)
    per_second = os.sysconf("SC_CLK_TCK")
    return ((total - idle) / per_second, total / per_second) if ticks else None


def describe_environment() -> dict[str, Any]:
    """Python, packages, plug-ins, operating system and the commit of the harness's source, as plain data."""
    loaded = plugins.loaded()
    return {**_machine(), **({"plugins": loaded} if loaded else {})}


@functools.cache
def _machine() -> dict[str, Any]:
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = "unknown"
    return {
        "host": platform.node(),
        "os": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "packages": versions,
        "commit": _commit(),
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
    }


def _commit() -> str:
    """The commit of the checkout that this file lies in, with `+changes` if it is not clean; empty outside one."""
    here = Path(__file__).resolve().parent
    try:
        run = functools.partial(subprocess.run, cwd=here, capture_output=True, text=True, timeout=10, check=True)
        head = run(["git", "rev-parse", "--short=12", "HEAD"]).stdout.strip()
        tracked = run(["git", "ls-files", "--error-unmatch", __file__]).stdout
        changed = run(["git", "status", "--porcelain", "--untracked-files=no"]).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""
    return f"{head}{'+changes' if changed else ''}" if tracked else ""
