"""A real SLURM cluster of two nodes for the tests of this folder; without root or the packages they skip."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from harness.records import Record, Results
from tests.conftest import ROOT, write_mvtec

SCRIPT = Path(__file__).with_name("cluster.sh")
NEEDED = ("slurmctld", "slurmd", "slurmdbd", "munged", "mariadbd", "sbatch", "ip", "unshare", "nsenter")
SMALL = ("--cpus-per-task=1", "--mem=4G", "--gpus-per-node=1")


@dataclass
class Cluster:
    folder: Path

    def do(self, *words: str) -> None:
        """`kill-node`, `start-node` and the like."""
        subprocess.run([SCRIPT, *words], check=True, capture_output=True, timeout=60)

    def sbatch(self, *words: object, cwd: Path) -> str:
        """Submit; the job's id."""
        return call("sbatch", "--parsable", *words, cwd=cwd).strip()

    def states(self, job: str) -> set[str]:
        """Of the job, or of all elements of an array."""
        return set(call("squeue", "--noheader", "--array", "--states=all", f"--jobs={job}", "--format=%T").split())

    def wait(self, job: str, seconds: float = 300) -> set[str]:
        """For all elements of a job to end."""
        await_(lambda: not self.states(job) & {"PENDING", "RUNNING", "COMPLETING", "CONFIGURING", "REQUEUED"}, seconds)
        return self.states(job)

    def output(self, cwd: Path) -> str:
        """All that the jobs have written, for a failed test to tell."""
        files = [*cwd.glob("slurm-*.out"), *cwd.glob("slurm-logs/*"), *cwd.glob("runs/*/slurm/*.[ol]*")]
        return "\n".join(f"== {path}\n{path.read_text()}" for path in files)


def call(*words: object, cwd: Path | None = None, expect: int = 0) -> str:
    done = subprocess.run([*map(str, words)], capture_output=True, text=True, cwd=cwd, timeout=300)
    assert done.returncode == expect, f"{words}\n{done.stdout}{done.stderr}"
    return done.stdout


def harness(*words: object, cwd: Path, expect: int = 0) -> str:
    return call("harness", *words, cwd=cwd, expect=expect)


def await_(condition: Callable[[], object], seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.2)


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory, cache: Path) -> Iterator[Cluster]:
    # Under /tmp, for the path of a socket must be short.
    folder = Path(f"/tmp/harness-slurm-{os.getpid()}")
    missing = [name for name in NEEDED if shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin:/sbin") is None]
    if missing:
        pytest.skip(f"not installed: {', '.join(missing)} (tests/slurm/cluster.sh install)")
    if os.geteuid():
        pytest.skip("a SLURM cluster on one machine needs root")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CLUSTER_DIR", str(folder))
        patch.setenv("SLURM_CONF", str(folder / "etc" / "slurm.conf"))
        patch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")
        patch.setenv("OMP_NUM_THREADS", "1")
        up = subprocess.run([SCRIPT, "up"], capture_output=True, text=True, timeout=120)
        try:
            if up.returncode and "Operation not permitted" in up.stderr:
                pytest.skip("this machine permits no namespaces")
            assert up.returncode == 0, up.stderr
            yield Cluster(folder)
        finally:
            subprocess.run([SCRIPT, "down"], check=True, timeout=60)


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_mvtec(tmp_path_factory.mktemp("images"))


@pytest.fixture
def work(tmp_path: Path, images: Path) -> Path:
    """A folder as on a login node: the scripts and a grid of six quick runs."""
    shutil.copytree(ROOT / "slurm", tmp_path / "slurm")
    write(tmp_path / "grid.yaml", images)
    return tmp_path


def write(path: Path, root: Path, epochs: int = 2, seeds: int = 6, **defaults: object) -> Path:
    settings = {"image_size": 32, "weights": "random", "train.select": "last", "precision": "fp32"}
    dataset = {"name": "folder", "root": str(root)}
    document = {
        "name": "tiles",
        "axes": {"method": ["stfpm"], "backbone": ["resnet18"], "dataset": [dataset], "seed": list(range(seeds))},
        "defaults": settings | {"train.epochs": epochs, "train.batch_size": 4} | defaults,
        "save": {"weights": False},
    }
    path.write_text(yaml.safe_dump(document, sort_keys=False))
    return path


def evaluations(folder: Path) -> dict[str, Record]:
    return {item.id: item for item in Results(folder) if isinstance(item, Record) and item.kind == "evaluate"}


def metrics(folder: Path) -> dict[str, object]:
    """The numbers of every evaluation, less what a clock decides."""
    return {
        key: {name: value for name, value in record.result.items() if name != "inspect_s"}
        for key, record in evaluations(folder).items()
    }
