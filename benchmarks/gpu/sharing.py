"""Several runs on one card at a time, with and without MPS, plain and recorded: images per second in sum.

The MPS daemon is one as supervisors have it, with a guard and a folder by user and GPU, and ends with each row; the
system's is left alone, and no share of the card is set.
"""

import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import grids
from sheet import Sheet, figures

from harness.environment import gpus
from harness.mps import DAEMON, PIPE_DIRECTORY, Daemons, folder_of

SIDE, TRAIN = 128, 512
# Workers, with MPS, recorded steps: of four recorded at a time 10,000 images/s in sum are wanted.
WANTED = [
    (1, False, False),
    (4, False, True),
    (4, True, True),
    (4, False, False),
    (4, True, False),
    (1, False, True),
    (2, True, False),
    (2, False, False),
]


def run(sheet: Sheet) -> None:
    """The block."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        side, train = (32, 8) if sheet.small else (SIDE, TRAIN)
        root = grids.write_tree(folder / "data", side, train)
        sums = {}
        wanted = [(1, False, False), (2, False, False)] if sheet.small else WANTED
        for workers, mps, graph in wanted:
            name = f"{workers} {'with' if mps else 'without'} MPS{', recorded' if graph else ''}"
            if not sheet.enough(name, 30):
                continue
            if mps and shutil.which(DAEMON) is None:
                sheet.fact("MPS", f"there is no {DAEMON}")
                continue
            with sheet.trying(name), around(sheet, name, mps) as own:
                place = folder / "grids" / name.replace(" ", "-").replace(",", "")
                sums[name] = together(sheet, place, root, side, workers, graph, mps, own)
            sheet.say(", ".join(f"{name}: {figures(found)} images/s" for name, found in sums.items()))


@contextmanager
def around(sheet: Sheet, name: str, mps: bool) -> Iterator[dict[str, str]]:
    """The environment of `harness run` on the first card, with a daemon of its own or without."""
    if not mps:
        yield {}
        return
    gpu = gpus()[0].uuid
    with Daemons([gpu]) as daemons:
        if gpu in daemons.failures:
            raise RuntimeError(daemons.failures[gpu])
        yield {PIPE_DIRECTORY: daemons.pipes[gpu]}
    sheet.check(f"{name}: its daemon has ended", not folder_of(gpu).exists())


def together(
    sheet: Sheet, folder: Path, root: Path, side: int, workers: int, graph: bool, mps: bool, environment: dict[str, str]
) -> float:
    """Images per second of so many equal runs at a time, each its own worker's only one: the sum of their rates."""
    recipe = {"train.epochs": 2 if sheet.small else 40 if graph else 10, "compile": "graph" if graph else False}
    grid = grids.write_grid(folder, root, side, {"method": ["dskd"], "seed": list(range(workers))}, **recipe)
    started = time.perf_counter()
    device = "cuda:0" if sheet.kind == "cuda" else "cpu"
    options = [
        "--devices",
        device,
        "--runs-per-device",
        str(workers),
        "--no-mps",
    ]  # that of `around` serves all the same
    done = grids.run(grid, *options, seconds=sheet.left_s - 12, **environment)
    found = grids.trainings(grid)
    rates = [record.result["images_per_s"] for record in found]
    sheet.row(
        "runs at a time",
        workers=workers,
        mps=mps,
        served=[record.result.get("mps", False) for record in found],
        recorded=[record.result.get("graphed", False) for record in found],
        images_per_s=round(sum(rates), 1),
        each=rates,
        seconds=round(time.perf_counter() - started, 1),
    )
    name = f"{workers} runs at a time{' with MPS' if mps else ''} end well"
    sheet.check(name, done.returncode == 0 and len(found) == workers, "" if found else grids.last_line(done))
    return sum(rates)
