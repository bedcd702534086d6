"""How busy others keep the machine, and what workers and the time left make of it."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from harness.cli.common import make_plan
from harness.cli.screen import RECENT_S, Pace
from harness.launch import load, schedule
from harness.launch.devices import Slot
from harness.launch.load import BUSY_CORES, QUIET_CORES, Load, crowding, waits_passively
from harness.launch.supervisor import supervise
from harness.launch.verdict import Limits
from harness.records import Record, Results


def test_only_a_load_that_takes_our_cores_counts_and_one_about_the_bound_changes_nothing() -> None:
    assert crowding(1.0, cores=2, threads=2) == 1.0
    assert crowding(3.0, cores=16, threads=4) == 0.0  # there are cores that nobody uses
    assert crowding(14.0, cores=16, threads=4) == 2.0
    between = (BUSY_CORES + QUIET_CORES) / 2
    assert [waits_passively(between, before) for before in (False, True)] == [False, True]
    assert waits_passively(1.0, False)
    assert not waits_passively(0.0, True)


class Machine:
    """Counters of busy seconds as a machine of two cores has them."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.now = self.busy = 0.0
        self.workers = {7: 0.0}
        patch.setattr(load, "cpu_seconds", lambda cores: (self.busy, 2 * self.now))
        patch.setattr(load, "_seconds_of", self.workers.get)
        patch.setattr("os.times", lambda: (0.0,) * 5)
        patch.setattr("os.sched_getaffinity", lambda _: {0, 1})
        patch.setattr("time.monotonic", lambda: self.now)
        patch.setattr("time.sleep", self.sleep)

    def sleep(self, seconds: float, others: float = 0.0, ours: float = 0.0) -> None:
        """`others`, `ours`: cores that are kept busy meanwhile."""
        self.now += seconds
        self.busy += seconds * (others + ours)
        self.workers[7] += seconds * ours


def test_the_load_is_what_others_do_of_late(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(monkeypatch)
    watch = Load()
    machine.sleep(1, others=1.0)
    watch.look()
    assert (watch.foreign, watch.passive) == (pytest.approx(1.0), True)
    assert watch.slowdown("cpu") > 1.5
    assert "others use 1.0 of the 2 cores" in str(watch.remark("cpu"))
    assert (watch.slowdown("cuda"), watch.remark("cuda")) == (1.0, None)
    machine.sleep(5)
    assert watch.look({7}).passive  # too soon to look again
    machine.sleep(10, ours=2.0)
    watch.look({7})
    assert (watch.foreign, watch.passive, watch.slowdown("cpu"), watch.remark("cpu")) == (0.0, False, 1.0, None)
    machine.sleep(20, others=0.1, ours=1.9)
    assert not watch.look({7}).passive
    machine.sleep(10, others=1.5, ours=0.5)
    assert not watch.look({7}, threads=0).passive  # nobody of ours is there to be crowded
    machine.sleep(10, others=1.5, ours=0.5)
    assert watch.look({7}, threads=2).passive


class Changing:
    """A load that comes when the first job has left a record."""

    def __init__(self, results: Results) -> None:
        self.results = results

    @property
    def passive(self) -> bool:
        return bool(self.results.done())

    def look(self, _workers: object, _threads: int) -> "Changing":
        return self


@pytest.mark.parametrize("given", ["", pytest.param("30000", marks=pytest.mark.slow)])
def test_a_worker_is_replaced_where_waiting_must_change_and_no_number_moves(
    given: str, tree: Path, write_grid: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    if given:
        monkeypatch.setenv("GOMP_SPINCOUNT", given)
    grid = write_grid(tree, axes={"seed": [0, 1]})
    parsed, plan = make_plan(grid, "cpu", None)
    found = {}
    for name, watch in (("busy", Changing), ("quiet", Steady)):
        results = Results(tree.parent / name)
        results.folder.mkdir()
        options = {"save": parsed.save, "device": "cpu", "force": False, "grid": "tiny", "checkpoint_every_s": 600.0}
        todo = schedule.remaining(plan, set(), results=str(results.folder), **options)
        slot = Slot("cpu", "cpu", None, tuple(os.sched_getaffinity(0)), 2)
        phases = schedule.phases([(job, 1.0) for job in todo.jobs], [slot], slot)
        assert not supervise(phases, [], results, Limits(0, None), watch(results))
        found[name] = {item.id: item for item in results if isinstance(item, Record) and item.kind == "evaluate"}
    ways = sorted(str(record.result["waiting"]) for record in found["busy"].values())
    assert ways == (["GOMP_SPINCOUNT=30000"] * 2 if given else ["passive", "spin"])
    assert len(found["quiet"]) == 2
    for key, record in found["quiet"].items():
        for metric in ("image_auroc", "pixel_auroc", "aupro_0.30"):
            assert record.result[metric] == found["busy"][key].result[metric]


class Steady(Changing):
    passive = False


def test_the_time_left_follows_the_pace_of_late(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.monotonic", lambda: 0.0)
    pace = Pace()
    assert pace.left_s(0.0, 0.0) is None
    assert pace.left_s(0.5, 100.0) == pytest.approx(100)
    for second in range(101, 100 + 2 * int(RECENT_S)):  # a tenth as fast from here on
        left = pace.left_s(0.5 + 0.0005 * (second - 100), float(second))
    assert left == pytest.approx((0.5 - 0.0005 * (second - 100)) / 0.0005, rel=0.1)
