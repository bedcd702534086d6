"""The harness's throughput protocol, plain and compiled, and its watch on the machine."""

import subprocess
import sys

from sheet import Sheet, figures

from dskd import get_method
from harness.environment import device_name, thread_count
from harness.run.device import open_device
from harness.run.throughput import throughput
from harness.spec import BenchSpec

BUSY = """
import torch
a = torch.rand(4096, 4096, device="cuda")
print("busy", flush=True)
while True:
    a = (a @ a).clamp(0, 1)
    torch.cuda.synchronize()
"""


def run(sheet: Sheet) -> None:
    """The block."""
    sizes, seconds = ((1, 2), 0.05) if sheet.small else ((1, 32, 256), 2.0)
    rates = {}
    for compiled in (False,) if sheet.small else (False, True):
        name = "compiled" if compiled else "plain"
        if sheet.enough(name, 30 if compiled else 5):
            with sheet.trying(name):
                rates[name] = measured(sheet, name, sizes, seconds, compiled)
    if not sheet.small and sheet.enough("disturbed", 10):
        with sheet.trying("disturbed"):
            disturbed(sheet)
    sheet.say(", ".join(f"{name}: {figures(rate)} images/s" for name, rate in rates.items()))


def spec(sheet: Sheet, sizes: tuple[int, ...], seconds: float, compiled: bool) -> BenchSpec:
    side, precision = (32, "fp32") if sheet.small else (256, "bf16")
    method, device = get_method("stfpm"), device_name(sheet.kind)
    return BenchSpec(method, "resnet18", side, precision, device, thread_count(), sizes, seconds, compiled)


def measured(sheet: Sheet, name: str, sizes: tuple[int, ...], seconds: float, compiled: bool) -> float:
    wanted = spec(sheet, sizes, seconds, compiled)
    found = throughput(wanted, open_device(sheet.kind, wanted.precision))
    for one in found["offline"]:
        sheet.row("stfpm resnet18", model=name, **one)
    stages = found["best_batch_stages"]
    single = found["single_stream"]
    sheet.row("latency at batch 1", model=name, **{key: single[key] for key in single if key != "stages"})
    sheet.fact(f"stages of the best batch, {name}", stages)
    spans = [value for key, value in stages.items() if key != "batch_size"]
    sheet.check(f"{name}: each interval holds those before it", spans == sorted(spans))
    sheet.check(f"{name}: batches as asked", [one["batch_size"] for one in found["offline"]] == list(sizes))
    if not sheet.small:
        sheet.fact(f"watch, {name}", {key: found.get(key) for key in ("gpu_before", "gpu_after", "foreign_cpu_share")})
        energy = found.get("energy_per_1000_images_j")
        sheet.check(f"{name}: energy is read", bool(energy), f"{energy} J for 1000 images")
        sheet.check(f"{name}: nothing disturbed it", not found["disturbed"], str(found.get("foreign_gpu_processes")))
    return found["images_per_s"]


def disturbed(sheet: Sheet) -> None:
    """Beside another process at work on the card."""
    other = subprocess.Popen([sys.executable, "-c", BUSY], stdout=subprocess.PIPE, text=True)
    try:
        other.stdout.readline()
        found = throughput(spec(sheet, (32,), 0.5, False), open_device(sheet.kind, "bf16"))
    finally:
        other.kill()
        other.wait()
    detail = f"foreign_gpu_processes {found.get('foreign_gpu_processes')}, cpu {found.get('foreign_cpu_share')}"
    sheet.check("a second process on the card is seen", found["disturbed"] is True, detail)
