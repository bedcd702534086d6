"""What the machine does while something is measured on it: others at work, clocks, temperature, energy.

What cannot be read (no NVML, no RAPL, no permission) is left out of the record.
"""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from harness.disturbance import QUIET, disturbance
from harness.environment import cpu_seconds

LOOK_S = 1.0  # of each look at who else is at work
RAPL = Path("/sys/class/powercap")
# Bits of NVML's throttle reasons that slow a GPU down; not `idle`, settings of clocks, or waiting for other GPUs.
THROTTLES = {0x4: "power cap", 0x8: "hardware slowdown", 0x20: "heat", 0x40: "heat, hardware", 0x80: "power brake"}


class Watch:
    """Watches the machine from its construction on."""

    def __init__(self, place: torch.device) -> None:
        self.gpu = _Gpu(place) if place.type == "cuda" else None
        self.before = self.gpu.state() if self.gpu else {}
        self.cpu, self.own = cpu_seconds(), sum(os.times()[:4])

    def read(self) -> dict[str, Any]:
        """For a record: the share of the cores that others took, the GPU's state before and after and how many other
        processes are on it, and whether any of that `disturbed` the measurement.
        """
        found: dict[str, Any] = {}
        if self.cpu and (cpu := cpu_seconds()):
            busy, total = (after - before for after, before in zip(cpu, self.cpu, strict=True))
            others = busy - (sum(os.times()[:4]) - self.own)
            found["foreign_cpu_share"] = round(max(0.0, others / max(total, 1e-9)), 4)
        if self.gpu and (after := self.gpu.state()):
            found |= {"gpu_before": self.before, "gpu_after": after, "foreign_gpu_processes": self.gpu.foreign()}
        heat = any(found.get(key, {}).get("throttled") for key in ("gpu_before", "gpu_after"))
        busy = found.get("foreign_cpu_share", 0.0) > QUIET or found.get("foreign_gpu_processes", 0) > 0
        return found | {"disturbed": bool(busy or heat)}

    @contextmanager
    def energy(self) -> Iterator[list[float]]:
        """Puts the block's energy in joules into the list: the GPU's, else that of the processors' packages."""
        found: list[float] = []
        read = self.gpu.energy_j if self.gpu else _rapl_j
        before = read()
        yield found
        after = read()
        if before is not None and after is not None and after >= before:  # RAPL's counters wrap
            found.append(after - before)


def wait_for_quiet(place: torch.device, patience_s: float, say: Callable[[str], None]) -> None:
    """Return when nobody else is at work on the machine, and at the latest after `patience_s`.

    Args:
        say: is told what is waited for, and whether it came to that.
    """
    ends, waited = time.monotonic() + patience_s, False
    while True:
        watch = Watch(place)
        time.sleep(min(LOOK_S, patience_s / 4))
        why = disturbance(watch.read())
        if not why and not waited:
            return
        if not why or time.monotonic() >= ends:
            say(f"measuring all the same: {why}" if why else "quiet now: measuring")
            return
        if not waited:
            say(f"waiting up to {patience_s:g} s for a quiet machine: {why}")
        waited = True


def _rapl_j() -> float | None:
    with suppress(OSError, ValueError):
        zones = [zone for zone in RAPL.glob("intel-rapl:*") if zone.name.count(":") == 1]
        if zones:
            return sum(int((zone / "energy_uj").read_text()) for zone in zones) / 1e6
    return None


class _Gpu:
    """A GPU seen through NVML, as far as it answers."""

    def __init__(self, place: torch.device) -> None:
        self.place = place

    @cached_property
    def _handle(self) -> Any:
        with suppress(Exception):
            import pynvml

            pynvml.nvmlInit()
            uuid = str(torch.cuda.get_device_properties(self.place).uuid)
            return pynvml.nvmlDeviceGetHandleByUUID(uuid if uuid.startswith("GPU-") else f"GPU-{uuid}")
        return None

    def _ask(self, name: str, *args: int) -> Any:
        if self._handle is not None:
            with suppress(Exception):  # a question that this GPU or driver does not answer
                import pynvml

                return getattr(pynvml, name)(self._handle, *args)
        return None

    def state(self) -> dict[str, Any]:
        reasons = self._ask("nvmlDeviceGetCurrentClocksThrottleReasons")
        power = self._ask("nvmlDeviceGetPowerUsage")
        found = {
            "temperature_c": self._ask("nvmlDeviceGetTemperature", 0),
            "sm_clock_mhz": self._ask("nvmlDeviceGetClockInfo", 1),
            "memory_clock_mhz": self._ask("nvmlDeviceGetClockInfo", 2),
            "power_w": None if power is None else round(power / 1000, 1),
            "throttled": None if reasons is None else [name for bit, name in THROTTLES.items() if reasons & bit],
        }
        return {key: value for key, value in found.items() if value is not None}

    def foreign(self) -> int:
        """Processes on the GPU but this one. Counted, since ids of other containers mean nothing here."""
        running = self._ask("nvmlDeviceGetComputeRunningProcesses")
        return max(0, len(running) - 1) if running else 0

    def energy_j(self) -> float | None:
        energy = self._ask("nvmlDeviceGetTotalEnergyConsumption")
        return None if energy is None else energy / 1000
