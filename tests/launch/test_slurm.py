"""What SLURM is told and how its answers are taken, without SLURM: golden scripts, tables, a sbatch that stumbles."""

import os
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dskd.config import ConfigError
from dskd.methods import get_method
from harness import events
from harness.data.catalog import get_source
from harness.grid import Plan, Training
from harness.job import TrainJob
from harness.launch import cluster, slurm
from harness.launch.claims import STALE_S, Claims, is_gone
from harness.launch.overview import Seen, overview
from harness.launch.progress import (
    Planned,
    Reporter,
    Running,
    Supervisor,
    planned,
    read_plan,
    read_supervisors,
    write_plan,
    written_shards,
)
from harness.launch.schedule import guess, parse_shard, shards, written_names, written_shard
from harness.records import Failure
from harness.spec import BenchSpec, Data, TrainSpec, Weights
from tests.conftest import ROOT
from tests.faults.commands import Done, harness

WriteGrid = Callable[..., Path]
GOLDEN = Path(__file__).with_name("golden")


def training(images: int, seed: int) -> Training:
    data = Data("surfaces", "granite", "c", train_images=images, test_images=10)
    spec = TrainSpec(get_method("stfpm"), "resnet18", Weights(), data, seed=seed)
    return Training(spec, (), get_source({"name": "surfaces"}), None)


@given(st.lists(st.integers(1, 500), min_size=1, max_size=30), st.integers(1, 12), st.integers(0, 2))
def test_shards_share_the_plan_out_evenly_and_always_alike(images: list[int], count: int, benches: int) -> None:
    method = get_method("stfpm")
    measured = [BenchSpec(method, "resnet18", 32 * (i + 1), "auto", "a device", 1) for i in range(benches)]
    plan = Plan([training(number, seed) for seed, number in enumerate(images)], measured)
    parts = shards(plan, count)
    assert parts == shards(plan, count)
    assert len(parts) == count
    assert sorted(run.spec.id for part in parts for run in part.trainings) == sorted(
        run.spec.id for run in plan.trainings
    )
    assert sum(len(part.benches) for part in parts) == benches
    runs = len(plan.trainings) + benches
    assert sum(bool(part.trainings or part.benches) for part in parts) == min(runs, count)
    cost = [sum(guess(run) for run in (*part.trainings, *part.benches)) for part in parts]
    longest = max(guess(run) for run in (*plan.trainings, *measured))
    assert max(cost) <= sum(cost) / count + longest + 1e-9


@given(st.integers(1, 12), st.integers(0, 3), st.integers(1, 5), st.sets(st.integers(0, 14)), st.randoms())
def test_jobs_do_what_was_written_at_submit_time_whatever_is_planned_since(
    runs: int, benches: int, count: int, lost: set[int], random: Random
) -> None:
    def measured(device: str) -> list[BenchSpec]:
        return [BenchSpec(get_method("stfpm"), "resnet18", 32 * (i + 1), "auto", device, 1) for i in range(benches)]

    login = Plan([training(10, seed) for seed in range(runs)], measured("cpu of the login node"))
    cost = {id(run): random.random() for run in (*login.trainings, *login.benches)}  # learnt: no job can know it
    cut = shards(login, count, lambda run: cost[id(run)])
    written = {number: written_names(part) for number, part in enumerate(cut) if written_names(part)}
    node = Plan([training(10, seed) for seed in range(runs)], measured("a GPU"))
    for number, names in written.items():
        part = written_shard(node, written, number)
        assert [run.spec.id for run in part.trainings] == [run.spec.id for run in cut[number].trainings]
        assert [bench.image_size for bench in part.benches] == [bench.image_size for bench in cut[number].benches]
        assert {run.spec.id for run in part.trainings} <= set(names)
    # The grid was changed since: what is new is shared out, once each.
    left = {number: [name for i, name in enumerate(names) if i not in lost] for number, names in written.items()}
    parts = [written_shard(node, left, number) for number in left]
    done = [spec.id for part in parts for spec in (*(run.spec for run in part.trainings), *part.benches)]
    assert sorted(done) == sorted([*(run.spec.id for run in node.trainings), *(one.id for one in node.benches)])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("8/8", "out of range; 8 shards are 0/8 to 7/8"),
        ("3", "write INDEX/COUNT"),
        ("-1/8", "write"),
        ("0/0", "no shards"),
    ],
)
def test_a_shard_that_does_not_exist(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=f"--shard: .*{message}"):
        parse_shard(text)


def test_scripts_are_filled_in_as_the_golden_files_say() -> None:
    """To renew them: python -m tests.launch.test_slurm"""
    for name, text in _rendered().items():
        assert text == (GOLDEN / name).read_text(), f"{name}: python -m tests.launch.test_slurm renews it"
        assert subprocess.run(["bash", "-n"], input=text, text=True).returncode == 0


def _rendered() -> dict[str, str]:
    sweep, last = ((ROOT / "slurm" / name).read_text() for name in ("sweep.sh", "leaderboard.sh"))
    chosen = slurm.parse_options(["partition=low", "gres=gpu:h200:2", "time=1-00", "exclusive", "mem_per_cpu=2G"])
    options = slurm.merge(slurm.options_of(sweep), chosen) | {"array": "0-3,7%2"}
    environment = {"SHARDS": "8", "SHARD_OFFSET": "0", "OUT": "my runs"}
    no_gpu = slurm.merge(slurm.options_of(sweep), {"gpus-per-node": ""})
    last_options = slurm.options_of(last) | {"dependency": "afterany:12:13", "output": "runs/tiles/leaderboard.txt"}
    return {
        "sweep.sh": slurm.render(sweep, options, environment, ["my grid.yaml", "--retries", "3"]),
        "sweep-cpu.sh": slurm.render(sweep, no_gpu, {}, ["grid.yaml"]),
        "leaderboard.sh": slurm.render(last, last_options, {}, ["runs/tiles"]),
    }


@given(st.sets(st.integers(0, 60), min_size=1), st.integers(1, 20))
def test_arrays_name_every_shard_once_below_the_clusters_limit(wanted: set[int], most: int) -> None:
    found = slurm.arrays(wanted, most)
    assert sorted(array.offset + element for array in found for element in array.elements) == sorted(wanted)
    for array in found:
        named: list[int] = []
        for block in array.spec(None).split(","):
            first, _, last = block.partition("-")
            named += range(int(first), int(last or first) + 1)
        assert named == list(array.elements)
        assert max(named) < most
    assert slurm.Array(0, (0, 1, 2, 5)).spec(4) == "0-2,5%4"


@pytest.mark.parametrize(
    ("state", "kind"),
    [
        *[(state, "waiting") for state in ("PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_HOLD", "NEWER_THAN_US", "")],
        *[(state, "running") for state in ("RUNNING", "COMPLETING", "SUSPENDED", "RUNNING+")],
        *[(state, "ended") for state in ("COMPLETED", "FAILED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED")],
        *[(state, "ended") for state in ("CANCELLED by 1000", "DEADLINE", "BOOT_FAIL")],
    ],
)
def test_what_states_mean(state: str, kind: str) -> None:
    assert slurm.meaning(state).kind == kind


def test_what_to_do_after_an_end() -> None:
    advice = {state: slurm.meaning(state).advice for state in slurm.MEANINGS}
    for state in ("PREEMPTED", "TIMEOUT", "NODE_FAIL", "CANCELLED"):
        assert "submit again: it goes on from its checkpoints" in advice[state]
    assert "mem=" in advice["OUT_OF_MEMORY"]
    assert "log" in advice["FAILED"]


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90", 5400), ("1:30", 90), ("1:30:00", 5400), ("2-12", 216_000), ("1-00:30", 88_200), ("1-0:0:5", 86_405)],
)
def test_times_as_sbatch_takes_them(text: str, seconds: int) -> None:
    assert slurm.seconds_of(text) == seconds
    assert slurm.seconds_of(slurm.time_of(seconds)) >= seconds
    assert slurm.seconds_of("UNLIMITED") > 1e12
    with pytest.raises(ConfigError, match="--sbatch time: 'soon' is not possible"):
        slurm.seconds_of("soon")


@pytest.mark.parametrize(
    ("options", "gpus"),
    [
        ({}, 0),
        ({"gpus-per-node": "4"}, 4),
        ({"gres": "gpu:h200:2"}, 2),
        ({"gres": "gpu"}, 1),
        ({"gres": "lustre"}, 0),
        ({"gpus": "8", "nodes": "2"}, 4),
    ],
)
def test_gpus_of_a_node(options: dict[str, str], gpus: int) -> None:
    assert slurm.gpus_of(options) == gpus


def test_whose_claims_are_over() -> None:
    me = {"space": "boot 1 pids 1", "job": "12", "restart": 1}
    here, elsewhere = {"space": "boot 1 pids 1", "pid": 7}, {"space": "boot 2 pids 1", "pid": 7}
    cases = [
        (here, 0.0, True, False),
        (here, 0.0, False, True),
        (here, STALE_S + 1, True, True),  # it hangs
        (elsewhere, 0.0, False, False),  # its pid says nothing here
        (elsewhere, STALE_S + 1, True, True),
        ({**elsewhere, "job": "12", "restart": 0}, 0.0, True, True),  # SLURM has started it again, as this one
        ({**elsewhere, "job": "12", "restart": 1}, 0.0, False, False),  # another node of this start
        ({**elsewhere, "job": "13", "restart": 0}, 0.0, False, False),
        ({"host": "of an older harness"}, 0.0, False, False),
    ]
    for claim, age_s, is_alive, gone in cases:
        assert is_gone(claim, me, age_s, is_alive) is gone, claim


def test_a_claim_that_was_taken_over_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "12")
    old = Claims(tmp_path)
    assert old.take("run")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    assert not Claims(tmp_path).take("run")  # in this pid space the old one can be seen to live
    old.me["space"] = "a node that is gone"
    old.content = old.content.replace('"space": "', '"space": "gone ')
    (tmp_path / "run" / "claim.json").write_text(old.content)
    new = Claims(tmp_path)
    assert new.take("run")
    old.touch()
    old.release("run")
    assert (tmp_path / "run" / "claim.json").read_text() == new.content
    new.release("run")
    assert not (tmp_path / "run" / "claim.json").exists()


def test_what_a_supervisor_writes_others_read(tmp_path: Path) -> None:
    run = training(10, 0)
    job = TrainJob(run.spec, (), {}, None, str(tmp_path))
    with Reporter(tmp_path, "0/4", 3) as reporter:
        reporter.written = -1e9  # it is time
        reporter.on_event(job, events.Phase("train"))
        reporter.written = -1e9
        reporter.on_event(job, events.Epoch(5, 10, 0.5, 10.0))
        reporter.on_event(job, events.Epoch(6, 10, 0.5, 10.0))  # not yet again
        ((shard, age_s),) = read_supervisors(tmp_path)
        assert shard.running == (Running(run.spec.id, "train", 0.5, "epoch 5/10"),)
        assert (shard.part, shard.total, shard.host) == ("0/4", 3, os.uname().nodename)
        assert age_s < 60
    assert not (tmp_path / "shards").exists()
    write_plan(tmp_path, planned(Plan([run], [])))
    assert read_plan(tmp_path) == [Planned(run.spec.id, "stfpm resnet18 surfaces/granite seed 0", (run.spec.id,))]


def test_every_state_of_a_run_is_told() -> None:
    plan = [Planned(name, f"run {name}", (name, f"{name}-maps")) for name in "abcdefghi"]
    shard = Supervisor("12_0-node1", "node1", "12_0", "0/4", 3, "", running=(Running("b", "train", 0.5, "epoch 5/10"),))
    lost = Supervisor("9-node1", "node1", "9", "", 1, "", running=(Running("f", "train", 0.1),))
    failure = Failure("train", "g", {}, "diverged", "the loss is nan", "", "", {})
    stopped = Failure("train", "h", {}, "interrupted", "stopped in epoch 3", "", "", {})
    submission = {"jobs": [{"id": "12", "offset": 0}], "runs": {"0": ["a", "b", "c"], "1": ["d"], "2": ["e", "g"]}}
    queue = {"12_0": ("RUNNING", "None"), "12_1": ("PENDING", "Priority"), "12_2": ("TIMEOUT", "None")}
    seen = Seen(
        plan, {"a", "a-maps", "b"}, {"g": failure, "h": stopped}, [(shard, 1.0), (lost, 999.0)], [submission], queue
    )
    found = {run.id: (run.state, run.note) for run in overview(seen)}
    assert found["a"] == ("done", "")
    assert found["b"] == ("running", "train epoch 5/10  (node1, job 12_0)")
    assert found["c"] == ("pending", "next in job 12_0")
    assert found["d"] == ("pending", "Priority (job 12_1)")
    assert found["e"][0] == "to do"
    assert "job 12_2 TIMEOUT: its time ran out; submit again" in found["e"][1]
    assert found["f"] == ("to do", "")  # its supervisor has been silent for long
    assert found["g"] == ("failed", "diverged: the loss is nan")
    assert found["h"] == ("to do", "interrupted: stopped in epoch 3")
    assert found["i"] == ("to do", "")
    # Without submissions whoever has runs left may come to those that nobody is at.
    assert overview(Seen(plan, set(), {}, [(shard, 1.0)]))[2].note == "next on node1, job 12_0"
    # SLURM says that a supervisor is gone although its file is young.
    gone = Seen(plan, set(), {}, [(shard, 1.0)], [submission], {"12_0": ("NODE_FAIL", "None")})
    assert overview(gone)[1].state == "to do"


STUMBLING = """#!/bin/sh
count=$(cat {folder}/count 2>/dev/null || echo 0); echo $((count + 1)) >{folder}/count
[ $count -ge {failures} ] || {{ echo 'sbatch: error: {message}' >&2; exit 1; }}
echo 77
"""


def _script(path: Path, text: str) -> None:
    path.write_text(text)
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


def _stumbling(folder: Path, failures: int, message: str, queue: str = "") -> None:
    text = STUMBLING.format(folder=folder, failures=failures, message=message)
    _script(folder / "sbatch", text)
    _script(folder / "squeue", f"#!/bin/sh\necho '{queue}'\n" if queue else "#!/bin/sh\n")


BUSY = "Batch job submission failed: Socket timed out on send/recv operation"


@pytest.mark.parametrize(
    ("failures", "message", "queue", "job"),
    [(2, BUSY, "", "77"), (9, BUSY, "5|N/A|mark", "5"), (9, BUSY, "6|55|mark", "55"), (2, BUSY, "6|55|other", "77")],
)
def test_a_submission_outlasts_a_busy_controller_and_is_not_doubled(
    failures: int, message: str, queue: str, job: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _stumbling(tmp_path, failures, message, queue)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(cluster.time, "sleep", lambda _: None)
    assert cluster.submit("script.sh", "mark") == job


def test_a_refusal_is_not_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _stumbling(tmp_path, 9, "Batch job submission failed: Invalid account")
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with pytest.raises(cluster.ClusterError, match=r"^Invalid account$"):
        cluster.submit("script.sh", "mark")
    assert (tmp_path / "count").read_text().strip() == "1"


def _submit(grid: Path, *options: str, path: str | None = None, expect: int = 0) -> Done:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(grid.parent)
        if path:
            patch.setenv("PATH", path)
        done = harness("submit", "--grid", grid, *options)
    assert done.code == expect, done
    return done


def test_a_dry_run_prints_scripts_and_touches_nothing(write_grid: WriteGrid, tree: Path) -> None:
    grid = write_grid(tree, axes={"seed": list(range(9))})
    text = _submit(
        grid, "--dry-run", "--shards", "4", "--max-parallel", "2", "--only", "seed=1", "--only", "seed=2"
    ).out
    assert "#SBATCH --array=0-1%2\n" in text  # two of the shards have something to do
    assert text.count("#!/bin/bash") == 2
    assert "set -- " + str(grid) + " --only seed=1 --only seed=2\n" in text
    assert not (grid.parent / "runs").exists()


def test_what_cannot_be_submitted_is_said_before(write_grid: WriteGrid, tree: Path, tmp_path: Path) -> None:
    grid = write_grid(tree, defaults={"train.epochs": 1})
    (tmp_path / "bin").mkdir()
    cases = [
        ((), "no sbatch on PATH; call this on a login node"),
        (("--sbatch", "array=0-3"), "--sbatch: array is for harness submit to write"),
        (("--sbatch", "=x"), "write an option of sbatch as key=value"),
        (("--shards", "0"), "--shards: '0' is not possible"),
        (("--max-parallel", "0"), "--max-parallel: 0 is not possible"),
    ]
    for options, message in cases:
        error = _submit(grid, *options, path=str(tmp_path / "bin"), expect=2).err
        assert message in error
        assert error.count("\n") == 1
    slow = write_grid(tree, defaults={"train.epochs": 100_000, "image_size": 256})
    error = _submit(slow, "--dry-run", "--sbatch", "time=10", "--sbatch", "gpus-per-node=", expect=2).err
    assert "--sbatch time=10: the longest run, stfpm resnet18 data/cloth seed 0, takes about" in error
    (tree / "cloth" / "train" / "good" / "000.png").unlink()
    (tree / "cloth" / "train" / "good" / "000.png").write_bytes(b"")
    assert "000.png is empty" in _submit(grid, "--dry-run", expect=2).err


def test_a_results_folder_that_is_another_one_is_said_at_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster.check_submission(tmp_path)
    monkeypatch.setenv(slurm.SUBMISSION, "slurm/ab12.json")
    with pytest.raises(ConfigError, match=r"--out: .* is not the folder that `harness submit` saw"):
        written_shards(tmp_path)
    with pytest.raises(ConfigError, match=r"--out: .* is not the folder that `harness submit` saw"):
        cluster.check_submission(tmp_path)
    (tmp_path / "slurm").mkdir()
    (tmp_path / "slurm" / "ab12.json").write_text("{}")
    cluster.check_submission(tmp_path)
    with pytest.raises(ConfigError, match=r"ab12.json does not say what this job does \(.*\); submit again"):
        written_shards(tmp_path)
    (tmp_path / "slurm" / "ab12.json").write_text('{"jobs": [], "runs": {"3": ["a"]}}')
    assert written_shards(tmp_path) == {3: ["a"]}
    monkeypatch.delenv(slurm.SUBMISSION)
    assert written_shards(tmp_path) is None
    monkeypatch.setenv(slurm.SEEN, str(tmp_path / ".seen-12"))  # as sweep.sh does for a job of several nodes
    with pytest.raises(ConfigError, match=r"--out: .* is not the folder of the job's first node; name one on a file "):
        cluster.check_submission(tmp_path)
    (tmp_path / ".seen-12").touch()
    cluster.check_submission(tmp_path)


def test_init_copies_what_ships_and_keeps_what_is_there(tmp_path: Path) -> None:
    assert "files written" in harness("init", tmp_path / "new").out
    script = tmp_path / "new" / "slurm" / "sweep.sh"
    assert script.read_text() == (ROOT / "slurm" / "sweep.sh").read_text()
    assert os.access(script, os.X_OK)
    assert (tmp_path / "new" / "benchmarks" / "grids" / "quickstart.yaml").exists()
    script.write_text("edited")
    output = harness("init", tmp_path / "new").out
    assert output.startswith("0 files written")
    assert "kept slurm/sweep.sh" in output
    assert script.read_text() == "edited"


if __name__ == "__main__":
    for name, text in _rendered().items():
        (GOLDEN / name).write_text(text)
