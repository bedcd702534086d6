"""Each script on a real cluster: one job on two nodes, an array, what `harness submit` makes, runs that span nodes."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from harness.launch.cluster import snapshot
from harness.records import Record, Results
from tests.conftest import ROOT
from tests.run.test_processes import check_scores, jobs
from tests.slurm.conftest import SMALL, Cluster, await_, evaluations, harness, metrics, write

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(600)]


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, images: Path, cluster: Cluster) -> dict[str, object]:
    """The numbers of six quick runs, made without SLURM."""
    folder = tmp_path_factory.mktemp("undisturbed")
    harness("run", "--grid", write(folder / "grid.yaml", images), cwd=folder)
    return metrics(folder / "runs" / "tiles")


def test_one_job_whose_nodes_share_the_grid(cluster: Cluster, work: Path, undisturbed: dict[str, object]) -> None:
    job = cluster.sbatch("--nodes=2", *SMALL, "slurm/sweep.sh", "grid.yaml", cwd=work)
    assert cluster.wait(job) == {"COMPLETED"}, cluster.output(work)
    assert metrics(work / "runs" / "tiles") == undisturbed
    hosts = {record.environment["host"] for record in evaluations(work / "runs" / "tiles").values()}
    assert hosts == {"node1", "node2"}
    assert (work / f"leaderboard-{job}.txt").read_text() == harness("leaderboard", "runs/tiles", cwd=work)
    assert not list(work.glob("runs/tiles/*/claim.json"))
    assert not (work / "runs" / "tiles" / "shards").exists()


def test_an_array_whose_elements_are_shards(cluster: Cluster, work: Path, undisturbed: dict[str, object]) -> None:
    job = cluster.sbatch("--array=0-7%2", *SMALL, "slurm/sweep.sh", "grid.yaml", cwd=work)
    last = cluster.sbatch(f"--dependency=afterany:{job}", "slurm/leaderboard.sh", "grid.yaml", cwd=work)
    assert cluster.wait(job) == {"COMPLETED"}, cluster.output(work)
    assert metrics(work / "runs" / "tiles") == undisturbed
    logs = sorted(path.name for path in (work / "slurm-logs").iterdir())
    assert [name.rpartition("-node")[0] for name in logs] == [f"{job}_{i}-start0" for i in range(8)]  # two are empty
    assert sum(path.read_text().count("✓ train") for path in (work / "slurm-logs").iterdir()) == 6  # none twice
    assert cluster.wait(last) == {"COMPLETED"}
    assert (work / f"leaderboard-{last}.txt").read_text() == harness("leaderboard", "runs/tiles", cwd=work)
    # An array with gaps needs the count of the whole, and a shard that is not there is an error at once.
    for extra, message in (
        ((), "add --export=ALL,SHARDS"),
        (("--export=ALL,SHARDS=3",), "--shard: 4/3 is out of range"),
    ):
        wrong = cluster.sbatch("--array=2,4", *extra, *SMALL, "slurm/sweep.sh", "grid.yaml", cwd=work)
        assert "FAILED" in cluster.wait(wrong)
        assert message in (work / f"slurm-{wrong}_4.out").read_text()


def test_submit_and_status(cluster: Cluster, work: Path, undisturbed: dict[str, object]) -> None:
    options = [word for option in SMALL for word in ("--sbatch", option.removeprefix("--"))]
    error = subprocess.run(
        ["harness", "submit", "--grid", "grid.yaml", "--sbatch", "partition=nosuch"],
        cwd=work,
        capture_output=True,
        text=True,
    )
    assert error.returncode == 2
    assert error.stderr.count("\n") == 1
    assert "invalid partition specified: nosuch; partitions here: debug, low" in error.stderr
    assert not list(work.glob("runs/tiles/slurm/*"))
    output = harness("submit", "--grid", "grid.yaml", "--shards", 3, "--max-parallel", 2, *options, cwd=work)
    job, last = output.split("jobs ")[1].split("\n")[0].split(", leaderboard ")
    assert "tiles: 6 runs (6 pending)" in harness("status", "runs/tiles", cwd=work, expect=1)
    await_(lambda: f"JobArrayTaskLimit (job {job}_2)" in harness_status(work))  # once the scheduler has looked at it
    harness("status", "runs/tiles", "--watch", cwd=work)
    assert cluster.wait(last) == {"COMPLETED"}, cluster.output(work)
    assert metrics(work / "runs" / "tiles") == undisturbed
    assert (work / "runs" / "tiles" / "leaderboard.txt").read_text() == harness("leaderboard", "runs/tiles", cwd=work)
    assert snapshot({job, last}).keys() == {f"{job}_{i}" for i in range(3)} | {last}
    squeue = work / "bin" / "squeue"  # that has forgotten them, as it does after minutes
    squeue.parent.mkdir()
    squeue.write_text("#!/bin/sh\n")
    squeue.chmod(0o755)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", f"{squeue.parent}:{os.environ['PATH']}")
        await_(lambda: {state for state, _ in snapshot({job, last}).values()} == {"COMPLETED"}, 30)
    assert "nothing to submit, all 6 runs are done" in harness("submit", "--grid", "grid.yaml", cwd=work)


def test_paths_that_shells_and_sbatch_would_take_apart(cluster: Cluster, work: Path, images: Path) -> None:
    write(work / "a grid.yaml", images, epochs=1, seeds=1)
    options = [word for option in SMALL for word in ("--sbatch", option.removeprefix("--"))]
    out = 'it\'s $HOME # "mine"'
    output = harness("submit", "--grid", "a grid.yaml", "--shards", 1, "--out", out, *options, cwd=work)
    job, last = output.split("jobs ")[1].split("\n")[0].split(", leaderboard ")
    assert cluster.wait(last) == {"COMPLETED"}, cluster.output(work)
    folder = work / out / "tiles"
    assert len(metrics(folder)) == 1
    assert (folder / "leaderboard.txt").read_text()
    assert list(folder.glob(f"slurm/{job}_*.out"))


def test_preempted_elements_go_on_to_the_same_numbers(
    cluster: Cluster, tmp_path: Path, images: Path, work: Path
) -> None:
    grid = write(work / "grid.yaml", images, epochs=100, seeds=2)
    (tmp_path / "calm").mkdir()
    harness("run", "--grid", grid, cwd=tmp_path / "calm")
    options = ("--array=0-1", "--partition=low", "--nodelist=node1", *SMALL)
    job = cluster.sbatch(*options, "slurm/sweep.sh", "grid.yaml", cwd=work)
    await_(lambda: harness_status(work).count(f"/100  (node1, job {job}_") == 2)
    cluster.sbatch("--nodelist=node1", "--exclusive", "--mem=0", "--wrap=sleep 1", cwd=work)
    assert cluster.wait(job) == {"COMPLETED"}, cluster.output(work)
    for element in range(2):  # the last one has the number of the whole array
        assert (work / f"slurm-{job}_{element}.out").read_text().count("requeued: it goes on") == 1
    trainings = [item for item in Results(work / "runs" / "tiles") if isinstance(item, Record) and item.kind == "train"]
    assert [training.result["resumed"] for training in trainings] == [1, 1]
    assert metrics(work / "runs" / "tiles") == metrics(tmp_path / "calm" / "runs" / "tiles")


def harness_status(work: Path) -> str:
    return subprocess.run(["harness", "status", "grid.yaml"], cwd=work, capture_output=True, text=True).stdout


def test_a_cancelled_job_stays_cancelled(cluster: Cluster, images: Path, work: Path) -> None:
    write(work / "grid.yaml", images, epochs=5000, seeds=1)
    job = cluster.sbatch(*SMALL, "slurm/sweep.sh", "grid.yaml", cwd=work)
    await_(lambda: "epoch" in harness_status(work))
    subprocess.run(["scancel", job], check=True)
    time.sleep(8)
    assert cluster.wait(job) == {"CANCELLED"}
    assert list(work.glob("runs/tiles/*/checkpoint.pt"))


@pytest.mark.parametrize("strategy", ["ddp", "deepspeed_zero1"])
def test_runs_that_span_nodes(
    strategy: str, cluster: Cluster, work: Path, mtd_root: Path, one_thread: Callable[[], None]
) -> None:
    if strategy != "ddp":
        pytest.importorskip("deepspeed")
        pytest.importorskip("transformers")
    grid = write(work / "grid.yaml", mtd_root, epochs=1, seeds=1, processes=2, strategy=strategy)
    document = yaml.safe_load(grid.read_text())
    document["axes"]["dataset"] = [{"name": "mtd", "root": str(mtd_root)}]
    document["defaults"] |= {"image_size": 32, "train.batch_size": 32}
    document["save"] = {"weights": True}
    grid.write_text(yaml.safe_dump(document))
    number = cluster.sbatch("--nodes=2", *SMALL, "slurm/multinode.sh", "grid.yaml", cwd=work)
    await_(lambda: cluster.states(number) == {"RUNNING"})
    step = ["srun", f"--jobid={number}", "--overlap", "--nodes=1", "--ntasks=1", "--mem=0", "--gpus=0", "-w", "node1"]
    stranger = subprocess.Popen(
        [*step, sys.executable, ROOT / "tests" / "scripts" / "stranger.py"], stdout=subprocess.PIPE, text=True
    )
    (work / "here").mkdir()
    harness("run", "--grid", grid, "--devices", "cpu:2", cwd=work / "here")
    assert cluster.wait(number) == {"COMPLETED"}, cluster.output(work)
    assert "connected" in stranger.communicate(timeout=60)[0]  # to the supervisor's door, where it stood silent
    assert metrics(work / "runs" / "tiles") == metrics(work / "here" / "runs" / "tiles")
    (training,) = [
        item for item in Results(work / "runs" / "tiles") if isinstance(item, Record) and item.kind == "train"
    ]
    assert training.result["processes"] == 2
    (job,), _ = jobs(grid)
    check_scores(job, Results(work / "runs" / "tiles"), one_thread)
    assert (work / f"leaderboard-{number}.txt").read_text() == harness("leaderboard", "runs/tiles", cwd=work)


def test_two_nodes_prove_themselves(cluster: Cluster, work: Path) -> None:
    words = "harness doctor --quick --devices cpu --nodes 2 --json found.json"
    (work / "doctor.sh").write_text(f'#!/bin/bash\ncd "$SLURM_SUBMIT_DIR"\n{words}\n')
    job = cluster.sbatch("--nodes=2", *SMALL, "doctor.sh", cwd=work)
    assert cluster.wait(job) == {"COMPLETED"}, cluster.output(work)
    found = {one["name"]: one for one in json.loads((work / "found.json").read_text())["findings"]}
    assert not [name for name, one in found.items() if one["state"] == "FAIL"]
    assert found["other nodes"]["state"] == "PASS"
    assert found["processes"]["facts"]["processes"] == 4
