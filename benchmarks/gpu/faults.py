"""What faults on a card cost a grid: an assert on the device, no memory, a card that is not there, a killed worker."""

import os
import signal
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import grids
from grids import command, last_line, reasons, trainings, write_grid, write_tree
from sheet import Sheet

from harness.mps import children
from harness.run_folder import RunFolder, read_curve

PLUGIN = '''
import os
from pathlib import Path

import torch

from dskd import Students, get_method, register_method, replace


@register_method(replace(get_method("stfpm"), {"name": "asserting"}))
class Asserting(Students):
    """STFPM whose second training reads beyond a table on the device"""

    number = None

    def forward(self, images, teacher):
        if self.training and images.device.type != "meta" and self.number is None:
            seen = Path(os.environ["PROVE_FAULTS"])
            self.number = len(list(seen.iterdir()))
            (seen / str(self.number)).touch()
            if self.number == 1:
                images = images + torch.zeros(4, device=images.device)[torch.full((1,), 9, device=images.device)]
        return super().forward(images, teacher)
'''
HOLD = """
import sys, torch
free, _ = torch.cuda.mem_get_info()
held = torch.empty(int(free - 2 * 2**30), dtype=torch.uint8, device="cuda")
print("held", flush=True)
sys.stdin.read()
"""


def faults(sheet: Sheet, folder: Path) -> None:
    side, train = (32, 8) if sheet.small else (64, 256)
    root = write_tree(folder / "data", side, train)
    with ThreadPoolExecutor(1 if sheet.small else 3) as beside:
        tasks = {
            "assert on the device": beside.submit(device_assert, sheet, folder, root, side),
            "a card that is not there": beside.submit(no_card, sheet, folder, root, side),
            "killed and resumed": beside.submit(killed, sheet, folder, root, side),
        }
        for name, task in tasks.items():
            with sheet.trying(name):
                task.result()
    if not sheet.small and sheet.enough("no memory", 20):
        with sheet.trying("no memory"):
            no_memory(sheet, folder, root)


def device_assert(sheet: Sheet, folder: Path, root: Path, side: int) -> None:
    """Six runs, of which the second one's first attempt breaks the context of the process that it is in."""
    seen, plugin = folder / "seen", folder / "asserting.py"
    seen.mkdir()
    plugin.write_text(PLUGIN)
    axes = {"method": ["asserting"], "seed": list(range(6))}
    grid = write_grid(folder / "assert", root, side, axes, **{"train.epochs": 2})
    done = grids.run(
        grid, "--devices", sheet.kind, "--plugin", str(plugin), PROVE_FAULTS=str(seen), seconds=sheet.left_s
    )
    count, why = len(trainings(grid)), reasons(grid)
    # On a CPU it is an ordinary error, which no second attempt is spent on.
    sheet.check("an assert on the device costs no run", count == (5 if sheet.small else 6), f"{count} of 6 done, {why}")
    sheet.fact("a device assert in run 2 of 6", f"{count} done, attempts {why}, exit code {done.returncode}")


def no_card(sheet: Sheet, folder: Path, root: Path, side: int) -> None:
    grid = write_grid(folder / "no-card", root, side, {"method": ["stfpm"]}, **{"train.epochs": 1})
    done = grids.run(grid, "--devices", "cuda", CUDA_VISIBLE_DEVICES="7", seconds=sheet.left_s)
    sheet.check("a card that is not there is refused", done.returncode == 2, f"{done.returncode}: {last_line(done)}")
    if sheet.small:
        return
    done = grids.run(grid, "--devices", "auto", CUDA_VISIBLE_DEVICES="7", seconds=sheet.left_s)
    where = [record.result["device_type"] for record in trainings(grid)]
    sheet.check("so it is with --devices auto", done.returncode == 2, f"{done.returncode}, {where}: {last_line(done)}")


def killed(sheet: Sheet, folder: Path, root: Path, side: int) -> None:
    """SIGKILL to worker and supervisor within a training; the next call ends with the numbers of an undisturbed one."""
    epochs = {"train.epochs": 12 if sheet.small else 80, "train.batch_size": 4 if sheet.small else 32}
    both = [write_grid(folder / name, root, side, {"method": ["stfpm"]}, **epochs) for name in ("whole", "broken")]
    options = ("--devices", sheet.kind, "--checkpoint-every", "0.005")
    grids.run(both[0], *options, seconds=sheet.left_s)
    process = subprocess.Popen(command(both[1], *options), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    broken = both[1].parent / "runs" / "proof"
    while process.poll() is None and not list(broken.glob("*/checkpoint.pt")):
        time.sleep(0.01)
    workers = children(process.pid)
    for pid in (process.pid, *workers):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    process.wait()
    time.sleep(1)
    grids.run(both[1], *options, seconds=sheet.left_s)
    (whole,), (resumed,) = map(trainings, both)
    losses = [
        [epoch["loss"] for epoch in read_curve(RunFolder(grid.parent / "runs" / "proof" / record.id), [])]
        for grid, record in zip(both, (whole, resumed), strict=True)
    ]
    sheet.check("it was killed within the training", resumed.result.get("resumed", 0) > 0)
    sheet.check("the resumed training's losses are those of an undisturbed one", losses[0] == losses[1])


def no_memory(sheet: Sheet, folder: Path, root: Path) -> None:
    """Another process holds all memory of the card but 2 GiB."""
    holder = subprocess.Popen([sys.executable, "-c", HOLD], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        sheet.fact("the other process says", holder.stdout.readline().strip())
        sizes = {"train.epochs": 1, "train.batch_size": 192}
        grid = write_grid(folder / "memory", root, 256, {"method": ["stfpm"]}, **sizes)
        grids.run(grid, "--devices", "cuda", "--retries", "0", seconds=sheet.left_s)
    finally:
        holder.kill()
        holder.wait()
    why = reasons(grid)
    sheet.check("lack of memory is recorded as that", "out_of_memory" in why or not why, f"{why or 'it fitted'}")


def run(sheet: Sheet) -> None:
    """The block."""
    with tempfile.TemporaryDirectory() as scratch:
        faults(sheet, Path(scratch))
    failed = sum(not one["ok"] for one in sheet.found["checks"])
    sheet.say(f"{len(sheet.found['checks']) - failed} of {len(sheet.found['checks'])} hold")
