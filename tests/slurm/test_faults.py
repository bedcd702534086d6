"""A sweep of 24 runs under every fault that a cluster has in store: each run ends done once, to the same numbers.

pytest -m 'slow and slurm' tests/slurm/test_faults.py -s        prints the figures of benchmarks/results/slurm.md
"""

import json
import re
import statistics
import subprocess
import time
from collections import Counter
from datetime import datetime
from pathlib import Path

import pytest

from harness.launch.progress import read_supervisors
from harness.records import Failure, Results
from tests.conftest import write_mvtec
from tests.slurm.conftest import SMALL, Cluster, await_, call, harness, metrics, write

pytestmark = [pytest.mark.slurm, pytest.mark.slow, pytest.mark.timeout(1800)]
RUNS, SHARDS, EPOCHS = 24, 3, 200  # long enough for all faults to fall into the sweep
JOBS = re.compile(r"jobs (\d+), leaderboard (\d+)")


class Sweep:
    """A submitted sweep and what befalls it."""

    def __init__(self, cluster: Cluster, work: Path, *options: str) -> None:
        self.cluster, self.work, self.options = cluster, work, options
        self.folder = work / "runs" / "tiles"
        self.faults: Counter[str] = Counter()
        self.lost_s: dict[str, list[float]] = {}
        self.submissions = 0
        self.submit()

    def submit(self) -> None:
        words = [word for option in (*SMALL, *self.options) for word in ("--sbatch", option.removeprefix("--"))]
        line = ["submit", "--grid", "grid.yaml", "--shards", SHARDS, *words]
        output = harness(*line, "--", "--checkpoint-every", "0.05", cwd=self.work)
        self.job, self.last = JOBS.search(output).groups()
        self.submissions += 1

    def training(self, *, on: str | None = None) -> tuple[str, str]:
        """Element and node of a job that is at a training, as soon as there is one."""
        found: list[tuple[str, str]] = []

        def look() -> bool:
            there = {row.split()[0] for row in self._queue() if row.split()[1] == "RUNNING"}
            found[:] = [
                (shard.job, shard.host)
                for shard, age_s in read_supervisors(self.folder)
                if age_s < 10
                and shard.job in there
                and any(run.note for run in shard.running)
                and on in (None, shard.host)
            ]
            return bool(found)

        await_(look, 300)
        return found[0]

    def befall(self, name: str, *victims: str) -> None:
        """Note the fault, and how long ago the trainings of these elements (or nodes) were saved or started."""
        self.faults[name] += 1
        for shard, age_s in read_supervisors(self.folder):
            for run in shard.running if {shard.job, shard.host} & set(victims) and age_s < 10 else ():
                saved = self.folder / run.id / "checkpoint.pt"
                since = datetime.fromisoformat(shard.started_at).timestamp()
                if saved.exists():
                    since = max(since, saved.stat().st_mtime)
                self.lost_s.setdefault(name, []).append(round(time.time() - since, 1))

    def time_limits(self) -> int:
        """How many supervisors were told to stop by USR1: what ends a step by TERM leaves a line of slurmstepd."""
        texts = [path.read_text() for path in self.folder.glob("slurm/*-start*.log")]
        return sum("\ninterrupted: " in text and "slurmstepd" not in text for text in texts)

    def state(self, element: str) -> str:
        return next((row.split()[1] for row in self._queue() if row.split()[0] == element), "")

    def starts(self, element: str) -> int:
        return len(list(self.folder.glob(f"slurm/{element}-start*")))

    def _queue(self) -> list[str]:
        return call("squeue", "--me", "--noheader", "--array", "--states=all", "--format=%i %T").splitlines()


def test_every_run_ends_done_once_whatever_happens(cluster: Cluster, tmp_path: Path, work: Path) -> None:
    calm_work = tmp_path / "calm"
    calm_work.mkdir()
    images = write_mvtec(write_mvtec(tmp_path / "images", "плитка"), "瓷砖")  # names in two scripts
    for folder in (calm_work, work):
        write(folder / "grid.yaml", images, EPOCHS, RUNS // 2)
    began = time.monotonic()
    calm = Sweep(cluster, calm_work)
    assert cluster.wait(calm.last, 900) == {"COMPLETED"}
    calm_s = time.monotonic() - began
    expected = metrics(calm.folder)
    assert len(expected) == RUNS

    began = time.monotonic()
    sweep = Sweep(cluster, work, "--partition=low", "--time=2", "--signal=USR1@30")
    await_(sweep.time_limits, 200)
    _requeue(sweep)
    _kill_node(sweep)
    _preempt(sweep)
    _kill_slurmd(sweep)
    cancelled = _cancel(sweep)
    cluster.wait(sweep.last, 900)
    assert sweep.state(cancelled) == "CANCELLED"
    while subprocess.run(["harness", "status", "grid.yaml"], cwd=work, capture_output=True).returncode:
        assert sweep.submissions < 4, cluster.output(work)
        sweep.submit()
        cluster.wait(sweep.last, 900)
    wild_s = time.monotonic() - began
    sweep.faults["time limit"] = sweep.time_limits()
    assert metrics(sweep.folder) == expected
    assert not [item for item in Results(sweep.folder) if isinstance(item, Failure)]
    assert not list(sweep.folder.glob("*/claim.json"))
    assert (sweep.folder / "leaderboard.txt").read_text() == harness("leaderboard", "runs/tiles", cwd=work)
    _print(calm, calm_s, sweep, wild_s)


def _requeue(sweep: Sweep) -> None:
    element, _ = sweep.training()
    before = sweep.starts(element)
    sweep.befall("scontrol requeue", element)
    call("scontrol", "requeue", element)
    await_(lambda: sweep.starts(element) > before)


def _kill_node(sweep: Sweep) -> None:
    element, node = sweep.training()
    sweep.befall("kill-node", node)
    sweep.cluster.do("kill-node", node)
    await_(lambda: sweep.state(element) != "RUNNING")
    sweep.cluster.do("start-node", node)


def _preempt(sweep: Sweep) -> None:
    _, node = sweep.training()
    sweep.befall("preemption")
    job = sweep.cluster.sbatch(f"--nodelist={node}", "--exclusive", "--mem=0", "--wrap=sleep 2", cwd=sweep.work)
    sweep.cluster.wait(job)


def _kill_slurmd(sweep: Sweep) -> None:
    """The old attempt lives on while the new one is at the same runs."""
    element, node = sweep.training()
    before = sweep.starts(element)
    sweep.befall("kill-slurmd", node)
    sweep.cluster.do("kill-slurmd", node)
    await_(lambda: sweep.starts(element) > before, 120)
    sweep.training()
    old = [shard for shard, age_s in read_supervisors(sweep.folder) if shard.host == node and age_s < 10]
    sweep.faults["old attempt seen alive beside the new one"] += bool(old)
    time.sleep(5)
    sweep.cluster.do("start-node", node)


def _cancel(sweep: Sweep) -> str:
    element, _ = sweep.training()
    sweep.befall("scancel", element)
    call("scancel", element)
    return element


def _elapsed_s(sweep: Sweep) -> list[float]:
    """Of each start of each element, from its own lines."""
    found = []
    for path in sweep.folder.glob("slurm/*_*.out"):
        times = [
            datetime.fromisoformat(line.split()[0]) for line in path.read_text().splitlines() if " job " in line[:40]
        ]
        found += [(last - first).total_seconds() for first, last in zip(times[::2], times[1::2], strict=False)]
    return found


def _print(calm: Sweep, calm_s: float, sweep: Sweep, wild_s: float) -> None:
    walls = [json.loads(path.read_text())["wall_s"] for path in calm.folder.glob("*/record.json")]
    elapsed = _elapsed_s(calm)
    overhead = sum(elapsed) - sum(walls)
    starts = len(list(sweep.folder.glob("slurm/*-start*")))
    resumed = [
        json.loads(path.read_text())["result"].get("resumed", 0)
        for path in sweep.folder.glob("*/record.json")
        if json.loads(path.read_text())["kind"] == "train"
    ]
    lines = [
        f"runs {RUNS}, shards {SHARDS}; undisturbed {calm_s:.0f} s, with faults {wild_s:.0f} s",
        f"faults: {dict(sweep.faults)}; submissions {sweep.submissions}; starts of jobs {starts}",
        f"trainings resumed: {sum(map(bool, resumed))}, {sum(resumed)} times in all",
        f"since the last checkpoint (or start) of each training at the fault, s: {sweep.lost_s}",
        f"an undisturbed element: {statistics.mean(elapsed):.1f} s, of which {sum(walls) / SHARDS:.1f} s work",
        f"start and end: {overhead / SHARDS:.1f} s an element, {overhead / RUNS:.1f} s a run",
    ]
    print("\n" + "\n".join(lines))  # noqa: T201 - the figures
