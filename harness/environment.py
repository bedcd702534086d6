"""What machine, versions and commit produced a record. No torch is imported: a plan asks for the device too."""

import functools
import importlib.metadata
import os
import platform
import re
import subprocess
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
