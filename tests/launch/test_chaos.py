"""Minutes of random faults: every run is done once in the end, no record is torn, and the numbers are the undisturbed.

pytest -m slow tests/launch/test_chaos.py -s        (CHAOS_SEED, _FAULTS, _RUNS and _EPOCHS may be set)
"""

import json
import os
import random
import resource
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import yaml

from harness.records import Failure, Record, Results, parse_record
from tests.conftest import write_mvtec
from tests.launch.test_run import _children, command

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]
SEED = int(os.environ.get("CHAOS_SEED", "0"))
FAULTS = int(os.environ.get("CHAOS_FAULTS", "200"))
RUNS = int(os.environ.get("CHAOS_RUNS", "60"))
EPOCHS = int(os.environ.get("CHAOS_EPOCHS", "40"))
OPTIONS = ["--devices", "cpu:2", "--retries", "3", "--timeout", "1", "--checkpoint-every", "0.03"]


def numbers(folder: Path) -> dict[str, object]:
    """By id, all that no clock decides."""
    found = {}
    for item in Results(folder):
        if isinstance(item, Record) and item.kind == "evaluate":
            found[item.id] = {key: value for key, value in item.result.items() if key != "inspect_s"}
        elif isinstance(item, Record):
            found[item.id] = (item.result["loss_first"], item.result["loss_last"], item.result["kept_epoch"])
    return found


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of its own for the results, where one can be mounted; else an ordinary folder that is never full.

    A checkpoint of DSKD is 220 MB, there are two workers, and each writes the new one beside the old.
    """
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3g", "tmpfs", str(folder)], capture_output=True)
    try:
        yield folder
    finally:
        if mounted.returncode == 0:
            subprocess.run(["umount", "-l", str(folder)], check=True)


class Chaos:
    """A supervisor that is started again whenever it ended, and what befalls it."""

    def __init__(self, grid: Path, disk: Path) -> None:
        self.line = command(grid, *OPTIONS)
        self.line[self.line.index("--out") + 1] = str(disk)
        self.disk, self.draw = disk, random.Random(SEED)
        self.log = (grid.parent / "log.txt").open("w")
        self.console = open("/dev/full", "w")  # noqa: SIM115 - it is full for as long as there are supervisors
        self.scratch = Path(tempfile.mkdtemp(prefix="chaos-"))
        self.strangers: list[socket.socket] = []
        self.process: subprocess.Popen[bytes] | None = None
        self.codes: Counter[int] = Counter()
        self.faults: Counter[str] = Counter()

    def supervise(self) -> None:
        if self.process is None or self.process.poll() is not None:
            if self.process is not None:
                self.codes[self.process.returncode] += 1
            environment = os.environ | {"TMPDIR": str(self.scratch)}
            self.process = subprocess.Popen(self.line, stdout=self.console, stderr=self.log, env=environment)

    def settle(self) -> None:
        """No more faults until the supervisor has ended."""
        self.process.send_signal(signal.SIGCONT)
        self.process.wait(timeout=1800)

    def fault(self) -> None:
        kinds: list[tuple[str, Callable[[], None], int]] = [
            ("worker SIGKILL", lambda: self._signal_worker(signal.SIGKILL), 6),
            ("worker SIGTERM", lambda: self._signal_worker(signal.SIGTERM), 4),
            ("worker SIGSTOP", self._stop_worker, 2),
            ("worker out of memory", self._limit_memory, 3),
            ("supervisor SIGKILL", lambda: self.process.send_signal(signal.SIGKILL), 3),
            ("supervisor SIGTERM", lambda: self.process.send_signal(signal.SIGTERM), 2),
            ("supervisor SIGSTOP", self._stop_supervisor, 1),
            ("disk full", self._fill_disk, 1),
            ("stranger at the door", self._knock, 2),
        ]
        name, do, _ = self.draw.choices(kinds, [weight for *_, weight in kinds])[0]
        with suppress(ProcessLookupError, IndexError, OSError):
            do()
            self.faults[name] += 1

    def _worker(self) -> int:
        return self.draw.choice(_children(self.process.pid))

    def _signal_worker(self, number: int) -> None:
        os.kill(self._worker(), number)

    def _stop_worker(self) -> None:
        worker = self._worker()
        os.kill(worker, signal.SIGSTOP)
        if self.draw.random() < 0.8:  # the others are found out by their time limit
            time.sleep(self.draw.uniform(0.1, 2))
            os.kill(worker, signal.SIGCONT)

    def _stop_supervisor(self) -> None:
        self.process.send_signal(signal.SIGSTOP)
        time.sleep(self.draw.uniform(0.1, 3))
        self.process.send_signal(signal.SIGCONT)

    def _limit_memory(self) -> None:
        worker = self._worker()
        used = int(Path(f"/proc/{worker}/statm").read_text().split()[0]) * resource.getpagesize()
        resource.prlimit(worker, resource.RLIMIT_AS, (used + 2**22, used + 2**22))

    def _knock(self) -> None:
        """Connect and stay silent, or talk nonsense."""
        door = max(self.scratch.glob("harness-*/door"), key=lambda path: path.stat().st_mtime, default=None)
        if door is None:
            raise OSError("nobody listens")
        stranger = socket.socket(socket.AF_UNIX)
        stranger.connect(str(door))
        self.strangers = [*self.strangers[-20:], stranger]
        if self.draw.random() < 0.5:
            stranger.sendall(b"GET / HTTP/1.1\r\n\r\n")

    def _fill_disk(self) -> None:
        if not os.path.ismount(self.disk):
            raise OSError("it would be the machine's own")
        filler = self.disk / "filler"
        try:
            with suppress(OSError), filler.open("wb") as stream:
                while True:
                    stream.write(bytes(2**20))
            time.sleep(self.draw.uniform(0.5, 3))
        finally:
            filler.unlink()


def test_nothing_is_lost_and_nothing_is_wrong(tmp_path: Path, disk: Path) -> None:
    root = write_mvtec(write_mvtec(tmp_path / "data", "плитка"), "瓷砖")  # names in two scripts
    axes = {"method": ["stfpm", "dskd"], "backbone": ["resnet18"], "dataset": [{"name": "folder", "root": str(root)}]}
    axes["seed"] = list(range(RUNS // 4))
    defaults = {"image_size": 32, "weights": "random", "precision": "fp32"}
    defaults |= {"train.epochs": EPOCHS, "train.batch_size": 4}
    document = {"name": "tiny", "axes": axes, "defaults": defaults, "save": {"weights": False}}
    calm, wild = tmp_path / "calm" / "grid.yaml", tmp_path / "wild" / "grid.yaml"
    for grid in (calm, wild):
        grid.parent.mkdir()
        grid.write_text(yaml.safe_dump(document))
    process = subprocess.run(command(calm, "--devices", "cpu:2"), capture_output=True, text=True)
    assert process.returncode == 0, process.stdout + process.stderr
    expected = numbers(calm.parent / "runs" / "tiny")
    assert len(expected) == 2 * RUNS
    chaos = Chaos(wild, disk)
    seen: dict[Path, bytes] = {}
    deadline = time.monotonic() + 3000
    while chaos.faults.total() < FAULTS:
        assert time.monotonic() < deadline
        chaos.supervise()
        time.sleep(chaos.draw.uniform(0.5, 8))  # a worker needs about half of that to start
        chaos.fault()
        for path in disk.glob("tiny/*/record.json"):  # once there, a record is whole and stays as it is
            content = path.read_bytes()
            assert seen.setdefault(path, content) == content
            parse_record(content.decode())
        if len(seen) == 2 * RUNS:  # the other faults befall the grid anew
            chaos.settle()
            assert numbers(disk / "tiny") == expected
            shutil.rmtree(disk / "tiny")
            seen.clear()
    chaos.settle()
    for _ in range(3):
        if len(numbers(disk / "tiny")) < 2 * RUNS:
            subprocess.run(chaos.line, stdout=chaos.log, stderr=chaos.log)
    reasons = Counter(json.loads(path.read_text())["reason"] for path in disk.glob("tiny/*/attempts/*.json"))
    left = [item for item in Results(disk / "tiny") if isinstance(item, Failure)]
    counts = (
        f"{chaos.faults.total()} faults {dict(chaos.faults)}; supervisors ended {dict(chaos.codes)}; {dict(reasons)}"
    )
    (tmp_path / "chaos.txt").write_text(counts)
    print(f"\n{counts}")  # noqa: T201 - what a reader of the log wants to know
    assert not left
    assert numbers(disk / "tiny") == expected
    assert not list(disk.glob("tiny/*/claim.json"))
    assert not list(disk.glob("tiny/*/checkpoint*"))
