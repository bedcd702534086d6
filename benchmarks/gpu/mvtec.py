"""A grid of a third of MVTec AD's size through `harness run`: generated categories, the methods' own recipes in full.

MVTec AD has 15 categories of 242 training and 115 test images on average, of which 84 are defective; here there are 5
of 250 and 115, so a grid of all takes 3 times as long, less what is begun once.
"""

import subprocess
import tempfile
import time
from pathlib import Path

import grids
from sheet import Sheet, figures

METHODS = ["stfpm", "reverse_distillation", "dskd"]
SIDE, TRAIN, GOOD, SPOT, CATEGORIES = 256, 250, 31, 84, 5
SMALL = 32, 8, 2, 3, 2  # on a CPU, and one epoch
FACTOR = 3  # from 5 categories to 15
TARGET_MINUTES = 15
TO_END_S = 10.0  # for records to be read and files to go


def run(sheet: Sheet) -> None:
    """The block."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        side, train, good, spot, categories = SMALL if sheet.small else (SIDE, TRAIN, GOOD, SPOT, CATEGORIES)
        root = grids.write_tree(folder / "data", side, train, good, spot, categories)
        recipe = {"train.epochs": 1} if sheet.small else {"compile": "graph", "precision": "bf16"}
        grid = grids.write_grid(folder / "grid", root, side, {"method": METHODS}, **{"train.select": None}, **recipe)
        cache = {"HARNESS_CACHE": str(folder / "cache")}  # images are checked and decoded too
        started, why = time.perf_counter(), ""
        try:
            done = grids.run(grid, "--devices", sheet.kind, seconds=sheet.left_s - TO_END_S, **cache)
            why = "" if done.returncode == 0 else grids.last_line(done)
        except subprocess.TimeoutExpired as error:
            why = f"ended after {error.timeout:.0f} s"
        told(sheet, grid, len(METHODS) * categories, time.perf_counter() - started, why)


def told(sheet: Sheet, grid: Path, runs: int, seconds: float, why: str) -> None:
    trainings, evaluations = grids.records(grid, "train"), grids.records(grid, "evaluate")
    for method in METHODS:
        own = [one for one in trainings if one.spec["method"]["name"] == method]
        after = [one for one in evaluations if one.spec["train"]["method"]["name"] == method]
        if own:
            sheet.row(
                "trainings",
                method=method,
                runs=len(own),
                epochs=own[0].result["epochs"],
                recorded=sum(one.result.get("graphed", False) for one in own),
                recorded_passes=sum(one.result.get("graphed_passes", 0) for one in own),
                images_per_s=round(sum(one.result["images_per_s"] for one in own) / len(own), 1),
                training_s=round(sum(one.wall_s for one in own), 1),
                evaluation_s=round(sum(one.wall_s + one.result["inspect_s"] for one in after), 1),
            )
    whole = len(evaluations) == runs
    sheet.row("the grid", runs=f"{len(evaluations)} of {runs}", seconds=round(seconds, 1))
    sheet.check(f"{runs} runs end well", whole and not why, why)
    if whole and not sheet.small:  # else it says nothing of MVTec AD
        minutes = FACTOR * seconds / 60
        sheet.row("15 categories", factor=FACTOR, minutes=round(minutes, 2), target_minutes=TARGET_MINUTES)
        sheet.say(
            f"{runs} runs in {figures(seconds)} s, times {FACTOR} {figures(minutes)} minutes for 15 categories, of "
            f"{TARGET_MINUTES} wanted"
        )
