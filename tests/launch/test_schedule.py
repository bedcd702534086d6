"""Who does what, and where: every run once, no worker idle while there is work, no core promised twice."""

import dataclasses
import heapq
import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dskd.config import ConfigError, replace
from dskd.methods import get_method
from harness.environment import Gpu
from harness.job import BenchJob, TrainJob
from harness.launch import devices
from harness.launch.devices import Slot, find_slots, share_cores
from harness.launch.schedule import Item, item_of, phases, take
from harness.spec import BenchSpec, Data, TrainSpec, Weights

ITEM = st.builds(Item, st.floats(0.1, 100), st.integers(0, 3), st.sampled_from([None, "a", "b"]))
ITEMS = st.lists(ITEM, min_size=1, max_size=40)


@given(ITEMS, st.integers(1, 8))
def test_every_job_once_and_within_the_bound_of_list_scheduling(items: list[Item], workers: int) -> None:
    pending = dict(enumerate(items))
    free, last, order = [(0.0, worker) for worker in range(workers)], dict.fromkeys(range(workers)), []
    ends = 0.0
    while pending:
        now, worker = heapq.heappop(free)
        number = take(pending, last[worker])
        item = pending.pop(number)
        last[worker] = item
        order.append(number)
        ends = max(ends, now + item.seconds)
        heapq.heappush(free, (now + item.seconds, worker))
    assert sorted(order) == list(range(len(items)))
    seconds = [item.seconds for item in items]
    assert ends <= sum(seconds) / workers + max(seconds) + 1e-6  # Graham, 1966


@given(ITEMS)
def test_one_worker_keeps_together_what_shares_shape_then_data_and_starts_with_the_longest(items: list[Item]) -> None:
    pending, done = dict(enumerate(items)), []
    while pending:
        done.append(pending.pop(take(pending, done[-1] if done else None)))
    assert len(list(itertools.groupby(done, key=lambda item: item.shape))) == len({item.shape for item in items})
    blocks = [list(block) for _, block in itertools.groupby(done, key=lambda item: (item.shape, item.affinity))]
    assert len(blocks) == len({(item.shape, item.affinity) for item in items})
    assert all(block == sorted(block, key=lambda item: -item.seconds) for block in blocks)


def test_only_runs_that_are_compiled_are_ordered_by_shape(monkeypatch: pytest.MonkeyPatch) -> None:
    method = get_method("stfpm")
    plain = TrainSpec(method, "resnet18", Weights(), Data("a", "b", "c", train_images=1000))
    changes = {"seed": 1, "data": Data("a", "d", "e", train_images=1000), "method": replace(method, {"train.lr": 0.1})}

    def item(**changes: object) -> Item:
        return item_of(TrainJob(dataclasses.replace(plain, **changes), (), {}, None, ".", device="cpu"), 1.0)

    monkeypatch.setattr("harness.job.cpu_flags", frozenset)
    assert item().shape is item(compile=False).shape is None
    shape = item(compile=True).shape
    assert all(item(compile=True, **{key: value}).shape == shape for key, value in changes.items())
    assert shape not in (None, item(compile=True, image_size=128).shape, item(compile=True, backbone="resnet34").shape)
    monkeypatch.setattr("harness.job.cpu_flags", lambda: {"amx_bf16"})
    assert item(method=replace(method, {"train.epochs": 100})).shape == shape  # by `compile: auto`


@given(st.integers(1, 12), st.integers(1, 16))
def test_cores_are_shared_out(workers: int, cores: int) -> None:
    slots = share_cores([("cpu", "cpu", None)] * workers, range(cores), cores)
    assert len(slots) == workers
    if workers >= cores:
        assert all(slot.threads == 1 and len(slot.cpus) == cores for slot in slots)
    else:
        pinned = [core for slot in slots for core in slot.cpus]
        assert sorted(pinned) == list(range(cores))
        assert sum(slot.threads for slot in slots) <= cores


def test_devices_that_can_be_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "gpus", list)
    assert [slot.kind for slot in find_slots("auto")] == ["cpu"]
    assert len(find_slots("cpu:3")) == 3
    with pytest.raises(ConfigError, match="needs a CUDA device and this machine shows none; write cpu"):
        find_slots("cuda")
    monkeypatch.setattr(devices, "gpus", lambda: [Gpu(f"GPU-{i}", "a GPU") for i in range(3)])
    assert [(slot.name, slot.visible) for slot in find_slots("cuda:2,0")] == [("cuda:2", "GPU-2"), ("cuda:0", "GPU-0")]
    assert [slot.name for slot in find_slots("auto", 2)] == ["cuda:0", "cuda:0", "cuda:1", "cuda:1", "cuda:2", "cuda:2"]
    for wrong in ("gpu", "cpu:0", "cpu:1,2", "auto:1", "cuda:1,1", "cuda:", "cpu:x"):
        with pytest.raises(ConfigError, match=r"--devices: '.*' is not possible; write auto, cpu, cpu:4"):
            find_slots(wrong)
    with pytest.raises(ConfigError, match="there is no GPU 3; this machine shows 3, from 0"):
        find_slots("cuda:3")


def test_ranks_have_gpus_of_their_own_and_single_runs_share_them() -> None:
    method = get_method("stfpm")
    specs = [TrainSpec(method, "resnet18", Weights(), Data("a", "b", "c"), processes=n) for n in (1, 2)]
    slots = [Slot(f"cuda:{i}", "cuda", f"GPU-{i}", (0,), 1) for i in (0, 0, 1, 1)]
    first, second = phases([(TrainJob(spec, (), {}, None, "."), 1.0) for spec in specs], slots, slots[0])
    assert [[slot.visible for slot in place] for place in first.places] == [["GPU-0", "GPU-1"]]
    assert second.places == [(slot,) for slot in slots]


def test_bench_comes_last_and_alone() -> None:
    method = get_method("stfpm")
    train = TrainSpec(method, "resnet18", Weights(), Data("a", "b", "c"))
    bench = BenchSpec(method, "resnet18", 256, "auto", "cpu", 2)
    slots = [Slot(f"cpu{i}", "cpu", None, (i,), 1) for i in range(2)]
    whole = Slot("cpu", "cpu", None, (0, 1), 2)
    jobs = [(BenchJob(bench, "."), 1.0), (TrainJob(train, (), {}, None, "."), 2.0)]
    first, second = phases(jobs, slots, whole)
    assert ([job.kind for job, _ in first.jobs], first.places) == (["train"], [(slots[0],), (slots[1],)])
    assert ([job.kind for job, _ in second.jobs], second.places) == (["bench"], [(whole,)])
