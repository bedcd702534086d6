"""Grids that blocks of `prove.py` run through the command line, as users do, on images that they write."""

import os
import subprocess
import sys
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image
from scene import pixels

from harness.records import Failure, Record, Results


def write_tree(root: Path, side: int, train: int, good: int = 2, spot: int = 2, categories: int = 1) -> Path:
    """Categories `noise`, `noise2`, ... in MVTec AD's layout: so many training images of each, and so many good and
    defective test images, with masks. They repeat after 64 images for training and 64 for tests.
    """
    tested = good + spot
    images = pixels(min(train, 64) + min(tested, 64), side).numpy()
    for category in range(categories):
        shifted = np.roll(images, category * side // categories, axis=2)  # other bytes in each
        base = root / (f"noise{category + 1}" if category else "noise")
        for folder in ("train/good", "test/good", "test/spot", "ground_truth/spot"):
            (base / folder).mkdir(parents=True)
        for number in range(train):
            save(base / f"train/good/{number:04d}.png", shifted[number % min(train, 64)])
        for number in range(tested):
            image = shifted[-1 - number % min(tested, 64)]
            if number < good:
                save(base / f"test/good/{number:04d}.png", image)
                continue
            image, mask = image.copy(), np.zeros((side, side), np.uint8)
            image[: side // 4, : side // 4] = mask[: side // 4, : side // 4] = 255
            save(base / f"test/spot/{number:04d}.png", image)
            save(base / f"ground_truth/spot/{number:04d}_mask.png", mask)
    return root


def save(path: Path, image: np.ndarray) -> None:
    Image.fromarray(image).save(path, compress_level=1)


def write_grid(folder: Path, root: Path, side: int, axes: dict[str, Any], **defaults: Any) -> Path:
    """A grid file. `defaults`: None leaves one out, for the method's own."""
    folder.mkdir(parents=True, exist_ok=True)
    axes = {"backbone": ["resnet18"], "dataset": [{"name": "folder", "root": str(root)}], "seed": [0]} | axes
    common = {"image_size": side, "weights": "random", "train.select": "last"} | defaults
    given = {key: value for key, value in common.items() if value is not None}
    path = folder / "grid.yaml"
    path.write_text(yaml.safe_dump({"name": "proof", "axes": axes, "defaults": given}))
    return path


def command(grid: Path, *options: str) -> list[str]:
    out = str(grid.parent / "runs")
    return [sys.executable, "-m", "harness", "run", "--grid", str(grid), "--out", out, *options]


def run(grid: Path, *options: str, seconds: float = 120, **environment: str) -> subprocess.CompletedProcess[str]:
    """`harness run`, ended after so many seconds. Raises TimeoutExpired."""
    surroundings = os.environ | environment
    return subprocess.run(command(grid, *options), capture_output=True, text=True, timeout=seconds, env=surroundings)


def trainings(grid: Path) -> list[Record]:
    return records(grid, "train")


def records(grid: Path, kind: str) -> list[Record]:
    found = Results(grid.parent / "runs" / "proof")
    return [item for item in found if isinstance(item, Record) and item.kind == kind]


def reasons(grid: Path) -> dict[str, int]:
    """Of all failed attempts, also those that were tried again with success."""
    results, found = Results(grid.parent / "runs" / "proof"), Counter()
    for path in results.folder.glob("*/attempts/*.json"):
        with suppress(Exception):
            found[yaml.safe_load(path.read_text())["reason"]] += 1
    for item in results:
        if isinstance(item, Failure):
            found[f"left as failed: {item.reason}"] += 1
    return dict(found)


def last_line(done: subprocess.CompletedProcess[str]) -> str:
    """Of what a command printed; its complaint, if it had one."""
    lines = (done.stderr.strip() or done.stdout.strip()).splitlines()
    return " ".join(lines[-1].split())[:300] if lines else ""
