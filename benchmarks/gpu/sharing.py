"""Several runs on one card at a time, with and without MPS: images per second in sum.

The MPS daemon is an own one, with its pipes and logs in a folder of its own, and ends with the block; the system's is
left alone, and no share of the card is set.
"""

import shutil
import tempfile
import time
from contextlib import nullcontext
from pathlib import Path

import grids
from sheet import Sheet, figures

from harness.doctor.sharing import DAEMON, daemon

SIDE, TRAIN = 128, 512


def run(sheet: Sheet) -> None:
    """The block."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        side, train = (32, 8) if sheet.small else (SIDE, TRAIN)
        root = grids.write_tree(folder / "data", side, train)
        sums = {}
        wanted = [(1, False), (2, False)] if sheet.small else [(1, False), (4, False), (4, True), (2, True), (2, False)]
        for workers, mps in wanted:
            name = f"{workers} {'with' if mps else 'without'} MPS"
            if not sheet.enough(name, 30):
                continue
            if mps and shutil.which(DAEMON) is None:
                sheet.fact("MPS", f"there is no {DAEMON}")
                continue
            with sheet.trying(name), daemon(folder / name.replace(" ", "-")) if mps else nullcontext({}) as own:
                sums[name] = together(sheet, folder / "grids" / name.replace(" ", "-"), root, side, workers, mps, own)
            sheet.say(", ".join(f"{name}: {figures(found)} images/s" for name, found in sums.items()))


def together(
    sheet: Sheet, folder: Path, root: Path, side: int, workers: int, mps: bool, environment: dict[str, str]
) -> float:
    """Images per second of so many equal runs at a time, each its own worker's only one: the sum of their rates."""
    epochs = {"train.epochs": 2 if sheet.small else 10}
    grid = grids.write_grid(folder, root, side, {"method": ["dskd"], "seed": list(range(workers))}, **epochs)
    started = time.perf_counter()
    done = grids.run(
        grid, "--devices", sheet.kind, "--runs-per-device", str(workers), seconds=sheet.left_s - 12, **environment
    )
    found = grids.trainings(grid)
    rates = [record.result["images_per_s"] for record in found]
    sheet.row(
        "runs at a time",
        workers=workers,
        mps=mps,
        images_per_s=round(sum(rates), 1),
        each=rates,
        seconds=round(time.perf_counter() - started, 1),
    )
    name = f"{workers} runs at a time{' with MPS' if mps else ''} end well"
    sheet.check(name, done.returncode == 0 and len(found) == workers, "" if found else grids.last_line(done))
    return sum(rates)
