"""Shared by all tests: a cache of their own, tiny data sets, and the folder beside the checkout, where there is one."""

import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from harness import mps

os.environ["HF_HUB_OFFLINE"] = "1"
for number in (signal.SIGINT, signal.SIGHUP):  # ignored under nohup and in the background, by all that tests start too
    if signal.getsignal(number) == signal.SIG_IGN:
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
# The built-in data set as small as it gets: at its full size it takes 20 s to draw, in each process of a test run.
SURFACES = {"name": "surfaces", "side": 32, "train": 6, "test_good": 3, "test_per_defect": 1}
ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared"


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the harness caches goes to a folder of this session, never to the user's."""
    folder = tmp_path_factory.mktemp("cache")
    os.environ["HARNESS_CACHE"] = str(folder)
    return folder


@contextmanager
def jobs_in_this_process() -> Iterator[None]:
    """`harness run` without workers, which take seconds to import torch: where what a grid leaves is what is tested,
    not who does it. The jobs come one after the other as a worker would get them, and none is tried again. Throughput
    is measured by a few passes, whose numbers say nothing.
    """

    def supervise(phases: Any, listeners: Any, *_: object) -> bool:
        from harness.job import Stop, decode, encode
        from harness.run.execute import execute
        from harness.run.warm import Warm

        patch.setattr("harness.run.throughput.WARM_UP", 1)
        patch.setattr("harness.run.throughput.LEAST", 2)
        warm = Warm()
        for job in (decode(encode(job)) for phase in phases for job, _ in phase.jobs):
            execute(job, lambda event, job=job: [listen(job, event) for listen in listeners], Stop(), warm)
        return False

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("harness.launch.supervisor.supervise", supervise)
        yield


@pytest.fixture
def without_workers() -> Iterator[None]:
    with jobs_in_this_process():
        yield


@pytest.fixture
def one_thread() -> Iterator[Callable[[], None]]:
    """Lets torch compute with one thread, as each process of several does: their number decides the last bits."""
    import torch

    threads = torch.get_num_threads()
    yield lambda: torch.set_num_threads(1)
    torch.set_num_threads(threads)


def shared(name: str) -> Path:
    """A file or folder beside the checkout; skips the test where it is not there."""
    path = SHARED / name
    if not path.exists():
        pytest.skip(f"../shared/{name} is not there")
    return path


@pytest.fixture(scope="session")
def mtd_root() -> Path:
    return shared("data/mtd")


@pytest.fixture(scope="session")
def imagenet_weights() -> Path:
    return shared("weights/resnet18_imagenet.safetensors")


def save(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def texture(seed: int, side: int = 40, defect: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """A striped image (side, side, 3) and its mask (side, side): a bright square where it is defective."""
    draw = np.random.default_rng(seed)
    stripes = 100 + 40 * np.sin(np.arange(side) / 2 + draw.uniform(0, 6))
    image = (stripes[:, None, None] + draw.normal(0, 6, (side, side, 3))).clip(0, 255)
    mask = np.zeros((side, side), bool)
    if defect:
        row, column = draw.integers(0, side - 12, 2)
        mask[row : row + 12, column : column + 12] = True
        image[mask] = 250
    return image.astype(np.uint8), mask


def write_mvtec(root: Path, category: str = "cloth", train: int = 6, good: int = 3, defects: int = 3) -> Path:
    """A tiny tree in MVTec AD's layout."""
    base = root / category
    for i in range(train):
        save(base / "train" / "good" / f"{i:03d}.png", texture(i)[0])
    for i in range(good):
        save(base / "test" / "good" / f"{i:03d}.png", texture(100 + i)[0])
    for i in range(defects):
        image, mask = texture(200 + i, defect=True)
        save(base / "test" / "hole" / f"{i:03d}.png", image)
        save(base / "ground_truth" / "hole" / f"{i:03d}_mask.png", mask.astype(np.uint8) * 255)
    return root


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    return write_mvtec(tmp_path / "data")


@pytest.fixture
def write_grid(tmp_path: Path) -> Callable[..., Path]:
    """Writes a grid file: one quick run of one epoch, with the sections given put over it."""

    def write(root: Path | None = None, **sections: object) -> Path:
        dataset = {"name": "folder", "root": str(root)} if root else SURFACES | {"categories": ["granite"]}
        axes = {"method": ["stfpm"], "backbone": ["resnet18"], "dataset": [dataset], "seed": [0]}
        defaults = {"image_size": 32, "weights": "random", "train.epochs": 1, "train.select": "last"}
        document = {"name": "tiny", "axes": axes, "defaults": defaults | {"precision": "fp32"}}
        for key, value in sections.items():
            merged = {**document[key], **value} if isinstance(value, dict) and key in document else value
            document[key] = merged
        path = tmp_path / "grid.yaml"
        path.write_text(yaml.safe_dump(document, sort_keys=False))
        return path

    return write


@pytest.fixture
def mps_place(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder for MPS daemons, stand-ins of `tests/scripts/mps`, of which nothing is left when a test ends."""
    short = Path(tempfile.mkdtemp(prefix="mps-"))  # pytest's own is too long for a socket
    monkeypatch.setattr(tempfile, "tempdir", str(short))
    monkeypatch.setattr(mps, "PIPES", short / "system")
    monkeypatch.setenv("TMPDIR", str(short))
    monkeypatch.setenv("PATH", f"{ROOT / 'tests' / 'scripts' / 'mps'}:{os.environ['PATH']}")
    monkeypatch.setenv("FAKE_MPS_LOG", str(short / "log"))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    monkeypatch.delenv(mps.PIPE_DIRECTORY, raising=False)
    yield short
    left = mps_processes(short)
    for pid in left:
        with suppress(OSError):
            os.kill(pid, signal.SIGKILL)
    folders = [path.name for path in short.iterdir() if path.name.startswith("harness-mps")]
    shutil.rmtree(short)
    assert not left
    assert not folders


def mps_processes(place: Path) -> list[int]:
    """Daemons of MPS, their servers and guards that have to do with the place."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            words = (path / "cmdline").read_bytes()
            around = (path / "environ").read_bytes()
            if str(place).encode() in words + around and (b"nvidia-cuda-mps" in words or b"harness.mps" in words):
                found.append(int(path.name))
    return found
