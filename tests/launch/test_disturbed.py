"""A disturbed measurement of throughput: made once more by the next call, while its grid is done all the same."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from harness.disturbance import is_measured_again
from harness.grid import Plan
from harness.job import decode, encode
from harness.launch.schedule import remaining
from harness.records import Record, Results
from harness.run import machine
from harness.run.execute import quieter
from harness.spec import BenchSpec, Save
from tests.faults.commands import harness

WriteGrid = Callable[..., Path]
BUSY = {"disturbed": True, "foreign_cpu_share": 0.6}


def bench_record(**result: object) -> Record:
    return Record("bench", "0" * 16, {}, {"images_per_s": 1.0} | result, {}, "2026-01-01T00:00:00+00:00", 1.0)


@pytest.mark.parametrize(
    ("result", "share", "again"),
    [
        ({"disturbed": False}, 0.0, False),
        ({}, 0.0, False),  # of a commit that did not watch
        (BUSY, 0.0, True),
        (BUSY, 0.9, True),  # one time in any case
        (BUSY | {"measurements": 2}, 0.31, False),
        (BUSY | {"measurements": 2}, 0.29, True),
        ({"disturbed": True, "foreign_gpu_processes": 1, "measurements": 2}, 0.0, False),
    ],
)
def test_when_it_is_measured_once_more(result: dict, share: float, again: bool) -> None:
    assert is_measured_again(result, share) is again


def test_the_quieter_result_stays_and_both_are_counted() -> None:
    busy, busier = bench_record(**BUSY), bench_record(**BUSY | {"foreign_cpu_share": 0.9, "images_per_s": 9.0})
    calm = bench_record(disturbed=False, foreign_cpu_share=0.01, measurements=2)
    assert quieter(None, busy) is busy
    for earlier, later, kept, count in ((busy, busier, busy, 2), (busier, busy, busy, 2), (calm, busy, calm, 3)):
        found = quieter(earlier, later)
        assert found.result == kept.result | {"measurements": count}
        assert found.started_at == kept.started_at


def test_it_is_no_work_that_is_left(tmp_path: Path) -> None:
    from dskd.methods import get_method

    plan = Plan([], [BenchSpec(get_method("stfpm"), "resnet18", 64, "auto", "cpu", 2)])
    ids = {plan.benches[0].id}
    options = {"results": ".", "save": Save(), "device": "cpu", "grid": "g", "checkpoint_every_s": 60.0}
    for done, force, again, jobs, left in (
        (ids, False, (), [], 0),
        (ids, False, ids, [(True, True)], 0),
        (set(), False, ids, [(False, False)], 1),
        (ids, True, ids, [(True, False)], 1),
    ):
        todo = remaining(plan, done, force=force, again=again, **options)
        assert [(job.force, job.again) for job in todo.jobs] == jobs
        assert [decode(encode(job)) for job in todo.jobs] == todo.jobs
        assert len(todo.left) == left


@pytest.mark.parametrize(
    ("looks", "said"),
    [
        ([{}], []),
        (
            [BUSY, BUSY, {}],
            ["waiting up to 4 s for a quiet machine: others used 60 % of the CPU", "quiet now: measuring"],
        ),
        (
            [BUSY] * 9,
            [
                "waiting up to 4 s for a quiet machine: others used 60 % of the CPU",
                "measuring all the same: others used 60 % of the CPU",
            ],
        ),
    ],
)
def test_quiet_is_waited_for_a_little(looks: list[dict], said: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    clock, found = [0.0], iter(looks)

    class Watch:
        def __init__(self, _: torch.device) -> None: ...

        def read(self) -> dict:
            return next(found)

    monkeypatch.setattr(machine, "Watch", Watch)
    monkeypatch.setattr(machine.time, "sleep", lambda seconds: clock.__setitem__(0, clock[0] + seconds))
    monkeypatch.setattr(machine.time, "monotonic", lambda: clock[0])
    heard: list[str] = []
    machine.wait_for_quiet(torch.device("cpu"), 4.0, heard.append)
    assert heard == said
    assert clock[0] <= 5.0


def test_the_next_call_measures_once_more(write_grid: WriteGrid, tree: Path, tmp_path: Path) -> None:
    words = (
        write_grid(tree, bench={"seconds": 0.02, "batch_sizes": [1]}),
        "--out",
        tmp_path / "runs",
        "--devices",
        "cpu",
    )
    done, results = harness("run", *words), Results(tmp_path / "runs" / "tiny")
    assert done.code == 0, done
    (record,) = [item for item in results if isinstance(item, Record) and item.kind == "bench"]
    path = results.run_folder(record.id).record
    worse = record.result | {"disturbed": True, "foreign_cpu_share": 9.0, "images_per_s": 1e-3}
    path.write_text(json.dumps(json.loads(path.read_text()) | {"result": worse}))
    assert "to do: nothing, about 0 s" in harness("plan", *words).out
    assert harness("status", results.folder).code == 0  # done, before it is measured again
    again = harness("run", *words)
    assert again.code == 0, again
    assert "; to do: nothing" in again.out
    assert "throughput of 1 model was disturbed: measured once more, and the quieter result stays" in again.out
    found = results.record(record.id)
    assert found.result["measurements"] == 2
    assert found.result["images_per_s"] > 0.1
