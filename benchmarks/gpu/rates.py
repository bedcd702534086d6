"""What the device can do at best: a matrix product and a copy; and which questions NVML answers."""

import time
from collections.abc import Callable
from typing import Any

import torch
from sheet import Sheet

from harness.run.device import Device, open_device

QUESTIONS = {
    "nvmlDeviceGetTemperature": (0,),
    "nvmlDeviceGetClockInfo": (1,),
    "nvmlDeviceGetPowerUsage": (),
    "nvmlDeviceGetTotalEnergyConsumption": (),
    "nvmlDeviceGetCurrentClocksThrottleReasons": (),
    "nvmlDeviceGetComputeRunningProcesses": (),
    "nvmlDeviceGetCpuAffinity": (4,),
    "nvmlDeviceGetMemoryInfo": (),
    "nvmlDeviceGetUUID": (),
}


def run(sheet: Sheet) -> None:
    """The block."""
    device = open_device(sheet.kind, "bf16")
    side, size = (256, 2**20) if sheet.small else (8192, 2**32)
    a, b = (torch.randn(side, side, device=device.place, dtype=torch.bfloat16) for _ in range(2))
    took = seconds(device, lambda: a @ b)
    product = 2 * side**3 / took / 1e12
    source = torch.zeros(size, dtype=torch.uint8, device=device.place)
    target = torch.empty_like(source)
    copied = 2 * size / seconds(device, lambda: target.copy_(source)) / 1e12
    small = torch.zeros(1, device=device.place)
    launch_us = 1e6 * launches(device, lambda: small.add_(1))
    sheet.fact("launch of one kernel by the host", f"{launch_us:.1f} us")
    sheet.say(f"{product:.4g} TFLOP/s (bf16, {side}), copy {copied:.3g} TB/s (read and written)")
    if not sheet.small:
        for name, answer in nvml().items():
            sheet.fact(name, answer)


def seconds(device: Device, do: Callable[[], Any], times: int = 20) -> float:
    for _ in range(3):
        do()
    device.synchronize()
    started = time.perf_counter()
    for _ in range(times):
        do()
    device.synchronize()
    return (time.perf_counter() - started) / times


def launches(device: Device, do: Callable[[], Any], times: int = 500) -> float:
    """Seconds that the host takes for one, which the device keeps up with."""
    device.synchronize()
    started = time.perf_counter()
    for _ in range(times):
        do()
    took = time.perf_counter() - started
    device.synchronize()
    return took / times


def nvml() -> dict[str, str]:
    """Each question's answer, or why there is none."""
    found = {}
    try:
        import pynvml

        pynvml.nvmlInit()
        handle = pynvml.nvmlDeviceGetHandleByIndex(0)
    except Exception as error:
        return {"NVML": f"{type(error).__name__}: {error}"}
    for name, rest in QUESTIONS.items():
        try:
            answer = getattr(pynvml, name)(handle, *rest)
            found[name] = f"{len(answer)} of them" if isinstance(answer, list) else " ".join(str(answer).split())[:120]
        except Exception as error:
            found[name] = f"no answer ({type(error).__name__}: {error})"
    return found
