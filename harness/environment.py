"""What machine, versions and commit produced a record. No torch is imported: a plan asks for the device too."""

import functools
import importlib.metadata
import itertools
import logging
import os
import platform
import re
import subprocess
from collections.abc import Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from dskd.config import ConfigError
from harness import plugins

log = logging.getLogger(__name__)
DRIVER = Path("/dev/nvidiactl")  # CUDA needs it too
ELSE_CPU = "write --devices cpu if the CPU is meant"
PACKAGES = ("torch", "accelerate", "timm", "datasets", "numpy", "pillow", "dskd-harness")


TOPOLOGY = Path("/sys/devices/system/cpu")


@dataclass(frozen=True)
class Gpu:
    """`near`: the cores of the processor that it hangs on; empty where that is not known."""

    uuid: str
    name: str
    near: frozenset[int] = frozenset()


@functools.cache
def gpus() -> list[Gpu]:
    """The NVIDIA GPUs that CUDA_VISIBLE_DEVICES names, in its order, or all of them by PCI bus, as nvidia-smi counts
    them; empty where there is no driver, or where the variable hides all on purpose (empty or -1).

    Raises:
        ConfigError: there is a driver, but not the GPUs that CUDA_VISIBLE_DEVICES or SLURM_JOB_GPUS names, or nothing
            lists them: nobody wants a grid that silently runs on the CPU of a GPU machine. Or SLURM gave fewer than
            there are and nothing says which.
    """
    visible, given = os.environ.get("CUDA_VISIBLE_DEVICES"), os.environ.get("SLURM_JOB_GPUS")
    wanted = None if visible is None else _named(visible)
    if not DRIVER.exists() or wanted == []:
        return []
    try:
        found = _ask_driver(wanted or [])
    except Exception as error:  # no library of NVML, another version than the driver's, a card that is lost
        raise ConfigError(f"--devices: there is an NVIDIA driver that lists no GPUs ({error}); {ELSE_CPU}") from None
    chosen = list(found.values()) if wanted is None else [found[name] for name in wanted if name in found]
    if wanted is not None and len(chosen) < len(wanted):
        missing = ", ".join(name for name in wanted if name not in found)
        what = f"CUDA_VISIBLE_DEVICES={visible} names what is not here ({missing})"
        raise ConfigError(f"--devices: {what}; {ELSE_CPU}")
    count = os.environ.get("SLURM_GPUS_ON_NODE", "")
    if wanted is None and count.isdecimal() and 0 < int(count) < len(chosen):  # not hidden: the others are other jobs'
        what = f"SLURM gave {count} of the {len(chosen)} GPUs here and CUDA_VISIBLE_DEVICES does not say which"
        raise ConfigError(f"--devices: {what}; export it as SLURM sets it")
    if given and not chosen:
        raise ConfigError(f"--devices: SLURM_JOB_GPUS={given} names GPUs, and the driver shows none; {ELSE_CPU}")
    return chosen


def _named(visible: str) -> list[str]:
    """What CUDA_VISIBLE_DEVICES names up to the first entry that hides the rest, as CUDA reads it. (SLURM writes
    NoDevFiles where a job has no GPU.)
    """
    entries = [entry.strip() for entry in visible.split(",")]
    return list(itertools.takewhile(lambda entry: entry not in ("", "-1", "NoDevFiles"), entries))


def _ask_driver(wanted: Sequence[str]) -> dict[str, Gpu]:
    """The GPUs by index, and those `wanted` by the entry that names them: an index, the beginning of a UUID (GPU-...),
    or a MIG device, which CUDA is given as it is written. Raises what NVML does if no GPU answers.
    """
    import pynvml

    pynvml.nvmlInit()
    try:
        found, silent = {}, {}
        for index in range(pynvml.nvmlDeviceGetCount()):
            try:
                handle = pynvml.nvmlDeviceGetHandleByIndex(index)
                about = pynvml.nvmlDeviceGetUUID(handle), pynvml.nvmlDeviceGetName(handle)
                found[str(index)] = Gpu(*about, _near(pynvml, handle))
            except pynvml.NVMLError as error:  # lost, or this user may not use it: the others are there
                silent[index] = error
        for index, error in silent.items():
            if not found:
                raise error
            log.warning("GPU %d does not answer and is left out: %s", index, error)
        for entry in wanted:
            if entry.startswith("MIG-"):
                found[entry] = Gpu(entry, "NVIDIA MIG device")
                with suppress(pynvml.NVMLError):
                    found[entry] = Gpu(entry, pynvml.nvmlDeviceGetName(pynvml.nvmlDeviceGetHandleByUUID(entry)))
            elif entry.startswith("GPU-"):
                found |= [(entry, gpu) for gpu in list(found.values()) if gpu.uuid.startswith(entry)]
        return found
    finally:
        pynvml.nvmlShutdown()


def _near(pynvml: Any, handle: Any) -> frozenset[int]:
    words = (max(os.sched_getaffinity(0)) // 64) + 1
    try:
        masks = pynvml.nvmlDeviceGetCpuAffinity(handle, words)
    except Exception:  # not every driver tells
        return frozenset()
    return frozenset(64 * word + bit for word, mask in enumerate(masks) for bit in range(64) if mask >> bit & 1)


def free_memory_mib(uuids: Collection[str]) -> dict[str, float]:
    """Of each of these GPUs that tells: the memory that nobody has."""
    found: dict[str, float] = {}
    with suppress(Exception):  # no library of NVML, no driver
        import pynvml

        pynvml.nvmlInit()
        try:
            for uuid in uuids:
                with suppress(pynvml.NVMLError):
                    handle = pynvml.nvmlDeviceGetHandleByUUID(uuid)
                    found[uuid] = pynvml.nvmlDeviceGetMemoryInfo(handle).free / 2**20
        finally:
            pynvml.nvmlShutdown()
    return found


def by_topology(cores: Collection[int]) -> list[int]:
    """Cores in an order in which the threads of one core stand side by side, and the cores of one processor."""

    def place(core: int) -> tuple[int, int, int]:
        names = ("physical_package_id", "core_id")
        try:
            package, number = (int((TOPOLOGY / f"cpu{core}" / "topology" / name).read_text()) for name in names)
        except (OSError, ValueError):
            return 0, core, core
        return package, number, core

    return sorted(cores, key=place)


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


def core_count() -> int:
    """The cores that this process may run on."""
    return len(os.sched_getaffinity(0))


def thread_count() -> int:
    """Threads to compute with: the cores that this process may run on, or OMP_NUM_THREADS where that is set."""
    wanted = os.environ.get("OMP_NUM_THREADS", "")
    return int(wanted) if wanted.isdigit() and int(wanted) > 0 else core_count()


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
