"""The category `cloth` of tests' tiny data set as it is decoded, here or in a process of its own."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from harness.data import builtin, images, layouts  # noqa: F401  (they register their data sets)
from harness.data.catalog import Source
from harness.data.manifest import describe

SIZE = 40


def load(source: Source) -> images.Category:
    return images.load(source, describe(source, "cloth"), SIZE)


def is_sound(category: images.Category, source: Source) -> bool:
    train, test = category.train, category.test
    pixels = [np.asarray(Image.open(source.folder() / sample.path)) for sample in source.samples("cloth")]
    masks = [np.asarray(Image.open(source.folder() / s.mask)) > 0 for s in source.samples("cloth") if s.mask]
    labels = [sample.defect for sample in (*train.samples, *test.samples)]
    return (
        np.array_equal([*train.images, *test.images], pixels)
        and not test.masks[:3].any()
        and np.array_equal(test.masks[3:], masks)
        and list(test.regions) == [0] * 3 + [1] * 3
        and labels == ["good"] * 9 + ["hole"] * 3
    )


LOAD = """
import sys
from harness.data import builtin, images, layouts
from harness.data.catalog import get_source
from harness.data.manifest import describe
source = get_source({"name": "folder", "root": sys.argv[1]})
try:
    data = describe(source, "cloth")
    print("planned", flush=True)
    sys.stdin.readline()
    category = images.load(source, data, int(sys.argv[2]))
    print("sum", int(category.train.images.sum()), int(category.test.masks.sum()), flush=True)
    sys.stdin.readline()
except Exception as error:
    print(f"{type(error).__name__}: {error}", flush=True)
"""


def loading(root: Path, size: int = SIZE, script: str = LOAD, **environment: str) -> subprocess.Popen[str]:
    """A process of its own that decodes after a line from here, and keeps the category until another one."""
    return subprocess.Popen(
        [sys.executable, "-c", script, str(root), str(size)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | environment,
        cwd=Path(images.__file__).parents[2],
    )


def answer(process: subprocess.Popen[str]) -> str:
    process.stdin.write("\n")
    process.stdin.flush()
    return process.stdout.readline()
